//! Runs the program as a user does, and makes guests of a few instructions.

#![allow(dead_code, reason = "each test binary uses a part")]

pub mod payload;
pub mod terminal;
pub mod vm;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use queztl_guest_image::{self as image, Profile, Silent, Store};

/// The program under test.
pub fn queztl() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_queztl-hv"));
    command.stdin(Stdio::null()).env_remove("RUST_LOG");
    command
}

/// Runs it with arguments.
pub fn output<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    queztl().args(args).output().expect("the program starts")
}

/// What the program said when it failed: one line that begins with its name.
pub fn one_line(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).expect("messages are UTF-8");
    let line = text.strip_suffix('\n').expect("a message ends its line");
    assert!(line.starts_with("queztl-hv: ") && !line.contains('\n'), "not one line of ours: {text:?}");
    line.to_owned()
}

/// Sends a signal to the program.
pub fn send(child: &Child, signal: i32) {
    // SAFETY: the process is our child and has not been waited for, so the number is still its own.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

/// Where the code of [`guest`] runs.
pub const CODE_ADDRESS: u32 = 0x10_0000 + HEADER_BYTES;
const HEADER_BYTES: u32 = 32;

/// A Multiboot kernel whose whole program is `code`, in 32-bit protected mode.
pub fn guest(folder: &Path, code: &[u8]) -> PathBuf {
    const MAGIC: u32 = 0x1bad_b002;
    const ADDRESSES: u32 = 1 << 16;
    let load = 0x10_0000;
    let words = [MAGIC, ADDRESSES, 0u32.wrapping_sub(MAGIC + ADDRESSES), load, load, 0, 0, CODE_ADDRESS];
    let mut file: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    file.extend(code);
    let path = folder.join("guest");
    std::fs::write(&path, file).expect("the guest can be written");
    path
}

/// The small kernel built on this host and its RAM disk; says so and gives `None` if there is none.
pub fn linux() -> Option<(PathBuf, PathBuf)> {
    linux_of(Profile::Minimal)
}

/// The same with the kernel of another profile.
pub fn linux_of(profile: Profile) -> Option<(PathBuf, PathBuf)> {
    let found = built_linux(profile);
    if found.is_none() {
        eprintln!("skipped: no guest kernel of this kind; build one: queztl-hv kernel build --profile {profile}");
    }
    found
}

fn built_linux(profile: Profile) -> Option<(PathBuf, PathBuf)> {
    let store = Store::open().ok()?;
    let kernels = image::kernels_in(&store).ok()?;
    let kernel = kernels.into_iter().find(|kernel| kernel.info.profile == profile)?;
    let rootfs = image::rootfs::build(&store, &[], &mut Silent).ok()?;
    Some((kernel.vmlinux, rootfs.initramfs))
}

//! The small root file system: busybox, an init of our own and the agent, as an initramfs.
//!
//! Promises: the same busybox gives the same bytes; no privileges and no tools are needed to make it. What init does with
//! the kernel command line is told in `guest/rootfs/init.rs`: `queztl.run="COMMAND"` runs a command and powers off.
//! The archive is not compressed: a CPU in software unpacks more slowly than a host reads.

use crate::cpio::Archive;
use crate::kernel::short_hash;
use crate::store::Kind;
use crate::tools::{self, Need};
use crate::{Error, Progress, Result, Store};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));
/// `queztl-agent`, which serves the host once there is a vsock device; init starts it.
const AGENT: &[u8] = include_bytes!(env!("QUEZTL_AGENT"));
const NETWORK: &[u8] = include_bytes!("../../../guest/rootfs/network");
const NEEDS: &[Need] = &[Need::file(BUSYBOX, "busybox-static")];
const BUSYBOX: &str = "/bin/busybox";
const ARCHIVE: &str = "initramfs.cpio";
/// A busybox with everything is about 2 MB; anything far larger is not one.
const MAX_BUSYBOX_BYTES: u64 = 64 << 20;

const DIRECTORIES: [(&str, u32); 22] = [
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("etc/queztl", 0o755),
    ("home", 0o755),
    ("lib", 0o755),
    ("lib64", 0o755),
    ("mnt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sbin", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/sbin", 0o755),
    ("usr/lib", 0o755),
    ("usr/share", 0o755),
    ("var", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
];

const TEXTS: [(&str, &str); 6] = [
    ("etc/passwd", "root::0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
    ("etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/hostname", "queztl\n"),
    ("etc/profile", "export PS1='queztl:\\w\\$ '\nalias ll='ls -l'\n"),
    ("etc/resolv.conf", ""),
];

/// A file to be added: its path in the guest without the leading slash, its permission bits, its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraFile {
    pub path: String,
    pub mode: u32,
    pub content: Vec<u8>,
}

/// A root file system in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rootfs {
    /// An initramfs archive, for `--initrd`.
    pub initramfs: PathBuf,
    /// Whether it was made just now, rather than found.
    pub built: bool,
}

/// The root file system for whoever names none, in the user's store; made there when it is not there yet.
///
/// # Errors
/// [`Error::Missing`] when the host has no static busybox and none may be installed; [`Error::Io`].
pub fn default_rootfs(progress: &mut dyn Progress) -> Result<Rootfs> {
    let store = Store::open()?;
    build(&store, &[], progress)
}

/// The small root file system with `extra` files in it, found or made.
///
/// # Errors
/// As [`default_rootfs`]; [`Error::Image`] for a file that cannot be in an archive.
pub fn build(store: &Store, extra: &[ExtraFile], progress: &mut dyn Progress) -> Result<Rootfs> {
    let result = find_or_make(store, extra, progress);
    progress.finish();
    result
}

fn find_or_make(store: &Store, extra: &[ExtraFile], progress: &mut dyn Progress) -> Result<Rootfs> {
    tools::ensure("the small root file system", NEEDS, progress)?;
    let busybox = read_busybox(Path::new(BUSYBOX))?;
    let archive = archive(&busybox, extra)?;
    let key = short_hash(&[&archive]);
    let mut built = false;
    let path = store.get_or_make(Kind::Rootfs, &key, |directory| {
        built = true;
        progress.step("make the root file system");
        let path = directory.join(ARCHIVE);
        fs::write(&path, &archive).map_err(Error::io("write", &path))
    })?;
    Ok(Rootfs { initramfs: path.join(ARCHIVE), built })
}

fn read_busybox(path: &Path) -> Result<Vec<u8>> {
    let length = fs::metadata(path).map_err(Error::io("read", path))?.len();
    if length > MAX_BUSYBOX_BYTES {
        return Err(Error::Image(format!("{} is no busybox: it is larger than 64 MiB", path.display())));
    }
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    if has_interpreter(&bytes) {
        let text =
            "is linked dynamically, and the guest has no libraries: run `apt-get install busybox-static` as root";
        return Err(Error::Image(format!("{} {text}", path.display())));
    }
    Ok(bytes)
}

/// Whether a 64-bit ELF file asks for a dynamic loader (a `PT_INTERP` program header; System V gABI, chapter 5).
fn has_interpreter(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let half = |at: usize| elf.get(at..at + 2).map(|bytes| usize::from(u16::from_le_bytes([bytes[0], bytes[1]])));
    let Some(offset) = elf.get(32..40).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes) else {
        return false;
    };
    let (Ok(offset), Some(size), Some(count)) = (usize::try_from(offset), half(54), half(56)) else { return false };
    (0..count).any(|index| {
        let header = offset.checked_add(index * size).and_then(|at| elf.get(at..at.checked_add(4)?));
        header.is_some_and(|bytes| bytes == PT_INTERP.to_le_bytes())
    })
}

fn archive(busybox: &[u8], extra: &[ExtraFile]) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    for (path, mode) in DIRECTORIES {
        archive.directory(path, mode);
    }
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.character_device("dev/null", 0o666, 1, 3);
    archive.file("init", 0o755, INIT);
    archive.file("bin/busybox", 0o755, busybox);
    archive.file("sbin/queztl-agent", 0o755, AGENT);
    // Init has busybox install its other links.
    archive.symlink("bin/sh", "/bin/busybox");
    for (path, text) in TEXTS {
        archive.file(path, 0o644, text.as_bytes());
    }
    archive.file("etc/queztl/network", 0o755, NETWORK);
    let mut known: BTreeSet<String> = DIRECTORIES.iter().map(|(path, _)| (*path).to_owned()).collect();
    for file in extra {
        add_extra(&mut archive, &mut known, file)?;
    }
    Ok(archive.finish())
}

/// Adds one file and the directories above it that nobody has added.
fn add_extra(archive: &mut Archive, known: &mut BTreeSet<String>, file: &ExtraFile) -> Result<()> {
    let sane = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    if file.path.len() > 4000 || !file.path.split('/').all(sane) {
        return Err(Error::Image(format!("`{}` is no path in a guest: give it without the leading slash", file.path)));
    }
    for (index, _) in file.path.match_indices('/') {
        let parent = file.path.get(..index).unwrap_or_default();
        if known.insert(parent.to_owned()) {
            archive.directory(parent, 0o755);
        }
    }
    archive.file(&file.path, file.mode, &file.content);
    Ok(())
}

#[cfg(test)]
#[path = "../../../guest/rootfs/params.rs"]
mod params;

#[cfg(test)]
mod tests;

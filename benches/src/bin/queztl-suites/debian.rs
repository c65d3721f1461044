//! Debian's user land, for guests and for the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use queztl_bench::image::{GuestFile, Image, guest_folder};
use queztl_bench::machine::{Machine, Run};
use queztl_guest_image::debian::{DebianImage, StockSystem};
use queztl_guest_image::{Store, Terminal};

use super::Host;

/// Shell commands that make the Debian root on the disk usable at `/mnt`.
pub const ENTER: &str = "mount -t ext4 /dev/vda /mnt; mount -t proc proc /mnt/proc; mount -t sysfs sys /mnt/sys; \
                         mount --bind /dev /mnt/dev; mount -t tmpfs tmp /mnt/tmp";

/// Commands that do the same on the host for the disk `$1` at `$2`.
const ENTER_HERE: &str = "mount -o loop \"$1\" \"$2\" && mount -t proc proc \"$2/proc\" && mount --bind /dev \"$2/dev\" && \
                          mount -t tmpfs tmp \"$2/tmp\"";

/// A script of `guest/userland` and what it is told; none of it has quotes.
pub struct Script<'a> {
    pub shell: &'a str,
    pub name: &'a str,
    pub arguments: &'a str,
}

/// Finds or makes a Debian system.
pub fn system(image: &DebianImage) -> Result<StockSystem> {
    Ok(image.build(&Store::open()?, &mut Terminal::new())?)
}

/// A copy of the default Debian disk in `directory`, to be written to.
pub fn disk(directory: &Path) -> Result<PathBuf> {
    copy_of_disk(&system(&DebianImage::default())?, directory)
}

/// A copy of the system's disk in `directory`.
pub fn copy_of_disk(system: &StockSystem, directory: &Path) -> Result<PathBuf> {
    let disk = system.disk.as_ref().context("the Debian image has no disk")?;
    let copy = directory.join("disk.raw");
    copy_sparse(disk, &copy)?;
    Ok(copy)
}

pub fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(from).arg(to).status();
    ensure!(status.is_ok_and(|s| s.success()), "cannot copy {}", from.display());
    Ok(())
}

impl Script<'_> {
    fn file(&self) -> PathBuf {
        guest_folder().join("userland").join(self.name)
    }

    fn command(&self, root: &str) -> String {
        format!("chroot {root} {} /tmp/{} {}", self.shell, self.name, self.arguments)
    }

    /// Runs in the disk's root, in a guest with the small kernel.
    pub fn in_guest(&self, host: &Host, machine: Machine, disk: &Path, ram_mib: u32) -> Result<Run> {
        let image = Image::prepare(&[GuestFile { from: self.file(), to: format!("root/{}", self.name) }])?;
        let commands = format!("{ENTER}; cp /root/{} /mnt/tmp/; {}; umount /mnt/tmp", self.name, self.command("/mnt"));
        machine.run(&host.queztl, &host.guest(&image, &commands, ram_mib, Some(disk)), host.limit)
    }

    /// Runs in the disk's root on the host, as root; what it printed.
    pub fn natively(&self, disk: &Path, directory: &Path) -> Result<String> {
        let commands = format!("{ENTER_HERE} && cp \"$3\" \"$2/tmp/\" && {}", self.command("\"$2\""));
        on_disk(&commands, disk, directory, &self.file())
    }
}

/// Runs shell commands on the host with the disk as `$1`, a folder in `directory` to mount it at as `$2`, and a file as `$3`.
pub fn on_disk(commands: &str, disk: &Path, directory: &Path, file: &Path) -> Result<String> {
    let root = directory.join("root");
    fs::create_dir_all(&root).context("cannot make a directory")?;
    // The namespace takes the mounts with it, whatever happens.
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", commands, "sh"])
        .arg(disk)
        .arg(&root)
        .arg(file)
        .output()
        .context("cannot start unshare")?;
    if !output.status.success() {
        bail!("the native run failed (it needs root):\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

//! A stock distribution: Debian's own kernel and user land on a disk, and the Debian installer's first stage.
//!
//! Promises: the kernel and the programs are the distribution's packages, unchanged; made once, then found. The archive
//! moves on, so two stores may hold different builds under the same key: what identifies an image is what was asked for.
//! The system logs root in on the serial console, takes an address by DHCP, and understands `queztl.run="COMMAND"` on the
//! kernel's command line as the small root file system does.

use crate::kernel::short_hash;
use crate::store::Kind;
use crate::tools::{self, Need};
use crate::{Error, Progress, Result, Store};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

const PREPARE: &str = include_str!("../../../guest/debian/prepare");
const CUSTOMIZE: &str = include_str!("../../../guest/debian/customize");
const SUITE: &str = "bookworm";
/// Changes when the same request would give another image.
const RECIPE: u8 = 1;
/// What makes a system out of the essential packages.
const SYSTEM: [&str; 14] = [
    "linux-image-amd64",
    "initramfs-tools",
    "zstd",
    "systemd-sysv",
    "udev",
    "dbus",
    "login",
    "kmod",
    "procps",
    "ifupdown",
    "isc-dhcp-client",
    "iproute2",
    "iputils-ping",
    "ca-certificates",
];
/// What the tests and comparisons run.
const PROGRAMS: [&str; 6] = ["gcc", "libc6-dev", "python3-minimal", "perl", "openssl", "stress-ng"];
const IMAGE_NEEDS: &[Need] = &[Need::program("mmdebstrap", "mmdebstrap"), Need::program("mkfs.ext4", "e2fsprogs")];
const INSTALLER_PACKAGE: &str = "debian-installer-12-netboot-amd64";
const INSTALLER_FOLDER: &str = "usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64";
/// Documentation in no guest: it would be a third of the disk.
const EXCLUDED: [&str; 3] = ["/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*"];

/// A system to start: its files and what its kernel wants to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StockSystem {
    /// The distribution's kernel, a bzImage.
    pub kernel: PathBuf,
    /// Its initial RAM disk.
    pub initrd: PathBuf,
    /// A raw ext4 image without partitions; none for the installer. Do not write to it: give a guest a copy.
    pub disk: Option<PathBuf>,
    /// The kernel's command line.
    pub append: String,
    /// Whether it was made just now, rather than found.
    pub built: bool,
}

/// A Debian disk that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebianImage {
    /// Packages beside those that make a system that boots, has a network and can be logged in to.
    pub packages: Vec<String>,
    /// Size of the file system in bytes; the file is sparse.
    pub disk_bytes: u64,
}

impl Default for DebianImage {
    /// With a C compiler, Python, Perl, OpenSSL and stress-ng, on 2 GiB.
    fn default() -> Self {
        DebianImage { packages: PROGRAMS.map(str::to_owned).to_vec(), disk_bytes: 2 << 30 }
    }
}

impl DebianImage {
    /// Finds the image in the store or makes it there, which needs root, a Debian archive to download from, and minutes.
    ///
    /// # Errors
    /// [`Error::Image`] without root, [`Error::Missing`] without the tools, [`Error::Program`] with the tools' own word.
    pub fn build(&self, store: &Store, progress: &mut dyn Progress) -> Result<StockSystem> {
        let result = self.find_or_make(store, progress);
        progress.finish();
        result
    }

    fn find_or_make(&self, store: &Store, progress: &mut dyn Progress) -> Result<StockSystem> {
        if let Some(name) = self.packages.iter().find(|name| !is_package_name(name)) {
            return Err(Error::Image(format!("`{name}` is no name of a Debian package")));
        }
        let key = self.key();
        let mut built = false;
        let path = store.get_or_make(Kind::Images, &key, |directory| {
            built = true;
            if !rustix::process::geteuid().is_root() {
                return Err(Error::Image(
                    "making a Debian image needs root: run the same command with sudo".to_owned(),
                ));
            }
            tools::ensure("making a Debian image", IMAGE_NEEDS, progress)?;
            progress.step("install Debian into a directory");
            let root = directory.join("root");
            self.install(directory, &root, &store.log_path(&format!("debian-{key}")))?;
            progress.step("make the disk");
            self.make_disk(directory, &root)?;
            fs::remove_dir_all(&root).map_err(Error::io("remove", &root))
        })?;
        Ok(StockSystem {
            kernel: path.join("vmlinuz"),
            initrd: path.join("initrd.img"),
            disk: Some(path.join("disk.raw")),
            append: "console=ttyS0 root=/dev/vda rw".to_owned(),
            built,
        })
    }

    fn key(&self) -> String {
        let (system, packages) = (SYSTEM.join(" "), self.packages.join(" "));
        let parts = [SUITE, PREPARE, CUSTOMIZE, &system, &packages].map(str::as_bytes);
        let name = short_hash(&[&[RECIPE], &short_hash(&parts).into_bytes(), &self.disk_bytes.to_le_bytes()]);
        format!("debian-{SUITE}-{name}")
    }

    /// The unpacked system in `root`.
    fn install(&self, directory: &Path, root: &Path, log: &Path) -> Result<()> {
        let mut command = Command::new("mmdebstrap");
        command.env("LC_ALL", "C").args(["--mode=root", "--variant=minbase", "--format=directory"]);
        command.arg("--aptopt=APT::Install-Recommends \"false\"");
        for pattern in EXCLUDED {
            command.arg(format!("--dpkgopt=path-exclude={pattern}"));
        }
        for (hook, name, text) in [("essential", "prepare", PREPARE), ("customize", "customize", CUSTOMIZE)] {
            let script = directory.join(name);
            fs::write(&script, text).map_err(Error::io("write", &script))?;
            let script = script.display().to_string().replace('\'', "'\\''");
            command.arg(format!("--{hook}-hook=sh '{script}' \"$1\""));
        }
        let packages: Vec<&str> = SYSTEM.into_iter().chain(self.packages.iter().map(String::as_str)).collect();
        command.arg(format!("--include={}", packages.join(","))).arg(SUITE).arg(root);
        let mut last = String::new();
        let status = tools::run_logged(&mut command, log, |line| {
            if line.starts_with("E: ") || !line.starts_with("I: ") {
                last = line.to_owned();
            }
        })?;
        if !status.success() {
            let reason = format!("{last}; its whole output is in {}", log.display());
            return Err(Error::Program { program: "mmdebstrap".to_owned(), reason });
        }
        let _ = fs::remove_file(log);
        for name in ["prepare", "customize"] {
            let script = directory.join(name);
            fs::remove_file(&script).map_err(Error::io("remove", &script))?;
        }
        Ok(())
    }

    /// The disk from the unpacked system, with the kernel and the initial RAM disk beside it.
    fn make_disk(&self, directory: &Path, root: &Path) -> Result<()> {
        for (name, start) in [("vmlinuz", "vmlinuz-"), ("initrd.img", "initrd.img-")] {
            let from = find_in(&root.join("boot"), start)?;
            let to = directory.join(name);
            fs::copy(&from, &to).map_err(Error::io("write", &to))?;
        }
        let disk = directory.join("disk.raw");
        File::create(&disk).and_then(|file| file.set_len(self.disk_bytes)).map_err(Error::io("write", &disk))?;
        let mut mkfs = Command::new("/sbin/mkfs.ext4");
        // Writing the inode tables and the journal now saves the guest from doing it in the background.
        mkfs.args(["-q", "-F", "-L", "debian", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d"]);
        tools::run(mkfs.arg(root).arg(&disk)).map(|_| ())
    }
}

/// The Debian installer's netboot kernel and RAM disk, for a serial console; found or taken from its package.
///
/// # Errors
/// [`Error::Program`] with apt's own word when the package cannot be had, [`Error::Missing`] without apt.
pub fn debian_installer(store: &Store, progress: &mut dyn Progress) -> Result<StockSystem> {
    let mut built = false;
    let needs = [Need::program("apt-get", "apt"), Need::program("dpkg-deb", "dpkg")];
    let result = store.get_or_make(Kind::Images, INSTALLER_PACKAGE, |directory| {
        built = true;
        tools::ensure("the Debian installer", &needs, progress)?;
        progress.step("download the Debian installer");
        let unpacked = directory.join("package");
        fs::create_dir(&unpacked).map_err(Error::io("create", &unpacked))?;
        tools::run(tools::apt_get().args(["-q", "download", INSTALLER_PACKAGE]).current_dir(&unpacked))?;
        let package = find_in(&unpacked, INSTALLER_PACKAGE)?;
        tools::run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&unpacked))?;
        for (from, to) in [("linux", "vmlinuz"), ("initrd.gz", "initrd.img")] {
            let (from, to) = (unpacked.join(INSTALLER_FOLDER).join(from), directory.join(to));
            fs::copy(&from, &to).map_err(Error::io("copy", &from))?;
        }
        fs::remove_dir_all(&unpacked).map_err(Error::io("remove", &unpacked))
    });
    progress.finish();
    let path = result?;
    Ok(StockSystem {
        kernel: path.join("vmlinuz"),
        initrd: path.join("initrd.img"),
        disk: None,
        append: "console=ttyS0 TERM=linux".to_owned(),
        built,
    })
}

/// The file in `folder` whose name begins with `start`; the last in order when there are several.
fn find_in(folder: &Path, start: &str) -> Result<PathBuf> {
    let mut found = None;
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let entry = entry.map_err(Error::io("list", folder))?;
        if entry.file_name().to_string_lossy().starts_with(start) {
            found = found.max(Some(entry.path()));
        }
    }
    found.ok_or_else(|| Error::Image(format!("no file {start}… in {}", folder.display())))
}

/// Debian Policy §5.6.1: lower-case letters, digits, `+`, `-`, `.`, two at least, the first one a letter or digit.
fn is_package_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte);
    name.len() >= 2 && name.bytes().all(allowed) && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Silent;

    #[test]
    fn what_is_asked_for_identifies_an_image() {
        let image = DebianImage::default();
        let larger = DebianImage { disk_bytes: 4 << 30, ..image.clone() };
        let more = DebianImage { packages: vec!["gcc".to_owned()], ..image.clone() };
        assert_eq!(image.key(), DebianImage::default().key());
        assert_ne!(image.key(), larger.key());
        assert_ne!(image.key(), more.key());
    }

    #[test]
    fn package_names_that_would_be_options_or_lists_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path()).unwrap();
        for name in ["", "-y", "a,b", "a b", "gcc\n", "Gcc", "x"] {
            let image = DebianImage { packages: vec![name.to_owned()], ..DebianImage::default() };
            assert!(matches!(image.build(&store, &mut Silent), Err(Error::Image(_))), "{name:?}");
        }
        assert!(is_package_name("g++-12"));
    }

    #[test]
    fn the_newest_of_several_files_is_found() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["vmlinuz-6.1.0-1", "vmlinuz-6.1.0-2", "other"] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        assert_eq!(find_in(directory.path(), "vmlinuz-").unwrap(), directory.path().join("vmlinuz-6.1.0-2"));
        assert!(find_in(directory.path(), "initrd").is_err());
    }
}

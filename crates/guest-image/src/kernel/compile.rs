//! Configures and compiles one kernel outside of its source tree.

use super::config::Requests;
use super::{MAX_BYTES, Profile};
use crate::tools::{self, Need};
use crate::{Error, Progress, Result};
use std::fs;
use std::path::Path;
use std::process::Command;

/// What compiling takes.
pub(super) const NEEDS: &[Need] = &[
    Need::program("make", "make"),
    Need::program("gcc", "gcc"),
    Need::program("ld", "binutils"),
    Need::program("flex", "flex"),
    Need::program("bison", "bison"),
    Need::program("bc", "bc"),
    Need::program("perl", "perl"),
    Need::program("tar", "tar"),
    Need::program("xz", "xz-utils"),
    Need::file("/usr/include/stdio.h", "libc6-dev"),
    Need::file("/usr/include/gelf.h", "libelf-dev"),
    Need::file("/usr/include/openssl/opensslv.h", "libssl-dev"),
];

/// Variables of the caller that would change or disturb the build: Kbuild's own and those of a make around us.
const FOREIGN: [&str; 11] = [
    "MAKEFLAGS",
    "MFLAGS",
    "MAKELEVEL",
    "MAKEOVERRIDES",
    "ARCH",
    "CROSS_COMPILE",
    "LOCALVERSION",
    "KCONFIG_CONFIG",
    "KBUILD_OUTPUT",
    "KCFLAGS",
    "INSTALL_PATH",
];

/// One build.
#[derive(Debug)]
pub(super) struct Job<'a> {
    /// The source, which stays as it is.
    pub(super) tree: &'a Path,
    /// Where `vmlinux` and `config` go; scratch space as well.
    pub(super) directory: &'a Path,
    /// Where the whole output is kept if it fails.
    pub(super) log: &'a Path,
    pub(super) requests: &'a Requests,
    pub(super) profile: Profile,
}

/// What a build gives.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) release: String,
    pub(super) bytes: u64,
    pub(super) objects: u64,
}

impl Job<'_> {
    pub(super) fn run(&self, progress: &mut dyn Progress) -> Result<Output> {
        let build = self.directory.join("build");
        fs::create_dir(&build).map_err(Error::io("create", &build))?;
        progress.step(&format!("configure the {} kernel", self.profile));
        self.configure(&build)?;
        progress.step(&format!("compile the {} kernel", self.profile));
        let objects = self.compile(&build, progress)?;
        let bytes = self.collect(&build)?;
        let release = build.join("include/config/kernel.release");
        let release = fs::read_to_string(&release).map_err(Error::io("read", &release))?.trim().to_owned();
        fs::remove_dir_all(&build).map_err(Error::io("remove", &build))?;
        // The log is kept for failures only.
        let _ = fs::remove_file(self.log);
        Ok(Output { release, bytes, objects })
    }

    /// Everything off, then the requests; refuses when Kconfig did not follow them.
    pub(super) fn configure(&self, build: &Path) -> Result<()> {
        let merged = self.directory.join("build/merged.config");
        fs::write(&merged, self.requests.to_text()).map_err(Error::io("write", &merged))?;
        let mut make = self.make(build);
        make.env("KCONFIG_ALLCONFIG", &merged).arg("allnoconfig");
        self.run_make(&mut make, |_| {})?;
        let finished = build.join(".config");
        let text = fs::read_to_string(&finished).map_err(Error::io("read", &finished))?;
        self.requests.verify(&text)
    }

    /// Compiles `vmlinux` with all processors; the number of objects made.
    fn compile(&self, build: &Path, progress: &mut dyn Progress) -> Result<u64> {
        let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let mut make = self.make(build);
        make.arg(format!("-j{jobs}")).arg("vmlinux");
        let expected = self.profile.expected_objects();
        let mut objects = 0;
        self.run_make(&mut make, |line| {
            if is_object(line) {
                objects += 1;
                progress.count(objects, Some(expected));
            }
        })?;
        Ok(objects)
    }

    /// Puts the stripped kernel and its configuration into place; the kernel's size in bytes.
    fn collect(&self, build: &Path) -> Result<u64> {
        let vmlinux = self.directory.join("vmlinux");
        tools::run(Command::new("strip").arg("--strip-all").arg("-o").arg(&vmlinux).arg(build.join("vmlinux")))?;
        let config = self.directory.join("config");
        fs::copy(build.join(".config"), &config).map_err(Error::io("write", &config))?;
        let bytes = fs::metadata(&vmlinux).map_err(Error::io("read", &vmlinux))?.len();
        if bytes >= MAX_BYTES { Err(Error::TooLarge { bytes, limit: MAX_BYTES }) } else { Ok(bytes) }
    }

    /// A `make` in the source tree with a fixed environment: the same inputs give the same bytes.
    fn make(&self, build: &Path) -> Command {
        let mut make = Command::new("make");
        for name in FOREIGN {
            make.env_remove(name);
        }
        make.env("LC_ALL", "C").env("KBUILD_BUILD_USER", "queztl").env("KBUILD_BUILD_HOST", "queztl");
        make.env("KBUILD_BUILD_VERSION", "1").env("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970");
        make.arg("-C").arg(self.tree).arg(format!("O={}", build.display())).arg("ARCH=x86_64");
        make
    }

    fn run_make(&self, make: &mut Command, mut seen: impl FnMut(&str)) -> Result<()> {
        let mut complaint = None;
        let status = tools::run_logged(make, self.log, |line| {
            if complaint.is_none() && (line.contains("error:") || line.contains("*** ") || line.contains("ld: ")) {
                complaint = Some(line.to_owned());
            }
            seen(line);
        })?;
        if status.success() {
            return Ok(());
        }
        let reason = complaint.unwrap_or_else(|| status.to_string());
        Err(Error::Compile { reason, log: self.log.to_owned() })
    }
}

/// Whether a line of Kbuild's output says that a source file is being compiled.
fn is_object(line: &str) -> bool {
    let mut words = line.split_ascii_whitespace();
    matches!(words.next(), Some("CC" | "AS")) && words.next().is_some_and(|name| name.ends_with(".o"))
}

/// The compiler, as it names itself.
pub(super) fn compiler_version() -> Result<String> {
    first_line("gcc")
}

/// The linker, as it names itself.
pub(super) fn linker_version() -> Result<String> {
    first_line("ld")
}

fn first_line(program: &str) -> Result<String> {
    let output = tools::run(Command::new(program).arg("--version").env("LC_ALL", "C"))?;
    Ok(String::from_utf8_lossy(&output).lines().next().unwrap_or("").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_counted_and_nothing_else() {
        assert!(is_object("  CC      kernel/fork.o"));
        assert!(is_object("  AS      arch/x86/entry/entry_64.o"));
        for other in ["  AR      kernel/built-in.a", "  HOSTCC  scripts/sorttable", "  LD      vmlinux", "", "  CC"] {
            assert!(!is_object(other), "{other}");
        }
    }

    #[test]
    fn toolchain_names_itself() {
        assert!(linker_version().unwrap().contains("ld"));
    }
}

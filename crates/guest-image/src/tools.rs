//! The programs of the host that building needs: found, installed when that is allowed, or named in a sentence.

use crate::{Error, Progress, Result};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

/// Something that must be on the host, and the Debian package that brings it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need {
    pub(crate) probe: Probe,
    pub(crate) package: &'static str,
}

/// How to see whether a [`Need`] is met.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Probe {
    /// A program in `PATH` or in the system directories that users' paths leave out.
    Program(&'static str),
    /// A file at a fixed path.
    File(&'static str),
}

impl Need {
    pub(crate) const fn program(name: &'static str, package: &'static str) -> Self {
        Need { probe: Probe::Program(name), package }
    }

    pub(crate) const fn file(path: &'static str, package: &'static str) -> Self {
        Need { probe: Probe::File(path), package }
    }

    fn is_met(&self) -> bool {
        match self.probe {
            Probe::Program(name) => find_program(name),
            Probe::File(path) => Path::new(path).exists(),
        }
    }

    fn name(&self) -> &'static str {
        match self.probe {
            Probe::Program(name) => name,
            Probe::File(path) => path,
        }
    }
}

/// Makes sure that every need is met. Root has the missing packages installed, unless `QUEZTL_NO_INSTALL` is set; all
/// others are told what is missing.
///
/// # Errors
/// [`Error::Missing`] and [`Error::Install`].
pub(crate) fn ensure(what: &'static str, needs: &[Need], progress: &mut dyn Progress) -> Result<()> {
    let missing: Vec<&Need> = needs.iter().filter(|need| !need.is_met()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&'static str> = missing.iter().map(|need| need.package).collect();
    packages.sort_unstable();
    packages.dedup();
    if !may_install() {
        let missing = missing.iter().map(|need| need.name().to_owned()).collect();
        return Err(Error::Missing { what, missing, packages });
    }
    install(&packages, progress)?;
    match needs.iter().find(|need| !need.is_met()) {
        None => Ok(()),
        Some(need) => {
            Err(Error::Install { packages: packages.join(" "), reason: format!("{} is still missing", need.name()) })
        }
    }
}

/// Whether packages may be installed without asking.
pub(crate) fn may_install() -> bool {
    rustix::process::geteuid().is_root()
        && std::env::var_os("QUEZTL_NO_INSTALL").is_none()
        && find_program("apt-get")
        && find_program("dpkg")
}

fn install(packages: &[&str], progress: &mut dyn Progress) -> Result<()> {
    progress.step(&format!("install {}", packages.join(" ")));
    // Lists may be absent (a bare container) or too old; a failure shows itself in the installation.
    let _ = apt_get().args(["-q", "update"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let mut command = apt_get();
    command.args(["-q", "-y", "--no-install-recommends", "install"]).args(packages);
    let output = command.stdin(Stdio::null()).output();
    let reason = match output {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => last_line(&output.stderr).unwrap_or_else(|| output.status.to_string()),
        Err(error) => error.to_string(),
    };
    Err(Error::Install { packages: packages.join(" "), reason })
}

pub(crate) fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    command
}

fn find_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(std::path::PathBuf::from);
    std::env::split_paths(&path).chain(system).any(|folder| folder.join(name).is_file())
}

/// The last line with something in it.
pub(crate) fn last_line(output: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(output);
    text.lines().rev().find(|line| !line.trim().is_empty()).map(|line| line.trim().to_owned())
}

/// Runs a short program to its end.
///
/// # Errors
/// [`Error::Program`] with the program's own last word when it cannot be started or fails.
pub(crate) fn run(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_program().to_string_lossy().into_owned();
    die_with_us(command);
    let output = command.stdin(Stdio::null()).output();
    let reason = match output {
        Ok(output) if output.status.success() => return Ok(output.stdout),
        Ok(output) => {
            last_line(&output.stderr).or_else(|| last_line(&output.stdout)).unwrap_or_else(|| output.status.to_string())
        }
        Err(error) => error.to_string(),
    };
    Err(Error::Program { program, reason })
}

/// Runs a long program; everything it writes goes to `log`, and each line to `seen`.
///
/// # Errors
/// [`Error::Program`] when it cannot be started, [`Error::Io`] when the log cannot be written. How it ended is the
/// caller's to judge.
pub(crate) fn run_logged(command: &mut Command, log: &Path, mut seen: impl FnMut(&str)) -> Result<ExitStatus> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |error: std::io::Error| Error::Program { program: program.clone(), reason: error.to_string() };
    let (reader, writer) = std::io::pipe().map_err(failed)?;
    command.stdin(Stdio::null()).stdout(writer.try_clone().map_err(failed)?).stderr(writer);
    die_with_us(command);
    let mut child = command.spawn().map_err(failed)?;
    // The command keeps copies of the pipe's writing end, without whose end the reading never ends.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut file = std::fs::File::create(log).map_err(Error::io("create", log))?;
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).map_err(failed)? != 0 {
        file.write_all(&line).map_err(Error::io("write", log))?;
        seen(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    child.wait().map_err(failed)
}

/// Has the kernel end the child when this process dies by whatever means: no compiler goes on for nobody.
fn die_with_us(command: &mut Command) {
    let end = || {
        let signal = Some(rustix::process::Signal::TERM);
        rustix::process::set_parent_process_death_signal(signal).map_err(std::io::Error::from)
    };
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(end) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Silent;

    #[test]
    fn met_needs_ask_for_nothing() {
        let needs = [Need::program("sh", "dash"), Need::file("/proc/self/status", "linux")];
        assert!(ensure("a test", &needs, &mut Silent).is_ok());
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let missing = vec!["flex".to_owned(), "/usr/include/gelf.h".to_owned()];
        let error = Error::Missing { what: "building a kernel", missing, packages: vec!["flex", "libelf-dev"] };
        assert_eq!(
            error.to_string(),
            "building a kernel needs flex, /usr/include/gelf.h, which this host lacks: run `apt-get install flex libelf-dev` as root"
        );
    }

    #[test]
    fn a_logged_program_is_seen_line_by_line_from_both_streams() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut lines = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; exit 3"]);

        let status = run_logged(&mut command, log.path(), |line| lines.push(line.to_owned())).unwrap();

        assert_eq!(status.code(), Some(3));
        assert_eq!(lines, ["one", "two"]);
        assert_eq!(std::fs::read_to_string(log.path()).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn a_failing_program_gives_its_last_word() {
        let error = run(Command::new("sh").args(["-c", "echo first >&2; echo why >&2; exit 1"])).unwrap_err();
        assert_eq!(error.to_string(), "sh failed: why");
    }
}

//! Starts a command: who, where, with which descriptors.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use queztl_agent_protocol::{Exec, Fault, FaultCode, Size};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::Winsize;

use crate::users::{self, User};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command that runs. It leads a session and a process group of its own.
pub struct Running {
    pub child: Child,
    /// Readable once the command has ended.
    pub pidfd: OwnedFd,
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    /// The terminal's master, which is also `stdin` and `stdout`.
    pub terminal: Option<OwnedFd>,
}

/// The kernel's form of a size.
pub fn winsize(size: Size) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Starts it; the fault tells the host why not.
pub fn start(request: &Exec) -> Result<Running, Fault> {
    let user = users::find(&request.user).map_err(|text| Fault::new(FaultCode::NoUser, text))?;
    let directory = if request.cwd.is_empty() { user.home.as_os_str() } else { OsStr::from_bytes(&request.cwd) };
    let directory = working_directory(Path::new(directory), request.cwd.is_empty())?;
    let Some((program, arguments)) = request.argv.split_first() else {
        return Err(Fault::new(FaultCode::NoProgram, "the command has no words"));
    };
    let mut command = Command::new(OsStr::from_bytes(program));
    command.args(arguments.iter().map(|word| OsStr::from_bytes(word)));
    set_environment(&mut command, request, &user);
    let master = match request.terminal {
        Some(size) => Some(attach_terminal(&mut command, size).map_err(system("cannot make a terminal in the guest"))?),
        None => {
            command.stdin(if request.stdin { Stdio::piped() } else { Stdio::null() });
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            None
        }
    };
    prepare_child(&mut command, user, directory, master.is_some());
    let mut child = command.spawn().map_err(|error| not_started(program, &error))?;
    // The slave's descriptors in `command` must go, or the master never tells of its end.
    drop(command);
    match streams(&mut child, master) {
        Ok((pidfd, stdin, stdout, stderr, terminal)) => Ok(Running { child, pidfd, stdin, stdout, stderr, terminal }),
        Err(error) => {
            let _ = child.kill().and_then(|()| child.wait());
            Err(system("cannot watch the command")(error))
        }
    }
}

type Streams = (OwnedFd, Option<OwnedFd>, Option<OwnedFd>, Option<OwnedFd>, Option<OwnedFd>);

fn streams(child: &mut Child, master: Option<OwnedFd>) -> io::Result<Streams> {
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    let (stdin, stdout, stderr) = match &master {
        Some(master) => (Some(master.try_clone()?), Some(master.try_clone()?), None),
        None => (
            child.stdin.take().map(OwnedFd::from),
            child.stdout.take().map(OwnedFd::from),
            child.stderr.take().map(OwnedFd::from),
        ),
    };
    for stream in [&stdin, &stdout, &stderr].into_iter().flatten() {
        rustix::io::ioctl_fionbio(stream, true)?;
    }
    Ok((pidfd, stdin, stdout, stderr, master))
}

fn system(action: &'static str) -> impl Fn(io::Error) -> Fault {
    move |error| Fault::new(FaultCode::System, format_args!("{action}: {error}"))
}

fn not_started(program: &[u8], error: &io::Error) -> Fault {
    let program = String::from_utf8_lossy(program);
    match error.kind() {
        io::ErrorKind::NotFound => {
            Fault::new(FaultCode::NoProgram, format_args!("there is no program `{program}` in the guest"))
        }
        _ => Fault::new(FaultCode::CannotExecute, format_args!("`{program}` cannot be run in the guest: {error}")),
    }
}

/// The directory as the kernel wants it. A home that is missing is no reason not to run; one that was asked for is.
fn working_directory(path: &Path, is_home: bool) -> Result<CString, Fault> {
    if !path.is_absolute() {
        return Err(Fault::new(FaultCode::NoDirectory, "the working directory must be given from the root on"));
    }
    let chosen = match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => path.as_os_str(),
        _ if is_home => OsStr::new("/"),
        _ => {
            let text = format!("there is no directory {} in the guest", path.display());
            return Err(Fault::new(FaultCode::NoDirectory, text));
        }
    };
    CString::new(chosen.as_bytes()).map_err(|_| Fault::new(FaultCode::NoDirectory, "a path has a zero byte"))
}

fn set_environment(command: &mut Command, request: &Exec, user: &User) {
    command.env_clear().env("PATH", PATH);
    command.env("HOME", &user.home).env("USER", &user.name).env("LOGNAME", &user.name).env("SHELL", &user.shell);
    if request.terminal.is_some() {
        command.env("TERM", "linux");
    }
    for variable in &request.env {
        // The protocol's decoder has seen to it that there is a `=`.
        let at = variable.iter().position(|byte| *byte == b'=').unwrap_or(variable.len());
        let (name, value) = (variable.get(..at).unwrap_or_default(), variable.get(at + 1..).unwrap_or_default());
        command.env(OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec()));
    }
}

/// Makes a terminal the command's; gives its master.
fn attach_terminal(command: &mut Command, size: Size) -> io::Result<OwnedFd> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::termios::tcsetwinsize(&slave, winsize(size))?;
    command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
    Ok(master)
}

/// What the child does between its birth and the program.
fn prepare_child(command: &mut Command, user: User, directory: CString, terminal: bool) {
    let body = move || {
        rustix::process::setsid()?;
        if terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        // The agent's own protection is not for its commands; without procfs there is none.
        if let Ok(file) = rustix::fs::open(c"/proc/self/oom_score_adj", flags, Mode::empty()) {
            let _ = rustix::io::write(file.as_fd(), b"0");
        }
        become_user(&user)?;
        Ok(rustix::process::chdir(directory.as_c_str())?)
    };
    // SAFETY: the closure makes system calls only; it neither allocates nor takes locks that another thread of the
    // parent could hold.
    unsafe { command.pre_exec(body) };
}

fn become_user(user: &User) -> io::Result<()> {
    let changes = user.uid != 0 || user.gid != 0;
    // SAFETY: the calls take numbers and a list that lives during the call. The child has one thread, so that the
    // C library's signal to other threads (nptl(7)) finds none.
    unsafe {
        if changes && libc::setgroups(user.groups.len(), user.groups.as_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        if changes && (libc::setgid(user.gid) != 0 || libc::setuid(user.uid) != 0) {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

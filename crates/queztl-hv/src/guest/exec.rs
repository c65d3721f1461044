//! `queztl-hv exec`: a command in the guest with this process's streams.
//!
//! The exit status is the command's. 125 is a failure of ours, 126 a program that cannot be run, 127 one that is not
//! there, 128 + n the end by signal n: as shells and docker have it.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use queztl_agent_client::{Error, Exec, Exit, FaultCode, Io, Size};

use super::{ExecArgs, failure, signals};
use crate::report::Failure;
use crate::run::terminal::{self, RawMode};
use crate::status::Status;

pub const FAILED: u8 = 125;
pub const CANNOT_EXECUTE: u8 = 126;
pub const NOT_FOUND: u8 = 127;
const SIGPIPE: u8 = 13;

/// Runs the command in the guest behind `vsock`; the status is the command's or one of those above.
///
/// # Errors
/// A mistake of the command line that the parser cannot see.
pub fn exec(args: &ExecArgs, vsock: &Path) -> Result<Status, Failure> {
    Ok(match run(args, vsock) {
        Ok(Exit::Status(status)) => Status::Command(status),
        Ok(Exit::Signal(signal)) => Status::Command(128 | signal),
        // Whoever read the output has seen enough; that is no news.
        Err(Error::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Status::Command(128 | SIGPIPE),
        Err(error) => {
            let status = match error.fault() {
                Some(FaultCode::CannotExecute) => CANNOT_EXECUTE,
                Some(FaultCode::NoProgram) => NOT_FOUND,
                _ => FAILED,
            };
            failure(&error).report();
            Status::Command(status)
        }
    })
}

/// `NAME=VALUE`, or `NAME` for this process's own value.
pub fn variable(text: &str) -> Result<OsString, String> {
    let (name, has_value) = text.split_once('=').map_or((text, false), |(name, _)| (name, true));
    if name.is_empty() {
        return Err("write NAME=VALUE".to_owned());
    }
    if has_value {
        return Ok(text.into());
    }
    let value = std::env::var_os(name).ok_or_else(|| format!("{name} is not set here; write {name}=VALUE"))?;
    Ok([OsString::from(name), value].join(std::ffi::OsStr::new("=")))
}

fn run(args: &ExecArgs, vsock: &Path) -> Result<Exit, Error> {
    let bytes = |text: &OsString| text.as_bytes().to_vec();
    let size = terminal::size().map_or(Size { rows: 24, columns: 80 }, |(columns, rows)| Size { rows, columns });
    let mut env: Vec<Vec<u8>> = args.env.iter().map(bytes).collect();
    if args.tty
        && let Some(name) = std::env::var_os("TERM")
    {
        // In front, so that one of --env wins.
        env.insert(0, [b"TERM=".to_vec(), name.into_vec()].concat());
    }
    let exec = Exec {
        argv: args.command.iter().map(bytes).collect(),
        env,
        cwd: args.cwd.as_ref().map(|path| path.as_os_str().as_bytes().to_vec()).unwrap_or_default(),
        user: args.user.clone().unwrap_or_default().into_bytes(),
        stdin: false,
        terminal: args.tty.then_some(size),
    };
    let signals = signals::Signals::new();
    let mut agent = args.target.connect(vsock)?;
    let stdin = io::stdin();
    let (mut stdout, mut stderr) = (Unbuffered(io::stdout()), Unbuffered(io::stderr()));
    let mut raw = None;
    let mut started = |controller| {
        signals.forward(controller);
        if args.tty {
            terminal::restore_on_panic();
            raw = RawMode::enter();
        }
    };
    let io = Io {
        stdin: (!args.no_stdin).then(|| stdin.as_fd()),
        stdout: Some(&mut stdout),
        stderr: Some(&mut stderr),
        started: Some(&mut started),
    };
    let result = agent.exec(&exec, io);
    drop(raw);
    result
}

/// Writes at once: what a command has written is not to wait for the end of a line.
pub struct Unbuffered<T>(pub T);

impl<T: AsFd> io::Write for Unbuffered<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| rustix::io::write(&self.0, bytes))?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

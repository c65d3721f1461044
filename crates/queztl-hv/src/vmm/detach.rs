//! Leaving the terminal and the session of whoever started this process.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use rustix::fs::Mode;
use rustix::process::{setsid, umask};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

/// From now on there is no controlling terminal, input is empty, output goes nowhere, errors go to `log`, and new files are
/// for this user alone.
pub fn leave_terminal(log: &File) -> io::Result<()> {
    // The leader of a group, as a shell starts it, cannot have a new session; it can give up its terminal.
    if setsid().is_err()
        && let Ok(terminal) = File::options().read(true).write(true).open("/dev/tty")
    {
        // SAFETY: the request has no argument.
        if unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCNOTTY) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // What the guest says is for its owner alone.
    umask(Mode::RWXG | Mode::RWXO);
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    Ok(dup2_stderr(log)?)
}

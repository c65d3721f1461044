//! The `passt` process: started with one end of the channel, listened to, and waited for.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Error, UserNetworkConfig};

/// How many lines of passt's output are kept for the report of its end.
const KEPT_LINES: usize = 4;
/// How long passt may take to end after its channel was closed.
const PATIENCE: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    said: Arc<Mutex<VecDeque<String>>>,
}

impl Process {
    /// Starts passt on `channel`.
    pub(super) fn start(config: &UserNetworkConfig, channel: UnixStream) -> Result<Process, Error> {
        let program = config.program.display().to_string();
        let fd = channel.as_raw_fd();
        let mut command = Command::new(&config.program);
        command.arg("--foreground").arg("--fd").arg(fd.to_string()).arg("--mtu").arg(config.mtu.to_string());
        command.args(&config.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // SAFETY: between fork and exec only fcntl is called, which is async-signal-safe; `fd` is open until the end of
        // this function.
        unsafe { command.pre_exec(move || inherit(fd)) };
        let mut child = command.spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::Missing(program.clone()),
            _ => Error::Start { program: program.clone(), source },
        })?;
        let said = Arc::new(Mutex::new(VecDeque::new()));
        if let Some(stderr) = child.stderr.take() {
            let said = said.clone();
            let starts = config.listener_starts;
            let listen = move || {
                starts();
                listen(stderr, &said);
            };
            std::thread::Builder::new()
                .name("passt-log".into())
                .spawn(listen)
                .map_err(|source| Error::Start { program, source })?;
        }
        Ok(Process { child, said })
    }

    /// The last lines that passt wrote.
    pub(super) fn last_words(&self) -> String {
        // Its output arrives a moment after its end.
        std::thread::sleep(Duration::from_millis(20));
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.iter().map(String::as_str).collect::<Vec<_>>().join("; ")
    }
}

/// Lets the child keep its end of the channel. (No parent-death signal: it would come when the *thread* that started
/// passt ends. The closed channel ends passt.)
fn inherit(fd: i32) -> io::Result<()> {
    // SAFETY: a system call on integers.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn listen(stderr: ChildStderr, said: &Mutex<VecDeque<String>>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        let line = line.trim();
        // passt complains once for each line where the host has no system logger.
        if line.is_empty() || line.ends_with("bytes to syslog") {
            continue;
        }
        tracing::debug!(passt = line);
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() == KEPT_LINES {
            said.pop_front();
        }
        said.push_back(line.chars().take(200).collect());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

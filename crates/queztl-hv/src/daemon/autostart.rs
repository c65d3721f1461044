//! The daemon, started by the first command that needs it.
//!
//! ```text
//! connect ──ok──> go on
//!    │ nobody there
//!    v
//! lock (one starter at a time; the others wait) ──> connect again ──ok──> go on
//!    │ still nobody
//!    v
//! start `queztl-hv daemon` in a session of its own ──> wait for its socket, or its end and the reason in its log
//! ```

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use queztl_vmm::process::last_line;
use rustix::fs::FlockOperation;

use super::place::Place;
use crate::report::Failure;

/// How long a daemon may take until it answers: it looks after all machines that run before it does.
const PATIENCE: Duration = Duration::from_secs(60);
/// A log larger than this is put aside when a daemon is started; one old one is kept.
const MAX_LOG_BYTES: u64 = 4 << 20;

/// Makes sure that this user's daemon runs.
///
/// # Errors
/// It cannot be started, or ends at once; its last line says why.
pub fn ensure(place: &Place) -> Result<(), Failure> {
    if listens(&place.socket)? {
        return Ok(());
    }
    let _lock = lock(&place.home)?;
    // Another command may have started it while this one waited.
    if listens(&place.socket)? {
        return Ok(());
    }
    tracing::info!(home = %place.home.display(), "starting the daemon");
    let mut daemon = start(place)?;
    wait(place, &mut daemon)
}

/// Does somebody listen there? A socket that is left over from a daemon that was killed refuses.
///
/// # Errors
/// Somebody may, but not for this user.
pub fn listens(socket: &Path) -> Result<bool, Failure> {
    match UnixStream::connect(socket) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(false),
        // Its queue is full: it lives.
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(Failure::host(format!("cannot reach the daemon at {}: {error}", socket.display()))),
    }
}

fn lock(home: &Path) -> Result<File, Failure> {
    let path = home.join("locks").join("daemon-start");
    let failed = |error: std::io::Error| Failure::host(format!("cannot lock {}: {error}", path.display()));
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))
        .map_err(|error| failed(error.into()))?;
    Ok(file)
}

/// Starts it in a session of its own, so that neither the terminal's keys nor its end reach it.
fn start(place: &Place) -> Result<Child, Failure> {
    let log = open_log(&place.log())?;
    let program = std::env::current_exe().map_err(|error| Failure::host(format!("cannot find myself: {error}")))?;
    let mut command = Command::new(program);
    command.arg("daemon").current_dir("/").env("QUEZTL_HOME", &place.home).stdin(Stdio::null());
    let failed = |error: std::io::Error| Failure::host(format!("cannot start the daemon: {error}"));
    let errors = log.try_clone().map_err(failed)?;
    command.stdout(log).stderr(errors);
    // SAFETY: setsid is async-signal-safe and touches no memory.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        })
    };
    command.spawn().map_err(failed)
}

fn open_log(path: &Path) -> Result<File, Failure> {
    let failed = |error: std::io::Error| Failure::host(format!("cannot write to {}: {error}", path.display()));
    if std::fs::metadata(path).is_ok_and(|log| log.len() > MAX_LOG_BYTES) {
        std::fs::rename(path, path.with_extension("log.1")).map_err(failed)?;
    }
    OpenOptions::new().create(true).append(true).open(path).map_err(failed)
}

fn wait(place: &Place, daemon: &mut Child) -> Result<(), Failure> {
    let started = Instant::now();
    loop {
        if listens(&place.socket)? {
            return Ok(());
        }
        if let Ok(Some(status)) = daemon.try_wait() {
            let log = place.log();
            let reason = last_line(&log).unwrap_or_else(|| status.to_string());
            let reason = reason.strip_prefix("queztl-hv: ").unwrap_or(&reason).to_owned();
            return Err(Failure::host(format!("the daemon ended at once: {reason}; see {}", log.display())));
        }
        if started.elapsed() > PATIENCE {
            let log = place.log();
            return Err(Failure::host(format!("the daemon does not answer; see {}", log.display())));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

//! One daemon for a store.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use super::StoreError;

/// How long the lock may be held by nobody: a daemon that dies while it starts a machine leaves a child that has it until it
/// becomes the machine's process.
const PATIENCE: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(20);

/// The lock of a home; let go when dropped, and by the kernel when the process ends.
#[derive(Debug)]
pub(super) struct Lock(#[allow(dead_code, reason = "held, not used")] File);

impl Lock {
    pub(super) fn take(home: &Path) -> Result<Lock, StoreError> {
        let path = home.join("daemon.lock");
        let failed = |source| StoreError::Home { path: path.clone(), source };
        let mut file =
            File::options().create(true).truncate(false).read(true).write(true).open(&path).map_err(failed)?;
        let deadline = Instant::now() + PATIENCE;
        let locked = loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(RETRY),
                locked => break locked,
            }
        };
        match locked {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                // A number for people; a file of something else must not fill the message.
                let _ = file.take(20).read_to_string(&mut pid);
                let pid = pid.trim();
                let pid = if pid.is_empty() { "?" } else { pid }.to_owned();
                return Err(StoreError::InUse { home: home.to_path_buf(), pid });
            }
            Err(error) => return Err(failed(error.into())),
        }
        let written = file.set_len(0).and_then(|()| file.rewind());
        written.and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
        Ok(Lock(file))
    }
}

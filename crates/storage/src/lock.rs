//! One writer or many readers: an advisory lock on the open file, which ends with the process whatever happens to it.
//!
//! `flock` rather than a lock of a byte range, because the kernel names the holder of the former in `/proc/locks`.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::Error;

/// Locks `file`: shared for readers, exclusive for the writer.
pub(crate) fn take(file: &File, path: &Path, read_only: bool) -> Result<(), Error> {
    let operation =
        if read_only { FlockOperation::NonBlockingLockShared } else { FlockOperation::NonBlockingLockExclusive };
    match flock(file, operation) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(Error::Locked { path: path.to_path_buf(), holder: holder(file) }),
        // Some network file systems have no locks; refusing to work there would help nobody.
        Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK) => {
            tracing::warn!(disk = %path.display(), "this file system has no locks: nothing keeps a second writer away");
            Ok(())
        }
        Err(error) => Err(Error::Open { path: path.to_path_buf(), source: error.into() }),
    }
}

/// Gives the lock back.
pub(crate) fn give(file: &File, path: &Path) -> Result<(), Error> {
    match flock(file, FlockOperation::NonBlockingUnlock) {
        Ok(()) | Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK) => Ok(()),
        Err(error) => Err(Error::Open { path: path.to_path_buf(), source: error.into() }),
    }
}

/// Who holds the lock, as far as the host tells.
fn holder(file: &File) -> String {
    let process = file.metadata().ok().and_then(|metadata| {
        let table = std::fs::read_to_string("/proc/locks").ok()?;
        pid_in_table(&table, metadata.dev(), metadata.ino())
    });
    match process {
        Some(pid) => match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
            Ok(name) => format!("process {pid} ({})", name.trim()),
            Err(_) => format!("process {pid}"),
        },
        None => "another process".to_string(),
    }
}

/// Finds the process in a table of lines like `3: FLOCK ADVISORY WRITE 1234 08:01:5678 0 EOF` (proc_locks(5)).
fn pid_in_table(table: &str, device: u64, inode: u64) -> Option<u32> {
    let file = format!("{:02x}:{:02x}:{inode}", libc::major(device), libc::minor(device));
    table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().filter(|word| *word != "->").collect();
        let held = words.get(1) == Some(&"FLOCK") && words.get(5) == Some(&file.as_str()) && !line.contains("->");
        words.get(4).filter(|_| held)?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_found_by_device_and_inode() {
        let table = "1: POSIX  ADVISORY  WRITE 11 08:01:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 12 08:02:77 0 EOF\n\
                     3: FLOCK  ADVISORY  READ 13 08:01:77 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 14 08:01:78 0 EOF\n";
        assert_eq!(pid_in_table(table, libc::makedev(8, 1), 77), Some(13));
        assert_eq!(pid_in_table(table, libc::makedev(8, 1), 78), None);
    }
}

//! A machine's directory: what lies where, and whose it is.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::exit::{ProcessId, read_bounded};

/// A machine's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(path: impl Into<PathBuf>) -> Folder {
        Folder(path.into())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What is to run: a [`super::MachineFile`].
    pub fn machine(&self) -> PathBuf {
        self.0.join("machine.json")
    }

    /// How the last run ended: an [`super::ExitReport`].
    pub fn exit(&self) -> PathBuf {
        self.0.join("exit.json")
    }

    /// Where [`crate::control::Client`] connects to.
    pub fn control(&self) -> PathBuf {
        self.0.join("control.sock")
    }

    /// Where [`super::console::Client`] connects to.
    pub fn console(&self) -> PathBuf {
        self.0.join("console.sock")
    }

    /// Where a machine arrives that goes on here.
    pub fn incoming(&self) -> PathBuf {
        self.0.join("incoming.sock")
    }

    /// Where a process that keeps a copy of a protected machine hears what its daemon decides.
    pub fn backup(&self) -> PathBuf {
        self.0.join("backup.sock")
    }

    /// The usual place of the socket device's host side; [`crate::config::MachineConfig::vsock`] says where it is.
    pub fn vsock(&self) -> PathBuf {
        self.0.join("vsock.sock")
    }

    /// What the guest's console said last.
    pub fn console_log(&self) -> PathBuf {
        self.0.join("console.log")
    }

    /// What it said before.
    pub fn old_console_log(&self) -> PathBuf {
        self.0.join("console.log.1")
    }

    /// What the process itself had to say.
    pub fn log(&self) -> PathBuf {
        self.0.join("vmm.log")
    }

    /// Snapshots are made in here, or in the directories that the machine's file allows.
    pub fn snapshots(&self) -> PathBuf {
        self.0.join("snapshots")
    }

    fn lock_file(&self) -> PathBuf {
        self.0.join("vmm.lock")
    }

    /// Takes the machine for a process that is about to be: whoever has a descriptor of this file, by inheritance, has the
    /// lock, so that there is no moment at which the process exists and [`Folder::runner`] does not see it.
    pub fn reserve(&self) -> Result<File, LockError> {
        let failed = |source| LockError::Io { path: self.0.clone(), source };
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = options.open(self.lock_file()).map_err(failed)?;
        if let Err(error) = set_lock(&file) {
            return Err(match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::PermissionDenied => LockError::Running(self.0.clone()),
                _ => failed(error),
            });
        }
        // Whoever had it before.
        file.set_len(0).map_err(failed)?;
        Ok(file)
    }

    /// Makes this process the one that runs the machine, until the lock is dropped or the process ends, however it does.
    pub fn lock(&self) -> Result<Lock, LockError> {
        self.take(self.reserve()?)
    }

    /// [`Folder::lock`] with what was inherited from a process that has called [`Folder::reserve`].
    pub fn lock_inherited(&self, file: File) -> Result<Lock, LockError> {
        let failed = |source| LockError::Io { path: self.0.clone(), source };
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let inherited = file.metadata().map(identity).map_err(failed)?;
        if inherited != fs::metadata(self.lock_file()).map(identity).map_err(failed)? {
            return Err(failed(io::Error::other("the descriptor that was passed is of another file than its lock")));
        }
        // Succeeds if the descriptor has the lock, or nobody.
        set_lock(&file).map_err(|_| LockError::Running(self.0.clone()))?;
        self.take(file)
    }

    fn take(&self, mut file: File) -> Result<Lock, LockError> {
        let failed = |source| LockError::Io { path: self.0.clone(), source };
        let process = ProcessId::own().map_err(failed)?;
        let text = serde_json::to_vec(&process).map_err(|error| failed(error.into()))?;
        file.write_all(&text).map_err(failed)?;
        Ok(Lock { _file: file, process })
    }

    /// The process that runs the machine; `None` if none does. One that has just begun may not have written who it is:
    /// then the number is 0.
    ///
    /// # Errors
    /// The lock file exists and cannot be looked at.
    pub fn runner(&self) -> io::Result<Option<ProcessId>> {
        let path = self.lock_file();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if !is_locked(&file)? {
            return Ok(None);
        }
        let unknown = ProcessId { pid: 0, start_ticks: 0 };
        Ok(Some(serde_json::from_slice(&read_bounded(&path)?).unwrap_or(unknown)))
    }
}

/// The right to run a machine.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    process: ProcessId,
}

impl Lock {
    /// This process.
    pub fn process(&self) -> ProcessId {
        self.process
    }
}

/// Why a machine cannot be run by this process.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("the machine in {0:?} runs already: stop it first")]
    Running(PathBuf),
    #[error("the machine's directory {path:?} cannot be used: {source}")]
    Io { path: PathBuf, source: io::Error },
}

fn whole_file() -> libc::flock {
    // SAFETY: the structure is plain data, for which zero is a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock
}

/// A lock of the open file description (fcntl(2)): it goes with the last descriptor of it, so with this process.
fn set_lock(file: &File) -> io::Result<()> {
    let lock = whole_file();
    // SAFETY: the descriptor is open and the structure valid.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether somebody else has such a lock; takes none, so that it disturbs nobody.
fn is_locked(file: &File) -> io::Result<bool> {
    let mut lock = whole_file();
    // SAFETY: the descriptor is open and the structure valid.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) };
    if result == 0 { Ok(lock.l_type != libc::F_UNLCK as libc::c_short) } else { Err(io::Error::last_os_error()) }
}

/// Puts a file with this content in the place of `path`, in one step, and makes that durable.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut file = File::create(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

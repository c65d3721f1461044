//! Registers in files of one directory, for daemons of one host.
//!
//! A change is made under a lock of the group's own lock file, and takes the place of the old value by a rename. What all
//! agree on is on the disk when a change of it returns; a mere renewal need not be, since it means nothing after a power cut.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::{Entry, Store, StoreError};

/// The longest value.
const MAX_BYTES: u64 = 64 << 10;

/// A directory of registers.
#[derive(Debug)]
pub(super) struct FileStore {
    folder: PathBuf,
}

impl FileStore {
    pub fn new(folder: impl Into<PathBuf>) -> FileStore {
        FileStore { folder: folder.into() }
    }

    fn path(&self, group: &str) -> PathBuf {
        self.folder.join(format!("{group}.json"))
    }

    /// Replaces the value; the caller has the lock.
    fn write(&self, path: &Path, before: Option<&Entry>, after: &Entry) -> io::Result<()> {
        let fresh = path.with_extension("new");
        let mut file = File::create(&fresh)?;
        file.write_all(&serde_json::to_vec(after)?)?;
        let matters = before.is_none_or(|before| before.register != after.register);
        if matters {
            file.sync_all()?;
        }
        fs::rename(&fresh, path)?;
        if matters {
            File::open(&self.folder)?.sync_all()?;
        }
        Ok(())
    }
}

impl Store for FileStore {
    fn read(&self, group: &str) -> Result<Option<Entry>, StoreError> {
        let path = self.path(group);
        let mut text = Vec::new();
        match File::open(&path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut text)) {
            Ok(_) => serde_json::from_slice(&text).map(Some).map_err(|source| StoreError::Content { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::File { path, source }),
        }
    }

    fn swap(&self, group: &str, before: Option<&Entry>, after: &Entry) -> Result<bool, StoreError> {
        let path = self.path(group);
        let failed = |source| StoreError::File { path: path.clone(), source };
        fs::create_dir_all(&self.folder).map_err(failed)?;
        let lock = File::create(path.with_extension("lock")).map_err(failed)?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        if self.read(group)?.as_ref() != before {
            return Ok(false);
        }
        self.write(&path, before, after).map_err(failed)?;
        Ok(true)
    }
}

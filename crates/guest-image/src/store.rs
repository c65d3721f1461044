//! Where artefacts live, and how they come to life all at once or not at all.
//!
//! An artefact is a directory `KIND/KEY` with a metadata file; its key is a hash of everything it was made from, so a
//! key never means two things and an artefact never changes. It is made in `tmp/` under the key's lock and renamed into
//! place when complete: an interrupted build leaves nothing that could be taken for an artefact, and what it leaves in
//! `tmp/` is swept when the store is next opened. Two processes that want the same artefact make it once.
//!
//! ```text
//! kernels/KEY/     vmlinux, config, kernel.json
//! rootfs/KEY/      initramfs.cpio, rootfs.json
//! images/KEY/      disks of stock distributions, with their kernel and initrd
//! sources/ID/      unpacked kernel sources
//! logs/            the output of failed builds
//! locks/, tmp/
//! ```

use crate::{Error, Result};
use rustix::fs::FlockOperation;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// A directory of artefacts.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// The classes of artefacts, each a folder of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Kernels,
    Rootfs,
    Images,
    Sources,
}

impl Kind {
    const fn folder(self) -> &'static str {
        match self {
            Kind::Kernels => "kernels",
            Kind::Rootfs => "rootfs",
            Kind::Images => "images",
            Kind::Sources => "sources",
        }
    }
}

impl Store {
    /// The user's store: `$QUEZTL_HOME`, else `/var/lib/queztl` for root, else `$XDG_DATA_HOME/queztl`, else
    /// `~/.local/share/queztl`. Created when it is not there yet.
    ///
    /// # Errors
    /// [`Error::NoHome`] when the environment names no place, [`Error::Io`] when the place cannot be used.
    pub fn open() -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = location(variable, rustix::process::geteuid().is_root()).ok_or(Error::NoHome)?;
        Store::at(&root)
    }

    /// The store in `root`, created when it is not there yet. Leavings of interrupted work are removed.
    ///
    /// # Errors
    /// [`Error::Io`] when the directory cannot be used.
    pub fn at(root: &Path) -> Result<Self> {
        let store = Store { root: root.to_owned() };
        for folder in ["kernels", "rootfs", "images", "sources", "logs", "locks", "tmp"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
        }
        store.sweep()?;
        Ok(store)
    }

    /// Where the store is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The artefact, if it exists.
    pub(crate) fn find(&self, kind: Kind, key: &str) -> Option<PathBuf> {
        let path = self.root.join(kind.folder()).join(key);
        path.is_dir().then_some(path)
    }

    /// All artefacts of a kind, in the order of their keys.
    pub(crate) fn entries(&self, kind: Kind) -> Result<Vec<PathBuf>> {
        let folder = self.root.join(kind.folder());
        let mut paths = Vec::new();
        for entry in fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
            paths.push(entry.map_err(Error::io("list", &folder))?.path());
        }
        paths.sort();
        Ok(paths)
    }

    /// The artefact; `make` fills an empty directory with it when it does not exist. Waits for another process that is
    /// making the same one.
    pub(crate) fn get_or_make(&self, kind: Kind, key: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        if let Some(path) = self.find(kind, key) {
            return Ok(path);
        }
        let name = format!("{}-{key}", kind.folder());
        let _lock = self.lock(&name)?;
        if let Some(path) = self.find(kind, key) {
            return Ok(path);
        }
        let temporary = self.root.join("tmp").join(&name);
        remove_tree(&temporary)?;
        fs::create_dir(&temporary).map_err(Error::io("create", &temporary))?;
        if let Err(error) = make(&temporary) {
            // The first error is the one to report; a leaving is swept later.
            let _ = remove_tree(&temporary);
            return Err(error);
        }
        sync_tree(&temporary)?;
        let place = self.root.join(kind.folder()).join(key);
        fs::rename(&temporary, &place).map_err(Error::io("create", &place))?;
        Ok(place)
    }

    /// Where the output of a failed build is kept.
    pub(crate) fn log_path(&self, name: &str) -> PathBuf {
        self.root.join("logs").join(format!("{name}.log"))
    }

    /// Waits until no other process holds the lock `name`; held until dropped.
    fn lock(&self, name: &str) -> Result<File> {
        let (path, file) = self.lock_file(name)?;
        loop {
            match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::io("lock", &path)(error.into())),
            }
        }
    }

    fn lock_file(&self, name: &str) -> Result<(PathBuf, File)> {
        let path = self.root.join("locks").join(name);
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(Error::io("open", &path))?;
        Ok((path, file))
    }

    /// Removes what interrupted work has left: every temporary directory whose lock nobody holds.
    fn sweep(&self) -> Result<()> {
        let folder = self.root.join("tmp");
        for entry in fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
            let entry = entry.map_err(Error::io("list", &folder))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let (_, lock) = self.lock_file(name)?;
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// The rule of [`Store::open`].
fn location(variable: impl Fn(&str) -> Option<PathBuf>, is_root: bool) -> Option<PathBuf> {
    if let Some(home) = variable("QUEZTL_HOME") {
        return Some(home);
    }
    if is_root {
        return Some(PathBuf::from("/var/lib/queztl"));
    }
    let data = variable("XDG_DATA_HOME").or_else(|| variable("HOME").map(|home| home.join(".local/share")));
    data.map(|data| data.join("queztl"))
}

/// Removes a directory and all in it; that it is not there is fine.
fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("remove", path)(error)),
    }
}

/// Makes the files of one directory durable before the rename that publishes them, so that a power failure cannot leave
/// an artefact with empty files. Unpacked sources (folders within) are not worth it: they are checked by use.
fn sync_tree(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).map_err(Error::io("list", path))? {
        let entry = entry.map_err(Error::io("list", path))?.path();
        if entry.is_file() {
            File::open(&entry).and_then(|file| file.sync_all()).map_err(Error::io("write", &entry))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;

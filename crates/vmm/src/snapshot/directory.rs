//! The directory of a snapshot: there as a whole, or not there.
//!
//! It is made under another name beside its place, written, brought to the disk, and then renamed. Whatever ends the
//! program before that leaves a directory that is no snapshot by its name ([`is_unfinished`]) and that the next attempt
//! removes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use queztl_guest_memory::MemoryTable;

use super::file::{self, MAX_BYTES};
use super::{Error, MachineState};

/// The machine's state.
pub const STATE_FILE: &str = "state.json";
/// Guest RAM, or what has changed of it: page-aligned, regions one after the other, holes where it is zero.
pub const MEMORY_FILE: &str = "memory";

/// What of RAM lies where in that file, with checksums.
pub const TABLE_FILE: &str = "memory.table";

const UNFINISHED: &str = ".unfinished";

/// Whether a directory of this name is a snapshot that was never finished.
pub fn is_unfinished(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(UNFINISHED)
}

/// A snapshot being made; removed when dropped before [`Staging::commit`].
#[derive(Debug)]
pub(crate) struct Staging {
    folder: PathBuf,
    place: PathBuf,
    /// Held open so that the directory can be brought to the disk.
    handle: File,
    parent: File,
    finished: bool,
}

impl Staging {
    /// Makes the directory that will become `place`.
    pub fn begin(place: &Path) -> Result<Staging, Error> {
        let no_place = || Error::NoPlace(place.to_path_buf());
        let parent_path = place.parent().ok_or_else(no_place)?;
        let parent_path = if parent_path.as_os_str().is_empty() { Path::new(".") } else { parent_path };
        let name = place.file_name().and_then(|name| name.to_str()).ok_or_else(no_place)?;
        if fs::symlink_metadata(place).is_ok() {
            return Err(Error::Exists(place.to_path_buf()));
        }
        let parent = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(parent_path);
        let parent = parent.map_err(|_| no_place())?;
        let folder = parent_path.join(format!(".{name}{UNFINISHED}"));
        remove(&folder).map_err(Error::io(&folder, "removing what an earlier attempt has left"))?;
        fs::create_dir(&folder).map_err(Error::io(&folder, "making the directory"))?;
        let handle = File::open(&folder).map_err(Error::io(&folder, "opening the directory"))?;
        Ok(Staging { folder, place: place.to_path_buf(), handle, parent, finished: false })
    }

    /// Makes a file in it, for reading and writing.
    pub fn create(&self, name: &str) -> Result<File, Error> {
        let path = self.folder.join(name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        file.map_err(Error::io(path, "making the file"))
    }

    /// Writes the machine's state, down to the disk.
    pub fn write_state(&self, state: &MachineState) -> Result<(), Error> {
        self.write(STATE_FILE, &file::encode(state)?, "writing the state")
    }

    /// Writes the table of the memory's file, down to the disk.
    pub fn write_table(&self, table: &MemoryTable) -> Result<(), Error> {
        self.write(TABLE_FILE, &table.to_bytes(), "writing the memory's table")
    }

    fn write(&self, name: &str, bytes: &[u8], step: &'static str) -> Result<(), Error> {
        let mut file = self.create(name)?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(Error::io(self.folder.join(name), step))
    }

    /// Gives the directory its name, for good. Its files have been brought to the disk before.
    pub fn commit(mut self) -> Result<(), Error> {
        let step = "finishing the snapshot";
        self.handle.sync_all().map_err(Error::io(&self.folder, step))?;
        if fs::symlink_metadata(&self.place).is_ok() {
            return Err(Error::Exists(self.place.clone()));
        }
        fs::rename(&self.folder, &self.place).map_err(Error::io(&self.place, step))?;
        self.finished = true;
        self.parent.sync_all().map_err(Error::io(&self.place, step))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.finished
            && let Err(error) = remove(&self.folder)
        {
            tracing::warn!(folder = %self.folder.display(), %error, "an unfinished snapshot cannot be removed");
        }
    }
}

/// Removes an unfinished snapshot, if there is one: the files that it can have, and nothing else.
fn remove(folder: &Path) -> io::Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    for name in [STATE_FILE, MEMORY_FILE, TABLE_FILE] {
        gone(fs::remove_file(folder.join(name)))?;
    }
    gone(fs::remove_dir(folder))
}

/// Reads the state of the snapshot in `folder` and checks what can be checked without a machine.
pub(crate) fn read_state(folder: &Path) -> Result<MachineState, Error> {
    let foreign = || Error::Foreign(folder.to_path_buf());
    let path = folder.join(STATE_FILE);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Err(foreign());
        }
        Err(error) => return Err(Error::io(path, "opening the state")(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(Error::io(path, "reading the state"))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::Damaged("it is longer than any"));
    }
    let state = file::decode(&bytes).ok_or_else(foreign)??;
    state.check()?;
    Ok(state)
}

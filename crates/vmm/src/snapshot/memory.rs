//! Where a snapshot's memory is: in its own file, in those of the snapshots it builds on, or in files that are passed on.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use queztl_guest_memory::{LayerId, MemoryImage, MemoryTable};

use super::directory::{MEMORY_FILE, TABLE_FILE};
use super::{Error, MachineState};

/// Snapshots that one may build on; each is a file that stays open.
pub const MAX_BASES: usize = 64;
/// The longest table: that of 512 GiB of RAM has some megabytes.
const MAX_TABLE_BYTES: u64 = 64 << 20;

/// The memory of the snapshot in `folder`.
pub(crate) fn open(folder: &Path, state: &MachineState) -> Result<MemoryImage, Error> {
    let mut chain = vec![link(folder)?];
    for base in &state.bases {
        chain.push(link(&folder.with_file_name(base))?);
    }
    chain.reverse();
    Ok(MemoryImage::open(chain)?)
}

/// Reads all memory of the snapshot in `folder` and of those it builds on, and compares it with the checksums of their
/// tables. What is in `known` was read before, and what is read is put there.
pub(super) fn verify(folder: &Path, state: &MachineState, known: &mut HashSet<PathBuf>) -> Result<(), Error> {
    let bases = state.bases.iter().map(|base| folder.with_file_name(base));
    for folder in std::iter::once(folder.to_path_buf()).chain(bases) {
        if known.contains(&folder) {
            continue;
        }
        let (file, table) = link(&folder)?;
        table.verify(&file).map_err(|source| Error::DamagedMemory { path: folder.join(MEMORY_FILE), source })?;
        known.insert(folder);
    }
    Ok(())
}

/// The memory of a fork whose state is in `folder`.
pub(crate) fn open_passed(folder: &Path, files: Vec<File>) -> Result<MemoryImage, Error> {
    Ok(MemoryImage::from_parts(files, &table(folder)?)?)
}

fn link(folder: &Path) -> Result<(File, MemoryTable), Error> {
    let table = table(folder)?;
    let path = folder.join(MEMORY_FILE);
    Ok((File::open(&path).map_err(Error::io(path, "opening the memory"))?, table))
}

fn table(folder: &Path) -> Result<MemoryTable, Error> {
    let path = folder.join(TABLE_FILE);
    let file = File::open(&path).map_err(Error::io(&path, "opening the memory's table"))?;
    let mut bytes = Vec::new();
    file.take(MAX_TABLE_BYTES).read_to_end(&mut bytes).map_err(Error::io(path, "reading the memory's table"))?;
    Ok(MemoryTable::from_bytes(&bytes)?)
}

/// What an incremental snapshot builds on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Base {
    /// Directories beside the snapshot's own, the newest first.
    pub names: Vec<String>,
    pub layer: LayerId,
}

impl Base {
    /// Looks at the snapshot in `folder`, on which one at `place` is to build.
    pub fn look_at(folder: &Path, place: &Path) -> Result<Base, Error> {
        let elsewhere = || Error::BaseElsewhere(folder.to_path_buf());
        if folder.parent() != place.parent() {
            return Err(elsewhere());
        }
        let name = folder.file_name().and_then(|name| name.to_str()).ok_or_else(elsewhere)?;
        let state = super::directory::read_state(folder)?;
        let layer = table(folder)?.top().ok_or(Error::Damaged("its memory has no layer"))?;
        let names: Vec<String> = [name.to_owned()].into_iter().chain(state.bases).collect();
        if names.len() > MAX_BASES {
            return Err(Error::TooManyBases(MAX_BASES));
        }
        Ok(Base { names, layer })
    }
}

/// Whether this is the name of a directory beside another one.
pub(crate) fn is_plain_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

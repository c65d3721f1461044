//! Disks of a machine that is copied to another process: each is a raw file of its own there.
//!
//! ```text
//!  on the way    [disk u32][offset u64][length u64][kind u8] and, for data, the bytes; little endian, one after the other
//!  beginning     NAME.1 gets all of the disk while the machine runs
//!  protection    an epoch makes it part of the copy; its writes wait with the memory's changes, and are folded after the commit
//!  migration     what was written last is written when the machine stands still
//!  the machine goes on here: NAME.1 becomes NAME
//! ```
//! A file of a copy is never ahead of the memory that belongs to it: once it is a part of the copy, it is written to when an epoch
//! is decided. The bytes of a peer are [checked](check) before they are carried out.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, fallocate};

use crate::devices::virtio::block::journal::{Content, Write};

/// Most bytes of data in a change as it is sent.
pub(crate) const PIECE_BYTES: usize = 1 << 20;
/// Changes are gathered up to this before they are sent, in bytes.
pub(crate) const PART_BYTES: usize = 2 << 20;
/// Zeroes that are written where a file cannot have holes, at once.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
const HEAD_BYTES: usize = 21;

/// Why disks cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the other side does not speak as it should ({0}): is it of another version?")]
    Protocol(&'static str),
    #[error("the copy of a disk, {path:?}, fails: {source}")]
    Disk { path: PathBuf, source: io::Error },
    #[error("a disk cannot be read, so that it cannot be copied: {0}")]
    Read(io::Error),
}

/// Puts a change into a message.
pub(crate) fn encode(into: &mut Vec<u8>, disk: u32, write: &Write) {
    let mut put = |offset: u64, length: u64, data: Option<&[u8]>| {
        into.extend(disk.to_le_bytes());
        into.extend(offset.to_le_bytes());
        into.extend(length.to_le_bytes());
        into.push(u8::from(data.is_none()));
        into.extend(data.unwrap_or_default());
    };
    match &write.content {
        Content::Zero(bytes) => put(write.offset_bytes, *bytes, None),
        Content::Data(data) => {
            for (number, piece) in (0..).zip(data.chunks(PIECE_BYTES)) {
                put(write.offset_bytes + number * PIECE_BYTES as u64, piece.len() as u64, Some(piece));
            }
        }
    }
}

/// Takes the next change out of a message.
fn decode<'a>(bytes: &mut &'a [u8]) -> Option<(usize, u64, u64, Option<&'a [u8]>)> {
    let (head, rest) = bytes.split_at_checked(HEAD_BYTES)?;
    let disk = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
    let offset = u64::from_le_bytes(head[4..12].try_into().ok()?);
    let length = u64::from_le_bytes(head[12..20].try_into().ok()?);
    let (data, rest) = match head[20] {
        0 => rest.split_at_checked(usize::try_from(length).ok()?).map(|(data, rest)| (Some(data), rest))?,
        1 => (None, rest),
        _ => return None,
    };
    *bytes = rest;
    Some((disk, offset, length, data))
}

/// Whether a message is made of changes of disks of these sizes, in bytes.
///
/// # Errors
/// It is not.
pub fn check(sizes: &[u64], mut bytes: &[u8]) -> Result<(), Error> {
    const TORN: Error = Error::Protocol("changes of disks make no sense");
    while !bytes.is_empty() {
        let (disk, offset, length, _) = decode(&mut bytes).ok_or(TORN)?;
        let size = sizes.get(disk).ok_or(TORN)?;
        if offset.checked_add(length).is_none_or(|end| end > *size) {
            return Err(TORN);
        }
    }
    Ok(())
}

/// The files of a copy's disks. They go with this, unless they have [settled](DiskFiles::settle).
#[derive(Debug, Default)]
pub(crate) struct DiskFiles {
    disks: Vec<DiskFile>,
}

#[derive(Debug)]
struct DiskFile {
    /// Where it is, and where it belongs.
    path: PathBuf,
    home: PathBuf,
    file: File,
}

impl DiskFiles {
    /// Empty disks of these sizes, beside the places that they are for.
    pub fn new(homes: &[PathBuf], sizes: &[u64]) -> Result<DiskFiles, Error> {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        if homes.len() != sizes.len() {
            return Err(Error::Protocol("it has another number of disks that are written to"));
        }
        let make = |(home, size): (&PathBuf, &u64)| {
            let mut path = home.clone().into_os_string();
            path.push(format!(".{number}"));
            let path = PathBuf::from(path);
            let options = File::options().read(true).write(true).create(true).truncate(true).open(&path);
            let file = options.map_err(|error| failed(&path, error))?;
            file.set_len(*size).map_err(|error| failed(&path, error))?;
            Ok(DiskFile { path, home: home.clone(), file })
        };
        let disks = homes.iter().zip(sizes).map(make).collect::<Result<_, Error>>()?;
        Ok(DiskFiles { disks })
    }

    /// Carries out changes that were checked. After an error it can be tried again.
    pub fn apply(&self, mut bytes: &[u8]) -> Result<(), Error> {
        while let Some((disk, offset, length, data)) = decode(&mut bytes) {
            let Some(disk) = self.disks.get(disk) else { continue };
            let written = match data {
                Some(data) => disk.file.write_all_at(data, offset),
                None => zero(&disk.file, offset, length),
            };
            written.map_err(|error| failed(&disk.path, error))?;
        }
        Ok(())
    }

    /// What was written is durable when this returns.
    pub fn sync(&self) -> Result<(), Error> {
        self.disks.iter().try_for_each(|disk| disk.file.sync_data().map_err(|error| failed(&disk.path, error)))
    }

    /// Goes where it belongs.
    pub fn settle(&mut self) -> Result<(), Error> {
        for disk in self.disks.iter_mut().filter(|disk| disk.path != disk.home) {
            std::fs::rename(&disk.path, &disk.home).map_err(|error| failed(&disk.path, error))?;
            disk.path.clone_from(&disk.home);
        }
        Ok(())
    }
}

impl Drop for DiskFiles {
    fn drop(&mut self) {
        for disk in self.disks.iter().filter(|disk| disk.path != disk.home) {
            if let Err(error) = std::fs::remove_file(&disk.path) {
                tracing::warn!(%error, path = ?disk.path, "a disk's copy that is of no use any more is left behind");
            }
        }
    }
}

fn zero(file: &File, offset: u64, length: u64) -> io::Result<()> {
    if length == 0 || fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length).is_ok() {
        return Ok(());
    }
    let (mut at, end) = (offset, offset + length);
    while at < end {
        let piece = &ZEROES[..(end - at).min(ZEROES.len() as u64) as usize];
        file.write_all_at(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(())
}

fn failed(path: &Path, source: io::Error) -> Error {
    Error::Disk { path: path.to_path_buf(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(offset_bytes: u64, data: &[u8]) -> Write {
        Write { offset_bytes, content: Content::Data(data.to_vec()) }
    }

    fn message(writes: &[Write]) -> Vec<u8> {
        let mut bytes = Vec::new();
        writes.iter().for_each(|write| encode(&mut bytes, 0, write));
        bytes
    }

    #[test]
    fn what_is_sent_is_what_the_file_gets() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("disk");
        let mut files = DiskFiles::new(std::slice::from_ref(&home), &[4 << 20]).unwrap();
        let long = vec![5; PIECE_BYTES + 512];
        let bytes = message(&[
            data(0, &[1; 1024]),
            data(512, &long),
            Write { offset_bytes: 1024, content: Content::Zero(512) },
        ]);

        check(&[4 << 20], &bytes).unwrap();
        files.apply(&bytes).unwrap();
        assert!(!home.exists(), "it lies beside its place");
        files.settle().unwrap();

        let found = std::fs::read(home).unwrap();
        let (mut wanted, size) = (vec![1; 512], 4 << 20);
        wanted.extend(&long);
        wanted.resize(size, 0);
        wanted[1024..1536].fill(0);
        assert!(found == wanted);
    }

    #[test]
    fn changes_that_make_no_sense_are_refused() {
        let whole = message(&[data(3584, &[1; 512])]);
        check(&[4096], &whole).unwrap();
        for length in 1..whole.len() {
            assert!(check(&[4096], &whole[..length]).is_err(), "{length}");
        }
        assert!(check(&[4096], &message(&[data(3585, &[1; 512])])).is_err(), "beyond the end");
        let mut other = whole.clone();
        other[0] = 1;
        assert!(check(&[4096], &other).is_err(), "no such disk");
        let endless = Write { offset_bytes: u64::MAX, content: Content::Zero(u64::MAX) };
        assert!(check(&[4096], &message(&[endless])).is_err());
        assert!(DiskFiles::new(&[], &[4096]).is_err());
    }
}

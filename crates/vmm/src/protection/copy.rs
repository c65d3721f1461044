//! The copy of a machine: one whole epoch, and epochs that are about to be.
//!
//! ```text
//!  Stage (of one epoch)  ── whole: commit ──>  log of the copy  ── fold ──>  memory of the copy
//!                        ── torn: dropped
//! ```
//! An epoch of changes becomes part of the copy by being put into its log: that is the one step. Folding the log into the
//! memory is done afterwards and can be done again, since it writes what has been decided. An epoch that is all of the
//! memory is staged as a memory of its own and takes the place of the old one.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use queztl_distributed_ram::Version;
use queztl_guest_memory::{MemoryImage, Shape};
use queztl_parallel_transfer::Target;

use super::Error;
use super::digest::Digest;
use crate::migration::target::Memory;
use crate::mirror::DiskFiles;
use crate::snapshot::Snapshot;

/// An epoch that is arriving.
pub(super) struct Stage {
    pub version: Version,
    state: Vec<u8>,
    content: Content,
    digest: Digest,
    /// What was written to disks, and, if it is all of the memory, the disks that this is to.
    writes: Vec<Vec<u8>>,
    disks: Option<DiskFiles>,
}

enum Content {
    All(Memory),
    Changes { pieces: Mutex<Vec<Piece>>, bytes: AtomicU64, limit: u64 },
}

struct Piece {
    offset: u64,
    content: Bytes,
}

enum Bytes {
    Data(Vec<u8>),
    Zero(u64),
}

impl Stage {
    /// A stage for all of the memory, or for changes, of which there cannot be more than RAM has bytes.
    pub fn new(version: Version, state: Vec<u8>, all: bool, ram_bytes: u64) -> Result<Stage, Error> {
        let content = match all {
            true => Content::All(Memory::new(ram_bytes)?),
            false => Content::Changes { pieces: Mutex::default(), bytes: AtomicU64::new(0), limit: ram_bytes },
        };
        Ok(Stage { version, state, content, digest: Digest::default(), writes: Vec::new(), disks: None })
    }

    /// With changes of disks that were checked; of these disks, or those of the copy.
    pub fn with_disks(self, disks: Option<DiskFiles>, writes: Vec<Vec<u8>>) -> Stage {
        Stage { disks, writes, ..self }
    }

    pub fn digest(&self) -> u64 {
        self.digest.value()
    }

    fn add(&self, offset: u64, count: u64, content: impl FnOnce() -> Bytes) -> io::Result<()> {
        let Content::Changes { pieces, bytes, limit } = &self.content else { return Ok(()) };
        if bytes.fetch_add(count, Ordering::AcqRel).saturating_add(count) > *limit {
            return Err(io::Error::other("an epoch changes more than there is"));
        }
        let piece = Piece { offset, content: content() };
        pieces.lock().unwrap_or_else(PoisonError::into_inner).push(piece);
        Ok(())
    }
}

impl Target for Stage {
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.digest.data(offset, data);
        match &self.content {
            Content::All(memory) => memory.write(offset, data),
            Content::Changes { .. } => self.add(offset, data.len() as u64, || Bytes::Data(data.to_vec())),
        }
    }

    fn zero(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.digest.zero(offset, bytes);
        match &self.content {
            Content::All(memory) => memory.zero(offset, bytes),
            Content::Changes { .. } => self.add(offset, bytes, || Bytes::Zero(bytes)),
        }
    }
}

/// A whole epoch: memory and disks, with the logs on top of them, and state.
pub(super) struct Copy {
    memory: Memory,
    log: Vec<Piece>,
    disks: DiskFiles,
    writes: Vec<Vec<u8>>,
    state: Vec<u8>,
}

impl Copy {
    /// The copy with a stage that is whole; `before` is what the stage's changes are to.
    ///
    /// # Errors
    /// Changes to nothing; then there is no copy.
    pub fn commit(before: Option<Copy>, stage: Stage) -> Result<Copy, Error> {
        match stage.content {
            Content::All(memory) => Ok(Copy {
                memory,
                log: Vec::new(),
                disks: stage.disks.unwrap_or_default(),
                writes: stage.writes,
                state: stage.state,
            }),
            Content::Changes { pieces, .. } => {
                let mut copy = before.ok_or(Error::NoCopy)?;
                copy.log.extend(pieces.into_inner().unwrap_or_else(PoisonError::into_inner));
                copy.writes.extend(stage.writes);
                copy.state = stage.state;
                Ok(copy)
            }
        }
    }

    /// Writes the logs into memory and disks. After an error it can be tried again.
    pub fn fold(&mut self) -> Result<(), Error> {
        for Piece { offset, content } in &self.log {
            let written = match content {
                Bytes::Data(data) => self.memory.write(*offset, data),
                Bytes::Zero(bytes) => self.memory.zero(*offset, *bytes),
            };
            written.map_err(Error::Copy)?;
        }
        self.log.clear();
        self.writes.iter().try_for_each(|writes| self.disks.apply(writes))?;
        self.writes.clear();
        Ok(())
    }

    /// What a machine is made from. After an error it can be tried again.
    pub fn snapshot(&mut self, shape: Shape) -> Result<Snapshot, Error> {
        self.fold()?;
        self.disks.settle()?;
        let memory = MemoryImage::of_file(self.memory.0.try_clone().map_err(Error::Copy)?, shape)?;
        Ok(Snapshot::from_parts(&self.state, memory)?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const RAM: u64 = 1 << 20;

    fn stage(epoch: u64, all: bool, pieces: &[(u64, u8)]) -> Stage {
        let stage = Stage::new(Version { term: 1, epoch }, vec![epoch as u8], all, RAM).unwrap();
        pieces.iter().for_each(|(offset, byte)| stage.write(*offset, &[*byte; 4096]).unwrap());
        stage
    }

    fn byte(copy: &Copy, offset: u64) -> u8 {
        let mut byte = [0];
        copy.memory.0.read_exact_at(&mut byte, offset).unwrap();
        byte[0]
    }

    #[test]
    fn changes_become_part_of_the_copy_when_they_are_committed() {
        let first = Copy::commit(None, stage(1, true, &[(0, 1), (4096, 2)])).unwrap();
        let second = stage(2, false, &[(4096, 3)]);
        second.zero(0, 4096).unwrap();
        assert_eq!((byte(&first, 0), byte(&first, 4096)), (1, 2), "a stage lies beside it");

        let mut copy = Copy::commit(Some(first), second).unwrap();
        copy.fold().unwrap();

        assert_eq!((byte(&copy, 0), byte(&copy, 4096), &copy.state[..]), (0, 3, &[2][..]));
    }

    #[test]
    fn epochs_that_wait_in_the_log_keep_their_order() {
        let mut copy = Copy::commit(None, stage(1, true, &[])).unwrap();
        for epoch in 2..6 {
            copy = Copy::commit(Some(copy), stage(epoch, false, &[(8192, epoch as u8)])).unwrap();
        }
        copy.fold().unwrap();
        copy.fold().unwrap();
        assert_eq!(byte(&copy, 8192), 5);
    }

    #[test]
    fn changes_to_nothing_and_more_changes_than_ram_are_refused() {
        assert!(matches!(Copy::commit(None, stage(2, false, &[])), Err(Error::NoCopy)));
        let greedy = stage(2, false, &[]);
        greedy.zero(0, RAM).unwrap();
        assert!(greedy.write(0, &[1]).is_err());
    }

    #[test]
    fn a_stage_sums_up_what_it_gets_in_any_order() {
        let (one, other) = (stage(1, true, &[(0, 1), (4096, 2)]), stage(1, false, &[(4096, 2), (0, 1)]));
        assert_eq!(one.digest(), other.digest());
        assert_ne!(one.digest(), stage(1, true, &[(0, 1)]).digest());
    }
}

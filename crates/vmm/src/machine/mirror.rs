//! Disks on their way to another process while the guest writes to them: what protection and migration share.
//!
//! ```text
//!  marks on ── next cut ──> all of the disk ──> what was marked since ──> … little is left ──> writes are kept from here on
//!                                                                                              │ what was marked last
//!  each cut: the writes since the one before   <───────────────────────────── the next cut ────┘
//! ```
//! The disk is read while the guest writes to it, so what arrives is of no one moment. It becomes so by the writes that are
//! kept: they begin before the last part was read, and are carried out after it.

use std::sync::Arc;

use queztl_storage::Extent;

use crate::devices::virtio::block::Block;
use crate::devices::virtio::block::journal::{BLOCK_BYTES, Content, Write};
use crate::mirror::{Error, PART_BYTES, PIECE_BYTES, encode};

/// What may be left to read when writes begin to be kept, in bytes, and how often it is tried to come to that.
const LITTLE_BYTES: usize = 4 << 20;
const PASSES: usize = 8;

/// Copies all of some disks, which are marked for `who`, and what is written meanwhile, until little is left. `cut` returns after
/// a moment in which no device was at work; `put` takes what is to be sent.
///
/// # Errors
/// A disk cannot be read, or those of `cut` and `put`.
pub(super) fn copy_most<E: From<Error>>(
    disks: &[Arc<Block>],
    who: u32,
    mut cut: impl FnMut() -> Result<(), E>,
    mut put: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    // What was on its way to the disk before has arrived there after a cut.
    cut()?;
    for (number, disk) in (0..).zip(disks) {
        copy_all(number, disk, &mut put)?;
    }
    for _ in 0..PASSES {
        let marks = marked(disks, who);
        cut()?;
        copy_marked(disks, &marks, &mut put)?;
        if marks.iter().map(Vec::len).sum::<usize>() * BLOCK_BYTES as usize <= LITTLE_BYTES {
            break;
        }
    }
    Ok(())
}

/// The blocks of each disk that were written since they were asked for last. What is in them may still be on its way to the disk:
/// it is there after a moment in which no device was at work.
pub(super) fn marked(disks: &[Arc<Block>], who: u32) -> Vec<Vec<u64>> {
    disks.iter().map(|disk| disk.journal().marked(who)).collect()
}

/// Copies these blocks as they are now.
///
/// # Errors
/// A disk cannot be read, or those of `put`.
pub(super) fn copy_marked<E: From<Error>>(
    disks: &[Arc<Block>],
    marks: &[Vec<u64>],
    mut put: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    (0..).zip(disks).zip(marks).try_for_each(|((number, disk), blocks)| copy_blocks(number, disk, blocks, &mut put))
}

/// Sends writes as the guest gave them, each with its disk's number.
///
/// # Errors
/// Those of `put`.
pub(super) fn put_writes<'a, E>(
    writes: impl Iterator<Item = (u32, &'a Write)>,
    mut put: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut part = Vec::new();
    for (number, write) in writes {
        encode(&mut part, number, write);
        if part.len() >= PART_BYTES {
            put(&std::mem::take(&mut part))?;
        }
    }
    if part.is_empty() { Ok(()) } else { put(&part) }
}

/// Sends what of a disk is not zero, and at least something, so that the other side has it.
fn copy_all<E: From<Error>>(number: u32, disk: &Block, put: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
    let mut offset = 0;
    let image = disk.disk();
    let size = image.topology().size_bytes;
    put(&[])?;
    while offset < size {
        // Where only one thread at a time can use an image, that is the disk's own.
        let extent = match image.max_queues() {
            1 => Extent { zeroes: false, length_bytes: size - offset },
            _ => image.extent(offset).map_err(Error::Read)?,
        };
        let length = if extent.length_bytes == 0 { size - offset } else { extent.length_bytes.min(size - offset) };
        let end = if extent.zeroes { offset } else { offset + length };
        for at in (offset..end).step_by(PIECE_BYTES) {
            let part = read(disk, number, at, (end - at).min(PIECE_BYTES as u64), false)?;
            if !part.is_empty() {
                put(&part)?;
            }
        }
        offset += length;
    }
    Ok(())
}

/// Sends these blocks, whatever is in them.
fn copy_blocks<E: From<Error>>(
    number: u32,
    disk: &Block,
    blocks: &[u64],
    put: &mut impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let size = disk.disk().topology().size_bytes;
    for block in blocks.iter().filter(|block| **block < size) {
        put(&read(disk, number, *block, BLOCK_BYTES.min(size - block), true)?)?;
    }
    Ok(())
}

/// A run of the disk as a change of it; nothing if it is zero and zeroes need not be told.
fn read(disk: &Block, number: u32, offset_bytes: u64, length: u64, with_zeroes: bool) -> Result<Vec<u8>, Error> {
    let data = disk.read(offset_bytes, usize::try_from(length).unwrap_or(PIECE_BYTES)).map_err(Error::Read)?;
    let content = match data.iter().all(|byte| *byte == 0) {
        true if !with_zeroes => return Ok(Vec::new()),
        true => Content::Zero(length),
        false => Content::Data(data),
    };
    let mut part = Vec::new();
    encode(&mut part, number, &Write { offset_bytes, content });
    Ok(part)
}

//! Disks of a protected machine: each backup has files of its own.
//!
//! ```text
//!  marks on ── next cut ──> all of the disk ──> what was marked since ──> … little is left ──> writes are kept from here on
//!                                                                                              │ what was marked last
//!  each epoch: the writes of all epochs since the one that the backup has  <── the next cut ───┘
//! ```
//! The disk is read while the guest writes to it, so what arrives is of no one moment. It becomes so by the writes that are kept:
//! they begin before the last part was read, and the first epoch that counts is cut after it.

use queztl_distributed_ram::{Epoch, Node};
use queztl_storage::Extent;

use super::core::Protecting;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::block::journal::{BLOCK_BYTES, Content, Write};
use crate::protection::disks::{PART_BYTES, PIECE_BYTES, encode};
use crate::protection::{DiskPart, Error, Link};

/// What may be left to read when writes begin to be kept, in bytes, and how often it is tried to come to that.
const LITTLE_BYTES: usize = 4 << 20;
const PASSES: usize = 8;

/// Brings all disks to a backup. The first epoch that it can have is one that follows the one that is given; any, if there are
/// no disks.
///
/// # Errors
/// A disk cannot be read, or the connection ends, as it does with the protection.
pub(super) fn copy(protecting: &Protecting, node: Node, link: &mut Link) -> Result<Option<Epoch>, Error> {
    let disks = protecting.disks();
    if disks.is_empty() {
        return Ok(None);
    }
    protecting.begin_disks(node);
    for disk in &disks {
        disk.journal().mark(node);
    }
    let copied = copy_marked(protecting, node, link, &disks);
    disks.iter().for_each(|disk| disk.journal().unmark(node));
    copied?;
    Ok(Some(protecting.end_disks(node)))
}

fn copy_marked(
    protecting: &Protecting,
    node: Node,
    link: &mut Link,
    disks: &[std::sync::Arc<Block>],
) -> Result<(), Error> {
    // What was on its way to the disk before has arrived there after a cut.
    protecting.wait_for_cut()?;
    for (number, disk) in (0..).zip(disks) {
        copy_all(link, number, disk)?;
    }
    for _ in 0..PASSES {
        let marked: Vec<Vec<u64>> = disks.iter().map(|disk| disk.journal().marked(node)).collect();
        protecting.wait_for_cut()?;
        for ((number, disk), blocks) in (0..).zip(disks).zip(&marked) {
            copy_blocks(link, number, disk, blocks)?;
        }
        if marked.iter().map(Vec::len).sum::<usize>() * BLOCK_BYTES as usize <= LITTLE_BYTES {
            break;
        }
    }
    protecting.keep_writes(node);
    for (number, disk) in (0..).zip(disks) {
        copy_blocks(link, number, disk, &disk.journal().marked(node))?;
    }
    Ok(())
}

/// Sends the writes that a backup lacks up to an epoch.
pub(super) fn send_writes(protecting: &Protecting, node: Node, epoch: Epoch, link: &mut Link) -> Result<(), Error> {
    let mut part = Vec::new();
    for log in protecting.writes_for(node, epoch) {
        for (number, writes) in (0..).zip(&log.disks) {
            for write in writes {
                encode(&mut part, number, write);
                if part.len() >= PART_BYTES {
                    link.disk(DiskPart::Epoch, &std::mem::take(&mut part))?;
                }
            }
        }
    }
    if part.is_empty() { Ok(()) } else { link.disk(DiskPart::Epoch, &part) }
}

/// Sends what of a disk is not zero, and at least something, so that the backup has it.
fn copy_all(link: &mut Link, number: u32, disk: &Block) -> Result<(), Error> {
    let mut offset = 0;
    let image = disk.disk();
    let size = image.topology().size_bytes;
    link.disk(DiskPart::Whole, &[])?;
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
                link.disk(DiskPart::Whole, &part)?;
            }
        }
        offset += length;
    }
    Ok(())
}

/// Sends these blocks, whatever is in them.
fn copy_blocks(link: &mut Link, number: u32, disk: &Block, blocks: &[u64]) -> Result<(), Error> {
    let size = disk.disk().topology().size_bytes;
    for block in blocks.iter().filter(|block| **block < size) {
        let part = read(disk, number, *block, BLOCK_BYTES.min(size - block), true)?;
        link.disk(DiskPart::Whole, &part)?;
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

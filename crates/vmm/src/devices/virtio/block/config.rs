//! The configuration space (Virtio 1.2 §5.2.4).

use queztl_storage::{SECTOR_SIZE, Topology};

use super::SEG_MAX;
use super::request::{MAX_DISCARD_SECTORS, MAX_SEGMENTS, MAX_ZERO_SECTORS};

pub(super) const SPACE_BYTES: usize = 60;

/// The bytes of `struct virtio_blk_config`; fields whose feature is not offered stay zero.
pub(super) fn space(topology: Topology, queues: u16) -> [u8; SPACE_BYTES] {
    let mut space = [0; SPACE_BYTES];
    let mut put = |offset: usize, bytes: &[u8]| space[offset..offset + bytes.len()].copy_from_slice(bytes);
    let ratio = topology.physical_block_bytes / topology.logical_block_bytes;
    put(0, &(topology.size_bytes / SECTOR_SIZE).to_le_bytes()); // capacity
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &topology.logical_block_bytes.to_le_bytes()); // blk_size
    put(24, &[ratio.checked_ilog2().unwrap_or(0) as u8]); // physical_block_exp
    put(26, &(ratio as u16).to_le_bytes()); // min_io_size, in blocks
    put(34, &queues.to_le_bytes()); // num_queues
    put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
    put(40, &MAX_SEGMENTS.to_le_bytes()); // max_discard_seg
    put(44, &((topology.physical_block_bytes / SECTOR_SIZE as u32).max(1)).to_le_bytes()); // discard_sector_alignment
    put(48, &MAX_ZERO_SECTORS.to_le_bytes());
    put(52, &MAX_SEGMENTS.to_le_bytes()); // max_write_zeroes_seg
    put(56, &[1]); // write_zeroes_may_unmap
    space
}

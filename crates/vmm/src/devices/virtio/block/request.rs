//! Requests (Virtio 1.2 §5.2.6): a header, data, and a status byte at the very end.

use queztl_guest_memory::GuestMemory;
use queztl_storage::{Operation, SECTOR_SIZE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::{Limits, SERIAL_BYTES};
use crate::devices::virtio::{Buffers, Chain};

/// Most ranges in one discard or write-zeroes request.
pub(super) const MAX_SEGMENTS: u32 = 16;
/// Longest range of a discard, in sectors: 2 GiB.
pub(super) const MAX_DISCARD_SECTORS: u32 = 1 << 22;
/// Longest range of a write-zeroes, in sectors: 64 MiB, since some file systems make us write them.
pub(super) const MAX_ZERO_SECTORS: u32 = 1 << 17;

const HEADER_BYTES: u64 = 16;
const SEGMENT_BYTES: u64 = 16;
const SEGMENT_UNMAP: u32 = 1;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

/// What the status byte says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// A range of the disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) offset_bytes: u64,
    pub(super) length_bytes: u64,
    pub(super) operation: Operation,
}

/// What is to be done for a chain.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Read the disk into the buffers.
    Read {
        offset_bytes: u64,
        into: Buffers,
    },
    /// Write the buffers to the disk.
    Write {
        offset_bytes: u64,
        from: Buffers,
    },
    Flush,
    /// Discard or zero ranges; at most [`MAX_SEGMENTS`].
    Ranges(Vec<Segment>),
    /// Say the serial number.
    Identify {
        into: Buffers,
    },
    /// Answer at once.
    Refuse(Status),
}

impl Action {
    /// Bytes that a rate limit counts: the data that is moved.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Action::Read { into: data, .. } | Action::Write { from: data, .. } => data.bytes(),
            _ => 0,
        }
    }
}

/// What a request is counted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read = 0,
    Write = 1,
    Flush = 2,
    Discard = 3,
}

/// Where the answer to a chain goes.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) head: u16,
    /// The byte that takes the status.
    pub(super) status: GuestAddress,
}

impl Answer {
    pub(super) fn write(&self, memory: &GuestMemory, status: Status) {
        // The chain was checked to lie in RAM, and RAM does not go away.
        let _ = match memory.get_slice(self.status, 1) {
            Ok(slice) => slice.write_obj(status as u8, 0).is_ok(),
            Err(_) => false,
        };
    }
}

/// Reads a chain as a request; the error says why it is none.
pub(super) fn parse(memory: &GuestMemory, chain: Chain, limits: &Limits) -> Result<(Answer, Action), &'static str> {
    const NO_STATUS: &str = "has no room for a block request's status";
    let Chain { head, readable, writable: mut into } = chain;
    let header = readable.read_array::<16>(memory, 0).ok_or("has no block request header")?;
    let room = into.bytes().checked_sub(1).ok_or(NO_STATUS)?;
    let answer = Answer { head, status: into.address_of(room).ok_or(NO_STATUS)? };
    into.truncate(room);
    let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let [_, _, _, _, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    let from = || readable.window(HEADER_BYTES, u64::MAX);
    let action = match kind {
        T_IN => transfer(sector, &into, limits).map(|offset_bytes| Action::Read { offset_bytes, into }),
        T_OUT if limits.read_only => Err(Status::IoError),
        T_OUT => {
            let from = from();
            transfer(sector, &from, limits).map(|offset_bytes| Action::Write { offset_bytes, from })
        }
        T_FLUSH => Ok(Action::Flush),
        T_GET_ID if into.bytes() < SERIAL_BYTES as u64 => Err(Status::IoError),
        T_GET_ID => Ok(Action::Identify { into }),
        T_DISCARD | T_WRITE_ZEROES if limits.read_only => Err(Status::IoError),
        T_DISCARD | T_WRITE_ZEROES => segments(memory, &from(), kind, limits).map(Action::Ranges),
        _ => Err(Status::Unsupported),
    };
    Ok((answer, action.unwrap_or_else(Action::Refuse)))
}

/// The byte offset of a read or write that lies on the disk.
fn transfer(sector: u64, data: &Buffers, limits: &Limits) -> Result<u64, Status> {
    if !data.bytes().is_multiple_of(SECTOR_SIZE) {
        return Err(Status::IoError);
    }
    on_disk(sector, data.bytes(), limits)
}

fn on_disk(sector: u64, bytes: u64, limits: &Limits) -> Result<u64, Status> {
    let offset = sector.checked_mul(SECTOR_SIZE).ok_or(Status::IoError)?;
    let end = offset.checked_add(bytes).ok_or(Status::IoError)?;
    if end <= limits.topology.size_bytes { Ok(offset) } else { Err(Status::IoError) }
}

/// Reads the ranges of a discard or write-zeroes (`struct virtio_blk_discard_write_zeroes`).
fn segments(memory: &GuestMemory, data: &Buffers, kind: u32, limits: &Limits) -> Result<Vec<Segment>, Status> {
    let count = data.bytes() / SEGMENT_BYTES;
    if count == 0 || count > u64::from(MAX_SEGMENTS) || !data.bytes().is_multiple_of(SEGMENT_BYTES) {
        return Err(Status::IoError);
    }
    (0..count)
        .map(|i| {
            let bytes = data.read_array::<16>(memory, i * SEGMENT_BYTES).ok_or(Status::IoError)?;
            let [a, b, c, d, e, f, g, h, sectors @ .., w, x, y, z] = bytes;
            let sector = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
            segment(kind, sector, u32::from_le_bytes(sectors), u32::from_le_bytes([w, x, y, z]), limits)
        })
        .collect()
}

fn segment(kind: u32, sector: u64, sectors: u32, flags: u32, limits: &Limits) -> Result<Segment, Status> {
    // §5.2.6.2: unknown flags, and unmap in a discard, are answered with UNSUPP.
    let (operation, max, known) = match kind {
        T_DISCARD => (Operation::Discard, MAX_DISCARD_SECTORS, 0),
        _ => (Operation::WriteZeroes { unmap: flags & SEGMENT_UNMAP != 0 }, MAX_ZERO_SECTORS, SEGMENT_UNMAP),
    };
    if flags & !known != 0 {
        return Err(Status::Unsupported);
    }
    if sectors > max {
        return Err(Status::IoError);
    }
    let length_bytes = u64::from(sectors) * SECTOR_SIZE;
    Ok(Segment { offset_bytes: on_disk(sector, length_bytes, limits)?, length_bytes, operation })
}

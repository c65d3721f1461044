//! Which blocks of the region are plugged, and which requests may change that. No I/O: what is to be discarded is told to
//! the caller.

use super::BLOCK_BYTES;
use crate::devices::virtio::DeviceState;
use crate::snapshot::Invalid;

/// How far beyond the requested size the driver may go for its blocks: Linux wants whole memory blocks of 128 MiB, of which
/// it may plug parts (as QEMU's device has it).
const USABLE_EXTENT_BYTES: u64 = 256 << 20;

/// Answers to the driver (Virtio 1.3 §5.15.6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Ack = 0,
    /// Not now: more than the host wishes.
    Nack = 1,
    /// Not now: the host cannot.
    Busy = 2,
    /// The request makes no sense.
    Error = 3,
}

/// What a run of blocks is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockState {
    Plugged = 0,
    Unplugged = 1,
    Mixed = 2,
}

/// The blocks of a device's region.
#[derive(Debug)]
pub(super) struct Blocks {
    start: u64,
    plugged: Vec<bool>,
    plugged_bytes: u64,
    requested_bytes: u64,
    usable_bytes: u64,
}

impl Blocks {
    /// A region of `bytes`, whole blocks, all unplugged.
    pub(super) fn new(start: u64, bytes: u64) -> Blocks {
        let plugged = vec![false; (bytes / BLOCK_BYTES) as usize];
        let mut blocks = Blocks { start, plugged, plugged_bytes: 0, requested_bytes: 0, usable_bytes: 0 };
        blocks.usable_bytes = blocks.usable_for_request();
        blocks
    }

    pub(super) fn start(&self) -> u64 {
        self.start
    }

    pub(super) fn region_bytes(&self) -> u64 {
        self.plugged.len() as u64 * BLOCK_BYTES
    }

    pub(super) fn plugged_bytes(&self) -> u64 {
        self.plugged_bytes
    }

    pub(super) fn requested_bytes(&self) -> u64 {
        self.requested_bytes
    }

    pub(super) fn usable_bytes(&self) -> u64 {
        self.usable_bytes
    }

    /// The runs of plugged blocks, as (start, length in bytes).
    pub(super) fn plugged_runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut at = 0;
        self.plugged.chunk_by(|one, other| one == other).filter_map(move |run| {
            let start = self.start + at * BLOCK_BYTES;
            at += run.len() as u64;
            run[0].then_some((start, run.len() as u64 * BLOCK_BYTES))
        })
    }

    fn usable_for_request(&self) -> u64 {
        self.requested_bytes.saturating_add(USABLE_EXTENT_BYTES).min(self.region_bytes())
    }

    /// Sets what the host wishes; the usable part only grows, since blocks anywhere in it may be plugged.
    pub(super) fn request(&mut self, bytes: u64) {
        self.requested_bytes = bytes.min(self.region_bytes());
        self.usable_bytes = self.usable_bytes.max(self.usable_for_request());
    }

    pub(super) fn save(&self) -> DeviceState {
        let word = |blocks: &[bool]| blocks.iter().rev().fold(0, |word, plugged| word << 1 | u64::from(*plugged));
        DeviceState::Mem {
            requested_bytes: self.requested_bytes,
            usable_bytes: self.usable_bytes,
            plugged: self.plugged.chunks(64).map(word).collect(),
        }
    }

    pub(super) fn restore(&mut self, state: DeviceState) -> Result<(), Invalid> {
        const PART: &str = "hot-plug memory";
        let DeviceState::Mem { requested_bytes, usable_bytes, plugged } = state else {
            return Err(Invalid::new(PART, "it cannot have the state of another device"));
        };
        let count = self.plugged.len();
        let bit = |block: usize| plugged.get(block / 64).is_some_and(|word| word >> (block % 64) & 1 == 1);
        let usable_blocks = (usable_bytes / BLOCK_BYTES) as usize;
        let sizes = requested_bytes <= self.region_bytes() && usable_bytes <= self.region_bytes();
        let whole = requested_bytes.is_multiple_of(BLOCK_BYTES) && usable_bytes.is_multiple_of(BLOCK_BYTES);
        Invalid::unless(sizes && whole, PART, "its sizes do not fit the region")?;
        let inside =
            plugged.len() == count.div_ceil(64) && (usable_blocks..plugged.len() * 64).all(|block| !bit(block));
        Invalid::unless(inside, PART, "blocks are plugged that do not exist")?;
        self.plugged = (0..count).map(bit).collect();
        self.plugged_bytes = self.plugged.iter().filter(|plugged| **plugged).count() as u64 * BLOCK_BYTES;
        (self.requested_bytes, self.usable_bytes) = (requested_bytes, usable_bytes);
        Ok(())
    }

    /// The numbers of the `count` blocks at `address`, if they are whole ones of the usable part.
    fn range(&self, address: u64, count: u16) -> Option<std::ops::Range<usize>> {
        let offset = address.checked_sub(self.start)?;
        let end = offset.checked_add(u64::from(count) * BLOCK_BYTES)?;
        let valid = count > 0 && offset.is_multiple_of(BLOCK_BYTES) && end <= self.usable_bytes;
        valid.then_some((offset / BLOCK_BYTES) as usize..(end / BLOCK_BYTES) as usize)
    }

    pub(super) fn plug(&mut self, address: u64, count: u16) -> Answer {
        let Some(range) = self.range(address, count) else { return Answer::Error };
        let bytes = u64::from(count) * BLOCK_BYTES;
        if self.plugged_bytes + bytes > self.requested_bytes {
            return Answer::Nack;
        }
        let blocks = &mut self.plugged[range];
        if blocks.iter().any(|plugged| *plugged) {
            return Answer::Error;
        }
        blocks.fill(true);
        self.plugged_bytes += bytes;
        Answer::Ack
    }

    /// After an [`Answer::Ack`], the caller discards these bytes.
    pub(super) fn unplug(&mut self, address: u64, count: u16) -> Answer {
        let Some(range) = self.range(address, count) else { return Answer::Error };
        let blocks = &mut self.plugged[range];
        if blocks.iter().any(|plugged| !*plugged) {
            return Answer::Error;
        }
        blocks.fill(false);
        self.plugged_bytes -= u64::from(count) * BLOCK_BYTES;
        Answer::Ack
    }

    /// The caller discards the whole region.
    pub(super) fn unplug_all(&mut self) {
        self.plugged.fill(false);
        self.plugged_bytes = 0;
        self.usable_bytes = self.usable_for_request();
    }

    pub(super) fn state(&self, address: u64, count: u16) -> Option<BlockState> {
        let blocks = &self.plugged[self.range(address, count)?];
        Some(match blocks.iter().filter(|plugged| **plugged).count() {
            0 => BlockState::Unplugged,
            all if all == blocks.len() => BlockState::Plugged,
            _ => BlockState::Mixed,
        })
    }
}

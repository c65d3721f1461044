//! From linear addresses to bytes: translation, its cache, and every kind of access.
//!
//! ```text
//! load/store ── hit ──> host pointer (one compare, one add)
//!     │ miss
//!     └─> access.rs: page walk, A/D bits, device memory, page crossings, code pages, faults
//! ```
//! A fast write path to a page exists only while the page is dirty in the log and holds no decoded code; everything else
//! is seen by the slow path.

mod access;
mod tlb;
mod walk;

pub(crate) use access::{Span, Word};
pub(crate) use tlb::{Entry, JumpTag, Tlb, TlbSet};
pub(crate) use walk::Privilege;

pub(crate) const PAGE: u64 = 4096;
pub(crate) const PAGE_MASK: u64 = !(PAGE - 1);

/// Physical address bits promised to the guest: 64 TiB.
pub const PHYSICAL_BITS: u32 = 46;

/// What an access wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Execute,
}

/// Whether bits 63–47 of an address are all equal.
#[inline(always)]
pub(crate) fn canonical(address: u64) -> bool {
    (((address << 16) as i64) >> 16) as u64 == address
}

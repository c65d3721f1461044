//! The memory that tested instructions see, at the same addresses on the host and in the guest.
//!
//! ```text
//! BASE + 0x1000  data, writable        guard pages, which nothing is mapped at, on both sides
//! BASE + 0x2000  data, writable
//! BASE + 0x3000  data, read-only
//! BASE + 0x8000  code
//! ```
//! Low enough for absolute 32-bit displacements and 32-bit addresses to reach it.

pub const BASE: u64 = 0x2000_0000;
pub const DATA: u64 = BASE + 0x1000;
pub const DATA_LEN: usize = 0x3000;
/// The read-only part of the data.
pub const READ_ONLY: u64 = BASE + 0x3000;
pub const CODE: u64 = BASE + 0x8000;
/// Where the tested instruction lies.
pub const ENTRY: u64 = CODE + 0x800;
/// Host only: context and landing of the sandbox.
pub const CONTEXT: u64 = BASE + 0x1_0000;
pub const LANDING: u64 = BASE + 0x1_2000;
pub const ARENA_LEN: usize = 0x2_0000;
pub const PAGE: u64 = 0x1000;

/// Whether an access is safe to try on the host, and has the same outcome in the guest: it stays in the data and its
/// guard pages, or faults for certain.
pub fn is_safe(address: u64, len: u64) -> bool {
    let inside = address >= BASE && address.wrapping_add(len) <= BASE + 0x5000;
    let never_mapped = (0x100..0x8000).contains(&address);
    inside || never_mapped || is_non_canonical(address)
}

/// Far enough from canonical addresses that no displacement leads back.
fn is_non_canonical(address: u64) -> bool {
    (0x0001_0000_0000_0000..0xfffe_0000_0000_0000).contains(&address)
}

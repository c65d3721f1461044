//! Gives guest memory back to the host.

use queztl_guest_memory::{GuestMemory, PAGE_SIZE};
use vm_memory::GuestAddress;

/// Frees the whole pages inside of `start..start + bytes`, as far as they are RAM. The guest has given up what they hold.
pub(super) fn discard(memory: &GuestMemory, start: u64, bytes: u64) {
    if let Err(error) = queztl_guest_memory::discard(memory, GuestAddress(start), bytes) {
        tracing::warn!(%error, "guest memory cannot be given back to the host");
    }
}

/// The guest-physical address of a balloon page number (pages of 4 KiB whatever the guest's own are, §5.5.6).
pub(super) fn page_address(number: u32) -> GuestAddress {
    GuestAddress(u64::from(number) * PAGE_SIZE)
}

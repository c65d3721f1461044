//! Gives guest memory back to the host.

use queztl_guest_memory::{GuestMemory, PAGE_SIZE};
use rustix::fs::{FallocateFlags, fallocate};
use vm_memory::bitmap::Bitmap;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// Frees the whole pages inside of `start..start + bytes`, as far as they are RAM. They read as zeroes from then on, in
/// every mapping of the memory, since the hole is made in the file behind it.
pub(super) fn discard(memory: &GuestMemory, start: u64, bytes: u64) {
    let Some(end) = start.checked_add(bytes) else { return };
    let first = start.next_multiple_of(PAGE_SIZE);
    let end = end / PAGE_SIZE * PAGE_SIZE;
    for region in memory.iter() {
        let region_start = region.start_addr().raw_value();
        let from = first.max(region_start);
        let to = end.min(region_start + region.len());
        if from < to
            && let Err(error) = punch(region, from - region_start, to - from)
        {
            tracing::warn!(%error, "guest memory cannot be given back to the host");
        }
    }
}

/// Makes a hole in the region's file, and reports that the bytes have changed.
fn punch(
    region: &(impl GuestMemoryRegion<B: Bitmap> + ?Sized),
    offset: u64,
    bytes: u64,
) -> Result<(), rustix::io::Errno> {
    // Without a file there is nothing to punch; the guest's memory stays as it is, which is allowed (§5.5.6).
    let Some(file) = region.file_offset() else { return Ok(()) };
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let result = rustix::io::retry_on_intr(|| fallocate(file.file(), hole, file.start() + offset, bytes));
    region.bitmap().mark_dirty(offset as usize, bytes as usize);
    result
}

/// The guest-physical address of a balloon page number (pages of 4 KiB whatever the guest's own are, §5.5.6).
pub(super) fn page_address(number: u32) -> GuestAddress {
    GuestAddress(u64::from(number) * PAGE_SIZE)
}

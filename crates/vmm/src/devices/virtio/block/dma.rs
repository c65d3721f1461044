//! Guest memory as a disk's buffers, without a copy.

use queztl_guest_memory::GuestMemory;
use queztl_storage::Buffer;
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, VolatileSlice};

use crate::devices::virtio::Buffers;

/// Runs of guest memory, as they lie in this process. The addresses are valid as long as `memory`.
fn slices<'a>(
    memory: &'a GuestMemory,
    buffers: &'a Buffers,
) -> impl Iterator<Item = VolatileSlice<'a, impl vm_memory::bitmap::BitmapSlice + 'a>> {
    buffers.ranges().iter().flat_map(|range| memory.get_slices(range.address, range.bytes as usize)).flatten()
}

/// The memory of `buffers` for a disk to read into or write from.
pub(super) fn disk_buffers(memory: &GuestMemory, buffers: &Buffers) -> Vec<Buffer> {
    slices(memory, buffers).map(|slice| Buffer::new(slice.ptr_guard_mut().as_ptr(), slice.len())).collect()
}

/// Reports that a disk has written to `buffers`, which `vm-memory` could not see.
pub(super) fn mark_dirty(memory: &GuestMemory, buffers: &Buffers) {
    slices(memory, buffers).for_each(|slice| slice.bitmap().mark_dirty(0, slice.len()));
}

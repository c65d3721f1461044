//! Guest memory as a disk's buffers, without a copy.

use queztl_guest_memory::GuestMemory;
use queztl_storage::Buffer;
use vm_memory::bitmap::{Bitmap, MS};
use vm_memory::{GuestMemoryBackend, VolatileSlice};

use crate::devices::virtio::Buffers;

/// Hands `run` the runs of guest memory, as they lie in this process. Their addresses are valid as long as `memory`.
fn for_slices<'a>(
    memory: &'a GuestMemory,
    buffers: &Buffers,
    mut run: impl FnMut(VolatileSlice<'a, MS<'a, GuestMemory>>),
) {
    for range in buffers.ranges() {
        let (address, bytes) = (range.address, range.bytes as usize);
        // Almost always one region has the whole of a run.
        match memory.get_slice(address, bytes) {
            Ok(slice) => run(slice),
            Err(_) => memory.get_slices(address, bytes).flatten().for_each(&mut run),
        }
    }
}

/// The memory of `buffers` for a disk to read into or write from.
pub(super) fn disk_buffers(memory: &GuestMemory, buffers: &Buffers) -> Vec<Buffer> {
    let mut runs = Vec::with_capacity(buffers.ranges().len());
    for_slices(memory, buffers, |slice| runs.push(Buffer::new(slice.ptr_guard_mut().as_ptr(), slice.len())));
    runs
}

/// Reports that a disk has written to `buffers`, which `vm-memory` could not see.
pub(super) fn mark_dirty(memory: &GuestMemory, buffers: &Buffers) {
    for_slices(memory, buffers, |slice| slice.bitmap().mark_dirty(0, slice.len()));
}

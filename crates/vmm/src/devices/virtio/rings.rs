//! The three parts of a split virtqueue (Virtio 1.2 §2.7) at their places in this process.
//!
//! Each request touches the rings about ten times; looking up the address of a ring each time would cost as much as the
//! request itself. Promises:
//! - the rings were checked to lie in RAM, each in one region of it, and stay mapped as long as the [`Rings`] live;
//! - what is read is read once and checked by the caller; every index is reduced to the ring's size before it is used;
//! - every write is reported to the dirty log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use queztl_guest_memory::GuestMemory;
use virtio_queue::{Queue, QueueT};
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// Bytes of a descriptor (§2.7.5).
pub(super) const DESCRIPTOR_BYTES: u64 = 16;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A descriptor as the driver wrote it; nothing of it is checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptor {
    pub address: GuestAddress,
    pub bytes: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    /// From its two words in memory.
    pub fn from_words(address: u64, rest: u64) -> Descriptor {
        let rest = u64::from_le(rest);
        Descriptor {
            address: GuestAddress(u64::from_le(address)),
            bytes: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }

    /// The descriptor that follows in the chain.
    pub fn next(self) -> Option<u16> {
        (self.flags & NEXT != 0).then_some(self.next)
    }

    /// Whether the device writes to the buffer.
    pub fn is_write_only(self) -> bool {
        self.flags & WRITE != 0
    }

    /// Whether the buffer is a table of descriptors.
    pub fn is_indirect(self) -> bool {
        self.flags & INDIRECT != 0
    }
}

/// Where the parts of one queue lie in this process. All values in them are little-endian.
pub(super) struct Rings {
    memory: Arc<GuestMemory>,
    size: u16,
    descriptors: *const AtomicU64,
    /// flags, idx, ring[size], used_event.
    available: *const AtomicU16,
    /// flags: u16, idx: u16, ring[size] of two u32, avail_event: u16.
    used: *const AtomicU32,
    used_address: GuestAddress,
}

// SAFETY: the pointers lead into guest memory, which `memory` keeps mapped and which may be used from any thread; all
// access is by atomics.
unsafe impl Send for Rings {}

impl Rings {
    /// Finds the rings of `queue`; `None` where one of them is not in RAM, spans two regions of it, or is misaligned.
    pub fn find(queue: &Queue, memory: Arc<GuestMemory>) -> Option<Rings> {
        let size = queue.size();
        if !queue.is_valid(memory.as_ref()) || !size.is_power_of_two() {
            return None;
        }
        let entries = u64::from(size);
        let descriptors = locate(&memory, queue.desc_table(), DESCRIPTOR_BYTES * entries, 16)?;
        let available = locate(&memory, queue.avail_ring(), 6 + 2 * entries, 2)?;
        let used = locate(&memory, queue.used_ring(), 6 + 8 * entries, 4)?;
        Some(Rings {
            size,
            descriptors: descriptors.cast(),
            available: available.cast(),
            used: used.cast(),
            used_address: GuestAddress(queue.used_ring()),
            memory,
        })
    }

    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// How many descriptors the table has, a power of two.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Word `index` of the available ring, at most `size + 2`.
    fn available(&self, index: u16) -> &AtomicU16 {
        debug_assert!(index <= self.size + 2);
        // SAFETY: `find` has located the whole ring, which is `3 + size` words long and aligned; it stays mapped.
        unsafe { &*self.available.add(usize::from(index)) }
    }

    /// Half-word `index` of the used ring, at most `2 + 4 * size`.
    fn used_half(&self, index: usize) -> &AtomicU16 {
        debug_assert!(index <= 2 + 4 * usize::from(self.size));
        // SAFETY: as for `available`: the ring is `3 + 4 * size` half-words long.
        unsafe { &*self.used.cast::<AtomicU16>().add(index) }
    }

    /// Descriptor `index`; `None` past the end of the table.
    pub fn descriptor(&self, index: u16) -> Option<Descriptor> {
        if index >= self.size {
            return None;
        }
        // SAFETY: `find` has located an aligned table of `size` descriptors of two words each; it stays mapped.
        let words = unsafe { &*self.descriptors.add(usize::from(index) * 2).cast::<[AtomicU64; 2]>() };
        Some(Descriptor::from_words(words[0].load(Ordering::Relaxed), words[1].load(Ordering::Relaxed)))
    }

    /// How many chains the driver has made available, modulo 2^16. What it wrote before is seen.
    pub fn available_index(&self) -> u16 {
        u16::from_le(self.available(1).load(Ordering::Acquire))
    }

    /// The first descriptor of the chain at place `at` (modulo the size).
    pub fn available_head(&self, at: u16) -> u16 {
        u16::from_le(self.available(2 + (at & (self.size - 1))).load(Ordering::Relaxed))
    }

    /// The driver's flags (§2.7.6).
    pub fn available_flags(&self) -> u16 {
        u16::from_le(self.available(0).load(Ordering::Relaxed))
    }

    /// At which used index the driver wants an interrupt (§2.7.7).
    pub fn used_event(&self) -> u16 {
        u16::from_le(self.available(2 + self.size).load(Ordering::Relaxed))
    }

    /// Puts a chain into the used ring at place `at` (modulo the size); the driver sees it after
    /// [`Rings::publish_used`].
    pub fn put_used(&self, at: u16, head: u16, written: u32) {
        let entry = 1 + 2 * usize::from(at & (self.size - 1));
        for (word, value) in [(entry, u32::from(head)), (entry + 1, written)] {
            debug_assert!(word < 1 + 2 * usize::from(self.size));
            // SAFETY: as for `used_half`; the index is reduced to the ring's size.
            unsafe { &*self.used.add(word) }.store(value.to_le(), Ordering::Relaxed);
        }
        self.wrote(entry as u64 * 4, 8);
    }

    /// Tells the driver how many chains were used, modulo 2^16.
    pub fn publish_used(&self, index: u16) {
        self.used_half(1).store(index.to_le(), Ordering::Release);
        self.wrote(2, 2);
    }

    /// The device's flags (§2.7.8).
    pub fn set_used_flags(&self, flags: u16) {
        self.used_half(0).store(flags.to_le(), Ordering::Relaxed);
        self.wrote(0, 2);
    }

    /// At which available index the device wants to be notified (§2.7.10).
    pub fn set_available_event(&self, index: u16) {
        let place = 2 + 4 * usize::from(self.size);
        self.used_half(place).store(index.to_le(), Ordering::Relaxed);
        self.wrote(2 * place as u64, 2);
    }

    /// Reports a write to the used ring.
    fn wrote(&self, offset: u64, bytes: usize) {
        if let Some((region, address)) = self.memory.to_region_addr(GuestAddress(self.used_address.0 + offset)) {
            region.bitmap().mark_dirty(address.0 as usize, bytes);
        }
    }
}

/// Where `bytes` at a guest-physical address lie in this process, if they do in one piece, aligned to `align`.
fn locate(memory: &GuestMemory, address: u64, bytes: u64, align: u64) -> Option<*mut u8> {
    let (region, offset) = memory.to_region_addr(GuestAddress(address))?;
    let fits = region.len().checked_sub(offset.0).is_some_and(|left| left >= bytes);
    let host = region.get_host_address(offset).ok()?;
    (fits && (host as u64).is_multiple_of(align)).then_some(host)
}

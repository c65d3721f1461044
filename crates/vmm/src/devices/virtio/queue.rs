//! A queue as devices use it: a split ring (Virtio 1.2 §2.7) with every chain checked before a device sees it.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use queztl_guest_memory::GuestMemory;
use smallvec::SmallVec;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use super::Interrupt;
use super::rings::{DESCRIPTOR_BYTES, Descriptor, Rings};

/// VIRTQ_AVAIL_F_NO_INTERRUPT.
const NO_INTERRUPT: u16 = 1;
/// VIRTQ_USED_F_NO_NOTIFY.
const NO_NOTIFY: u16 = 1;

/// A ring or a chain that breaks the rules; the device stops until it is reset.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    #[error("queue {queue}: its rings are not ready in RAM, each in one region of it")]
    Placement { queue: u16 },
    #[error("queue {queue}: the driver makes more chains available than the queue has descriptors")]
    Overrun { queue: u16 },
    #[error("queue {queue}: the driver takes back chains that it has made available")]
    Withdrawn { queue: u16 },
    #[error("queue {queue}: the chain at descriptor {head} {what}")]
    Chain { queue: u16, head: u16, what: &'static str },
}

/// One run of guest-physical memory, known to be RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub address: GuestAddress,
    pub bytes: u32,
}

/// The readable or the writable half of a chain: runs of RAM seen as one sequence of bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Buffers {
    /// Most requests have no more than these in a half.
    ranges: SmallVec<[Range; 4]>,
    bytes: u64,
}

impl Buffers {
    /// Total length in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The runs, in order; none is empty.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    fn push(&mut self, range: Range) {
        if range.bytes > 0 {
            self.ranges.push(range);
            self.bytes += u64::from(range.bytes);
        }
    }

    /// Calls `run` with the part of each run that overlaps `offset..offset + len`, and the part's place in that window.
    fn for_window(&self, offset: u64, len: usize, mut run: impl FnMut(GuestAddress, std::ops::Range<usize>)) -> usize {
        let (mut skip, mut done) = (offset, 0);
        for range in &self.ranges {
            let bytes = u64::from(range.bytes);
            if skip >= bytes {
                skip -= bytes;
                continue;
            }
            let count = (bytes - skip).min((len - done) as u64) as usize;
            if count == 0 {
                break;
            }
            run(GuestAddress(range.address.0 + skip), done..done + count);
            done += count;
            skip = 0;
        }
        done
    }

    /// Copies guest memory at `offset` to `data`; returns how much there was.
    pub fn read_at(&self, memory: &GuestMemory, offset: u64, data: &mut [u8]) -> usize {
        self.for_window(offset, data.len(), |address, part| {
            // The range was checked to be RAM, and RAM does not go away.
            let data = &mut data[part];
            let _ = match memory.get_slice(address, data.len()) {
                Ok(slice) => slice.read_slice(data, 0).is_ok(),
                Err(_) => memory.read_slice(data, address).is_ok(),
            };
        })
    }

    /// Copies `data` to guest memory at `offset`; returns how much there was room for.
    pub fn write_at(&self, memory: &GuestMemory, offset: u64, data: &[u8]) -> usize {
        self.for_window(offset, data.len(), |address, part| {
            let _ = memory.write_slice(&data[part], address);
        })
    }

    /// The `N` bytes at `offset`, or `None` if there are not as many.
    pub fn read_array<const N: usize>(&self, memory: &GuestMemory, offset: u64) -> Option<[u8; N]> {
        let mut data = [0; N];
        (self.read_at(memory, offset, &mut data) == N).then_some(data)
    }

    /// The address of the byte at `offset`.
    pub fn address_of(&self, offset: u64) -> Option<GuestAddress> {
        let mut address = None;
        self.for_window(offset, 1, |at, _| address = Some(at));
        address
    }

    /// Cuts off what lies from `len` on.
    pub fn truncate(&mut self, len: u64) {
        while let Some(last) = self.ranges.last_mut() {
            let excess = self.bytes.saturating_sub(len);
            if excess < u64::from(last.bytes) {
                last.bytes -= excess as u32;
                self.bytes -= excess;
                return;
            }
            self.bytes -= u64::from(last.bytes);
            self.ranges.pop();
        }
    }

    /// The bytes `offset..offset + len`, cut at the end.
    pub fn window(&self, offset: u64, len: u64) -> Buffers {
        let mut window = Buffers::default();
        let (mut skip, mut left) = (offset, len);
        for range in &self.ranges {
            let bytes = u64::from(range.bytes);
            let cut = skip.min(bytes);
            skip -= cut;
            let count = (bytes - cut).min(left);
            left -= count;
            window.push(Range { address: GuestAddress(range.address.0 + cut), bytes: count as u32 });
        }
        window
    }
}

/// A request of the driver: what the device may read and what it may write.
#[derive(Debug)]
pub struct Chain {
    /// Names the chain when it is given back ([`VirtQueue::push`]).
    pub head: u16,
    pub readable: Buffers,
    pub writable: Buffers,
}

/// A queue, owned by one device thread.
pub struct VirtQueue {
    index: u16,
    rings: Rings,
    event_index: bool,
    /// The next chain to take and the next place in the used ring, modulo 2^16.
    next_available: u16,
    next_used: u16,
    /// What of `next_used` the driver was shown.
    published: u16,
    /// What `next_used` was when the driver was last considered for an interrupt.
    signalled: u16,
    /// [`VirtQueue::rearm`] has seen chains that were not taken yet.
    promised: bool,
    kick: Arc<EventFd>,
    interrupt: Arc<dyn Interrupt>,
}

impl VirtQueue {
    /// Puts together a queue that the driver has set up; refuses rings that do not lie in RAM.
    pub(super) fn new(
        index: u16,
        queue: &Queue,
        event_index: bool,
        memory: Arc<GuestMemory>,
        kick: Arc<EventFd>,
        interrupt: Arc<dyn Interrupt>,
    ) -> Result<VirtQueue, QueueError> {
        let rings = Rings::find(queue, memory).ok_or(QueueError::Placement { queue: index })?;
        let (next_available, next_used) = (queue.next_avail(), queue.next_used());
        Ok(VirtQueue {
            index,
            rings,
            event_index,
            next_available,
            next_used,
            published: next_used,
            signalled: next_used,
            promised: false,
            kick,
            interrupt,
        })
    }

    /// The queue's number on its device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// How many descriptors the driver has given the queue.
    pub fn size(&self) -> u16 {
        self.rings.size()
    }

    pub fn memory(&self) -> &Arc<GuestMemory> {
        self.rings.memory()
    }

    /// Readable when the driver has notified the queue.
    pub fn kick_fd(&self) -> BorrowedFd<'_> {
        let fd: RawFd = self.kick.as_raw_fd();
        // SAFETY: the eventfd stays open as long as `self.kick`, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    /// Forgets notifications that have arrived.
    pub fn clear_kick(&self) {
        let _ = self.kick.read();
    }

    /// Notifies the queue in the driver's place, so that the device's thread comes back to it after everything else that
    /// waits for the thread.
    pub fn kick(&self) {
        // A full counter means that the thread is about to come anyway.
        let _ = self.kick.write(1);
    }

    /// A complaint about the chain at `head`.
    pub fn bad_chain(&self, head: u16, what: &'static str) -> QueueError {
        QueueError::Chain { queue: self.index, head, what }
    }

    /// Whether a chain waits to be taken.
    pub fn has_available(&self) -> bool {
        self.rings.available_index() != self.next_available
    }

    /// Takes the next chain that the driver has made available.
    ///
    /// Chains that were announced and are gone again are an error: rings that lie over each other can say one thing and
    /// then the other for ever, each time because of what the device itself writes into them.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        let waiting = self.rings.available_index().wrapping_sub(self.next_available);
        let promised = std::mem::take(&mut self.promised);
        if waiting == 0 {
            return if promised { Err(QueueError::Withdrawn { queue: self.index }) } else { Ok(None) };
        }
        if waiting > self.rings.size() {
            return Err(QueueError::Overrun { queue: self.index });
        }
        let head = self.rings.available_head(self.next_available);
        self.next_available = self.next_available.wrapping_add(1);
        match self.walk(head) {
            Ok(chain) => Ok(Some(chain)),
            Err(what) => Err(self.bad_chain(head, what)),
        }
    }

    /// Reads the chain at descriptor `head`.
    fn walk(&self, head: u16) -> Result<Chain, &'static str> {
        const BROKEN: &str = "is broken or endless";
        let mut chain = Chain { head, readable: Buffers::default(), writable: Buffers::default() };
        let mut table = Table::Direct(&self.rings);
        let (mut next, mut count, mut total) = (Some(head), 0, 0u32);
        while let Some(index) = next {
            let mut descriptor = table.get(index).ok_or(BROKEN)?;
            if descriptor.is_indirect() {
                // §2.7.5.3.1: such a descriptor is the last of its table, and tables are not nested.
                table = table.enter(descriptor).ok_or(BROKEN)?;
                descriptor = table.get(0).filter(|first| !first.is_indirect()).ok_or(BROKEN)?;
            }
            // A chain has at most as many descriptors as the queue, indirect ones included.
            count += 1;
            if count > self.rings.size() {
                return Err("has more descriptors than the queue");
            }
            total = total.checked_add(descriptor.bytes).ok_or(BROKEN)?;
            chain.push(self.memory(), descriptor)?;
            next = descriptor.next();
        }
        Ok(chain)
    }

    /// Gives back the chain that [`VirtQueue::pop`] returned last, as if it had not been taken.
    pub fn undo_pop(&mut self) {
        self.next_available = self.next_available.wrapping_sub(1);
    }

    /// Gives a chain back to the driver, `written` bytes of it filled. The driver is interrupted at
    /// [`VirtQueue::signal`].
    pub fn push(&mut self, head: u16, written: u32) {
        self.put(head, written);
        self.publish();
    }

    /// Like [`VirtQueue::push`], for several chains in a row: the driver sees them at [`VirtQueue::publish`] or
    /// [`VirtQueue::signal`], so that it and the device do not take the index from each other for each of them.
    pub fn put(&mut self, head: u16, written: u32) {
        self.rings.put_used(self.next_used, head, written);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Shows the driver what was put.
    pub fn publish(&mut self) {
        if self.published != self.next_used {
            self.published = self.next_used;
            self.rings.publish_used(self.next_used);
        }
    }

    /// Interrupts the driver if it wants to know of what was pushed since it last did.
    pub fn signal(&mut self) {
        self.publish();
        let before = std::mem::replace(&mut self.signalled, self.next_used);
        let pushed = self.next_used.wrapping_sub(before);
        if pushed != 0 && self.wants_interrupt(pushed) {
            self.interrupt.queue_used(self.index);
        }
    }

    /// Whether the driver wants an interrupt for the last `pushed` chains (§2.7.7).
    fn wants_interrupt(&self, pushed: u16) -> bool {
        // The driver sees the used index before its wish is read, or its wish is seen here.
        fence(Ordering::SeqCst);
        if self.event_index {
            self.next_used.wrapping_sub(self.rings.used_event()).wrapping_sub(1) < pushed
        } else {
            self.rings.available_flags() & NO_INTERRUPT == 0
        }
    }

    /// Asks the driver to notify again; true if more chains have become available meanwhile, which it may not announce.
    pub fn rearm(&mut self) -> bool {
        if self.event_index {
            self.rings.set_available_event(self.next_available);
        } else {
            self.rings.set_used_flags(0);
        }
        fence(Ordering::SeqCst);
        self.promised = self.has_available();
        self.promised
    }

    /// Tells the driver that notifications are not needed for now. With the event index there is nothing to say: the
    /// driver notifies once for each [`VirtQueue::rearm`].
    pub fn suppress(&mut self) {
        if !self.event_index {
            self.rings.set_used_flags(NO_NOTIFY);
        }
    }

    /// Hands every available chain to `run`, which says how many bytes it has written, until there is none left and the
    /// driver will notify of the next; then signals.
    pub fn serve(
        &mut self,
        mut run: impl FnMut(&GuestMemory, &Chain) -> Result<u32, &'static str>,
    ) -> Result<(), QueueError> {
        loop {
            self.suppress();
            while let Some(chain) = self.pop()? {
                let written = run(self.rings.memory(), &chain).map_err(|what| self.bad_chain(chain.head, what))?;
                self.push(chain.head, written);
            }
            if !self.rearm() {
                self.signal();
                return Ok(());
            }
        }
    }
}

/// Whether the range is RAM, most often of one region.
fn is_ram(memory: &GuestMemory, range: Range) -> bool {
    let bytes = range.bytes as usize;
    memory.get_slice(range.address, bytes).is_ok() || memory.check_range(range.address, bytes)
}

/// Where a chain's descriptors lie.
enum Table<'a> {
    Direct(&'a Rings),
    /// A table of `count` descriptors anywhere in RAM; the first ones as they were read.
    Indirect {
        memory: &'a GuestMemory,
        address: GuestAddress,
        count: u16,
        first: [[u64; 2]; FIRST],
    },
}

/// Descriptors of an indirect table that are read at once.
const FIRST: usize = 8;

impl<'a> Table<'a> {
    /// The table that an indirect descriptor of this one names.
    fn enter(&self, descriptor: Descriptor) -> Option<Table<'a>> {
        let Table::Direct(rings) = self else { return None };
        let memory: &GuestMemory = rings.memory();
        let bytes = u64::from(descriptor.bytes);
        let count = u16::try_from(bytes / DESCRIPTOR_BYTES).ok().filter(|_| bytes.is_multiple_of(DESCRIPTOR_BYTES))?;
        let mut raw = [0; FIRST * DESCRIPTOR_BYTES as usize];
        let part = raw.len().min(bytes as usize);
        memory.read_slice(&mut raw[..part], descriptor.address).ok()?;
        let mut first = [[0; 2]; FIRST];
        for (words, raw) in first.as_flattened_mut().iter_mut().zip(raw.as_chunks::<8>().0) {
            *words = u64::from_ne_bytes(*raw);
        }
        Some(Table::Indirect { memory, address: descriptor.address, count, first })
    }

    /// Descriptor `index`, if the table has one that lies in RAM.
    fn get(&self, index: u16) -> Option<Descriptor> {
        match self {
            Table::Direct(rings) => rings.descriptor(index),
            Table::Indirect { count, .. } if index >= *count => None,
            Table::Indirect { memory, address, first, .. } => {
                let words = match first.get(usize::from(index)) {
                    Some(words) => *words,
                    None => {
                        let at = address.0.checked_add(u64::from(index) * DESCRIPTOR_BYTES)?;
                        memory.read_obj(GuestAddress(at)).ok()?
                    }
                };
                Some(Descriptor::from_words(words[0], words[1]))
            }
        }
    }
}

impl Chain {
    /// Adds a buffer, checked.
    fn push(&mut self, memory: &GuestMemory, descriptor: Descriptor) -> Result<(), &'static str> {
        let range = Range { address: descriptor.address, bytes: descriptor.bytes };
        if range.bytes > 0 && !is_ram(memory, range) {
            return Err("has a buffer outside of RAM");
        }
        match descriptor.is_write_only() {
            true => self.writable.push(range),
            // §2.7.4.2: what the device may write comes after all that it may read.
            false if self.writable.bytes > 0 => return Err("has a readable buffer after a writable one"),
            false => self.readable.push(range),
        }
        Ok(())
    }
}

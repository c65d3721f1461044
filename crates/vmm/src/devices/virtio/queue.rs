//! A queue as devices use it: `virtio-queue`'s split ring with every chain checked before a device sees it.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use queztl_guest_memory::GuestMemory;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use super::Interrupt;

/// VIRTQ_AVAIL_F_NO_INTERRUPT.
const NO_INTERRUPT: u16 = 1;

/// A ring or a chain that breaks the rules; the device stops until it is reset.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    #[error("queue {queue}: {source}")]
    Ring { queue: u16, source: virtio_queue::Error },
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
    ranges: Vec<Range>,
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
            let _ = memory.read_slice(&mut data[part], address);
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
    queue: Queue,
    memory: Arc<GuestMemory>,
    kick: Arc<EventFd>,
    interrupt: Arc<dyn Interrupt>,
    /// Whether a chain was pushed since the driver was last considered for an interrupt.
    unsignalled: bool,
}

impl VirtQueue {
    /// Puts together a queue that the driver has set up; refuses rings that do not lie in RAM.
    pub(super) fn new(
        index: u16,
        queue: Queue,
        memory: Arc<GuestMemory>,
        kick: Arc<EventFd>,
        interrupt: Arc<dyn Interrupt>,
    ) -> Result<VirtQueue, QueueError> {
        if !queue.is_valid(memory.as_ref()) {
            return Err(QueueError::Ring { queue: index, source: virtio_queue::Error::QueueNotReady });
        }
        Ok(VirtQueue { index, queue, memory, kick, interrupt, unsignalled: false })
    }

    /// The queue's number on its device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// How many descriptors the driver has given the queue.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
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

    fn ring(&self, source: virtio_queue::Error) -> QueueError {
        QueueError::Ring { queue: self.index, source }
    }

    /// A complaint about the chain at `head`.
    pub fn bad_chain(&self, head: u16, what: &'static str) -> QueueError {
        QueueError::Chain { queue: self.index, head, what }
    }

    /// Takes the next chain that the driver has made available.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        let index = self.index;
        let size = self.queue.size();
        let memory = &*self.memory;
        let next = self.queue.iter(memory).map(|mut chains| chains.next());
        let next = next.map_err(|source| QueueError::Ring { queue: index, source })?;
        let Some(descriptors) = next else { return Ok(None) };
        let head = descriptors.head_index();
        let bad = |what| QueueError::Chain { queue: index, head, what };
        let mut chain = Chain { head, readable: Buffers::default(), writable: Buffers::default() };
        let (mut count, mut complete) = (0, false);
        for descriptor in descriptors {
            // §2.7.5.3.1: a chain has at most as many descriptors as the queue, indirect ones included.
            count += 1;
            if count > size {
                return Err(bad("has more descriptors than the queue"));
            }
            let range = Range { address: descriptor.addr(), bytes: descriptor.len() };
            if range.bytes > 0 && !memory.check_range(range.address, range.bytes as usize) {
                return Err(bad("has a buffer outside of RAM"));
            }
            match descriptor.is_write_only() {
                true => chain.writable.push(range),
                // §2.7.4.2: what the device may write comes after all that it may read.
                false if chain.writable.bytes > 0 => return Err(bad("has a readable buffer after a writable one")),
                false => chain.readable.push(range),
            }
            complete = !descriptor.has_next();
        }
        // `virtio-queue` ends a chain silently where it is broken: at a descriptor outside of the table, nested or
        // misshapen indirect tables, a loop, or more than 4 GiB.
        if complete { Ok(Some(chain)) } else { Err(bad("is broken or endless")) }
    }

    /// Gives back the chain that [`VirtQueue::pop`] returned last, as if it had not been taken.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a chain back to the driver, `written` bytes of it filled. The driver learns of it at
    /// [`VirtQueue::signal`].
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        let result = self.queue.add_used(self.memory.as_ref(), head, written);
        self.unsignalled = true;
        result.map_err(|source| self.ring(source))
    }

    /// Interrupts the driver if it wants to know of what was pushed since it last did.
    pub fn signal(&mut self) -> Result<(), QueueError> {
        if !std::mem::take(&mut self.unsignalled) {
            return Ok(());
        }
        let wanted = self.queue.needs_notification(self.memory.as_ref());
        if wanted.map_err(|source| self.ring(source))? && !self.interrupts_refused()? {
            self.interrupt.queue_used(self.index);
        }
        Ok(())
    }

    /// Whether a driver without the event index has set VIRTQ_AVAIL_F_NO_INTERRUPT (§2.7.7).
    fn interrupts_refused(&self) -> Result<bool, QueueError> {
        if self.queue.event_idx_enabled() {
            return Ok(false);
        }
        let flags = self.memory.load::<u16>(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed);
        let flags = flags.map_err(|source| self.ring(virtio_queue::Error::GuestMemory(source)))?;
        Ok(u16::from_le(flags) & NO_INTERRUPT != 0)
    }

    /// Asks the driver to notify again; true if more chains have become available meanwhile, which it may not announce.
    pub fn rearm(&mut self) -> Result<bool, QueueError> {
        let result = self.queue.enable_notification(self.memory.as_ref());
        result.map_err(|source| self.ring(source))
    }

    /// Tells the driver that notifications are not needed for now.
    pub fn suppress(&mut self) -> Result<(), QueueError> {
        let result = self.queue.disable_notification(self.memory.as_ref());
        result.map_err(|source| self.ring(source))
    }

    /// Hands every available chain to `run`, which says how many bytes it has written, until there is none left and the
    /// driver will notify of the next; then signals.
    pub fn serve(
        &mut self,
        mut run: impl FnMut(&GuestMemory, &Chain) -> Result<u32, &'static str>,
    ) -> Result<(), QueueError> {
        loop {
            self.suppress()?;
            while let Some(chain) = self.pop()? {
                let written = run(&self.memory, &chain).map_err(|what| self.bad_chain(chain.head, what))?;
                self.push(chain.head, written)?;
            }
            if !self.rearm()? {
                return self.signal();
            }
        }
    }
}

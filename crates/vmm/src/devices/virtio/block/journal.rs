//! Writes that are remembered, for copies of the disk elsewhere ([`crate::mirror`]).
//!
//! Promises:
//! - once [`Journal::start`] was called, each request that changes the disk is in the journal before the disk has it, with the
//!   bytes that the guest gave, until [`Journal::take`];
//! - whoever [marks](Journal::mark) is told which blocks were written since, before the disk has them.
//!
//! What of the disk is read beside the guest goes through the same queue, since some images have only one.
//!
//! While nobody wants to know, a write costs one look at a flag.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use queztl_storage::{Buffer, Completion, DiskQueue, Operation, Request};

/// What marks are of, in bytes.
pub(crate) const BLOCK_BYTES: u64 = 64 << 10;

/// A change of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Write {
    pub offset_bytes: u64,
    pub content: Content,
}

impl Write {
    /// How much memory it takes, about.
    pub fn bytes(&self) -> u64 {
        match &self.content {
            Content::Data(data) => data.len() as u64,
            Content::Zero(_) => 0,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    Data(Vec<u8>),
    /// So many zeroes.
    Zero(u64),
}

/// The writes of one disk, of all its queues.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    is_on: AtomicBool,
    /// Of data, in `state`.
    bytes: AtomicU64,
    state: Mutex<State>,
    reads: Mutex<Reads>,
}

/// What is to be read beside the guest.
#[derive(Debug, Default)]
struct Reads {
    waiting: VecDeque<ReadOrder>,
    /// Written to, it wakes a thread that has a queue of the disk.
    wake: Option<OwnedFd>,
}

/// Who waits for what was read.
type Reply = SyncSender<io::Result<Vec<u8>>>;

#[derive(Debug)]
struct ReadOrder {
    offset_bytes: u64,
    length: usize,
    reply: Reply,
}

#[derive(Debug, Default)]
struct State {
    /// Writes are remembered, not only marked.
    keeps: bool,
    writes: Vec<Write>,
    /// For each who marks: the blocks, a bit for each.
    marks: BTreeMap<u32, Vec<u64>>,
}

impl Journal {
    /// Remembers from now on. What is on its way to the disk already is not in the journal.
    pub fn start(&self) {
        let mut state = self.lock();
        state.keeps = true;
        self.switch(&state);
    }

    /// Forgets everything, and remembers nothing more.
    pub fn stop(&self) {
        let mut state = self.lock();
        *state = State::default();
        self.switch(&state);
        self.bytes.store(0, Ordering::Release);
    }

    /// The writes since the last time, in order.
    pub fn take(&self) -> Vec<Write> {
        let mut state = self.lock();
        self.bytes.store(0, Ordering::Release);
        std::mem::take(&mut state.writes)
    }

    /// How much data waits to be taken.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// From now on the blocks that are written are marked for `who`.
    pub fn mark(&self, who: u32) {
        let mut state = self.lock();
        state.marks.insert(who, Vec::new());
        self.switch(&state);
    }

    /// The blocks that were written since [`Journal::mark`], or since the last time, as byte offsets.
    pub fn marked(&self, who: u32) -> Vec<u64> {
        let words = self.lock().marks.get_mut(&who).map(std::mem::take).unwrap_or_default();
        let bits = |(index, word): (u64, u64)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| index * 64 + bit)
        };
        (0..).zip(words).flat_map(bits).map(|block| block * BLOCK_BYTES).collect()
    }

    /// Nobody wants to know of this one's marks any more.
    pub fn unmark(&self, who: u32) {
        let mut state = self.lock();
        state.marks.remove(&who);
        self.switch(&state);
    }

    /// Notes writes as long as somebody wants to know.
    fn switch(&self, state: &State) {
        self.is_on.store(state.keeps || !state.marks.is_empty(), Ordering::Release);
    }

    /// Whoever writes to this eventfd wakes the disk's thread.
    pub(super) fn set_wake(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.lock_reads().wake = Some(fd.try_clone_to_owned()?);
        Ok(())
    }

    /// Has the disk's thread read.
    ///
    /// # Errors
    /// The disk cannot be read, or its thread does not answer in time: it stands still.
    pub(super) fn read(&self, offset_bytes: u64, length: usize, limit: Duration) -> io::Result<Vec<u8>> {
        let (reply, answer) = sync_channel(1);
        let mut reads = self.lock_reads();
        reads.waiting.push_back(ReadOrder { offset_bytes, length, reply });
        if let Some(wake) = &reads.wake {
            // Full means that it is readable.
            let _ = rustix::io::write(wake, &1u64.to_ne_bytes());
        }
        drop(reads);
        answer.recv_timeout(limit).unwrap_or_else(|_| Err(io::Error::other("the disk's thread does not answer")))
    }

    fn lock_reads(&self) -> MutexGuard<'_, Reads> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, request: &Request) {
        if !self.is_on.load(Ordering::Acquire) {
            return;
        }
        let length = match request.operation {
            Operation::Read | Operation::Flush => return,
            Operation::Write { .. } => request.buffers.iter().map(Buffer::len).sum::<usize>() as u64,
            Operation::Discard | Operation::WriteZeroes { .. } => request.length_bytes,
        };
        if length == 0 {
            return;
        }
        let mut state = self.lock();
        for words in state.marks.values_mut() {
            set_bits(words, request.offset_bytes, length);
        }
        if !state.keeps {
            return;
        }
        let content = match request.operation {
            Operation::Write { .. } => {
                self.bytes.fetch_add(length, Ordering::AcqRel);
                Content::Data(bytes_of(&request.buffers))
            }
            _ => Content::Zero(length),
        };
        state.writes.push(Write { offset_bytes: request.offset_bytes, content });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sets the bits of all blocks that a run of bytes touches.
fn set_bits(words: &mut Vec<u64>, offset: u64, length: u64) {
    let (first, last) = (offset / BLOCK_BYTES, (offset.saturating_add(length) - 1) / BLOCK_BYTES);
    for block in first..=last {
        let word = usize::try_from(block / 64).unwrap_or(usize::MAX);
        if words.len() <= word {
            words.resize(word + 1, 0);
        }
        words[word] |= 1 << (block % 64);
    }
}

fn bytes_of(buffers: &[Buffer]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(buffers.iter().map(Buffer::len).sum());
    for buffer in buffers {
        // SAFETY: whoever submits a request promises that its buffers are valid memory until it has completed. The guest may
        // write to it meanwhile, as it may while the disk reads it: what is copied is then as undefined as what is written.
        bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(buffer.base(), buffer.len()) });
    }
    bytes
}

/// Tokens of requests beside the guest's, which are small numbers.
const OWN: u64 = 1 << 63;

/// A disk's queue whose requests are noted.
pub(super) struct JournaledQueue {
    /// Dropped first: it waits for what is in flight.
    disk: Box<dyn DiskQueue>,
    journal: Arc<Journal>,
    size_bytes: u64,
    /// What is read beside the guest.
    flights: HashMap<u64, (Vec<u8>, Reply)>,
    next: u64,
}

impl JournaledQueue {
    pub fn new(disk: Box<dyn DiskQueue>, journal: Arc<Journal>, size_bytes: u64) -> JournaledQueue {
        JournaledQueue { disk, journal, size_bytes, flights: HashMap::new(), next: OWN }
    }

    /// Begins to read what is wished.
    fn begin_reads(&mut self) {
        while self.disk.room() > 0 {
            let Some(order) = self.journal.lock_reads().waiting.pop_front() else { return };
            let ReadOrder { offset_bytes, length, reply } = order;
            let (token, data) = (self.next, vec![0; length]);
            self.next = OWN | self.next.wrapping_add(1);
            let (data, _) = self.flights.entry(token).insert_entry((data, reply)).into_mut();
            let buffers = vec![Buffer::new(data.as_mut_ptr(), length)];
            let request = Request { token, operation: Operation::Read, offset_bytes, length_bytes: 0, buffers };
            // SAFETY: the buffer is kept in `flights` until the request has completed; `disk` is dropped before it, and waits.
            unsafe { self.disk.submit(request) };
        }
    }
}

impl DiskQueue for JournaledQueue {
    fn event(&self) -> BorrowedFd<'_> {
        self.disk.event()
    }

    fn room(&self) -> usize {
        self.disk.room()
    }

    unsafe fn submit(&mut self, request: Request) {
        let end = request.span_bytes().and_then(|span| request.offset_bytes.checked_add(span));
        // What is beyond the end changes nothing.
        if end.is_some_and(|end| end <= self.size_bytes) {
            self.journal.note(&request);
        }
        // SAFETY: the caller promises what the disk's queue asks for.
        unsafe { self.disk.submit(request) };
    }

    fn kick(&mut self) -> io::Result<()> {
        self.begin_reads();
        self.disk.kick()
    }

    fn has_completed(&mut self) -> bool {
        self.disk.has_completed()
    }

    fn completed(&mut self) -> Option<Completion> {
        loop {
            let completion = self.disk.completed()?;
            let Some((data, reply)) = self.flights.remove(&completion.token) else { return Some(completion) };
            // Who does not wait any more has given up.
            let _ = reply.try_send(completion.result.map(|()| data));
        }
    }

    fn drain(&mut self) {
        self.disk.drain();
    }
}

/// Reads a part of a disk of which nobody else has a queue, and waits for it.
///
/// # Errors
/// It cannot be read.
pub(super) fn read(queue: &mut dyn DiskQueue, offset_bytes: u64, into: &mut [u8]) -> io::Result<()> {
    let buffers = vec![Buffer::new(into.as_mut_ptr(), into.len())];
    let request = Request { token: 0, operation: Operation::Read, offset_bytes, length_bytes: 0, buffers };
    // SAFETY: `into` is borrowed until the queue has finished with it.
    unsafe { queue.submit(request) };
    let kicked = queue.kick();
    queue.drain();
    kicked?;
    queue.completed().map_or_else(|| Err(io::Error::other("a request got lost")), |completion| completion.result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(operation: Operation, offset_bytes: u64, data: &mut [u8]) -> Request {
        let length_bytes = data.len() as u64;
        let buffers = vec![Buffer::new(data.as_mut_ptr(), data.len())];
        Request { token: 0, operation, offset_bytes, length_bytes, buffers }
    }

    const WRITE: Operation = Operation::Write { durable: false };

    #[test]
    fn what_is_written_is_remembered_in_order_until_it_is_taken() {
        let journal = Journal::default();
        let mut data = [7; 512];
        journal.note(&request(WRITE, 0, &mut data));
        assert!(journal.take().is_empty(), "nobody wanted to know");

        journal.start();
        journal.note(&request(WRITE, 1024, &mut data));
        journal.note(&request(Operation::Read, 0, &mut data));
        journal.note(&request(Operation::Discard, 512, &mut data));

        let data = Write { offset_bytes: 1024, content: Content::Data(data.to_vec()) };
        let zero = Write { offset_bytes: 512, content: Content::Zero(512) };
        assert_eq!((journal.bytes(), journal.take()), (512, vec![data, zero]));
        assert_eq!((journal.bytes(), journal.take()), (0, vec![]));
    }

    #[test]
    fn marks_tell_the_blocks_that_were_written_to_each_who_asks() {
        let journal = Journal::default();
        journal.start();
        journal.mark(1);
        journal.note(&request(WRITE, 100 * BLOCK_BYTES - 512, &mut [1; 1024]));
        journal.mark(2);
        journal.note(&request(WRITE, 0, &mut [1; 512]));

        assert_eq!(journal.marked(1), [0, 99 * BLOCK_BYTES, 100 * BLOCK_BYTES]);
        assert_eq!(journal.marked(2), [0]);
        assert!(journal.marked(1).is_empty());
    }

    #[test]
    fn who_only_marks_makes_nobody_keep_what_is_written() {
        let journal = Journal::default();
        journal.mark(1);
        journal.note(&request(WRITE, 0, &mut [1; 512]));
        assert_eq!((journal.marked(1), journal.bytes(), journal.take()), (vec![0], 0, vec![]));

        journal.start();
        journal.unmark(1);
        journal.note(&request(WRITE, 0, &mut [1; 512]));
        assert_eq!(journal.take().len(), 1, "one that keeps goes on without marks");
    }
}

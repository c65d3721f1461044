//! The least that two threads do for a disk: one asks, the other gives the requests to io_uring and hands back what has
//! ended. No rings of a guest, no device, no rate limits, no figures: a ceiling for any device whose driver is a
//! thread of its own, where fio is a single thread.
//!
//! Both sides tell each other as a virtqueue's do: through memory while the other is awake, by an eventfd when it sleeps.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use io_uring::{IoUring, opcode, types};
use vmm_sys_util::eventfd::EventFd;

use crate::virtqueue::{Direction, HaltPoll};

/// Places in a mailbox; more than there are requests in flight.
const PLACES: usize = 256;
/// Requests that are started together; the kernel passes no more than these on one by one.
const PART: usize = 2;
/// O_DIRECT wants buffers that begin with a page.
const PAGE: usize = 4096;

/// A queue of numbers from one thread to another.
struct Mailbox {
    words: Vec<AtomicU64>,
    written: AtomicUsize,
    /// The reader sleeps, or is about to.
    asleep: AtomicBool,
    /// Wakes the reader.
    event: EventFd,
}

impl Mailbox {
    fn new() -> Result<Mailbox> {
        let words = (0..PLACES).map(|_| AtomicU64::new(0)).collect();
        let event = EventFd::new(libc::EFD_CLOEXEC).context("no eventfd")?;
        Ok(Mailbox { words, written: AtomicUsize::new(0), asleep: AtomicBool::new(false), event })
    }

    /// Only the writer's thread calls this.
    fn put(&self, word: u64) {
        let at = self.written.load(Ordering::Relaxed);
        self.words[at % PLACES].store(word, Ordering::Relaxed);
        self.written.store(at + 1, Ordering::Release);
    }

    /// Wakes the reader if it sleeps.
    fn tell(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            // A counter that is full has woken it already.
            let _ = self.event.write(1);
        }
    }

    /// The next word after the first `read`. Only the reader's thread calls this.
    fn take(&self, read: &mut usize) -> Option<u64> {
        let word = (self.written.load(Ordering::Acquire) != *read).then(|| &self.words[*read % PLACES])?;
        *read += 1;
        Some(word.load(Ordering::Relaxed))
    }

    /// Sleeps, unless there is something beyond the first `read` words or `other` says so.
    fn sleep(&self, read: usize, other: impl FnOnce() -> bool) {
        self.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if self.written.load(Ordering::Acquire) == read && !other() {
            let _ = self.event.read();
        }
        self.asleep.store(false, Ordering::SeqCst);
    }
}

struct Shared {
    requests: Mailbox,
    answers: Mailbox,
    stop: AtomicBool,
}

/// What the peer is to do.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    pub direction: Direction,
    pub direct: bool,
    pub block_bytes: u32,
    pub depth: u16,
    pub limit: Duration,
}

/// Requests a second, for the file at `path`; `next_sector` says where.
///
/// # Errors
/// The file cannot be opened, or a request fails.
pub fn measure(path: &Path, work: Work, mut next_sector: impl FnMut() -> u64) -> Result<f64> {
    let flags = if work.direct { libc::O_DIRECT } else { 0 };
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
    let (requests, answers) = (Mailbox::new()?, Mailbox::new()?);
    let shared = Arc::new(Shared { requests, answers, stop: AtomicBool::new(false) });
    let server = {
        let shared = shared.clone();
        std::thread::spawn(move || serve(&shared, &file, work))
    };
    let (start, mut poll, mut read, mut done) = (Instant::now(), HaltPoll::default(), 0, 0u64);
    for slot in 0..u64::from(work.depth) {
        shared.requests.put(slot << 48 | next_sector());
    }
    shared.requests.tell();
    while start.elapsed() < work.limit && !server.is_finished() {
        wait(&shared.answers, read, &mut poll);
        while let Some(slot) = shared.answers.take(&mut read) {
            done += 1;
            shared.requests.put(slot << 48 | next_sector());
            shared.requests.tell();
        }
    }
    let rate = done as f64 / start.elapsed().as_secs_f64();
    shared.stop.store(true, Ordering::SeqCst);
    shared.requests.event.write(1)?;
    server.join().map_err(|_| anyhow::anyhow!("the serving thread has died"))??;
    Ok(rate)
}

/// Looks a while, then sleeps.
fn wait(mailbox: &Mailbox, read: usize, poll: &mut HaltPoll) {
    let empty = || mailbox.written.load(Ordering::Acquire) == read;
    let start = Instant::now();
    while empty() && start.elapsed() < poll.limit {
        for _ in 0..32 {
            if !empty() {
                break;
            }
            std::hint::spin_loop();
        }
        std::thread::yield_now();
    }
    if empty() {
        mailbox.sleep(read, || false);
    }
    poll.learn(start.elapsed());
}

fn serve(shared: &Shared, file: &File, work: Work) -> Result<()> {
    let mut ring = IoUring::builder()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .build(u32::from(work.depth).next_power_of_two())?;
    ring.submitter().register_eventfd(shared.requests.event.as_raw_fd())?;
    let block = work.block_bytes as usize;
    let mut memory = vec![0u8; block * usize::from(work.depth) + PAGE];
    let base = memory.as_mut_ptr();
    let base = base.wrapping_add(base.align_offset(PAGE));
    let (mut read, mut flying) = (0, 0u32);
    while !shared.stop.load(Ordering::SeqCst) {
        let mut moved = false;
        for _ in 0..PART {
            let Some(word) = shared.requests.take(&mut read) else { break };
            let (slot, offset) = (word >> 48, (word & ((1 << 48) - 1)) * 512);
            let place = base.wrapping_add(slot as usize * block);
            let file = types::Fd(file.as_raw_fd());
            let entry = match work.direction {
                Direction::Read => opcode::Read::new(file, place, work.block_bytes).offset(offset).build(),
                Direction::Write => opcode::Write::new(file, place, work.block_bytes).offset(offset).build(),
            };
            // SAFETY: the slot's buffer lies in `memory`, which outlives the requests: they are waited for below.
            unsafe { ring.submission().push(&entry.user_data(slot)) }.context("the ring is full")?;
            (moved, flying) = (true, flying + 1);
        }
        if moved {
            ring.submit()?;
        }
        moved |= answer(&mut ring, shared, work.block_bytes, &mut flying)?;
        if !moved {
            shared.requests.sleep(read, || {
                let busy = !ring.completion().is_empty();
                busy || ring.submission().taskrun()
            });
        }
    }
    while flying > 0 {
        ring.submit_and_wait(1)?;
        answer(&mut ring, shared, work.block_bytes, &mut flying)?;
    }
    drop(memory);
    Ok(())
}

/// Hands back what has ended; true if there was any.
fn answer(ring: &mut IoUring, shared: &Shared, block_bytes: u32, flying: &mut u32) -> Result<bool> {
    /// IORING_ENTER_GETEVENTS.
    const GET_EVENTS: u32 = 1;
    if ring.completion().is_empty() && ring.submission().taskrun() {
        // SAFETY: nothing is submitted, nothing is waited for, and there is no argument.
        unsafe { ring.submitter().enter::<libc::sigset_t>(0, 0, GET_EVENTS, None) }
            .or_else(|error| if error.raw_os_error() == Some(libc::EINTR) { Ok(0) } else { Err(error) })?;
    }
    let mut any = false;
    for entry in ring.completion() {
        ensure!(entry.result() == block_bytes as i32, "a request ended with {}", entry.result());
        shared.answers.put(entry.user_data());
        (any, *flying) = (true, *flying - 1);
    }
    if any {
        shared.answers.tell();
    }
    Ok(any)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_in_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7u8; 1 << 16]).unwrap();
        let limit = Duration::from_millis(20);
        let work = Work { direction: Direction::Write, direct: false, block_bytes: 4096, depth: 4, limit };
        let rate = measure(file.path(), work, || 8).unwrap();
        let content = std::fs::read(file.path()).unwrap();
        assert!(rate > 0.0);
        assert!(content[4096..8192].iter().all(|byte| *byte == 0), "the second block was written");
        assert!(content[..4096].iter().chain(&content[8192..]).all(|byte| *byte == 7), "and nothing else");
    }
}

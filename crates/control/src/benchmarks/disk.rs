//! A disk at its queue, as the devices of machines use it, without a guest in front of it.

use std::path::Path;
use std::time::{Duration, Instant};

use queztl_api::{BenchmarkSuite, Code, Problem};
use queztl_storage::{Backing, Buffer, Disk, DiskQueue, Format, ImageConfig, Operation, Request, open_disk};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Figures;
use crate::operations::Task;

const DISK_BYTES: u64 = 256 << 20;
const BLOCK_BYTES: usize = 4096;
/// Requests in flight.
const DEPTH: usize = 32;
/// Of one pattern in one round.
const TIME: Duration = Duration::from_secs(1);

/// Measures reads and writes of 4 KiB at random places.
pub(super) fn measure(home: &Path, task: &Task, figures: &mut Figures) -> Result<(), Problem> {
    let failed = |error: &dyn std::fmt::Display| Problem::new(Code::Host, format!("no disk can be measured: {error}"));
    let file = tempfile::Builder::new().prefix(".benchmark-").tempfile_in(home).map_err(|error| failed(&error))?;
    fill(file.as_file()).map_err(|error| failed(&error))?;
    let open = |direct| {
        open_disk(&ImageConfig {
            path: file.path().to_path_buf(),
            format: Some(Format::Raw),
            read_only: false,
            backing: Backing::None,
            direct,
            in_order: false,
        })
    };
    // Not every file system can do without the page cache.
    let (disk, mode) = match open(true) {
        Ok(disk) => (disk, "past the page cache"),
        Err(_) => (open(false).map_err(|error| failed(&error))?, "through the page cache"),
    };
    for (operation, word) in [(Operation::Read, "reads"), (Operation::Write { durable: false }, "writes")] {
        let rate = rate(disk.as_ref(), operation, task).map_err(|error| failed(&error))?;
        task.check()?;
        figures.add(BenchmarkSuite::Disk, &format!("random 4 KiB {word} {mode}"), "1/s", true, rate);
    }
    Ok(())
}

/// Bytes that take their place, so that no block is found to be a hole.
fn fill(mut file: &std::fs::File) -> std::io::Result<()> {
    let piece: Vec<u8> = (0..1usize << 20).map(|number| (number % 251) as u8).collect();
    for _ in 0..DISK_BYTES / piece.len() as u64 {
        std::io::Write::write_all(&mut file, &piece)?;
    }
    file.sync_data()
}

/// Memory of the requests in flight, each block on its own page.
struct Blocks {
    memory: Vec<u8>,
    first: usize,
}

impl Blocks {
    fn new() -> Blocks {
        let mut memory = vec![0u8; (DEPTH + 1) * BLOCK_BYTES];
        let first = memory.as_mut_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES);
        Blocks { memory, first }
    }

    fn buffer(&mut self, number: usize) -> Buffer {
        let start = self.first + number * BLOCK_BYTES;
        Buffer::new(self.memory[start..start + BLOCK_BYTES].as_mut_ptr(), BLOCK_BYTES)
    }
}

/// Requests in a second.
fn rate(disk: &dyn Disk, operation: Operation, task: &Task) -> std::io::Result<f64> {
    let mut blocks = Blocks::new();
    // Declared after the memory: it is dropped first, and waits for what is in flight.
    let mut queue = disk.open_queue(DEPTH as u32).map_err(std::io::Error::other)?;
    let mut places = Places(0x9e37_79b9_7f4a_7c15);
    let start = Instant::now();
    let (mut done, mut in_flight) = (0u64, 0usize);
    let mut free: Vec<usize> = (0..DEPTH).collect();
    while in_flight > 0 || (start.elapsed() < TIME && task.check().is_ok()) {
        while start.elapsed() < TIME && queue.room() > 0 {
            let Some(number) = free.pop() else { break };
            let offset_bytes = places.next() % (DISK_BYTES / BLOCK_BYTES as u64) * BLOCK_BYTES as u64;
            let buffers = vec![blocks.buffer(number)];
            // SAFETY: the block lives until the queue is dropped, and is given to no other request before this one is over.
            unsafe {
                queue.submit(Request { token: number as u64, operation, offset_bytes, length_bytes: 0, buffers })
            };
            in_flight += 1;
        }
        queue.kick()?;
        let before = done;
        while let Some(completion) = queue.completed() {
            completion.result?;
            free.push(usize::try_from(completion.token).unwrap_or_default());
            (done, in_flight) = (done + 1, in_flight - 1);
        }
        if done == before && in_flight > 0 && !queue.has_completed() {
            wait(queue.as_ref())?;
        }
    }
    Ok(done as f64 / start.elapsed().as_secs_f64())
}

/// Waits until something is over. A look now and then costs nothing and needs no reading of the event.
fn wait(queue: &dyn DiskQueue) -> std::io::Result<()> {
    let event = queue.event();
    let limit = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    match poll(&mut [PollFd::new(&event, PollFlags::IN)], Some(&limit)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The same places each time (xorshift, Marsaglia 2003).
struct Places(u64);

impl Places {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

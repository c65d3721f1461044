//! Memory balloon (Virtio 1.2 §5.5): takes memory back from a running guest.
//!
//! Promises:
//! - memory that the guest gives up, by the balloon or by reporting it free, is returned to the host at once; it reads as
//!   zeroes when the guest takes it again;
//! - a guest short of memory takes pages back from the balloon by itself (deflate on OOM);
//! - addresses outside of RAM change nothing.
//!
//! ```text
//!  host: set_target_bytes --config interrupt--> guest moves pages into or out of the balloon
//!        actual_bytes     <---- writes `actual`
//!        refresh_stats    --used statistics buffer--> guest fills it again --> stats()
//! ```

mod handler;
mod stats;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use queztl_guest_memory::PAGE_SIZE;

use super::worker::{Wake, Worker};
use super::{ActivateError, Activation, DeviceState, Interrupt, VirtioDevice, device_type, lock, read_config_bytes};
use crate::snapshot::Invalid;
use handler::{BalloonHandler, Queues};
pub use stats::Stats;

const INFLATE_QUEUE: u16 = 0;
const DEFLATE_QUEUE: u16 = 1;
const QUEUE_SIZE: u16 = 128;

const F_STATS_VQ: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_REPORTING: u64 = 1 << 5;

/// Offset of `actual` in the configuration space, which the driver writes.
const ACTUAL: u64 = 4;

/// The balloon device.
pub struct Balloon {
    shared: Arc<Shared>,
    running: Mutex<Option<Running>>,
}

/// What the device's thread and the host's threads share.
struct Shared {
    /// Pages that the balloon is to hold, and does hold.
    target_pages: AtomicU32,
    actual_pages: AtomicU32,
    generation: AtomicU32,
    stats: Mutex<Option<(Stats, Instant)>>,
    stats_came: Condvar,
    refresh: Wake,
}

struct Running {
    worker: Worker<BalloonHandler>,
    interrupt: Arc<dyn Interrupt>,
}

impl Balloon {
    /// Makes a deflated balloon; fails if the host is out of file descriptors.
    pub fn new() -> io::Result<Arc<Balloon>> {
        let shared = Shared {
            target_pages: AtomicU32::new(0),
            actual_pages: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            stats: Mutex::default(),
            stats_came: Condvar::new(),
            refresh: Wake::new()?,
        };
        Ok(Arc::new(Balloon { shared: Arc::new(shared), running: Mutex::new(None) }))
    }

    /// Asks the guest to give up so many bytes in all, rounded down to whole pages; it does so as it can.
    pub fn set_target_bytes(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE_SIZE).unwrap_or(u32::MAX);
        if self.shared.target_pages.swap(pages, Ordering::AcqRel) == pages {
            return;
        }
        self.shared.generation.fetch_add(1, Ordering::AcqRel);
        if let Some(running) = &*lock(&self.running) {
            running.interrupt.config_changed();
        }
    }

    /// How many bytes the guest was asked to give up.
    pub fn target_bytes(&self) -> u64 {
        u64::from(self.shared.target_pages.load(Ordering::Acquire)) * PAGE_SIZE
    }

    /// How many bytes the guest says that it has given up.
    pub fn actual_bytes(&self) -> u64 {
        u64::from(self.shared.actual_pages.load(Ordering::Acquire)) * PAGE_SIZE
    }

    /// Asks the guest for fresh statistics and waits for them, for `limit` at the longest; true if they came.
    pub fn refresh_stats(&self, limit: Duration) -> bool {
        let asked = Instant::now();
        self.shared.refresh.wake();
        let stats = lock(&self.shared.stats);
        let old = |stats: &mut Option<(Stats, Instant)>| stats.is_none_or(|(_, at)| at < asked);
        let waited = self.shared.stats_came.wait_timeout_while(stats, limit, old);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// The guest's last statistics and when they came; `None` if none has come since the driver started.
    pub fn stats(&self) -> Option<(Stats, Instant)> {
        *lock(&self.shared.stats)
    }
}

impl Shared {
    fn set_stats(&self, stats: Stats) {
        *lock(&self.stats) = Some((stats, Instant::now()));
        self.stats_came.notify_all();
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        device_type::BALLOON
    }

    fn features(&self) -> u64 {
        F_STATS_VQ | F_DEFLATE_ON_OOM | F_REPORTING
    }

    fn queue_sizes(&self) -> Vec<u16> {
        // Inflate, deflate, statistics, reporting.
        vec![QUEUE_SIZE; 4]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; 8];
        space[..4].copy_from_slice(&self.shared.target_pages.load(Ordering::Acquire).to_le_bytes());
        space[4..].copy_from_slice(&self.shared.actual_pages.load(Ordering::Acquire).to_le_bytes());
        read_config_bytes(&space, offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if let (ACTUAL, Ok(pages)) = (offset, <[u8; 4]>::try_from(data)) {
            self.shared.actual_pages.store(u32::from_le_bytes(pages), Ordering::Release);
        }
    }

    fn config_generation(&self) -> u32 {
        self.shared.generation.load(Ordering::Acquire)
    }

    fn save(&self) -> DeviceState {
        DeviceState::Balloon {
            target_pages: self.shared.target_pages.load(Ordering::Acquire),
            actual_pages: self.shared.actual_pages.load(Ordering::Acquire),
        }
    }

    fn restore(&self, state: DeviceState) -> Result<(), Invalid> {
        let DeviceState::Balloon { target_pages, actual_pages } = state else {
            return Err(Invalid::new("balloon", "it cannot have the state of another device"));
        };
        self.shared.target_pages.store(target_pages, Ordering::Release);
        self.shared.actual_pages.store(actual_pages, Ordering::Release);
        Ok(())
    }

    fn activate(&self, mut activation: Activation) -> Result<(), ActivateError> {
        let inflate = activation.take_queue(INFLATE_QUEUE)?;
        let deflate = activation.take_queue(DEFLATE_QUEUE)?;
        // Queues whose feature was not agreed on do not exist, and those after them move up (§5.5.2).
        let (with_stats, with_reporting) = (activation.has(F_STATS_VQ), activation.has(F_REPORTING));
        let mut next = DEFLATE_QUEUE + 1;
        let mut optional = |wanted: bool| {
            let queue = wanted.then(|| activation.take_queue(next)).transpose();
            next += u16::from(wanted);
            queue
        };
        let stats = optional(with_stats)?;
        let reporting = optional(with_reporting)?;
        let queues = Queues { inflate, deflate, stats, reporting };
        let handler = BalloonHandler::new(queues, activation.memory, self.shared.clone());
        let interrupt = activation.interrupt;
        let worker = Worker::spawn("virtio-balloon", handler, interrupt.clone()).map_err(ActivateError::Thread)?;
        *lock(&self.running) = Some(Running { worker, interrupt });
        Ok(())
    }

    fn reset(&self) {
        let running = lock(&self.running).take();
        if let Some(running) = running {
            running.worker.stop();
        }
        // A driver that starts anew has nothing in the balloon, and has said nothing.
        self.shared.actual_pages.store(0, Ordering::Release);
        *lock(&self.shared.stats) = None;
    }
}

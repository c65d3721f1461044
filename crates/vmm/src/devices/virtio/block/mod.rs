//! Block device (Virtio 1.2 §5.2): a [`Disk`] as the guest's `vda`.
//!
//! Promises:
//! - each queue has a thread and a disk queue of its own, as far as the disk has queues; bytes travel between disk and guest
//!   memory without a copy, many requests at a time;
//! - where the driver has not agreed to FLUSH, every write is durable before it is answered;
//! - all queues together keep to the disk's rate limit;
//! - a request that the disk cannot carry out is answered with IOERR; a chain that is no request at all stops the device;
//! - while the machine stands still, the disk can be replaced by one that builds on it, and the guest notices nothing
//!   ([`Block::prepare_cut`]).

mod config;
mod dma;
mod handler;
pub(crate) mod journal;
mod metrics;
mod request;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use queztl_storage::{Disk, Topology};

use super::limit::{Limiter, Throttle};
use super::spin::Spin;
use super::worker::Worker;
use super::{ActivateError, Activation, Interrupt, VirtQueue, VirtioDevice};
use super::{device_type, feature, lock, read_config_bytes};
use crate::confine;
use handler::{BlockHandler, Means};
use journal::{Journal, JournaledQueue};
use metrics::Metrics;
pub use metrics::{DiskFigures, LATENCY_BUCKETS, Times};

const QUEUE_SIZE: u16 = 256;
/// How long the disk's thread may take to read something beside the guest.
const READ_LIMIT: Duration = Duration::from_secs(10);
/// Most queues of one disk.
pub const MAX_QUEUES: u16 = 16;
/// Most bytes of a serial number (§5.2.6, VIRTIO_BLK_T_GET_ID).
pub const SERIAL_BYTES: usize = 20;
/// Data buffers in a request: a full queue less the header and the status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;

const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

/// How a block device is made.
#[derive(Debug, Clone)]
pub struct BlockConfig {
    pub disk: Arc<dyn Disk>,
    /// Serial number that the guest sees, at most [`SERIAL_BYTES`] of printable ASCII; may be empty.
    pub serial: String,
    /// Number of queues, at best one for each vCPU; at least 1 and at most [`MAX_QUEUES`] are made.
    pub queues: u16,
    /// What all queues together may do; reads and writes count as bytes, every request as a request.
    pub limiter: Arc<Limiter>,
}

/// Why there is no such block device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{0}` cannot be a disk's serial number; use at most {SERIAL_BYTES} printable ASCII characters")]
    Serial(String),
}

/// A disk that is about to be replaced. Dropped, everything is as it was, and the guest goes on with the old disk.
pub struct Cut {
    block: Arc<Block>,
    /// Taken by `commit`, as is what follows.
    old: Option<Arc<dyn Disk>>,
    /// The new disk, and what its threads need.
    ready: Option<(Arc<dyn Disk>, Vec<Means>)>,
}

impl Cut {
    /// Goes on with the new disk.
    pub fn commit(mut self) -> Result<(), CutError> {
        let Some((new, means)) = self.ready.take() else { return Ok(()) };
        self.old = None;
        let block = self.block.clone();
        confine::on_launcher(move || block.replace(new, means))
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        // The new disk holds a lock on the old one's file.
        drop(self.ready.take());
        if let Some(Err(error)) = self.old.as_ref().map(|old| old.thaw()) {
            tracing::warn!(%error, "the lock of a disk cannot be had back: nothing keeps others from reading it");
        }
    }
}

/// Why a disk was not replaced; it goes on as it was, but after [`CutError::Lost`].
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    #[error(transparent)]
    Storage(#[from] queztl_storage::Error),
    #[error("the disk has {old} bytes and the image that is to follow it {new}; make the image as large as the disk")]
    Size { old: u64, new: u64 },
    #[error("the disk is read-only, so it needs no image to follow it")]
    ReadOnly,
    #[error("the image that is to follow the disk is read-only; attach one that can be written")]
    Unwritable,
    #[error(transparent)]
    Start(ActivateError),
    #[error("the disk's thread cannot be started again, so the disk stands still until its driver resets it: {0}")]
    Lost(io::Error),
}

/// The block device.
pub struct Block {
    state: Mutex<State>,
    serial: [u8; SERIAL_BYTES],
    queues: u16,
    limiter: Arc<Limiter>,
    metrics: Arc<Metrics>,
    journal: Arc<Journal>,
}

struct State {
    disk: Arc<dyn Disk>,
    /// The driver is ready.
    active: Option<Active>,
}

/// A device at work.
struct Active {
    workers: Vec<Worker<BlockHandler>>,
    terms: Terms,
}

/// What a device's threads are started for.
#[derive(Clone)]
struct Terms {
    interrupt: Arc<dyn Interrupt>,
    /// The driver has agreed to FLUSH.
    flush: bool,
    /// Sizes of the queues that the driver has set up.
    sizes: Vec<u16>,
}

/// What a queue's thread must know of its device.
#[derive(Debug, Clone, Copy)]
struct Limits {
    topology: Topology,
    read_only: bool,
    /// Writes are answered when they are durable.
    write_through: bool,
    serial: [u8; SERIAL_BYTES],
}

impl BlockConfig {
    /// Makes the device.
    pub fn build(self) -> Result<Arc<Block>, Error> {
        let text = self.serial.as_bytes();
        if text.len() > SERIAL_BYTES || !text.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ') {
            return Err(Error::Serial(self.serial));
        }
        let mut serial = [0; SERIAL_BYTES];
        serial[..text.len()].copy_from_slice(text);
        let queues = self.queues.clamp(1, MAX_QUEUES);
        let state = Mutex::new(State { disk: self.disk, active: None });
        Ok(Arc::new(Block {
            state,
            serial,
            queues,
            limiter: self.limiter,
            metrics: Arc::default(),
            journal: Arc::default(),
        }))
    }
}

impl Block {
    /// What the disk has done so far.
    pub fn figures(&self) -> DiskFigures {
        self.metrics.figures()
    }

    /// What is remembered of the disk's writes: of this one, and of those that replace it.
    pub(crate) fn journal(&self) -> Arc<Journal> {
        self.journal.clone()
    }

    /// Reads the disk beside the guest.
    ///
    /// # Errors
    /// It cannot be read, or not now: the machine stands still.
    pub(crate) fn read(&self, offset_bytes: u64, length: usize) -> io::Result<Vec<u8>> {
        let state = self.state();
        if state.active.is_some() {
            drop(state);
            return self.journal.read(offset_bytes, length, READ_LIMIT);
        }
        // Nobody has a queue, and nobody opens one before the lock is let go.
        let disk = state.disk.clone();
        let queue = confine::on_launcher(move || disk.open_queue(1));
        let mut data = vec![0; length];
        journal::read(&mut *queue.map_err(io::Error::other)?, offset_bytes, &mut data)?;
        Ok(data)
    }

    /// The disk at the moment.
    pub fn disk(&self) -> Arc<dyn Disk> {
        self.state().disk.clone()
    }

    /// Makes ready to replace the disk by the one that `open` opens, an image that builds on it and holds nothing yet.
    ///
    /// What the guest has written until now is durable when `open` is called, and the file can be read by others from then
    /// on: if the cut is committed, it never changes again. The machine must stand still until the cut is committed or
    /// dropped: its vCPUs stopped, its [gate](super::Gate) closed.
    pub fn prepare_cut<E: From<CutError>>(
        self: &Arc<Self>,
        open: impl FnOnce() -> Result<Arc<dyn Disk>, E>,
    ) -> Result<Cut, E> {
        let old = self.disk();
        if old.read_only() {
            return Err(CutError::ReadOnly.into());
        }
        let mut cut = Cut { block: self.clone(), old: Some(old.clone()), ready: None };
        old.freeze().map_err(CutError::Storage)?;
        let new = open()?;
        let (before, after) = (old.topology().size_bytes, new.topology().size_bytes);
        if before != after {
            return Err(CutError::Size { old: before, new: after }.into());
        }
        if new.read_only() {
            return Err(CutError::Unwritable.into());
        }
        let (block, disk) = (self.clone(), new.clone());
        let means = confine::on_launcher(move || {
            let terms = block.state().active.as_ref().map(|active| active.terms.clone());
            terms.map(|terms| block.prepare(&disk, &terms)).transpose()
        });
        cut.ready = Some((new, means.map_err(CutError::Start)?.unwrap_or_default()));
        Ok(cut)
    }

    fn replace(&self, new: Arc<dyn Disk>, means: Vec<Means>) -> Result<(), CutError> {
        let mut state = self.state();
        let Some(Active { workers, terms }) = state.active.take() else {
            state.disk = new;
            return Ok(());
        };
        // A thread that has died had lost its queues already.
        let handlers = workers.into_iter().filter_map(Worker::stop).map(BlockHandler::into_queues);
        let (queues, broken): (Vec<_>, Vec<_>) = handlers.unzip();
        let mut queues: Vec<VirtQueue> = queues.into_iter().flatten().collect();
        queues.sort_by_key(VirtQueue::index);
        state.disk = new;
        let workers = spawn(queues, means, &terms.interrupt, broken.contains(&true));
        let workers = workers.inspect_err(|_| terms.interrupt.needs_reset()).map_err(CutError::Lost)?;
        state.active = Some(Active { workers, terms });
        Ok(())
    }

    /// What threads for all queues need: as many as the disk has queues at most.
    fn prepare(&self, disk: &Arc<dyn Disk>, terms: &Terms) -> Result<Vec<Means>, ActivateError> {
        let count = terms.sizes.len().min(usize::from(disk.max_queues()));
        // In lockstep the vCPU waits for the thread to sleep.
        let spins = has_processors() && terms.interrupt.lockstep().is_none();
        let limits = Limits {
            topology: disk.topology(),
            read_only: disk.read_only(),
            write_through: !terms.flush,
            serial: self.serial,
        };
        let means = |number: usize| {
            let entries: u32 = terms.sizes.iter().skip(number).step_by(count).map(|size| u32::from(*size)).sum();
            let queue = disk.open_queue(entries + request::MAX_SEGMENTS).map_err(ActivateError::Disk)?;
            let (journal, size_bytes) = (self.journal.clone(), limits.topology.size_bytes);
            Ok(Means {
                disk: Box::new(JournaledQueue::new(queue, journal, size_bytes)),
                limits,
                throttle: Throttle::new(self.limiter.clone()).map_err(ActivateError::Thread)?,
                spin: Spin::new(spins),
                metrics: self.metrics.clone(),
            })
        };
        (0..count).map(means).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        device_type::BLOCK
    }

    fn features(&self) -> u64 {
        let common = F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY | F_FLUSH;
        let access = if self.disk().read_only() { F_RO } else { F_DISCARD | F_WRITE_ZEROES };
        common | access | if self.queues > 1 { F_MQ } else { 0 }
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; usize::from(self.queues)]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&config::space(self.disk().topology(), self.queues), offset, data);
    }

    fn activate(&self, mut activation: Activation) -> Result<(), ActivateError> {
        debug_assert!(activation.has(feature::VERSION_1));
        let first = activation.take_queue(0)?;
        let others: Vec<VirtQueue> = activation.queues.iter_mut().filter_map(Option::take).collect();
        let queues: Vec<VirtQueue> = std::iter::once(first).chain(others).collect();
        let terms = Terms {
            flush: activation.has(F_FLUSH),
            sizes: queues.iter().map(VirtQueue::size).collect(),
            interrupt: activation.interrupt,
        };
        let mut state = self.state();
        let means = self.prepare(&state.disk, &terms)?;
        let wake = queues.first().map_or(Ok(()), |queue| self.journal.set_wake(queue.kick_fd()));
        wake.map_err(ActivateError::Thread)?;
        let workers = spawn(queues, means, &terms.interrupt, false).map_err(ActivateError::Thread)?;
        state.active = Some(Active { workers, terms });
        Ok(())
    }

    fn reset(&self) {
        let active = self.state().active.take();
        for worker in active.into_iter().flat_map(|active| active.workers) {
            worker.stop();
        }
    }
}

/// Whether two threads of this process can run at a time. Not by Rust's library, which opens files for the answer.
fn has_processors() -> bool {
    rustix::thread::sched_getaffinity(None).is_ok_and(|processors| processors.count() > 1)
}

/// Starts a thread for each of `means`, which share the queues in turns.
fn spawn(
    queues: Vec<VirtQueue>,
    means: Vec<Means>,
    interrupt: &Arc<dyn Interrupt>,
    broken: bool,
) -> io::Result<Vec<Worker<BlockHandler>>> {
    let mut groups: Vec<Vec<VirtQueue>> = means.iter().map(|_| Vec::new()).collect();
    let count = groups.len().max(1);
    for (number, queue) in queues.into_iter().enumerate() {
        if let Some(group) = groups.get_mut(number % count) {
            group.push(queue);
        }
    }
    let mut workers: Vec<Worker<BlockHandler>> = Vec::new();
    for (group, means) in groups.into_iter().zip(means) {
        let Some(first) = group.first().map(VirtQueue::index) else { continue };
        let handler = BlockHandler::new(group, means, broken);
        match Worker::spawn(&format!("virtio-blk-{first}"), handler, interrupt.clone()) {
            Ok(worker) => workers.push(worker),
            Err(error) => {
                workers.into_iter().for_each(|worker| drop(worker.stop()));
                return Err(error);
            }
        }
    }
    Ok(workers)
}

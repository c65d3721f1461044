//! Block device (Virtio 1.2 §5.2): a [`Disk`] as the guest's `vda`.
//!
//! Promises:
//! - each queue has a thread and a disk queue of its own; bytes travel between disk and guest memory without a copy, many
//!   requests at a time;
//! - where the driver has not agreed to FLUSH, every write is durable before it is answered;
//! - all queues together keep to the disk's rate limit;
//! - a request that the disk cannot carry out is answered with IOERR; a chain that is no request at all stops the device.

mod config;
mod dma;
mod handler;
mod request;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use queztl_storage::{Disk, Topology};

use super::limit::{Limiter, Throttle};
use super::spin::Spin;
use super::worker::Worker;
use super::{ActivateError, Activation, VirtQueue, VirtioDevice, device_type, feature, lock, read_config_bytes};
use handler::BlockHandler;

const QUEUE_SIZE: u16 = 256;
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

/// The block device.
pub struct Block {
    disk: Arc<dyn Disk>,
    serial: [u8; SERIAL_BYTES],
    queues: u16,
    limiter: Arc<Limiter>,
    workers: Mutex<Vec<Worker<BlockHandler>>>,
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
        let workers = Mutex::new(Vec::new());
        Ok(Arc::new(Block { disk: self.disk, serial, queues, limiter: self.limiter, workers }))
    }
}

impl Block {
    fn start_queue(&self, queue: VirtQueue, activation: &Activation) -> Result<Worker<BlockHandler>, ActivateError> {
        let name = format!("virtio-blk-{}", queue.index());
        let depth = u32::from(queue.size()) + request::MAX_SEGMENTS;
        let disk = self.disk.open_queue(depth).map_err(ActivateError::Disk)?;
        let limits = Limits {
            topology: self.disk.topology(),
            read_only: self.disk.read_only(),
            write_through: !activation.has(F_FLUSH),
            serial: self.serial,
        };
        let throttle = Throttle::new(self.limiter.clone()).map_err(ActivateError::Thread)?;
        // In lockstep the vCPU waits for this thread to sleep.
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let spin = Spin::new(processors > 1 && activation.interrupt.lockstep().is_none());
        let handler = BlockHandler::new(queue, disk, limits, throttle, spin);
        Worker::spawn(&name, handler, activation.interrupt.clone()).map_err(ActivateError::Thread)
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        device_type::BLOCK
    }

    fn features(&self) -> u64 {
        let common = F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY | F_FLUSH;
        let access = if self.disk.read_only() { F_RO } else { F_DISCARD | F_WRITE_ZEROES };
        common | access | if self.queues > 1 { F_MQ } else { 0 }
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; usize::from(self.queues)]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&config::space(self.disk.topology(), self.queues), offset, data);
    }

    fn activate(&self, mut activation: Activation) -> Result<(), ActivateError> {
        debug_assert!(activation.has(feature::VERSION_1));
        let first = activation.take_queue(0)?;
        let others: Vec<VirtQueue> = activation.queues.iter_mut().filter_map(Option::take).collect();
        let mut workers = lock(&self.workers);
        for queue in std::iter::once(first).chain(others) {
            match self.start_queue(queue, &activation) {
                Ok(worker) => workers.push(worker),
                Err(error) => {
                    workers.drain(..).for_each(|worker| drop(worker.stop()));
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn reset(&self) {
        let workers = std::mem::take(&mut *lock(&self.workers));
        for worker in workers {
            worker.stop();
        }
    }
}

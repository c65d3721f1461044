//! Memory that comes and goes in blocks while the guest runs (Virtio 1.3 §5.15).
//!
//! Promises:
//! - the guest gets no more than the host has requested, and only blocks of the device's region;
//! - a block that the guest gives back is returned to the host before the guest hears that it was; it reads as zeroes when
//!   it is plugged again;
//! - what is plugged survives a reset of the device, as a restart of the driver needs, but not of the machine.
//!
//! ```text
//!  host: set_requested_bytes --config interrupt--> guest: PLUG or UNPLUG requests, until plugged_size fits
//!        plugged_bytes
//! ```
//! The region is RAM of the machine that its memory map does not show. Nothing but the driver's good behaviour keeps the
//! guest from touching blocks that are not plugged: the region's size is what the host may have to give at the most.

mod blocks;
mod handler;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use queztl_guest_memory::GuestMemory;

use super::discard::discard;
use super::worker::Worker;
use super::{ActivateError, Activation, DeviceState, Interrupt, VirtioDevice, device_type, lock, read_config_bytes};
use crate::snapshot::Invalid;
use blocks::{Answer, Blocks};
use handler::MemHandler;

/// Bytes of a block: a huge page, the least that Linux can give back.
pub const BLOCK_BYTES: u64 = 2 << 20;

const QUEUE_SIZE: u16 = 128;
/// The driver must not read blocks that are not plugged: reading would take memory of the host.
const F_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

/// The hot-plug memory device.
pub struct Mem {
    shared: Arc<Shared>,
    running: Mutex<Option<Running>>,
}

/// What the device's thread and the host's threads share.
struct Shared {
    blocks: Mutex<Blocks>,
    generation: AtomicU32,
}

struct Running {
    worker: Worker<MemHandler>,
    interrupt: Arc<dyn Interrupt>,
}

impl Mem {
    /// A device for the region of `bytes` at guest-physical `start`, both multiples of [`BLOCK_BYTES`]. Nothing is
    /// plugged, nor requested.
    pub fn new(start: u64, bytes: u64) -> Arc<Mem> {
        let shared = Shared { blocks: Mutex::new(Blocks::new(start, bytes)), generation: AtomicU32::new(0) };
        Arc::new(Mem { shared: Arc::new(shared), running: Mutex::new(None) })
    }

    /// Asks the guest to plug or unplug blocks until so many bytes are plugged, rounded down to whole blocks and cut to the
    /// region; it does so as it can.
    pub fn set_requested_bytes(&self, bytes: u64) {
        lock(&self.shared.blocks).request(bytes / BLOCK_BYTES * BLOCK_BYTES);
        self.shared.generation.fetch_add(1, Ordering::AcqRel);
        if let Some(running) = &*lock(&self.running) {
            running.interrupt.config_changed();
        }
    }

    /// How many bytes the guest was asked to use.
    pub fn requested_bytes(&self) -> u64 {
        lock(&self.shared.blocks).requested_bytes()
    }

    /// How many bytes are plugged.
    pub fn plugged_bytes(&self) -> u64 {
        lock(&self.shared.blocks).plugged_bytes()
    }

    /// How many bytes there are to plug.
    pub fn region_bytes(&self) -> u64 {
        lock(&self.shared.blocks).region_bytes()
    }
}

impl Shared {
    fn plug(&self, address: u64, count: u16) -> Answer {
        self.changing(|blocks| blocks.plug(address, count))
    }

    /// The lock is held while memory is discarded, so that the blocks cannot be plugged in between.
    fn unplug(&self, memory: &GuestMemory, address: u64, count: u16) -> Answer {
        self.changing(|blocks| {
            let answer = blocks.unplug(address, count);
            if answer == Answer::Ack {
                discard(memory, address, u64::from(count) * BLOCK_BYTES);
            }
            answer
        })
    }

    fn unplug_all(&self, memory: &GuestMemory) -> Answer {
        self.changing(|blocks| {
            blocks.unplug_all();
            discard(memory, blocks.start(), blocks.region_bytes());
            Answer::Ack
        })
    }

    /// `plugged_size` and `usable_region_size` are part of the configuration space.
    fn changing(&self, change: impl FnOnce(&mut Blocks) -> Answer) -> Answer {
        let answer = change(&mut lock(&self.blocks));
        self.generation.fetch_add(1, Ordering::AcqRel);
        answer
    }
}

impl VirtioDevice for Mem {
    fn device_type(&self) -> u32 {
        device_type::MEMORY
    }

    fn features(&self) -> u64 {
        F_UNPLUGGED_INACCESSIBLE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    /// `struct virtio_mem_config` (§5.15.4): block_size, node_id and padding, addr, region_size, usable_region_size,
    /// plugged_size, requested_size.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; 56];
        {
            let blocks = lock(&self.shared.blocks);
            let fields = [
                BLOCK_BYTES,
                0,
                blocks.start(),
                blocks.region_bytes(),
                blocks.usable_bytes(),
                blocks.plugged_bytes(),
                blocks.requested_bytes(),
            ];
            for (place, field) in space.chunks_exact_mut(8).zip(fields) {
                place.copy_from_slice(&field.to_le_bytes());
            }
        }
        read_config_bytes(&space, offset, data);
    }

    fn config_generation(&self) -> u32 {
        self.shared.generation.load(Ordering::Acquire)
    }

    fn save(&self) -> DeviceState {
        lock(&self.shared.blocks).save()
    }

    fn restore(&self, state: DeviceState) -> Result<(), Invalid> {
        lock(&self.shared.blocks).restore(state)
    }

    fn activate(&self, mut activation: Activation) -> Result<(), ActivateError> {
        let handler = MemHandler::new(activation.take_queue(0)?, self.shared.clone());
        let interrupt = activation.interrupt;
        let worker = Worker::spawn("virtio-mem", handler, interrupt.clone()).map_err(ActivateError::Thread)?;
        *lock(&self.running) = Some(Running { worker, interrupt });
        Ok(())
    }

    fn reset(&self) {
        let running = lock(&self.running).take();
        if let Some(running) = running {
            running.worker.stop();
        }
    }
}

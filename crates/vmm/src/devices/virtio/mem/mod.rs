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
//! The region has addresses of the machine that its memory map does not show. A block that is not plugged is no memory: a
//! vCPU reads ones there and writes to nothing, a device refuses buffers there (`queztl_guest_memory::plug`), whatever the
//! driver does. On KVM that holds for whole slots, which are larger than a block where the region has more than 8 GiB. A
//! transfer of another device that was under way when its buffer was unplugged may still leave data there, which takes
//! memory of the host until the block is plugged again or the driver unplugs everything.

mod blocks;
mod handler;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use queztl_guest_memory::{GuestMemory, PLUG_UNIT, plug, unplug};
use vm_memory::GuestAddress;

use super::discard::discard;
use super::worker::Worker;
use super::{ActivateError, Activation, DeviceState, Interrupt, VirtioDevice, device_type, lock, read_config_bytes};
use crate::snapshot::Invalid;
use blocks::{Answer, Blocks};
use handler::MemHandler;

/// Bytes of a block: a huge page, the least that Linux can give back.
pub const BLOCK_BYTES: u64 = PLUG_UNIT;

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
    memory: Arc<GuestMemory>,
    blocks: Mutex<Blocks>,
    generation: AtomicU32,
}

struct Running {
    worker: Worker<MemHandler>,
    interrupt: Arc<dyn Interrupt>,
}

impl Mem {
    /// A device for the region of `bytes` at guest-physical `start` of `memory`, both multiples of [`BLOCK_BYTES`]. Nothing
    /// is plugged, nor requested.
    pub fn new(memory: Arc<GuestMemory>, start: u64, bytes: u64) -> Arc<Mem> {
        let shared = Shared { memory, blocks: Mutex::new(Blocks::new(start, bytes)), generation: AtomicU32::new(0) };
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
    /// What was left in the blocks after they were unplugged is gone before they are memory again.
    fn plug(&self, address: u64, count: u16) -> Answer {
        self.changing(|blocks| {
            let answer = blocks.plug(address, count);
            if answer == Answer::Ack {
                discard(&self.memory, address, u64::from(count) * BLOCK_BYTES);
                if let Err(error) = plug(&self.memory, GuestAddress(address), u64::from(count) * BLOCK_BYTES) {
                    tracing::warn!(%error, "memory cannot be plugged; the guest is told to try again later");
                    blocks.unplug(address, count);
                    return Answer::Busy;
                }
            }
            answer
        })
    }

    /// The lock is held while memory is discarded, so that the blocks cannot be plugged in between.
    fn unplug(&self, address: u64, count: u16) -> Answer {
        self.changing(|blocks| {
            let answer = blocks.unplug(address, count);
            if answer == Answer::Ack {
                self.take_away(address, u64::from(count) * BLOCK_BYTES);
            }
            answer
        })
    }

    fn unplug_all(&self) -> Answer {
        self.changing(|blocks| {
            blocks.unplug_all();
            self.take_away(blocks.start(), blocks.region_bytes());
            Answer::Ack
        })
    }

    /// Nobody has a way to the memory any more when it is given back, so it stays with the host.
    fn take_away(&self, address: u64, bytes: u64) {
        if let Err(error) = unplug(&self.memory, GuestAddress(address), bytes) {
            tracing::warn!(%error, "unplugged memory stays within the guest's reach");
        }
        discard(&self.memory, address, bytes);
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
        let mut blocks = lock(&self.shared.blocks);
        blocks.restore(state)?;
        let plugged =
            blocks.plugged_runs().try_for_each(|(start, bytes)| plug(&self.shared.memory, GuestAddress(start), bytes));
        plugged.map_err(|_| Invalid::new("hot-plug memory", "the host cannot plug what was plugged"))
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

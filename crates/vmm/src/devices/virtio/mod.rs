//! Virtio devices (Virtio 1.2) and the transport that shows them to the guest.
//!
//! Promises:
//! - vCPU threads never do a device's I/O: a notification wakes the device's own thread through an eventfd;
//! - nothing in guest memory is trusted: every ring, descriptor and length is checked, and a ring that makes no sense
//!   stops its device with DEVICE_NEEDS_RESET (§2.1.2) until the driver resets it, and harms nothing else;
//! - a reset, at any time, joins the device's threads before it returns, after which the device no longer touches guest
//!   memory and can be activated again (reboot, kexec, driver unbind).
//!
//! ```text
//!  vCPU thread            MmioTransport              device thread (Worker)
//!  ---------------------  -------------------------  --------------------------------
//!  write QueueNotify ---> eventfd -----------------> epoll: pop chains, do the work,
//!                                                    push used
//!  interrupt <----------- InterruptStatus, IrqLine <- Interrupt::queue_used
//!  write Status = 0 ----> VirtioDevice::reset ------> stop, join, hand back its parts
//! ```
//! In a machine that must run the same way every time, the vCPU waits after each notification until the device has nothing
//! left to do ([`Lockstep`]).
//!
//! A device knows nothing of its transport: it meets [`Activation`] and [`Interrupt`] only.

pub mod balloon;
pub mod block;
pub mod console;
mod discard;
mod gate;
pub mod limit;
mod lockstep;
pub mod mem;
pub mod mmio;
pub mod net;
mod queue;
mod rings;
pub mod rng;
mod saved;
mod spin;
#[cfg(test)]
mod testing;
pub mod vsock;
mod worker;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use queztl_guest_memory::GuestMemory;

use crate::snapshot::Invalid;

pub use gate::Gate;
pub use lockstep::Lockstep;
pub use mmio::MmioTransport;
pub use queue::{Buffers, Chain, QueueError, VirtQueue};
pub use saved::DeviceState;

/// Device types (Virtio 1.2 §5).
pub mod device_type {
    pub const NET: u32 = 1;
    pub const BLOCK: u32 = 2;
    pub const CONSOLE: u32 = 3;
    pub const ENTROPY: u32 = 4;
    pub const BALLOON: u32 = 5;
    pub const VSOCK: u32 = 19;
    pub const MEMORY: u32 = 24;
}

/// Features that belong to the rings and the transport (Virtio 1.2 §6).
pub mod feature {
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
    /// What every transport here offers besides the device's own features.
    pub const TRANSPORT: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1;
}

/// How a device asks for the driver's attention.
pub trait Interrupt: Send + Sync {
    /// Buffers of the queue were used. The caller has checked that the driver wants to know ([`VirtQueue::signal`]).
    fn queue_used(&self, queue: u16);
    /// The configuration space has changed.
    fn config_changed(&self);
    /// The device has met something it cannot go on from: sets DEVICE_NEEDS_RESET.
    fn needs_reset(&self);
    /// The device's tie to the vCPU in a machine whose runs must repeat exactly.
    fn lockstep(&self) -> Option<Arc<Lockstep>> {
        None
    }
    /// Where the device's threads stop when the machine is paused.
    fn gate(&self) -> Option<Arc<Gate>> {
        None
    }
}

/// What a device gets when its driver is ready.
pub struct Activation {
    /// Guest memory, for as long as the device is active.
    pub memory: Arc<GuestMemory>,
    /// Features that device and driver have agreed on.
    pub features: u64,
    /// The queues by number; `None` where the driver has not set one up.
    pub queues: Vec<Option<VirtQueue>>,
    pub interrupt: Arc<dyn Interrupt>,
    /// The device goes on after a snapshot was restored: its driver believes that it has never stopped.
    pub resumed: bool,
}

impl Activation {
    /// Takes queue `index`, which the device cannot work without.
    pub fn take_queue(&mut self, index: u16) -> Result<VirtQueue, ActivateError> {
        self.queues.get_mut(usize::from(index)).and_then(Option::take).ok_or(ActivateError::NoQueue(index))
    }

    /// Whether all bits of `feature` were agreed on.
    pub fn has(&self, feature: u64) -> bool {
        self.features & feature == feature
    }
}

/// Why a device cannot start its work; the driver sees DEVICE_NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    #[error("the driver has not set up queue {0}")]
    NoQueue(u16),
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("the device was activated twice without a reset")]
    Active,
    #[error("the device's back end is gone")]
    NoBackend,
    #[error("the device's thread cannot be started: {0}")]
    Thread(io::Error),
    #[error("the disk cannot be used: {0}")]
    Disk(queztl_storage::Error),
    #[error("the network back end refuses the guest's offloads: {0}")]
    Offloads(io::Error),
}

/// A device without its transport.
///
/// The transport calls `activate` once the driver has set DRIVER_OK, then nothing but `read_config`, `write_config` and
/// `config_generation` until `reset`; `reset` may come at any time, also without `activate`. All are called with no lock
/// held that the device's threads could wait for.
pub trait VirtioDevice: Send + Sync {
    /// One of [`device_type`].
    fn device_type(&self) -> u32;

    /// Features of this kind of device that are offered.
    fn features(&self) -> u64;

    /// The largest size of each queue, powers of two.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Reads the configuration space at `offset`; bytes that do not exist read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the configuration space; writes to read-only fields do nothing.
    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    /// A number that changes whenever the configuration space has changed on its own (Virtio 1.2 §2.5.1).
    fn config_generation(&self) -> u32 {
        0
    }

    /// What a snapshot holds of the device. The machine stands still.
    fn save(&self) -> DeviceState {
        DeviceState::Stateless {}
    }

    /// Takes over such a state, before the device is activated.
    fn restore(&self, state: DeviceState) -> Result<(), Invalid> {
        match state {
            DeviceState::Stateless {} => Ok(()),
            _ => Err(Invalid::new("virtio device", "it cannot have the state of another")),
        }
    }

    /// Starts the device's work.
    fn activate(&self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops the device's work; returns when guest memory is no longer touched.
    fn reset(&self);
}

/// Copies the part of `space` at `offset` to `data`; bytes past its end read as zero.
fn read_config_bytes(space: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let tail = usize::try_from(offset).ok().and_then(|offset| space.get(offset..)).unwrap_or_default();
    let count = tail.len().min(data.len());
    data[..count].copy_from_slice(&tail[..count]);
}

/// Locks a mutex whose data is valid even if a thread has panicked with it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

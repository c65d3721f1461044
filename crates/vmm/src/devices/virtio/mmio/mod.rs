//! The MMIO transport, version 2 (Virtio 1.2 §4.2): one page of registers for each device.
//!
//! ```text
//!  reset --ACKNOWLEDGE--DRIVER--> FEATURES_OK --DRIVER_OK--> active
//!    ^      features are written    queues are set up          |
//!    +---------------- Status = 0, from anywhere --------------+
//! ```
//! Features can be written before FEATURES_OK only, queues before DRIVER_OK only; a FEATURES_OK that does not follow the
//! rules does not stick. The interrupt line is high while InterruptStatus is not zero.

mod interrupt;
mod persist;
mod registers;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use queztl_guest_memory::GuestMemory;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Activation, Interrupt, VirtQueue, VirtioDevice, feature, lock};
use crate::bus::BusDevice;
use crate::confine;
use crate::irq::IrqLine;
use interrupt::MmioInterrupt;
pub use interrupt::Ties;
pub use persist::SavedTransport;
use registers as reg;

/// Bytes of a transport's register window.
pub const WINDOW_BYTES: u64 = 0x1000;

/// Device status bits (Virtio 1.2 §2.1).
mod status {
    pub const FEATURES_OK: u32 = 8;
    pub const DRIVER_OK: u32 = 4;
    pub const NEEDS_RESET: u32 = 64;
}

/// One device behind its registers.
pub struct MmioTransport {
    device: Arc<dyn VirtioDevice>,
    memory: Arc<GuestMemory>,
    interrupt: Arc<MmioInterrupt>,
    kicks: Vec<Arc<EventFd>>,
    state: Mutex<State>,
}

/// What the driver has written.
struct State {
    status: u32,
    device_features_page: u32,
    driver_features_page: u32,
    driver_features: u64,
    selected: u32,
    queues: Vec<Queue>,
    active: bool,
}

/// Why a transport cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("an eventfd for the device's queues cannot be made: {0}")]
    Event(std::io::Error),
    #[error("the device asks for a queue of {0} entries, which is not a power of two below 32769")]
    QueueSize(u16),
}

impl MmioTransport {
    /// Puts `device` behind registers; `line` is its own.
    pub fn new(
        device: Arc<dyn VirtioDevice>,
        memory: Arc<GuestMemory>,
        line: IrqLine,
    ) -> Result<Arc<MmioTransport>, Error> {
        Self::tied(device, memory, line, Ties::default())
    }

    /// The same, tied to the rest of a machine.
    pub fn tied(
        device: Arc<dyn VirtioDevice>,
        memory: Arc<GuestMemory>,
        line: IrqLine,
        ties: Ties,
    ) -> Result<Arc<MmioTransport>, Error> {
        let sizes = device.queue_sizes();
        let queue = |size: &u16| Queue::new(*size).map_err(|_| Error::QueueSize(*size));
        let queues = sizes.iter().map(queue).collect::<Result<Vec<_>, _>>()?;
        let kick = |_: &u16| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Arc::new).map_err(Error::Event);
        let kicks = sizes.iter().map(kick).collect::<Result<Vec<_>, _>>()?;
        let state = State {
            status: 0,
            device_features_page: 0,
            driver_features_page: 0,
            driver_features: 0,
            selected: 0,
            queues,
            active: false,
        };
        let interrupt = Arc::new(MmioInterrupt::new(line, ties));
        Ok(Arc::new(MmioTransport { device, memory, interrupt, kicks, state: Mutex::new(state) }))
    }

    /// The device behind the registers.
    pub fn device(&self) -> &Arc<dyn VirtioDevice> {
        &self.device
    }

    /// The eventfds that a write of each queue's number to [`QUEUE_NOTIFY_OFFSET`] signals, for accelerators that can do
    /// so themselves.
    pub fn kicks(&self) -> &[Arc<EventFd>] {
        &self.kicks
    }

    /// Stops the device and forgets what the driver has written, as a write of 0 to Status does.
    pub fn reset(&self) {
        self.reset_state(&mut lock(&self.state));
    }

    fn offered(&self) -> u64 {
        self.device.features() | feature::TRANSPORT
    }

    fn reset_state(&self, state: &mut State) {
        // The device's thread takes no lock of the transport but the interrupt's, so joining it here cannot hang.
        let device = self.device.clone();
        confine::on_launcher(move || device.reset());
        self.interrupt.reset();
        for (queue, kick) in state.queues.iter_mut().zip(&self.kicks) {
            queue.reset();
            let _ = kick.read();
        }
        state.status = 0;
        state.driver_features = 0;
        state.device_features_page = 0;
        state.driver_features_page = 0;
        state.selected = 0;
        state.active = false;
    }

    fn read_register(&self, offset: u64) -> u32 {
        let state = lock(&self.state);
        let queue = state.queues.get(state.selected as usize);
        match offset {
            reg::MAGIC_VALUE => reg::MAGIC,
            reg::VERSION => reg::VERSION_2,
            reg::DEVICE_ID => self.device.device_type(),
            reg::VENDOR_ID => reg::VENDOR,
            reg::DEVICE_FEATURES => half(self.offered(), state.device_features_page),
            reg::QUEUE_NUM_MAX => queue.map_or(0, |queue| u32::from(queue.max_size())),
            reg::QUEUE_READY => queue.map_or(0, |queue| u32::from(queue.ready())),
            reg::STATUS => state.status | if self.interrupt.is_broken() { status::NEEDS_RESET } else { 0 },
            // No shared memory regions: lengths and bases read as all ones (§4.2.2).
            reg::SHM_LEN_LOW..=reg::SHM_BASE_HIGH => u32::MAX,
            reg::CONFIG_GENERATION => self.device.config_generation(),
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        match offset {
            reg::DEVICE_FEATURES_SEL => state.device_features_page = value,
            reg::DRIVER_FEATURES_SEL => state.driver_features_page = value,
            reg::DRIVER_FEATURES => state.write_features(value),
            reg::QUEUE_SEL => state.selected = value,
            reg::STATUS if value == 0 => self.reset_state(state),
            reg::STATUS => self.write_status(state, value),
            _ => state.write_queue(offset, value),
        }
    }

    /// Adds status bits; what does not follow the rules does not stick (§2.1.1, §3.1.1).
    fn write_status(&self, state: &mut State, value: u32) {
        let value = value & 0xff & !status::NEEDS_RESET;
        if state.status & !value != 0 {
            return tracing::debug!(now = state.status, value, "the driver takes back status bits without a reset");
        }
        let added = value & !state.status;
        if added & status::FEATURES_OK != 0 && !self.acceptable(state.driver_features) {
            tracing::debug!(features = state.driver_features, "the driver's features are not acceptable");
            state.status |= value & !status::FEATURES_OK & !status::DRIVER_OK;
            return;
        }
        if added & status::DRIVER_OK != 0 && value & status::FEATURES_OK == 0 {
            return tracing::debug!("the driver says DRIVER_OK before FEATURES_OK");
        }
        state.status = value;
        if added & status::DRIVER_OK != 0 && !state.active {
            self.activate(state);
        }
    }

    fn acceptable(&self, features: u64) -> bool {
        features & !self.offered() == 0 && features & feature::VERSION_1 != 0
    }

    fn activate(&self, state: &mut State) {
        state.active = true;
        self.start(state, false);
    }

    fn start(&self, state: &State, resumed: bool) {
        let result = self
            .activation(state, resumed)
            .map_err(|error| error.to_string())
            .and_then(|activation| self.start_device(activation).map_err(|error| error.to_string()));
        if let Err(error) = result {
            tracing::warn!(device = self.device.device_type(), error, "a virtio device cannot be started");
            self.interrupt.needs_reset();
        }
        self.interrupt.settle();
    }

    /// Starts the device, on a thread that may do so.
    fn start_device(&self, activation: Activation) -> Result<(), super::ActivateError> {
        let device = self.device.clone();
        confine::on_launcher(move || device.activate(activation))
    }

    fn activation(&self, state: &State, resumed: bool) -> Result<Activation, super::QueueError> {
        let mut queues = Vec::with_capacity(state.queues.len());
        for ((index, queue), kick) in (0..).zip(&state.queues).zip(&self.kicks) {
            queues.push(match queue.ready() {
                true => Some(self.queue(index, queue, kick, state.driver_features)?),
                false => None,
            });
        }
        let interrupt = self.interrupt.clone();
        Ok(Activation { memory: self.memory.clone(), features: state.driver_features, queues, interrupt, resumed })
    }

    fn queue(
        &self,
        index: u16,
        queue: &Queue,
        kick: &Arc<EventFd>,
        features: u64,
    ) -> Result<VirtQueue, super::QueueError> {
        let event_index = features & feature::EVENT_IDX != 0;
        VirtQueue::new(index, queue, event_index, self.memory.clone(), kick.clone(), self.interrupt.clone())
    }
}

impl State {
    fn write_features(&mut self, value: u32) {
        if self.status & status::FEATURES_OK != 0 {
            return tracing::debug!("the driver changes features after FEATURES_OK");
        }
        match self.driver_features_page {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | u64::from(value),
            1 => self.driver_features = self.driver_features & 0xffff_ffff | u64::from(value) << 32,
            // Features from 64 on do not exist; nothing to keep.
            _ => {}
        }
    }

    fn write_queue(&mut self, offset: u64, value: u32) {
        if self.active {
            return tracing::debug!(offset, value, "the driver changes a queue of an active device");
        }
        let Some(queue) = self.queues.get_mut(self.selected as usize) else { return };
        match offset {
            reg::QUEUE_READY => queue.set_ready(value & 1 != 0),
            // While a queue is ready, its place is fixed.
            _ if queue.ready() => {}
            // Sizes that are no power of two, or too large, are refused by the queue.
            reg::QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            reg::QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            reg::QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            reg::QUEUE_DRIVER_LOW => queue.set_avail_ring_address(Some(value), None),
            reg::QUEUE_DRIVER_HIGH => queue.set_avail_ring_address(None, Some(value)),
            reg::QUEUE_DEVICE_LOW => queue.set_used_ring_address(Some(value), None),
            reg::QUEUE_DEVICE_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }
}

/// The 32 bits of a feature set that a page register selects.
fn half(features: u64, page: u32) -> u32 {
    match page {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset >= reg::CONFIG {
            return self.device.read_config(offset - reg::CONFIG, data);
        }
        // Registers are 32 bits wide and read as such (§4.2.2.2); anything else reads as zero.
        data.fill(0);
        let Ok(word) = <&mut [u8; 4]>::try_from(data) else { return };
        let value = match offset {
            reg::INTERRUPT_STATUS => self.interrupt.status(),
            _ => self.read_register(offset),
        };
        *word = value.to_le_bytes();
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset >= reg::CONFIG {
            return self.device.write_config(offset - reg::CONFIG, data);
        }
        let Ok(word) = <&[u8; 4]>::try_from(data) else { return };
        let value = u32::from_le_bytes(*word);
        match offset {
            // The two registers of the fast path take no lock of the transport.
            reg::QUEUE_NOTIFY => {
                if let Some(kick) = self.kicks.get(value as usize) {
                    let _ = kick.write(1);
                    self.interrupt.settle();
                }
            }
            reg::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            _ => self.write_register(offset, value),
        }
    }
}

impl Drop for MmioTransport {
    fn drop(&mut self) {
        self.device.reset();
    }
}

/// Where a queue's number is written to notify it, within the window.
pub const QUEUE_NOTIFY_OFFSET: u64 = reg::QUEUE_NOTIFY;

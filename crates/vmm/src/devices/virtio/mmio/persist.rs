//! A transport's registers as a snapshot holds them.
//!
//! How far the device has come with its queues is not among them: while the machine stands still, nothing is in flight,
//! so the used ring in guest memory says it. A chain that a device held on to, as the balloon does with its statistics
//! buffer, is taken again.

#[cfg(test)]
mod tests;

use std::num::Wrapping;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};

use super::{MmioTransport, State, status};
use crate::devices::virtio::{DeviceState, lock};
use crate::snapshot::{Invalid, Persist};

/// What a snapshot holds of one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedTransport {
    device_type: u32,
    status: u32,
    device_features_page: u32,
    driver_features_page: u32,
    driver_features: u64,
    selected: u32,
    queues: Vec<SavedQueue>,
    active: bool,
    interrupt_status: u32,
    /// The device waits for its reset.
    broken: bool,
    state: DeviceState,
}

/// Where the driver has placed a queue, guest-physical.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedQueue {
    size: u16,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
}

impl SavedQueue {
    fn of(queue: &Queue) -> SavedQueue {
        SavedQueue {
            size: queue.size(),
            ready: queue.ready(),
            descriptors: queue.desc_table(),
            available: queue.avail_ring(),
            used: queue.used_ring(),
        }
    }

    /// Puts `queue` there; false if it cannot be there.
    fn place(&self, queue: &mut Queue) -> bool {
        let halves = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
        queue.reset();
        queue.set_size(self.size);
        let (low, high) = halves(self.descriptors);
        queue.set_desc_table_address(low, high);
        let (low, high) = halves(self.available);
        queue.set_avail_ring_address(low, high);
        let (low, high) = halves(self.used);
        queue.set_used_ring_address(low, high);
        queue.set_ready(self.ready);
        SavedQueue::of(queue) == *self
    }
}

impl SavedTransport {
    /// How many queues the device had.
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// Gives a network device another address; false if this is none.
    pub fn set_mac(&mut self, address: [u8; 6]) -> bool {
        match &mut self.state {
            DeviceState::Net { mac } => {
                *mac = address;
                true
            }
            _ => false,
        }
    }
}

impl Persist for MmioTransport {
    type State = SavedTransport;

    fn save(&self) -> SavedTransport {
        let state = lock(&self.state);
        SavedTransport {
            device_type: self.device.device_type(),
            status: state.status,
            device_features_page: state.device_features_page,
            driver_features_page: state.driver_features_page,
            driver_features: state.driver_features,
            selected: state.selected,
            queues: state.queues.iter().map(SavedQueue::of).collect(),
            active: state.active,
            interrupt_status: self.interrupt.status(),
            broken: self.interrupt.is_broken(),
            state: self.device.save(),
        }
    }

    /// Restores the registers and, where the driver was ready, starts the device. Guest memory comes first.
    fn restore(&self, saved: SavedTransport) -> Result<(), Invalid> {
        let known =
            saved.device_type == self.device.device_type() && saved.queues.len() == lock(&self.state).queues.len();
        Invalid::unless(known, PART, "another device is in its place")?;
        let agreed = saved.status & status::FEATURES_OK == 0 || self.acceptable(saved.driver_features);
        Invalid::unless(agreed, PART, "its driver has agreed to features that are not offered")?;
        Invalid::unless(
            saved.status & !0xff == 0 && saved.interrupt_status & !3 == 0,
            PART,
            "bits are set that do not exist",
        )?;
        self.device.restore(saved.state)?;
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let placed = state.queues.iter_mut().zip(&saved.queues).all(|(queue, saved)| saved.place(queue));
        Invalid::unless(placed, PART, "a queue is where none can be")?;
        let State { status, device_features_page, driver_features_page, driver_features, selected, .. } = state;
        (*status, *driver_features, *selected) = (saved.status, saved.driver_features, saved.selected);
        (*device_features_page, *driver_features_page) = (saved.device_features_page, saved.driver_features_page);
        state.active = saved.active;
        self.interrupt.restore(saved.interrupt_status, saved.broken);
        if saved.active && !saved.broken {
            self.go_on(state);
        }
        Ok(())
    }
}

/// How an error calls it.
const PART: &str = "virtio device";

impl MmioTransport {
    /// Starts the device where it has stopped.
    fn go_on(&self, state: &mut State) {
        for queue in state.queues.iter_mut().filter(|queue| queue.ready()) {
            // A ring outside of RAM is found when the device is started.
            let used = queue.used_idx(self.memory.as_ref(), Ordering::Acquire).unwrap_or(Wrapping(0));
            queue.set_next_used(used.0);
            queue.set_next_avail(used.0);
        }
        self.start(state, true);
    }
}

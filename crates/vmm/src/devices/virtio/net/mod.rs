//! Network device (Virtio 1.2 §5.1): one pair of queues between the guest and a [`Backend`].
//!
//! Promises:
//! - frames are copied once in each direction; a frame that the guest sends is checked and sent from a private copy, which
//!   the guest cannot change in between;
//! - checksums and segmentation stay undone where guest and back end can leave them to each other;
//! - a guest that does not take frames loses frames, as on a real network; a back end that is gone takes the link down.

mod handler;
pub(crate) mod outlet;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use queztl_network::{Backend, Mac, Offloads};
use serde::{Deserialize, Serialize};

use super::limit::{Limiter, Throttle};
use super::worker::Worker;
use super::{ActivateError, Activation, DeviceState, VirtioDevice, device_type, lock, read_config_bytes};
use crate::snapshot::Invalid;
use handler::NetHandler;
use outlet::Outlet;

const RECEIVE_QUEUE: u16 = 0;
const TRANSMIT_QUEUE: u16 = 1;
const QUEUE_SIZE: u16 = 256;

const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_GUEST_ECN: u64 = 1 << 9;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_HOST_ECN: u64 = 1 << 13;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;

/// What each ability is called in the two directions: what the guest may leave to us, and we to the guest.
const OFFLOAD_FEATURES: [(Offloads, u64, u64); 4] = [
    (Offloads::CHECKSUM, F_CSUM, F_GUEST_CSUM),
    (Offloads::TSO4, F_HOST_TSO4, F_GUEST_TSO4),
    (Offloads::TSO6, F_HOST_TSO6, F_GUEST_TSO6),
    (Offloads::ECN, F_HOST_ECN, F_GUEST_ECN),
];

/// VIRTIO_NET_S_LINK_UP.
const LINK_UP: u16 = 1;

/// How a network device is made.
pub struct NetConfig {
    /// Where frames go; see [`queztl_network::Tap`] and [`queztl_network::UserNetwork`].
    pub backend: Box<dyn Backend>,
    /// The card's address; [`Mac::derived`] makes one.
    pub mac: Mac,
    /// What may come to the guest, and what may leave it; the bytes of frames, without our header.
    pub receive_limiter: Arc<Limiter>,
    pub transmit_limiter: Arc<Limiter>,
}

/// The network device.
pub struct Net {
    mac: Mutex<Mac>,
    mtu: Option<u16>,
    offloads: Offloads,
    link: Arc<Link>,
    outlet: Arc<Outlet>,
    limiters: [Arc<Limiter>; 2],
    state: Mutex<State>,
}

/// Whether the back end lives, and what went through it; shared with the device's thread.
#[derive(Default)]
struct Link {
    down: AtomicBool,
    generation: AtomicU32,
    received: Direction,
    sent: Direction,
}

/// What went one way.
#[derive(Default)]
struct Direction {
    frames: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl Direction {
    /// Counts a frame of `bytes` bytes.
    fn pass(&self, bytes: usize) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn drop_one(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

/// A network device's counters at one moment, since it was made; received and sent are meant as the guest sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetFigures {
    pub received_frames: u64,
    pub received_bytes: u64,
    /// Frames that did not fit into the guest's buffers. (Those that found no buffers wait at the back end.)
    pub received_dropped: u64,
    pub sent_frames: u64,
    pub sent_bytes: u64,
    /// Frames that the back end refused, and what was no frame.
    pub sent_dropped: u64,
}

enum State {
    Idle(Box<dyn Backend>),
    Active(Worker<NetHandler>),
    /// The thread died with the back end.
    Lost,
}

impl NetConfig {
    /// Makes the device.
    pub fn build(self) -> io::Result<Arc<Net>> {
        Ok(Arc::new(Net {
            mac: Mutex::new(self.mac),
            mtu: self.backend.mtu(),
            offloads: self.backend.offloads(),
            link: Arc::default(),
            outlet: Arc::new(Outlet::new()?),
            limiters: [self.receive_limiter, self.transmit_limiter],
            state: Mutex::new(State::Idle(self.backend)),
        }))
    }
}

impl Net {
    /// Where frames from the guest wait while they must not leave.
    pub(crate) fn outlet(&self) -> &Arc<Outlet> {
        &self.outlet
    }

    /// The card's address.
    pub(crate) fn mac(&self) -> Mac {
        *lock(&self.mac)
    }

    /// What went through the device.
    pub fn figures(&self) -> NetFigures {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Link { received, sent, .. } = &*self.link;
        NetFigures {
            received_frames: read(&received.frames),
            received_bytes: read(&received.bytes),
            received_dropped: read(&received.dropped),
            sent_frames: read(&sent.frames),
            sent_bytes: read(&sent.bytes),
            sent_dropped: read(&sent.dropped),
        }
    }

    fn start(
        &self,
        mut activation: Activation,
        mut backend: Box<dyn Backend>,
    ) -> Result<State, (ActivateError, State)> {
        let guest = guest_offloads(&activation);
        let queues = activation.take_queue(RECEIVE_QUEUE);
        let queues = queues.and_then(|receive| Ok((receive, activation.take_queue(TRANSMIT_QUEUE)?)));
        let prepared = queues.and_then(|queues| {
            backend.set_guest_offloads(guest).map_err(ActivateError::Offloads)?;
            let [receive, transmit] = self.limiters.each_ref().map(|limiter| Throttle::new(limiter.clone()));
            let throttles = [receive.map_err(ActivateError::Thread)?, transmit.map_err(ActivateError::Thread)?];
            Ok((queues, throttles))
        });
        let ((receive, transmit), throttles) = match prepared {
            Ok(queues) => queues,
            Err(error) => return Err((error, State::Idle(backend))),
        };
        let mergeable = activation.has(F_MRG_RXBUF);
        let interrupt = activation.interrupt;
        let way = (self.link.clone(), self.outlet.clone());
        let handler = NetHandler::new(receive, transmit, backend, mergeable, way, interrupt.clone(), throttles);
        match Worker::spawn("virtio-net", handler, interrupt) {
            Ok(worker) => Ok(State::Active(worker)),
            Err(error) => Err((ActivateError::Thread(error), State::Lost)),
        }
    }
}

/// What the guest has agreed to receive undone.
fn guest_offloads(activation: &Activation) -> Offloads {
    let agreed = OFFLOAD_FEATURES.iter().filter(|(_, _, guest)| activation.has(*guest));
    agreed.fold(Offloads::NONE, |all, (offload, _, _)| all | *offload)
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        device_type::NET
    }

    fn features(&self) -> u64 {
        let offered = OFFLOAD_FEATURES.iter().filter(|(offload, _, _)| self.offloads.contains(*offload));
        let offloads = offered.fold(0, |all, (_, host, guest)| all | host | guest);
        let mtu = if self.mtu.is_some() { F_MTU } else { 0 };
        F_MAC | F_STATUS | F_MRG_RXBUF | mtu | offloads
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // mac, status, max_virtqueue_pairs, mtu (§5.1.4).
        let mut space = [0; 12];
        space[..6].copy_from_slice(&lock(&self.mac).0);
        let status = if self.link.down.load(Ordering::Acquire) { 0 } else { LINK_UP };
        space[6..8].copy_from_slice(&status.to_le_bytes());
        space[8..10].copy_from_slice(&1u16.to_le_bytes());
        space[10..].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        read_config_bytes(&space, offset, data);
    }

    fn config_generation(&self) -> u32 {
        self.link.generation.load(Ordering::Acquire)
    }

    fn save(&self) -> DeviceState {
        DeviceState::Net { mac: lock(&self.mac).0 }
    }

    fn restore(&self, state: DeviceState) -> Result<(), Invalid> {
        let DeviceState::Net { mac } = state else {
            return Err(Invalid::new("network device", "it cannot have the state of another device"));
        };
        *lock(&self.mac) = Mac(mac);
        Ok(())
    }

    fn activate(&self, activation: Activation) -> Result<(), ActivateError> {
        let mut state = lock(&self.state);
        match std::mem::replace(&mut *state, State::Lost) {
            State::Idle(backend) => match self.start(activation, backend) {
                Ok(active) => *state = active,
                Err((error, next)) => {
                    *state = next;
                    return Err(error);
                }
            },
            State::Active(worker) => {
                *state = State::Active(worker);
                return Err(ActivateError::Active);
            }
            State::Lost => return Err(ActivateError::NoBackend),
        }
        Ok(())
    }

    fn reset(&self) {
        let mut state = lock(&self.state);
        *state = match std::mem::replace(&mut *state, State::Lost) {
            State::Active(worker) => match worker.stop() {
                Some(handler) => State::Idle(handler.into_backend()),
                None => State::Lost,
            },
            other => other,
        };
    }
}

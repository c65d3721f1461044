//! Entropy device (Virtio 1.2 §5.4): fills the guest's buffers from the host kernel's random number generator.

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use rustix::rand::{GetRandomFlags, getrandom};

use super::limit::{Limiter, RateLimit, Throttle};
use super::worker::{Fault, Handler, Poller, Ready, Worker};
use super::{ActivateError, Activation, VirtQueue, VirtioDevice, device_type, lock};
use crate::confine::Kind;

const QUEUE_SIZE: u16 = 64;

/// Most bytes given to one request. A chain may ask for up to 4 GiB; without a bound, a guest could keep a host thread
/// and the host's generator busy for seconds with each descriptor. Drivers cope with short answers.
const MAX_REQUEST_BYTES: u64 = 64 << 10;

const KICKED: u64 = 0;
const THROTTLED: u64 = 1;

/// The entropy device.
pub struct Rng {
    worker: Mutex<Option<Worker<RngHandler>>>,
    /// Where the sequence starts that takes the place of randomness.
    seed: Option<u64>,
    limiter: Arc<Limiter>,
}

impl Rng {
    pub fn new() -> Arc<Rng> {
        Rng::limited(Limiter::new(RateLimit::default()))
    }

    /// A device that gives no more than `limiter` allows.
    pub fn limited(limiter: Arc<Limiter>) -> Arc<Rng> {
        Arc::new(Rng { worker: Mutex::new(None), seed: None, limiter })
    }

    /// A device that gives the same bytes in every run: no secret may be made of them.
    pub fn repeatable(seed: u64) -> Arc<Rng> {
        let limiter = Limiter::new(RateLimit::default());
        Arc::new(Rng { worker: Mutex::new(None), seed: Some(seed), limiter })
    }
}

struct RngHandler {
    queue: VirtQueue,
    throttle: Throttle,
    bytes: Vec<u8>,
    source: Source,
}

/// Where the bytes come from.
enum Source {
    Host,
    /// The state of a SplitMix64 generator (Steele, Lea, Flood: Fast splittable pseudorandom number generators).
    Sequence(u64),
}

impl Source {
    /// Fills `bytes`; gives how many were filled.
    fn fill(&mut self, bytes: &mut [u8]) -> usize {
        match self {
            Source::Host => host_random(bytes),
            Source::Sequence(state) => {
                for part in bytes.chunks_mut(8) {
                    part.copy_from_slice(&next(state).to_le_bytes()[..part.len()]);
                }
                bytes.len()
            }
        }
    }
}

fn host_random(bytes: &mut [u8]) -> usize {
    let mut filled = 0;
    while filled < bytes.len() {
        match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            // Cannot happen on a kernel that has the call; the guest then gets fewer bytes, never predictable ones.
            Err(_) => break,
        }
    }
    filled
}

fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

impl RngHandler {
    /// Fills buffers while there are some and the rate limit allows.
    fn pump(&mut self) -> Result<(), Fault> {
        loop {
            self.queue.suppress();
            while let Some(chain) = self.queue.pop()? {
                let wanted = chain.writable.bytes().min(MAX_REQUEST_BYTES);
                if !self.throttle.admit(wanted) {
                    self.queue.undo_pop();
                    self.queue.signal();
                    return Ok(());
                }
                self.bytes.resize(wanted as usize, 0);
                let filled = self.source.fill(&mut self.bytes);
                let written = chain.writable.write_at(self.queue.memory(), 0, &self.bytes[..filled]);
                self.queue.push(chain.head, written as u32);
            }
            if !self.queue.rearm() {
                self.queue.signal();
                return Ok(());
            }
        }
    }
}

impl Handler for RngHandler {
    const THREAD: Kind = Kind::Rng;

    fn start(&mut self, poller: &Poller) -> Result<(), Fault> {
        poller.add(self.queue.kick_fd(), KICKED, Ready::IN)?;
        poller.add(self.throttle.timer(), THROTTLED, Ready::IN)?;
        self.pump()
    }

    fn handle(&mut self, token: u64, _ready: Ready, _poller: &Poller) -> Result<(), Fault> {
        match token {
            KICKED => self.queue.clear_kick(),
            _ => self.throttle.clear(),
        }
        self.pump()
    }

    fn is_idle(&self) -> bool {
        !self.throttle.is_waiting()
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        device_type::ENTROPY
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&self, mut activation: Activation) -> Result<(), ActivateError> {
        let source = self.seed.map_or(Source::Host, Source::Sequence);
        let throttle = Throttle::new(self.limiter.clone()).map_err(ActivateError::Thread)?;
        let handler = RngHandler { queue: activation.take_queue(0)?, throttle, bytes: Vec::new(), source };
        let worker = Worker::spawn("virtio-rng", handler, activation.interrupt).map_err(ActivateError::Thread)?;
        *lock(&self.worker) = Some(worker);
        Ok(())
    }

    fn reset(&self) {
        let worker = lock(&self.worker).take();
        if let Some(worker) = worker {
            worker.stop();
        }
    }
}

//! Entropy device (Virtio 1.2 §5.4): fills the guest's buffers from the host kernel's random number generator.

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use rustix::rand::{GetRandomFlags, getrandom};

use super::worker::{Fault, Handler, Poller, Ready, Worker};
use super::{ActivateError, Activation, VirtQueue, VirtioDevice, device_type, lock};
use crate::confine::Kind;

const QUEUE_SIZE: u16 = 64;

/// Most bytes given to one request. A chain may ask for up to 4 GiB; without a bound, a guest could keep a host thread
/// and the host's generator busy for seconds with each descriptor. Drivers cope with short answers.
const MAX_REQUEST_BYTES: u64 = 64 << 10;

/// The entropy device.
#[derive(Default)]
pub struct Rng {
    worker: Mutex<Option<Worker<RngHandler>>>,
    /// Where the sequence starts that takes the place of randomness.
    seed: Option<u64>,
}

impl Rng {
    pub fn new() -> Arc<Rng> {
        Arc::new(Rng::default())
    }

    /// A device that gives the same bytes in every run: no secret may be made of them.
    pub fn repeatable(seed: u64) -> Arc<Rng> {
        Arc::new(Rng { seed: Some(seed), ..Rng::default() })
    }
}

struct RngHandler {
    queue: VirtQueue,
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
    /// Puts random bytes into as much of `wanted` as is allowed at once.
    fn fill<'a>(source: &mut Source, bytes: &'a mut Vec<u8>, wanted: u64) -> &'a [u8] {
        bytes.resize(wanted.min(MAX_REQUEST_BYTES) as usize, 0);
        let filled = source.fill(bytes);
        &bytes[..filled]
    }
}

impl Handler for RngHandler {
    const THREAD: Kind = Kind::Rng;

    fn start(&mut self, poller: &Poller) -> Result<(), Fault> {
        poller.add(self.queue.kick_fd(), 0, Ready::IN)?;
        self.handle(0, Ready::IN, poller)
    }

    fn handle(&mut self, _token: u64, _ready: Ready, _poller: &Poller) -> Result<(), Fault> {
        self.queue.clear_kick();
        let (source, bytes) = (&mut self.source, &mut self.bytes);
        Ok(self.queue.serve(|memory, chain| {
            let random = Self::fill(source, bytes, chain.writable.bytes());
            Ok(chain.writable.write_at(memory, 0, random) as u32)
        })?)
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
        let handler = RngHandler { queue: activation.take_queue(0)?, bytes: Vec::new(), source };
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

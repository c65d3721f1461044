//! The device's thread: one request a chain (Virtio 1.3 §5.15.6).

use std::sync::Arc;

use queztl_guest_memory::GuestMemory;

use super::Shared;
use super::blocks::Answer;
use crate::confine::Kind;
use crate::devices::virtio::worker::{Fault, Handler, Poller, Ready};
use crate::devices::virtio::{Chain, VirtQueue, lock};

/// `struct virtio_mem_req`: type, padding, address, number of blocks, padding.
const REQUEST_BYTES: usize = 24;
/// `struct virtio_mem_resp`: type, padding, state.
const RESPONSE_BYTES: usize = 10;

const REQ_PLUG: u16 = 0;
const REQ_UNPLUG: u16 = 1;
const REQ_UNPLUG_ALL: u16 = 2;
const REQ_STATE: u16 = 3;

pub(super) struct MemHandler {
    queue: VirtQueue,
    shared: Arc<Shared>,
}

impl MemHandler {
    pub(super) fn new(queue: VirtQueue, shared: Arc<Shared>) -> MemHandler {
        MemHandler { queue, shared }
    }
}

/// Carries out the request of a chain; gives how many bytes were written.
fn answer(shared: &Shared, memory: &GuestMemory, chain: &Chain) -> Result<u32, &'static str> {
    let request = chain.readable.read_array::<REQUEST_BYTES>(memory, 0).ok_or("has no hot-plug request")?;
    if chain.writable.bytes() < RESPONSE_BYTES as u64 {
        return Err("has no room for a hot-plug response");
    }
    let [t0, t1, _, _, _, _, _, _, address @ .., c0, c1, _, _, _, _, _, _] = request;
    let (address, count) = (u64::from_le_bytes(address), u16::from_le_bytes([c0, c1]));
    let mut response = [0; RESPONSE_BYTES];
    let answer = match u16::from_le_bytes([t0, t1]) {
        REQ_PLUG => shared.plug(address, count),
        REQ_UNPLUG => shared.unplug(address, count),
        REQ_UNPLUG_ALL => shared.unplug_all(),
        REQ_STATE => match lock(&shared.blocks).state(address, count) {
            Some(state) => {
                response[8] = state as u8;
                Answer::Ack
            }
            None => Answer::Error,
        },
        _ => Answer::Error,
    };
    response[0] = answer as u8;
    Ok(chain.writable.write_at(memory, 0, &response) as u32)
}

impl Handler for MemHandler {
    const THREAD: Kind = Kind::Memory;

    fn start(&mut self, poller: &Poller) -> Result<(), Fault> {
        poller.add(self.queue.kick_fd(), 0, Ready::IN)?;
        self.handle(0, Ready::IN, poller)
    }

    fn handle(&mut self, _token: u64, _ready: Ready, _poller: &Poller) -> Result<(), Fault> {
        self.queue.clear_kick();
        let shared = &self.shared;
        Ok(self.queue.serve(|memory, chain| answer(shared, memory, chain))?)
    }
}

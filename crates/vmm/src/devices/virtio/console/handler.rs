//! The console's thread and the queue of typed bytes that feeds it.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Mutex};

use super::Sink;
use crate::devices::virtio::worker::{Fault, Handler, Poller, Ready, Wake};
use crate::devices::virtio::{VirtQueue, lock};

/// Typed bytes kept for a guest that does not read; a paste fits, a runaway pipe does not.
pub(super) const INPUT_BYTES: usize = 64 << 10;
/// Bytes moved at once.
const PIECE_BYTES: usize = 4096;

const TYPED: u64 = 0;
const RECEIVE: u64 = 1;
const TRANSMIT: u64 = 2;

/// Bytes typed and not yet read by the guest.
pub(super) struct Input {
    bytes: Mutex<VecDeque<u8>>,
    wake: Wake,
}

impl Input {
    pub(super) fn new(wake: Wake) -> Input {
        Input { bytes: Mutex::new(VecDeque::new()), wake }
    }

    pub(super) fn push(&self, bytes: &[u8]) -> usize {
        let mut queue = lock(&self.bytes);
        let count = bytes.len().min(INPUT_BYTES - queue.len());
        queue.extend(&bytes[..count]);
        drop(queue);
        self.wake.wake();
        count
    }

    fn take(&self, count: usize) -> Vec<u8> {
        let mut queue = lock(&self.bytes);
        let count = count.min(queue.len());
        queue.drain(..count).collect()
    }

    fn is_empty(&self) -> bool {
        lock(&self.bytes).is_empty()
    }
}

pub(super) struct ConsoleHandler {
    receive: VirtQueue,
    transmit: VirtQueue,
    input: Arc<Input>,
    sink: Sink,
}

impl ConsoleHandler {
    pub(super) fn new(receive: VirtQueue, transmit: VirtQueue, input: Arc<Input>, sink: Sink) -> ConsoleHandler {
        ConsoleHandler { receive, transmit, input, sink }
    }

    /// Moves typed bytes into the guest's buffers while there are both.
    fn feed(&mut self) -> Result<(), Fault> {
        while !self.input.is_empty() {
            let Some(chain) = self.receive.pop()? else {
                if self.receive.rearm()? {
                    continue;
                }
                break;
            };
            let room = chain.writable.bytes().min(PIECE_BYTES as u64) as usize;
            let bytes = self.input.take(room);
            let written = chain.writable.write_at(self.receive.memory(), 0, &bytes);
            self.receive.push(chain.head, written as u32)?;
        }
        Ok(self.receive.signal()?)
    }

    /// Writes what the guest has sent. A sink that fails loses output, as an unplugged terminal does.
    fn drain(&mut self) -> Result<(), Fault> {
        let mut sink = lock(&self.sink);
        let mut piece = [0; PIECE_BYTES];
        self.transmit.serve(|memory, chain| {
            let mut offset = 0;
            while offset < chain.readable.bytes() {
                let count = chain.readable.read_at(memory, offset, &mut piece);
                let _ = sink.write_all(&piece[..count]);
                offset += count as u64;
            }
            Ok(0)
        })?;
        let _ = sink.flush();
        Ok(())
    }
}

impl Handler for ConsoleHandler {
    fn start(&mut self, poller: &Poller) -> Result<(), Fault> {
        poller.add(&self.input.wake, TYPED, Ready::IN)?;
        poller.add(self.receive.kick_fd(), RECEIVE, Ready::IN)?;
        poller.add(self.transmit.kick_fd(), TRANSMIT, Ready::IN)?;
        self.feed()?;
        self.drain()
    }

    fn handle(&mut self, token: u64, _ready: Ready, _poller: &Poller) -> Result<(), Fault> {
        match token {
            TYPED => {
                self.input.wake.clear();
                self.feed()
            }
            RECEIVE => {
                self.receive.clear_kick();
                self.feed()
            }
            _ => {
                self.transmit.clear_kick();
                self.drain()
            }
        }
    }
}

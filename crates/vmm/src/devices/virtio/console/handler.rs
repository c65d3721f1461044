//! The console's thread and the queue of typed bytes that feeds it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use crate::confine::Kind;
use crate::devices::output::{Output, Room};
use crate::devices::virtio::worker::{Fault, Handler, Poller, Ready, Wake};
use crate::devices::virtio::{Chain, VirtQueue, lock};

/// Typed bytes kept for a guest that does not read; a paste fits, a runaway pipe does not.
pub(super) const INPUT_BYTES: usize = 64 << 10;
/// Bytes moved at once.
const PIECE_BYTES: usize = 4096;

const TYPED: u64 = 0;
const RECEIVE: u64 = 1;
const TRANSMIT: u64 = 2;
const ROOM: u64 = 3;

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

/// The console's output, and how its thread learns that there is room again.
pub(super) struct Screen {
    output: Arc<Output>,
    /// The thread waits in its poller, not here, so that it stays free to stop.
    patient: bool,
    waiting: AtomicBool,
    wake: Wake,
}

impl Screen {
    /// A screen on `output`. A patient one holds up the guest rather than let it see that the output is full.
    pub(super) fn new(output: Arc<Output>, patient: bool, wake: Wake) -> Arc<Screen> {
        let screen = Arc::new(Screen { output: output.clone(), patient, waiting: AtomicBool::new(false), wake });
        let sender: Weak<Screen> = Arc::downgrade(&screen);
        output.tell(sender);
        screen
    }

    /// Whether more can be sent; if not, the thread will be woken when it can.
    fn has_room(&self) -> bool {
        if !self.output.is_full() {
            return true;
        }
        if self.patient {
            self.output.await_room();
            return true;
        }
        self.waiting.store(true, Ordering::SeqCst);
        // The buffer may have been emptied before that store.
        !self.output.is_full()
    }

    pub(super) fn push(&self, bytes: &[u8]) {
        self.output.push(bytes);
    }
}

impl Room for Screen {
    fn room(&self) {
        if self.waiting.swap(false, Ordering::SeqCst) {
            self.wake.wake();
        }
    }
}

/// A buffer of the guest that is being written out.
struct Sending {
    chain: Chain,
    offset: u64,
}

pub(super) struct ConsoleHandler {
    receive: VirtQueue,
    transmit: VirtQueue,
    input: Arc<Input>,
    screen: Arc<Screen>,
    sending: Option<Sending>,
}

impl ConsoleHandler {
    pub(super) fn new(
        receive: VirtQueue,
        transmit: VirtQueue,
        input: Arc<Input>,
        screen: Arc<Screen>,
    ) -> ConsoleHandler {
        ConsoleHandler { receive, transmit, input, screen, sending: None }
    }

    /// Moves typed bytes into the guest's buffers while there are both.
    fn feed(&mut self) -> Result<(), Fault> {
        while !self.input.is_empty() {
            let Some(chain) = self.receive.pop()? else {
                if self.receive.rearm() {
                    continue;
                }
                break;
            };
            let room = chain.writable.bytes().min(PIECE_BYTES as u64) as usize;
            let bytes = self.input.take(room);
            let written = chain.writable.write_at(self.receive.memory(), 0, &bytes);
            self.receive.push(chain.head, written as u32);
        }
        self.receive.signal();
        Ok(())
    }

    /// Writes what the guest has sent, as far as there is room. A buffer that does not fit stays the guest's until it
    /// does: Linux waits for it, so the guest writes no faster than the terminal takes.
    fn drain(&mut self) -> Result<(), Fault> {
        loop {
            self.transmit.suppress();
            loop {
                if !self.send()? {
                    self.transmit.signal();
                    return Ok(());
                }
                let Some(chain) = self.transmit.pop()? else { break };
                self.sending = Some(Sending { chain, offset: 0 });
            }
            if !self.transmit.rearm() {
                self.transmit.signal();
                return Ok(());
            }
        }
    }

    /// Goes on with the buffer at hand; false while there is no room for the rest.
    fn send(&mut self) -> Result<bool, Fault> {
        let Some(Sending { chain, offset }) = &mut self.sending else { return Ok(true) };
        let mut piece = [0; PIECE_BYTES];
        while *offset < chain.readable.bytes() {
            if !self.screen.has_room() {
                return Ok(false);
            }
            let count = chain.readable.read_at(self.transmit.memory(), *offset, &mut piece);
            self.screen.push(&piece[..count]);
            *offset += count as u64;
        }
        let head = chain.head;
        self.sending = None;
        self.transmit.push(head, 0);
        Ok(true)
    }
}

impl Handler for ConsoleHandler {
    const THREAD: Kind = Kind::Console;

    fn start(&mut self, poller: &Poller) -> Result<(), Fault> {
        poller.add(&self.input.wake, TYPED, Ready::IN)?;
        poller.add(self.receive.kick_fd(), RECEIVE, Ready::IN)?;
        poller.add(self.transmit.kick_fd(), TRANSMIT, Ready::IN)?;
        poller.add(&self.screen.wake, ROOM, Ready::IN)?;
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
            ROOM => {
                self.screen.wake.clear();
                self.drain()
            }
            _ => {
                self.transmit.clear_kick();
                self.drain()
            }
        }
    }
}

//! The device's thread: packets between the queues and the connections.

use super::muxer::Muxer;
use super::packet::{HEADER_BYTES, Header};
use crate::confine::Kind;
use crate::devices::virtio::VirtQueue;
use crate::devices::virtio::worker::{Fault, Handler, Poller, Ready};

const RECEIVE: u64 = 0;
const TRANSMIT: u64 = 1;
const LISTENER: u64 = 2;
const EVENTS: u64 = 3;

pub(super) struct VsockHandler {
    receive: VirtQueue,
    transmit: VirtQueue,
    muxer: Muxer,
    data: Vec<u8>,
    /// The queue by which the driver was told that its connections are gone.
    events: Option<VirtQueue>,
    /// It has not heard yet: a connection that it accepted now, it would drop without a word when it does. Programs of the
    /// host wait meanwhile.
    deaf: bool,
}

impl VsockHandler {
    /// A handler; with the event queue, if the driver was told there that its connections are gone.
    pub(super) fn new(
        receive: VirtQueue,
        transmit: VirtQueue,
        muxer: Muxer,
        events: Option<VirtQueue>,
    ) -> VsockHandler {
        let deaf = events.is_some();
        VsockHandler { receive, transmit, muxer, data: Vec::new(), events, deaf }
    }

    /// Takes connections of the host's programs, once the driver has offered its event buffer anew: it has heard.
    fn accept(&mut self, poller: &Poller) {
        if self.deaf && self.events.as_mut().is_some_and(|events| !events.rearm()) {
            return;
        }
        self.deaf = false;
        self.muxer.accept(poller);
    }

    /// Moves packets in both directions until neither can go on.
    fn pump(&mut self, poller: &Poller) -> Result<(), Fault> {
        loop {
            let drained = self.handle_sent(poller)?;
            self.fill_buffers()?;
            // Packets of the guest wait only while answers to it do.
            if drained || !self.muxer.has_room() {
                break;
            }
        }
        self.receive.signal();
        self.transmit.signal();
        Ok(())
    }

    /// Handles packets of the guest while there is room for answers; true if there are none left.
    fn handle_sent(&mut self, poller: &Poller) -> Result<bool, Fault> {
        while self.muxer.has_room() {
            let Some(chain) = self.transmit.pop()? else {
                if self.transmit.rearm() {
                    continue;
                }
                return Ok(true);
            };
            let memory = self.transmit.memory();
            let header = chain.readable.read_array::<HEADER_BYTES>(memory, 0);
            let header = Header::from_bytes(
                &header.ok_or_else(|| self.transmit.bad_chain(chain.head, "has no vsock packet header"))?,
            );
            if chain.readable.bytes() - HEADER_BYTES as u64 >= u64::from(header.len) {
                self.muxer.receive(&header, poller, |len| {
                    let mut data = vec![0; len];
                    chain.readable.read_at(memory, HEADER_BYTES as u64, &mut data);
                    data
                });
            } else {
                tracing::debug!(?header, "a vsock packet shorter than it says is dropped");
            }
            self.transmit.push(chain.head, 0);
        }
        Ok(false)
    }

    /// Sends packets to the guest while there are packets and buffers.
    fn fill_buffers(&mut self) -> Result<(), Fault> {
        while self.muxer.wants_to_send() {
            let Some(chain) = self.receive.pop()? else {
                if self.receive.rearm() {
                    continue;
                }
                return Ok(());
            };
            let room = chain.writable.bytes().checked_sub(HEADER_BYTES as u64);
            let room =
                room.ok_or_else(|| self.receive.bad_chain(chain.head, "has no room for a vsock packet header"))?;
            let Some(header) = self.muxer.next(room as usize, &mut self.data) else {
                self.receive.undo_pop();
                return Ok(());
            };
            let memory = self.receive.memory();
            chain.writable.write_at(memory, 0, &header.to_bytes());
            chain.writable.write_at(memory, HEADER_BYTES as u64, &self.data);
            self.receive.push(chain.head, HEADER_BYTES as u32 + header.len);
        }
        Ok(())
    }
}

impl Handler for VsockHandler {
    const THREAD: Kind = Kind::Vsock;

    fn start(&mut self, poller: &Poller) -> Result<(), Fault> {
        poller.add(self.receive.kick_fd(), RECEIVE, Ready::IN)?;
        poller.add(self.transmit.kick_fd(), TRANSMIT, Ready::IN)?;
        // Edge-triggered: where no descriptor is left to accept with, the thread must not spin.
        poller.add(self.muxer.listener(), LISTENER, Ready::IN | Ready::ET)?;
        if let Some(events) = &self.events {
            poller.add(events.kick_fd(), EVENTS, Ready::IN)?;
        }
        self.accept(poller);
        self.pump(poller)
    }

    fn handle(&mut self, token: u64, ready: Ready, poller: &Poller) -> Result<(), Fault> {
        match token {
            RECEIVE => self.receive.clear_kick(),
            TRANSMIT => self.transmit.clear_kick(),
            LISTENER => self.accept(poller),
            EVENTS => {
                if let Some(events) = &self.events {
                    events.clear_kick();
                }
                self.accept(poller);
            }
            socket => self.muxer.socket_event(socket, ready, poller),
        }
        self.pump(poller)
    }
}

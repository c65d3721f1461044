//! The card's thread: frames from the back end into the guest's buffers, frames from the guest to the back end.
//!
//! The back end is watched edge-triggered: `incoming` and `blocked` remember what it was last seen to be, so that a guest
//! without buffers or a network without room does not make the thread spin. A frame beyond the rate limit waits: on its way
//! in the inbox, on its way out in the ring.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use queztl_network::{Backend, HEADER_BYTES, MAX_FRAME_BYTES, Received};

use super::Link;
use super::outlet::Outlet;
use crate::confine::Kind;
use crate::devices::virtio::limit::Throttle;
use crate::devices::virtio::worker::{Fault, Handler, Poller, Ready};
use crate::devices::virtio::{Chain, Interrupt, VirtQueue};

const RECEIVE: u64 = 0;
const TRANSMIT: u64 = 1;
const BACKEND: u64 = 2;
const RECEIVE_THROTTLED: u64 = 3;
const TRANSMIT_THROTTLED: u64 = 4;
const OUTLET: u64 = 5;

/// Offset of `num_buffers` in the header (§5.1.6).
const NUM_BUFFERS: usize = 10;

pub(super) struct NetHandler {
    receive: VirtQueue,
    transmit: VirtQueue,
    backend: Box<dyn Backend>,
    link: Arc<Link>,
    outlet: Arc<Outlet>,
    interrupt: Arc<dyn Interrupt>,
    /// Whether a frame may be spread over several chains.
    mergeable: bool,
    /// The frame being received, and how long it is while it waits for buffers of the guest.
    inbox: Box<[u8]>,
    waiting: usize,
    /// Chains taken for the waiting frame that do not hold all of it yet.
    taken: Vec<Chain>,
    /// Whether the back end may have frames.
    incoming: bool,
    /// Whether the waiting frame has been admitted by the rate limit.
    admitted: bool,
    receive_throttle: Throttle,
    transmit_throttle: Throttle,
    /// The frame being sent.
    outbox: Vec<u8>,
    /// Whether `outbox` waits for the back end to have room.
    blocked: bool,
}

impl NetHandler {
    pub(super) fn new(
        receive: VirtQueue,
        transmit: VirtQueue,
        backend: Box<dyn Backend>,
        mergeable: bool,
        (link, outlet): (Arc<Link>, Arc<Outlet>),
        interrupt: Arc<dyn Interrupt>,
        [receive_throttle, transmit_throttle]: [Throttle; 2],
    ) -> NetHandler {
        NetHandler {
            receive,
            transmit,
            backend,
            link,
            outlet,
            interrupt,
            mergeable,
            inbox: vec![0; MAX_FRAME_BYTES].into_boxed_slice(),
            waiting: 0,
            taken: Vec::new(),
            incoming: true,
            admitted: false,
            receive_throttle,
            transmit_throttle,
            outbox: Vec::new(),
            blocked: false,
        }
    }

    pub(super) fn into_backend(self) -> Box<dyn Backend> {
        self.backend
    }

    /// Moves frames to the guest while there are frames and buffers, and the rate limit allows.
    fn receive_all(&mut self) -> Result<(), Fault> {
        while self.next_frame() && self.admit_waiting() {
            if !self.deliver()? {
                break;
            }
            self.admitted = false;
        }
        self.receive.signal();
        Ok(())
    }

    /// Whether the waiting frame may go to the guest now; a frame pays once, however often the guest has no buffers for
    /// it.
    fn admit_waiting(&mut self) -> bool {
        self.admitted = self.admitted || self.receive_throttle.admit((self.waiting - HEADER_BYTES) as u64);
        self.admitted
    }

    /// Makes sure that a frame waits in the inbox, if the back end has one.
    fn next_frame(&mut self) -> bool {
        while self.waiting == 0 && self.incoming {
            match self.backend.receive(&mut self.inbox) {
                Ok(Received::Frame(count)) if count > HEADER_BYTES => self.waiting = count,
                Ok(Received::Frame(_)) => {}
                Ok(Received::Nothing) => self.incoming = false,
                Ok(Received::Closed) => self.lose_link(),
                Err(error) => {
                    tracing::warn!(%error, "the network back end fails to receive");
                    self.lose_link();
                }
            }
        }
        self.waiting > 0
    }

    fn lose_link(&mut self) {
        self.incoming = false;
        if !self.link.down.swap(true, Ordering::AcqRel) {
            self.link.generation.fetch_add(1, Ordering::AcqRel);
            self.interrupt.config_changed();
        }
    }

    /// Puts the waiting frame into buffers of the guest; false if there are not enough, and the frame waits on.
    fn deliver(&mut self) -> Result<bool, Fault> {
        while self.taken.iter().map(|chain| chain.writable.bytes()).sum::<u64>() < self.waiting as u64 {
            let full =
                !self.mergeable && !self.taken.is_empty() || self.taken.len() >= usize::from(self.receive.size());
            if full {
                // The guest's buffers are too small for the frame, which is the guest's loss.
                return self.drop_frame().map(|()| true);
            }
            let Some(chain) = self.receive.pop()? else {
                if self.receive.rearm() {
                    continue;
                }
                return Ok(false);
            };
            if chain.writable.bytes() < HEADER_BYTES as u64 {
                return Err(self.receive.bad_chain(chain.head, "has no room for a frame's header").into());
            }
            self.taken.push(chain);
        }
        self.fill().map(|()| true)
    }

    /// Copies the waiting frame into the chains taken for it and hands them to the guest.
    fn fill(&mut self) -> Result<(), Fault> {
        // One, too, where buffers are not merged (§5.1.6.4.1).
        let count = self.taken.len() as u16;
        self.inbox[NUM_BUFFERS..HEADER_BYTES].copy_from_slice(&count.to_le_bytes());
        let mut frame = &self.inbox[..self.waiting];
        for chain in self.taken.drain(..) {
            let written = chain.writable.write_at(self.receive.memory(), 0, frame);
            frame = &frame[written..];
            self.receive.push(chain.head, written as u32);
        }
        self.link.received.pass(self.waiting - HEADER_BYTES);
        self.waiting = 0;
        Ok(())
    }

    /// Gives back the chains taken for a frame that does not fit into them: the last taken first.
    fn drop_frame(&mut self) -> Result<(), Fault> {
        for _ in self.taken.drain(..) {
            self.receive.undo_pop();
        }
        self.link.received.drop_one();
        self.waiting = 0;
        Ok(())
    }

    /// Moves frames to the back end while there are frames and room.
    fn transmit_all(&mut self) -> Result<(), Fault> {
        loop {
            if self.blocked {
                break;
            }
            self.transmit.suppress();
            let Some(chain) = self.transmit.pop()? else {
                if self.transmit.rearm() {
                    continue;
                }
                break;
            };
            if !self.transmit_throttle.admit(chain.readable.bytes().saturating_sub(HEADER_BYTES as u64)) {
                self.transmit.undo_pop();
                break;
            }
            self.copy_out(&chain);
            self.transmit.push(chain.head, 0);
            self.send();
        }
        self.send_kept();
        self.transmit.signal();
        Ok(())
    }

    /// Copies the frame of a chain; what is no frame becomes an empty one.
    fn copy_out(&mut self, chain: &Chain) {
        let bytes = chain.readable.bytes();
        let valid = bytes > HEADER_BYTES as u64 && bytes <= MAX_FRAME_BYTES as u64;
        self.outbox.resize(if valid { bytes as usize } else { 0 }, 0);
        chain.readable.read_at(self.transmit.memory(), 0, &mut self.outbox);
    }

    /// Sends the frame in the outbox, or remembers that it must wait.
    fn send(&mut self) {
        self.blocked = false;
        if self.outbox.is_empty() {
            return self.link.sent.drop_one();
        }
        if !self.outlet.keeps(&self.outbox) {
            self.blocked = !pass_on(&mut *self.backend, &self.link, &self.outbox);
        }
    }

    /// Sends what the outlet has kept and may let out now.
    fn send_kept(&mut self) {
        let NetHandler { outlet, backend, link, .. } = self;
        outlet.let_out(|frame| pass_on(&mut **backend, link, frame));
    }
}

/// Sends a frame; false if it has to be offered again when the back end has room.
fn pass_on(backend: &mut dyn Backend, link: &Link, frame: &[u8]) -> bool {
    match backend.send(frame) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
        Err(error) => {
            tracing::debug!(%error, "a frame is lost");
            link.sent.drop_one();
        }
        Ok(()) => link.sent.pass(frame.len() - HEADER_BYTES),
    }
    true
}

impl Handler for NetHandler {
    const THREAD: Kind = Kind::Net;

    fn start(&mut self, poller: &Poller) -> Result<(), Fault> {
        poller.add(self.receive.kick_fd(), RECEIVE, Ready::IN)?;
        poller.add(self.transmit.kick_fd(), TRANSMIT, Ready::IN)?;
        poller.add(self.backend.event(), BACKEND, Ready::IN | Ready::OUT | Ready::ET)?;
        poller.add(self.receive_throttle.timer(), RECEIVE_THROTTLED, Ready::IN)?;
        poller.add(self.transmit_throttle.timer(), TRANSMIT_THROTTLED, Ready::IN)?;
        poller.add(self.outlet.event(), OUTLET, Ready::IN)?;
        self.receive_all()?;
        self.send_kept();
        self.transmit_all()
    }

    fn is_idle(&self) -> bool {
        !self.transmit_throttle.is_waiting()
    }

    fn handle(&mut self, token: u64, ready: Ready, _poller: &Poller) -> Result<(), Fault> {
        match token {
            RECEIVE => {
                self.receive.clear_kick();
                self.receive_all()
            }
            TRANSMIT => {
                self.transmit.clear_kick();
                self.transmit_all()
            }
            RECEIVE_THROTTLED => {
                self.receive_throttle.clear();
                self.receive_all()
            }
            TRANSMIT_THROTTLED => {
                self.transmit_throttle.clear();
                self.transmit_all()
            }
            OUTLET => {
                self.outlet.clear_event();
                self.send_kept();
                self.transmit_all()
            }
            _ => {
                if ready.intersects(Ready::OUT | Ready::HUP | Ready::ERR) {
                    self.send_kept();
                    if self.blocked {
                        self.send();
                    }
                    self.transmit_all()?;
                }
                self.incoming |= ready.intersects(Ready::IN | Ready::HUP | Ready::ERR);
                self.receive_all()
            }
        }
    }
}

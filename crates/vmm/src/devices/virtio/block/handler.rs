//! A queue's thread: chains become disk requests, completions become answers. A request that the rate limit keeps back is
//! held, and with it all that come after it.

use queztl_storage::{Completion, DiskQueue, Operation, Request};

use super::request::{self, Action, Answer, MAX_SEGMENTS, Status};
use super::{Limits, dma};
use crate::confine::Kind;
use crate::devices::virtio::limit::Throttle;
use crate::devices::virtio::worker::{Fault, Handler, Poller, Ready};
use crate::devices::virtio::{Buffers, VirtQueue};

const KICKED: u64 = 0;
const COMPLETED: u64 = 1;
const THROTTLED: u64 = 2;

/// A chain whose disk requests are on their way.
struct Flight {
    answer: Answer,
    /// What the disk fills.
    into: Buffers,
    /// Disk requests still to complete; several for a discard of several ranges.
    left: u32,
    status: Status,
}

pub(super) struct BlockHandler {
    queue: VirtQueue,
    /// Uses the guest memory that `queue` keeps mapped; see `drop`.
    disk: Box<dyn DiskQueue>,
    limits: Limits,
    throttle: Throttle,
    /// The request that waits for the rate limit.
    held: Option<(Answer, Action)>,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
}

impl BlockHandler {
    pub(super) fn new(queue: VirtQueue, disk: Box<dyn DiskQueue>, limits: Limits, throttle: Throttle) -> BlockHandler {
        BlockHandler { queue, disk, limits, throttle, held: None, flights: Vec::new(), free: Vec::new() }
    }

    /// Moves everything that can be moved, until the driver will notify and the disk will signal.
    fn pump(&mut self) -> Result<(), Fault> {
        loop {
            self.queue.suppress()?;
            let drained = self.accept()?;
            self.disk.kick()?;
            let answered = self.answer_completions()?;
            // At once: the driver can go on while the next requests are taken.
            self.queue.signal()?;
            // A full disk queue goes on when something completes, a throttled one when its timer says so, an empty ring
            // when the driver notifies.
            let more = if drained { self.queue.rearm()? } else { answered };
            if !more {
                return Ok(());
            }
        }
    }

    /// Takes chains while the disk has room and the rate limit allows; true if the ring is empty.
    fn accept(&mut self) -> Result<bool, Fault> {
        while self.disk.room() >= MAX_SEGMENTS as usize {
            let Some((answer, action)) = self.next_request()? else { return Ok(true) };
            if !self.throttle.admit(action.bytes()) {
                self.held = Some((answer, action));
                break;
            }
            self.begin(answer, action)?;
        }
        Ok(false)
    }

    fn next_request(&mut self) -> Result<Option<(Answer, Action)>, Fault> {
        if let Some(held) = self.held.take() {
            return Ok(Some(held));
        }
        let Some(chain) = self.queue.pop()? else { return Ok(None) };
        let parsed = request::parse(self.queue.memory(), &chain, &self.limits);
        Ok(Some(parsed.map_err(|what| self.queue.bad_chain(chain.head, what))?))
    }

    fn begin(&mut self, answer: Answer, action: Action) -> Result<(), Fault> {
        let durable = self.limits.write_through;
        match action {
            Action::Read { offset_bytes, into } => self.transfer(answer, Operation::Read, offset_bytes, into),
            Action::Write { offset_bytes, from } => {
                self.transfer(answer, Operation::Write { durable }, offset_bytes, from)
            }
            Action::Flush => self.transfer(answer, Operation::Flush, 0, Buffers::default()),
            Action::Ranges(segments) => {
                let token = self.take_off(answer, Buffers::default(), segments.len() as u32);
                for segment in segments {
                    self.submit(
                        token,
                        segment.operation,
                        segment.offset_bytes,
                        segment.length_bytes,
                        &Buffers::default(),
                    );
                }
            }
            Action::Identify { into } => {
                let written = into.write_at(self.queue.memory(), 0, &self.limits.serial);
                self.reply(&answer, Status::Ok, written as u64)?;
            }
            Action::Refuse(status) => self.reply(&answer, status, 0)?,
        }
        Ok(())
    }

    fn transfer(&mut self, answer: Answer, operation: Operation, offset_bytes: u64, data: Buffers) {
        let into = if operation == Operation::Read { data.clone() } else { Buffers::default() };
        let token = self.take_off(answer, into, 1);
        self.submit(token, operation, offset_bytes, 0, &data);
    }

    /// Finds a place for a chain under way; its number is the disk requests' token.
    fn take_off(&mut self, answer: Answer, into: Buffers, left: u32) -> usize {
        let flight = Some(Flight { answer, into, left, status: Status::Ok });
        match self.free.pop() {
            Some(token) => {
                self.flights[token] = flight;
                token
            }
            None => {
                self.flights.push(flight);
                self.flights.len() - 1
            }
        }
    }

    fn submit(&mut self, token: usize, operation: Operation, offset_bytes: u64, length_bytes: u64, data: &Buffers) {
        let buffers = dma::disk_buffers(self.queue.memory(), data);
        let request = Request { token: token as u64, operation, offset_bytes, length_bytes, buffers };
        // SAFETY: the buffers lie in guest memory, which `self.queue` keeps mapped; `finish` waits for all requests before
        // the handler, and with it the queue, can go away.
        unsafe { self.disk.submit(request) };
    }

    /// Answers what the disk has finished; true if there was any.
    fn answer_completions(&mut self) -> Result<bool, Fault> {
        let mut any = false;
        while let Some(completion) = self.disk.completed() {
            any = true;
            self.land(completion)?;
        }
        Ok(any)
    }

    fn land(&mut self, completion: Completion) -> Result<(), Fault> {
        let token = completion.token as usize;
        let Some(place) = self.flights.get_mut(token) else { return Ok(()) };
        let Some(flight) = place.as_mut() else { return Ok(()) };
        if let Err(error) = completion.result {
            tracing::warn!(%error, "a disk request failed; the guest sees an I/O error");
            flight.status = Status::IoError;
        }
        flight.left -= 1;
        if flight.left > 0 {
            return Ok(());
        }
        let Some(flight) = place.take() else { return Ok(()) };
        self.free.push(token);
        // Also after an error: part of the data may have arrived.
        dma::mark_dirty(self.queue.memory(), &flight.into);
        let written = if flight.status == Status::Ok { flight.into.bytes() } else { 0 };
        self.reply(&flight.answer, flight.status, written)
    }

    fn reply(&mut self, answer: &Answer, status: Status, written: u64) -> Result<(), Fault> {
        answer.write(self.queue.memory(), status);
        // Chains are shorter than 4 GiB.
        let written = u32::try_from(written + 1).unwrap_or(u32::MAX);
        Ok(self.queue.push(answer.head, written)?)
    }
}

impl Handler for BlockHandler {
    const THREAD: Kind = Kind::Block;

    fn start(&mut self, poller: &Poller) -> Result<(), Fault> {
        // By edges: each signal is told once, so that no counter has to be read. `pump` looks at everything each time.
        poller.add(self.queue.kick_fd(), KICKED, Ready::IN | Ready::ET)?;
        poller.add(self.disk.event(), COMPLETED, Ready::IN | Ready::ET)?;
        poller.add(self.throttle.timer(), THROTTLED, Ready::IN | Ready::ET)?;
        self.pump()
    }

    fn handle(&mut self, _token: u64, _ready: Ready, _poller: &Poller) -> Result<(), Fault> {
        self.pump()
    }

    fn is_idle(&self) -> bool {
        self.free.len() == self.flights.len() && self.held.is_none()
    }

    fn quiesce(&mut self) -> Result<(), Fault> {
        self.disk.drain();
        self.answer_completions()?;
        Ok(self.queue.signal()?)
    }

    /// What waited for room on the disk does not hear of the completions that were answered before the pause.
    fn resume(&mut self) -> Result<(), Fault> {
        self.pump()
    }

    fn finish(&mut self) {
        self.disk.drain();
        // What was carried out is answered: the driver has not yet been told that the device is reset.
        let result = self.answer_completions().and_then(|_| Ok(self.queue.signal()?));
        if let Err(fault) = result {
            tracing::debug!(%fault, "a stopping disk could not answer");
        }
    }
}

impl Drop for BlockHandler {
    fn drop(&mut self) {
        // Also where the thread panicked: the disk must be done with guest memory before the queue lets go of it.
        self.disk.drain();
    }
}

//! A queue's thread: chains become disk requests, completions become answers. A request that the rate limit keeps back is
//! held, and with it all that come after it.

use queztl_storage::{Buffer, Completion, DiskQueue, Operation, Request};

use super::request::{self, Action, Answer, MAX_SEGMENTS, Status};
use super::{Limits, dma};
use crate::confine::Kind;
use crate::devices::virtio::limit::Throttle;
use crate::devices::virtio::spin::Spin;
use crate::devices::virtio::worker::{Fault, Handler, Poller, Ready};
use crate::devices::virtio::{Buffers, VirtQueue};

const KICKED: u64 = 0;
const COMPLETED: u64 = 1;
const THROTTLED: u64 = 2;
/// Most chains that are taken before the disk is started on them and what it has finished is answered. A cached disk works
/// while it is being started, so the driver of a deep queue would otherwise sleep through the whole of it, and the device
/// then through the making of the next requests.
const PART: usize = 16;

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
    spin: Spin,
}

/// Why no more chains are taken for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// The ring is empty.
    Empty,
    /// It is time to see to those that were taken.
    Part,
    /// The disk is full of requests, or the rate limit keeps one back.
    Full,
}

impl BlockHandler {
    pub(super) fn new(
        queue: VirtQueue,
        disk: Box<dyn DiskQueue>,
        limits: Limits,
        throttle: Throttle,
        spin: Spin,
    ) -> BlockHandler {
        BlockHandler { queue, disk, limits, throttle, held: None, flights: Vec::new(), free: Vec::new(), spin }
    }

    /// Moves everything that can be moved, until the driver will notify and the disk will signal.
    fn pump(&mut self) -> Result<(), Fault> {
        self.spin.woken();
        self.queue.suppress();
        loop {
            let stop = self.accept()?;
            self.disk.kick()?;
            let answered = self.answer_completions();
            // At once: the driver can go on while the next requests are taken.
            self.queue.signal();
            // A full disk queue goes on when something completes, a throttled one when its timer says so, an empty ring
            // when the driver notifies.
            let more = match stop {
                Stop::Part => true,
                Stop::Full => answered,
                Stop::Empty => answered || self.look() || self.queue.rearm(),
            };
            if !more {
                return Ok(());
            }
            self.queue.suppress();
        }
    }

    /// Whether there is work for the thread before it has slept.
    fn look(&mut self) -> bool {
        let (queue, disk) = (&self.queue, &mut self.disk);
        self.spin.look(|| queue.has_available() || disk.has_completed())
    }

    /// Takes chains while the disk has room and the rate limit allows.
    fn accept(&mut self) -> Result<Stop, Fault> {
        for _ in 0..PART {
            if self.disk.room() < MAX_SEGMENTS as usize {
                return Ok(Stop::Full);
            }
            let Some((answer, action)) = self.next_request()? else { return Ok(Stop::Empty) };
            if !self.throttle.admit(action.bytes()) {
                self.held = Some((answer, action));
                return Ok(Stop::Full);
            }
            self.begin(answer, action);
        }
        Ok(Stop::Part)
    }

    fn next_request(&mut self) -> Result<Option<(Answer, Action)>, Fault> {
        if let Some(held) = self.held.take() {
            return Ok(Some(held));
        }
        let Some(chain) = self.queue.pop()? else { return Ok(None) };
        let head = chain.head;
        let parsed = request::parse(self.queue.memory(), chain, &self.limits);
        Ok(Some(parsed.map_err(|what| self.queue.bad_chain(head, what))?))
    }

    fn begin(&mut self, answer: Answer, action: Action) {
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
                    self.submit(token, segment.operation, segment.offset_bytes, segment.length_bytes, Vec::new());
                }
            }
            Action::Identify { into } => {
                let written = into.write_at(self.queue.memory(), 0, &self.limits.serial);
                self.reply(&answer, Status::Ok, written as u64);
            }
            Action::Refuse(status) => self.reply(&answer, status, 0),
        }
    }

    fn transfer(&mut self, answer: Answer, operation: Operation, offset_bytes: u64, data: Buffers) {
        let buffers = dma::disk_buffers(self.queue.memory(), &data);
        let into = if operation == Operation::Read { data } else { Buffers::default() };
        let token = self.take_off(answer, into, 1);
        self.submit(token, operation, offset_bytes, 0, buffers);
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

    fn submit(
        &mut self,
        token: usize,
        operation: Operation,
        offset_bytes: u64,
        length_bytes: u64,
        buffers: Vec<Buffer>,
    ) {
        let request = Request { token: token as u64, operation, offset_bytes, length_bytes, buffers };
        // SAFETY: the buffers lie in guest memory, which `self.queue` keeps mapped; `finish` waits for all requests before
        // the handler, and with it the queue, can go away.
        unsafe { self.disk.submit(request) };
    }

    /// Answers what the disk has finished; true if there was any.
    fn answer_completions(&mut self) -> bool {
        let mut any = false;
        while let Some(completion) = self.disk.completed() {
            any = true;
            self.land(completion);
        }
        any
    }

    fn land(&mut self, completion: Completion) {
        let token = completion.token as usize;
        let Some(place) = self.flights.get_mut(token) else { return };
        let Some(flight) = place.as_mut() else { return };
        if let Err(error) = completion.result {
            tracing::warn!(%error, "a disk request failed; the guest sees an I/O error");
            flight.status = Status::IoError;
        }
        flight.left -= 1;
        if flight.left > 0 {
            return;
        }
        let Some(flight) = place.take() else { return };
        self.free.push(token);
        // Also after an error: part of the data may have arrived.
        dma::mark_dirty(self.queue.memory(), &flight.into);
        let written = if flight.status == Status::Ok { flight.into.bytes() } else { 0 };
        self.reply(&flight.answer, flight.status, written);
    }

    fn reply(&mut self, answer: &Answer, status: Status, written: u64) {
        answer.write(self.queue.memory(), status);
        // Chains are shorter than 4 GiB.
        let written = u32::try_from(written + 1).unwrap_or(u32::MAX);
        self.queue.push(answer.head, written);
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
        self.answer_completions();
        self.queue.signal();
        Ok(())
    }

    /// What waited for room on the disk does not hear of the completions that were answered before the pause.
    fn resume(&mut self) -> Result<(), Fault> {
        self.pump()
    }

    fn finish(&mut self) {
        self.disk.drain();
        // What was carried out is answered: the driver has not yet been told that the device is reset.
        self.answer_completions();
        self.queue.signal();
    }
}

impl Drop for BlockHandler {
    fn drop(&mut self) {
        // Also where the thread panicked: the disk must be done with guest memory before the queue lets go of it.
        self.disk.drain();
    }
}

//! A disk's thread: chains of one or several queues become disk requests, completions become answers. A request that the
//! rate limit keeps back is held, and with it all that come after it.

use std::sync::Arc;
use std::time::Instant;

use queztl_storage::{Buffer, Completion, DiskQueue, Operation, Request};

use super::metrics::Metrics;
use super::request::{self, Action, Answer, Kind, MAX_SEGMENTS, Segment, Status};
use super::{Limits, dma};
use crate::confine;
use crate::devices::virtio::limit::Throttle;
use crate::devices::virtio::spin::Spin;
use crate::devices::virtio::worker::{Fault, Handler, Poller, Ready};
use crate::devices::virtio::{Buffers, VirtQueue};

const COMPLETED: u64 = 0;
const THROTTLED: u64 = 1;
const KICKED: u64 = 2;
/// Most chains that are taken from a queue before the disk is started on them and what it has finished is answered. A
/// cached disk works while it is being started, so the driver of a deep queue would otherwise sleep through the whole of
/// it, and the device then through the making of the next requests.
const PART: usize = 16;
/// Most chains for a disk that works while its thread goes on: it should not wait for the first request until the last
/// has been made, and the kernel passes no more than these on one by one.
const SMALL_PART: usize = 2;
/// Most rounds before the thread looks whether it is to stop or to be quiet. A guest that reads the right sectors into its
/// own available ring has requests for ever, even while its vCPUs stand still.
const ROUNDS: usize = 1024;

/// A chain whose disk requests are on their way.
struct Flight {
    queue: usize,
    answer: Answer,
    kind: Kind,
    bytes: u64,
    /// What the disk fills.
    into: Buffers,
    /// Disk requests still to complete; several for a discard of several ranges.
    left: u32,
    status: Status,
    began: Instant,
}

/// What a disk's thread works with, besides its queues.
pub(super) struct Means {
    pub disk: Box<dyn DiskQueue>,
    pub limits: Limits,
    pub throttle: Throttle,
    pub spin: Spin,
    pub metrics: Arc<Metrics>,
}

pub(super) struct BlockHandler {
    /// At least one.
    queues: Vec<VirtQueue>,
    /// Its disk queue uses the guest memory that `queues` keep mapped; see `drop`.
    means: Means,
    /// The request that waits for the rate limit: the last that was taken from its queue.
    held: Option<(usize, Answer, Action)>,
    /// The queue that is looked at first.
    turn: usize,
    /// Most chains that are taken before the disk is started on them: [`PART`] or [`SMALL_PART`].
    part: usize,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    /// When the current round began.
    now: Instant,
    /// A queue makes no sense: nothing is done until the driver resets the device.
    broken: bool,
}

/// Why no more chains are taken for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// The rings are empty.
    Empty,
    /// It is time to see to those that were taken.
    Part,
    /// The disk is full of requests, or the rate limit keeps one back.
    Full,
}

impl BlockHandler {
    pub(super) fn new(queues: Vec<VirtQueue>, means: Means, broken: bool) -> BlockHandler {
        let (flights, free) = (Vec::new(), Vec::new());
        BlockHandler { queues, means, held: None, turn: 0, part: PART, flights, free, now: Instant::now(), broken }
    }

    /// The queues, for another handler to go on with, and whether one of them makes no sense. Nothing is in flight.
    pub(super) fn into_queues(mut self) -> (Vec<VirtQueue>, bool) {
        if let Some((queue, _, _)) = self.held.take() {
            self.queues[queue].undo_pop();
        }
        (std::mem::take(&mut self.queues), self.broken)
    }

    /// Moves everything that can be moved, until the driver will notify and the disk will signal.
    fn pump(&mut self) -> Result<(), Fault> {
        if self.broken {
            return Ok(());
        }
        let result = self.work();
        self.broken = result.is_err();
        result
    }

    fn work(&mut self) -> Result<(), Fault> {
        self.means.spin.woken();
        for _ in 0..ROUNDS {
            self.queues.iter_mut().for_each(VirtQueue::suppress);
            let stop = self.accept()?;
            let started = !self.is_landed();
            self.means.disk.kick()?;
            let answered = self.answer_completions();
            if started {
                // A disk that has finished by now did so while it was being started.
                self.part = if self.is_landed() { PART } else { SMALL_PART };
            }
            // At once: the driver can go on while the next requests are taken.
            self.queues.iter_mut().for_each(VirtQueue::signal);
            // A full disk queue goes on when something completes, a throttled one when its timer says so, an empty ring
            // when the driver notifies.
            let more = match stop {
                Stop::Part => true,
                Stop::Full => answered,
                Stop::Empty => answered || self.look() || self.rearm(),
            };
            if !more {
                return Ok(());
            }
        }
        self.queues[0].kick();
        Ok(())
    }

    /// Whether there is work for the thread before it has slept.
    fn look(&mut self) -> bool {
        let (queues, disk) = (&self.queues, &mut self.means.disk);
        self.means.spin.look(|| queues.iter().any(VirtQueue::has_available) || disk.has_completed())
    }

    /// Asks for notifications of all queues; true if there is work already.
    fn rearm(&mut self) -> bool {
        self.queues.iter_mut().fold(false, |more, queue| queue.rearm() | more)
    }

    /// Takes chains while the disk has room and the rate limit allows: a part of each queue, in turns.
    fn accept(&mut self) -> Result<Stop, Fault> {
        self.now = Instant::now();
        let mut stop = Stop::Empty;
        for step in 0..self.queues.len() {
            let queue = (self.turn + step) % self.queues.len();
            match self.accept_from(queue)? {
                Stop::Empty => {}
                Stop::Part => stop = Stop::Part,
                Stop::Full => {
                    self.turn = queue;
                    return Ok(Stop::Full);
                }
            }
        }
        Ok(stop)
    }

    fn accept_from(&mut self, queue: usize) -> Result<Stop, Fault> {
        for _ in 0..self.part {
            if self.means.disk.room() < MAX_SEGMENTS as usize {
                return Ok(Stop::Full);
            }
            let Some((queue, answer, action)) = self.next_request(queue)? else { return Ok(Stop::Empty) };
            if !self.means.throttle.admit(action.bytes()) {
                self.held = Some((queue, answer, action));
                return Ok(Stop::Full);
            }
            self.begin(queue, answer, action);
        }
        Ok(Stop::Part)
    }

    /// The request that was held, or the next of `queue`.
    fn next_request(&mut self, queue: usize) -> Result<Option<(usize, Answer, Action)>, Fault> {
        if let Some(held) = self.held.take() {
            return Ok(Some(held));
        }
        let ring = &mut self.queues[queue];
        let Some(chain) = ring.pop()? else { return Ok(None) };
        let head = chain.head;
        match request::parse(ring.memory(), chain, &self.means.limits) {
            Ok((answer, action)) => Ok(Some((queue, answer, action))),
            Err(what) => Err(ring.bad_chain(head, what).into()),
        }
    }

    fn begin(&mut self, queue: usize, answer: Answer, action: Action) {
        let durable = self.means.limits.write_through;
        match action {
            Action::Read { offset_bytes, into } => {
                let (buffers, bytes) = (self.buffers(queue, &into), into.bytes());
                let token = self.take_off(queue, answer, Kind::Read, bytes, into, 1);
                self.submit(token, Operation::Read, offset_bytes, 0, buffers);
            }
            Action::Write { offset_bytes, from } => {
                let buffers = self.buffers(queue, &from);
                let token = self.take_off(queue, answer, Kind::Write, from.bytes(), Buffers::default(), 1);
                self.submit(token, Operation::Write { durable }, offset_bytes, 0, buffers);
            }
            Action::Flush => {
                let token = self.take_off(queue, answer, Kind::Flush, 0, Buffers::default(), 1);
                self.submit(token, Operation::Flush, 0, 0, Vec::new());
            }
            Action::Ranges(segments) => {
                let count = segments.len() as u32;
                let token = self.take_off(queue, answer, Kind::Discard, 0, Buffers::default(), count);
                for Segment { operation, offset_bytes, length_bytes } in segments {
                    self.submit(token, operation, offset_bytes, length_bytes, Vec::new());
                }
            }
            Action::Identify { into } => {
                let written = into.write_at(self.queues[queue].memory(), 0, &self.means.limits.serial);
                self.reply(queue, &answer, Status::Ok, written as u64);
            }
            Action::Refuse(status) => {
                self.means.metrics.refused();
                self.reply(queue, &answer, status, 0);
            }
        }
    }

    fn buffers(&self, queue: usize, data: &Buffers) -> Vec<Buffer> {
        dma::disk_buffers(self.queues[queue].memory(), data)
    }

    /// Whether the disk has finished with every chain.
    fn is_landed(&self) -> bool {
        self.free.len() == self.flights.len()
    }

    /// Finds a place for a chain under way; its number is the disk requests' token.
    fn take_off(&mut self, queue: usize, answer: Answer, kind: Kind, bytes: u64, into: Buffers, left: u32) -> usize {
        self.means.metrics.begin();
        let flight = Some(Flight { queue, answer, kind, bytes, into, left, status: Status::Ok, began: self.now });
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
        // SAFETY: the buffers lie in guest memory, which `self.queues` keep mapped; `finish` waits for all requests before
        // the handler, and with it the queues, can go away.
        unsafe { self.means.disk.submit(request) };
    }

    /// Answers what the disk has finished; true if there was any.
    fn answer_completions(&mut self) -> bool {
        let Some(first) = self.means.disk.completed() else { return false };
        self.now = Instant::now();
        self.land(first);
        while let Some(completion) = self.means.disk.completed() {
            self.land(completion);
        }
        true
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
        let Flight { queue, answer, kind, bytes, into, status, began, .. } = flight;
        // Also after an error: part of the data may have arrived.
        dma::mark_dirty(self.queues[queue].memory(), &into);
        let ok = status == Status::Ok;
        self.means.metrics.end(kind, bytes, ok, self.now - began);
        self.reply(queue, &answer, status, if ok { into.bytes() } else { 0 });
    }

    fn reply(&mut self, queue: usize, answer: &Answer, status: Status, written: u64) {
        let queue = &mut self.queues[queue];
        answer.write(queue.memory(), status);
        // Chains are shorter than 4 GiB.
        queue.put(answer.head, u32::try_from(written + 1).unwrap_or(u32::MAX));
    }

    /// Waits for what is in flight and answers it.
    fn land_all(&mut self) {
        self.means.disk.drain();
        self.answer_completions();
        self.queues.iter_mut().for_each(VirtQueue::signal);
    }
}

impl Handler for BlockHandler {
    const THREAD: confine::Kind = confine::Kind::Block;

    fn start(&mut self, poller: &Poller) -> Result<(), Fault> {
        // By edges: each signal is told once, so that no counter has to be read. `pump` looks at everything each time.
        for (token, queue) in (KICKED..).zip(&self.queues) {
            poller.add(queue.kick_fd(), token, Ready::IN | Ready::ET)?;
        }
        poller.add(self.means.disk.event(), COMPLETED, Ready::IN | Ready::ET)?;
        poller.add(self.means.throttle.timer(), THROTTLED, Ready::IN | Ready::ET)?;
        self.pump()
    }

    fn handle(&mut self, _token: u64, _ready: Ready, _poller: &Poller) -> Result<(), Fault> {
        self.pump()
    }

    fn is_idle(&self) -> bool {
        self.is_landed() && self.held.is_none()
    }

    fn quiesce(&mut self) -> Result<(), Fault> {
        self.land_all();
        Ok(())
    }

    /// What waited for room on the disk does not hear of the completions that were answered before the pause.
    fn resume(&mut self) -> Result<(), Fault> {
        self.pump()
    }

    fn finish(&mut self) {
        // What was carried out is answered: the driver has not yet been told that the device is reset.
        self.land_all();
    }
}

impl Drop for BlockHandler {
    fn drop(&mut self) {
        // Also where the thread panicked: the disk must be done with guest memory before the queues let go of it.
        self.means.disk.drain();
    }
}

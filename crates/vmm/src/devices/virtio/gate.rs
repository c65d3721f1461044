//! Makes all devices of a machine quiet while it is paused.
//!
//! Promise: between [`Gate::close`] and [`Gate::open`], no device thread touches guest memory and nothing is in flight to
//! or from it. Requests wait in their rings, and what arrives from outside waits there.
//!
//! ```text
//!  control thread: close ─ closed, wake each thread ──> waits until all are quiet        open ──> wake each
//!  device thread:  wakes ─> Handler::quiesce ─> quiet ─> sleeps until woken or stopped ─────────> goes on
//! ```
//! The vCPUs must have stopped before, since only they can start or reset devices.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use super::lock;
use super::worker::Wake;

/// The gate of one machine's devices; open at first.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    threads: Vec<Thread>,
    next_id: u64,
}

#[derive(Debug)]
struct Thread {
    id: u64,
    wake: Wake,
    quiet: bool,
}

impl Gate {
    /// Waits until every device is quiet, for `limit` at the longest; true if they all are. If not, they become so later:
    /// the gate stays closed.
    pub fn close(&self, limit: Duration) -> bool {
        let mut state = lock(&self.state);
        state.closed = true;
        state.threads.iter().for_each(|thread| thread.wake.wake());
        let busy = |state: &mut State| state.closed && state.threads.iter().any(|thread| !thread.quiet);
        let (state, _) =
            self.changed.wait_timeout_while(state, limit, busy).unwrap_or_else(std::sync::PoisonError::into_inner);
        state.threads.iter().all(|thread| thread.quiet)
    }

    /// Closes the gate without waiting: threads that begin from now on wait before they do anything.
    pub fn hold(&self) {
        lock(&self.state).closed = true;
    }

    /// Lets the devices go on.
    pub fn open(&self) {
        let mut state = lock(&self.state);
        state.closed = false;
        state.threads.iter().for_each(|thread| thread.wake.wake());
        self.changed.notify_all();
    }

    /// A thread begins to serve a device.
    pub(super) fn enter(self: &Arc<Self>) -> io::Result<Pass> {
        let wake = Wake::new()?;
        let mut state = lock(&self.state);
        let id = state.next_id;
        state.next_id += 1;
        if state.closed {
            wake.wake();
        }
        state.threads.push(Thread { id, wake: wake.clone(), quiet: false });
        Ok(Pass { gate: self.clone(), wake, id })
    }

    /// Notes whether a thread is quiet; gives whether the gate is closed.
    fn note(&self, id: u64, quiet: bool) -> bool {
        let mut state = lock(&self.state);
        let closed = state.closed;
        if let Some(thread) = state.threads.iter_mut().find(|thread| thread.id == id) {
            thread.quiet = quiet && closed;
        }
        self.changed.notify_all();
        closed
    }
}

/// A device thread's place at the gate; given up when dropped.
#[derive(Debug)]
pub(super) struct Pass {
    gate: Arc<Gate>,
    wake: Wake,
    id: u64,
}

impl Pass {
    /// Readable when the thread must look at the gate.
    pub(super) fn wake(&self) -> &Wake {
        &self.wake
    }

    /// Stays quiet while the gate is closed, or until `stop` is readable; false in the latter case.
    pub(super) fn wait(&self, stop: BorrowedFd<'_>) -> bool {
        self.wake.clear();
        let mut goes_on = true;
        while self.gate.note(self.id, true) {
            let mut waiting = [PollFd::new(&self.wake, PollFlags::IN), PollFd::new(&stop, PollFlags::IN)];
            let stopped = poll(&mut waiting, None).is_ok() && !waiting[1].revents().is_empty();
            self.wake.clear();
            if stopped {
                goes_on = false;
                break;
            }
        }
        self.gate.note(self.id, false);
        goes_on
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        lock(&self.gate.state).threads.retain(|thread| thread.id != self.id);
        self.gate.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::devices::virtio::Interrupt;
    use crate::devices::virtio::worker::{Fault, Handler, Poller, Ready, Worker};

    const LONG: Duration = Duration::from_secs(20);

    struct Line(Arc<Gate>);

    impl Interrupt for Line {
        fn queue_used(&self, _: u16) {}
        fn config_changed(&self) {}
        fn needs_reset(&self) {}
        fn gate(&self) -> Option<Arc<Gate>> {
            Some(self.0.clone())
        }
    }

    /// Counts its events and how often it was made quiet; fails at the event `fail_at`.
    struct Counter {
        kick: Wake,
        events: Arc<AtomicU32>,
        quieted: Arc<AtomicU32>,
        fails: bool,
    }

    impl Handler for Counter {
        fn start(&mut self, poller: &Poller) -> Result<(), Fault> {
            Ok(poller.add(&self.kick, 0, Ready::IN)?)
        }

        fn handle(&mut self, _: u64, _: Ready, _: &Poller) -> Result<(), Fault> {
            self.kick.clear();
            self.events.fetch_add(1, Ordering::SeqCst);
            if self.fails { Err(io::Error::other("broken").into()) } else { Ok(()) }
        }

        fn quiesce(&mut self) -> Result<(), Fault> {
            self.quieted.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }

    struct Bench {
        gate: Arc<Gate>,
        kick: Wake,
        events: Arc<AtomicU32>,
        quieted: Arc<AtomicU32>,
        worker: Worker<Counter>,
    }

    fn bench(fails: bool) -> Bench {
        begin(Arc::default(), fails)
    }

    fn begin(gate: Arc<Gate>, fails: bool) -> Bench {
        let (kick, events, quieted) = (Wake::new().unwrap(), Arc::<AtomicU32>::default(), Arc::<AtomicU32>::default());
        let handler = Counter { kick: kick.clone(), events: events.clone(), quieted: quieted.clone(), fails };
        let worker = Worker::spawn("counter", handler, Arc::new(Line(gate.clone()))).unwrap();
        Bench { gate, kick, events, quieted, worker }
    }

    fn wait_for(count: &AtomicU32, wanted: u32) {
        let start = std::time::Instant::now();
        while count.load(Ordering::SeqCst) != wanted {
            assert!(start.elapsed() < LONG, "the device did not go on");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn devices_do_nothing_behind_a_closed_gate_and_go_on_when_it_opens() {
        let bench = bench(false);
        bench.kick.wake();
        wait_for(&bench.events, 1);
        assert!(bench.gate.close(LONG));
        bench.kick.wake();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!((bench.events.load(Ordering::SeqCst), bench.quieted.load(Ordering::SeqCst)), (1, 1));

        bench.gate.open();
        wait_for(&bench.events, 2);
        bench.worker.stop();
    }

    #[test]
    fn a_device_that_begins_behind_a_closed_gate_waits_there() {
        let gate = Arc::new(Gate::default());
        gate.hold();
        let bench = begin(gate, false);
        bench.kick.wake();
        assert!(bench.gate.close(LONG));
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(bench.events.load(Ordering::SeqCst), 0);

        bench.gate.open();
        wait_for(&bench.events, 1);
        bench.worker.stop();
    }

    #[test]
    fn closing_again_and_again_loses_no_device() {
        let bench = bench(false);
        for count in 1..=200 {
            assert!(bench.gate.close(LONG));
            bench.gate.open();
            bench.kick.wake();
            wait_for(&bench.events, count);
        }
        bench.worker.stop();
    }

    #[test]
    fn a_quiet_device_can_be_stopped() {
        let bench = bench(false);
        assert!(bench.gate.close(LONG));
        assert!(bench.worker.stop().is_some());
        assert!(bench.gate.close(LONG));
    }

    #[test]
    fn a_device_that_has_failed_is_quiet() {
        let bench = bench(true);
        bench.kick.wake();
        wait_for(&bench.events, 1);
        assert!(bench.gate.close(LONG));
        bench.worker.stop();
    }
}

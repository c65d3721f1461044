//! Signs of life of a copy's owner: what arrives on its connections, and how these end.
//!
//! The owner's daemon sends something on each connection several times in the time that it may be silent, and says goodbye to a
//! connection that it ends. What decides is [`Detector`]; here are its clock, and whoever waits for it.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use queztl_distributed_ram::{Detector, Patience};

/// Connections are given up for silence after a time that is this many times as long as between two signs.
pub(super) const SIGNS: u32 = 8;
/// After connections broke, the owner may take this part of its silence to be heard of again.
const CONFIRM: u32 = 4;

/// Of one machine's owner.
#[derive(Debug)]
pub struct Signs {
    began: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    detector: Detector,
    /// Messages of the owner that the process here is slow to take.
    busy: u32,
    /// Connections that are there.
    open: u32,
    /// Connections that have ended.
    ends: u64,
}

impl Signs {
    /// Of an owner that may be silent for `silence`, or for up to `longest` where that is usual.
    pub(super) fn new(silence: Duration, longest: Duration) -> Signs {
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let patience = Patience {
            floor_ns: ns(silence),
            ceiling_ns: ns(longest),
            confirm_ns: ns(silence / CONFIRM),
            look_ns: ns(silence / 2),
        };
        let state = State { detector: Detector::new(patience), busy: 0, open: 0, ends: 0 };
        Signs { began: Instant::now(), state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The owner has connected, once more.
    pub(crate) fn opened(&self) {
        let now = self.now_ns();
        let mut state = self.lock();
        state.detector.opened(now);
        state.open += 1;
    }

    /// A message of the owner is passed on.
    pub(crate) fn begin_message(&self) {
        let now = self.now_ns();
        let mut state = self.lock();
        state.detector.heard(now);
        state.busy += 1;
    }

    /// It is where it was to go.
    pub(crate) fn end_message(&self) {
        let now = self.now_ns();
        let mut state = self.lock();
        state.busy = state.busy.saturating_sub(1);
        // While it was passed on, nothing was listened to.
        state.detector.passed(now);
    }

    /// A connection has ended, with a goodbye or without.
    pub(crate) fn ended(&self, with_goodbye: bool) {
        let now = self.now_ns();
        let mut state = self.lock();
        match with_goodbye {
            true => state.detector.closed(),
            false => state.detector.broke(now),
        }
        state.ends += 1;
        state.open = state.open.saturating_sub(1);
        drop(state);
        self.changed.notify_all();
    }

    /// Whether an owner is connected.
    pub(super) fn is_connected(&self) -> bool {
        self.lock().open > 0
    }

    /// Whether the owner is taken for dead.
    pub(super) fn suspect(&self) -> bool {
        let now = self.now_ns();
        let mut state = self.lock();
        state.detector.suspects(now) && state.busy == 0
    }

    /// Waits for the time, or for the end of a connection if that comes first; whether connections ended lately without the
    /// owner being heard of again, so that it should be looked at more often.
    pub(super) fn wait(&self, time: Duration) -> bool {
        let state = self.lock();
        let before = state.ends;
        let waited = self.changed.wait_timeout_while(state, time, |state| state.ends == before);
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        !timeout.timed_out() || state.detector.is_broken()
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_whose_message_is_being_passed_on_is_not_suspected() {
        let signs = Signs::new(Duration::from_millis(1), Duration::from_millis(1));
        signs.opened();
        signs.begin_message();
        let look = |signs: &Signs| {
            (0..2000).any(|_| {
                std::thread::sleep(Duration::from_micros(20));
                signs.suspect()
            })
        };
        assert!(!look(&signs));
        signs.end_message();
        signs.ended(false);
        assert!(signs.wait(Duration::ZERO), "it is looked at closely");
    }
}

//! Where a protected machine's frames wait until they may leave.
//!
//! Promises, once [`Outlet::hold`] was called:
//! - a frame leaves only when the epoch in which the guest sent it has been released; frames leave in the order in which they
//!   were sent;
//! - no more than the bound waits: what is beyond it is dropped, as a full router drops;
//! - an outlet that was [shut](Outlet::shut) never lets anything out again.
//!
//! The card's thread does all sending; others only say what may leave, and wake it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

/// Frames that wait, and what may leave.
pub(crate) struct Outlet {
    state: Mutex<State>,
    wake: OwnedFd,
}

struct State {
    rule: Rule,
    /// The epoch that frames of now belong to, and the newest that was released.
    epoch: u64,
    released: u64,
    waiting: VecDeque<(u64, Vec<u8>)>,
    bytes: usize,
    bound: usize,
    dropped: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Open,
    Held,
    Shut,
}

/// What waits at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub frames: u64,
    pub bytes: u64,
    /// Dropped since the machine began.
    pub dropped: u64,
}

impl Outlet {
    /// An outlet that is open.
    pub fn new() -> io::Result<Outlet> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let state =
            State { rule: Rule::Open, epoch: 0, released: 0, waiting: VecDeque::new(), bytes: 0, bound: 0, dropped: 0 };
        Ok(Outlet { state: Mutex::new(state), wake })
    }

    /// From now on frames wait, at most `bound` bytes of them, and belong to `epoch`.
    pub fn hold(&self, epoch: u64, bound: usize) {
        let mut state = self.lock();
        if state.rule == Rule::Open {
            state.rule = Rule::Held;
            (state.epoch, state.released, state.bound) = (epoch, 0, bound);
            // What has not got out since an earlier hold might have long since, and its epoch means nothing any more.
            state.waiting.iter_mut().for_each(|(epoch, _)| *epoch = 0);
        }
    }

    /// The machine was cut: frames of from now on belong to `epoch`. Called while the machine stands still.
    pub fn begin(&self, epoch: u64) {
        self.lock().epoch = epoch;
    }

    /// Frames of epochs up to this one may leave.
    pub fn release(&self, epoch: u64) {
        let mut state = self.lock();
        state.released = state.released.max(epoch);
        drop(state);
        self.wake();
    }

    /// All may leave, what waits first.
    pub fn open(&self) {
        let mut state = self.lock();
        if state.rule == Rule::Held {
            state.rule = Rule::Open;
        }
        drop(state);
        self.wake();
    }

    /// Nothing leaves any more, ever.
    pub fn shut(&self) {
        let mut state = self.lock();
        state.rule = Rule::Shut;
        state.dropped += state.waiting.len() as u64;
        state.waiting.clear();
        state.bytes = 0;
    }

    /// Sends a frame that the guest knows nothing of.
    pub fn announce(&self, frame: Vec<u8>) {
        let mut state = self.lock();
        let epoch = state.epoch;
        state.keep(epoch, frame);
        drop(state);
        self.wake();
    }

    pub fn waiting(&self) -> Waiting {
        let state = self.lock();
        Waiting { frames: state.waiting.len() as u64, bytes: state.bytes as u64, dropped: state.dropped }
    }

    /// Whether the outlet takes the frame; otherwise it is to be sent at once.
    pub(super) fn keeps(&self, frame: &[u8]) -> bool {
        let mut state = self.lock();
        match state.rule {
            Rule::Open if state.waiting.is_empty() => return false,
            Rule::Shut => state.dropped += 1,
            _ if state.bytes + frame.len() > state.bound => state.dropped += 1,
            // What waited before it opened goes first.
            Rule::Open | Rule::Held => {
                let epoch = state.epoch;
                state.keep(epoch, frame.to_vec());
            }
        }
        true
    }

    /// Hands what may leave to `send`, which says false if it cannot take more now.
    pub(super) fn let_out(&self, mut send: impl FnMut(&[u8]) -> bool) {
        loop {
            let mut state = self.lock();
            let allowed = match state.rule {
                Rule::Open => u64::MAX,
                Rule::Held => state.released,
                Rule::Shut => return,
            };
            // Sent under the lock: whoever shuts the outlet knows afterwards that nothing is on its way.
            let Some((_, frame)) = state.waiting.front().filter(|(epoch, _)| *epoch <= allowed) else { return };
            if !send(frame) {
                return;
            }
            let frame = state.waiting.pop_front();
            state.bytes -= frame.map_or(0, |(_, frame)| frame.len());
        }
    }

    /// Readable when somebody has changed what may leave.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    pub(super) fn clear_event(&self) {
        let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
    }

    fn wake(&self) {
        // Full means that it is readable.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn keep(&mut self, epoch: u64, frame: Vec<u8>) {
        self.bytes += frame.len();
        self.waiting.push_back((epoch, frame));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out(outlet: &Outlet) -> Vec<u8> {
        let mut seen = Vec::new();
        outlet.let_out(|frame| {
            seen.push(frame[0]);
            true
        });
        seen
    }

    fn held() -> Outlet {
        let outlet = Outlet::new().unwrap();
        outlet.hold(1, 10);
        outlet
    }

    #[test]
    fn frames_leave_in_order_when_their_epoch_is_released() {
        let outlet = held();
        assert!(outlet.keeps(&[1]) && outlet.keeps(&[2]));
        outlet.begin(2);
        assert!(outlet.keeps(&[3]));
        assert!(out(&outlet).is_empty());
        outlet.release(1);
        assert_eq!(out(&outlet), [1, 2]);
        outlet.release(2);
        assert_eq!(out(&outlet), [3]);
    }

    #[test]
    fn frames_that_an_earlier_hold_has_left_do_not_wait_for_its_epochs() {
        let outlet = held();
        outlet.begin(50);
        outlet.keeps(&[1]);
        outlet.open();
        outlet.hold(1, 10);
        outlet.keeps(&[2]);
        assert_eq!(out(&outlet), [1]);
        outlet.release(1);
        assert_eq!(out(&outlet), [2]);
    }

    #[test]
    fn what_is_beyond_the_bound_is_dropped() {
        let outlet = held();
        assert!(outlet.keeps(&[1; 8]) && outlet.keeps(&[2; 3]) && outlet.keeps(&[3; 2]));
        assert_eq!(outlet.waiting(), Waiting { frames: 2, bytes: 10, dropped: 1 });
    }

    #[test]
    fn an_opened_outlet_lets_out_what_waited_before_what_is_new() {
        let outlet = held();
        outlet.keeps(&[1]);
        outlet.open();
        assert!(outlet.keeps(&[2]));
        assert_eq!(out(&outlet), [1, 2]);
        assert!(!outlet.keeps(&[3]));
    }

    #[test]
    fn a_frame_that_finds_no_room_is_offered_again() {
        let outlet = held();
        outlet.keeps(&[1]);
        outlet.release(1);
        outlet.let_out(|_| false);
        assert_eq!(out(&outlet), [1]);
    }

    #[test]
    fn a_shut_outlet_stays_shut() {
        let outlet = held();
        outlet.keeps(&[1]);
        outlet.shut();
        outlet.open();
        outlet.hold(1, 10);
        outlet.release(9);
        assert!(outlet.keeps(&[2]));
        assert_eq!((out(&outlet), outlet.waiting().dropped), (vec![], 2));
    }
}

//! Devices in lockstep with the one vCPU of a machine that must run the same way every time.
//!
//! Promise: when [`Lockstep::settle`] returns, the device's thread has seen everything that happened before the call and
//! has nothing left to do, or there is no thread. What the guest sees of a device then depends on the guest alone, not on
//! how the host schedules threads. Only for a device with a single thread.
//!
//! ```text
//!  vCPU: queue's eventfd, then settle ─ ticket n ─> asked = n, wake     waits until served >= n
//!  device thread: seen = asked ─> nothing ready, nothing in flight ─> served = seen ─> sleeps
//! ```

use std::io;
use std::sync::{Condvar, Mutex};

use super::lock;
use super::worker::Wake;

/// What ties a device's thread to the vCPU.
#[derive(Debug)]
pub struct Lockstep {
    state: Mutex<State>,
    changed: Condvar,
    wake: Wake,
}

#[derive(Debug, Default)]
struct State {
    asked: u64,
    served: u64,
    running: bool,
}

impl Lockstep {
    pub fn new() -> io::Result<Lockstep> {
        Ok(Lockstep { state: Mutex::default(), changed: Condvar::new(), wake: Wake::new()? })
    }

    /// Waits until the device has nothing left to do.
    pub fn settle(&self) {
        let mut state = lock(&self.state);
        if !state.running {
            return;
        }
        state.asked += 1;
        let ticket = state.asked;
        self.wake.wake();
        let waiting = |state: &mut State| state.running && state.served < ticket;
        drop(self.changed.wait_while(state, waiting));
    }

    /// What the device's thread must wait for besides its own events.
    pub(super) fn wake(&self) -> &Wake {
        &self.wake
    }

    /// The latest ticket: what came before it is to be seen by whoever looks for events now.
    pub(super) fn asked(&self) -> u64 {
        lock(&self.state).asked
    }

    /// Nothing was left to do for tickets up to `ticket`.
    pub(super) fn served(&self, ticket: u64) {
        lock(&self.state).served = ticket;
        self.changed.notify_all();
    }

    /// A thread begins or ends to serve.
    pub(super) fn set_running(&self, running: bool) {
        lock(&self.state).running = running;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::devices::virtio::Interrupt;
    use crate::devices::virtio::worker::{Fault, Handler, Poller, Ready, Worker};

    struct Line(Arc<Lockstep>);

    impl Interrupt for Line {
        fn queue_used(&self, _: u16) {}
        fn config_changed(&self) {}
        fn needs_reset(&self) {}
        fn lockstep(&self) -> Option<Arc<Lockstep>> {
            Some(self.0.clone())
        }
    }

    /// Needs two events for a piece of work: the second is its own.
    struct Slow {
        kick: Wake,
        again: Wake,
        left: u32,
        done: Arc<AtomicU32>,
    }

    impl Handler for Slow {
        fn start(&mut self, poller: &Poller) -> Result<(), Fault> {
            poller.add(&self.kick, 0, Ready::IN)?;
            Ok(poller.add(&self.again, 1, Ready::IN)?)
        }

        fn handle(&mut self, token: u64, _: Ready, _: &Poller) -> Result<(), Fault> {
            if token == 0 {
                self.kick.clear();
                self.left += 1;
                let again = self.again.clone();
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(5));
                    again.wake();
                });
            } else {
                self.again.clear();
                self.done.fetch_add(std::mem::take(&mut self.left), Ordering::SeqCst);
            }
            Ok(())
        }

        fn is_idle(&self) -> bool {
            self.left == 0
        }
    }

    #[test]
    fn settled_means_done_and_a_stopped_device_is_settled() {
        let lockstep = Arc::new(Lockstep::new().unwrap());
        let (kick, done) = (Wake::new().unwrap(), Arc::new(AtomicU32::new(0)));
        let handler = Slow { kick: kick.clone(), again: Wake::new().unwrap(), left: 0, done: done.clone() };
        let worker = Worker::spawn("slow", handler, Arc::new(Line(lockstep.clone()))).unwrap();
        for count in 1..=5 {
            kick.wake();
            lockstep.settle();
            assert_eq!(done.load(Ordering::SeqCst), count);
        }
        worker.stop();
        lockstep.settle();
    }
}

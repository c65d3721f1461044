//! Looking a while for more work before a device's thread sleeps.
//!
//! To sleep and to be woken costs tens of microseconds between two processors, more where the host is a virtual machine
//! itself, and a guest that answers an interrupt at once sends its next requests within that time. So a thread that has
//! just been busy goes on looking, but only as long as looking has paid lately: a sleep that turned out short lengthens the
//! look, one that turned out long shortens it, down to none for a device that is used now and then.

use std::time::{Duration, Instant};

/// The longest look. A thread that sleeps longer than that is not missed.
const LONGEST: Duration = Duration::from_micros(80);
/// The first look after none.
const SHORTEST: Duration = Duration::from_micros(10);

/// How long a thread looks before it sleeps.
#[derive(Debug)]
pub(super) struct Spin {
    /// Zero at first, and always where looking takes the processor from the guest.
    budget: Duration,
    allowed: bool,
    asleep_since: Option<Instant>,
}

impl Spin {
    /// `allowed` says whether there is a processor to spend.
    pub fn new(allowed: bool) -> Spin {
        Spin { budget: Duration::ZERO, allowed, asleep_since: None }
    }

    /// Looks for work; true if there is some. If not, the thread is about to sleep.
    pub fn look(&mut self, mut work: impl FnMut() -> bool) -> bool {
        if !self.allowed {
            return false;
        }
        let start = Instant::now();
        let mut now = start;
        while now - start < self.budget {
            for _ in 0..8 {
                if work() {
                    return true;
                }
                std::hint::spin_loop();
            }
            now = Instant::now();
        }
        self.asleep_since = Some(now);
        false
    }

    /// The thread has work again.
    pub fn woken(&mut self) {
        let Some(since) = self.asleep_since.take() else { return };
        self.learn(since.elapsed());
    }

    fn learn(&mut self, slept: Duration) {
        self.budget = match slept <= LONGEST {
            true => (self.budget * 2).clamp(SHORTEST, LONGEST),
            false if self.budget <= SHORTEST => Duration::ZERO,
            false => self.budget / 2,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_sleeps_lengthen_the_look_and_long_ones_end_it() {
        let mut spin = Spin::new(true);
        assert!(!spin.look(|| panic!("no look without a reason")));
        for _ in 0..10 {
            spin.learn(Duration::from_micros(1));
        }
        assert_eq!(spin.budget, LONGEST);
        assert!(spin.look(|| true));
        for _ in 0..10 {
            spin.learn(Duration::from_secs(1));
        }
        assert_eq!(spin.budget, Duration::ZERO);
    }

    #[test]
    fn a_look_ends_without_work() {
        let mut spin = Spin::new(true);
        spin.learn(Duration::ZERO);
        let mut looks = 0;
        assert!(!spin.look(|| {
            looks += 1;
            false
        }));
        assert!(looks > 0);
    }

    #[test]
    fn where_it_is_not_allowed_nobody_looks() {
        let mut spin = Spin::new(false);
        spin.learn(Duration::ZERO);
        assert!(!spin.look(|| panic!("a look")));
    }
}

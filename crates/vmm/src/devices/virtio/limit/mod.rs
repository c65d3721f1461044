//! Rate limits of I/O devices: so many bytes and so many requests a second, each with a burst.
//!
//! Promises:
//! - a device without a limit pays one relaxed load a request;
//! - a throttled device sleeps: a timer wakes it when its tokens are back, or when the limit changes;
//! - every request passes in the end, however large ([`TokenBucket`] says how).
//!
//! ```text
//!  device thread: Throttle::admit(bytes) ── tokens? ──> goes on
//!                                      └── none: arms its timer, leaves the request ──> timer's event: again
//!  control:       Limiter::set ──> new buckets, fires the timers of all who wait
//! ```
//! One [`Limiter`] is shared by the queues of a device; each queue's thread has a [`Throttle`].

mod bucket;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use serde::{Deserialize, Serialize};

use super::lock;
pub use bucket::TokenBucket;

/// How fast, and how much at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Bytes or requests a second, at least 1.
    pub per_second: u64,
    /// Bytes or requests at once, at least 1.
    pub burst: u64,
}

impl Rate {
    /// `per_second`, a tenth of a second's worth of it at once.
    pub fn per_second(per_second: u64) -> Rate {
        Rate { per_second, burst: (per_second / 10).max(1) }
    }
}

/// A device's limit; none by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Bytes of data.
    #[serde(default)]
    pub bytes: Option<Rate>,
    /// Requests, or frames.
    #[serde(default)]
    pub requests: Option<Rate>,
}

impl RateLimit {
    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == RateLimit::default()
    }
}

/// The limit of one device, or of one direction of it.
#[derive(Debug)]
pub struct Limiter {
    limited: AtomicBool,
    state: Mutex<State>,
    waits: AtomicU64,
    start: Instant,
}

#[derive(Debug)]
struct State {
    limit: RateLimit,
    bytes: Option<TokenBucket>,
    requests: Option<TokenBucket>,
    /// The timers of those that this limit may keep waiting.
    timers: Vec<Weak<OwnedFd>>,
}

impl Limiter {
    pub fn new(limit: RateLimit) -> Arc<Limiter> {
        let state = State { limit: RateLimit::default(), bytes: None, requests: None, timers: Vec::new() };
        let limiter = Limiter {
            limited: AtomicBool::new(false),
            state: Mutex::new(state),
            waits: AtomicU64::new(0),
            start: Instant::now(),
        };
        limiter.set(limit);
        Arc::new(limiter)
    }

    /// The limit in force.
    pub fn limit(&self) -> RateLimit {
        lock(&self.state).limit
    }

    /// How often a request had to wait.
    pub fn waits(&self) -> u64 {
        self.waits.load(Ordering::Relaxed)
    }

    /// Puts another limit in force, with full buckets; who waits looks again at once.
    pub fn set(&self, limit: RateLimit) {
        let now = self.now_ns();
        let mut state = lock(&self.state);
        state.limit = limit;
        state.bytes = limit.bytes.map(|rate| TokenBucket::new(rate, now));
        state.requests = limit.requests.map(|rate| TokenBucket::new(rate, now));
        self.limited.store(!limit.is_none(), Ordering::Release);
        state.timers.retain(|timer| timer.strong_count() > 0);
        state.timers.iter().filter_map(Weak::upgrade).for_each(|timer| arm(&timer, 1));
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Takes one request of `bytes`, or arms `timer` for the moment when it can be taken.
    fn admit(&self, bytes: u64, timer: &Arc<OwnedFd>) -> bool {
        if !self.limited.load(Ordering::Acquire) {
            return true;
        }
        let now = self.now_ns();
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let wait = |bucket: &mut Option<TokenBucket>, cost| bucket.as_mut().map_or(0, |b| b.wait_ns(cost, now));
        let wait_ns = wait(&mut state.bytes, bytes).max(wait(&mut state.requests, 1));
        if wait_ns > 0 {
            // Under the lock, so that a new limit's wake-up comes after this one and not before.
            arm(timer, wait_ns);
            self.waits.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        for (bucket, cost) in [(&mut state.bytes, bytes), (&mut state.requests, 1)] {
            if let Some(bucket) = bucket {
                bucket.pay(cost, now);
            }
        }
        true
    }
}

/// Sets a timer to go off once, `ns` nanoseconds (at least one) from now.
fn arm(timer: &OwnedFd, ns: u64) {
    let ns = ns.clamp(1, i64::MAX as u64);
    let value = Timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 };
    let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
    // It cannot fail: the descriptor is a timer's and the time is valid.
    if let Err(error) = timerfd_settime(timer, TimerfdTimerFlags::empty(), &once) {
        tracing::warn!(%error, "the timer of a rate limit cannot be set");
    }
}

/// One thread's side of a [`Limiter`].
#[derive(Debug)]
pub struct Throttle {
    limiter: Arc<Limiter>,
    timer: Arc<OwnedFd>,
    waiting: bool,
}

impl Throttle {
    /// Fails if the host is out of file descriptors.
    pub fn new(limiter: Arc<Limiter>) -> io::Result<Throttle> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = Arc::new(timerfd_create(TimerfdClockId::Monotonic, flags)?);
        lock(&limiter.state).timers.push(Arc::downgrade(&timer));
        Ok(Throttle { limiter, timer, waiting: false })
    }

    /// Whether one request of `bytes` may go on now. If not, [`Throttle::timer`] becomes readable when it is time to ask
    /// again.
    pub fn admit(&mut self, bytes: u64) -> bool {
        self.waiting = !self.limiter.admit(bytes, &self.timer);
        !self.waiting
    }

    /// Whether the last request was told to wait.
    pub fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Readable when a request that was refused may ask again.
    pub fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// Forgets that the timer has gone off.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.timer, &mut [0u8; 8]);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn is_ready(throttle: &Throttle, limit: Duration) -> bool {
        let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) };
        let timer = throttle.timer();
        poll(&mut [PollFd::new(&timer, PollFlags::IN)], Some(&limit)).unwrap() > 0
    }

    fn bytes(per_second: u64, burst: u64) -> RateLimit {
        RateLimit { bytes: Some(Rate { per_second, burst }), requests: None }
    }

    #[test]
    fn without_a_limit_everything_passes() {
        let mut throttle = Throttle::new(Limiter::new(RateLimit::default())).unwrap();
        assert!((0..1000).all(|_| throttle.admit(u64::MAX)));
        assert_eq!(throttle.limiter.waits(), 0);
    }

    #[test]
    fn a_refused_request_is_told_when_to_ask_again() {
        let mut throttle = Throttle::new(Limiter::new(bytes(1000, 10))).unwrap();
        assert!(throttle.admit(20) && !throttle.admit(1) && throttle.is_waiting());
        while !throttle.admit(1) {
            assert!(is_ready(&throttle, Duration::from_secs(20)));
            throttle.clear();
        }
        assert!(!throttle.is_waiting() && throttle.limiter.waits() > 0);
    }

    #[test]
    fn a_request_must_be_admitted_by_both_buckets_and_pays_neither_if_not() {
        let hour = Rate { per_second: 1, burst: 3600 };
        let both = RateLimit { bytes: Some(hour), requests: Some(Rate { per_second: 1, burst: 2 }) };
        let mut throttle = Throttle::new(Limiter::new(both)).unwrap();
        assert!(throttle.admit(1) && throttle.admit(1) && !throttle.admit(3000));
        throttle.limiter.set(RateLimit { requests: None, ..both });
        assert!(throttle.admit(3599));
    }

    #[test]
    fn a_new_limit_wakes_those_that_wait() {
        let limiter = Limiter::new(bytes(1, 1));
        let mut throttles = [Throttle::new(limiter.clone()).unwrap(), Throttle::new(limiter.clone()).unwrap()];
        assert!(throttles[0].admit(1 << 40));
        assert!(throttles.iter_mut().all(|throttle| !throttle.admit(1)));
        assert!(!is_ready(&throttles[0], Duration::ZERO));
        limiter.set(RateLimit::default());
        assert!(throttles.iter().all(|throttle| is_ready(throttle, Duration::from_secs(20))));
        assert!(throttles.iter_mut().all(|throttle| throttle.admit(1)));
    }
}

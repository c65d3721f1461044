//! Deadlines: every timer of the machine in one queue, fired when the guest's clock reaches them.
//!
//! In real time a thread of its own sleeps until the earliest deadline; it ends when the [`Timers`] is dropped. When
//! instructions are counted there is no thread: the vCPU that moves the clock asks for [`Timers::next_deadline`] and
//! calls [`Timers::run_expired`].
//!
//! Callbacks run without the queue's lock, one after the other. A callback may run once more just after its timer was
//! disarmed or armed anew (it was already on its way): it must look at its device's own state under the device's lock
//! and do nothing when it is early.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::Clock;
use crate::confine;

type Callback = Arc<dyn Fn() + Send + Sync>;

/// The longest the thread sleeps at a time, so that a step of the clock cannot keep it asleep for ever.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);

/// The deadline queue of one machine.
pub struct Timers {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    clock: Arc<Clock>,
    queue: Mutex<Queue>,
    /// Signalled when the thread must look again: an earlier deadline, or the end.
    changed: Condvar,
    /// The earliest deadline, `u64::MAX` when there is none; written under the queue's lock.
    earliest: AtomicU64,
}

#[derive(Default)]
struct Queue {
    deadlines: BTreeSet<(u64, usize)>,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// What the thread sleeps for; arming something later than this need not wake it.
    sleeping_until: Option<u64>,
    stopped: bool,
}

struct Slot {
    callback: Callback,
    deadline: Option<u64>,
}

/// One timer; disarmed and removed when dropped.
pub struct Timer {
    shared: Arc<Shared>,
    slot: usize,
}

impl Timers {
    /// A queue that follows `clock`.
    ///
    /// # Panics
    /// When the host cannot start a thread.
    pub fn new(clock: Arc<Clock>) -> Arc<Timers> {
        let counted = clock.is_instruction_counted();
        let shared = Arc::new(Shared {
            clock,
            queue: Mutex::default(),
            changed: Condvar::new(),
            earliest: AtomicU64::new(u64::MAX),
        });
        let thread = (!counted).then(|| {
            let shared = shared.clone();
            let builder = std::thread::Builder::new().name("timers".into());
            builder.spawn(move || shared.run()).expect("the host starts a thread")
        });
        Arc::new(Timers { shared, thread })
    }

    /// A new timer, not armed. `callback` must not own the value that owns the timer, or neither is ever freed: give it
    /// a `Weak`.
    pub fn create(&self, callback: impl Fn() + Send + Sync + 'static) -> Timer {
        let mut queue = self.shared.lock();
        let slot = Slot { callback: Arc::new(callback), deadline: None };
        let index = match queue.free.pop() {
            Some(index) => {
                queue.slots[index] = Some(slot);
                index
            }
            None => {
                queue.slots.push(Some(slot));
                queue.slots.len() - 1
            }
        };
        Timer { shared: self.shared.clone(), slot: index }
    }

    /// The clock all deadlines refer to.
    pub fn clock(&self) -> &Arc<Clock> {
        &self.shared.clock
    }

    /// The earliest deadline in nanoseconds of the guest's clock. One atomic load.
    pub fn next_deadline(&self) -> Option<u64> {
        let earliest = self.shared.earliest.load(Ordering::Acquire);
        (earliest != u64::MAX).then_some(earliest)
    }

    /// Fires every timer whose deadline is at or before `now_ns`, earliest first.
    pub fn run_expired(&self, now_ns: u64) {
        while let Some(callback) = self.shared.take_expired(now_ns) {
            callback();
        }
    }
}

impl Drop for Timers {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A callback may have held the last reference: a thread cannot wait for itself.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, queue: &Queue) {
        let earliest = queue.deadlines.first().map_or(u64::MAX, |(deadline, _)| *deadline);
        self.earliest.store(earliest, Ordering::Release);
    }

    fn set(&self, slot: usize, deadline: Option<u64>) {
        let mut queue = self.lock();
        queue.set(slot, deadline);
        self.publish(&queue);
        let wake = deadline.is_some_and(|at| queue.sleeping_until.is_some_and(|until| at < until));
        drop(queue);
        if wake {
            self.changed.notify_one();
        }
    }

    fn take_expired(&self, now_ns: u64) -> Option<Callback> {
        let mut queue = self.lock();
        let (deadline, slot) = queue.deadlines.first().copied().filter(|(deadline, _)| *deadline <= now_ns)?;
        queue.deadlines.remove(&(deadline, slot));
        let callback = queue.slots[slot].as_mut().map(|slot| {
            slot.deadline = None;
            slot.callback.clone()
        });
        self.publish(&queue);
        callback
    }

    fn run(&self) {
        fine_timer_slack();
        confine::enter(confine::Kind::Timers);
        loop {
            while let Some(callback) = self.take_expired(self.clock.now_ns()) {
                callback();
            }
            let mut queue = self.lock();
            if queue.stopped {
                return;
            }
            let first = queue.deadlines.first().map_or(u64::MAX, |(deadline, _)| *deadline);
            let left = first.saturating_sub(self.clock.now_ns());
            if left == 0 {
                continue;
            }
            queue.sleeping_until = Some(first);
            let sleep = Duration::from_nanos(left).min(LONGEST_SLEEP);
            let waited = self.changed.wait_timeout(queue, sleep);
            let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
            queue.sleeping_until = None;
        }
    }
}

impl Queue {
    fn set(&mut self, index: usize, deadline: Option<u64>) {
        let Some(slot) = self.slots[index].as_mut() else { return };
        if let Some(old) = std::mem::replace(&mut slot.deadline, deadline) {
            self.deadlines.remove(&(old, index));
        }
        if let Some(new) = deadline {
            self.deadlines.insert((new, index));
        }
    }
}

impl Timer {
    /// Fires once when the guest's clock reaches `deadline_ns` (at once if it has), instead of any earlier deadline.
    pub fn arm_ns(&self, deadline_ns: u64) {
        // `u64::MAX` stands for "none" and is 584 years away.
        self.shared.set(self.slot, (deadline_ns != u64::MAX).then_some(deadline_ns));
    }

    /// Takes the deadline back.
    pub fn disarm(&self) {
        self.shared.set(self.slot, None);
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.set(self.slot, None);
        let freed = queue.slots[self.slot].take();
        queue.free.push(self.slot);
        self.shared.publish(&queue);
        drop(queue);
        // The callback may own things that have timers themselves: freed without the lock.
        drop(freed);
    }
}

/// Lets this thread's sleeps end on time instead of up to 50 µs later.
fn fine_timer_slack() {
    // SAFETY: PR_SET_TIMERSLACK takes one number and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong, 0, 0, 0) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Instant;

    #[test]
    fn real_time_timers_fire_in_order_and_never_early() {
        let clock = Arc::new(Clock::real_time());
        let timers = Timers::new(clock.clone());
        let (tx, rx) = mpsc::channel();
        let now = clock.now_ns();
        let armed: Vec<Timer> = [(30_000_000, 'b'), (10_000_000, 'a')]
            .map(|(delay, name)| {
                let (tx, clock) = (tx.clone(), clock.clone());
                let timer = timers.create(move || tx.send((name, clock.now_ns())).unwrap());
                timer.arm_ns(now + delay);
                timer
            })
            .into();
        let first = rx.recv_timeout(Duration::from_secs(5)).unwrap();
        let second = rx.recv_timeout(Duration::from_secs(5)).unwrap();
        assert_eq!((first.0, second.0), ('a', 'b'));
        assert!(first.1 >= now + 10_000_000 && second.1 >= now + 30_000_000);
        drop(armed);
    }

    #[test]
    fn an_earlier_deadline_wakes_the_sleeping_thread() {
        let clock = Arc::new(Clock::real_time());
        let timers = Timers::new(clock.clone());
        let (tx, rx) = mpsc::channel();
        let late = timers.create(|| ());
        late.arm_ns(clock.now_ns() + 60_000_000_000);
        std::thread::sleep(Duration::from_millis(20));
        let early = timers.create(move || tx.send(()).unwrap());
        early.arm_ns(clock.now_ns() + 5_000_000);
        rx.recv_timeout(Duration::from_secs(5)).unwrap();
    }

    #[test]
    fn dropping_the_queue_ends_its_thread_at_once() {
        let timers = Timers::new(Arc::new(Clock::real_time()));
        let timer = timers.create(|| ());
        timer.arm_ns(timers.clock().now_ns() + 60_000_000_000);
        std::thread::sleep(Duration::from_millis(10));
        let start = Instant::now();
        drop(timers);
        assert!(start.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn counted_timers_fire_only_when_asked_and_can_rearm_themselves() {
        let clock = Arc::new(Clock::instruction_counted(1));
        let timers = Timers::new(clock);
        let count = Arc::new(AtomicU64::new(0));
        let own: Arc<std::sync::OnceLock<Timer>> = Arc::default();
        let (c, o) = (count.clone(), Arc::downgrade(&own));
        let timer = timers.create(move || {
            let fired = c.fetch_add(1, Ordering::Relaxed) + 1;
            if let Some(timer) = o.upgrade().as_ref().and_then(|o| o.get()) {
                timer.arm_ns(100 * (fired + 1));
            }
        });
        timer.arm_ns(100);
        own.set(timer).unwrap_or_else(|_| unreachable!());

        timers.run_expired(99);
        assert_eq!((count.load(Ordering::Relaxed), timers.next_deadline()), (0, Some(100)));
        timers.run_expired(350);
        assert_eq!((count.load(Ordering::Relaxed), timers.next_deadline()), (3, Some(400)));
        own.get().unwrap().disarm();
        assert_eq!(timers.next_deadline(), None);
    }
}

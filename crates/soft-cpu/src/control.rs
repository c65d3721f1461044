//! The handle by which other threads reach a running vCPU.
//!
//! One word, [`Control::attention`], is all a vCPU looks at between blocks of instructions; everything that wants it to
//! do something else sets a bit there. A halted vCPU sleeps on the same word.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// An interrupt controller may have something to take.
pub(crate) const EVENT: u32 = 1;
/// `run` must return.
pub(crate) const STOP: u32 = 2;
/// Another vCPU has turned a page into code: fast write paths must be dropped.
pub(crate) const DROP_WRITES: u32 = 4;
/// RAM has gone away: all paths to it must be dropped.
pub(crate) const DROP_ALL: u32 = 8;
/// Both of them.
pub(crate) const DROP: u32 = DROP_WRITES | DROP_ALL;

/// One vCPU, as other threads see it. Alone in its cache lines: its vCPU reads it between any two blocks.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Control {
    attention: AtomicU32,
    /// The vCPU thread may be using host pointers into guest RAM.
    in_guest: AtomicBool,
    parked: AtomicBool,
    parked_ns: AtomicU64,
    /// Another vCPU of the guest has asked that this one leave HLT, now or when it gets there.
    kicked: AtomicBool,
    /// The page that the vCPU is turning into code, its number plus one; 0 for none.
    watching: AtomicU64,
}

impl Control {
    /// Makes the vCPU ask its platform for events, waking it if it is halted.
    pub fn notify(&self) {
        self.raise(EVENT);
    }

    /// Makes `run` return [`crate::Exit::Stopped`] soon, or at once when it is called next.
    pub fn stop(&self) {
        self.raise(STOP);
    }

    /// Makes the vCPU leave HLT, now or when it executes the next one.
    pub(crate) fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        self.raise(EVENT);
    }

    pub(crate) fn is_kicked(&self) -> bool {
        self.kicked.load(Ordering::SeqCst)
    }

    pub(crate) fn take_kick(&self) -> bool {
        self.is_kicked() && self.kicked.swap(false, Ordering::SeqCst)
    }

    pub(crate) fn raise(&self, bits: u32) {
        self.attention.fetch_or(bits, Ordering::SeqCst);
        if self.parked.load(Ordering::SeqCst) {
            self.futex(libc::FUTEX_WAKE, 1);
        }
    }

    /// Sets bits that a halted vCPU need not wake up for: it looks at them before it touches RAM again.
    pub(crate) fn raise_quietly(&self, bits: u32) {
        self.attention.fetch_or(bits, Ordering::SeqCst);
    }

    /// Where [`Control::attention`] lives, for generated code. The pointer is valid as long as `self`.
    pub(crate) fn attention_word(&self) -> *const AtomicU32 {
        &raw const self.attention
    }

    #[inline(always)]
    pub(crate) fn attention(&self) -> u32 {
        self.attention.load(Ordering::Relaxed)
    }

    pub(crate) fn clear(&self, bits: u32) {
        self.attention.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Sleeps until some attention bit is set, or `limit` has passed; gives whether a bit is set.
    pub(crate) fn park(&self, limit: Option<Duration>) -> bool {
        let since = Instant::now();
        loop {
            if self.attention.load(Ordering::SeqCst) != 0 {
                break;
            }
            match limit.map(|limit| limit.saturating_sub(since.elapsed())) {
                None => self.wait(None),
                Some(Duration::ZERO) => break,
                rest => self.wait(rest),
            }
        }
        let slept_ns = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.parked_ns.fetch_add(slept_ns, Ordering::Relaxed);
        self.attention() != 0
    }

    /// How long the vCPU has slept, in nanoseconds.
    pub fn parked_ns(&self) -> u64 {
        self.parked_ns.load(Ordering::Relaxed)
    }

    /// Waits once for an attention bit, unless one is set. Counts for running, not for sleeping.
    pub(crate) fn wait(&self, limit: Option<Duration>) {
        let time = limit
            .map(|limit| libc::timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) });
        self.parked.store(true, Ordering::SeqCst);
        self.futex_for(libc::FUTEX_WAIT, 0, time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref));
        self.parked.store(false, Ordering::SeqCst);
    }

    /// Enters or leaves the part of the run loop that touches guest RAM through host pointers. After entering, the
    /// caller must look at [`DROP`] before it touches RAM.
    pub(crate) fn set_in_guest(&self, inside: bool) {
        self.in_guest.store(inside, Ordering::SeqCst);
    }

    /// Whether the vCPU has answered a request of `paths` ([`DROP_WRITES`], [`DROP_ALL`]), or will before it touches RAM.
    pub(crate) fn has_dropped(&self, paths: u32) -> bool {
        !self.in_guest.load(Ordering::SeqCst) || self.attention.load(Ordering::SeqCst) & paths == 0
    }

    /// Says which page, by number, the vCPU is turning into code.
    pub(crate) fn set_watching(&self, page: Option<u64>) {
        self.watching.store(page.map_or(0, |page| page + 1), Ordering::SeqCst);
    }

    pub(crate) fn is_watching(&self, page: u64) -> bool {
        self.watching.load(Ordering::SeqCst) == page + 1
    }

    fn futex(&self, operation: i32, value: u32) {
        self.futex_for(operation, value, std::ptr::null());
    }

    /// With a time limit for waiting; null for none.
    fn futex_for(&self, operation: i32, value: u32, limit: *const libc::timespec) {
        // SAFETY: the futex word lives as long as `self`, the limit is null or outlives the call.
        unsafe {
            libc::syscall(libc::SYS_futex, self.attention.as_ptr(), operation | libc::FUTEX_PRIVATE_FLAG, value, limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn notify_ends_a_timed_sleep() {
        let control = Arc::new(Control::default());
        let sleeper = std::thread::spawn({
            let control = control.clone();
            move || {
                while control.attention() == 0 {
                    control.wait(Some(Duration::from_secs(3600)));
                }
            }
        });
        control.notify();
        sleeper.join().unwrap();
    }

    #[test]
    fn notify_wakes_a_parked_vcpu() {
        let control = Arc::new(Control::default());
        let sleeper = std::thread::spawn({
            let control = control.clone();
            move || control.park(None)
        });
        control.notify();
        assert!(sleeper.join().unwrap());
        assert_eq!(control.attention(), EVENT);
    }
}

//! How other threads reach a vCPU that is inside `KVM_RUN`, or asleep in HLT.
//!
//! ```text
//! any thread: attention |= bit ──> in the guest? immediate_exit = 1 and a signal
//!                              └─> parked? wake
//! vCPU:       immediate_exit = 0; in_guest = true; attention? back out : KVM_RUN; in_guest = false
//! ```
//! `immediate_exit` closes the gap between the last look and the entry: whoever asks after the look sees `in_guest` and
//! sets it, and the kernel checks it after the signal can no longer be lost.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, Once, OnceLock, PoisonError};
use std::time::Instant;

use super::page::RunPage;
use crate::accel::VcpuHandle;

/// There may be an interrupt, or another event, to take.
pub(super) const EVENT: u32 = 1;
/// `run` must return.
pub(super) const STOP: u32 = 2;

/// One vCPU, as other threads see it.
#[derive(Default)]
pub(super) struct Kick {
    attention: AtomicU32,
    in_guest: AtomicBool,
    /// The vCPU's thread while it is in `run`.
    thread: AtomicI32,
    /// The page whose `immediate_exit` ends a run.
    page: OnceLock<RunPage>,
    parked: Mutex<bool>,
    parked_ns: AtomicU64,
    woken: Condvar,
}

impl Kick {
    /// Names the shared page, once the vCPU exists. It must be a mapping of its own.
    pub fn attach(&self, page: RunPage) {
        let _ = self.page.set(page);
    }

    /// The calling thread is going to run the vCPU.
    pub fn adopt_thread(&self) {
        install_handler();
        // SAFETY: gettid has no preconditions.
        self.thread.store(unsafe { libc::gettid() }, Ordering::SeqCst);
    }

    /// Sets attention bits and makes the vCPU look at them.
    pub fn raise(&self, bits: u32) {
        let before = self.attention.fetch_or(bits, Ordering::SeqCst);
        if before & bits == bits {
            // Whoever set them has seen to it.
            return;
        }
        if self.in_guest.load(Ordering::SeqCst) {
            if let Some(page) = self.page.get() {
                page.set_immediate_exit(true);
            }
            self.interrupt();
            return;
        }
        if *self.lock() {
            self.woken.notify_one();
        }
    }

    /// Takes all attention bits.
    pub fn take(&self) -> u32 {
        self.attention.swap(0, Ordering::SeqCst)
    }

    /// Announces an entry into the guest; false if something wants attention first.
    pub fn enter(&self) -> bool {
        if let Some(page) = self.page.get() {
            page.set_immediate_exit(false);
        }
        self.in_guest.store(true, Ordering::SeqCst);
        let clear = self.attention.load(Ordering::SeqCst) == 0;
        if !clear {
            self.in_guest.store(false, Ordering::SeqCst);
        }
        clear
    }

    /// The vCPU is outside of the guest again.
    pub fn leave(&self) {
        self.in_guest.store(false, Ordering::SeqCst);
    }

    /// Sleeps until some attention bit is set.
    pub fn park(&self) {
        let since = Instant::now();
        let mut parked = self.lock();
        *parked = true;
        while self.attention.load(Ordering::SeqCst) == 0 {
            parked = self.woken.wait(parked).unwrap_or_else(PoisonError::into_inner);
        }
        *parked = false;
        let slept_ns = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.parked_ns.fetch_add(slept_ns, Ordering::Relaxed);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, bool> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn interrupt(&self) {
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != 0 {
            // SAFETY: a signal to a thread of our own process, whose handler does nothing; a thread that has ended
            // meanwhile is no harm.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGRTMIN()) };
        }
    }
}

impl VcpuHandle for Kick {
    fn notify(&self) {
        self.raise(EVENT);
    }

    fn stop(&self) {
        self.raise(STOP);
    }

    fn halted_ns(&self) -> u64 {
        self.parked_ns.load(Ordering::Relaxed)
    }
}

/// The signal's only purpose is that `KVM_RUN` returns.
fn install_handler() {
    extern "C" fn nothing(_signal: libc::c_int) {}
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: sigaction is plain data, for which zero is a valid value.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        // SAFETY: the handler does nothing, and so does not break whatever it interrupts; calls it interrupts return
        // EINTR only inside KVM_RUN, since no other blocking call is made while `in_guest` is set.
        unsafe { libc::sigaction(libc::SIGRTMIN(), &action, std::ptr::null_mut()) };
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_request_before_the_entry_keeps_the_vcpu_out() {
        let kick = Kick::default();
        kick.notify();
        assert!(!kick.enter());
        assert_eq!(kick.take(), EVENT);
        assert!(kick.enter());
    }

    #[test]
    fn a_parked_vcpu_wakes_for_any_request() {
        let kick = Arc::new(Kick::default());
        let sleeper = std::thread::spawn({
            let kick = kick.clone();
            move || {
                kick.park();
                kick.take()
            }
        });
        kick.stop();
        assert_eq!(sleeper.join().unwrap(), STOP);
    }
}

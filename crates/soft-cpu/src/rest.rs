//! A CPU that hardly runs gives the memory of its caches back to the host: hosts with many idle guests hold their RAM
//! instead. What it needs when it wakes is decoded again, which takes milliseconds.

use std::time::{Duration, Instant};

use crate::control::Control;
use crate::cpu::Cpu;

/// How long a CPU is watched before it is judged.
const WINDOW: Duration = Duration::from_secs(2);
/// A CPU is at rest if it has slept all of the window but one part in so many.
const BUSY_PART: u32 = 20;
/// Fewer blocks than this are not worth the work: a guest's idle ticks need some hundred.
const FEW_BLOCKS: usize = 1024;

/// What a CPU has done lately.
pub(crate) struct Rest {
    since: Instant,
    /// What it had slept by then.
    parked_ns: u64,
}

impl Default for Rest {
    fn default() -> Rest {
        Rest { since: Instant::now(), parked_ns: 0 }
    }
}

impl Rest {
    /// Whether the CPU is at rest; before the end of a window, how long it is until then.
    fn judge(&mut self, control: &Control) -> Result<bool, Duration> {
        let passed = self.since.elapsed();
        if passed < WINDOW {
            return Err(WINDOW - passed);
        }
        let slept = Duration::from_nanos(control.parked_ns() - self.parked_ns);
        *self = Rest { since: Instant::now(), parked_ns: control.parked_ns() };
        Ok(passed.saturating_sub(slept) <= passed / BUSY_PART)
    }
}

impl Cpu {
    /// Sleeps until some attention bit is set.
    pub(crate) fn park(&mut self) {
        while self.blocks.len() > FEW_BLOCKS {
            match self.rest.judge(&self.control) {
                Ok(true) => self.release_caches(),
                Ok(false) => {}
                Err(left) if self.control.park(Some(left)) => return,
                Err(_) => {}
            }
        }
        self.control.park(None);
    }

    /// Gives back what can be made again.
    fn release_caches(&mut self) {
        let blocks = self.blocks.len();
        self.blocks.release();
        self.release_translations();
        self.flush_tlb_all();
        self.tlbs.release();
        #[cfg(target_env = "gnu")]
        // SAFETY: the call has no conditions.
        unsafe {
            libc::malloc_trim(0)
        };
        tracing::debug!(cpu = self.id, blocks, "at rest: decoded code is given back");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched_for(time: Duration) -> Rest {
        Rest { since: Instant::now().checked_sub(time).unwrap(), parked_ns: 0 }
    }

    #[test]
    fn a_cpu_is_judged_at_the_end_of_a_window_only() {
        let left = watched_for(WINDOW / 2).judge(&Control::default()).unwrap_err();
        assert!(left <= WINDOW / 2, "{left:?}");
    }

    #[test]
    fn a_cpu_that_has_run_all_the_time_is_not_at_rest() {
        assert_eq!(watched_for(WINDOW).judge(&Control::default()), Ok(false));
    }

    #[test]
    fn a_cpu_that_has_slept_nearly_all_of_it_is_at_rest() {
        let control = Control::default();
        control.park(Some(WINDOW));
        assert_eq!(watched_for(WINDOW).judge(&control), Ok(true));
    }
}

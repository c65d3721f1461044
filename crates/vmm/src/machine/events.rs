//! What ends a run, from whichever thread it comes first.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::devices::legacy::{MachineEvents, PanicKind};

/// Why the vCPUs must stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    PowerOff,
    /// The guest wants to start anew.
    Reset,
    Panic,
    TripleFault,
    /// The accelerator cannot go on with a vCPU.
    Failed,
    DebugExit(u8),
    /// [`super::MachineHandle::stop`].
    Stopped,
    /// It goes on elsewhere.
    Moved,
    Timeout,
}

/// Collects the first end of each run.
#[derive(Default)]
pub(super) struct Events {
    end: Mutex<Option<End>>,
    changed: Condvar,
    boot_mark: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Events {
    fn lock(&self) -> MutexGuard<'_, Option<End>> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an end. The first one counts; only to be stopped by the host counts more than a restart that is under way.
    pub fn note(&self, end: End) {
        let mut noted = self.lock();
        if noted.is_none_or(|noted| noted == End::Reset && end == End::Stopped) {
            *noted = Some(end);
        }
        self.changed.notify_all();
    }

    /// Waits for an end, until `deadline` at the longest.
    pub fn wait(&self, deadline: Option<Instant>) -> End {
        let mut end = self.lock();
        loop {
            if let Some(end) = *end {
                return end;
            }
            let Some(deadline) = deadline else {
                end = self.changed.wait(end).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return End::Timeout;
            }
            end = self.changed.wait_timeout(end, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Forgets a reset, for the next run of the same machine; any other end stays.
    pub fn forget_reset(&self) {
        let mut end = self.lock();
        if *end == Some(End::Reset) {
            *end = None;
        }
    }

    /// `report` is called when the guest's first user process starts.
    pub fn on_boot_mark(&self, report: Box<dyn FnOnce() + Send>) {
        *self.boot_mark.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
    }
}

impl MachineEvents for Events {
    fn power_off(&self) {
        self.note(End::PowerOff);
    }

    fn reset(&self) {
        self.note(End::Reset);
    }

    fn guest_panicked(&self, kind: PanicKind) {
        match kind {
            PanicKind::Panicked => self.note(End::Panic),
            PanicKind::CrashLoaded => tracing::warn!("the guest panicked and starts its crash kernel"),
        }
    }

    fn debug_exit(&self, value: u32) {
        self.note(End::DebugExit(value as u8));
    }

    fn boot_mark(&self) {
        let report = self.boot_mark.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(report) = report {
            report();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_first_end_counts() {
        let events = Events::default();
        events.note(End::Panic);
        events.note(End::Reset);
        assert_eq!(events.wait(None), End::Panic);
    }

    #[test]
    fn a_stop_is_not_lost_in_a_restart() {
        let events = Events::default();
        events.note(End::Reset);
        events.note(End::TripleFault);
        assert_eq!(events.wait(None), End::Reset);
        events.note(End::Stopped);
        events.forget_reset();
        assert_eq!(events.wait(None), End::Stopped);
    }

    #[test]
    fn waiting_ends_at_the_deadline() {
        let events = Events::default();
        assert_eq!(events.wait(Some(Instant::now() + Duration::from_millis(5))), End::Timeout);
    }

    #[test]
    fn only_a_reset_is_forgotten() {
        let events = Events::default();
        events.note(End::Reset);
        events.forget_reset();
        events.note(End::PowerOff);
        events.forget_reset();
        assert_eq!(events.wait(None), End::PowerOff);
    }
}

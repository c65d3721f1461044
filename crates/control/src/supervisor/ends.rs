//! Processes end.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;

use queztl_api::{Ending, EndingReason, EventKind, Timestamp, VmState};
use queztl_vmm::config::Outcome;
use queztl_vmm::process::{ExitReport, Folder, ProcessId, last_line};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::manager::Core;
use crate::vms::{Live, Machine, VmRecord, Wish};

/// The exit status of a process whose thread made a system call that it must not make.
const CONFINEMENT_STATUS: u8 = 14;

impl Core {
    /// Notices the end of a machine's process.
    pub(crate) fn watch(self: &Arc<Self>, machine: &Arc<Machine>, live: &Live) {
        let (core, machine) = (self.clone(), machine.clone());
        let (process, pidfd) = (live.process, live.pidfd.clone());
        self.runtime.spawn(async move {
            // SAFETY: the descriptor is open for as long as the `Arc` that is given here, and always the same one.
            match unsafe { AsyncFd::register_with_interest(pidfd.clone(), Interest::READABLE) } {
                Ok(watched) => {
                    tokio::select! {
                        // An error here is as good as the end: the process is looked at below.
                        _ = watched.readable() => {}
                        () = core.closed() => return,
                    }
                }
                Err(error) => return tracing::error!(vm = machine.id, %error, "a process cannot be watched"),
            }
            let work = core.clone();
            core.runtime.spawn_blocking(move || work.ended(&machine, process));
        });
    }

    /// Takes note of the end of a machine's process, and does what its crash policy says.
    pub(crate) fn ended(self: &Arc<Self>, machine: &Arc<Machine>, process: ProcessId) {
        let status = self.spawner.end_of(process.pid);
        let report = ExitReport::read(&machine.folder.exit()).ok().flatten();
        let report = report.filter(|report| report.process == process);
        let wished = {
            let inner = machine.lock();
            match &inner.live {
                Some(live) if live.process != process => return,
                live => live.as_ref().and_then(|live| live.ending),
            }
        };
        self.conclude(machine, ending(&machine.folder, report.as_ref(), status, wished));
    }

    /// Notes how a machine's run ended.
    pub(crate) fn conclude(self: &Arc<Self>, machine: &Arc<Machine>, ending: Ending) {
        let crashed = crate::vms::is_crash(ending.reason);
        // Who waits for the end finds nothing left of the run.
        self.release(machine);
        let end = |record: &mut VmRecord| {
            record.ended = Some(ending.clone());
            if !crashed {
                (record.wish, record.again) = (Wish::Off, None);
            }
        };
        let noted = self.amend(machine, end, |change, record| {
            if ending.reason == EndingReason::GuestPanic {
                let kind = EventKind::VmPanicked { vm: record.id.clone(), name: record.name.to_string() };
                change.event(kind, format!("the guest of virtual machine {} panicked", record.name))?;
            }
            let state = if crashed { VmState::Crashed } else { VmState::Stopped };
            crate::vms::changed(change, record, state, &format!("has ended: {}", ending.message))
        });
        if let Err(problem) = noted {
            tracing::error!(vm = machine.id, %problem, "the end of a machine cannot be noted");
        }
        machine.end(crashed);
        if crashed {
            self.alerts.look_soon();
        }
        // One that was protected goes on elsewhere.
        if crashed && machine.lock().record.protection.is_none() {
            self.recover_from_crash(machine);
        }
    }
}

/// How a run ended, from the process's own report, from the kernel, and from what somebody had asked for.
fn ending(
    folder: &Folder,
    report: Option<&ExitReport>,
    status: Option<ExitStatus>,
    wished: Option<EndingReason>,
) -> Ending {
    let (reason, message) = match (report, wished) {
        (Some(report), Some(EndingReason::Stopped)) if report.outcome == Some(Outcome::PowerOff) => {
            (EndingReason::Stopped, "it switched itself off when asked to".to_owned())
        }
        (Some(report), Some(EndingReason::Stopped)) if report.outcome.is_some() => {
            (EndingReason::Stopped, "it was stopped".to_owned())
        }
        (_, Some(EndingReason::Killed)) => (EndingReason::Killed, "it was killed".to_owned()),
        (Some(report), _) => reported(report),
        (None, Some(reason)) => (reason, "it was stopped by force".to_owned()),
        (None, None) => vanished(folder, status),
    };
    let at = report.and_then(|report| {
        i64::try_from(report.ended_unix_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok())
    });
    Ending { at: at.unwrap_or_else(Timestamp::now), reason, message }
}

fn reported(report: &ExitReport) -> (EndingReason, String) {
    let message = |text: &str| report.message.clone().unwrap_or_else(|| text.to_owned());
    match report.outcome {
        Some(Outcome::PowerOff | Outcome::DebugExit(_)) => {
            (EndingReason::PowerOff, message("the guest switched itself off"))
        }
        Some(Outcome::Panic) => (EndingReason::GuestPanic, message("the guest panicked: its console says why")),
        Some(Outcome::TripleFault) => (
            EndingReason::TripleFault,
            message("the guest could not handle an exception: is its kernel meant for this?"),
        ),
        Some(Outcome::Stopped | Outcome::Timeout) => (EndingReason::Stopped, message("it was stopped")),
        Some(Outcome::Moved) => (EndingReason::Moved, message("it goes on elsewhere")),
        Some(Outcome::SourceLost) => {
            (EndingReason::SourceLost, message("the rest of its memory is lost with the host that it came from"))
        }
        None if report.status == CONFINEMENT_STATUS => {
            (EndingReason::Confinement, message("a thread made a system call that it must not make: see vmm.log"))
        }
        None => (EndingReason::ProcessFailed, message("its process failed: see vmm.log")),
    }
}

/// What is to be said of a process that has left no report.
fn vanished(folder: &Folder, status: Option<ExitStatus>) -> (EndingReason, String) {
    if let Some(signal) = status.and_then(|status| status.signal()) {
        return (EndingReason::ProcessFailed, format!("its process was ended by signal {signal}"));
    }
    let confined = status.and_then(|status| status.code()) == Some(CONFINEMENT_STATUS.into());
    let reason = if confined { EndingReason::Confinement } else { EndingReason::ProcessFailed };
    let last = last_line(&folder.log()).unwrap_or_else(|| "its log says nothing".to_owned());
    (reason, format!("its process vanished without a report: {last}"))
}

/// How a run ended that no daemon was there to see.
pub(super) fn unseen(folder: &Folder, report: Option<&ExitReport>) -> Ending {
    ending(folder, report, None, None)
}

impl Core {
    /// What the machine's process had of the host is given back.
    fn release(&self, machine: &Machine) {
        self.remove_cgroup(machine);
        self.forget_figures(machine);
        for path in [machine.folder.control(), machine.folder.console(), machine.folder.vsock()] {
            // A process that was killed leaves its sockets; another one's were there already.
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcome: Option<Outcome>, status: u8) -> ExitReport {
        ExitReport::now(outcome, status, None, ProcessId { pid: 1, start_ticks: 2 })
    }

    #[test]
    fn an_end_has_the_reason_that_somebody_wished_or_that_it_had() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Folder::new(folder.path());
        let reason = |report: Option<ExitReport>, wished| ending(&folder, report.as_ref(), None, wished).reason;
        assert_eq!(reason(None, None), EndingReason::ProcessFailed);
        std::fs::write(folder.log(), "first\nthe reason\n\n").unwrap();
        assert_eq!(ending(&folder, None, None, None).message, "its process vanished without a report: the reason");
        assert_eq!(reason(None, Some(EndingReason::Killed)), EndingReason::Killed);
        assert_eq!(reason(Some(report(Some(Outcome::PowerOff), 0)), None), EndingReason::PowerOff);
        assert_eq!(
            reason(Some(report(Some(Outcome::PowerOff), 0)), Some(EndingReason::Stopped)),
            EndingReason::Stopped
        );
        assert_eq!(reason(Some(report(Some(Outcome::Panic), 6)), None), EndingReason::GuestPanic);
        assert_eq!(reason(Some(report(None, 14)), None), EndingReason::Confinement);
        assert_eq!(reason(Some(report(None, 4)), None), EndingReason::ProcessFailed);
    }
}

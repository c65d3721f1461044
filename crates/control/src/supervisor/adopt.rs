//! A daemon finds the machines of the one before.
//!
//! ```text
//! vmm.lock is held ──> its process: watched, asked ──> running, paused
//! vmm.lock is free ──> was it to run? ── exit.json of that run, or none ──> ended as it says; its crash policy
//! ```

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use queztl_api::{OnCrash, OperationKind, Problem, Timestamp};
use queztl_vmm::process::{ExitReport, Folder, ProcessId};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::Spawner;
use super::ends::unseen;
use crate::manager::Core;
use crate::vms::lifecycle::{Command, Observation};
use crate::vms::{Live, Machine, Wish};

/// How long a process that has just begun may take to write down who it is, or to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long the process of a machine that was on its way here may take to see that its connections have ended, or to say that
/// it has the machine: it answers only then.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(2);

impl Core {
    /// Goes on with a machine of the daemon before: with its process if it runs, with the news of its end if not.
    pub(crate) fn adopt(self: &Arc<Self>, machine: &Arc<Machine>) {
        match runner(&machine.folder) {
            Some((process, pidfd)) => self.adopt_process(machine, process, pidfd),
            None if machine.lock().record.wish == Wish::On => {
                let report = ExitReport::read(&machine.folder.exit()).ok().flatten();
                self.conclude(machine, unseen(&machine.folder, report.as_ref()));
            }
            None => {}
        }
    }

    fn adopt_process(self: &Arc<Self>, machine: &Arc<Machine>, process: ProcessId, pidfd: OwnedFd) {
        let live = Live {
            process,
            pidfd: Arc::new(pidfd),
            accelerator: String::new(),
            started_at: started_at(process),
            ending: None,
        };
        machine.observe(Observation::Spawned);
        machine.lock().live = Some(live.clone());
        self.watch(machine, &live);
        let limit = if machine.lock().record.arriving { ARRIVAL_LIMIT } else { ANSWER_LIMIT };
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            // It may be in the middle of what its daemon did not live to see, and stand still for it.
            if super::settle(&machine.folder)
                && let Some(status) = super::status(&machine.folder)
            {
                self.answered(machine, &live, &status);
                tracing::info!(vm = machine.id, pid = process.pid, "a running machine was found again");
                return;
            }
            if machine.wait(Duration::from_millis(20), |inner| inner.live.is_none().then_some(())).is_some() {
                return;
            }
        }
        tracing::warn!(vm = machine.id, pid = process.pid, "the process of a machine runs, but does not answer");
    }

    /// Starts the machines that are to run whenever the daemon does.
    pub(crate) fn autostart(self: &Arc<Self>) {
        for machine in self.machines.all() {
            let record = machine.record();
            let off = machine.admit(Command::Start).is_ok();
            // A machine with a policy for crashes is started by that.
            let recovering = record.wish == Wish::On && record.spec.on_crash != OnCrash::Stay;
            if record.spec.autostart && off && !recovering {
                let started = machine.claim(OperationKind::Start, Command::Start).and_then(|claim| {
                    let core = self.clone();
                    let work = machine.clone();
                    let start = move |_: &Arc<Core>, _: &crate::operations::Task| {
                        core.run(&work, &claim)?;
                        drop(claim);
                        Ok(serde_json::json!(work.describe()))
                    };
                    self.begin(OperationKind::Start, Some(machine.id.clone()), |_| Ok(()), start)
                });
                if let Err(problem) = started {
                    tracing::error!(vm = machine.id, %problem, "a machine cannot be started with the daemon");
                }
            }
        }
    }
}

/// The process that runs the machine, if one does.
fn runner(folder: &Folder) -> Option<(ProcessId, OwnedFd)> {
    let deadline = Instant::now() + ANSWER_LIMIT;
    loop {
        match folder.runner() {
            Ok(None) => return None,
            Ok(Some(process)) if process.pid != 0 => {
                let pidfd = Pid::from_raw(process.pid as i32).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
                // The descriptor is of this process only if the number still is after it was opened.
                if let Some(pidfd) = pidfd.filter(|_| process.exists()) {
                    return Some((process, pidfd));
                }
            }
            Ok(Some(_)) => {}
            Err(error) => tracing::warn!(folder = ?folder.path(), %error, "a machine's lock cannot be looked at"),
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ends the process of a machine that is no longer to be, if there is one.
pub(crate) fn end_unknown(spawner: &Spawner, directory: &Path) -> Result<(), Problem> {
    let Some((process, pidfd)) = runner(&Folder::new(directory)) else { return Ok(()) };
    super::kill(&pidfd)?;
    let deadline = Instant::now() + ANSWER_LIMIT;
    while Folder::new(directory).runner().ok().flatten().is_some() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    // If it was begun here, the kernel can forget it.
    spawner.end_of(process.pid);
    tracing::info!(pid = process.pid, "the process of a machine that was never whole was ended");
    Ok(())
}

/// When a process started, from the clock ticks that the kernel tells.
fn started_at(process: ProcessId) -> Timestamp {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let uptime = uptime.split(' ').next().and_then(|text| text.parse::<f64>().ok());
    let hz = rustix::param::clock_ticks_per_second() as f64;
    let age = uptime.map_or(0.0, |uptime| (uptime - process.start_ticks as f64 / hz).max(0.0));
    let age = jiff::SignedDuration::try_from_secs_f64(age).unwrap_or_default();
    Timestamp::now().saturating_sub(age).unwrap_or_else(|_: jiff::Error| Timestamp::now())
}

//! Snapshots that machines take of themselves by a schedule, and what they are for: going on after a crash.
//!
//! ```text
//! every_seconds since the last one, while it runs ─> snapshot ─> the oldest beyond `keep` are deleted
//! ```
//! A checkpoint that cannot be taken is told in an event and tried again at its next time; one is due from the newest that is
//! there, so that a daemon that starts anew keeps to the schedule.

mod recovery;

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use queztl_api::{Checkpoints, OperationKind, Problem, SnapshotRequest, Timestamp, VmState};
use serde_json::json;

use crate::manager::Core;
use crate::snapshots::SnapshotRecord;
use crate::vms::lifecycle::Command;
use crate::vms::{Claim, Machine};

/// How often the schedules are looked at.
const LOOK: Duration = Duration::from_secs(1);

impl Core {
    /// Keeps to the schedules of all machines from now on.
    pub(crate) fn start_checkpoints(self: &Arc<Self>) {
        let core = self.clone();
        self.runtime.spawn(async move {
            let mut ticks = tokio::time::interval(LOOK);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    () = core.closed() => return,
                }
                let work = core.clone();
                // A panic in one round is logged by its thread; the next round goes on.
                let _ = tokio::task::spawn_blocking(move || work.checkpoint_all()).await;
            }
        });
    }

    fn checkpoint_all(self: &Arc<Self>) {
        for machine in self.machines.all() {
            let (schedule, state, tried) = {
                let inner = machine.lock();
                (inner.record.spec.checkpoints, inner.state, inner.checkpoint_tried)
            };
            let Some(schedule) = schedule.filter(|_| state == VmState::Running) else { continue };
            let Ok(records) = self.snapshot_records(&machine.id) else { continue };
            let newest = scheduled(&records).map(|record| record.snapshot.created_at).max();
            let started = machine.lock().live.as_ref().map(|live| live.started_at);
            let since = [newest, tried, started].into_iter().flatten().max();
            if !is_due(since, &schedule, Timestamp::now()) {
                continue;
            }
            // Something else is being done with it: it comes right after.
            let Ok(claim) = machine.claim(OperationKind::Snapshot, Command::Snapshot) else { continue };
            machine.lock().checkpoint_tried = Some(Timestamp::now());
            self.checkpoint(&machine, claim, schedule);
        }
    }

    fn checkpoint(self: &Arc<Self>, machine: &Arc<Machine>, claim: Claim, schedule: Checkpoints) {
        let work = machine.clone();
        let begun = self.begin(
            OperationKind::Snapshot,
            Some(machine.id.clone()),
            |_| Ok(()),
            move |core, task| {
                task.cancellable(true);
                let name = core.snapshot_name(&work, None)?;
                let request = SnapshotRequest { description: "checkpoint".into(), ..SnapshotRequest::default() };
                let taken = core.take_snapshot(&work, &name, &request, true, task);
                let kept = taken.and_then(|snapshot| core.retire(&work, schedule.keep).map(|()| snapshot));
                drop(claim);
                if let Err(problem) = &kept {
                    core.warn(format!("no checkpoint of {}: {}", work.record().name, problem.detail));
                }
                Ok(json!(kept?))
            },
        );
        if let Err(problem) = begun {
            tracing::warn!(vm = machine.id, %problem, "no checkpoint");
        }
    }

    /// Deletes the oldest checkpoints beyond those that are kept. One that others build on stays until they are gone.
    fn retire(&self, machine: &Machine, keep: u32) -> Result<(), Problem> {
        let records = self.snapshot_records(&machine.id)?;
        let mut old: Vec<&SnapshotRecord> = scheduled(&records).collect();
        old.sort_by_key(|record| std::cmp::Reverse(record.snapshot.created_at));
        for record in old.into_iter().skip(keep as usize) {
            let name = &record.snapshot.name;
            if !records.iter().any(|other| other.snapshot.base.as_ref() == Some(name)) {
                self.remove_snapshot(machine, name)?;
            }
        }
        Ok(())
    }
}

fn scheduled(records: &[SnapshotRecord]) -> impl Iterator<Item = &SnapshotRecord> {
    records.iter().filter(|record| record.snapshot.scheduled)
}

/// Whether the next checkpoint's time has come; `since` is when the last was taken or the machine started.
fn is_due(since: Option<Timestamp>, schedule: &Checkpoints, now: Timestamp) -> bool {
    let every = SignedDuration::from_secs(i64::try_from(schedule.every_seconds).unwrap_or(i64::MAX));
    since.is_none_or(|since| now.duration_since(since) >= every)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_due_when_its_time_has_come() {
        let schedule = Checkpoints { every_seconds: 60, keep: 1 };
        let now = Timestamp::from_second(1000).unwrap();
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        assert!(is_due(None, &schedule, now) && is_due(at(940), &schedule, now) && is_due(at(0), &schedule, now));
        assert!(!is_due(at(941), &schedule, now) && !is_due(at(1000), &schedule, now));
        let never = Checkpoints { every_seconds: u64::MAX, keep: 1 };
        assert!(!is_due(at(0), &never, now));
    }
}

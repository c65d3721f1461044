//! What is done when a machine has crashed: as its policy says, and not for ever.
//!
//! ```text
//! crash ──> stay
//!       ──> restart ──> wait 0, 1, 2, 4, … s ──> boot             5 crashes within
//!       ──> restore ──> the same wait ──> newest good snapshot,   10 minutes: it stays
//!                                         else an older, else boot
//! ```

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use queztl_api::{EventKind, OnCrash, OperationKind, Problem, Timestamp, VmState};
use serde_json::json;

use crate::manager::Core;
use crate::vms::lifecycle::Command;
use crate::vms::{Machine, Wish};

/// Crashes that are answered within [`WINDOW`]; the next is not.
const MAX_CRASHES: usize = 5;
const WINDOW: SignedDuration = SignedDuration::from_mins(10);

/// How long to wait after a crash; `None` if there were too many. `crashes` are those answered before; old ones are
/// forgotten, and this one is added.
fn backoff(crashes: &mut Vec<Timestamp>, now: Timestamp) -> Option<Duration> {
    crashes.retain(|at| now.duration_since(*at) < WINDOW);
    if crashes.len() >= MAX_CRASHES {
        return None;
    }
    let wait = match crashes.len() {
        0 => Duration::ZERO,
        before => Duration::from_secs(1 << (before - 1)),
    };
    crashes.push(now);
    Some(wait)
}

impl Core {
    /// Does what the policy of a machine that has just crashed says.
    pub(crate) fn recover_from_crash(self: &Arc<Self>, machine: &Arc<Machine>) {
        let (policy, wished) = {
            let inner = machine.lock();
            (inner.record.spec.on_crash, inner.record.wish == Wish::On && !inner.record.arriving)
        };
        // One that is being deleted, or was killed, is not to come back; nor is one that never answered or arrived.
        if !wished || policy == OnCrash::Stay {
            return self.settle(machine);
        }
        let wait = backoff(&mut machine.lock().record.crashes, Timestamp::now());
        let Some(wait) = wait else {
            let what = format!("has crashed {MAX_CRASHES} times within {} minutes: it stays so", WINDOW.as_mins());
            self.tell(&machine.record(), VmState::Crashed, &what);
            return self.settle(machine);
        };
        let (core, machine) = (self.clone(), machine.clone());
        self.runtime.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = core.closed() => return,
            }
            let work = core.clone();
            core.runtime.spawn_blocking(move || work.bring_back(&machine, policy));
        });
    }

    /// The machine stays as it is: nobody wishes that it runs.
    fn settle(&self, machine: &Machine) {
        if let Err(problem) = self.amend(machine, |record| record.wish = Wish::Off, |_, _| Ok(())) {
            tracing::error!(vm = machine.id, %problem, "the end of a machine cannot be noted");
        }
    }

    fn bring_back(self: &Arc<Self>, machine: &Arc<Machine>, policy: OnCrash) {
        // An operation that the crash has interrupted ends first.
        let claim = machine.claim_soon(OperationKind::Start, Command::Start, Duration::from_secs(60));
        let Ok(claim) = claim else { return };
        if machine.lock().record.wish == Wish::Off {
            // Somebody has killed it while it waited.
            return;
        }
        let work = machine.clone();
        let begun = self.begin(
            OperationKind::Start,
            Some(machine.id.clone()),
            |_| Ok(()),
            move |core, _| {
                let from = match policy {
                    OnCrash::Restore => core.restore_newest(&work, &claim)?,
                    _ => None,
                };
                if from.is_none() {
                    core.run(&work, &claim)?;
                }
                core.note_return(&work, from.as_deref())?;
                drop(claim);
                Ok(json!(work.describe()))
            },
        );
        if let Err(problem) = begun {
            tracing::error!(vm = machine.id, %problem, "a machine that crashed cannot be started again");
        }
    }

    fn note_return(&self, machine: &Machine, snapshot: Option<&str>) -> Result<(), Problem> {
        let record = machine.record();
        let how = match snapshot {
            Some(snapshot) => format!("goes on from snapshot {snapshot} after a crash"),
            None => "was started again after a crash".to_owned(),
        };
        self.store.write(|change| {
            let kind = EventKind::VmRestarted { vm: record.id.clone(), name: record.name.to_string() };
            Ok(change.event(kind, format!("virtual machine {} {how}", record.name))?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_loop_slows_down_and_ends() {
        let now = Timestamp::now();
        let mut crashes = Vec::new();
        let waits: Vec<_> = (0..7).map(|_| backoff(&mut crashes, now).map(|wait| wait.as_secs())).collect();
        assert_eq!(waits, [Some(0), Some(1), Some(2), Some(4), Some(8), None, None]);
    }

    #[test]
    fn crashes_that_are_long_ago_do_not_count() {
        let now = Timestamp::now();
        let mut crashes = vec![now - SignedDuration::from_mins(11); 20];
        assert_eq!(backoff(&mut crashes, now), Some(Duration::ZERO));
        assert_eq!(crashes.len(), 1);
    }
}

//! Protecting as work that takes time: it is over when the first copies are whole, and is undone when it is given up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use queztl_api::{Code, Operation, OperationKind, Problem, ProtectRequest, Protection, ProtectionState};
use serde_json::json;

use super::again::wish;
use crate::manager::Core;
use crate::operations::Task;
use crate::vms::Machine;

/// Between two looks at copies that are being made.
const TURN: Duration = Duration::from_millis(50);
/// Backups whose connection is lost are brought back: only when too few have been there for so long, the rest is given up.
const PATIENCE: Duration = Duration::from_secs(30);

impl Core {
    /// Protects a machine; the operation ends when the first copies are whole.
    pub(crate) fn begin_protection(self: &Arc<Self>, vm: &str, request: ProtectRequest) -> Result<Operation, Problem> {
        let machine = self.machines.find(vm)?;
        self.protect(&machine.id, request)?;
        let work = machine.clone();
        let begun = self.begin(
            OperationKind::Protect,
            Some(machine.id.clone()),
            |_| Ok(()),
            move |core, task| core.first_copies(&work, task).map(|told| json!(told)),
        );
        begun.inspect_err(|_| self.take_back(&machine))
    }

    /// Ends a machine's protection.
    pub(crate) fn end_protection(self: &Arc<Self>, vm: &str) -> Result<Operation, Problem> {
        let machine = self.machines.find(vm)?;
        let id = machine.id.clone();
        if machine.record().protection.is_none() && wish(&machine).is_none() {
            return Err(not_protected(&machine));
        }
        self.begin(
            OperationKind::Unprotect,
            Some(machine.id.clone()),
            |_| Ok(()),
            move |core, _| core.unprotect(&id).map(|()| serde_json::Value::Null),
        )
    }

    /// How a machine is protected, if it is and its process answers.
    pub(crate) fn protection_of(&self, machine: &Machine) -> Option<Protection> {
        let is_protected = machine.record().protection.is_some() || wish(machine).is_some();
        is_protected.then(|| self.protection(&machine.id).ok()).flatten()
    }

    fn first_copies(self: &Arc<Self>, machine: &Machine, task: &Task) -> Result<Protection, Problem> {
        task.cancellable(true);
        let mut enough = Instant::now();
        let copied = loop {
            if let Err(problem) = task.check() {
                break Err(problem);
            }
            match self.look_at_copies(machine, task, &mut enough) {
                Ok(Some(told)) => break Ok(told),
                Ok(None) => std::thread::sleep(TURN),
                Err(problem) => break Err(problem),
            }
        };
        task.cancellable(false);
        copied.inspect_err(|_| self.take_back(machine))
    }

    /// The protection once it counts; `enough` is when there were last as many backups as it takes.
    fn look_at_copies(
        &self,
        machine: &Machine,
        task: &Task,
        enough: &mut Instant,
    ) -> Result<Option<Protection>, Problem> {
        if machine.lock().record.protection.is_none() {
            return Err(not_protected(machine));
        }
        let told = self.protection(&machine.id)?;
        if told.state != ProtectionState::Copying {
            return Ok(Some(told));
        }
        let all = told.backups.len() as u64;
        let failures: Vec<&str> = told.backups.iter().filter_map(|backup| backup.failed.as_deref()).collect();
        if all - (failures.len() as u64) >= u64::from(told.acks) {
            *enough = Instant::now();
        }
        if let Some(why) = failures.first().filter(|_| enough.elapsed() > PATIENCE) {
            let text = format!("too few copies can be made, and the machine goes on without: {why}");
            return Err(Problem::new(Code::Host, text));
        }
        let whole = told.backups.iter().filter(|backup| backup.epoch.is_some()).count();
        task.progress(whole as u64, all, "copies");
        Ok(None)
    }

    fn take_back(self: &Arc<Self>, machine: &Machine) {
        if machine.record().protection.is_some()
            && let Err(problem) = self.unprotect(&machine.id)
        {
            tracing::warn!(%problem, vm = machine.id, "a protection that was given up is not over yet");
        }
    }
}

fn not_protected(machine: &Machine) -> Problem {
    Problem::new(Code::State, format!("{:?} is not protected", machine.record().name.as_str()))
}

//! A node is emptied: it takes no new machines, and its own move to the others.

use std::sync::Arc;
use std::time::Duration;

use queztl_api::{
    Code, DrainMove, DrainReport, DrainStay, MigrateRequest, Name, Operation, OperationKind, OperationState, Problem,
};
use serde_json::json;

use super::members::Member;
use crate::manager::Core;
use crate::operations::Task;
use crate::vms::Machine;

/// Between two looks at a migration.
const TURN: Duration = Duration::from_millis(50);

impl Core {
    /// Begins to empty a node: this one, or another, which is told to.
    pub(crate) fn drain(self: &Arc<Self>, name: &str) -> Result<Operation, Problem> {
        let joined = self.cluster.need()?;
        let name = name.to_owned();
        let member = self.fresh_member(&joined, &name)?;
        let other = (member.certificate != joined.own).then(|| joined.client_of(&member)).transpose()?;
        match other {
            None => {
                self.set_draining(&name, true)?;
                self.begin(OperationKind::Drain, Some(name), |_| Ok(()), |core, task| core.empty(task))
            }
            Some(client) => {
                let begun = self.runtime.block_on(client.drain_node(&name)).map_err(|error| there(&name, &error))?;
                let target = name.clone();
                self.begin(
                    OperationKind::Drain,
                    Some(target),
                    |_| Ok(()),
                    move |core, task| core.follow_drain(&name, &client, &begun.id, task),
                )
            }
        }
    }

    /// A node takes machines again, or no longer does.
    pub(crate) fn set_draining(&self, name: &str, draining: bool) -> Result<(), Problem> {
        let joined = self.cluster.need()?;
        let member = self.fresh_member(&joined, name)?;
        if member.draining != draining {
            let changed = Member { draining, ..member.clone() };
            joined.with(self, |members| members.change(&member, Some(&changed)))?;
        }
        self.refresh(&joined)
    }

    /// Another node empties itself.
    fn follow_drain(
        &self,
        name: &str,
        client: &queztl_client::Client,
        id: &str,
        task: &Task,
    ) -> Result<serde_json::Value, Problem> {
        task.cancellable(true);
        let mut cancelled = false;
        loop {
            let now = self.runtime.block_on(client.operation(id)).map_err(|error| there(name, &error))?;
            match (now.state, now.problem) {
                (OperationState::Running, _) => {}
                (OperationState::Succeeded, _) => return Ok(now.result.unwrap_or_default()),
                (_, problem) => {
                    return Err(problem.unwrap_or_else(|| Problem::new(Code::Cancelled, "it was cancelled there")));
                }
            }
            if let Some(progress) = now.progress {
                task.progress(progress.done, progress.total, &progress.unit);
            }
            if !cancelled && task.check().is_err() {
                cancelled = true;
                // Too late is no failure: then it is over.
                let _ = self.runtime.block_on(client.cancel_operation(id));
            }
            std::thread::sleep(TURN * 2);
        }
    }

    /// Moves each machine to the node with the most free memory.
    fn empty(self: &Arc<Self>, task: &Task) -> Result<serde_json::Value, Problem> {
        task.cancellable(true);
        let here = |machine: &&Arc<Machine>| machine.lock().signs.is_none();
        let machines: Vec<Arc<Machine>> = self.machines.all().iter().filter(here).cloned().collect();
        let mut report = DrainReport::default();
        let mut taken: Vec<(Name, u64)> = Vec::new();
        for (done, machine) in machines.iter().enumerate() {
            task.check()?;
            task.progress(done as u64, machines.len() as u64, "machines");
            let record = machine.record();
            let vm = record.name.to_string();
            match self.move_away(machine, &mut taken, task) {
                Ok(to) => report.moved.push(DrainMove { vm, to }),
                Err(problem) if problem.code == Code::Cancelled => return Err(problem),
                Err(problem) => report.stayed.push(DrainStay { vm, why: problem.detail }),
            }
        }
        if report.stayed.is_empty() {
            return Ok(json!(report));
        }
        let stays = report.stayed.iter().map(|stay| format!("{} ({})", stay.vm, stay.why)).collect::<Vec<_>>();
        let moved = report.moved.len();
        let text =
            format!("{moved} machines moved, and the node takes no new ones, but these stay: {}", stays.join("; "));
        Err(Problem::new(Code::State, text))
    }

    /// Moves one machine; gives the node that has it now. `taken` is the memory of those that moved, by node: what nodes say of
    /// themselves is older.
    fn move_away(
        self: &Arc<Self>,
        machine: &Machine,
        taken: &mut Vec<(Name, u64)>,
        task: &Task,
    ) -> Result<Name, Problem> {
        let ram_bytes = machine.record().spec.ram_bytes;
        if machine.lock().live.is_none() {
            return Err(Problem::new(Code::State, "it does not run: start it and drain again, or delete it"));
        }
        let used = |name: &Name| taken.iter().filter(|(node, _)| node == name).map(|(_, bytes)| bytes).sum::<u64>();
        let nodes = self.ready_nodes().into_iter();
        let free = nodes.map(|(name, bytes)| (bytes.saturating_sub(used(&name)), name));
        let best = free.max_by(|one, other| one.0.cmp(&other.0).then_with(|| other.1.cmp(&one.1)));
        let none = || Problem::new(Code::State, "no other node is ready to take it");
        let (bytes, to) = best.ok_or_else(none)?;
        if bytes < ram_bytes {
            return Err(Problem::new(Code::Host, format!("no node has memory for it: {to} has the most left")));
        }
        let begun = self.migrate(&machine.id, MigrateRequest::to(to.as_str()))?;
        self.finish_move(&begun.id, task)?;
        taken.push((to.clone(), ram_bytes));
        Ok(to)
    }

    fn finish_move(&self, id: &str, task: &Task) -> Result<(), Problem> {
        let mut cancelled = false;
        loop {
            let now = self.operation(id)?;
            match (now.state, now.problem) {
                (OperationState::Running, _) => {}
                (OperationState::Succeeded, _) => return Ok(()),
                (_, problem) => {
                    return Err(problem.unwrap_or_else(|| Problem::new(Code::Cancelled, "the move was cancelled")));
                }
            }
            if !cancelled && task.check().is_err() {
                // One that is about to arrive does.
                cancelled = self.cancel_operation(id).is_ok();
            }
            std::thread::sleep(TURN);
        }
    }
}

fn there(name: &str, error: &queztl_client::Error) -> Problem {
    match error.problem() {
        Some(problem) => problem.clone(),
        None => {
            let why = super::coordinator::queztl_client_error(error);
            Problem::new(Code::Host, format!("node {name} does not answer: {why}"))
        }
    }
}

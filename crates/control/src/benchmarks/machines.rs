//! What is measured with machines.

use std::sync::Arc;
use std::time::{Duration, Instant};

use queztl_api::{
    BenchmarkSuite, CloneRequest, Code, CreateVm, Name, Operation, OperationState, Problem, SnapshotRequest, VmSpec,
};

use super::{Figures, LABEL};
use crate::manager::Core;
use crate::operations::Task;
use crate::snapshots::SnapshotRecord;
use crate::store::SNAPSHOTS;
use crate::vms::Machine;

/// RAM of a machine, bytes.
const RAM_BYTES: u64 = 128 << 20;
const CLONES: u32 = 10;
/// How long anything may take, on a busy host too.
const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks at whether the run was cancelled.
const LOOK: Duration = Duration::from_millis(100);

/// A run that goes on.
pub(super) struct Bench<'a> {
    pub core: &'a Arc<Core>,
    pub task: &'a Task,
    pub id: &'a str,
}

impl Bench<'_> {
    /// A machine that starts from nothing.
    pub(super) fn boot(&self, figures: &mut Figures) -> Result<(), Problem> {
        let start = Instant::now();
        let machine = self.machine("boot")?;
        let log = machine.folder.console_log();
        self.wait_until("a machine says nothing on its console", || {
            std::fs::metadata(&log).is_ok_and(|log| log.len() > 0)
        })?;
        let suite = BenchmarkSuite::Boot;
        figures.milliseconds(suite, "until the first output", start.elapsed());
        self.core.introduce(&machine)?;
        figures.milliseconds(suite, "until the agent answers", start.elapsed());
        self.remove(&machine)
    }

    /// Many from one.
    pub(super) fn clones(&self, figures: &mut Figures) -> Result<(), Problem> {
        let parent = self.machine("parent")?;
        self.core.introduce(&parent)?;
        let start = Instant::now();
        let request = CloneRequest { count: CLONES, name: Some(self.name("clone")?), ..CloneRequest::default() };
        self.end(self.core.clone_vm(&parent.id, request)?)?;
        figures.milliseconds(BenchmarkSuite::Clone, "ten clones that know who they are", start.elapsed());
        self.remove_all()
    }

    /// A snapshot under a guest that runs.
    pub(super) fn snapshot(&self, figures: &mut Figures) -> Result<(), Problem> {
        let machine = self.machine("snapshot")?;
        self.core.introduce(&machine)?;
        let start = Instant::now();
        self.end(self.core.snapshot(&machine.id, SnapshotRequest::default())?)?;
        let took = start.elapsed();
        let taken = self.core.store.list_with(SNAPSHOTS, &format!("{}/", machine.id))?;
        let none = || Problem::new(Code::Internal, "a snapshot was taken and is not there");
        let (_, SnapshotRecord { snapshot, .. }) = taken.into_iter().next().ok_or_else(none)?;
        let suite = BenchmarkSuite::Snapshot;
        figures.milliseconds(suite, "the guest stands still", Duration::from_nanos(snapshot.pause_ns));
        figures.milliseconds(suite, "until it is stored", took);
        self.remove(&machine)
    }

    fn name(&self, what: &str) -> Result<Name, Problem> {
        // The end of an identifier is what differs.
        let tail = self.id.get(self.id.len().saturating_sub(8)..).unwrap_or_default();
        let name = format!("bench-{tail}-{what}").parse();
        name.map_err(|error| Problem::new(Code::Internal, format!("a name is none: {error}")))
    }

    /// A machine with our own kernel; its process runs when this returns.
    fn machine(&self, what: &str) -> Result<Arc<Machine>, Problem> {
        let labels = [(LABEL.to_owned(), self.id.to_owned())].into();
        let spec = VmSpec { ram_bytes: RAM_BYTES, labels, ..VmSpec::default() };
        let name = self.name(what)?;
        self.end(self.core.create(CreateVm { name: name.clone(), spec, start: true })?)?;
        self.core.machines.find(name.as_str())
    }

    /// Waits for an operation of the run, which must succeed.
    fn end(&self, operation: Operation) -> Result<(), Problem> {
        let mut now = operation;
        self.wait_until("a measurement takes too long", || {
            let waited = self.core.runtime.block_on(self.core.wait_operation(&now.id, LOOK));
            if let Some(known) = waited.or_else(|| self.core.operation(&now.id).ok()) {
                now = known;
            }
            now.state.is_over()
        })?;
        match now.problem {
            None if now.state == OperationState::Succeeded => Ok(()),
            problem => Err(problem.unwrap_or_else(|| Problem::new(Code::Internal, "a part of the run was given up"))),
        }
    }

    fn wait_until(&self, otherwise: &str, mut check: impl FnMut() -> bool) -> Result<(), Problem> {
        let start = Instant::now();
        while !check() {
            self.task.check()?;
            if start.elapsed() > PATIENCE {
                return Err(Problem::new(Code::Timeout, otherwise));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn remove(&self, machine: &Machine) -> Result<(), Problem> {
        self.end(self.core.delete(&machine.id, true)?)
    }

    fn remove_all(&self) -> Result<(), Problem> {
        let machines = self.core.bench_machines(self.id);
        let begun =
            machines.iter().map(|machine| self.core.delete(&machine.id, true)).collect::<Result<Vec<_>, _>>()?;
        begun.into_iter().try_for_each(|operation| self.end(operation))
    }
}

impl Core {
    fn bench_machines(&self, id: &str) -> Vec<Arc<Machine>> {
        let is_of_run =
            |machine: &Arc<Machine>| machine.lock().record.spec.labels.get(LABEL).is_some_and(|run| run == id);
        self.machines.all().into_iter().filter(is_of_run).collect()
    }

    /// Removes the machines of a run that is over, whatever became of it.
    pub(super) fn remove_bench_machines(self: &Arc<Self>, id: &str) {
        for machine in self.bench_machines(id) {
            let deleted = self.delete(&machine.id, true);
            if let Err(problem) = deleted {
                tracing::warn!(vm = machine.id, %problem, "a machine of a benchmark is left over");
            }
        }
    }
}

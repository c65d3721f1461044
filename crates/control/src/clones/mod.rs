//! Clones: machines that begin where another one is, or was.
//!
//! Promises:
//! - the source stands still only for its devices' state; its memory is shared until somebody writes to it;
//! - each clone has its own name, addresses, VM generation id, entropy, clock and disks;
//! - all clones of a request come to be, or none: what fails, also the daemon's death, undoes the others.
//!
//! ```text
//! source ── Fork ──> state, memory's files ──┬─> clone 1: disks on top, process, identity through the agent
//!   │ (or a snapshot of it) ─────────────────┼─> clone 2
//!   └── goes on with disks on top            └─> …
//! ```

mod identity;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use queztl_api::{
    CloneRequest, Code, EventKind, Name, NetKind, Operation, OperationKind, Origin, Problem, VmSpec, VmState,
};
use queztl_vmm::process::Start;
use serde_json::json;

use crate::manager::Core;
use crate::operations::Task;
use crate::snapshots;
use crate::store::{LAYERS, VMS};
use crate::supervisor;
use crate::vms::lifecycle::Command;
use crate::vms::naming::{new_id, numbered};
use crate::vms::{Claim, DiskRecord, Machine, make_folder};

/// Most clones of one request.
const MAX_CLONES: u32 = 1000;

/// What clones are made from.
struct Source {
    disks: Vec<DiskRecord>,
    /// A snapshot, or the state of a fork.
    state: PathBuf,
    /// Of a fork: the files of the memory.
    memory: Option<Vec<Arc<OwnedFd>>>,
}

impl Core {
    pub(crate) fn clone_vm(self: &Arc<Self>, vm: &str, request: CloneRequest) -> Result<Operation, Problem> {
        self.check_takes_machines()?;
        if !(1..=MAX_CLONES).contains(&request.count) {
            return Err(Problem::invalid("count", format!("is from 1 to {MAX_CLONES}")));
        }
        let source = self.machines.find(vm)?;
        let record = source.record();
        refuse_tap(&record.spec)?;
        let saved = request.snapshot.as_ref().map(|name| self.snapshot_record(&source, name)).transpose()?;
        let command = if saved.is_some() { Command::Restore } else { Command::Clone };
        let claim = source.claim(OperationKind::Clone, command)?;
        let prefix = request.name.as_ref().unwrap_or(&record.name);
        let names = self.clone_names(prefix, &request)?;
        let clones = names.iter().map(|name| self.conceive(&source, name, request.snapshot.clone()));
        let clones = clones.collect::<Result<Vec<_>, Problem>>()?;
        let known = clones.clone();
        let begun = self.begin(
            OperationKind::Clone,
            Some(source.id.clone()),
            |change| {
                for clone in &known {
                    crate::vms::create::insert(change, &clone.machine.record())?;
                    self.machines.insert(clone.machine.clone());
                }
                Ok(())
            },
            move |core, task| {
                task.cancellable(true);
                let result = core.make_clones(&source, claim, &request, &clones, task);
                task.cancellable(false);
                if result.is_err() {
                    core.undo_clones(&clones);
                }
                result?;
                let made: Vec<_> = clones.iter().map(|clone| clone.machine.describe()).collect();
                Ok(json!(made))
            },
        );
        if begun.is_err() {
            known.iter().for_each(|clone| self.machines.remove(&clone.machine.id));
        }
        begun
    }

    fn clone_names(&self, prefix: &Name, request: &CloneRequest) -> Result<Vec<Name>, Problem> {
        // One clone with a name of its own has just that.
        if let (1, Some(name)) = (request.count, &request.name)
            && !self.machines.has_name(name.as_str())
        {
            return Ok(vec![name.clone()]);
        }
        numbered(prefix.as_str(), request.count as usize, |name| self.machines.has_name(name))
    }

    /// A clone of which nothing has been made.
    fn conceive(&self, source: &Machine, name: &Name, snapshot: Option<Name>) -> Result<Arc<Clone>, Problem> {
        let from = source.record();
        let mut spec = from.spec;
        // Two machines with one address would not hear each other.
        spec.nets.iter_mut().for_each(|net| net.mac = None);
        let mut record = crate::vms::create::blank(name, spec)?;
        record.origin = Some(Origin { vm: from.id, snapshot });
        let machine = Arc::new(Machine::new(&self.config.home, record));
        let claim = machine.claim(OperationKind::Clone, Command::Start)?;
        Ok(Arc::new(Clone { machine, claim: Mutex::new(Some(claim)) }))
    }

    fn make_clones(
        self: &Arc<Self>,
        source: &Machine,
        claim: Claim,
        request: &CloneRequest,
        clones: &[Arc<Clone>],
        task: &Task,
    ) -> Result<(), Problem> {
        let from = match &request.snapshot {
            Some(name) => {
                let record = self.snapshot_record(source, name)?;
                Source { disks: record.disks, state: snapshots::directory(source, name.as_str()), memory: None }
            }
            None => self.fork(source)?,
        };
        // A fork is all there is to know of the source; a snapshot must stay until it has been read.
        let claim = if from.memory.is_some() {
            drop(claim);
            None
        } else {
            Some(claim)
        };
        let made =
            self.furnish_clones(&from, clones, task).and_then(|()| self.run_clones(&from, request, clones, task));
        if from.memory.is_some() {
            remove_fork(&from.state);
        }
        drop(claim);
        made?;
        self.complete_clones(source, clones)
    }

    /// Cuts the running source.
    fn fork(&self, source: &Machine) -> Result<Source, Problem> {
        make_folder(&source.folder.snapshots())?;
        let state = source.folder.snapshots().join(format!("fork-{}", new_id()));
        let record = source.record();
        let cut = self.stack(&record.id, &record.disks)?;
        self.begin_cut(source, &cut)?;
        let memory = match supervisor::fork(&source.folder, &state, &cut.orders) {
            Ok(memory) => memory,
            Err(problem) => {
                self.settle_cut(source)?;
                remove_fork(&state);
                snapshots::remove_unfinished(source);
                return Err(problem);
            }
        };
        let noted = self.amend(source, |record| record.cut_disks.clear(), |_, _| Ok(()));
        if let Err(problem) = noted {
            remove_fork(&state);
            return Err(problem);
        }
        Ok(Source { disks: cut.old, state, memory: Some(memory.into_iter().map(Arc::new).collect()) })
    }

    /// Makes the clones' disks and directories, and notes all of them at once.
    fn furnish_clones(self: &Arc<Self>, from: &Source, clones: &[Arc<Clone>], task: &Task) -> Result<(), Problem> {
        let cuts = Mutex::new(Vec::with_capacity(clones.len()));
        for_each(clones, |clone| {
            task.check()?;
            make_folder(clone.machine.folder.path())?;
            let cut = self.stack(&clone.machine.id, &from.disks)?;
            cuts.lock().unwrap_or_else(PoisonError::into_inner).push((clone.machine.clone(), cut));
            Ok(())
        })?;
        let cuts = cuts.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.store.write(|change| {
            for (machine, cut) in &cuts {
                let mut inner = machine.lock();
                inner.record.disks = cut.new.clone();
                inner.record.wish = crate::vms::Wish::On;
                inner.record.started_before = true;
                for layer in &cut.layers {
                    change.put(LAYERS, &layer.id, layer)?;
                }
                change.put(VMS, &machine.id, &inner.record)?;
            }
            Ok(())
        })
    }

    fn run_clones(
        self: &Arc<Self>,
        from: &Source,
        request: &CloneRequest,
        clones: &[Arc<Clone>],
        task: &Task,
    ) -> Result<(), Problem> {
        let done = AtomicUsize::new(0);
        for_each(clones, |clone| {
            task.check()?;
            let machine = &clone.machine;
            let identity = Some(crate::vms::identity(&machine.record())?);
            let claim = clone.claim.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(claim) = claim.as_ref() else { return Ok(()) };
            match &from.memory {
                Some(memory) => {
                    let start = Start::Fork { state: from.state.clone(), memory: Vec::new(), identity };
                    self.run_from(machine, claim, start, memory.clone())?;
                }
                None => {
                    let start = Start::Restore { snapshot: from.state.clone(), identity };
                    self.run_from(machine, claim, start, Vec::new())?;
                }
            }
            if request.wait_for_agent {
                self.introduce(machine)?;
            } else {
                self.introduce_soon(machine);
            }
            task.progress(done.fetch_add(1, Ordering::Relaxed) as u64 + 1, clones.len() as u64, "machines");
            Ok(())
        })
    }

    /// The clones are machines like all others from now on.
    fn complete_clones(&self, source: &Machine, clones: &[Arc<Clone>]) -> Result<(), Problem> {
        let from = source.record().name;
        self.store.write(|change| {
            for clone in clones {
                let mut inner = clone.machine.lock();
                inner.record.complete = true;
                change.put(VMS, &clone.machine.id, &inner.record)?;
                let kind = EventKind::VmCreated { vm: clone.machine.id.clone(), name: inner.record.name.to_string() };
                change.event(kind, format!("virtual machine {} was cloned from {from}", inner.record.name))?;
                if inner.state == VmState::Running {
                    crate::vms::changed(change, &inner.record, inner.state, "runs")?;
                }
            }
            Ok(())
        })?;
        for clone in clones {
            clone.claim.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
        Ok(())
    }

    fn undo_clones(&self, clones: &[Arc<Clone>]) {
        let undone = for_each(clones, |clone| {
            self.end_process(&clone.machine)?;
            self.discard(&clone.machine);
            Ok(())
        });
        if let Err(problem) = undone {
            tracing::error!(%problem, "clones that could not be finished are left behind");
        }
    }
}

/// A clone in the making.
struct Clone {
    machine: Arc<Machine>,
    claim: Mutex<Option<Claim>>,
}

fn refuse_tap(spec: &VmSpec) -> Result<(), Problem> {
    match spec.nets.iter().any(|net| net.kind == NetKind::Tap) {
        false => Ok(()),
        true => Err(Problem::new(Code::State, "the machine has a TAP interface, which a clone cannot have too")),
    }
}

fn remove_fork(state: &Path) {
    if let Err(error) = std::fs::remove_dir_all(state)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(?state, %error, "the state of a fork cannot be removed");
    }
}

/// Does something for each, several at a time; the first problem ends it.
fn for_each<T: Sync>(items: &[T], work: impl Fn(&T) -> Result<(), Problem> + Sync) -> Result<(), Problem> {
    let cpus = std::thread::available_parallelism().map_or(2, usize::from);
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let problem = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..items.len().min(cpus * 4) {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                    if let Err(error) = work(item) {
                        failed.store(true, Ordering::Relaxed);
                        problem.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                }
            });
        }
    });
    problem.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

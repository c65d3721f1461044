//! A machine of the running daemon: its record, and its process if there is one.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use queztl_api::{BackupOrder, Code, EndingReason, OperationKind, Problem, RuntimeState, Timestamp, Vm, VmState};
use queztl_vmm::process::{Folder, ProcessId};

use super::VmRecord;
use super::lifecycle::{self, Command, Observation};
use crate::Signs;
use crate::manager::Core;
use crate::operations::word;
use crate::store::{Change, VMS};

/// One machine.
#[derive(Debug)]
pub(crate) struct Machine {
    pub id: String,
    pub folder: Folder,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub record: VmRecord,
    pub state: VmState,
    /// Its process.
    pub live: Option<Live>,
    /// What is being done with it; one thing at a time.
    busy: Option<OperationKind>,
    /// A copy is kept here: what is known of its owner's life.
    pub signs: Option<Arc<Signs>>,
    /// What its owner has said about that copy last.
    pub order: Option<BackupOrder>,
    /// Why fewer daemons keep copies of it than should.
    pub seeking: Option<String>,
    /// It is gone from the store.
    pub deleted: bool,
    /// Figures that need somebody to ask the process.
    pub restarts: u64,
    /// When a checkpoint was last begun.
    pub checkpoint_tried: Option<Timestamp>,
}

/// A process that runs a machine.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    pub process: ProcessId,
    pub pidfd: Arc<OwnedFd>,
    /// Known once it answers.
    pub accelerator: String,
    pub started_at: Timestamp,
    /// Somebody has asked for its end, and it will have been for this reason.
    pub ending: Option<EndingReason>,
}

/// The right to do something with a machine; let go when dropped.
#[derive(Debug)]
pub(crate) struct Claim(Arc<Machine>);

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.lock().busy = None;
        self.0.changed.notify_all();
    }
}

impl Machine {
    pub(crate) fn new(home: &Path, record: VmRecord) -> Machine {
        let folder = Folder::new(directory(home, &record.id));
        let state = match &record.ended {
            _ if !record.started_before => VmState::Created,
            Some(ending) if is_crash(ending.reason) => VmState::Crashed,
            _ => VmState::Stopped,
        };
        let id = record.id.clone();
        let inner = Inner {
            record,
            state,
            live: None,
            busy: None,
            signs: None,
            order: None,
            seeking: None,
            deleted: false,
            restarts: 0,
            checkpoint_tried: None,
        };
        Machine { id, folder, inner: Mutex::new(inner), changed: Condvar::new() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn record(&self) -> VmRecord {
        self.lock().record.clone()
    }

    pub(crate) fn state(&self) -> VmState {
        self.lock().state
    }

    pub(crate) fn describe(&self) -> Vm {
        let inner = self.lock();
        let runtime = inner.live.as_ref().map(|live| RuntimeState {
            pid: live.process.pid,
            accelerator: live.accelerator.clone(),
            started_at: live.started_at,
            restarts: inner.restarts,
        });
        let VmRecord { id, name, spec, created_at, origin, ended, .. } = inner.record.clone();
        Vm { id, name, state: inner.state, spec, created_at, origin, runtime, ended }
    }

    /// Takes the right to do something that makes sense in the machine's state.
    pub(crate) fn claim(self: &Arc<Self>, kind: OperationKind, command: Command) -> Result<Claim, Problem> {
        let mut inner = self.lock();
        let name = inner.record.name.as_str();
        if inner.deleted {
            return Err(Problem::not_found("virtual machine", name));
        }
        // What is being done tells more than the state that it has led to.
        if let Some(busy) = inner.busy {
            let text = format!("{name:?} is in the middle of something ({}): wait until that is over", word(busy));
            return Err(Problem::new(Code::State, text));
        }
        admitted(&inner, command)?;
        inner.busy = Some(kind);
        Ok(Claim(self.clone()))
    }

    /// As [`Machine::claim`], once nothing else is being done, or after `limit`.
    pub(crate) fn claim_soon(
        self: &Arc<Self>,
        kind: OperationKind,
        command: Command,
        limit: Duration,
    ) -> Result<Claim, Problem> {
        let deadline = Instant::now() + limit;
        let mut inner = self.lock();
        while inner.busy.is_some() && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(inner);
        self.claim(kind, command)
    }

    /// Whether the command makes sense now; for those that wait for nobody.
    pub(crate) fn admit(&self, command: Command) -> Result<(), Problem> {
        admitted(&self.lock(), command)
    }

    /// Takes note of what happened; gives the new state if it is another one.
    pub(crate) fn observe(&self, observation: Observation) -> Option<VmState> {
        let mut inner = self.lock();
        let state = lifecycle::observe(inner.state, observation);
        let changed = std::mem::replace(&mut inner.state, state) != state;
        self.changed.notify_all();
        changed.then_some(state)
    }

    /// Takes note that its process is gone.
    pub(crate) fn end(&self, crashed: bool) {
        let mut inner = self.lock();
        inner.live = None;
        inner.state = lifecycle::observe(inner.state, Observation::Ended { crashed });
        self.changed.notify_all();
    }

    /// Waits until the machine is as wanted; `None` if that has not come by then.
    pub(crate) fn wait<T>(&self, limit: Duration, mut wanted: impl FnMut(&Inner) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + limit;
        let mut inner = self.lock();
        loop {
            if let Some(found) = wanted(&inner) {
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Core {
    /// Changes a machine's record, in the store and here; `also` becomes part of the same change.
    pub(crate) fn amend(
        &self,
        machine: &Machine,
        how: impl FnOnce(&mut VmRecord),
        also: impl FnOnce(&mut Change<'_>, &VmRecord) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        self.store.write(|change| {
            let mut inner = machine.lock();
            how(&mut inner.record);
            change.put(VMS, &machine.id, &inner.record)?;
            let record = inner.record.clone();
            drop(inner);
            also(change, &record)
        })
    }
}

fn admitted(inner: &Inner, command: Command) -> Result<(), Problem> {
    let name = inner.record.name.as_str();
    lifecycle::admit(inner.state, command).map_err(|why| Problem::new(Code::State, format!("{name:?} {why}")))
}

/// Where a machine's files are.
pub(crate) fn directory(home: &Path, id: &str) -> PathBuf {
    home.join("vms").join(id)
}

/// Whether a machine that ended so should not have.
pub(crate) fn is_crash(reason: EndingReason) -> bool {
    match reason {
        EndingReason::PowerOff | EndingReason::Stopped | EndingReason::Moved | EndingReason::Killed => false,
        EndingReason::GuestPanic
        | EndingReason::TripleFault
        | EndingReason::ProcessFailed
        | EndingReason::SourceLost
        | EndingReason::Confinement => true,
    }
}

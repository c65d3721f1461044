//! Long work: goes on by itself, tells how far it is, can be cancelled where that makes sense.
//!
//! Promises:
//! - an operation is in the store before its work begins, and its end is there before anybody is told of it;
//! - it ends: whatever its work does, a panic included, becomes a result or a [`Problem`];
//! - what a dead daemon was at is [finished or undone](recover) when the next one starts.
//!
//! ```text
//! begin ── running ──┬── succeeded (result)
//!                    ├── failed (problem)
//!                    └── cancelled, if it was asked for and the work gave up for it
//! ```

mod recover;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::SignedDuration;
use queztl_api::{Code, EventKind, Operation, OperationKind, OperationState, Problem, Progress, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::manager::Core;
use crate::store::{Change, OPERATIONS};

/// Most operations at a time.
const MAX_RUNNING: usize = 256;
/// How long an operation that is over can be looked at.
pub(crate) const KEPT: SignedDuration = SignedDuration::from_hours(24);

/// When the end of an operation cannot be noted, such as on a full disk: until it is tried again.
const NOTE_AGAIN: Duration = Duration::from_secs(1);

/// An operation as the store has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct OperationRecord {
    pub operation: Operation,
}

/// The operations that run.
#[derive(Debug, Default)]
pub(crate) struct Operations {
    running: Mutex<HashMap<String, Arc<Running>>>,
}

#[derive(Debug)]
struct Running {
    state: watch::Sender<Operation>,
    cancelled: AtomicBool,
}

/// What the work of an operation has to do with its operation.
#[derive(Debug)]
pub(crate) struct Task(Arc<Running>);

impl Task {
    /// The operation's identifier.
    pub(crate) fn id(&self) -> String {
        self.0.state.borrow().id.clone()
    }

    /// Says how far the work is.
    pub(crate) fn progress(&self, done: u64, total: u64, unit: &str) {
        let progress = Some(Progress { done, total, unit: unit.to_owned() });
        self.0.state.send_modify(|operation| operation.progress = progress);
    }

    /// From now on the work looks at [`Task::check`], or no longer does.
    pub(crate) fn cancellable(&self, can: bool) {
        self.0.state.send_modify(|operation| operation.cancellable = can);
    }

    /// An error once the operation has been cancelled.
    pub(crate) fn check(&self) -> Result<(), Problem> {
        if self.0.cancelled.load(Ordering::Relaxed) {
            return Err(Problem::new(Code::Cancelled, "the operation was cancelled, and what it had done undone"));
        }
        Ok(())
    }
}

impl Operations {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Running>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: &str) -> Option<Arc<Running>> {
        self.lock().get(id).cloned()
    }
}

impl Core {
    /// Begins an operation: `with` becomes part of the change that notes it, `work` runs on a thread that may wait.
    pub(crate) fn begin(
        self: &Arc<Self>,
        kind: OperationKind,
        target: Option<String>,
        with: impl FnOnce(&mut Change<'_>) -> Result<(), Problem>,
        work: impl FnOnce(&Arc<Core>, &Task) -> Result<serde_json::Value, Problem> + Send + 'static,
    ) -> Result<Operation, Problem> {
        let operation = Operation {
            id: uuid::Uuid::now_v7().simple().to_string(),
            kind,
            state: OperationState::Running,
            target,
            created_at: Timestamp::now(),
            ended_at: None,
            progress: None,
            cancellable: false,
            result: None,
            problem: None,
        };
        let id = operation.id.clone();
        let running =
            Arc::new(Running { state: watch::Sender::new(operation.clone()), cancelled: AtomicBool::new(false) });
        self.admit(&id, running.clone())?;
        let noted = self.store.write(|change| {
            with(change)?;
            change.put(OPERATIONS, &id, &OperationRecord { operation: operation.clone() })?;
            let message = format!("operation {id} ({}) has begun", word(kind));
            Ok(change.event(EventKind::OperationStarted { operation: id.clone() }, message)?)
        });
        if let Err(problem) = noted {
            self.operations.lock().remove(&id);
            return Err(problem);
        }
        let core = self.clone();
        self.runtime.spawn_blocking(move || {
            let task = Task(running);
            let result = catch_unwind(AssertUnwindSafe(|| work(&core, &task))).unwrap_or_else(|_| {
                Err(Problem::new(
                    Code::Internal,
                    "the daemon made a mistake here: its log says which; please report it",
                ))
            });
            core.finish(&task.0, result);
        });
        Ok(operation)
    }

    fn admit(&self, id: &str, running: Arc<Running>) -> Result<(), Problem> {
        if self.is_closed() {
            return Err(Problem::new(Code::State, "the daemon is being stopped: start it again"));
        }
        let mut all = self.operations.lock();
        if all.len() >= MAX_RUNNING {
            let text = format!("{MAX_RUNNING} operations run already: try again when one is over");
            return Err(Problem::new(Code::Busy, text));
        }
        all.insert(id.to_owned(), running);
        Ok(())
    }

    /// Notes how an operation ended, then tells it.
    fn finish(&self, running: &Running, result: Result<serde_json::Value, Problem>) {
        let mut operation = running.state.borrow().clone();
        close(&mut operation, result);
        let note = || self.store.write(|change| note_end(change, &operation));
        let mut noted = note();
        running.state.send_replace(operation.clone());
        // Until the store has it, it is known here.
        while let Err(problem) = noted {
            tracing::error!(operation = operation.id, %problem, "the end of an operation cannot be noted yet");
            std::thread::sleep(NOTE_AGAIN);
            if self.is_closed() {
                // The next daemon takes it for one that was interrupted.
                break;
            }
            noted = note();
        }
        self.operations.lock().remove(&operation.id);
    }

    /// Those that run and those that ended in the last day, newest first.
    pub(crate) fn all_operations(&self) -> Result<Vec<Operation>, Problem> {
        let records = self.store.list(OPERATIONS)?;
        let current = |record: OperationRecord| match self.operations.find(&record.operation.id) {
            Some(running) => running.state.borrow().clone(),
            None => record.operation,
        };
        let oldest = Timestamp::now().saturating_sub(KEPT).unwrap_or(Timestamp::MIN);
        let kept = |operation: &Operation| operation.ended_at.is_none_or(|end| end >= oldest);
        Ok(records.into_iter().rev().map(|(_, record)| current(record)).filter(kept).collect())
    }

    pub(crate) fn operation(&self, id: &str) -> Result<Operation, Problem> {
        if let Some(running) = self.operations.find(id) {
            return Ok(running.state.borrow().clone());
        }
        let record = self.store.get(OPERATIONS, id)?;
        record.map(|record| record.operation).ok_or_else(|| Problem::not_found("operation", id))
    }

    /// What is being done of a kind with something.
    pub(crate) fn operation_on(&self, target: &str, kind: OperationKind) -> Option<Operation> {
        let all = self.operations.lock();
        let mut running = all.values().map(|running| running.state.borrow().clone());
        running.find(|operation| operation.kind == kind && operation.target.as_deref() == Some(target))
    }

    /// The operation once it is over, or as it is after `limit`.
    pub(crate) async fn wait_operation(&self, id: &str, limit: Duration) -> Option<Operation> {
        let running = self.operations.find(id)?;
        let mut state = running.state.subscribe();
        // At the limit, what there is; the sender lives as long as `running`.
        let _ = tokio::time::timeout(limit, state.wait_for(|operation| operation.state.is_over())).await;
        let operation = state.borrow().clone();
        Some(operation)
    }

    pub(crate) fn cancel_operation(&self, id: &str) -> Result<Operation, Problem> {
        let Some(running) = self.operations.find(id) else {
            let over = self.operation(id)?;
            return Err(Problem::new(Code::State, format!("operation {} is over already", over.id)));
        };
        let operation = running.state.borrow().clone();
        if !operation.cancellable {
            let text = format!("operation {id} ({}) cannot be cancelled now: wait for its end", word(operation.kind));
            return Err(Problem::new(Code::State, text));
        }
        running.cancelled.store(true, Ordering::Relaxed);
        Ok(operation)
    }

    /// Whether operations run.
    pub(crate) fn is_busy(&self) -> bool {
        !self.operations.lock().is_empty()
    }
}

fn close(operation: &mut Operation, result: Result<serde_json::Value, Problem>) {
    operation.ended_at = Some(Timestamp::now());
    operation.cancellable = false;
    match result {
        Ok(value) => {
            operation.state = OperationState::Succeeded;
            operation.result = (!value.is_null()).then_some(value);
        }
        Err(problem) => {
            let cancelled = problem.code == Code::Cancelled;
            operation.state = if cancelled { OperationState::Cancelled } else { OperationState::Failed };
            operation.problem = Some(problem);
        }
    }
}

fn note_end(change: &mut Change<'_>, operation: &Operation) -> Result<(), Problem> {
    let id = operation.id.clone();
    change.put(OPERATIONS, &id, &OperationRecord { operation: operation.clone() })?;
    let message = match &operation.problem {
        Some(problem) => format!("operation {id} ({}) failed: {}", word(operation.kind), problem.detail),
        None => format!("operation {id} ({}) has succeeded", word(operation.kind)),
    };
    Ok(change.event(EventKind::OperationEnded { operation: id }, message)?)
}

/// The kind, as the API calls it.
pub(crate) fn word(kind: OperationKind) -> String {
    let value = serde_json::to_value(kind).unwrap_or_default();
    value.as_str().unwrap_or("operation").to_owned()
}

//! Long work.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Problem;

/// Something that takes time: it goes on whether or not anybody waits for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// Its identifier.
    pub id: String,
    /// What is done.
    pub kind: OperationKind,
    /// Whether it is over.
    pub state: OperationState,
    /// The machine or image it is about: its identifier or name.
    pub target: Option<String>,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it was over.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
    /// How far it is, where that is known.
    pub progress: Option<Progress>,
    /// Can it be cancelled now?
    pub cancellable: bool,
    /// What it made, once it has succeeded: a machine, a snapshot, a list of machines, …
    #[schema(value_type = Option<Object>)]
    pub result: Option<serde_json::Value>,
    /// Why it failed.
    pub problem: Option<Problem>,
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OperationKind {
    Create,
    Start,
    Stop,
    Kill,
    Pause,
    Resume,
    Reboot,
    Delete,
    Snapshot,
    DeleteSnapshot,
    Restore,
    Clone,
    Migrate,
    Receive,
    Drain,
    Protect,
    Unprotect,
    KeepCopy,
    ImportImage,
    CreateImage,
    CheckImage,
    ConvertImage,
    ResizeImage,
    Benchmark,
}

/// Whether an operation is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OperationState {
    /// It goes on.
    Running,
    /// It is done.
    Succeeded,
    /// It was not done; `problem` says why.
    Failed,
    /// It was given up because somebody wished so.
    Cancelled,
}

impl OperationState {
    pub fn is_over(self) -> bool {
        self != OperationState::Running
    }
}

/// How far it is, in units that depend on the kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// What is done.
    pub done: u64,
    /// What there is to do.
    pub total: u64,
    /// `bytes`, `machines`, …
    pub unit: String,
}

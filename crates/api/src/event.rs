//! What happens, as it happens.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::VmState;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Grows by one with every event of this daemon's store.
    pub sequence: u64,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    #[serde(flatten)]
    pub kind: EventKind,
    /// A sentence.
    pub message: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum EventKind {
    VmCreated {
        vm: String,
        name: String,
    },
    VmChanged {
        vm: String,
        name: String,
        state: VmState,
    },
    VmDeleted {
        vm: String,
        name: String,
    },
    VmPanicked {
        vm: String,
        name: String,
    },
    VmRestarted {
        vm: String,
        name: String,
    },
    SnapshotTaken {
        vm: String,
        snapshot: String,
    },
    SnapshotDeleted {
        vm: String,
        snapshot: String,
    },
    ImageAdded {
        image: String,
    },
    ImageDeleted {
        image: String,
    },
    OperationStarted {
        operation: String,
    },
    OperationEnded {
        operation: String,
    },
    DaemonStarted,
    /// Something is not as it should be, and nothing fails for it.
    Warning,
    /// The reader was too slow: events up to this one were dropped.
    Lost {
        up_to: u64,
    },
}

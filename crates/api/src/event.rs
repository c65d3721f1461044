//! What happens, as it happens.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{AlertRule, NodeState, ProtectionState, VmState};

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Grows by one with every event of this daemon's store.
    pub sequence: u64,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
    /// A sentence.
    pub message: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum EventKind {
    /// A machine was made.
    VmCreated {
        /// The machine's identifier.
        vm: String,
        /// The machine's name.
        name: String,
    },
    /// A machine is in another state now.
    VmChanged {
        /// The machine's identifier.
        vm: String,
        /// The machine's name.
        name: String,
        /// Its state now.
        state: VmState,
    },
    /// A machine is gone.
    VmDeleted {
        /// The machine's identifier.
        vm: String,
        /// The machine's name.
        name: String,
    },
    /// A machine's guest panicked.
    VmPanicked {
        /// The machine's identifier.
        vm: String,
        /// The machine's name.
        name: String,
    },
    /// A machine's guest restarted.
    VmRestarted {
        /// The machine's identifier.
        vm: String,
        /// The machine's name.
        name: String,
    },
    /// A machine's protection is in another state now.
    ProtectionChanged {
        /// The machine's identifier.
        vm: String,
        /// The machine's name.
        name: String,
        /// Its state now.
        state: ProtectionState,
    },
    /// A snapshot was taken.
    SnapshotTaken {
        /// The machine's identifier.
        vm: String,
        /// The snapshot's name.
        snapshot: String,
    },
    /// A snapshot is gone.
    SnapshotDeleted {
        /// The machine's identifier.
        vm: String,
        /// The snapshot's name.
        snapshot: String,
    },
    /// The store has another image.
    ImageAdded {
        /// The image's name.
        image: String,
    },
    /// An image is gone.
    ImageDeleted {
        /// The image's name.
        image: String,
    },
    /// Long work has begun.
    OperationStarted {
        /// The operation's identifier.
        operation: String,
    },
    /// Long work is over.
    OperationEnded {
        /// The operation's identifier.
        operation: String,
    },
    /// Something is not as it should be; the list of alerts tells more.
    AlertFiring {
        /// The alert's identifier.
        alert: String,
        /// What was looked for.
        rule: AlertRule,
    },
    /// It is as it should be again.
    AlertResolved {
        /// The alert's identifier.
        alert: String,
        /// What was looked for.
        rule: AlertRule,
    },
    /// The cluster has another node.
    NodeJoined {
        /// The node's name.
        node: String,
    },
    /// A node left the cluster, or was removed from it.
    NodeLeft {
        /// The node's name.
        node: String,
    },
    /// A node is in another state now.
    NodeChanged {
        /// The node's name.
        node: String,
        /// Its state now.
        state: NodeState,
    },
    /// The daemon has started.
    DaemonStarted,
    /// Something is not as it should be, and nothing fails for it.
    Warning,
    /// The reader was too slow: events up to this one were dropped.
    Lost {
        /// The number of the last event that was dropped.
        up_to: u64,
    },
}

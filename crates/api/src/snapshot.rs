//! Snapshots and clones.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Name;

/// A snapshot to be taken.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotRequest {
    /// Made from the time if it is not given.
    pub name: Option<Name>,
    /// Save only what has changed since the machine's last snapshot, where there is one to build on.
    pub incremental: bool,
    /// Text for people.
    pub description: String,
}

/// A snapshot: memory, devices and disks at one point in time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// Its name.
    pub name: Name,
    /// Identifier of its machine.
    pub vm: String,
    /// Whether it stands alone.
    pub kind: SnapshotKind,
    /// The snapshot it builds on, for an incremental one.
    pub base: Option<Name>,
    /// When it was taken.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Text for people.
    pub description: String,
    /// Taken by the machine's schedule, and subject to its retention.
    pub scheduled: bool,
    /// What it takes on the host.
    pub size_bytes: u64,
    /// How long the guest stood still.
    pub pause_ns: u64,
}

/// Whether a snapshot stands alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotKind {
    /// It does.
    Full,
    /// It has only what changed since another.
    Incremental,
}

/// Clones to be made of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CloneRequest {
    /// How many.
    #[schema(minimum = 1, maximum = 1000)]
    pub count: u32,
    /// The snapshot to start from; none for the running machine as it is now.
    pub snapshot: Option<Name>,
    /// The clones are called so with a number behind; none for the machine's own name.
    pub name: Option<Name>,
    /// Wait until each clone's agent has taken its new identity.
    pub wait_for_agent: bool,
}

impl Default for CloneRequest {
    fn default() -> CloneRequest {
        CloneRequest { count: 1, snapshot: None, name: None, wait_for_agent: true }
    }
}

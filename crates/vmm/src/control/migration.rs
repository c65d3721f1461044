//! A machine on its way to another place, as the control socket tells of it.

use serde::{Deserialize, Serialize};

/// When memory goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationMode {
    /// Before the machine, in rounds.
    #[default]
    PreCopy,
    /// After it: the machine runs at the target at once, and both ends are needed until all has come.
    PostCopy,
    /// Before it, and what does not become less in that way after it.
    Auto,
}

/// How far it is. Figures of a migration that has ended stay until the next one begins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migration {
    pub phase: MigrationPhase,
    /// The round that is or was being sent; the first has all of RAM.
    pub round: u32,
    /// RAM that was sent, and what that took on the wire.
    pub data_bytes: u64,
    pub wire_bytes: u64,
    /// What the last round that was finished has brought.
    pub round_bytes: u64,
    /// Since it began; up to its end if it has ended.
    pub total_ns: u64,
    /// How long the guest has stood still for good, up to the moment when the target had it.
    pub blackout_ns: u64,
    /// How long it stood still before that, for a moment in each round.
    pub pauses_ns: u64,
    /// What of disks was sent.
    #[serde(default)]
    pub disk_bytes: u64,
    /// What the blackout was made of.
    #[serde(default)]
    pub blackout: Blackout,
    /// Memory went, or goes, after the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late: Option<Late>,
    /// Why it has failed, or is in doubt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The parts of a blackout, one after the other, in nanoseconds; together they are a little less than all of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blackout {
    /// The vCPUs stop, and the devices become quiet.
    pub stop_ns: u64,
    /// Their states are taken, and RAM is frozen.
    pub cut_ns: u64,
    /// The last writes to disks are sent, and disks that both hosts see are flushed and let go.
    pub disks_ns: u64,
    /// The last pages and the state are sent.
    pub memory_ns: u64,
    /// What was sent last is on its way, and answers are.
    pub network_ns: u64,
    /// The machine is made at the target.
    pub start_ns: u64,
}

/// Memory that goes after its machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Late {
    /// What was missing at the target when the machine began to run there.
    pub missing_bytes: u64,
    /// From then on until all had come.
    pub whole_ns: u64,
    /// How often the connection broke, and was made again.
    pub reconnects: u32,
    /// Page faults for which a page was fetched, and how long they took; known at the end.
    pub faults: u64,
    pub fault_p50_ns: u64,
    pub fault_p99_ns: u64,
}

/// ```text
/// none ──> copying ──> blackout ──────────────> moved       the machine ends here
///             │            ├──────> serving ──> moved       it runs there, and fetches its memory from here
///             │            ├──────> in-doubt    it stands still here; whoever knows whether the target runs it ends or resumes it
///             └────────────┴──────> failed, cancelled: it runs here
/// ```
/// One that is in doubt may find out by itself, where memory goes after the machine: then it is serving.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationPhase {
    #[default]
    None,
    Copying,
    Blackout,
    Serving,
    Moved,
    InDoubt,
    Failed,
    Cancelled,
}

impl MigrationPhase {
    /// Whether something is under way.
    pub fn is_active(self) -> bool {
        matches!(self, MigrationPhase::Copying | MigrationPhase::Blackout | MigrationPhase::Serving)
    }
}

//! Machines on their way from one daemon to another.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Name, VmSpec};

/// When a machine's memory goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationMode {
    /// Before the machine, in rounds: until it runs there, losing the target harms nothing.
    #[default]
    PreCopy,
    /// After it: the machine runs there at once and fetches pages when it touches them. Until all have come, losing either host
    /// loses the machine.
    PostCopy,
    /// Before it; after it what does not become less in that way, since the guest writes as fast as can be sent.
    Auto,
}

/// Brings a running machine to another daemon. Its snapshots do not go with it: it must have none.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrateRequest {
    /// The other daemon: a node's name, `https://host:port`, or `unix:/path` of one on the same host.
    pub to: String,
    /// A token of that daemon with scope `admin`; needed over https.
    #[serde(default)]
    pub token: Option<String>,
    /// Certificates to trust, PEM, rather than the host's usual authorities.
    #[serde(default)]
    pub authority: Option<String>,
    /// Connections for memory.
    #[serde(default = "stripes")]
    #[schema(minimum = 1, maximum = 16, default = 2)]
    pub stripes: u32,
    /// Rounds of copying at most before the machine stands still for the last one.
    #[serde(default = "max_rounds")]
    #[schema(minimum = 1, maximum = 100, default = 8)]
    pub max_rounds: u32,
    /// Files that it writes to are the same ones there, by the same paths: they are not copied, but let go here and opened there.
    #[serde(default)]
    pub shared_disks: bool,
    /// When its memory goes.
    #[serde(default)]
    pub mode: MigrationMode,
    /// It is understood that the machine is lost if either host is before all memory has come. Needed for the modes in which
    /// memory may go after the machine.
    #[serde(default)]
    pub source_loss_accepted: bool,
    /// How long the target waits for pages from a source that cannot be reached, in seconds, before it gives the machine up.
    #[serde(default = "patience_s")]
    #[schema(minimum = 1, maximum = 86400, default = 60)]
    pub patience_s: u32,
}

impl std::fmt::Debug for MigrateRequest {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MigrateRequest").field("to", &self.to).finish_non_exhaustive()
    }
}

impl MigrateRequest {
    /// A request with the usual settings.
    pub fn to(address: impl Into<String>) -> MigrateRequest {
        let (stripes, max_rounds) = (stripes(), max_rounds());
        MigrateRequest {
            to: address.into(),
            token: None,
            authority: None,
            stripes,
            max_rounds,
            shared_disks: false,
            mode: MigrationMode::default(),
            source_loss_accepted: false,
            patience_s: patience_s(),
        }
    }
}

fn stripes() -> u32 {
    2
}

fn max_rounds() -> u32 {
    8
}

fn patience_s() -> u32 {
    60
}

/// How a migration went: the result of its operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrationReport {
    /// The daemon that has the machine now.
    pub to: String,
    /// Rounds of copying, the last one included.
    pub rounds: u32,
    /// Memory that was sent.
    pub data_bytes: u64,
    /// What that took on the wire.
    pub wire_bytes: u64,
    /// What of disks was sent.
    #[serde(default)]
    pub disk_bytes: u64,
    /// From the first connection to the end, in nanoseconds.
    pub total_ns: u64,
    /// How long the guest stood still when it was handed over, in nanoseconds.
    pub blackout_ns: u64,
    /// What that time was made of.
    #[serde(default)]
    pub blackout: BlackoutParts,
    /// How long it stood still in the rounds before, in nanoseconds.
    pub pauses_ns: u64,
    /// What of its memory went after it, if any did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late: Option<LateMemory>,
}

/// Memory that went after its machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LateMemory {
    /// What was missing when the machine began to run at the target.
    pub missing_bytes: u64,
    /// From then on until all had come, in nanoseconds.
    pub whole_ns: u64,
    /// How often the connection broke and was made again.
    pub reconnects: u32,
    /// Page faults for which the guest waited.
    pub faults: u64,
    /// How long half of them took at the most, in nanoseconds.
    pub fault_p50_ns: u64,
    /// How long 99 of 100 took at the most, in nanoseconds.
    pub fault_p99_ns: u64,
}

/// The parts of the time in which the guest stood still, one after the other, in nanoseconds. Together they are a little less than
/// all of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BlackoutParts {
    /// The vCPUs stop, and the devices become quiet.
    pub stop_ns: u64,
    /// Their states are taken.
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

/// A machine that is to arrive here from another daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReceiveRequest {
    /// Its identifier, which stays what it was.
    #[schema(pattern = "^[0-9a-f]{32}$")]
    pub id: String,
    /// Its name.
    pub name: Name,
    /// What it is.
    pub spec: VmSpec,
    /// The addresses of its network devices, in their order.
    pub macs: Vec<String>,
    /// Disks that it writes to which are here already; all others come with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared: Vec<SharedDisk>,
    /// It does not come to stay: a copy of it is kept, and goes on if it has to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<crate::BackupOrder>,
}

/// A disk of an arriving machine whose file both hosts see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SharedDisk {
    /// Its number among the machine's disks.
    pub index: u32,
    /// What the source sees of the file, by which the target knows that its own is the same: its number in the file system.
    pub inode: u64,
    /// And its length.
    pub length_bytes: u64,
}

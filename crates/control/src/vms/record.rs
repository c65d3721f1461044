//! What the store knows of a machine.

use std::path::PathBuf;

use queztl_api::{Ending, MigrateRequest, Name, Origin, Timestamp, VmSpec};
use queztl_vmm::config::Mac;
use serde::{Deserialize, Serialize};

/// A machine as it is wished, and what happened to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct VmRecord {
    pub id: String,
    pub name: Name,
    pub spec: VmSpec,
    pub created_at: Timestamp,
    pub origin: Option<Origin>,
    /// Everything that belongs to it has been made. Without it, the next daemon removes the machine.
    pub complete: bool,
    /// It comes from another daemon, and may be here already: its process knows.
    #[serde(default)]
    pub arriving: bool,
    /// It is on its way to another daemon, and may be there already: the two processes know.
    #[serde(default)]
    pub leaving: Option<MigrateRequest>,
    /// It is copied to other daemons, one of which may have taken it.
    #[serde(default)]
    pub protection: Option<crate::protections::Guarded>,
    /// It was protected where it was before, and is to be so again: its backups are those that can be asked.
    #[serde(default)]
    pub again: Option<queztl_api::ProtectRequest>,
    /// This daemon's number in the group of those that had copies of it.
    #[serde(default)]
    pub node: Option<u32>,
    /// The next daemon goes on deleting it.
    pub deleting: bool,
    pub wish: Wish,
    pub started_before: bool,
    /// How its last run ended.
    pub ended: Option<Ending>,
    /// Its disks, in the order of the specification's.
    pub disks: Vec<DiskRecord>,
    /// While its disks are being cut: what they were before. Both are kept until it is known which the process uses.
    #[serde(default)]
    pub cut_disks: Vec<DiskRecord>,
    /// The network devices' addresses, in their order.
    pub macs: Vec<Mac>,
    /// Crashes that recovery has answered lately.
    #[serde(default)]
    pub crashes: Vec<Timestamp>,
    /// The snapshot that a next incremental one builds on.
    #[serde(default)]
    pub last_snapshot: Option<Name>,
}

/// Whether a machine is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Wish {
    #[default]
    Off,
    On,
}

/// Where a disk of a machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskRecord {
    pub source: DiskSource,
    pub read_only: bool,
    pub serial: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DiskSource {
    /// A file of the manager, by the identifier of its record.
    Layer(String),
    /// An image of the store, which the machine only reads.
    Image(Name),
    /// A file or device of the host.
    Path(PathBuf),
    /// A copy of another daemon's disk, a raw file in the machine's directory: it was protected there, and goes on here.
    Mirror(u32),
}

//! The requests and answers, as values. Sizes are bytes, times are milliseconds or nanoseconds as their names say.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::RateLimit;

/// What can be asked of a running machine: `{"command": "NAME", …}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How the machine is. Answered by [`Response::Status`].
    Status {},
    /// What its parts have done. Answered by [`Response::Metrics`].
    Metrics {},
    /// Stop all vCPUs and make the devices quiet. Nothing to do if they are.
    Pause {},
    /// Go on after a pause. Nothing to do if the machine runs.
    Resume {},
    /// End the machine at once, as a signal does.
    Stop {},
    /// Press the power button: the guest is asked to switch itself off.
    PowerButton {},
    /// Start the guest anew at once, as a reset button does. It loses what it has not written.
    Reset {},
    /// Ask the guest to give up memory to the balloon until it holds this much.
    Balloon { target_bytes: u64 },
    /// Ask the guest to use this much of the memory that can be hot-plugged.
    Memory { requested_bytes: u64 },
    /// Put another rate limit on a device in force.
    Limit {
        /// The limit's name, as in [`Status::limits`].
        device: String,
        /// The whole new limit: what it leaves out is not limited.
        limit: RateLimit,
    },
    /// Take a snapshot: memory, devices and the disks that are cut, at one moment. Answered by [`Response::Snapshot`] once it
    /// is on the disk. A machine that was paused stays so.
    Snapshot {
        /// Where it will be; must not exist yet, its parent must.
        directory: PathBuf,
        /// The snapshot that was taken or restored last, by its directory: the new one holds only the memory that has
        /// changed since, and cannot be restored without it.
        #[serde(default)]
        base: Option<PathBuf>,
        #[serde(default)]
        disks: Vec<DiskCut>,
        /// Leave the machine paused, if all went well.
        #[serde(default)]
        stay_paused: bool,
    },
    /// Give up the snapshot that is being written. It answers for itself, with [`Reason::Cancelled`] unless it was done
    /// before. Nothing to do if there is none.
    CancelSnapshot {},
    /// Give up the snapshot that is being written, and answer once nothing of what was asked for before is under way.
    Settle {},
    /// Make the machine's state ready for clones: as a snapshot, but the memory stays where it is and its files come beside
    /// the answer, [`Response::Fork`], in the order of the state's table.
    Fork {
        directory: PathBuf,
        #[serde(default)]
        disks: Vec<DiskCut>,
    },
    /// Bring the machine to the process that listens at a Unix socket, or to whoever passes on what comes there. Answered when
    /// it has begun; [`Request::Migration`] tells how it goes. When all is well, this process ends.
    Migrate {
        socket: PathBuf,
        /// Connections for memory, 1 to 16.
        stripes: u32,
        /// Rounds of copying at most before the machine stands still for the last one.
        max_rounds: u32,
        /// Disks, by their numbers, that are written to and are the same files there: they are not copied.
        #[serde(default)]
        shared: Vec<usize>,
        #[serde(default)]
        mode: super::MigrationMode,
        /// Where memory goes after the machine: how long the target waits for this process when it cannot be reached, before it
        /// gives the machine up.
        #[serde(default = "patience_ms")]
        patience_ms: u64,
    },
    /// How a migration goes, or has gone. Answered by [`Response::Migration`].
    Migration {},
    /// Give a migration up; the machine goes on here, unless it is being handed over or runs there.
    CancelMigration {},
    /// Copy the machine to backups while it runs, epoch by epoch. Answered when it has begun; [`Request::Protection`] tells how
    /// it goes.
    Protect { order: Box<super::ProtectOrder> },
    /// A backup is there, or there again.
    AddBackup { place: super::BackupPlace },
    /// So many acknowledgements are wished from now on: 1 to 8. The rule in force stays until enough backups have copies.
    Acks { acks: usize },
    /// What the group's register says now, while nobody writes it.
    Adopt { register: queztl_distributed_ram::Register },
    /// How the protection goes, and what is to be written into the register. Answered by [`Response::Protection`].
    Protection {},
    /// Protect the machine no longer.
    Unprotect {},
}

impl Request {
    /// Whether it takes longer than others can wait.
    pub fn is_long(&self) -> bool {
        use Request::{AddBackup, Fork, Migrate, Protect, Settle, Snapshot};
        matches!(self, Snapshot { .. } | Fork { .. } | Migrate { .. } | Settle {} | Protect { .. } | AddBackup { .. })
    }
}

fn patience_ms() -> u64 {
    60_000
}

/// Where a disk goes on: what is in its present file stays as it is from then on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskCut {
    /// The disk's number.
    pub index: usize,
    /// An empty qcow2 image on top of the disk's present file.
    pub overlay: PathBuf,
}

/// An answer: `{"result": "KIND", …}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Response {
    /// It was done, or the guest was asked for it.
    Done {},
    Status(Box<Status>),
    Snapshot(SnapshotReport),
    /// Descriptors of the memory's files come with it.
    Fork(SnapshotReport),
    Metrics(Box<super::Metrics>),
    Migration(super::Migration),
    Protection(Box<super::Protection>),
    Error(Refusal),
}

/// An answer with what cannot be written down.
#[derive(Debug)]
pub struct Answer {
    pub response: Response,
    /// At most [`super::MAX_FILES`].
    pub files: Vec<OwnedFd>,
}

impl From<Response> for Answer {
    fn from(response: Response) -> Answer {
        Answer { response, files: Vec::new() }
    }
}

/// A snapshot that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotReport {
    /// How long the machine stood still.
    pub pause_ns: u64,
    /// From the request to the end.
    pub total_ns: u64,
    /// Memory that was written, or that clones share; what is zero is not.
    pub memory_bytes: u64,
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub reason: Reason,
    /// A sentence for people.
    pub message: String,
}

impl Refusal {
    pub fn new(reason: Reason, message: impl Into<String>) -> Refusal {
        Refusal { reason, message: message.into() }
    }
}

/// The kinds of refusal, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The line is no request.
    Malformed,
    /// The request cannot be met by this machine: a wrong name or size.
    Invalid,
    /// The machine has no such device.
    Missing,
    /// The machine did not get there in time.
    Timeout,
    /// There are too many clients, or something else is under way that must end first.
    Busy,
    /// Somebody has cancelled it.
    Cancelled,
    /// The host or the machine could not do it.
    Failed,
}

/// How a machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub state: RunState,
    /// The process that runs the machine.
    pub pid: u32,
    /// What executes the guest: `kvm` or `soft`.
    pub accelerator: String,
    /// Since the machine was made; restarts and pauses count.
    pub uptime_ms: u64,
    /// How often the guest has restarted.
    pub restarts: u64,
    pub vcpus: Vec<Vcpu>,
    pub memory: Memory,
    /// The rate limits that can be set, in force or not.
    pub limits: Vec<DeviceLimit>,
    /// The snapshot whose memory is being written, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotProgress>,
}

/// How far a snapshot's memory has been written, by place in RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotProgress {
    pub done_bytes: u64,
    pub total_bytes: u64,
}

/// Whether the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    Running,
    Paused,
    /// Between two runs.
    Restarting,
}

/// A vCPU's figures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vcpu {
    /// Processor time its thread has taken in this run.
    pub cpu_ns: u64,
}

/// The guest's memory, from both sides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// RAM that the guest started with.
    pub ram_bytes: u64,
    /// RAM, hot-plugged included, that the host holds for the guest at the moment.
    pub resident_bytes: u64,
    pub balloon: Balloon,
    /// Memory that can be hot-plugged; `None` if the machine has none.
    pub hotplug: Option<Hotplug>,
    /// What of RAM has not come yet from where the machine was.
    #[serde(default)]
    pub arriving_bytes: u64,
    /// What the guest says of its memory; `None` if it has not said anything.
    pub guest: Option<GuestMemoryStats>,
}

/// The memory balloon.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balloon {
    /// What the guest was asked to give up.
    pub target_bytes: u64,
    /// What it has given up.
    pub actual_bytes: u64,
}

/// Memory that comes and goes while the guest runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hotplug {
    /// How much there can be.
    pub max_bytes: u64,
    /// What the guest was asked to use.
    pub requested_bytes: u64,
    /// What it uses.
    pub plugged_bytes: u64,
}

/// A guest's own view of its memory; `None` where it does not tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMemoryStats {
    /// When the guest said so, before now.
    pub age_ms: u64,
    pub total_bytes: Option<u64>,
    pub free_bytes: Option<u64>,
    /// What could be used without swapping.
    pub available_bytes: Option<u64>,
    pub disk_caches_bytes: Option<u64>,
    pub major_faults: Option<u64>,
    pub minor_faults: Option<u64>,
    pub swapped_in_bytes: Option<u64>,
    pub swapped_out_bytes: Option<u64>,
}

/// A rate limit by its name: `disk0`, `net0-rx`, `net0-tx`, `rng`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceLimit {
    pub device: String,
    pub limit: RateLimit,
    /// How often a request had to wait.
    pub waits: u64,
}

//! Virtual machines: what is wished and what is.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Name;

/// A virtual machine to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// Its name.
    pub name: Name,
    /// What it is made of.
    #[serde(default)]
    pub spec: VmSpec,
    /// Start it at once.
    #[serde(default)]
    pub start: bool,
}

/// What a virtual machine is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VmSpec {
    /// Kernel file; none for the one built here.
    #[schema(value_type = Option<String>)]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disks; without a kernel of its own, none means the small root file system built here.
    #[schema(value_type = Vec<String>)]
    pub initrd: Vec<PathBuf>,
    /// Kernel command line; with our own kernel it is appended to ours.
    pub cmdline: String,
    /// How many virtual processors it has.
    #[schema(minimum = 1, maximum = 256)]
    pub vcpus: u32,
    /// Memory it starts with, in bytes.
    #[schema(minimum = 2097152)]
    pub ram_bytes: u64,
    /// How much memory can be added while it runs.
    pub memory_hotplug_bytes: u64,
    /// `none`, `thp` or `2M`.
    pub huge_pages: String,
    /// Disks, in this order /dev/vda, /dev/vdb, …
    pub disks: Vec<Disk>,
    /// Network devices, in this order eth0, eth1, …
    pub nets: Vec<Net>,
    /// `auto`, `kvm` or `soft`, with the options of `queztl-hv run --accel`.
    pub accel: String,
    /// Limits that can be changed while it runs.
    pub limits: Limits,
    /// What becomes of it when it crashes.
    pub on_crash: OnCrash,
    /// Snapshots taken by themselves, if any.
    pub checkpoints: Option<Checkpoints>,
    /// Start it when the daemon starts.
    pub autostart: bool,
    /// Notes for people and programs.
    pub labels: BTreeMap<String, String>,
}

impl Default for VmSpec {
    fn default() -> VmSpec {
        VmSpec {
            kernel: None,
            initrd: Vec::new(),
            cmdline: String::new(),
            vcpus: 1,
            ram_bytes: 512 << 20,
            memory_hotplug_bytes: 0,
            huge_pages: "none".into(),
            disks: Vec::new(),
            nets: Vec::new(),
            accel: "auto".into(),
            limits: Limits::default(),
            on_crash: OnCrash::default(),
            checkpoints: None,
            autostart: false,
            labels: BTreeMap::new(),
        }
    }
}

/// A disk: an overlay on an image of the store that belongs to the machine, or a file of the host as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Disk {
    /// The image to build on. Without image and path, the disk is empty and has `size_bytes`.
    pub image: Option<Name>,
    /// A file or block device of the host, used in place.
    #[schema(value_type = Option<String>)]
    pub path: Option<PathBuf>,
    /// The disk's size, at least the image's; none for the image's.
    pub size_bytes: Option<u64>,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// Serial number as the guest reads it, at most 20 bytes.
    pub serial: Option<String>,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Net {
    /// Where it leads.
    pub kind: NetKind,
    /// The TAP interface, for that kind.
    #[serde(default)]
    pub tap: Option<String>,
    /// Chosen if it is not given.
    #[serde(default)]
    pub mac: Option<String>,
}

/// Where a network device leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NetKind {
    /// The host's network by address translation; needs no privilege.
    User,
    /// A TAP interface of the host.
    Tap,
}

/// Limits that can be changed while the machine runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// What it gets of the host's processors.
    pub cpu: CpuLimits,
    /// What the guest is asked to give up to the balloon.
    pub balloon_bytes: u64,
    /// What the guest is asked to use of its hot-pluggable memory.
    pub hotplug_bytes: u64,
    /// Rate limits by device: `disk0`, `net0-rx`, `net0-tx`, `rng`.
    pub rates: BTreeMap<String, RateLimit>,
}

/// What the machine's process gets of the host's processors.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CpuLimits {
    /// Its share where processors are short, from 1 to 10,000; 100 is usual.
    #[schema(minimum = 1, maximum = 10000)]
    pub weight: Option<u32>,
    /// What it may use at most, in percent of one processor: 150 is one and a half.
    #[schema(minimum = 1)]
    pub quota_percent: Option<u32>,
    /// vCPUs that stay on some of the host's processors.
    pub pins: Vec<Pin>,
}

/// A vCPU that stays on some processors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// Which vCPU.
    pub vcpu: u32,
    /// Numbers of the host's processors.
    pub cpus: Vec<u32>,
}

/// A rate limit; what is left out is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimit {
    /// Bytes of data.
    pub bytes: Option<Rate>,
    /// Requests, or frames.
    pub requests: Option<Rate>,
}

/// How much of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// How much in a second, after that.
    #[schema(minimum = 1)]
    pub per_second: u64,
    /// How much at once after a rest.
    #[schema(minimum = 1)]
    pub burst: u64,
}

/// What becomes of a machine whose guest or process crashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnCrash {
    /// It stays crashed.
    #[default]
    Stay,
    /// It boots again.
    Restart,
    /// It goes on from its newest good snapshot, else it boots.
    Restore,
}

/// Snapshots taken by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Checkpoints {
    /// How long between two.
    #[schema(minimum = 1)]
    pub every_seconds: u64,
    /// How many are kept.
    #[schema(minimum = 1)]
    pub keep: u32,
}

/// Changes of a machine; what is left out stays. Limits take effect at once.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateVm {
    /// Its name.
    pub name: Option<Name>,
    /// Limits that can be changed while it runs.
    pub limits: Option<Limits>,
    /// What becomes of it when it crashes.
    pub on_crash: Option<OnCrash>,
    /// `null` ends them.
    #[serde(with = "double_option", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Checkpoints>)]
    pub checkpoints: Option<Option<Checkpoints>>,
    /// Start it when the daemon starts.
    pub autostart: Option<bool>,
    /// Notes for people and programs.
    pub labels: Option<BTreeMap<String, String>>,
}

/// Tells a field that is left out from one that is `null`.
mod double_option {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<Option<T>>, D::Error> {
        Option::<T>::deserialize(from).map(Some)
    }

    pub fn serialize<T: Serialize, S: Serializer>(value: &Option<Option<T>>, to: S) -> Result<S::Ok, S::Error> {
        value.as_ref().and_then(Option::as_ref).serialize(to)
    }
}

/// How a machine is to be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StopRequest {
    /// How long the guest may take to switch itself off before it is switched off, in seconds; 30 if not given.
    pub grace_seconds: Option<u32>,
}

/// A virtual machine as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// Never used again.
    pub id: String,
    /// Its name.
    pub name: Name,
    /// What it does now.
    pub state: VmState,
    /// What it is made of.
    pub spec: VmSpec,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// What it was made from, for clones.
    pub origin: Option<Origin>,
    /// While it runs.
    pub runtime: Option<RuntimeState>,
    /// How its last run ended.
    pub ended: Option<Ending>,
}

/// ```text
/// created ─> starting ─> running <─> paused
///    ^          │           │ stopping
///    └── stopped | crashed <┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VmState {
    /// Never started.
    Created,
    /// Its process starts.
    Starting,
    /// The guest runs.
    Running,
    /// The guest stands still.
    Paused,
    /// The guest was asked to switch itself off.
    Stopping,
    /// It is off.
    Stopped,
    /// Its guest or its process ended as it should not.
    Crashed,
}

/// What a clone was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Origin {
    /// Identifier of the machine that it was cloned from; it may be gone.
    pub vm: String,
    /// The snapshot, or none for a clone of the running machine.
    pub snapshot: Option<Name>,
}

/// A machine's present run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RuntimeState {
    /// The process it runs in.
    pub pid: u32,
    /// `kvm` or `soft`.
    pub accelerator: String,
    /// When it started.
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    /// How often the guest restarted since.
    pub restarts: u64,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ending {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Why.
    pub reason: EndingReason,
    /// A sentence.
    pub message: String,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EndingReason {
    /// The guest switched itself off.
    PowerOff,
    /// It was stopped from outside.
    Stopped,
    /// It was killed from outside.
    Killed,
    /// It goes on at another node.
    Moved,
    /// The guest's kernel gave up.
    GuestPanic,
    /// The guest met a fault while handling a fault while handling a fault.
    TripleFault,
    /// The process of the machine failed or vanished.
    ProcessFailed,
    /// It came here before its memory had (post-copy), and the host that had the rest is gone for good.
    SourceLost,
    /// A thread made a system call that it must not make.
    Confinement,
}

//! Figures of machines. Counters count since the machine's process started.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Protection;

/// Buckets of a latency histogram: up to 1, 2, 4, … microseconds, and one for the rest.
pub const HISTOGRAM_BUCKETS: usize = 25;

/// All figures of a machine at one time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmMetrics {
    /// The machine's identifier.
    pub vm: String,
    /// The machine's name.
    pub name: String,
    /// When they were taken.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Each of its vCPUs.
    pub vcpus: Vec<VcpuMetrics>,
    /// Its memory.
    pub memory: MemoryMetrics,
    /// Each of its disks.
    pub disks: Vec<DiskMetrics>,
    /// Each of its network devices.
    pub nets: Vec<NetMetrics>,
    /// Processor time of the machine's whole process.
    pub cpu_ns: u64,
    /// How it is copied to other daemons, if it is.
    #[serde(default)]
    pub protection: Option<Protection>,
}

/// A vCPU's figures.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct VcpuMetrics {
    /// Processor time of its thread.
    pub cpu_ns: u64,
    /// Time it was ready to run and the host ran others.
    pub steal_ns: u64,
    /// Time it slept because the guest had nothing to do.
    pub halted_ns: u64,
    /// Exits to the monitor by kind.
    pub exits: Vec<ExitCount>,
}

/// How often a vCPU came back to the monitor for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExitCount {
    /// What kind: `hlt`, `mmio`, …
    pub kind: String,
    /// How many.
    pub count: u64,
}

/// A machine's memory.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct MemoryMetrics {
    /// RAM of the guest.
    pub ram_bytes: u64,
    /// What the host holds for the guest.
    pub resident_bytes: u64,
    /// Of that, what no other machine shares.
    pub private_bytes: u64,
    /// The process's proportional share of all memory, guest included.
    pub pss_bytes: u64,
    /// What the guest is asked to give up.
    pub balloon_target_bytes: u64,
    /// What it has given up to the balloon.
    pub balloon_bytes: u64,
    /// Hot-plugged memory.
    pub hotplug_bytes: u64,
    /// As the guest tells, if it does.
    pub guest_total_bytes: Option<u64>,
    /// What can be used without swapping, as the guest tells.
    pub guest_available_bytes: Option<u64>,
    /// What is not used at all, as the guest tells.
    pub guest_free_bytes: Option<u64>,
}

/// A disk's figures.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct DiskMetrics {
    /// `disk0`, …
    pub device: String,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards.
    pub discards: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Requests under way.
    pub in_flight: u64,
    /// How long reads took.
    pub read_latency: Histogram,
    /// How long writes took.
    pub write_latency: Histogram,
}

/// How long requests took: how many in each bucket, and all their times together.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct Histogram {
    /// Number `n` counts times of up to 2^n microseconds, above the bucket before; the last counts the rest.
    pub buckets: Vec<u64>,
    /// All times together.
    pub sum_ns: u64,
}

/// A network device's figures.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct NetMetrics {
    /// `net0`, …
    pub device: String,
    /// Frames to the guest.
    pub received_frames: u64,
    /// Bytes to the guest.
    pub received_bytes: u64,
    /// Frames to the guest that were dropped.
    pub received_dropped: u64,
    /// Frames from the guest.
    pub sent_frames: u64,
    /// Bytes from the guest.
    pub sent_bytes: u64,
    /// Frames from the guest that were dropped.
    pub sent_dropped: u64,
}

/// One point of a machine's history; rates are means over the interval before it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Sample {
    /// When they were taken.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Percent of one processor, each vCPU.
    pub vcpu_percent: Vec<f32>,
    /// Percent of one processor, whole process.
    pub cpu_percent: f32,
    /// Percent of one processor that its vCPUs were ready to use and did not get.
    pub steal_percent: f32,
    /// What the host holds for the guest.
    pub resident_bytes: u64,
    /// What it has given up to the balloon.
    pub balloon_bytes: u64,
    /// What can be used without swapping, as the guest tells.
    pub guest_available_bytes: Option<u64>,
    /// Bytes read from all disks.
    pub disk_read_bytes_per_second: f64,
    /// Bytes written to all disks.
    pub disk_written_bytes_per_second: f64,
    /// Reads from all disks.
    pub disk_reads_per_second: f64,
    /// Writes to all disks.
    pub disk_writes_per_second: f64,
    /// How long requests of all disks took, in seconds; not given where none ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_latency_seconds: Option<f64>,
    /// Bytes to the guest by all networks.
    pub net_received_bytes_per_second: f64,
    /// Bytes from the guest by all networks.
    pub net_sent_bytes_per_second: f64,
}

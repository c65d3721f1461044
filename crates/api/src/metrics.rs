//! Figures of machines. Counters count since the machine's process started.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Buckets of a latency histogram: up to 1, 2, 4, … microseconds, and one for the rest.
pub const HISTOGRAM_BUCKETS: usize = 25;

/// All figures of a machine at one time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VmMetrics {
    pub vm: String,
    pub name: String,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    pub vcpus: Vec<VcpuMetrics>,
    pub memory: MemoryMetrics,
    pub disks: Vec<DiskMetrics>,
    pub nets: Vec<NetMetrics>,
    /// Processor time of the machine's whole process.
    pub cpu_ns: u64,
}

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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExitCount {
    pub kind: String,
    pub count: u64,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct MemoryMetrics {
    pub ram_bytes: u64,
    /// What the host holds for the guest.
    pub resident_bytes: u64,
    /// Of that, what no other machine shares.
    pub private_bytes: u64,
    /// The process's proportional share of all memory, guest included.
    pub pss_bytes: u64,
    pub balloon_target_bytes: u64,
    pub balloon_bytes: u64,
    pub hotplug_bytes: u64,
    /// As the guest tells, if it does.
    pub guest_total_bytes: Option<u64>,
    pub guest_available_bytes: Option<u64>,
    pub guest_free_bytes: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct DiskMetrics {
    /// `disk0`, …
    pub device: String,
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub discards: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub errors: u64,
    pub in_flight: u64,
    pub read_latency: Histogram,
    pub write_latency: Histogram,
}

/// How long requests took: how many in each bucket, and all their times together.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct Histogram {
    /// Number `n` counts times of up to 2^n microseconds, above the bucket before; the last counts the rest.
    pub buckets: Vec<u64>,
    pub sum_ns: u64,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct NetMetrics {
    /// `net0`, …
    pub device: String,
    pub received_frames: u64,
    pub received_bytes: u64,
    pub received_dropped: u64,
    pub sent_frames: u64,
    pub sent_bytes: u64,
    pub sent_dropped: u64,
}

/// One point of a machine's history; rates are means over the interval before it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Sample {
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Percent of one processor, each vCPU.
    pub vcpu_percent: Vec<f32>,
    /// Percent of one processor, whole process.
    pub cpu_percent: f32,
    pub steal_percent: f32,
    pub resident_bytes: u64,
    pub balloon_bytes: u64,
    pub guest_available_bytes: Option<u64>,
    pub disk_read_bytes_per_second: f64,
    pub disk_written_bytes_per_second: f64,
    pub disk_reads_per_second: f64,
    pub disk_writes_per_second: f64,
    pub net_received_bytes_per_second: f64,
    pub net_sent_bytes_per_second: f64,
}

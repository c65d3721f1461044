//! What a machine's parts have done, for whoever watches it.

use serde::{Deserialize, Serialize};

use super::Memory;
pub use crate::accel::ExitFigures;
pub use crate::devices::virtio::block::{DiskFigures, Times};
pub use crate::devices::virtio::net::NetFigures;

/// All counters at one moment. Those of vCPUs and disks begin anew when the guest restarts, which `restarts` tells; those of
/// networks go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// Since the machine was made.
    pub uptime_ms: u64,
    pub restarts: u64,
    /// Processor time of the whole process.
    pub cpu_ns: u64,
    pub vcpus: Vec<VcpuFigures>,
    pub memory: Memory,
    pub process: ProcessMemory,
    /// By number.
    pub disks: Vec<DiskFigures>,
    pub nets: Vec<NetFigures>,
}

/// A vCPU's counters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuFigures {
    /// Processor time of its thread.
    pub cpu_ns: u64,
    /// Time that its thread was ready to run and the host ran others.
    pub steal_ns: u64,
    /// Time that it slept because the guest had nothing to do, where the machine sees it.
    pub halted_ns: u64,
    pub exits: ExitFigures,
}

/// Memory that the process has mapped and that is there (proc(5), `/proc/PID/statm`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessMemory {
    /// Its own: the monitor's heap, and what a restored or forked guest has written.
    pub private_bytes: u64,
    /// In files and shared memory, where guest RAM lies: others may have it mapped too.
    pub shared_bytes: u64,
}

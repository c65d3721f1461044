//! A machine's figures at one time: from its process, and from what the kernel knows of that.

use std::fs;

use queztl_api::{DiskMetrics, ExitCount, Histogram, MemoryMetrics, NetMetrics, Timestamp, VcpuMetrics, VmMetrics};
use queztl_vmm::control::{DiskFigures, ExitFigures, NetFigures, Status, Times, VcpuFigures};

use crate::manager::Core;
use crate::supervisor;
use crate::vms::Machine;

/// Bytes of the units that the kernel tells memory in.
const KIB: u64 = 1024;

impl Core {
    /// The figures of a machine that runs and answers.
    pub(crate) fn metrics_of(&self, machine: &Machine) -> Option<VmMetrics> {
        self.read(machine).map(|(_, metrics)| metrics)
    }

    /// The same with the process that they are of.
    pub(super) fn read(&self, machine: &Machine) -> Option<(u32, VmMetrics)> {
        let (name, pid) = {
            let inner = machine.lock();
            (inner.record.name.to_string(), inner.live.as_ref()?.process.pid)
        };
        let (status, figures) = supervisor::figures(&machine.folder)?;
        machine.lock().restarts = status.restarts;
        let metrics = VmMetrics {
            vm: machine.id.clone(),
            name,
            at: Timestamp::now(),
            vcpus: figures.vcpus.iter().map(vcpu).collect(),
            memory: memory(pid, &status),
            disks: figures.disks.iter().enumerate().map(disk).collect(),
            nets: figures.nets.iter().enumerate().map(net).collect(),
            cpu_ns: figures.cpu_ns,
            protection: self.protection_of(machine),
        };
        Some((pid, metrics))
    }
}

fn vcpu(figures: &VcpuFigures) -> VcpuMetrics {
    let VcpuFigures { cpu_ns, steal_ns, halted_ns, exits } = *figures;
    let ExitFigures { port, mmio, msr, halt, interrupt } = exits;
    let kinds = [("port", port), ("mmio", mmio), ("msr", msr), ("halt", halt), ("interrupt", interrupt)];
    let exits = kinds.map(|(kind, count)| ExitCount { kind: kind.into(), count });
    VcpuMetrics { cpu_ns, steal_ns, halted_ns, exits: exits.into() }
}

fn disk((number, figures): (usize, &DiskFigures)) -> DiskMetrics {
    DiskMetrics {
        device: format!("disk{number}"),
        reads: figures.reads,
        writes: figures.writes,
        flushes: figures.flushes,
        discards: figures.discards,
        read_bytes: figures.read_bytes,
        written_bytes: figures.written_bytes,
        errors: figures.errors,
        in_flight: figures.in_flight,
        read_latency: histogram(&figures.read_times),
        write_latency: histogram(&figures.write_times),
    }
}

fn histogram(times: &Times) -> Histogram {
    Histogram { buckets: times.latency_us_log2.clone(), sum_ns: times.busy_ns }
}

fn net((number, figures): (usize, &NetFigures)) -> NetMetrics {
    NetMetrics {
        device: format!("net{number}"),
        received_frames: figures.received_frames,
        received_bytes: figures.received_bytes,
        received_dropped: figures.received_dropped,
        sent_frames: figures.sent_frames,
        sent_bytes: figures.sent_bytes,
        sent_dropped: figures.sent_dropped,
    }
}

fn memory(pid: u32, status: &Status) -> MemoryMetrics {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let memory = &status.memory;
    let guest = memory.guest.as_ref();
    MemoryMetrics {
        ram_bytes: memory.ram_bytes,
        resident_bytes: memory.resident_bytes,
        private_bytes: field(&rollup, "Private_Clean:") + field(&rollup, "Private_Dirty:"),
        pss_bytes: field(&rollup, "Pss:"),
        balloon_target_bytes: memory.balloon.target_bytes,
        balloon_bytes: memory.balloon.actual_bytes,
        hotplug_bytes: memory.hotplug.as_ref().map_or(0, |hotplug| hotplug.plugged_bytes),
        guest_total_bytes: guest.and_then(|guest| guest.total_bytes),
        guest_available_bytes: guest.and_then(|guest| guest.available_bytes),
        guest_free_bytes: guest.and_then(|guest| guest.free_bytes),
    }
}

/// A line `NAME: NUMBER kB`, in bytes; 0 if it is not there.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or(0).saturating_mul(KIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_figures_of_its_own() {
        let pid = std::process::id();
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        assert!(field(&rollup, "Pss:") > 0 || rollup.is_empty());
        assert_eq!(field(&rollup, "Nothing:"), 0);
    }
}

//! A machine's figures at one time: from its process, and from what the kernel knows of that.

use std::fs;

use queztl_api::{MemoryMetrics, Timestamp, VcpuMetrics, VmMetrics};
use queztl_vmm::control::Status;

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
        let status = supervisor::status(&machine.folder)?;
        machine.lock().restarts = status.restarts;
        let metrics = VmMetrics {
            vm: machine.id.clone(),
            name,
            at: Timestamp::now(),
            vcpus: vcpus(pid, &status),
            memory: memory(pid, &status),
            disks: Vec::new(),
            nets: Vec::new(),
            cpu_ns: process_cpu_ns(pid),
        };
        Some((pid, metrics))
    }
}

fn vcpus(pid: u32, status: &Status) -> Vec<VcpuMetrics> {
    let steal = steal_ns(pid);
    let of = |(id, vcpu): (usize, &queztl_vmm::control::Vcpu)| VcpuMetrics {
        cpu_ns: vcpu.cpu_ns,
        steal_ns: steal.iter().find(|(vcpu, _)| *vcpu == id).map_or(0, |(_, ns)| *ns),
        ..VcpuMetrics::default()
    };
    status.vcpus.iter().enumerate().map(of).collect()
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

/// Processor time of a process, user and system (proc(5), fields 14 and 15 of `stat`).
fn process_cpu_ns(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in brackets may hold anything; what follows it starts with field 3.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: u64 = fields.split_ascii_whitespace().skip(14 - 3).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
    ticks.saturating_mul(1_000_000_000 / rustix::param::clock_ticks_per_second().max(1))
}

/// How long each vCPU's thread was ready to run and had to wait (second number of `schedstat`).
fn steal_ns(pid: u32) -> Vec<(usize, u64)> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let of = |task: fs::DirEntry| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        let vcpu = name.trim().strip_prefix("vcpu-")?.parse().ok()?;
        let schedstat = fs::read_to_string(task.path().join("schedstat")).ok()?;
        Some((vcpu, schedstat.split_ascii_whitespace().nth(1)?.parse().ok()?))
    };
    tasks.flatten().filter_map(of).collect()
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
        let before = process_cpu_ns(pid);
        let start = std::time::Instant::now();
        while process_cpu_ns(pid) == before && start.elapsed().as_secs() < 60 {}
        assert!(process_cpu_ns(pid) > before);
    }
}

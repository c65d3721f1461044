//! What a machine's parts have done, gathered.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use super::control::{guest_memory, memory, milliseconds};
use super::disks::disk_figures;
use super::{MachineHandle, lock, read};
use crate::control::{Metrics, ProcessMemory, VcpuFigures};

impl MachineHandle {
    /// What the machine's parts have done. The guest is not asked for anything: its own figures are the last it gave.
    pub fn metrics(&self) -> Metrics {
        let shared = &self.shared;
        let config = lock(&shared.config).clone();
        let live = read(&shared.live);
        let guest = live.as_ref().and_then(|live| guest_memory(&live.balloon, false));
        let exits = |id: u32| live.as_ref().map(|live| live.board.counters(id).figures()).unwrap_or_default();
        let vcpu = |(id, [cpu_ns, steal_ns, halted_ns]): (u32, [u64; 3])| {
            let exits = exits(id);
            VcpuFigures { cpu_ns, steal_ns, halted_ns, exits }
        };
        Metrics {
            uptime_ms: milliseconds(shared.started.elapsed()),
            restarts: shared.restarts.load(Ordering::Relaxed),
            cpu_ns: process_time_ns(),
            vcpus: (0..config.vcpus).zip(shared.vcpus.times_ns()).map(vcpu).collect(),
            memory: memory(&config, live.as_ref(), guest),
            process: shared.memory.as_ref().and_then(process_memory).unwrap_or_default(),
            disks: live.as_ref().map(|live| disk_figures(&live.disks)).unwrap_or_default(),
            nets: live.as_ref().map(|live| live.nets.iter().map(|net| net.figures()).collect()).unwrap_or_default(),
        }
    }
}

/// Processor time of this process. By the C library: rustix looks for the clock's code at its first use, by a system call
/// that is on no thread's list.
fn process_time_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes to `time` and keeps nothing.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// From `statm`: all that is there, and what of it lies in files and shared memory, in pages.
fn process_memory(statm: &File) -> Option<ProcessMemory> {
    let mut text = [0; 128];
    let length = statm.read_at(&mut text, 0).ok()?;
    let mut pages = std::str::from_utf8(&text[..length]).ok()?.split_ascii_whitespace().skip(1).map(str::parse::<u64>);
    let (resident, shared) = (pages.next()?.ok()?, pages.next()?.ok()?);
    let page_bytes = queztl_guest_memory::PAGE_SIZE;
    Some(ProcessMemory {
        private_bytes: resident.saturating_sub(shared) * page_bytes,
        shared_bytes: shared * page_bytes,
    })
}

//! What is left of the host.

use std::fs;
use std::path::Path;

use crate::service::HostFigures;

/// Memory of the host, and the space where the machines are.
pub(super) fn figures(home: &Path) -> HostFigures {
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let disk = rustix::fs::statvfs(home).ok();
    let disk = disk.as_ref();
    let bytes = |blocks: u64, size: u64| blocks.saturating_mul(size);
    HostFigures {
        memory_bytes: kibibytes(&memory, "MemTotal:"),
        memory_available_bytes: kibibytes(&memory, "MemAvailable:"),
        disk_bytes: disk.map_or(0, |disk| bytes(disk.f_blocks, disk.f_frsize)),
        // What is kept for root is of no use to a daemon that is not root's; the lesser figure is the safer one.
        disk_free_bytes: disk.map_or(0, |disk| bytes(disk.f_bavail, disk.f_frsize)),
        cpu_busy_seconds: times().map_or(0.0, |times| times.busy as f64 / tick()),
        cpus: std::thread::available_parallelism().map_or(1, usize::from) as u64,
    }
}

/// A line of /proc/meminfo, in bytes.
fn kibibytes(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or(0).saturating_mul(1024)
}

fn tick() -> f64 {
    rustix::param::clock_ticks_per_second().max(1) as f64
}

/// How long the processors together have worked, and been there, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Times {
    busy: u64,
    all: u64,
}

fn times() -> Option<Times> {
    parse(&fs::read_to_string("/proc/stat").ok()?)
}

/// The first line of /proc/stat (proc(5)): user, nice, system, idle, iowait, irq, softirq, steal; guest time is within user's.
fn parse(stat: &str) -> Option<Times> {
    let numbers = stat.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace();
    let numbers: Vec<u64> = numbers.take(8).map_while(|number| number.parse().ok()).collect();
    let all: u64 = numbers.iter().sum();
    let idle = numbers.get(3)? + numbers.get(4)?;
    Some(Times { busy: all.saturating_sub(idle), all })
}

/// How busy the processors were since the last look.
#[derive(Debug, Default)]
pub(super) struct Processors(Option<Times>);

impl Processors {
    /// Percent of all; `None` at the first look.
    pub(super) fn busy_percent(&mut self) -> Option<f64> {
        let now = times()?;
        let before = self.0.replace(now)?;
        let all = now.all.checked_sub(before.all).filter(|all| *all > 0)?;
        Some(100.0 * now.busy.saturating_sub(before.busy) as f64 / all as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_memory_and_space() {
        let figures = figures(Path::new("/"));
        assert!(figures.memory_bytes > figures.memory_available_bytes && figures.memory_available_bytes > 0);
        assert!(figures.disk_bytes >= figures.disk_free_bytes && figures.disk_bytes > 0);
        assert!(figures.cpus > 0 && figures.cpu_busy_seconds > 0.0);
    }

    #[test]
    fn processors_are_busy_with_all_but_idling_and_waiting() {
        let times = parse("cpu  10 1 5 80 2 1 1 0 7 0\ncpu0 1 1 1 1\n").unwrap();
        assert_eq!(times, Times { busy: 18, all: 100 });
        assert_eq!(parse("cpu  1 2"), None);
        assert_eq!(parse(""), None);
    }
}

//! Rates out of counters, and the lines of the table.

use std::cmp::Ordering;
use std::collections::HashMap;

use queztl_api::{MemoryMetrics, Vm, VmMetrics, VmState};

use super::{Sort, View};
use crate::output::table::Table;
use crate::output::text::{age, size, word};

/// Machines and their counters at one time.
#[derive(Debug)]
pub struct Look {
    vms: Vec<Vm>,
    metrics: HashMap<String, VmMetrics>,
}

impl Look {
    pub fn new(vms: Vec<Vm>, metrics: Vec<VmMetrics>) -> Look {
        Look { vms, metrics: metrics.into_iter().map(|metrics| (metrics.vm.clone(), metrics)).collect() }
    }
}

/// The last two looks.
#[derive(Debug, Default)]
pub struct Figures {
    now: Option<Look>,
    before: Option<Look>,
}

/// A machine's row. Rates are missing where there is only one look at it yet.
#[derive(Debug, Clone, PartialEq)]
struct Line {
    name: String,
    state: VmState,
    /// Percent of one processor.
    cpu: Option<f64>,
    memory_bytes: u64,
    ram_bytes: u64,
    rates: Option<Rates>,
    up: String,
}

/// Bytes a second.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Rates {
    read: f64,
    written: f64,
    received: f64,
    sent: f64,
}

impl Figures {
    pub fn take(&mut self, look: Look) {
        self.before = self.now.replace(look);
    }

    /// The table under a line that sums it up; at most so many lines.
    pub fn lines(&self, view: View, most: Option<usize>) -> Vec<String> {
        let Some(now) = &self.now else { return Vec::new() };
        let mut rows: Vec<Line> = now.vms.iter().map(|vm| self.row(vm, now)).collect();
        rows.sort_by(|one, other| {
            let order = compare(view.sort, one, other).then_with(|| one.name.cmp(&other.name));
            if view.inverted { order.reverse() } else { order }
        });
        let mut lines = vec![summary(&rows), String::new()];
        lines.extend(table(&rows).to_string().lines().map(str::to_owned));
        if let Some(most) = most
            && lines.len() > most
        {
            let hidden = lines.len() - most + 1;
            lines.truncate(most.saturating_sub(1));
            lines.push(format!("… and {hidden} more"));
        }
        lines
    }

    fn row(&self, vm: &Vm, now: &Look) -> Line {
        let metrics = now.metrics.get(&vm.id);
        let before = self.before.as_ref().and_then(|look| look.metrics.get(&vm.id));
        let rates = metrics.zip(before).and_then(|(now, before)| rates(now, before));
        Line {
            name: vm.name.to_string(),
            state: vm.state,
            cpu: rates.map(|(cpu, _)| cpu),
            memory_bytes: metrics.map_or(0, |metrics| memory(&metrics.memory)),
            ram_bytes: vm.spec.ram_bytes,
            rates: rates.map(|(_, rates)| rates),
            up: vm.runtime.as_ref().map(|runtime| age(runtime.started_at)).unwrap_or_default(),
        }
    }
}

/// What the machine takes of the host. Clones share most of theirs; so that the sum is what all of them take, each has its
/// share of that, where the host tells.
fn memory(figures: &MemoryMetrics) -> u64 {
    if figures.pss_bytes > 0 { figures.pss_bytes } else { figures.resident_bytes }
}

/// Percent of a processor and bytes a second between two looks; none if no time has passed, or the machine's process is
/// another one, whose counters began anew.
fn rates(now: &VmMetrics, before: &VmMetrics) -> Option<(f64, Rates)> {
    let seconds = now.at.as_duration().as_secs_f64() - before.at.as_duration().as_secs_f64();
    if seconds <= 0.0 || now.cpu_ns < before.cpu_ns {
        return None;
    }
    let sum = |metrics: &VmMetrics| {
        let mut sums = [0u64; 4];
        for disk in &metrics.disks {
            sums[0] += disk.read_bytes;
            sums[1] += disk.written_bytes;
        }
        for net in &metrics.nets {
            sums[2] += net.received_bytes;
            sums[3] += net.sent_bytes;
        }
        sums
    };
    let (now_sums, before_sums) = (sum(now), sum(before));
    let rate = |index: usize| now_sums[index].saturating_sub(before_sums[index]) as f64 / seconds;
    let cpu = (now.cpu_ns - before.cpu_ns) as f64 / 1e7 / seconds;
    Some((cpu, Rates { read: rate(0), written: rate(1), received: rate(2), sent: rate(3) }))
}

/// Largest first for numbers, alphabetical for words.
fn compare(sort: Sort, one: &Line, other: &Line) -> Ordering {
    let falling = |figure: fn(&Line) -> f64| figure(other).total_cmp(&figure(one));
    match sort {
        Sort::Cpu => falling(|line| line.cpu.unwrap_or(-1.0)),
        Sort::Memory => falling(|line| line.memory_bytes as f64),
        Sort::Reads => falling(|line| line.rates.map_or(-1.0, |rates| rates.read)),
        Sort::Writes => falling(|line| line.rates.map_or(-1.0, |rates| rates.written)),
        Sort::Name => one.name.cmp(&other.name),
        Sort::State => word(&one.state).cmp(&word(&other.state)),
    }
}

fn summary(rows: &[Line]) -> String {
    let running = rows.iter().filter(|row| row.state == VmState::Running).count();
    let cpu: f64 = rows.iter().filter_map(|row| row.cpu).sum();
    let memory = rows.iter().map(|row| row.memory_bytes).sum();
    format!("{} machines, {running} running; {cpu:.0} % of a processor, {} of memory", rows.len(), size(memory))
}

fn table(rows: &[Line]) -> Table {
    let mut table = Table::new(["NAME", "STATE", "CPU %", "MEMORY", "RAM", "READ/S", "WRITE/S", "RX/S", "TX/S", "UP"]);
    for row in rows {
        let rate =
            |rate: fn(&Rates) -> f64| row.rates.as_ref().map(|rates| size(rate(rates) as u64)).unwrap_or_default();
        table.row([
            row.name.clone(),
            word(&row.state),
            row.cpu.map(|cpu| format!("{cpu:.1}")).unwrap_or_default(),
            size(row.memory_bytes),
            size(row.ram_bytes),
            rate(|rates| rates.read),
            rate(|rates| rates.written),
            rate(|rates| rates.received),
            rate(|rates| rates.sent),
            row.up.clone(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use queztl_api::{DiskMetrics, Timestamp, VmSpec};

    use super::*;

    fn vm(name: &str, state: VmState) -> Vm {
        Vm {
            id: name.to_owned(),
            name: name.parse().unwrap(),
            state,
            spec: VmSpec::default(),
            created_at: Timestamp::UNIX_EPOCH,
            origin: None,
            runtime: None,
            ended: None,
        }
    }

    fn metrics(name: &str, second: i64, cpu_ns: u64, read_bytes: u64) -> VmMetrics {
        VmMetrics {
            vm: name.to_owned(),
            name: name.to_owned(),
            at: Timestamp::from_second(second).unwrap(),
            vcpus: Vec::new(),
            memory: MemoryMetrics { resident_bytes: 90 << 20, pss_bytes: 64 << 20, ..MemoryMetrics::default() },
            disks: vec![DiskMetrics { read_bytes, ..DiskMetrics::default() }],
            nets: Vec::new(),
            cpu_ns,
            protection: None,
        }
    }

    fn two_looks() -> Figures {
        let vms = || vec![vm("idle", VmState::Running), vm("busy", VmState::Running), vm("off", VmState::Stopped)];
        let mut figures = Figures::default();
        figures.take(Look::new(vms(), vec![metrics("idle", 0, 0, 0), metrics("busy", 0, 0, 0)]));
        let now = vec![metrics("idle", 2, 10_000_000, 4 << 20), metrics("busy", 2, 3_000_000_000, 0)];
        figures.take(Look::new(vms(), now));
        figures
    }

    fn names(figures: &Figures, sort: Sort, inverted: bool) -> Vec<String> {
        let lines = figures.lines(View { sort, inverted }, None);
        lines[3..].iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    }

    #[test]
    fn rates_are_the_differences_of_two_looks() {
        let lines = two_looks().lines(View { sort: Sort::Cpu, inverted: false }, None);
        let wanted = "\
3 machines, 2 running; 150 % of a processor, 128 MiB of memory

NAME  STATE    CPU %   MEMORY      RAM   READ/S  WRITE/S     RX/S     TX/S  UP
busy  running  150.0   64 MiB  512 MiB  0 bytes  0 bytes  0 bytes  0 bytes  -
idle  running    0.5   64 MiB  512 MiB    2 MiB  0 bytes  0 bytes  0 bytes  -
off   stopped      -  0 bytes  512 MiB        -        -        -        -  -";
        assert_eq!(lines.join("\n"), wanted);
    }

    #[test]
    fn rows_are_in_the_order_that_is_wished() {
        let figures = two_looks();
        assert_eq!(names(&figures, Sort::Reads, false), ["idle", "busy", "off"]);
        assert_eq!(names(&figures, Sort::Name, true), ["off", "idle", "busy"]);
        assert_eq!(names(&figures, Sort::State, false), ["busy", "idle", "off"]);
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let lines = two_looks().lines(View { sort: Sort::Name, inverted: false }, Some(5));
        assert_eq!((lines.len(), lines[4].as_str()), (5, "… and 2 more"));
    }

    #[test]
    fn a_machine_that_was_started_again_has_no_rates_yet() {
        assert_eq!(rates(&metrics("a", 2, 5, 0), &metrics("a", 0, 10, 0)), None);
    }
}

//! What is measured for each rule.

use std::sync::PoisonError;

use jiff::SignedDuration;
use queztl_api::{AlertRule, Protection, Sample, Timestamp, VmState};
use queztl_telemetry::alerts::{Measure, Target, robust_z_score};

use crate::manager::Core;
use crate::metrics::Latest;
use crate::vms::Machine;

/// A sample that is older says nothing about now.
const FRESH: SignedDuration = SignedDuration::from_secs(45);
/// The last samples, a minute's, are not part of what they are compared with: what is unusual would soon be usual.
const NEWEST: usize = 6;

/// A figure of a sample that has a history.
struct Figure {
    name: &'static str,
    of: fn(&Sample) -> f64,
    /// The least deviation that matters: changes of less than some of these are never unusual.
    floor: f64,
}

const MIB: f64 = 1_048_576.0;

const FIGURES: [Figure; 7] = [
    Figure { name: "processor", of: |sample| sample.cpu_percent.into(), floor: 5.0 },
    Figure { name: "memory", of: |sample| sample.resident_bytes as f64, floor: 32.0 * MIB },
    Figure { name: "disk-read", of: |sample| sample.disk_read_bytes_per_second, floor: MIB },
    Figure { name: "disk-written", of: |sample| sample.disk_written_bytes_per_second, floor: MIB },
    Figure { name: "disk-requests", of: requests, floor: 100.0 },
    Figure { name: "net-received", of: |sample| sample.net_received_bytes_per_second, floor: MIB },
    Figure { name: "net-sent", of: |sample| sample.net_sent_bytes_per_second, floor: MIB },
];

fn requests(sample: &Sample) -> f64 {
    sample.disk_reads_per_second + sample.disk_writes_per_second
}

impl Core {
    /// Everything that a rule is about, as it is now.
    pub(super) fn measures(&self) -> Vec<Measure> {
        let now = Timestamp::now();
        let mut measures = self.host_measures();
        measures.extend(self.refusal_measure(now));
        let crash_window = self.alerts.engine().rules().get(AlertRule::VmCrash).window_seconds;
        for machine in self.machines.all() {
            measures.extend(crashes(&machine, now, crash_window));
            if let Some(protection) = self.protection_of(&machine) {
                measures.extend(lags(&machine.id, machine.record().name.as_str(), &protection));
            }
            if let Some(latest) = self.latest(&machine).filter(|latest| is_fresh(latest, now)) {
                let name = machine.record().name.to_string();
                measures.extend(of_machine(&machine.id, &name, &latest));
            }
        }
        measures
    }

    fn host_measures(&self) -> Vec<Measure> {
        let figures = self.host_figures();
        let host = |rule, value, message| Measure { rule, target: Target::default(), name: None, value, message };
        let percent = |part: u64, all: u64| 100.0 * part as f64 / all as f64;
        let mut measures = Vec::new();
        if figures.memory_bytes > 0 {
            let left = percent(figures.memory_available_bytes, figures.memory_bytes);
            let text = format!("{left:.1} % of the host's memory are left: stop machines, or give them less");
            measures.push(host(AlertRule::HostMemory, left, text));
        }
        if figures.disk_bytes > 0 {
            let left = percent(figures.disk_free_bytes, figures.disk_bytes);
            let text = format!(
                "{left:.1} % of the space at {} are left: delete snapshots, images or machines",
                self.config.home.display()
            );
            measures.push(host(AlertRule::HostDisk, left, text));
        }
        let busy = self.alerts.processors.lock().unwrap_or_else(PoisonError::into_inner).busy_percent();
        if let Some(busy) = busy {
            let text = format!("the host's processors are {busy:.0} % busy: limit machines, or move some away");
            measures.push(host(AlertRule::HostCpu, busy, text));
        }
        measures
    }

    fn refusal_measure(&self, now: Timestamp) -> Option<Measure> {
        let seconds = self.alerts.engine().rules().get(AlertRule::RefusedAccess).window_seconds;
        let mut refusals = self.alerts.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let window = SignedDuration::from_secs(seconds.into());
        while refusals.front().is_some_and(|at| now.duration_since(*at) > window) {
            refusals.pop_front();
        }
        let count = refusals.len();
        (count > 0).then(|| Measure {
            rule: AlertRule::RefusedAccess,
            target: Target::default(),
            name: None,
            value: count as f64,
            message: format!("{count} requests with a wrong token or none in {seconds} s: the audit log says whose"),
        })
    }
}

fn is_fresh(latest: &Latest, now: Timestamp) -> bool {
    latest.recent.back().is_some_and(|sample| now.duration_since(sample.at) < FRESH)
}

/// Crashes within the window, and the one that a machine still lies in.
fn crashes(machine: &Machine, now: Timestamp, window_seconds: u32) -> Option<Measure> {
    let window = SignedDuration::from_secs(window_seconds.into());
    let inner = machine.lock();
    let lately = inner.record.crashes.iter().filter(|at| now.duration_since(**at) <= window).count();
    let lies = inner.state == VmState::Crashed;
    let count = lately.max(usize::from(lies));
    let why = inner.record.ended.as_ref().map_or("", |ended| ended.message.as_str());
    let name = inner.record.name.to_string();
    let text = if lies { format!("{name} has crashed: {why}") } else { format!("{name} crashed and was started anew") };
    (count > 0).then(|| Measure {
        rule: AlertRule::VmCrash,
        target: Target { vm: Some(machine.id.clone()), subject: String::new() },
        name: Some(name),
        value: count as f64,
        message: text,
    })
}

/// How far each backup is behind, in seconds.
fn lags(id: &str, name: &str, protection: &Protection) -> Vec<Measure> {
    let lag = |backup: &queztl_api::BackupState| {
        let seconds = backup.behind_ns as f64 / 1e9;
        let why = backup.failed.as_ref().map_or(String::new(), |why| format!(": {why}"));
        Measure {
            rule: AlertRule::ReplicationLag,
            target: Target { vm: Some(id.to_owned()), subject: backup.to.clone() },
            name: Some(name.to_owned()),
            value: seconds,
            message: format!("the copy of {name} at {} is {seconds:.0} s behind{why}", backup.to),
        }
    };
    protection.backups.iter().map(lag).collect()
}

/// What the last sample of a machine says, for itself and beside those before it.
fn of_machine(id: &str, name: &str, latest: &Latest) -> Vec<Measure> {
    let Some(sample) = latest.recent.back() else { return Vec::new() };
    let measure = |rule, subject: &str, value, message| Measure {
        rule,
        target: Target { vm: Some(id.to_owned()), subject: subject.to_owned() },
        name: Some(name.to_owned()),
        value,
        message,
    };
    let steal = f64::from(sample.steal_percent);
    let text =
        format!("the vCPUs of {name} wait for {steal:.0} % of a processor: the host has too few for its machines");
    let mut measures = vec![measure(AlertRule::Steal, "", steal, text)];
    for (device, milliseconds) in &latest.disk_latency_ms {
        let text = format!("requests of {device} of {name} take {milliseconds:.0} ms: is the host's disk busy?");
        measures.push(measure(AlertRule::DiskLatency, device, *milliseconds, text));
    }
    let before = latest.recent.len().saturating_sub(NEWEST);
    for Figure { name: figure, of, floor } in &FIGURES {
        let past = latest.recent.iter().take(before).map(of);
        if let Some(score) = robust_z_score(past, of(sample), *floor) {
            let text =
                format!("{figure} of {name} is unusual: {score:.0} deviations from what it was in the last hour");
            measures.push(measure(AlertRule::Anomaly, figure, score, text));
        }
    }
    measures
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    fn sample(cpu_percent: f32) -> Sample {
        Sample {
            at: Timestamp::UNIX_EPOCH,
            vcpu_percent: vec![cpu_percent],
            cpu_percent,
            steal_percent: 60.0,
            resident_bytes: 1 << 30,
            balloon_bytes: 0,
            guest_available_bytes: None,
            disk_read_bytes_per_second: 0.0,
            disk_written_bytes_per_second: 0.0,
            disk_reads_per_second: 0.0,
            disk_writes_per_second: 0.0,
            disk_latency_seconds: None,
            net_received_bytes_per_second: 0.0,
            net_sent_bytes_per_second: 0.0,
        }
    }

    fn latest(samples: impl Iterator<Item = f32>) -> Latest {
        let recent: VecDeque<Sample> = samples.map(sample).collect();
        Latest { recent, disk_latency_ms: vec![("disk0".into(), 150.0)] }
    }

    fn anomaly(measures: &[Measure], subject: &str) -> Option<f64> {
        let found = |one: &&Measure| one.rule == AlertRule::Anomaly && one.target.subject == subject;
        measures.iter().find(found).map(|measure| measure.value)
    }

    #[test]
    fn a_machine_that_is_busy_after_an_hour_of_rest_is_unusual_in_that_alone() {
        let measures = of_machine("1", "one", &latest(std::iter::repeat_n(1.0, 100).chain([99.0])));
        assert!(anomaly(&measures, "processor").unwrap() > 15.0);
        assert_eq!(anomaly(&measures, "memory"), Some(0.0));
    }

    #[test]
    fn a_machine_that_swings_as_it_always_does_is_not_unusual() {
        let measures = of_machine("1", "one", &latest([10.0, 50.0, 90.0].into_iter().cycle().take(100)));
        assert!(anomaly(&measures, "processor").unwrap() < 3.0);
    }

    #[test]
    fn a_machine_without_a_past_has_its_steal_and_its_disks() {
        let measures = of_machine("1", "one", &latest([5.0].into_iter()));
        let values: Vec<_> = measures.iter().map(|one| (one.rule, one.target.subject.as_str(), one.value)).collect();
        assert_eq!(values, [(AlertRule::Steal, "", 60.0), (AlertRule::DiskLatency, "disk0", 150.0)]);
    }
}

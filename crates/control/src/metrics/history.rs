//! What machines did in the last day.

use jiff::SignedDuration;
use queztl_api::{Problem, Sample, Timestamp, VmMetrics};

use super::Reading;
use crate::manager::Core;
use crate::vms::Machine;

/// How long samples are kept.
const KEPT: SignedDuration = SignedDuration::from_hours(24);
/// Most samples of one answer.
const MAX_SAMPLES: usize = 2000;

impl Core {
    /// Keeps samples for a day.
    pub(super) fn keep(&self, points: &[(String, i64, Vec<u8>)]) {
        if points.is_empty() {
            return;
        }
        let oldest = Timestamp::now().saturating_sub(KEPT).unwrap_or(Timestamp::MIN);
        if let Err(error) = self.store.add_history(points, oldest.as_millisecond()) {
            tracing::warn!(%error, "samples of machines cannot be kept");
        }
    }

    /// Samples between two times, oldest first: fine ones of the last hour, coarse ones before.
    pub(crate) fn history(&self, machine: &Machine, from: Timestamp, to: Timestamp) -> Result<Vec<Sample>, Problem> {
        if from > to {
            return Err(Problem::invalid("from", "is later than `to`"));
        }
        let recent: Vec<Sample> = {
            let tracks = self.figures.lock();
            let recent = tracks.get(&machine.id).map(|track| track.recent.iter().cloned());
            recent.into_iter().flatten().filter(|sample| (from..=to).contains(&sample.at)).collect()
        };
        let coarse_to = recent.first().map_or(to.as_millisecond(), |sample| sample.at.as_millisecond() - 1);
        let points = self.store.history(&machine.id, from.as_millisecond(), coarse_to)?;
        let mut samples: Vec<Sample> =
            points.iter().filter_map(|(_, point)| serde_json::from_slice(point).ok()).collect();
        samples.extend(recent);
        Ok(thin(samples))
    }
}

/// Every so many of them, so that there are not too many.
fn thin(samples: Vec<Sample>) -> Vec<Sample> {
    let step = samples.len().div_ceil(MAX_SAMPLES).max(1);
    samples.into_iter().step_by(step).collect()
}

/// Means over the time between two readings; `None` if they are not of one run.
pub(super) fn between(before: Option<&Reading>, now: &Reading) -> Option<Sample> {
    let before = before.filter(|before| before.pid == now.pid)?;
    let (old, new) = (&before.metrics, &now.metrics);
    let seconds = new.at.duration_since(old.at).as_secs_f64();
    if seconds <= 0.0 {
        return None;
    }
    let rate = |old: u64, new: u64| new.saturating_sub(old) as f64 / seconds;
    let percent = |old: u64, new: u64| (rate(old, new) / 1e7) as f32;
    let pairs = || old.vcpus.iter().zip(&new.vcpus);
    let disks = |of: fn(&queztl_api::DiskMetrics) -> u64| {
        let sum = |metrics: &VmMetrics| metrics.disks.iter().map(of).sum();
        rate(sum(old), sum(new))
    };
    let nets = |of: fn(&queztl_api::NetMetrics) -> u64| {
        let sum = |metrics: &VmMetrics| metrics.nets.iter().map(of).sum();
        rate(sum(old), sum(new))
    };
    Some(Sample {
        at: new.at,
        vcpu_percent: pairs().map(|(old, new)| percent(old.cpu_ns, new.cpu_ns)).collect(),
        cpu_percent: percent(old.cpu_ns, new.cpu_ns),
        steal_percent: pairs().map(|(old, new)| percent(old.steal_ns, new.steal_ns)).sum(),
        resident_bytes: new.memory.resident_bytes,
        balloon_bytes: new.memory.balloon_bytes,
        guest_available_bytes: new.memory.guest_available_bytes,
        disk_read_bytes_per_second: disks(|disk| disk.read_bytes),
        disk_written_bytes_per_second: disks(|disk| disk.written_bytes),
        disk_reads_per_second: disks(|disk| disk.reads),
        disk_writes_per_second: disks(|disk| disk.writes),
        disk_latency_seconds: mean_latency(old, new),
        net_received_bytes_per_second: nets(|net| net.received_bytes),
        net_sent_bytes_per_second: nets(|net| net.sent_bytes),
    })
}

/// The mean time of the requests between two readings of one run, of all disks, in seconds; `None` without requests.
fn mean_latency(old: &VmMetrics, new: &VmMetrics) -> Option<f64> {
    let add =
        |(count, ns): (u64, u64), (more, longer): (u64, u64)| (count.saturating_add(more), ns.saturating_add(longer));
    let sum = |metrics: &VmMetrics| metrics.disks.iter().map(requests).fold((0, 0), add);
    let ((old_count, old_ns), (count, ns)) = (sum(old), sum(new));
    let count = count.checked_sub(old_count).filter(|count| *count > 0)?;
    Some(ns.checked_sub(old_ns)? as f64 / count as f64 / 1e9)
}

/// Fewer requests between two readings say nothing about a disk.
const MIN_REQUESTS: u64 = 10;

/// The mean time of the requests between two readings of one run, by disk, in milliseconds.
pub(super) fn latencies(before: Option<&Reading>, now: &Reading) -> Vec<(String, f64)> {
    let Some(before) = before.filter(|before| before.pid == now.pid) else { return Vec::new() };
    let pairs = before.metrics.disks.iter().zip(&now.metrics.disks);
    pairs
        .filter_map(|(old, new)| {
            let ((old_count, old_ns), (count, ns)) = (requests(old), requests(new));
            let count = count.checked_sub(old_count).filter(|count| *count >= MIN_REQUESTS)?;
            Some((new.device.clone(), ns.checked_sub(old_ns)? as f64 / count as f64 / 1e6))
        })
        .collect()
}

/// How many requests of a disk have ended, and their times together.
fn requests(disk: &queztl_api::DiskMetrics) -> (u64, u64) {
    let both = [&disk.read_latency, &disk.write_latency];
    let counts = both.iter().flat_map(|histogram| &histogram.buckets);
    (
        counts.fold(0, |sum, count| sum.saturating_add(*count)),
        both.iter().fold(0, |sum, one| sum.saturating_add(one.sum_ns)),
    )
}

#[cfg(test)]
mod tests {
    use queztl_api::{DiskMetrics, MemoryMetrics, VcpuMetrics};

    use super::*;

    fn reading(pid: u32, second: i64, cpu_ns: u64, reads: u64) -> Reading {
        let metrics = VmMetrics {
            vm: "1".into(),
            name: "one".into(),
            at: Timestamp::from_second(second).unwrap(),
            vcpus: vec![VcpuMetrics { cpu_ns, steal_ns: cpu_ns / 2, ..VcpuMetrics::default() }; 2],
            memory: MemoryMetrics::default(),
            disks: vec![DiskMetrics { reads, ..DiskMetrics::default() }; 2],
            nets: Vec::new(),
            cpu_ns: 2 * cpu_ns,
            protection: None,
        };
        Reading { pid, metrics }
    }

    #[test]
    fn a_sample_is_the_mean_between_two_readings_of_one_run() {
        let sample = between(Some(&reading(1, 0, 0, 0)), &reading(1, 10, 5_000_000_000, 100)).unwrap();
        assert_eq!(sample.vcpu_percent, [50.0, 50.0]);
        assert_eq!((sample.cpu_percent, sample.steal_percent), (100.0, 50.0));
        assert_eq!(sample.disk_reads_per_second, 20.0);
        assert_eq!(between(Some(&reading(1, 0, 0, 0)), &reading(2, 10, 5, 1)), None);
        assert_eq!(between(Some(&reading(1, 10, 0, 0)), &reading(1, 10, 5, 1)), None);
        assert_eq!(between(None, &reading(1, 10, 5, 1)), None);
    }

    #[test]
    fn a_disks_latency_is_the_mean_of_the_requests_since() {
        let reading = |count: u64, sum_ns| {
            let read_latency = queztl_api::Histogram { buckets: vec![count, 0], sum_ns };
            let disk = DiskMetrics { device: "disk0".into(), read_latency, ..DiskMetrics::default() };
            let mut reading = reading(1, 0, 0, 0);
            reading.metrics.disks = vec![disk];
            reading
        };
        assert_eq!(latencies(Some(&reading(5, 1000)), &reading(25, 60_001_000)), [("disk0".to_owned(), 3.0)]);
        assert_eq!(latencies(Some(&reading(5, 0)), &reading(6, 60_000_000)), []);
        assert_eq!(latencies(Some(&reading(25, 0)), &reading(5, 0)), []);
        assert_eq!(latencies(None, &reading(25, 0)), []);
    }

    #[test]
    fn a_samples_latency_is_the_mean_over_all_disks() {
        let at = |second, counts: [u64; 2]| {
            let mut reading = reading(1, second, 0, 0);
            for (disk, count) in reading.metrics.disks.iter_mut().zip(counts) {
                disk.read_latency = queztl_api::Histogram { buckets: vec![count], sum_ns: count * 2_000_000 };
            }
            reading
        };
        let sample = |before, now| between(Some(&at(0, before)), &at(1, now)).unwrap();
        assert_eq!(sample([5, 0], [5, 0]).disk_latency_seconds, None);
        assert_eq!(sample([5, 0], [6, 3]).disk_latency_seconds, Some(0.002));
    }

    #[test]
    fn an_answer_has_a_bound() {
        let sample = between(Some(&reading(1, 0, 0, 0)), &reading(1, 10, 5, 1)).unwrap();
        let thinned = thin(vec![sample.clone(); 5 * MAX_SAMPLES + 1]);
        assert!(thinned.len() <= MAX_SAMPLES && thinned.len() > MAX_SAMPLES / 2);
        assert_eq!(thin(vec![sample; 7]).len(), 7);
    }
}

//! The figures of all machines as OpenMetrics text.
//!
//! Names follow the conventions of OpenMetrics 1.0: a prefix, base units (seconds, bytes), `_total` for counters. Each
//! machine is told by `vm` (its identifier, which lasts) and `name`.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit};
use queztl_api::{
    AlertRule, DiskMetrics, HISTOGRAM_BUCKETS, Histogram, MemoryMetrics, NetMetrics, VcpuMetrics, Vm, VmMetrics,
};
use queztl_telemetry::DeliveryFigures;

use crate::DaemonFigures;

/// The text's media type.
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;

/// Writes the figures.
///
/// # Errors
/// None that can be met: a string takes everything.
pub fn text(metrics: Vec<VmMetrics>, vms: &[Vm], daemon: DaemonFigures) -> Result<String, fmt::Error> {
    let mut states = BTreeMap::new();
    for vm in vms {
        let state = serde_json::to_value(vm.state).ok();
        let state = state.as_ref().and_then(|state| state.as_str()).unwrap_or("unknown").to_owned();
        *states.entry(state).or_insert(0u64) += 1;
    }
    let mut registry = Registry::with_prefix("queztl");
    registry.register_collector(Box::new(Figures { metrics, states, daemon }));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Figures {
    metrics: Vec<VmMetrics>,
    /// How many machines are in each state.
    states: BTreeMap<String, u64>,
    daemon: DaemonFigures,
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let states = self.states.iter().map(|(state, count)| (vec![("state", state.clone())], Value::Size(*count)));
        Family::gauge("vms", "Machines by state").write(&mut encoder, states)?;
        self.daemon(&mut encoder)?;
        self.processors(&mut encoder)?;
        self.memory(&mut encoder)?;
        self.disks(&mut encoder)?;
        self.nets(&mut encoder)?;
        self.protections(&mut encoder)
    }
}

impl Figures {
    fn daemon(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let DaemonFigures { alerts, refused, deliveries, host } = &self.daemon;
        let firing = AlertRule::ALL.map(|rule| {
            let count = alerts.iter().filter(|alert| alert.rule == rule).count();
            (vec![("rule", rule.name().to_owned())], Value::Size(count as u64))
        });
        Family::gauge("alerts", "Alerts that fire, by rule").write(encoder, firing.into_iter())?;
        let refused = [(Vec::new(), Value::Count(*refused))];
        Family::counter("refused_requests", "Requests with a wrong token or none")
            .write(encoder, refused.into_iter())?;
        type Count = (&'static str, &'static str, fn(&DeliveryFigures) -> u64);
        let counts: [Count; 3] = [
            ("delivery_sent", "Alerts and records that a collector has taken", |one| one.sent),
            ("delivery_dropped", "Alerts and records that were lost, since a collector refused or was away", |one| {
                one.dropped
            }),
            ("delivery_retries", "Requests to a collector that were sent again", |one| one.retries),
        ];
        for (name, help, count) in counts {
            let labels = |one: &DeliveryFigures| vec![("kind", one.kind.to_owned()), ("url", one.url.clone())];
            let samples = deliveries.iter().map(|one| (labels(one), Value::Count(count(one))));
            Family::counter(name, help).write(encoder, samples)?;
        }
        let busy = [(Vec::new(), Value::Time((host.cpu_busy_seconds * 1e9) as u64))];
        let family = Family::counter("host_cpu_busy", "Time that all processors of the host together have worked");
        family.of(Unit::Seconds).write(encoder, busy.into_iter())?;
        let cpus = [(Vec::new(), Value::Size(host.cpus))];
        Family::gauge("host_cpus", "Processors that the daemon may use").write(encoder, cpus.into_iter())?;
        let sizes = [
            ("host_memory", "Memory of the host", host.memory_bytes),
            ("host_memory_available", "Of that, what can be used without swapping", host.memory_available_bytes),
            ("home_size", "Space of the file system where the daemon's home is", host.disk_bytes),
            ("home_free", "Of that, what is free", host.disk_free_bytes),
        ];
        for (name, help, bytes) in sizes {
            let sample = [(Vec::new(), Value::Size(bytes))];
            Family::gauge(name, help).of(Unit::Bytes).write(encoder, sample.into_iter())?;
        }
        Ok(())
    }

    fn processors(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let whole = self.metrics.iter().map(|vm| (labels(vm), Value::Time(vm.cpu_ns)));
        Family::counter("vm_cpu", "Processor time of the machine's process").of(Unit::Seconds).write(encoder, whole)?;
        type Time = (&'static str, &'static str, fn(&VcpuMetrics) -> u64);
        let times: [Time; 3] = [
            ("vcpu_cpu", "Processor time of the vCPU's thread", |vcpu| vcpu.cpu_ns),
            ("vcpu_steal", "Time the vCPU was ready to run and the host ran others", |vcpu| vcpu.steal_ns),
            ("vcpu_halted", "Time the vCPU slept because the guest had nothing to do", |vcpu| vcpu.halted_ns),
        ];
        for (name, help, time) in times {
            let samples = self.vcpus().map(|(labels, vcpu)| (labels, Value::Time(time(vcpu))));
            Family::counter(name, help).of(Unit::Seconds).write(encoder, samples)?;
        }
        let exits = self.vcpus().flat_map(|(labels, vcpu)| {
            let exits = vcpu.exits.iter();
            exits.map(move |exit| (with(labels.clone(), "kind", &exit.kind), Value::Count(exit.count)))
        });
        Family::counter("vcpu_exits", "Exits to the monitor by kind").write(encoder, exits)
    }

    fn memory(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        type Size = (&'static str, &'static str, fn(&MemoryMetrics) -> Option<u64>);
        let sizes: [Size; 10] = [
            ("vm_memory_ram", "RAM of the guest", |memory| Some(memory.ram_bytes)),
            ("vm_memory_resident", "What the host holds for the guest", |memory| Some(memory.resident_bytes)),
            ("vm_memory_private", "Of that, what no other machine shares", |memory| Some(memory.private_bytes)),
            ("vm_memory_pss", "Proportional share of all memory of the process", |memory| Some(memory.pss_bytes)),
            ("vm_balloon_target", "What the guest is asked to give up", |memory| Some(memory.balloon_target_bytes)),
            ("vm_balloon", "What the guest has given up", |memory| Some(memory.balloon_bytes)),
            ("vm_hotplug", "Hot-plugged memory", |memory| Some(memory.hotplug_bytes)),
            ("vm_guest_memory_total", "Memory as the guest tells", |memory| memory.guest_total_bytes),
            ("vm_guest_memory_available", "Available memory as the guest tells", |memory| memory.guest_available_bytes),
            ("vm_guest_memory_free", "Free memory as the guest tells", |memory| memory.guest_free_bytes),
        ];
        for (name, help, size) in sizes {
            let samples = self.metrics.iter().filter_map(|vm| Some((labels(vm), Value::Size(size(&vm.memory)?))));
            Family::gauge(name, help).of(Unit::Bytes).write(encoder, samples)?;
        }
        Ok(())
    }

    fn disks(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        type Count = (Family, fn(&DiskMetrics) -> u64);
        let counts: [Count; 7] = [
            (Family::counter("disk_reads", "Reads"), |disk| disk.reads),
            (Family::counter("disk_writes", "Writes"), |disk| disk.writes),
            (Family::counter("disk_flushes", "Flushes"), |disk| disk.flushes),
            (Family::counter("disk_discards", "Discards"), |disk| disk.discards),
            (Family::counter("disk_read", "Bytes read").of(Unit::Bytes), |disk| disk.read_bytes),
            (Family::counter("disk_written", "Bytes written").of(Unit::Bytes), |disk| disk.written_bytes),
            (Family::counter("disk_errors", "Requests that failed"), |disk| disk.errors),
        ];
        for (family, count) in counts {
            family.write(encoder, self.all_disks().map(|(labels, disk)| (labels, Value::Count(count(disk)))))?;
        }
        let in_flight = self.all_disks().map(|(labels, disk)| (labels, Value::Size(disk.in_flight)));
        Family::gauge("disk_in_flight", "Requests under way").write(encoder, in_flight)?;
        type Latency = (&'static str, &'static str, fn(&DiskMetrics) -> &Histogram);
        let latencies: [Latency; 2] = [
            ("disk_read_latency", "How long reads took", |disk| &disk.read_latency),
            ("disk_write_latency", "How long writes took", |disk| &disk.write_latency),
        ];
        for (name, help, latency) in latencies {
            let family = Family { name, help, unit: Some(Unit::Seconds), kind: MetricType::Histogram };
            family.write(encoder, self.all_disks().map(|(labels, disk)| (labels, Value::Latency(latency(disk)))))?;
        }
        Ok(())
    }

    fn nets(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        type Count = (Family, fn(&NetMetrics) -> u64);
        let dropped = "Frames that were dropped";
        let counts: [Count; 6] = [
            (Family::counter("net_received_frames", "Frames to the guest"), |net| net.received_frames),
            (Family::counter("net_received", "Bytes to the guest").of(Unit::Bytes), |net| net.received_bytes),
            (Family::counter("net_received_dropped", dropped), |net| net.received_dropped),
            (Family::counter("net_sent_frames", "Frames from the guest"), |net| net.sent_frames),
            (Family::counter("net_sent", "Bytes from the guest").of(Unit::Bytes), |net| net.sent_bytes),
            (Family::counter("net_sent_dropped", dropped), |net| net.sent_dropped),
        ];
        for (family, count) in counts {
            let nets = self.metrics.iter().flat_map(|vm| vm.nets.iter().map(move |net| (vm, net)));
            let samples = nets.map(|(vm, net)| (with(labels(vm), "device", &net.device), Value::Count(count(net))));
            family.write(encoder, samples)?;
        }
        Ok(())
    }

    fn protections(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let all = || self.metrics.iter().filter_map(|vm| Some((vm, vm.protection.as_ref()?)));
        let backups = all().flat_map(|(vm, protection)| protection.backups.iter().map(move |backup| (vm, backup)));
        let behind = backups.map(|(vm, one)| (with(labels(vm), "backup", &one.to), Value::Lasting(one.behind_ns)));
        let family = Family::gauge("backup_behind", "How long there has been something that a copy lacks");
        family.of(Unit::Seconds).write(encoder, behind)?;
        let sent = all().map(|(vm, protection)| (labels(vm), Value::Count(protection.wire_bytes)));
        let family = Family::counter("protection_wire", "What copies took on the wire");
        family.of(Unit::Bytes).write(encoder, sent)
    }

    fn vcpus(&self) -> impl Iterator<Item = (Labels, &VcpuMetrics)> {
        let each = |vm: &VmMetrics, number: usize| with(labels(vm), "vcpu", number);
        let all = self.metrics.iter().map(move |vm| (vm, vm.vcpus.iter().enumerate()));
        all.flat_map(move |(vm, vcpus)| vcpus.map(move |(number, vcpu)| (each(vm, number), vcpu)))
    }

    fn all_disks(&self) -> impl Iterator<Item = (Labels, &DiskMetrics)> {
        let all = self.metrics.iter().flat_map(|vm| vm.disks.iter().map(move |disk| (vm, disk)));
        all.map(|(vm, disk)| (with(labels(vm), "device", &disk.device), disk))
    }
}

/// One number with what it is of.
enum Value<'a> {
    Count(u64),
    /// Nanoseconds that grow.
    Time(u64),
    /// Nanoseconds that come and go.
    Lasting(u64),
    Size(u64),
    Latency(&'a Histogram),
}

/// What all samples of a name have in common.
struct Family {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    kind: MetricType,
}

impl Family {
    fn counter(name: &'static str, help: &'static str) -> Family {
        Family { name, help, unit: None, kind: MetricType::Counter }
    }

    fn gauge(name: &'static str, help: &'static str) -> Family {
        Family { name, help, unit: None, kind: MetricType::Gauge }
    }

    fn of(self, unit: Unit) -> Family {
        Family { unit: Some(unit), ..self }
    }

    fn write<'a>(
        self,
        encoder: &mut DescriptorEncoder,
        samples: impl Iterator<Item = (Labels, Value<'a>)>,
    ) -> fmt::Result {
        let mut family = encoder.encode_descriptor(self.name, self.help, self.unit.as_ref(), self.kind)?;
        for (labels, value) in samples {
            if labels.is_empty() {
                value.write(&mut family)?;
            } else {
                value.write(&mut family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

impl Value<'_> {
    fn write(&self, sample: &mut MetricEncoder) -> fmt::Result {
        match self {
            Value::Count(count) => sample.encode_counter::<NoLabelSet, _, u64>(count, None),
            Value::Time(ns) => sample.encode_counter::<NoLabelSet, _, u64>(&seconds(*ns), None),
            Value::Lasting(ns) => sample.encode_gauge(&seconds(*ns)),
            Value::Size(size) => sample.encode_gauge(size),
            Value::Latency(histogram) => {
                let (buckets, count) = buckets(histogram);
                let none: Option<&std::collections::HashMap<usize, Exemplar<NoLabelSet, f64>>> = None;
                sample.encode_histogram(seconds(histogram.sum_ns), count, &buckets, none)
            }
        }
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// Upper bounds in seconds with their counts, the last without a bound; and all counts together.
fn buckets(histogram: &Histogram) -> (Vec<(f64, u64)>, u64) {
    let last = HISTOGRAM_BUCKETS - 1;
    let mut buckets: Vec<(f64, u64)> = (0..last).map(|power| (2f64.powi(power as i32) / 1e6, 0)).collect();
    buckets.push((f64::MAX, 0));
    for (number, count) in histogram.buckets.iter().enumerate() {
        // More than there should be are the rest.
        if let Some(bucket) = buckets.get_mut(number.min(last)) {
            bucket.1 = bucket.1.saturating_add(*count);
        }
    }
    let count = buckets.iter().fold(0u64, |sum, (_, count)| sum.saturating_add(*count));
    (buckets, count)
}

fn labels(vm: &VmMetrics) -> Labels {
    vec![("vm", vm.vm.clone()), ("name", vm.name.clone())]
}

fn with(mut labels: Labels, name: &'static str, value: impl fmt::Display) -> Labels {
    labels.push((name, value.to_string()));
    labels
}

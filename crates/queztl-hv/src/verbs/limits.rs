//! `limits` and `set`: changes of machines, in force at once.

use queztl_api::{Limits, RateLimit, UpdateVm, Vm};

use super::create::{api_pin, schedule};
use super::session::{Session, failure};
use crate::cli::{LimitsArgs, SetArgs};
use crate::output::table::fields;
use crate::output::text::size;
use crate::output::{self, Made};
use crate::report::Failure;
use crate::status::Status;
use crate::topology;

/// Changes limits, if any are named, and shows those in force.
pub async fn limits(session: &Session, args: LimitsArgs) -> Result<Status, Failure> {
    let format = args.output.format;
    let vm = session.client.vm(&args.vm.vm).await.map_err(failure)?;
    let wanted = changed(&vm, args).map_err(Failure::usage)?;
    let vm = if wanted == vm.spec.limits {
        vm
    } else {
        let request = UpdateVm { limits: Some(wanted), ..UpdateVm::default() };
        // By its identifier: whoever has taken its name meanwhile is not meant.
        session.client.update(&vm.id, &request).await.map_err(failure)?
    };
    let limits = vm.spec.limits;
    let names = limits.rates.keys().cloned().collect();
    output::print(&Made { table: table(&limits), names, value: limits }, format)
}

/// The limits as they are wished.
fn changed(vm: &Vm, args: LimitsArgs) -> Result<Limits, String> {
    let mut limits = vm.spec.limits.clone();
    if let Some(weight) = args.cpu.cpu_weight {
        limits.cpu.weight = Some(weight);
    }
    if let Some(quota) = args.cpu.cpu_quota {
        limits.cpu.quota_percent = quota.0;
    }
    if !args.pins.is_empty() {
        let pins = args.pins.into_iter().filter_map(|pin| pin.0).collect();
        limits.cpu.pins = topology::pins(pins, vm.spec.vcpus)?.into_iter().map(api_pin).collect();
    }
    limits.balloon_bytes = args.balloon.unwrap_or(limits.balloon_bytes);
    limits.hotplug_bytes = args.memory.unwrap_or(limits.hotplug_bytes);
    for rate in args.rates {
        match rate.limit == RateLimit::default() {
            true => limits.rates.remove(&rate.device),
            false => limits.rates.insert(rate.device, rate.limit),
        };
    }
    Ok(limits)
}

fn table(limits: &Limits) -> String {
    let cpu = &limits.cpu;
    let pins = cpu.pins.iter().map(|pin| {
        let cpus: Vec<String> = pin.cpus.iter().map(u32::to_string).collect();
        format!("{}=[{}]", pin.vcpu, cpus.join(","))
    });
    let mut rows = vec![
        ("CPU weight", cpu.weight.map_or("usual".to_owned(), |weight| weight.to_string())),
        ("CPU quota", cpu.quota_percent.map_or("none".to_owned(), |percent| format!("{percent} % of one processor"))),
        ("pins", pins.collect::<Vec<_>>().join(",")),
        ("balloon", size(limits.balloon_bytes)),
        ("hot-plugged", size(limits.hotplug_bytes)),
    ];
    rows.extend(limits.rates.iter().map(|(device, limit)| (device.as_str(), rate(limit))));
    fields(&rows)
}

fn rate(limit: &RateLimit) -> String {
    let bytes = limit.bytes.map(|rate| format!("{} a second (burst {})", size(rate.per_second), size(rate.burst)));
    let requests = limit.requests.map(|rate| format!("{} requests a second (burst {})", rate.per_second, rate.burst));
    bytes.into_iter().chain(requests).collect::<Vec<_>>().join(", ")
}

/// Changes name, labels and policies.
pub async fn set(session: &Session, args: SetArgs) -> Result<Status, Failure> {
    let mut request = UpdateVm {
        name: args.name,
        on_crash: args.policy.on_crash.map(Into::into),
        checkpoints: schedule(&args.policy),
        autostart: args.policy.autostart,
        ..UpdateVm::default()
    };
    let vm = session.client.vm(&args.vm.vm).await.map_err(failure)?;
    if !args.policy.labels.is_empty() || !args.remove_label.is_empty() {
        let mut labels = vm.spec.labels;
        labels.retain(|key, _| !args.remove_label.contains(key));
        labels.extend(args.policy.labels);
        request.labels = Some(labels);
    }
    if request == UpdateVm::default() {
        return Err(Failure::usage("nothing to change is named: see queztl-hv set --help"));
    }
    session.client.update(&vm.id, &request).await.map_err(failure)?;
    Ok(Status::Success)
}

#[cfg(test)]
mod tests {
    use queztl_api::Rate;

    use super::*;

    #[test]
    fn limits_are_sentences() {
        let mut limits = Limits::default();
        limits.cpu.quota_percent = Some(150);
        limits.cpu.pins = vec![queztl_api::Pin { vcpu: 0, cpus: vec![2, 4] }];
        let bytes = Some(Rate { per_second: 50 << 20, burst: 5 << 20 });
        limits.rates.insert("disk0".into(), RateLimit { bytes, requests: None });

        let wanted = "\
CPU weight   usual
CPU quota    150 % of one processor
pins         0=[2,4]
balloon      0 bytes
hot-plugged  0 bytes
disk0        50 MiB a second (burst 5 MiB)
";
        assert_eq!(table(&limits), wanted);
    }
}

//! `create` and `spawn`.

use std::collections::BTreeMap;

use queztl_api::{
    Checkpoints, CpuLimits, CreateVm, Disk, Limits, Net, NetKind, OnCrash, Pin, RateLimit, Vm, VmSpec, VmState,
};
use queztl_vmm::config::{NetBackend, Pages};

use super::rows::One;
use super::session::{Session, failure};
use super::wait;
use crate::cli::{CreateArgs, OnCrashArg, OutputFormat, PolicyArgs};
use crate::output;
use crate::report::Failure;
use crate::status::Status;
use crate::topology;
use crate::values::machine::{DiskArg, api_limit};

/// Makes a machine.
pub async fn create(session: &Session, args: CreateArgs) -> Result<Status, Failure> {
    make(session, args, false).await
}

/// Makes a machine and waits until it runs.
pub async fn spawn(session: &Session, args: CreateArgs) -> Result<Status, Failure> {
    make(session, args, true).await
}

async fn make(session: &Session, args: CreateArgs, start: bool) -> Result<Status, Failure> {
    let format = args.output.format;
    let request = CreateVm { name: args.name.clone(), spec: spec(args).map_err(Failure::usage)?, start };
    let operation = session.client.create(&request).await.map_err(failure)?;
    let name = request.name.as_str();
    if let Err(failed) = wait::finish(&session.client, operation).await {
        return Err(if start { left_over(session, name, failed).await } else { failed });
    }
    if format == OutputFormat::Name {
        return Ok(crate::print(&format!("{name}\n")));
    }
    let vm: Vm = session.client.vm(name).await.map_err(failure)?;
    output::print(&One(&vm), format)
}

/// The failure of a start; the machine may have been made all the same.
async fn left_over(session: &Session, name: &str, failed: Failure) -> Failure {
    match session.client.vm(name).await {
        Ok(vm) if matches!(vm.state, VmState::Crashed | VmState::Stopped | VmState::Created) => failed.with(&format!(
            "; the machine is made: queztl-hv start {name} tries again, queztl-hv delete {name} removes it"
        )),
        _ => failed,
    }
}

/// What the arguments ask for.
fn spec(args: CreateArgs) -> Result<VmSpec, String> {
    let mut rates = BTreeMap::new();
    let image = args
        .image
        .map(|image| DiskArg { disk: Disk { image: Some(image), ..Disk::default() }, limit: RateLimit::default() });
    let disks = image.into_iter().chain(args.disks).enumerate().map(|(index, arg)| {
        limit(&mut rates, format!("disk{index}"), arg.limit);
        arg.disk
    });
    let disks = disks.collect();
    let nets = args.nets.into_iter().filter_map(|net| net.0).enumerate().map(|(index, net)| {
        limit(&mut rates, format!("net{index}-rx"), api_limit(net.receive_limit));
        limit(&mut rates, format!("net{index}-tx"), api_limit(net.transmit_limit));
        match net.backend {
            NetBackend::User => Net { kind: NetKind::User, tap: None, mac: None },
            NetBackend::Tap(name) => Net { kind: NetKind::Tap, tap: Some(name), mac: None },
        }
    });
    let nets = nets.collect();
    limit(&mut rates, "rng".to_owned(), api_limit(args.rng.unwrap_or_default()));
    let here = |path: &std::path::PathBuf| {
        std::path::absolute(path).map_err(|error| format!("'{}' is no path: {error}", path.display()))
    };
    let cpu = CpuLimits {
        weight: args.cpu.cpu_weight,
        quota_percent: args.cpu.cpu_quota.and_then(|quota| quota.0),
        pins: topology::pins(args.pins, args.vcpus)?.into_iter().map(api_pin).collect(),
    };
    Ok(VmSpec {
        kernel: args.kernel.as_ref().map(here).transpose()?,
        initrd: args.initrd.iter().map(here).collect::<Result<_, _>>()?,
        cmdline: args.append.unwrap_or_default(),
        vcpus: args.vcpus,
        ram_bytes: args.ram,
        memory_hotplug_bytes: args.memory_hotplug,
        huge_pages: pages(args.memory).to_owned(),
        disks,
        nets,
        accel: args.accel.0,
        limits: Limits { cpu, balloon_bytes: args.balloon, hotplug_bytes: 0, rates },
        on_crash: args.policy.on_crash.map(Into::into).unwrap_or_default(),
        checkpoints: schedule(&args.policy).flatten(),
        autostart: args.policy.autostart.unwrap_or(false),
        labels: args.policy.labels.into_iter().collect(),
    })
}

fn limit(rates: &mut BTreeMap<String, RateLimit>, device: String, limit: RateLimit) {
    if limit != RateLimit::default() {
        rates.insert(device, limit);
    }
}

/// The schedule that is asked for: nothing, none, or one.
pub fn schedule(policy: &PolicyArgs) -> Option<Option<Checkpoints>> {
    policy.checkpoint.map(|arg| arg.0)
}

/// A pin of the machine's options as the API has it.
pub fn api_pin(pin: queztl_vmm::config::Pin) -> Pin {
    Pin { vcpu: pin.vcpu, cpus: pin.cpus }
}

fn pages(pages: Pages) -> &'static str {
    match pages {
        Pages::Host => "none",
        Pages::Transparent => "thp",
        Pages::Huge2M => "2M",
    }
}

impl From<OnCrashArg> for OnCrash {
    fn from(arg: OnCrashArg) -> OnCrash {
        match arg {
            OnCrashArg::Stay => OnCrash::Stay,
            OnCrashArg::Restart => OnCrash::Restart,
            OnCrashArg::Restore => OnCrash::Restore,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command, MachineCommand};

    fn parse(words: &str) -> VmSpec {
        let cli = Cli::try_parse_from(["queztl-hv", "create"].into_iter().chain(words.split(' '))).unwrap();
        match cli.command {
            Command::Machine(MachineCommand::Create(verb)) => spec(verb.args).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_machine_without_options_is_the_apis_default() {
        assert_eq!(parse("a"), VmSpec::default());
    }

    #[test]
    fn options_become_the_specification() {
        let spec = parse(
            "a --vcpus 2 --ram 1G --image debian --disk size=8G,bps=1M --net user,tx-pps=5 --net none --label k=v \
             --on-crash restart --checkpoint every=1m,keep=3 --autostart --accel soft,translator=off --cpu-quota 150 \
             --pin 0-1=[0,1] --memory hugepages=thp --balloon 64M --kernel k",
        );
        assert_eq!((spec.vcpus, spec.ram_bytes, spec.limits.balloon_bytes), (2, 1 << 30, 64 << 20));
        assert_eq!(spec.disks[0].image.as_ref().unwrap().as_str(), "debian");
        assert_eq!(spec.disks[1].size_bytes, Some(8 << 30));
        assert_eq!(spec.limits.rates.keys().collect::<Vec<_>>(), ["disk1", "net0-tx"]);
        assert_eq!(spec.nets.len(), 1);
        assert_eq!((spec.on_crash, spec.autostart, spec.labels["k"].as_str()), (OnCrash::Restart, true, "v"));
        assert_eq!(spec.checkpoints, Some(Checkpoints { every_seconds: 60, keep: 3 }));
        assert_eq!((spec.accel.as_str(), spec.huge_pages.as_str()), ("soft,translator=off", "thp"));
        assert_eq!(spec.limits.cpu.quota_percent, Some(150));
        assert_eq!(spec.limits.cpu.pins.len(), 2);
        assert!(spec.kernel.unwrap().is_absolute());
    }
}

//! Limits of machines that run, by what they do.

use std::path::PathBuf;
use std::time::Duration;

use queztl_agent_client::{Agent, Exec, Io};
use queztl_api::{CpuLimits, Disk, Limits, Pin, Rate, RateLimit, UpdateVm, VmSpec};
use queztl_control::{Manager, Service};
use queztl_vmm::control::{Client, Status};

use crate::common::*;

async fn limit(manager: &Manager, vm: &str, limits: Limits) {
    manager.update(vm, UpdateVm { limits: Some(limits), ..UpdateVm::default() }).await.unwrap();
}

fn cpu(limits: CpuLimits) -> Limits {
    Limits { cpu: limits, ..Limits::default() }
}

/// Asks until it is so.
async fn until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let start = std::time::Instant::now();
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "it never comes to that");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The group that the kernel says limits the processors of a process, if the manager could make it one.
fn group(pid: u32, vm: &str) -> Option<PathBuf> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let of = |line: &str| line.splitn(3, ':').nth(2).map(|path| path.trim_start_matches('/').to_owned());
    let v1 =
        groups.lines().find(|line| line.split(':').nth(1).is_some_and(|names| names.split(',').any(|n| n == "cpu")));
    let found = match v1 {
        Some(line) => PathBuf::from("/sys/fs/cgroup/cpu").join(of(line)?),
        None => PathBuf::from("/sys/fs/cgroup").join(of(groups.lines().find(|line| line.starts_with("0::"))?)?),
    };
    if found.ends_with(vm) {
        return Some(found);
    }
    eprintln!("skipped: this host does not let the manager make control groups");
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_throttles_a_guest_that_spins_until_it_is_lifted() {
    let home = Home::new();
    let manager = home.manager().await;
    // jmp $
    let vm = spawn(&manager, "one", spec(kernel(home.folder.path(), "spinning", &[0xeb, 0xfe]))).await;
    let Some(group) = group(pid(&vm), &vm.id) else { return };
    let throttled = || {
        let stat = std::fs::read_to_string(group.join("cpu.stat")).unwrap();
        let line = stat.lines().find_map(|line| line.strip_prefix("nr_throttled ")).unwrap().to_owned();
        line.parse::<u64>().unwrap()
    };
    let file = |name: &str| std::fs::read_to_string(group.join(name)).map(|text| text.trim().to_owned());
    assert_eq!(throttled(), 0);

    limit(&manager, "one", cpu(CpuLimits { quota_percent: Some(5), weight: Some(300), pins: Vec::new() })).await;

    until(|| (throttled() > 2).then_some(())).await;
    match file("cpu.shares") {
        Ok(shares) => assert_eq!((shares.as_str(), file("cpu.cfs_quota_us").unwrap().as_str()), ("3072", "5000")),
        Err(_) => {
            assert_eq!((file("cpu.weight").unwrap(), file("cpu.max").unwrap()), ("300".into(), "5000 100000".into()))
        }
    }
    limit(&manager, "one", Limits::default()).await;
    let quota = file("cpu.cfs_quota_us").or_else(|_| file("cpu.max")).unwrap();
    assert!(quota == "-1" || quota.starts_with("max"), "{quota}");
    done(&manager, manager.delete("one", true).await).await;
    assert!(!group.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_vcpu_runs_where_it_was_pinned_to() {
    let home = Home::new();
    let manager = home.manager().await;
    let vm = spawn(&manager, "one", idle(home.folder.path())).await;
    let allowed = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", pid(&vm))).unwrap();
        let vcpu = tasks
            .map(|task| task.unwrap().path())
            .find(|task| std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("vcpu-0")));
        let status = std::fs::read_to_string(vcpu.unwrap().join("status")).unwrap();
        status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_owned()
    };
    let before = allowed();

    limit(&manager, "one", cpu(CpuLimits { pins: vec![Pin { vcpu: 0, cpus: vec![0] }], ..CpuLimits::default() })).await;

    assert_eq!(allowed(), "0");
    limit(&manager, "one", Limits::default()).await;
    assert_eq!(allowed(), before);
    done(&manager, manager.delete("one", true).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_gives_memory_to_the_balloon_and_its_disk_waits_for_its_rate() {
    let home = Home::new();
    let manager = home.manager().await;
    let Some(linux) = linux() else { return };
    let disk = Disk { size_bytes: Some(16 << 20), ..Disk::default() };
    let vm = spawn(&manager, "one", VmSpec { disks: vec![disk], ..linux }).await;
    let control = home.vm_folder(&vm.id).join("control.sock");
    let status = || -> Status { Client::connect(&control).unwrap().status().unwrap() };
    run(&manager, "one", "true").await;

    limit(&manager, "one", Limits { balloon_bytes: 32 << 20, ..Limits::default() }).await;
    until(|| (status().memory.balloon.actual_bytes == 32 << 20).then_some(())).await;
    limit(&manager, "one", Limits::default()).await;
    until(|| (status().memory.balloon.actual_bytes == 0).then_some(())).await;

    let waits = || status().limits.iter().find(|limit| limit.device == "disk0").unwrap().waits;
    let write = "dd if=/dev/zero of=/dev/vda bs=4k count=64 oflag=direct 2>/dev/null || \
                 dd if=/dev/zero of=/dev/vda bs=4k count=64 conv=fsync";
    run(&manager, "one", write).await;
    assert_eq!(waits(), 0);
    let rate = RateLimit { bytes: Some(Rate { per_second: 64 << 10, burst: 64 << 10 }), requests: None };
    limit(&manager, "one", Limits { rates: [("disk0".to_owned(), rate)].into(), ..Limits::default() }).await;
    run(&manager, "one", write).await;
    assert!(waits() > 0);
    done(&manager, manager.delete("one", true).await).await;
}

async fn run(manager: &Manager, vm: &str, script: &str) {
    let vsock = manager.endpoints(vm).await.unwrap().vsock;
    let argv = vec![b"/bin/sh".to_vec(), b"-c".to_vec(), script.as_bytes().to_vec()];
    let run = move || {
        let limits = queztl_agent_client::Limits { connect: PATIENCE, answer: PATIENCE };
        Agent::connect(&vsock, &limits)?.exec(&Exec { argv, ..Exec::default() }, Io::default())
    };
    tokio::task::spawn_blocking(run).await.unwrap().unwrap();
}

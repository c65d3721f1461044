//! Snapshots and clones of machines that run Linux: what was kept is there again, and what belongs to one is seen by no other.

use std::time::Duration;

use queztl_agent_client::{Agent, Exec, Io, Limits};
use queztl_api::{
    Checkpoints, CloneRequest, Code, Disk, Name, OnCrash, Snapshot, SnapshotKind, SnapshotRequest, Vm, VmSpec, VmState,
};
use queztl_control::{Manager, Service};

use crate::common::*;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn named(text: &str) -> SnapshotRequest {
    SnapshotRequest { name: Some(name(text)), ..SnapshotRequest::default() }
}

/// Runs a command in a guest, and gives what it says.
async fn exec(manager: &Manager, vm: &str, script: &str) -> String {
    let vsock = manager.endpoints(vm).await.unwrap().vsock;
    let argv = vec![b"/bin/sh".to_vec(), b"-c".to_vec(), script.as_bytes().to_vec()];
    let run = move || {
        let limits = Limits { connect: PATIENCE, answer: PATIENCE };
        loop {
            let mut output = Vec::new();
            let exec = Exec { argv: argv.clone(), ..Exec::default() };
            match Agent::connect(&vsock, &limits).and_then(|mut agent| agent.exec(&exec, Io::output(&mut output))) {
                // A guest that has just gone on from a snapshot drops its connections.
                Err(queztl_agent_client::Error::Closed) => {}
                Err(error) => return Err(error),
                Ok(_) => return Ok(String::from_utf8_lossy(&output).trim().to_owned()),
            }
        }
    };
    tokio::task::spawn_blocking(run).await.unwrap().unwrap()
}

/// Our Linux with a disk of its own.
fn with_disk() -> Option<VmSpec> {
    let disk = Disk { size_bytes: Some(16 << 20), ..Disk::default() };
    linux().map(|spec| VmSpec { disks: vec![disk], ..spec })
}

async fn snapshot(manager: &Manager, vm: &str, request: SnapshotRequest) -> Snapshot {
    let operation = done(manager, manager.snapshot(vm, request).await).await;
    serde_json::from_value(operation.result.unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_goes_back_to_its_snapshot_memory_and_disk() {
    let home = Home::new();
    let manager = home.manager().await;
    let Some(spec) = with_disk() else { return };
    spawn(&manager, "one", spec).await;
    let write =
        |text: &str| format!("echo {text} > /tmp/m; echo {text} | dd of=/dev/vda bs=512 conv=sync,fsync 2>&1; sync");
    let read = "cat /tmp/m; head -c 6 /dev/vda";
    exec(&manager, "one", &write("first.")).await;

    let first = snapshot(&manager, "one", named("first")).await;
    exec(&manager, "one", &write("second")).await;
    let second = snapshot(&manager, "one", SnapshotRequest { incremental: true, ..named("second") }).await;
    exec(&manager, "one", &write("third.")).await;

    assert_eq!((first.kind, second.kind), (SnapshotKind::Full, SnapshotKind::Incremental));
    assert_eq!(second.base, Some(name("first")));
    let refused = manager.delete_snapshot("one", &name("first")).await.unwrap_err();
    assert!(refused.code == Code::InUse && refused.detail.contains("\"second\""), "{refused}");
    assert_eq!(manager.snapshot("one", named("first")).await.unwrap_err().code, Code::Exists);
    done(&manager, manager.restore("one", &name("first")).await).await;
    assert_eq!(exec(&manager, "one", read).await, "first.\nfirst.");
    done(&manager, manager.restore("one", &name("second")).await).await;
    assert_eq!(exec(&manager, "one", read).await, "second\nsecond");
    done(&manager, manager.delete_snapshot("one", &name("second")).await).await;
    done(&manager, manager.delete_snapshot("one", &name("first")).await).await;
    assert_eq!(exec(&manager, "one", read).await, "second\nsecond");
    assert!(manager.snapshots("one").await.unwrap().is_empty());
    done(&manager, manager.delete("one", true).await).await;
    assert_eq!(std::fs::read_dir(home.folder.path().join("vms")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_of_a_running_machine_share_nothing_but_their_past() {
    let home = Home::new();
    let manager = home.manager().await;
    let Some(spec) = with_disk() else { return };
    spawn(&manager, "parent", spec).await;
    exec(&manager, "parent", "echo before > /tmp/m; echo before | dd of=/dev/vda bs=512 conv=sync,fsync; sync").await;

    let request = CloneRequest { count: 3, ..CloneRequest::default() };
    let made = done(&manager, manager.clone_vm("parent", request).await).await;
    exec(&manager, "parent", "echo parent > /tmp/m; echo parent | dd of=/dev/vda bs=512 conv=sync,fsync; sync").await;
    let clones: Vec<Vm> = serde_json::from_value(made.result.unwrap()).unwrap();

    let names: Vec<&str> = clones.iter().map(|clone| clone.name.as_str()).collect();
    assert_eq!(names, ["parent-1", "parent-2", "parent-3"]);
    for clone in &names {
        assert_eq!(
            exec(&manager, clone, "cat /tmp/m; head -c 6 /dev/vda; hostname").await,
            format!("before\nbefore{clone}")
        );
        exec(&manager, clone, &format!("echo {clone} > /tmp/m; echo {clone} | dd of=/dev/vda bs=512 conv=sync,fsync"))
            .await;
    }
    for clone in &names {
        assert_eq!(exec(&manager, clone, "cat /tmp/m; head -c 8 /dev/vda").await, format!("{clone}\n{clone}"));
    }
    assert_eq!(exec(&manager, "parent", "cat /tmp/m; head -c 6 /dev/vda").await, "parent\nparent");
    let random = "head -c 16 /dev/urandom | md5sum";
    let random: Vec<String> = vec![exec(&manager, names[0], random).await, exec(&manager, names[1], random).await];
    assert_ne!(random[0], random[1]);
    let again = CloneRequest { name: Some(name("grandchild")), ..CloneRequest::default() };
    done(&manager, manager.clone_vm("parent-2", again).await).await;
    done(&manager, manager.delete("parent", true).await).await;
    done(&manager, manager.delete("parent-2", true).await).await;
    assert_eq!(
        exec(&manager, "grandchild", "cat /tmp/m; head -c 8 /dev/vda; hostname").await,
        "parent-2\nparent-2grandchild"
    );
    for vm in ["parent-1", "parent-3", "grandchild"] {
        done(&manager, manager.delete(vm, true).await).await;
    }
    assert_eq!(std::fs::read_dir(home.folder.path().join("vms")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_of_a_snapshot_begin_where_it_was_taken() {
    let home = Home::new();
    let manager = home.manager().await;
    let Some(spec) = with_disk() else { return };
    spawn(&manager, "parent", spec).await;
    exec(&manager, "parent", "echo then > /tmp/m").await;
    snapshot(&manager, "parent", named("then")).await;
    exec(&manager, "parent", "echo now > /tmp/m").await;
    done(&manager, manager.stop("parent", at_once()).await).await;

    let request = CloneRequest { count: 2, snapshot: Some(name("then")), ..CloneRequest::default() };
    done(&manager, manager.clone_vm("parent", request).await).await;

    for clone in ["parent-1", "parent-2"] {
        assert_eq!(exec(&manager, clone, "cat /tmp/m; hostname").await, format!("then\n{clone}"));
        assert_eq!(manager.vm(clone).await.unwrap().origin.unwrap().snapshot, Some(name("then")));
        done(&manager, manager.delete(clone, true).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_that_fails_undoes_the_others() {
    let home = Home::new();
    let manager = home.manager().await;
    spawn(&manager, "parent", idle(home.folder.path())).await;
    done(&manager, manager.snapshot("parent", named("good")).await).await;
    let vms = home.vm_folder(&manager.vm("parent").await.unwrap().id);
    // As if the disk had lost it.
    std::fs::write(vms.join("snapshots/good/state.json"), "{}").unwrap();

    let request =
        CloneRequest { count: 5, snapshot: Some(name("good")), wait_for_agent: false, ..CloneRequest::default() };
    let failed = end(&manager, manager.clone_vm("parent", request).await).await;

    assert!(failed.problem.is_some());
    assert_eq!(manager.vms().await.unwrap().len(), 1);
    assert_eq!(std::fs::read_dir(home.folder.path().join("vms")).unwrap().count(), 1);
    assert_eq!(manager.vm("parent").await.unwrap().state, VmState::Running);
    let refused = end(&manager, manager.restore("parent", &name("good")).await).await;
    assert_eq!(refused.problem.unwrap().code, Code::State);
    assert_eq!(manager.vm("parent").await.unwrap().state, VmState::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_are_taken_and_retired_and_a_crash_goes_on_from_the_newest_good_one() {
    let home = Home::new();
    let manager = home.manager().await;
    let Some(spec) = linux() else { return };
    let checkpoints = Some(Checkpoints { every_seconds: 2, keep: 2 });
    let first = spawn(&manager, "one", VmSpec { on_crash: OnCrash::Restore, checkpoints, ..spec }).await;
    exec(&manager, "one", "echo kept > /tmp/m").await;
    let count = async || {
        let taken = |event: &queztl_api::Event| matches!(event.kind, queztl_api::EventKind::SnapshotTaken { .. });
        manager.past_events(1000).await.unwrap().into_iter().filter(taken).count()
    };
    let before = count().await;
    while count().await < before + 3 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The newest is damaged.
    let stop = queztl_api::UpdateVm { checkpoints: Some(None), ..Default::default() };
    manager.update("one", stop).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let snapshots = manager.snapshots("one").await.unwrap();
    assert!(snapshots.len() <= 2 && snapshots.iter().all(|snapshot| snapshot.scheduled), "{snapshots:?}");
    let newest = home.vm_folder(&first.id).join("snapshots").join(snapshots.last().unwrap().name.as_str());
    std::fs::write(newest.join("state.json"), "{}").unwrap();

    kill(pid(&first));

    let back = wait_for(&manager, "one", |vm| {
        vm.state == VmState::Running && vm.runtime.as_ref().is_some_and(|run| run.pid != pid(&first))
    });
    back.await;
    assert_eq!(exec(&manager, "one", "cat /tmp/m").await, "kept");
    done(&manager, manager.delete("one", true).await).await;
}

/// Seconds by which the guest's clock differs from the host's.
async fn clock_error(manager: &Manager, vm: &str) -> u64 {
    let guest: i64 = exec(manager, vm, "date +%s").await.parse().unwrap();
    let host = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    guest.abs_diff(host)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_goes_on_later_knows_the_time_and_has_random_numbers_of_its_own() {
    let home = Home::new();
    let manager = home.manager().await;
    let Some(spec) = linux() else { return };
    spawn(&manager, "one", spec).await;
    exec(&manager, "one", "true").await;
    snapshot(&manager, "one", named("then")).await;
    // More than the guest's clock may be wrong by below.
    tokio::time::sleep(Duration::from_secs(4)).await;

    done(&manager, manager.restore("one", &name("then")).await).await;
    let again = CloneRequest { count: 2, snapshot: Some(name("then")), ..CloneRequest::default() };
    done(&manager, manager.clone_vm("one", again).await).await;

    let start = std::time::Instant::now();
    // Who was restored hears of it a moment later; clones have been told when they are there.
    while clock_error(&manager, "one").await > 2 {
        assert!(start.elapsed() < PATIENCE, "the clock stays wrong");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut seen = std::collections::HashSet::new();
    for vm in ["one", "one-1", "one-2"] {
        assert!(clock_error(&manager, vm).await <= 2, "{vm}");
        // The kernel's own words when the generation identifier has changed.
        let reseeds = exec(&manager, vm, "dmesg | grep -ci 'virtual machine fork' || true").await;
        assert_ne!(reseeds, "0", "{vm}");
        assert!(seen.insert(exec(&manager, vm, "head -c 16 /dev/urandom | md5sum").await), "{vm}");
        assert!(seen.insert(exec(&manager, vm, "cat /proc/sys/kernel/random/uuid").await), "{vm}");
    }
    for vm in ["one", "one-1", "one-2"] {
        done(&manager, manager.delete(vm, true).await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_writes_all_the_time_has_clones_that_are_of_one_moment() {
    let home = Home::new();
    let manager = home.manager().await;
    let Some(spec) = with_disk() else { return };
    spawn(&manager, "parent", spec).await;
    // First to memory, then to the disk, then to memory again: at any moment 1 >= 2 >= 3 >= 1 less one.
    let write = "i=0; while :; do i=$((i+1)); echo $i > /tmp/.1 && mv /tmp/.1 /tmp/1; \
                 printf %-511d\\\\n $i | dd of=/dev/vda bs=512 conv=fsync 2>/dev/null; \
                 echo $i > /tmp/.3 && mv /tmp/.3 /tmp/3; done";
    exec(&manager, "parent", &format!("({write}) >/dev/null 2>&1 </dev/null & echo $! > /tmp/writer")).await;
    let read = "cat /tmp/1; head -c 511 /dev/vda; echo; cat /tmp/3";
    let stop = "kill -9 $(cat /tmp/writer)";
    let numbers = |text: &str| text.split_whitespace().map(|n| n.parse().unwrap()).collect::<Vec<u64>>();
    let start = std::time::Instant::now();
    while exec(&manager, "parent", "cat /tmp/3 2>/dev/null || true").await.is_empty() {
        assert!(start.elapsed() < PATIENCE, "the writer does not begin");
    }

    for round in 0..3 {
        let request = CloneRequest { count: 2, ..CloneRequest::default() };
        let made = done(&manager, manager.clone_vm("parent", request).await).await;
        let clones: Vec<Vm> = serde_json::from_value(made.result.unwrap()).unwrap();
        for clone in &clones {
            // Its own copy of the writer.
            let found = numbers(&exec(&manager, clone.name.as_str(), &format!("{stop}; {read}")).await);
            assert!(found[0] >= found[1] && found[1] >= found[2] && found[2] + 1 >= found[0], "{round}: {found:?}");
            done(&manager, manager.delete(&clone.id, true).await).await;
        }
    }
    let first = numbers(&exec(&manager, "parent", "cat /tmp/3").await);
    let start = std::time::Instant::now();
    while numbers(&exec(&manager, "parent", "cat /tmp/3").await) <= first {
        assert!(start.elapsed() < PATIENCE, "the parent does not go on");
    }
    done(&manager, manager.delete("parent", true).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_being_written_can_be_cancelled() {
    let home = Home::new();
    let manager = home.manager().await;
    let vm = spawn(&manager, "one", VmSpec { ram_bytes: 1 << 30, ..filling(home.folder.path(), 1000 << 20) }).await;
    let log = queztl_vmm::process::Folder::new(home.vm_folder(&vm.id)).console_log();
    let start = std::time::Instant::now();
    while std::fs::read(&log).unwrap_or_default().is_empty() {
        assert!(start.elapsed() < PATIENCE, "the guest does not fill its memory");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    let begun = manager.snapshot("one", named("large")).await.unwrap();
    let cancelled = manager.cancel_operation(&begun.id).await;
    let ended = end(&manager, Ok(begun)).await;

    match ended.problem {
        Some(problem) => {
            assert_eq!((problem.code, ended.state), (Code::Cancelled, queztl_api::OperationState::Cancelled));
            assert!(manager.snapshots("one").await.unwrap().is_empty());
            let folder = queztl_vmm::process::Folder::new(home.vm_folder(&vm.id)).snapshots();
            assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0);
        }
        // A disk that is faster than that.
        None => eprintln!("skipped: the snapshot was done before it could be cancelled: {cancelled:?}"),
    }
    assert_eq!(manager.vm("one").await.unwrap().state, VmState::Running);
    done(&manager, manager.delete("one", true).await).await;
}

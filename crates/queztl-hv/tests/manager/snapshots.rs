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
        let mut agent = Agent::connect(&vsock, &limits)?;
        let mut output = Vec::new();
        agent.exec(&Exec { argv, ..Exec::default() }, Io::output(&mut output))?;
        Ok::<_, queztl_agent_client::Error>(String::from_utf8_lossy(&output).trim().to_owned())
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

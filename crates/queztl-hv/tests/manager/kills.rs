//! Daemons and machines' processes are killed in the middle of snapshots, restores, clones and imports: each time all is in
//! order afterwards.

use std::time::Duration;

use queztl_api::{CloneRequest, Disk, ImportImage, SnapshotRequest, VmSpec, VmState};
use queztl_control::{Manager, Service};
use queztl_vmm::snapshot::Snapshot as Saved;

use crate::common::*;
use crate::recovery::{Daemon, daemon};

const MIB: u64 = 1 << 20;

fn parent_spec(home: &Home) -> VmSpec {
    let disk = Disk { size_bytes: Some(MIB), ..Disk::default() };
    VmSpec { disks: vec![disk], ..counting(home.folder.path()) }
}

fn clones(count: u32) -> CloneRequest {
    CloneRequest { count, wait_for_agent: false, ..CloneRequest::default() }
}

/// What is listed is whole, what is not listed is not there.
async fn check_order(home: &Home, manager: &Manager) {
    let operations = manager.operations().await.unwrap();
    assert!(operations.iter().all(|operation| operation.state.is_over()), "{operations:?}");
    for vm in manager.vms().await.unwrap() {
        let folder = queztl_vmm::process::Folder::new(home.vm_folder(&vm.id));
        assert_eq!(folder.runner().unwrap().is_some(), vm.runtime.is_some(), "{vm:?}");
        let mut listed: Vec<String> =
            manager.snapshots(&vm.id).await.unwrap().iter().map(|snapshot| snapshot.name.to_string()).collect();
        let mut there: Vec<String> = std::fs::read_dir(folder.snapshots()).map_or(Vec::new(), |entries| {
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        });
        listed.sort();
        there.sort();
        assert_eq!(listed, there, "{vm:?}");
        for name in listed {
            Saved::open(&folder.snapshots().join(name)).unwrap();
        }
    }
    let images = manager.images().await.unwrap().len();
    let files = std::fs::read_dir(home.folder.path().join("disk-images")).unwrap().count();
    assert_eq!(images, files);
}

async fn remove_all(home: &Home, manager: &Manager) {
    for vm in manager.vms().await.unwrap() {
        done(manager, manager.delete(&vm.id, true).await).await;
    }
    for image in manager.images().await.unwrap() {
        manager.delete_image(&image.name).await.unwrap();
    }
    let left: Vec<_> = std::fs::read_dir(home.folder.path().join("vms")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_daemon_that_is_killed_amid_snapshots_clones_restores_and_imports_leaves_nothing_half_done() {
    let home = Home::new();
    let spec = parent_spec(&home);
    std::fs::write(home.folder.path().join("source.raw"), vec![7; 4 * MIB as usize]).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for round in 0..8u64 {
        runtime.block_on(async {
            let manager = home.manager().await;
            spawn(&manager, "parent", spec.clone()).await;
            manager.close().await;
        });
        let busy = Daemon::start(&home, "kills::be_busy", &spec, round);
        std::thread::sleep(Duration::from_millis(20 + 110 * round));
        busy.kill();

        runtime.block_on(async {
            let manager = home.manager().await;
            check_order(&home, &manager).await;
            let parent = manager.vm("parent").await.unwrap();
            if parent.state != VmState::Running {
                // The daemon was killed in the middle of a restore.
                done(&manager, manager.start("parent").await).await;
            }
            if let Some(last) = manager.snapshots("parent").await.unwrap().last() {
                done(&manager, manager.restore("parent", &last.name).await).await;
            }
            done(&manager, manager.snapshot("parent", SnapshotRequest::default()).await).await;
            remove_all(&home, &manager).await;
            manager.close().await;
        });
    }
}

/// Not a test of its own: the other process of the one above.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by another test"]
async fn be_busy() {
    let Some((manager, _, round)) = daemon().await else { return };
    let home = std::env::var("QUEZTL_TEST_HOME").unwrap();
    for number in 0.. {
        let import = ImportImage {
            name: format!("image-{round}-{number}").parse().unwrap(),
            path: format!("{home}/source.raw").into(),
            format: None,
        };
        let importing = manager.import_image(import).await.unwrap();
        // The one after the other, as far as they go: some come while the machine is in the middle of something.
        let request = SnapshotRequest { incremental: number % 2 == 1, ..SnapshotRequest::default() };
        let taken = end(&manager, manager.snapshot("parent", request).await).await;
        end(&manager, manager.clone_vm("parent", clones(2)).await).await;
        if let Some(snapshot) = taken.result {
            let snapshot: queztl_api::Snapshot = serde_json::from_value(snapshot).unwrap();
            let request = CloneRequest { snapshot: Some(snapshot.name.clone()), ..clones(1) };
            end(&manager, manager.clone_vm("parent", request).await).await;
            end(&manager, manager.restore("parent", &snapshot.name).await).await;
        }
        let _ = manager.wait_operation(&importing.id, PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_amid_its_snapshot_or_fork_fails_that_and_nothing_else() {
    let home = Home::new();
    let manager = home.manager().await;
    let mut parent = spawn(&manager, "parent", parent_spec(&home)).await;
    for round in 0..10u64 {
        let begun = match round % 2 {
            0 => manager.snapshot("parent", SnapshotRequest::default()).await,
            _ => manager.clone_vm("parent", clones(2)).await,
        };
        tokio::time::sleep(Duration::from_millis(round / 2 * 12)).await;
        kill(pid(&parent));

        let operation = end(&manager, begun).await;

        let crashed = wait_for_state(&manager, "parent", VmState::Crashed).await;
        assert!(crashed.runtime.is_none());
        check_order(&home, &manager).await;
        let expected = if operation.problem.is_none() && round % 2 == 1 { 3 } else { 1 };
        let vms = manager.vms().await.unwrap();
        assert_eq!(vms.len(), expected, "{operation:?}");
        for clone in vms.iter().filter(|vm| vm.id != parent.id) {
            done(&manager, manager.delete(&clone.id, true).await).await;
        }
        done(&manager, manager.start("parent").await).await;
        parent = manager.vm("parent").await.unwrap();
    }
    remove_all(&home, &manager).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_that_is_killed_while_it_is_made_undoes_the_others() {
    let home = Home::new();
    let manager = home.manager().await;
    let parent = spawn(&manager, "parent", parent_spec(&home)).await;
    for round in 0..4u64 {
        let begun = manager.clone_vm("parent", clones(4)).await.unwrap();
        // Whichever has a process first.
        let victim = loop {
            let vms = manager.vms().await.unwrap();
            if let Some(clone) = vms.iter().find(|vm| vm.id != parent.id && vm.runtime.is_some()) {
                break clone.clone();
            }
            if manager.operation(&begun.id).await.unwrap().state.is_over() {
                panic!("no clone was seen in the making");
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        tokio::time::sleep(Duration::from_millis(round * 3)).await;
        kill(pid(&victim));

        let operation = end(&manager, Ok(begun)).await;

        // One that was killed when it had answered already is a machine that has crashed.
        let vms = manager.vms().await.unwrap();
        assert_eq!(vms.len(), if operation.problem.is_some() { 1 } else { 5 }, "{operation:?}");
        for clone in vms.iter().filter(|vm| vm.id != parent.id) {
            done(&manager, manager.delete(&clone.id, true).await).await;
        }
        check_order(&home, &manager).await;
        assert_eq!(manager.vm("parent").await.unwrap().state, VmState::Running);
    }
    remove_all(&home, &manager).await;
}

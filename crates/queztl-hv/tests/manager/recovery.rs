//! Daemons die, machines crash: nothing is lost, and what was half done is finished or undone.

use std::time::Duration;

use queztl_api::{EndingReason, EventKind, OnCrash, VmSpec, VmState};
use queztl_control::Service;

use crate::common::*;

#[tokio::test(flavor = "multi_thread")]
async fn machines_outlive_their_manager_and_the_next_one_finds_them() {
    let home = Home::new();
    let manager = home.manager().await;
    let running = spawn(&manager, "running", idle(home.folder.path())).await;
    let paused = spawn(&manager, "paused", idle(home.folder.path())).await;
    done(&manager, manager.pause("paused").await).await;
    let killed = spawn(&manager, "killed", idle(home.folder.path())).await;
    drop(manager);
    kill(pid(&killed));

    let manager = loop {
        // The tasks of the one before end soon.
        match queztl_control::Manager::open(home.config()).await {
            Ok(manager) => break manager,
            Err(error) => assert!(error.to_string().contains("serves"), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };

    let found = manager.vm("running").await.unwrap();
    assert_eq!((found.state, pid(&found)), (VmState::Running, pid(&running)));
    let found = manager.vm("paused").await.unwrap();
    assert_eq!((found.state, pid(&found)), (VmState::Paused, pid(&paused)));
    let found = manager.vm("killed").await.unwrap();
    assert_eq!((found.state, found.ended.unwrap().reason), (VmState::Crashed, EndingReason::ProcessFailed));
    kill(pid(&running));
    let found = wait_for_state(&manager, "running", VmState::Crashed).await;
    assert_eq!(found.ended.unwrap().reason, EndingReason::ProcessFailed);
    done(&manager, manager.resume("paused").await).await;
    done(&manager, manager.delete("paused", true).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_managers_cannot_have_one_home() {
    let home = Home::new();
    let _manager = home.manager().await;

    let refused = queztl_control::Manager::open(home.config()).await.unwrap_err().to_string();

    assert!(refused.contains(&std::process::id().to_string()) && refused.contains("QUEZTL_HOME"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_crashes_comes_back_if_its_policy_says_so() {
    let home = Home::new();
    let manager = home.manager().await;
    let spec = VmSpec { on_crash: OnCrash::Restart, ..idle(home.folder.path()) };
    let first = spawn(&manager, "one", spec).await;

    kill(pid(&first));

    let second = wait_for(&manager, "one", |vm| {
        vm.state == VmState::Running && vm.runtime.as_ref().is_some_and(|run| run.pid != pid(&first))
    });
    let second = second.await;
    assert_eq!(second.ended.as_ref().unwrap().reason, EndingReason::ProcessFailed);
    done(&manager, manager.kill("one").await).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(manager.vm("one").await.unwrap().state, VmState::Stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_crashes_stays_so_and_says_why() {
    let home = Home::new();
    let manager = home.manager().await;

    done(&manager, manager.create(request("one", crashing(home.folder.path()), false)).await).await;
    // It may be over before it has answered.
    end(&manager, manager.start("one").await).await;

    let vm = wait_for_state(&manager, "one", VmState::Crashed).await;
    assert_eq!(vm.ended.unwrap().reason, EndingReason::TripleFault);
}

/// The daemon is killed while it makes, starts and deletes machines; each time the next one finds all in order.
#[test]
fn a_daemon_that_is_killed_leaves_nothing_half_done() {
    let home = Home::new();
    let spec = VmSpec {
        disks: vec![queztl_api::Disk { size_bytes: Some(1 << 20), ..queztl_api::Disk::default() }],
        ..idle(home.folder.path())
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for round in 0..8u64 {
        let daemon = Daemon::start(&home, "recovery::be_a_daemon", &spec, round);
        std::thread::sleep(Duration::from_millis(30 + 45 * round));
        daemon.kill();

        runtime.block_on(async {
            let manager = home.manager().await;
            let vms = manager.vms().await.unwrap();
            let operations = manager.operations().await.unwrap();
            assert!(operations.iter().all(|operation| operation.state.is_over()), "{operations:?}");
            let on_disk = std::fs::read_dir(home.folder.path().join("vms")).unwrap().count();
            assert_eq!(on_disk, vms.len(), "{vms:?}");
            for vm in &vms {
                let folder = queztl_vmm::process::Folder::new(home.vm_folder(&vm.id));
                let runs = folder.runner().unwrap().is_some();
                assert_eq!(runs, vm.runtime.is_some(), "{vm:?}");
                done(&manager, manager.delete(&vm.id, true).await).await;
            }
            let events = manager.past_events(10_000).await.unwrap();
            assert!(events.windows(2).all(|pair| pair[1].sequence == pair[0].sequence + 1));
            assert!(events.iter().any(|event| matches!(event.kind, EventKind::DaemonStarted)));
            assert_eq!(std::fs::read_dir(home.folder.path().join("vms")).unwrap().count(), 0);
            manager.close().await;
        });
    }
}

/// A manager in a process of its own, kept busy by a test that is not one.
pub struct Daemon(std::process::Child);

impl Daemon {
    pub fn start(home: &Home, test_name: &str, spec: &VmSpec, round: u64) -> Daemon {
        let test = std::env::current_exe().unwrap();
        let mut command = std::process::Command::new(test);
        command.args(["--exact", test_name, "--ignored", "--nocapture"]);
        command.env("QUEZTL_TEST_HOME", home.folder.path()).env("QUEZTL_TEST_ROUND", round.to_string());
        command.env("QUEZTL_TEST_SPEC", serde_json::to_string(spec).unwrap());
        command.stdout(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        // It says when it has begun.
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
        assert!(lines.any(|line| line.is_ok_and(|line| line.contains("begins"))), "the daemon does not begin");
        Daemon(child)
    }

    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// What [`Daemon::start`] has said, in the other process.
pub async fn daemon() -> Option<(queztl_control::Manager, VmSpec, String)> {
    let path = std::env::var("QUEZTL_TEST_HOME").ok()?;
    let spec: VmSpec = serde_json::from_str(&std::env::var("QUEZTL_TEST_SPEC").unwrap()).unwrap();
    let round = std::env::var("QUEZTL_TEST_ROUND").unwrap();
    let mut config = queztl_control::Config::new(path).unwrap();
    config.program = env!("CARGO_BIN_EXE_queztl-hv").into();
    let manager = queztl_control::Manager::open(config).await.unwrap();
    println!("begins");
    Some((manager, spec, round))
}

/// Not a test of its own: the other process of the one above.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by another test"]
async fn be_a_daemon() {
    let Some((manager, spec, round)) = daemon().await else { return };
    for number in 0.. {
        let name = format!("vm-{round}-{number}");
        let made = manager.create(request(&name, spec.clone(), true)).await.unwrap();
        if number % 3 == 2 {
            let _ = manager.wait_operation(&made.id, PATIENCE).await;
            let _ = manager.delete(&format!("vm-{round}-{}", number - 1), true).await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

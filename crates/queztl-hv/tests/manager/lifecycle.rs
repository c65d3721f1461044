//! What is asked of machines is done, and refused where it makes no sense.

use queztl_api::{
    Code, CreateToken, Disk, EndingReason, EventKind, Limits, Net, NetKind, Rate, RateLimit, Scope, UpdateVm, VmSpec,
    VmState,
};
use queztl_control::{Recorded, Service};
use queztl_vmm::control::Client;

use crate::common::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_made_started_paused_stopped_and_deleted() {
    let home = Home::new();
    let manager = home.manager().await;

    done(&manager, manager.create(request("one", idle(home.folder.path()), false)).await).await;
    assert_eq!(manager.vm("one").await.unwrap().state, VmState::Created);
    done(&manager, manager.start("one").await).await;
    let vm = manager.vm("one").await.unwrap();
    assert_eq!((vm.state, vm.runtime.as_ref().unwrap().accelerator.as_str()), (VmState::Running, "soft"));
    done(&manager, manager.pause(&vm.id).await).await;
    assert_eq!(manager.vm("one").await.unwrap().state, VmState::Paused);
    done(&manager, manager.resume("one").await).await;
    done(&manager, manager.reboot("one", at_once()).await).await;
    assert_eq!(manager.vm("one").await.unwrap().state, VmState::Running);
    done(&manager, manager.stop("one", at_once()).await).await;
    let vm = manager.vm("one").await.unwrap();
    assert_eq!((vm.state, vm.ended.unwrap().reason), (VmState::Stopped, EndingReason::Stopped));
    done(&manager, manager.start("one").await).await;
    done(&manager, manager.kill("one").await).await;
    let vm = manager.vm("one").await.unwrap();
    assert_eq!((vm.state, vm.ended.unwrap().reason), (VmState::Stopped, EndingReason::Killed));
    done(&manager, manager.delete("one", false).await).await;

    assert_eq!(manager.vm("one").await.unwrap_err().code, Code::NotFound);
    assert!(!home.vm_folder(&vm.id).exists());
    let kinds: Vec<EventKind> = manager.past_events(100).await.unwrap().into_iter().map(|event| event.kind).collect();
    let states: Vec<VmState> = kinds
        .iter()
        .filter_map(|kind| match kind {
            EventKind::VmChanged { state, .. } => Some(*state),
            _ => None,
        })
        .collect();
    use VmState::{Paused, Running, Starting, Stopped, Stopping};
    let run = [Starting, Running];
    let expected = [&run[..], &[Paused, Running, Stopping, Stopped], &run, &[Stopping, Stopped], &run, &[Stopped]];
    assert_eq!(states, expected.concat());
    assert!(matches!(kinds[0], EventKind::DaemonStarted));
    assert!(kinds.iter().any(|kind| matches!(kind, EventKind::VmDeleted { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_and_networks_have_figures() {
    let Some(linux) = linux() else { return };
    let home = Home::new();
    let manager = home.manager().await;
    let disk = Disk { size_bytes: Some(16 << 20), ..Disk::default() };
    let with_network = std::process::Command::new("passt").arg("--version").output().is_ok();
    let nets = match with_network {
        true => vec![Net { kind: NetKind::User, tap: None, mac: None }],
        false => {
            eprintln!("skipped: the network; passt is not installed");
            Vec::new()
        }
    };
    let vm = spawn(&manager, "one", VmSpec { disks: vec![disk.clone(), disk], nets, ..linux }).await;

    // Linux reads the partition tables of its disks, and asks for an address.
    let start = std::time::Instant::now();
    let figures = loop {
        let figures = manager.vm_metrics(&vm.id).await.unwrap();
        let read = figures.disks.iter().all(|disk| disk.reads > 0 && disk.in_flight == 0);
        if read && figures.nets.iter().all(|net| net.sent_frames > 0) {
            break figures;
        }
        assert!(start.elapsed() < PATIENCE, "{figures:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };

    assert_eq!(figures.disks.iter().map(|disk| disk.device.as_str()).collect::<Vec<_>>(), ["disk0", "disk1"]);
    assert_eq!(figures.nets.len(), usize::from(with_network));
    assert!(figures.nets.iter().all(|net| net.device == "net0" && net.sent_bytes > 0));
    let disk = &figures.disks[0];
    assert!(disk.read_bytes > 0 && disk.read_latency.sum_ns > 0);
    assert_eq!(disk.read_latency.buckets.iter().sum::<u64>(), disk.reads);
    assert_eq!((disk.writes, disk.write_latency.sum_ns), (0, 0));
    assert!(figures.vcpus[0].exits.iter().any(|exits| exits.kind == "mmio" && exits.count > 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_with_a_sentence() {
    let home = Home::new();
    let manager = home.manager().await;
    let vm = spawn(&manager, "one", idle(home.folder.path())).await;

    let code = |result: Result<_, queztl_api::Problem>| result.map(|_: queztl_api::Operation| ()).unwrap_err().code;
    assert_eq!(code(manager.start("one").await), Code::State);
    assert_eq!(code(manager.resume("one").await), Code::State);
    assert_eq!(code(manager.delete("one", false).await), Code::State);
    assert_eq!(code(manager.start("two").await), Code::NotFound);
    let twice =
        end(&manager, manager.create(request("two", VmSpec { vcpus: 1, ..idle(home.folder.path()) }, false)).await);
    assert!(twice.await.problem.is_none());
    assert_eq!(code(manager.create(request("two", VmSpec::default(), false)).await), Code::Exists);
    let wrong = VmSpec { accel: "tcg".into(), ..VmSpec::default() };
    let problem = manager.create(request("three", wrong, false)).await.unwrap_err();
    assert_eq!((problem.code, problem.fields[0].field.as_str()), (Code::Invalid, "spec.accel"));
    assert_eq!(manager.vms().await.unwrap().len(), 2);
    let missing = VmSpec { kernel: Some("/nowhere/kernel".into()), ..VmSpec::default() };
    let problem = manager.create(request("four", missing, true)).await.unwrap_err();
    assert_eq!((problem.code, problem.fields[0].field.as_str()), (Code::Invalid, "spec.kernel"));
    let unusable = home.folder.path().join("kernel");
    std::fs::write(&unusable, "nothing to boot").unwrap();
    let missing = VmSpec { kernel: Some(unusable.clone()), ..VmSpec::default() };
    let failed = end(&manager, manager.create(request("four", missing, true)).await).await;
    assert!(failed.problem.unwrap().detail.contains(&unusable.display().to_string()));
    assert_eq!(manager.vm("four").await.unwrap().state, VmState::Crashed);

    done(&manager, manager.delete(&vm.id, true).await).await;
    assert!(manager.vm("one").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_take_effect_at_once_and_are_kept() {
    let home = Home::new();
    let manager = home.manager().await;
    let mut spec = idle(home.folder.path());
    spec.disks = vec![queztl_api::Disk { size_bytes: Some(1 << 20), ..queztl_api::Disk::default() }];
    let vm = spawn(&manager, "one", spec).await;

    let rate = RateLimit { bytes: None, requests: Some(Rate { per_second: 7, burst: 9 }) };
    let limits = Limits { balloon_bytes: 4 << 20, rates: [("disk0".to_owned(), rate)].into(), ..Limits::default() };
    let update = UpdateVm { limits: Some(limits.clone()), name: Some("two".parse().unwrap()), ..UpdateVm::default() };
    let updated = manager.update("one", update).await.unwrap();

    assert_eq!((updated.name.as_str(), &updated.spec.limits), ("two", &limits));
    let status = Client::connect(&home.vm_folder(&vm.id).join("control.sock")).unwrap().status().unwrap();
    assert_eq!(status.memory.balloon.target_bytes, 4 << 20);
    let disk = status.limits.iter().find(|limit| limit.device == "disk0").unwrap();
    assert_eq!(disk.limit.requests.unwrap().per_second, 7);
    let bad = Limits { balloon_bytes: 1 << 40, ..Limits::default() };
    let refused = manager.update("two", UpdateVm { limits: Some(bad), ..UpdateVm::default() }).await.unwrap_err();
    assert_eq!(refused.fields[0].field, "limits.balloon_bytes");
    done(&manager, manager.delete("two", true).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_with_an_agent_switches_itself_off_when_it_is_stopped() {
    let home = Home::new();
    let manager = home.manager().await;
    let Some(spec) = linux() else { return };
    spawn(&manager, "linux", spec).await;

    let sockets = manager.endpoints("linux").await.unwrap();
    let limits = queztl_agent_client::Limits { connect: PATIENCE, ..Default::default() };
    tokio::task::spawn_blocking(move || queztl_agent_client::Agent::connect(&sockets.vsock, &limits).map(drop))
        .await
        .unwrap()
        .unwrap();
    let soft = queztl_api::StopRequest { grace_seconds: Some(100) };
    done(&manager, manager.reboot("linux", soft).await).await;
    assert_eq!(manager.vm("linux").await.unwrap().runtime.unwrap().restarts, 1);
    let sockets = manager.endpoints("linux").await.unwrap();
    let limits = queztl_agent_client::Limits { connect: PATIENCE, ..Default::default() };
    tokio::task::spawn_blocking(move || queztl_agent_client::Agent::connect(&sockets.vsock, &limits).map(drop))
        .await
        .unwrap()
        .unwrap();
    done(&manager, manager.stop("linux", soft).await).await;

    let ended = manager.vm("linux").await.unwrap().ended.unwrap();
    assert_eq!((ended.reason, ended.message.as_str()), (EndingReason::Stopped, "it switched itself off when asked to"));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_in_order_and_a_reader_can_go_on_where_it_was() {
    let home = Home::new();
    let manager = home.manager().await;
    let mut now = manager.events(None).await.unwrap();
    let mut all = manager.events(Some(0)).await.unwrap();

    done(&manager, manager.create(request("one", idle(home.folder.path()), false)).await).await;

    assert!(matches!(all.next().await.unwrap().kind, EventKind::DaemonStarted));
    let first = now.next().await.unwrap();
    assert!(matches!(first.kind, EventKind::OperationStarted { .. }), "{first:?}");
    assert_eq!(all.next().await.unwrap(), first);
    let second = now.next().await.unwrap();
    assert!(matches!(second.kind, EventKind::VmCreated { .. }), "{second:?}");
    assert_eq!(second.sequence, first.sequence + 1);
    manager.close().await;
    while now.next().await.is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_what_its_scope_says_until_it_is_deleted() {
    let home = Home::new();
    let manager = home.manager().await;
    let token = |name: &str, expires_in_seconds| CreateToken {
        name: name.parse().unwrap(),
        scope: Scope::Operate,
        expires_in_seconds,
    };

    let made = manager.create_token(token("ci", None)).await.unwrap();
    let long = manager.create_token(token("long", Some(3600))).await.unwrap();
    assert_eq!(manager.create_token(token("ci", None)).await.unwrap_err().code, Code::Exists);
    assert_eq!(manager.create_token(token("never", Some(0))).await.unwrap_err().code, Code::Invalid);
    assert_eq!(manager.authenticate(&made.secret).await.unwrap().scope, Scope::Operate);
    assert_eq!(manager.authenticate(&long.secret).await.unwrap().scope, Scope::Operate);
    assert_eq!(manager.authenticate("qz_").await.unwrap_err().code, Code::Unauthenticated);
    manager.delete_token(&"ci".parse().unwrap()).await.unwrap();

    assert_eq!(manager.authenticate(&made.secret).await.unwrap_err().code, Code::Unauthenticated);
    let store = std::fs::read(home.folder.path().join("manager.redb")).unwrap();
    assert!(!store.windows(long.secret.len()).any(|bytes| bytes == long.secret.as_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_kept_for_its_key() {
    let home = Home::new();
    let manager = home.manager().await;
    let answer = Recorded { request: [7; 32], status: 202, body: b"{}\xff".to_vec() };

    assert_eq!(manager.recall("key").await.unwrap(), None);
    manager.record("key", answer.clone()).await.unwrap();

    assert_eq!(manager.recall("key").await.unwrap(), Some(answer));
}

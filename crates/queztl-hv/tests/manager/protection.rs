//! Machines that are copied to another daemon, as operations, figures and alerts.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use queztl_api::{
    Alert, AlertRule, AlertState, BackupAddress, Code, OperationKind, OperationState, ProtectRequest, Protection,
    ProtectionMode, ProtectionState, VmSpec, VmState,
};
use queztl_control::{Manager, Service};
use queztl_telemetry::RuleChange;

use crate::common::*;

/// A daemon that keeps copies. Its processes go with it.
struct Backup {
    home: tempfile::TempDir,
    daemon: Child,
}

impl Backup {
    async fn start() -> Backup {
        let home = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_queztl-hv"));
        command.arg("daemon").env("QUEZTL_HOME", home.path()).stdout(Stdio::null()).stderr(Stdio::null());
        let backup = Backup { home, daemon: command.spawn().unwrap() };
        let socket = backup.home.path().join("daemon.sock");
        eventually("the other daemon", async || std::os::unix::net::UnixStream::connect(&socket).ok()).await;
        backup
    }

    fn address(&self) -> BackupAddress {
        BackupAddress::to(format!("unix:{}", self.home.path().join("daemon.sock").display()))
    }

    /// The process that keeps the copy.
    fn pid(&self) -> rustix::process::Pid {
        let entry = std::fs::read_dir(self.home.path().join("vms")).unwrap().next().unwrap().unwrap();
        let runner = queztl_vmm::process::Folder::new(entry.path()).runner().unwrap().unwrap();
        rustix::process::Pid::from_raw(runner.pid as i32).unwrap()
    }

    fn send(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }
}

impl Drop for Backup {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        kill_all(self.home.path());
    }
}

async fn eventually<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what} does not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// With a lease and a silence that nothing here outlasts.
fn request(backup: &Backup, register: &Path) -> ProtectRequest {
    let register = format!("file:{}", register.display());
    ProtectRequest { lease_ms: 60_000, silence_ms: 60_000, ..ProtectRequest::new(vec![backup.address()], register) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protection_is_an_operation_and_a_figure_and_its_copy_is_the_other_daemons_operation() {
    let (home, backup) = (Home::new(), Backup::start().await);
    let manager = home.manager().await;
    spawn(&manager, "web", idle(home.folder.path())).await;

    let begun = done(&manager, manager.protect("web", request(&backup, &home.folder.path().join("r"))).await).await;
    let told: Protection = serde_json::from_value(begun.result.unwrap()).unwrap();
    let metrics = manager.vm_metrics("web").await.unwrap();
    let again = manager.protect("web", request(&backup, &home.folder.path().join("r"))).await;

    assert_eq!((begun.kind, told.state), (OperationKind::Protect, ProtectionState::Protected));
    assert_eq!((told.mode, told.acks), (ProtectionMode::Pause, 1));
    assert_eq!(metrics.protection.unwrap().backups[0].to, backup.address().to);
    assert_eq!(again.unwrap_err().code, Code::State);
    let there = queztl_client::Client::new(backup.address().to.parse().unwrap(), Default::default()).unwrap();
    let keeps = there.operations().await.unwrap();
    let kinds: Vec<_> = keeps.iter().map(|one| (one.kind, one.state)).collect();
    assert_eq!(kinds, [(OperationKind::KeepCopy, OperationState::Running)]);

    let ended = done(&manager, manager.unprotect("web").await).await;
    assert_eq!(ended.kind, OperationKind::Unprotect);
    assert_eq!(manager.vm_metrics("web").await.unwrap().protection, None);
    assert_eq!(manager.unprotect("web").await.unwrap_err().code, Code::State);
    assert_eq!(manager.vm("web").await.unwrap().state, VmState::Running);
    manager.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protection_that_is_given_up_before_its_first_copy_is_undone() {
    let (home, backup) = (Home::new(), Backup::start().await);
    let manager = home.manager().await;
    // What takes longer to copy than to give up.
    let spec = VmSpec { ram_bytes: 1 << 30, ..filling(home.folder.path(), 900 << 20) };
    let vm = spawn(&manager, "web", spec).await;
    let console = home.vm_folder(&vm.id).join("console.log");
    eventually("its memory", async || std::fs::read(&console).ok().filter(|said| said.contains(&b'a'))).await;

    let begun = manager.protect("web", request(&backup, &home.folder.path().join("r"))).await.unwrap();
    eventually("its end", async || manager.cancel_operation(&begun.id).await.ok()).await;
    let ended = end(&manager, Ok(begun)).await;

    assert_eq!(ended.state, OperationState::Cancelled);
    assert_eq!(manager.protection("web").await.unwrap_err().code, Code::State);
    assert_eq!(manager.vm("web").await.unwrap().state, VmState::Running);
    manager.close().await;
}

/// Waits until the only alert about lag is in a state.
async fn alert(manager: &Manager, state: AlertState) -> Alert {
    let look = async || {
        let alerts = manager.alerts().await.unwrap();
        alerts.into_iter().find(|alert| alert.rule == AlertRule::ReplicationLag && alert.state == state)
    };
    eventually("the alert", look).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_behind_is_an_alert_until_it_has_caught_up() {
    let (home, backup) = (Home::new(), Backup::start().await);
    let mut config = home.config();
    let soon =
        RuleChange { threshold: Some(0.5), hold_seconds: Some(0), resolve_seconds: Some(0), ..RuleChange::default() };
    config.telemetry.alerts.rules.insert(AlertRule::ReplicationLag, soon);
    let manager = Manager::open(config).await.unwrap();
    let vm = spawn(&manager, "web", idle(home.folder.path())).await;
    done(&manager, manager.protect("web", request(&backup, &home.folder.path().join("r"))).await).await;

    backup.send(rustix::process::Signal::STOP);
    let fired = alert(&manager, AlertState::Firing).await;
    backup.send(rustix::process::Signal::CONT);
    let resolved = alert(&manager, AlertState::Resolved).await;

    assert_eq!((fired.vm.as_deref(), fired.subject.as_str()), (Some(vm.id.as_str()), backup.address().to.as_str()));
    assert!(fired.value >= 0.5 && fired.message.contains("behind"), "{fired:?}");
    assert_eq!(resolved.id, fired.id);
    assert_eq!(manager.protection("web").await.unwrap().state, ProtectionState::Protected);
    manager.close().await;
}

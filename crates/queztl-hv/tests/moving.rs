//! Machines move from one daemon to another: two daemons of this host, each with a home of its own.

mod common;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::payload::writer;
use common::vm::wait_until;
use common::{guest, linux};
use queztl_api::{
    CreateVm, Disk, ExecRequest, MigrateRequest, MigrationMode, MigrationReport, Operation, OperationState, Vm, VmSpec,
    VmState,
};
use queztl_client::{Address, Client, Options};

const LONG: Duration = Duration::from_secs(60);

/// A daemon in a home of its own, which ends with it and with its machines.
struct Daemon {
    home: tempfile::TempDir,
    child: Child,
    client: Client,
}

impl Daemon {
    fn start() -> Daemon {
        let home = tempfile::tempdir().unwrap();
        // Guest kernels are the host's.
        if let Ok(store) = queztl_guest_image::Store::open() {
            let kernels = store.root().join("kernels");
            let _ = std::os::unix::fs::symlink(kernels, home.path().join("kernels"));
        }
        let child = daemon(home.path()).spawn().unwrap();
        let socket = home.path().join("daemon.sock");
        wait_until("the daemon", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
        let client = Client::new(Address::Unix(socket), Options::default()).unwrap();
        Daemon { home, child, client }
    }

    fn socket(&self) -> PathBuf {
        self.home.path().join("daemon.sock")
    }

    fn address(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    /// Kills the daemon and starts the next one.
    fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = daemon(self.home.path()).spawn().unwrap();
        let socket = self.socket();
        wait_until("the next daemon", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    }

    /// Its host dies.
    fn end_with_machines(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for entry in std::fs::read_dir(self.home.path().join("vms")).into_iter().flatten().flatten() {
            if let Ok(Some(runner)) = queztl_vmm::process::Folder::new(entry.path()).runner()
                && let Some(pid) = rustix::process::Pid::from_raw(runner.pid as i32)
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }

    async fn vms(&self) -> Vec<Vm> {
        self.client.vms().await.unwrap()
    }

    /// What the processes of its machines say.
    fn logs(&self) -> String {
        let folders = std::fs::read_dir(self.home.path().join("vms")).into_iter().flatten().flatten();
        let logs = folders.map(|entry| std::fs::read_to_string(entry.path().join("vmm.log")).unwrap_or_default());
        logs.collect()
    }

    async fn is_idle(&self) -> bool {
        self.client.operations().await.unwrap().iter().all(|operation| operation.state.is_over())
    }

    async fn end(&self, operation: Operation) -> Operation {
        let ended = self.client.wait_operation(&operation.id, LONG).await.unwrap();
        assert!(ended.state.is_over(), "{ended:?}");
        ended
    }

    async fn spawn(&self, spec: VmSpec) -> Vm {
        let request = CreateVm { name: "one".parse().unwrap(), spec, start: true };
        let ended = self.end(self.client.create(&request).await.unwrap()).await;
        assert_eq!(ended.state, OperationState::Succeeded, "{:?}", ended.problem);
        self.client.vm("one").await.unwrap()
    }

    async fn says(&self, command: &str) -> String {
        let command = ["sh", "-c", command].map(str::to_owned).to_vec();
        let request = ExecRequest { command, timeout_seconds: Some(60), ..ExecRequest::default() };
        let started = Instant::now();
        loop {
            match self.client.run("one", &request).await {
                Ok(result) => return result.stdout.data.trim().to_owned(),
                // A guest on a busy host is slow.
                Err(error) if started.elapsed() < LONG => eprintln!("{error}"),
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn daemon(home: &std::path::Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_queztl-hv"));
    command.arg("daemon").env("QUEZTL_HOME", home).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for entry in std::fs::read_dir(self.home.path().join("vms")).into_iter().flatten().flatten() {
            let folder = queztl_vmm::process::Folder::new(entry.path());
            if let Ok(mut client) = queztl_vmm::control::Client::connect(&folder.control()) {
                let _ = client.command(&queztl_vmm::control::Request::Stop {});
            }
        }
    }
}

/// Our Linux, with an agent.
fn linux_spec() -> Option<VmSpec> {
    linux().map(|_| VmSpec { ram_bytes: 128 << 20, accel: "soft".into(), ..VmSpec::default() })
}

/// A guest that writes to its memory and looks at it, and has no agent.
fn writing(folder: &std::path::Path) -> VmSpec {
    let kernel = Some(guest(folder, &writer()));
    VmSpec { kernel, ram_bytes: 16 << 20, accel: "soft".into(), ..VmSpec::default() }
}

async fn migrate(from: &Daemon, to: &Daemon) -> Operation {
    let begun = from.client.migrate("one", &MigrateRequest::to(to.address())).await.unwrap();
    from.end(begun).await
}

fn runs(vms: &[Vm]) -> usize {
    vms.iter().filter(|vm| vm.state == VmState::Running).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_moves_with_all_that_it_is_and_back() {
    let Some(spec) = linux_spec() else { return };
    let (here, there) = (Daemon::start(), Daemon::start());
    let before = here.spawn(spec).await;
    here.says("echo kept > /tmp/file; sleep 1000 & echo $! > /tmp/pid").await;

    let ended = migrate(&here, &there).await;

    let report: MigrationReport = serde_json::from_value(ended.result.expect("a report")).unwrap();
    assert!(report.data_bytes > 1 << 20 && report.rounds >= 2, "{report:?}");
    assert_eq!(here.vms().await.len(), 0);
    let after = there.client.vm("one").await.unwrap();
    assert_eq!((&after.id, after.state), (&before.id, VmState::Running));
    assert_eq!(there.says("cat /tmp/file; kill -0 $(cat /tmp/pid) && echo alive").await, "kept\nalive");

    let ended = migrate(&there, &here).await;
    assert_eq!(ended.state, OperationState::Succeeded, "{:?}", ended.problem);
    assert_eq!(here.says("cat /tmp/file").await, "kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_move_stays_and_runs_on() {
    let (here, there) = (Daemon::start(), Daemon::start());
    let spec = writing(here.home.path());
    here.spawn(spec.clone()).await;
    let to = |address: &str| MigrateRequest::to(address);

    let nowhere = here.client.migrate("one", &to("unix:/nonexistent/daemon.sock")).await.unwrap();
    let problem = here.end(nowhere).await.problem.unwrap();
    assert!(problem.detail.contains("the other daemon"), "{problem:?}");
    let plain = here.client.migrate("one", &to("http://127.0.0.1:1")).await.unwrap_err();
    assert!(plain.to_string().contains("unencrypted"), "{plain}");
    let itself = migrate(&here, &here).await.problem.unwrap();
    assert!(itself.detail.contains("here already") || itself.detail.contains("already"), "{itself:?}");

    // A name that another machine has there.
    there.spawn(writing(there.home.path())).await;
    let taken = migrate(&here, &there).await.problem.unwrap();
    assert!(taken.detail.contains("already"), "{taken:?}");

    let vms = here.vms().await;
    assert_eq!((vms.len(), runs(&vms), runs(&there.vms().await)), (1, 1, 1));
}

/// One of the daemons is killed at many moments of a move, and the next one takes its place.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_loses_no_machine_and_doubles_none() {
    let (mut here, mut there) = (Daemon::start(), Daemon::start());
    here.spawn(writing(here.home.path())).await;
    for round in 0..8u64 {
        if runs(&here.vms().await) == 0 {
            std::mem::swap(&mut here, &mut there);
        }
        here.client.migrate("one", &MigrateRequest::to(there.address())).await.unwrap();
        tokio::time::sleep(Duration::from_millis(3 + 9 * round)).await;
        if round % 2 == 0 {
            here.restart()
        } else {
            there.restart()
        }

        // It may have to become clear first.
        let settled = async {
            loop {
                let (ours, theirs) = (here.vms().await, there.vms().await);
                assert!(runs(&ours) + runs(&theirs) <= 1, "it runs twice: {ours:?} {theirs:?}");
                let still = runs(&ours) + runs(&theirs) == 1 && ours.len() + theirs.len() == 1;
                if still && here.is_idle().await && there.is_idle().await {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LONG, settled).await.expect("it runs in one place");
    }
}

const DISK_BYTES: u64 = 64 << 20;

/// Our Linux with a disk, to which it writes number after number, each durable before it is said to be there.
async fn spawn_writing(daemon: &Daemon, disk: Disk) -> Option<Vm> {
    let spec = VmSpec { disks: vec![disk], ..linux_spec()? };
    let vm = daemon.spawn(spec).await;
    let script = "dd if=/dev/urandom of=/dev/vda bs=1M seek=16 count=24 conv=fsync 2>/dev/null; \
        printf '#!/bin/sh\\nn=0\\nwhile :; do n=$((n+1)); \
        echo $n | dd of=/dev/vda bs=512 seek=$n conv=notrunc,fsync 2>/dev/null && echo $n >/tmp/n; done\\n' >/tmp/write; \
        chmod +x /tmp/write; /tmp/write </dev/null >/dev/null 2>&1 & ";
    daemon.says(script).await;
    daemon.says("until [ -s /tmp/n ]; do sleep 0.1; done").await;
    Some(vm)
}

/// What is on the disk, not in the guest's memory, is all that it was told is there; and it goes on writing.
async fn expect_disk_right(daemon: &Daemon, random: &str) {
    let script = "n=$(cat /tmp/n); echo 3 >/proc/sys/vm/drop_caches; \
        seq 1 $n >/tmp/wanted; dd if=/dev/vda bs=512 skip=1 count=$n 2>/dev/null | tr -d '\\000' >/tmp/found; \
        cmp /tmp/wanted /tmp/found && echo same; until [ $(cat /tmp/n) -gt $((n + 3)) ]; do sleep 0.05; done";
    assert_eq!(daemon.says(script).await, "same");
    assert_eq!(daemon.says(RANDOM).await, random);
}

const RANDOM: &str = "echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=1M skip=16 count=24 2>/dev/null | sha256sum";

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_moves_with_its_machine_while_the_guest_writes_to_it_and_back() {
    let (here, there) = (Daemon::start(), Daemon::start());
    let disk = Disk { size_bytes: Some(DISK_BYTES), ..Disk::default() };
    if spawn_writing(&here, disk).await.is_none() {
        return;
    }
    let random = here.says(RANDOM).await;

    for (from, to) in [(&here, &there), (&there, &here)] {
        let ended = migrate(from, to).await;

        let report = ended.result.unwrap_or_else(|| panic!("{:?}", ended.problem));
        let report: MigrationReport = serde_json::from_value(report).unwrap();
        assert!(report.disk_bytes >= 24 << 20 && report.blackout.start_ns > 0, "{report:?}");
        let parts = report.blackout;
        let sum = parts.stop_ns + parts.cut_ns + parts.disks_ns + parts.memory_ns + parts.network_ns + parts.start_ns;
        assert!(sum <= report.blackout_ns, "{report:?}");
        println!("{report:?}");
        expect_disk_right(to, &random).await;
        assert_eq!(from.vms().await.len(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_both_see_is_opened_there_once_it_is_let_go_here() {
    let (here, there) = (Daemon::start(), Daemon::start());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    std::fs::File::create(&path).unwrap().set_len(DISK_BYTES).unwrap();
    let disk = Disk { path: Some(path.clone()), ..Disk::default() };
    if spawn_writing(&here, disk).await.is_none() {
        return;
    }
    let random = here.says(RANDOM).await;
    let shared = |to: &Daemon| MigrateRequest { shared_disks: true, ..MigrateRequest::to(to.address()) };

    // The target is killed at different moments: the disk is the source's again.
    for pause_ms in [20, 120, 300] {
        let mut lost = Daemon::start();
        let begun = here.client.migrate("one", &shared(&lost)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        lost.end_with_machines();
        let ended = here.end(begun).await;
        if ended.state == OperationState::Succeeded {
            panic!("it was to be killed before: {ended:?}");
        }
        expect_disk_right(&here, &random).await;
    }
    let begun = here.client.migrate("one", &shared(&there)).await.unwrap();
    let ended = here.end(begun).await;

    let report = ended.result.unwrap_or_else(|| panic!("{:?}", ended.problem));
    let report: MigrationReport = serde_json::from_value(report).unwrap();
    assert_eq!(report.disk_bytes, 0);
    expect_disk_right(&there, &random).await;
    assert_eq!(here.vms().await.len(), 0);
    assert!(path.exists());

    // One that is not there is not shared.
    std::fs::rename(&path, folder.path().join("kept.raw")).unwrap();
    let begun = there.client.migrate("one", &shared(&here)).await.unwrap();
    assert!(there.end(begun).await.problem.is_some());
    expect_disk_right(&there, &random).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_of_a_disk_that_is_given_up_leaves_it_right() {
    let (here, there) = (Daemon::start(), Daemon::start());
    let disk = Disk { size_bytes: Some(DISK_BYTES), ..Disk::default() };
    if spawn_writing(&here, disk).await.is_none() {
        return;
    }
    let random = here.says(RANDOM).await;
    for pause_ms in [0, 30, 100, 200] {
        let begun = here.client.migrate("one", &MigrateRequest::to(there.address())).await.unwrap();
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        // If it is too late it moves.
        let _ = here.client.cancel_operation(&begun.id).await;
        let ended = here.end(begun).await;
        let at = if ended.state == OperationState::Succeeded { &there } else { &here };
        expect_disk_right(at, &random).await;
        if ended.state == OperationState::Succeeded {
            return;
        }
        let gone = async {
            while !there.vms().await.is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LONG, gone).await.expect("nothing is left at the target");
    }
}

fn post_copy(to: &Daemon) -> MigrateRequest {
    let mode = MigrationMode::PostCopy;
    MigrateRequest { mode, source_loss_accepted: true, ..MigrateRequest::to(to.address()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_runs_there_before_its_memory_has_come_and_its_disk_is_right() {
    let (here, there) = (Daemon::start(), Daemon::start());
    let disk = Disk { size_bytes: Some(DISK_BYTES), ..Disk::default() };
    if spawn_writing(&here, disk).await.is_none() {
        return;
    }
    let random = here.says(RANDOM).await;
    let asked = MigrateRequest { source_loss_accepted: false, ..post_copy(&there) };
    let refused = here.client.migrate("one", &asked).await.unwrap_err();
    assert!(refused.to_string().contains("source_loss_accepted"), "{refused}");

    for (from, to) in [(&here, &there), (&there, &here)] {
        let begun = from.client.migrate("one", &post_copy(to)).await.unwrap();
        let ended = from.end(begun).await;

        let report = ended.result.unwrap_or_else(|| panic!("{:?}", ended.problem));
        let report: MigrationReport = serde_json::from_value(report).unwrap();
        let late = report.late.expect("memory that came later");
        assert!(
            late.missing_bytes > 8 << 20 && late.faults > 0 && late.fault_p99_ns >= late.fault_p50_ns,
            "{report:?}"
        );
        println!("{report:?}");
        expect_disk_right(to, &random).await;
        assert_eq!(from.vms().await.len(), 0);
    }
}

/// Daemons that carry memory to a machine that runs already are killed, and the next ones carry on.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_killed_while_memory_follows_loses_no_machine() {
    let (mut here, mut there) = (Daemon::start(), Daemon::start());
    here.spawn(writing(here.home.path())).await;
    for round in 0..6u64 {
        if runs(&here.vms().await) == 0 {
            std::mem::swap(&mut here, &mut there);
        }
        here.client.migrate("one", &post_copy(&there)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10 + 12 * round)).await;
        if round % 2 == 0 {
            here.restart()
        } else {
            there.restart()
        }

        let settled = async {
            loop {
                let (ours, theirs) = (here.vms().await, there.vms().await);
                let still = runs(&ours) + runs(&theirs) == 1 && ours.len() + theirs.len() == 1;
                if still && here.is_idle().await && there.is_idle().await {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(LONG, settled).await.is_err() {
            panic!("{round}: it runs in one place: {} {}", here.logs(), there.logs());
        }
    }
}

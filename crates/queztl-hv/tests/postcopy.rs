//! Machines go on in another process before their memory does: `queztl-hv vmm DIR` at both ends, and a slow line between them that
//! breaks when it is told to.

mod common;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::payload::keeper;
use common::send;
use common::vm::{Vm, typed, wait_until};
use queztl_vmm::config::{AccelChoice, Outcome};
use queztl_vmm::control::{Client, Migration, MigrationMode, MigrationPhase, Request};
use queztl_vmm::process::Start;

/// What a line carries at once.
const PIECE: usize = 1024;
/// A line that is never silent.
const NEVER: u64 = u64::MAX;

fn source(accel: Option<&AccelChoice>) -> Vm {
    let mut vm = Vm::new(&keeper());
    if let Some(accel) = accel {
        vm.file.config.accel = *accel;
    }
    vm.start();
    assert_eq!(typed(&vm, b'a'), b'b');
    vm
}

/// A process that waits for a machine.
fn target(accel: Option<&AccelChoice>) -> Vm {
    let mut vm = Vm::new(&keeper());
    if let Some(accel) = accel {
        vm.file.config.accel = *accel;
    }
    vm.file.start = Start::Incoming { disks: Vec::new() };
    vm.child = Some(vm.command().spawn().unwrap());
    wait_until("the socket", || vm.folder.incoming().exists());
    vm
}

fn migrate(vm: &Vm, socket: &Path, mode: MigrationMode, patience_ms: u64) {
    let socket = socket.to_path_buf();
    let request = Request::Migrate { socket, stripes: 2, max_rounds: 4, shared: Vec::new(), mode, patience_ms };
    Client::connect(&vm.folder.control()).unwrap().command(&request).unwrap();
}

fn migration(vm: &Vm) -> Option<Migration> {
    Client::connect(&vm.folder.control()).and_then(|mut client| client.migration()).ok()
}

fn wait_for(vm: &Vm, phase: MigrationPhase) {
    wait_until("the phase", || migration(vm).is_some_and(|told| told.phase == phase));
}

/// What of a machine's memory has not come.
fn arriving(vm: &Vm) -> u64 {
    let status = Client::connect(&vm.folder.control()).and_then(|mut client| client.status());
    status.map_or(u64::MAX, |status| status.memory.arriving_bytes)
}

/// A line between the two.
struct Line {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    state: Arc<LineState>,
}

struct LineState {
    /// What is carried towards the target before it is silent.
    left: AtomicU64,
    /// Between two pieces, in microseconds; a hundredth of it on the first connection of each session, over which calls go.
    pause_us: AtomicU64,
    /// Connections of this session.
    connections: AtomicU64,
    ends: Mutex<Vec<UnixStream>>,
}

impl Line {
    fn to(target: &Vm, left: u64) -> Line {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("line.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (left, pause_us) = (AtomicU64::new(left), AtomicU64::new(0));
        let connections = AtomicU64::new(0);
        let state = Arc::new(LineState { left, pause_us, connections, ends: Mutex::default() });
        let (line, place) = (state.clone(), target.folder.incoming());
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = UnixStream::connect(&place) else { continue };
                let mut ends = line.ends.lock().unwrap();
                ends.extend([near.try_clone().unwrap(), far.try_clone().unwrap()]);
                let (near_again, far_again) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                let forth = line.clone();
                let is_first = line.connections.fetch_add(1, Ordering::Relaxed) == 0;
                std::thread::spawn(move || forth.carry(near, far, is_first));
                std::thread::spawn(move || drop(std::io::copy(&mut &far_again, &mut &near_again)));
            }
        });
        Line { _folder: folder, socket, state }
    }

    /// All connections end.
    fn cut(&self) {
        let mut ends = self.state.ends.lock().unwrap();
        self.state.connections.store(0, Ordering::Relaxed);
        for end in ends.drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    fn slow_down(&self, pause: Duration) {
        self.state.pause_us.store(pause.as_micros() as u64, Ordering::Relaxed);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.cut();
    }
}

impl LineState {
    fn carry(&self, mut near: UnixStream, mut far: UnixStream, is_first: bool) {
        let mut piece = [0; PIECE];
        while let Ok(count @ 1..) = near.read(&mut piece) {
            let before = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                Some(if left == NEVER { left } else { left.saturating_sub(count as u64) })
            });
            if before == Ok(0) {
                // Silent, and the connection stays.
                continue;
            }
            let pause_us = self.pause_us.load(Ordering::Relaxed);
            std::thread::sleep(Duration::from_micros(if is_first { pause_us / 100 } else { pause_us }));
            if far.write_all(&piece[..count]).is_err() {
                break;
            }
        }
        let _ = far.shutdown(Shutdown::Both);
    }
}

/// A machine that runs at the target, with most of its memory at the source, behind a slow line.
fn half_way(patience_ms: u64) -> (Vm, Vm, Line) {
    let (source, target) = (source(None), target(None));
    let line = Line::to(&target, NEVER);
    line.slow_down(Duration::from_millis(200));
    migrate(&source, &line.socket, MigrationMode::PostCopy, patience_ms);
    wait_for(&source, MigrationPhase::Serving);
    wait_until("the machine", || target.folder.control().exists());
    assert!(arriving(&target) > 4 << 20, "{}", target.log());
    (source, target, line)
}

fn goes_on_before_its_memory(accel: Option<&AccelChoice>) {
    let (mut source, mut target) = (source(accel), target(accel));

    migrate(&source, &target.folder.incoming(), MigrationMode::PostCopy, 1000);

    let (status, report) = source.end();
    let report = report.unwrap();
    assert_eq!((status, report.outcome), (Some(0), Some(Outcome::Moved)), "{}\n{}", source.log(), target.log());
    for key in b'c'..b'h' {
        assert_eq!(typed(&target, key), key + 1);
    }
    // Whole: it can go on as any other machine.
    wait_until("all memory", || arriving(&target) == 0);
    let next = self::target(accel);
    migrate(&target, &next.folder.incoming(), MigrationMode::PreCopy, 1000);
    assert_eq!(target.end().1.unwrap().outcome, Some(Outcome::Moved), "{}", target.log());
    wait_until("the machine", || next.folder.control().exists());
    assert_eq!(typed(&next, b'x'), b'y');
}

#[test]
fn a_machine_goes_on_at_the_target_and_its_memory_follows() {
    goes_on_before_its_memory(None);
}

#[test]
fn a_machine_on_kvm_goes_on_at_the_target_and_its_memory_follows() {
    if !Path::new("/dev/kvm").exists() {
        println!("skipped: no /dev/kvm");
        return;
    }
    goes_on_before_its_memory(Some(&AccelChoice::Kvm));
}

#[test]
fn what_rounds_have_brought_does_not_come_again() {
    let (mut source, target) = (source(None), target(None));

    migrate(&source, &target.folder.incoming(), MigrationMode::Auto, 1000);

    assert_eq!(source.end().1.unwrap().outcome, Some(Outcome::Moved), "{}\n{}", source.log(), target.log());
    wait_until("the machine", || target.folder.control().exists());
    assert_eq!(typed(&target, b'c'), b'd');
}

#[test]
fn memory_comes_whole_across_broken_connections() {
    let (mut source, target, line) = half_way(30_000);

    for cut in 1..=5 {
        let missing = arriving(&target);
        wait_until("more memory", || arriving(&target) < missing);
        line.cut();
        wait_until("the next connection", || {
            migration(&source).is_some_and(|told| told.late.is_some_and(|late| late.reconnects >= cut))
        });
    }
    assert!(arriving(&target) > 0, "it was to be cut before all had come");
    line.slow_down(Duration::ZERO);

    assert_eq!(source.end().1.unwrap().outcome, Some(Outcome::Moved), "{}", source.log());
    assert_eq!(arriving(&target), 0);
    for key in b'c'..b'h' {
        assert_eq!(typed(&target, key), key + 1);
    }
}

#[test]
fn a_target_that_is_lost_before_it_runs_leaves_the_machine_at_the_source() {
    let source = source(None);
    // What has come by then: nothing, the beginning, some of the state.
    for left in [0, 500, 4000, 12_000] {
        let mut target = target(None);
        let line = Line::to(&target, left);
        migrate(&source, &line.socket, MigrationMode::PostCopy, 1000);
        wait_until("silence", || line.state.left.load(Ordering::Relaxed) == 0);
        target.child.as_mut().unwrap().kill().unwrap();
        target.child.as_mut().unwrap().wait().unwrap();
        line.cut();

        wait_until("the end of the migration", || migration(&source).is_some_and(|told| !told.phase.is_active()));

        let told = migration(&source).unwrap();
        assert_eq!(told.phase, MigrationPhase::Failed, "{told:?} after {left} bytes");
        assert_eq!(typed(&source, b'k'), b'l');
    }
}

#[test]
fn one_that_runs_at_the_target_does_not_go_on_at_the_source() {
    let (source, target, line) = half_way(30_000);
    let command =
        |request| Client::connect(&source.folder.control()).unwrap().command(&request).unwrap_err().to_string();

    assert!(command(Request::CancelMigration {}).contains("too late to cancel"));
    assert!(command(Request::Resume {}).contains("runs at the target"));

    // Neither can it leave its new place before it is whole.
    let next = self::target(None);
    migrate(&target, &next.folder.incoming(), MigrationMode::PreCopy, 1000);
    wait_until("the refusal", || migration(&target).is_some_and(|told| told.phase == MigrationPhase::Failed));
    assert!(migration(&target).unwrap().message.unwrap().contains("not whole yet"));
    line.slow_down(Duration::ZERO);
    assert_eq!(typed(&target, b'k'), b'l');
}

#[test]
fn a_machine_whose_source_is_lost_ends_and_says_why() {
    let (mut source, mut target, line) = half_way(300);

    source.child.as_mut().unwrap().kill().unwrap();
    source.end();
    line.cut();

    let (status, report) = target.end();
    let report = report.unwrap();
    assert_eq!((status, report.outcome), (Some(4), Some(Outcome::SourceLost)), "{}", target.log());
    assert!(report.message.unwrap().contains("gone for good"));
}

#[test]
fn a_stranger_brings_no_memory() {
    let (mut source, target, line) = half_way(30_000);
    line.cut();
    // Whoever comes first is no source; the source comes after it.
    let mut stranger = UnixStream::connect(target.folder.incoming()).unwrap();
    stranger.write_all(&[0x55; 4096]).unwrap();
    drop(stranger);
    line.slow_down(Duration::ZERO);

    assert_eq!(source.end().1.unwrap().outcome, Some(Outcome::Moved), "{}", source.log());
    assert_eq!(typed(&target, b'k'), b'l');
}

#[test]
fn a_machine_that_ends_before_it_is_whole_lets_its_source_go() {
    let (mut source, mut target, line) = half_way(30_000);
    line.slow_down(Duration::from_millis(1));

    send(target.child(), libc::SIGTERM);

    assert_eq!(target.end().1.unwrap().outcome, Some(Outcome::Stopped), "{}", target.log());
    assert_eq!(source.end().1.unwrap().outcome, Some(Outcome::Moved), "{}", source.log());
}

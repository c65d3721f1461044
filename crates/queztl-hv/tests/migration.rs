//! Machines go on in another process: `queztl-hv vmm DIR` at both ends, without a daemon between them.

mod common;

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use common::payload::writer;
use common::send;
use common::vm::{Vm, typed, wait_until};
use queztl_vmm::config::Outcome;
use queztl_vmm::control::{Client, Migration, MigrationMode, MigrationPhase, Request};
use queztl_vmm::process::Start;

/// A machine that writes to its memory without end.
fn source() -> Vm {
    let mut vm = Vm::new(&writer());
    vm.start();
    assert_eq!(typed(&vm, b'a'), b'b');
    vm
}

/// A process that waits for a machine.
fn target() -> Vm {
    let mut vm = Vm::new(&writer());
    vm.file.start = Start::Incoming { disks: Vec::new() };
    vm.child = Some(vm.command().spawn().unwrap());
    wait_until("the socket", || vm.folder.incoming().exists());
    vm
}

fn migrate(vm: &Vm, socket: &Path) {
    let request = Request::Migrate {
        socket: socket.to_path_buf(),
        stripes: 2,
        max_rounds: 4,
        shared: Vec::new(),
        mode: MigrationMode::PreCopy,
        patience_ms: 1,
    };
    Client::connect(&vm.folder.control()).unwrap().command(&request).unwrap();
}

fn migration(vm: &Vm) -> Migration {
    Client::connect(&vm.folder.control()).and_then(|mut client| client.migration()).unwrap()
}

fn ended(vm: &Vm) -> Migration {
    wait_until("the end of the migration", || !migration(vm).phase.is_active());
    migration(vm)
}

#[test]
fn a_machine_goes_on_at_the_target_with_all_its_memory() {
    let (mut source, mut target) = (source(), target());

    migrate(&source, &target.folder.incoming());

    let (status, report) = source.end();
    assert_eq!((status, report.unwrap().outcome), (Some(0), Some(Outcome::Moved)), "{}", source.log());
    wait_until("the machine", || target.folder.control().exists());
    // It looks at each page again and again.
    for key in b'c'..b'h' {
        assert_eq!(typed(&target, key), key + 1);
    }
    send(target.child(), libc::SIGTERM);
    assert_eq!(target.end().1.unwrap().outcome, Some(Outcome::Stopped));
}

#[test]
fn a_machine_can_move_on_and_on() {
    let mut here = source();
    for key in b'c'..b'f' {
        let there = target();
        migrate(&here, &there.folder.incoming());
        assert_eq!(here.end().1.unwrap().outcome, Some(Outcome::Moved), "{}", here.log());
        here = there;
        wait_until("the machine", || here.folder.control().exists());
        assert_eq!(typed(&here, key), key + 1);
    }
}

#[test]
fn a_target_that_dies_leaves_the_machine_where_it_is() {
    let source = source();
    let nobody = source.folder.path().join("nobody.sock");
    migrate(&source, &nobody);
    assert_eq!(ended(&source).phase, MigrationPhase::Failed);

    // One that dies at different moments.
    for pause_ms in [0, 1, 3, 10, 20] {
        let mut target = target();
        migrate(&source, &target.folder.incoming());
        std::thread::sleep(std::time::Duration::from_millis(pause_ms));
        target.child.as_mut().unwrap().kill().unwrap();
        target.child.as_mut().unwrap().wait().unwrap();
        // If it was handed over by then, it has died at the target, as any machine can; that is no migration's failure.
        let Ok(mut client) = Client::connect(&source.folder.control()) else { return };
        wait_until("the end of the migration", || client.migration().map_or(true, |told| !told.phase.is_active()));
        match client.migration() {
            Ok(told) if told.phase == MigrationPhase::Failed => assert_eq!(typed(&source, b'k'), b'l'),
            // The answer to the last word was lost: it stands still until somebody decides.
            Ok(told) if told.phase == MigrationPhase::InDoubt => {
                client.command(&Request::Resume {}).unwrap();
                assert_eq!(typed(&source, b'k'), b'l');
                return;
            }
            _ => return,
        }
    }
}

#[test]
fn a_machine_of_another_size_is_refused_and_goes_on() {
    let source = source();
    let mut target = Vm::new(&writer());
    target.file.start = Start::Incoming { disks: Vec::new() };
    target.file.config.ram_bytes = 32 << 20;
    target.child = Some(target.command().spawn().unwrap());
    wait_until("the socket", || target.folder.incoming().exists());

    migrate(&source, &target.folder.incoming());

    let told = ended(&source);
    assert_eq!(told.phase, MigrationPhase::Failed);
    assert!(told.message.unwrap().contains("bytes of RAM"));
    assert_eq!(typed(&source, b'm'), b'n');
    assert!(target.end().1.unwrap().message.unwrap().contains("bytes of RAM"));
}

#[test]
fn a_migration_can_be_cancelled_and_tried_again() {
    let source = source();
    // Somebody who takes the connection and says nothing.
    let silent = source.folder.path().join("silent.sock");
    let listener = UnixListener::bind(&silent).unwrap();
    migrate(&source, &silent);
    let (_held, _) = listener.accept().unwrap();
    let refused = Client::connect(&source.folder.control()).unwrap().command(&Request::Migrate {
        socket: silent,
        stripes: 1,
        max_rounds: 1,
        shared: Vec::new(),
        mode: MigrationMode::PreCopy,
        patience_ms: 1,
    });
    assert!(refused.unwrap_err().to_string().contains("on its way already"));

    Client::connect(&source.folder.control()).unwrap().command(&Request::CancelMigration {}).unwrap();

    assert_eq!(ended(&source).phase, MigrationPhase::Cancelled);
    let target = target();
    migrate(&source, &target.folder.incoming());
    wait_until("the machine", || target.folder.control().exists());
    assert_eq!(typed(&target, b'p'), b'q');
}

#[test]
fn a_stranger_at_the_targets_socket_ends_it_with_a_sentence() {
    let mut target = target();
    let mut stranger = UnixStream::connect(target.folder.incoming()).unwrap();
    std::io::Write::write_all(&mut stranger, &[0x55; 4096]).unwrap();
    let report = target.end().1.unwrap();
    assert!(report.message.unwrap().contains("QHP"), "{}", target.log());
}

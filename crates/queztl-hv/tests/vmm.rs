//! The process of one machine, `queztl-hv vmm DIR`, as a daemon finds it: by its directory alone.

mod common;

use std::fs;
use std::process::Command;

use common::payload::{SLEEP, echo, out};
use common::vm::{Vm, wait_until};
use common::{one_line, output, send};
use queztl_vmm::config::Outcome;
use queztl_vmm::control;
use queztl_vmm::process::console::{self, Message, Mode};
use queztl_vmm::process::{MachineFile, Start};

#[test]
fn the_guests_end_is_reported_in_the_directory() {
    let mut vm = Vm::new(&[out(0x3f8, b'A'), out(0xf4, 5)].concat());
    vm.child = Some(vm.command().spawn().unwrap());
    let pid = vm.child().id();
    let (status, report) = vm.end();
    let report = report.unwrap();
    assert_eq!((status, report.outcome, report.status), (Some(11), Some(Outcome::DebugExit(5)), 11));
    assert_eq!((report.process.pid, &report.message), (pid, &None));
    assert_eq!(fs::read(vm.folder.console_log()).unwrap(), b"A");
    assert!(!vm.folder.control().exists() && !vm.folder.console().exists());
    assert_eq!(vm.folder.runner().unwrap(), None);
}

#[test]
fn a_signal_stops_the_machine_and_the_next_run_forgets_it() {
    let mut vm = Vm::new(&SLEEP);
    for _ in 0..2 {
        vm.start();
        assert!(!vm.folder.exit().exists());
        assert_eq!(vm.folder.runner().unwrap().unwrap().pid, vm.child().id());
        send(vm.child(), libc::SIGTERM);
        let (status, report) = vm.end();
        let report = report.unwrap();
        assert_eq!((status, report.outcome), (Some(12), Some(Outcome::Stopped)));
    }
    assert!(vm.log().contains("the machine has ended"), "{}", vm.log());
}

#[test]
fn it_has_a_session_of_its_own_and_outlives_its_parent() {
    let vm = Vm::new(&SLEEP);
    let shell = format!("{} vmm {} &", env!("CARGO_BIN_EXE_queztl-hv"), vm.folder.path().display());
    vm.file.write(&vm.folder.machine()).unwrap();
    assert!(Command::new("sh").args(["-c", &shell]).status().unwrap().success());
    wait_until("the machine", || vm.folder.control().exists());
    let pid = vm.folder.runner().unwrap().unwrap().pid;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // Session, controlling terminal (proc(5), fields 6 and 7).
    assert_eq!((fields[3], fields[4]), (pid.to_string().as_str(), "0"));
    for number in 0..=1 {
        let leads_to = fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap();
        assert_eq!(leads_to.to_str(), Some("/dev/null"));
    }
    control::Client::connect(&vm.folder.control()).unwrap().command(&control::Request::Stop {}).unwrap();
    wait_until("its report", || vm.folder.exit().exists());
    wait_until("its end", || vm.folder.runner().unwrap().is_none());
}

#[test]
fn a_machine_that_is_killed_leaves_neither_report_nor_lock_and_can_start_again() {
    let mut vm = Vm::new(&SLEEP);
    vm.start();
    vm.child.as_mut().unwrap().kill().unwrap();
    assert_eq!(vm.end(), (None, None));
    assert_eq!(vm.folder.runner().unwrap(), None);
    // The sockets it left behind are replaced.
    vm.start();
}

#[test]
fn a_machine_runs_once_at_a_time() {
    let mut vm = Vm::new(&SLEEP);
    vm.start();
    let again = output(["vmm", vm.folder.path().to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(2));
    assert!(one_line(&again).contains("runs already"));
    assert!(control::Client::connect(&vm.folder.control()).unwrap().status().is_ok());
    assert!(!vm.folder.exit().exists());
}

#[test]
fn what_cannot_run_is_reported_with_a_sentence() {
    let mut vm = Vm::new(&SLEEP);
    let mut says = |change: &dyn Fn(&mut MachineFile), expected: &str| {
        change(&mut vm.file);
        vm.child = Some(vm.command().spawn().unwrap());
        let (status, report) = vm.end();
        let report = report.unwrap();
        assert_eq!((status, report.status, report.outcome), (Some(2), 2, None));
        let message = report.message.unwrap();
        assert!(message.contains(expected), "{message}");
    };
    says(&|file| file.config.vcpus = 0, "1 to 256");
    says(&|file| (file.config.vcpus, file.config.kernel) = (1, "missing".into()), "missing");
    says(&|file| file.version = 99, "version 99");
    let elsewhere = output(["vmm", "/nonexistent"]);
    assert_eq!(elsewhere.status.code(), Some(2));
    assert!(one_line(&elsewhere).contains("/nonexistent"));
}

#[test]
fn the_console_is_there_for_several_viewers_and_its_record_stays() {
    let mut vm = Vm::new(&echo());
    vm.start();
    let connect = |mode| console::Client::connect(&vm.folder.console(), mode, true).unwrap();
    let mut viewers = [connect(Mode::Type), connect(Mode::Look)];
    let mut keys = viewers[0].keys().unwrap();
    keys.input(b"abc").unwrap();
    for viewer in &mut viewers {
        let mut seen = Vec::new();
        while seen.len() < 3 {
            match viewer.message().unwrap() {
                Message::Scrollback(bytes) | Message::Output(bytes) => seen.extend(bytes),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(seen, b"bcd");
    }
    // One that comes later sees what was.
    assert_eq!(connect(Mode::Look).message().unwrap(), Message::Scrollback(b"bcd".to_vec()));
    keys.input(b"q").unwrap();
    assert_eq!(viewers[1].message().unwrap(), Message::End("the machine has ended".into()));
    let (status, report) = vm.end();
    assert!(status.is_some_and(|status| status % 2 == 1), "{report:?}");
    assert_eq!(fs::read(vm.folder.console_log()).unwrap(), b"bcd");
}

#[test]
fn a_snapshot_that_is_not_there_is_told() {
    let mut vm = Vm::new(&SLEEP);
    vm.file.start = Start::Restore { snapshot: "snapshots/none".into(), identity: None };
    vm.child = Some(vm.command().spawn().unwrap());
    assert_eq!(vm.end().0, Some(2));
}

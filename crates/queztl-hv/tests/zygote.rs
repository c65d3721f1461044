//! Processes of machines that a zygote begins, as the daemon has them begun.

mod common;

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use common::payload::{SLEEP, echo, out};
use common::vm::{Vm, wait_until};
use queztl_vmm::control::{Client, Request};
use queztl_vmm::process::zygote::Zygote;
use queztl_vmm::process::{Folder, console};

fn zygote() -> Zygote {
    Zygote::start(Path::new(env!("CARGO_BIN_EXE_queztl-hv"))).unwrap()
}

/// A process that is killed in the end.
struct Begun(u32);

impl Begun {
    /// The number of one that ends by itself, and may be another's afterwards.
    fn told(self) -> u32 {
        let pid = self.0;
        std::mem::forget(self);
        pid
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        // SAFETY: the call touches no memory; the number is the process's, since nobody has asked how it ended.
        unsafe { libc::kill(self.0 as i32, libc::SIGKILL) };
    }
}

fn begin(zygote: &Zygote, folder: &Folder) -> Begun {
    let lock = folder.reserve().unwrap();
    let log = File::options().append(true).create(true).open(folder.log()).unwrap();
    Begun(zygote.begin(folder.path(), &lock, &log, &[]).unwrap())
}

fn begin_vm(zygote: &Zygote, vm: &Vm) -> Begun {
    vm.file.write(&vm.folder.machine()).unwrap();
    begin(zygote, &vm.folder)
}

/// Waits for the end of a process.
fn end(zygote: &Zygote, pid: u32) -> ExitStatus {
    let mut status = None;
    wait_until("the end", || {
        status = zygote.end_of(pid).unwrap();
        status.is_some()
    });
    status.unwrap()
}

#[test]
fn machines_are_processes_of_their_own_whose_ends_are_told() {
    let zygote = zygote();
    let (ends, sleeps) = (Vm::new(&out(0xf4, 5)), Vm::new(&SLEEP));
    let first = begin_vm(&zygote, &ends).told();
    let second = begin_vm(&zygote, &sleeps);
    wait_until("the second", || sleeps.folder.control().exists());
    wait_until("the end of the first", || ends.folder.exit().exists() && ends.folder.runner().unwrap().is_none());
    assert_eq!(end(&zygote, first).code(), Some(11));
    let end = |pid| zygote.end_of(pid).unwrap();
    assert_eq!((end(first), end(second.0)), (None, None), "told once, and not before it has ended");
    assert_eq!(sleeps.folder.runner().unwrap().unwrap().pid, second.0);
    let stat = fs::read_to_string(format!("/proc/{}/stat", second.0)).unwrap();
    // The session (proc(5), field 6).
    assert_eq!(stat.rsplit_once(')').unwrap().1.split_whitespace().nth(3), Some(second.0.to_string().as_str()));
    drop(second);
    wait_until("the end of the second", || sleeps.folder.runner().unwrap().is_none());
}

#[test]
fn a_process_is_listed_with_its_machine() {
    let zygote = zygote();
    let vm = Vm::new(&SLEEP);
    let begun = begin_vm(&zygote, &vm);
    wait_until("the machine", || vm.folder.control().exists());
    let listed = fs::read(format!("/proc/{}/cmdline", begun.0)).unwrap();
    if listed.split(|byte| *byte == 0).any(|argument| argument == b"--zygote") {
        return eprintln!(
            "skipped: the kernel lets no process change what it is listed as (CONFIG_CHECKPOINT_RESTORE)"
        );
    }
    let expected = [env!("CARGO_BIN_EXE_queztl-hv"), "vmm", vm.folder.path().to_str().unwrap(), ""].join("\0");
    assert_eq!(String::from_utf8_lossy(&listed), expected);
}

#[test]
fn machines_outlive_their_zygote() {
    let zygote = zygote();
    let vm = Vm::new(&echo());
    let _begun = begin_vm(&zygote, &vm);
    wait_until("the machine", || vm.folder.control().exists());
    drop(zygote);
    let mut keys = console::Client::connect(&vm.folder.console(), console::Mode::Type, true).unwrap().keys().unwrap();
    keys.input(b"a").unwrap();
    wait_until("an answer", || fs::read(vm.folder.console_log()).unwrap() == b"b");
    Client::connect(&vm.folder.control()).unwrap().command(&Request::Stop {}).unwrap();
    wait_until("its end", || vm.folder.runner().unwrap().is_none());
    assert!(vm.folder.exit().exists());
}

#[test]
fn one_that_is_killed_or_cannot_begin_says_so_by_its_end() {
    let zygote = zygote();
    let vm = Vm::new(&SLEEP);
    let begun = begin_vm(&zygote, &vm);
    let pid = begun.0;
    drop(begun);
    assert_eq!(end(&zygote, pid).signal(), Some(libc::SIGKILL));

    // Without a file that says what to run.
    let empty = tempfile::tempdir().unwrap();
    let folder = Folder::new(empty.path());
    let pid = begin(&zygote, &folder).told();
    assert_eq!(end(&zygote, pid).code(), Some(2));
    assert!(fs::read_to_string(folder.log()).unwrap().contains("machine.json"));
}

#[test]
fn a_number_that_is_no_process_of_the_zygote_has_no_end() {
    let zygote = zygote();
    for number in [0, 1, std::process::id(), u32::MAX] {
        assert_eq!(zygote.end_of(number).unwrap(), None, "{number}");
    }
}

//! Machines that survive their process: `queztl-hv vmm DIR` as primary and as backups, without a daemon between them. The test
//! keeps the register.

mod common;

use std::time::{Duration, Instant};

use common::payload::writer;
use common::vm::{Vm, typed, wait_until};
use queztl_distributed_ram::{Node, Register};
use queztl_vmm::control::{
    BackupPlace, Client, ProtectOrder, Protection, ProtectionMode, ProtectionState, RegisterWish, Request,
    ThrottleOrder,
};
use queztl_vmm::process::Start;
use queztl_vmm::protection::{Word, WordAnswer, say};

const PRIMARY: Node = 0;

/// A process that keeps a copy.
fn backup() -> Vm {
    let mut vm = Vm::new(&writer());
    vm.file.start = Start::Backup { term: 1 };
    vm.child = Some(vm.command().spawn().unwrap());
    wait_until("the socket", || vm.folder.incoming().exists());
    vm
}

/// A protected machine, and the register of its group.
struct Group {
    primary: Vm,
    register: Register,
}

impl Group {
    /// A machine that writes to its memory without end, and is copied to these.
    fn new(backups: &[&Vm], acks: usize, mode: ProtectionMode) -> Group {
        let mut primary = Vm::new(&writer());
        primary.start();
        let register = Register::new(PRIMARY);
        let place = |(node, vm): (Node, &&Vm)| BackupPlace { node, socket: vm.folder.incoming() };
        let order = ProtectOrder {
            register: register.clone(),
            backups: (1..).zip(backups).map(place).collect(),
            acks,
            mode,
            interval_ms: Some(10),
            buffer_bytes: 1 << 20,
            stripes: 2,
            patience_ms: 3000,
            throttle: ThrottleOrder::default(),
            base: 0,
        };
        let group = Group { primary, register };
        group.ask(&Request::Protect { order: Box::new(order) });
        group
    }

    fn ask(&self, request: &Request) {
        Client::connect(&self.primary.folder.control()).unwrap().command(request).unwrap();
    }

    /// Does what the keeper of the register does, once.
    fn keep(&mut self) -> Protection {
        let told = Client::connect(&self.primary.folder.control()).and_then(|mut client| client.protection()).unwrap();
        let term = self.register.term;
        match &told.wish {
            Some(RegisterWish::Protect { members, acks }) => {
                let members = members.iter().copied().collect();
                self.register = self.register.protect(PRIMARY, term, members, *acks).unwrap();
            }
            Some(RegisterWish::Expose {}) => self.register = self.register.expose(PRIMARY, term).unwrap(),
            None => {}
        }
        self.ask(&Request::Adopt { register: self.register.clone() });
        told
    }

    #[track_caller]
    fn wait(&mut self, what: &str, mut is: impl FnMut(&Protection) -> bool) -> Protection {
        let started = Instant::now();
        loop {
            let told = self.keep();
            if is(&told) {
                return told;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "{what}: {told:?}\n{}", self.primary.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn wait_protected(&mut self) -> Protection {
        self.wait("protection", |told| told.state == ProtectionState::Protected)
    }

    fn kill(&mut self) {
        let child = self.primary.child.as_mut().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

/// The backup's daemon has claimed the next term.
fn promote(register: &mut Register, node: Node, backup: &Vm) {
    *register = register.claim(node).unwrap();
    let term = register.term;
    let answer = say(&backup.folder.backup(), Word::Promise { term }).unwrap();
    assert!(matches!(answer, WordAnswer::Promise { promise: Some(_) }), "{answer:?}");
    let answer = say(&backup.folder.backup(), Word::Promote { term }).unwrap();
    assert!(matches!(answer, WordAnswer::Promoted { .. }), "{answer:?}");
    *register = register.take_over(node, term).unwrap();
    wait_until("the machine", || {
        Client::connect(&backup.folder.control()).and_then(|mut client| client.status()).is_ok()
            && backup.folder.console().exists()
    });
}

#[test]
fn a_backup_goes_on_with_all_of_the_memory_when_the_primary_is_killed() {
    // At different moments of an epoch, from the guest's point of view: it writes all the time.
    for round in 0..8 {
        let backup = backup();
        let mut group = Group::new(&[&backup], 1, ProtectionMode::Pause);
        let told = group.wait_protected();
        assert!(told.epoch > 0 && told.data_bytes > 0, "{told:?}");
        let from = told.released;
        group.wait("epochs", |told| told.released > from + 2);
        std::thread::sleep(Duration::from_millis(3 * round));
        group.kill();

        promote(&mut group.register, 1, &backup);

        // It looks at each page again and again.
        for key in b'c'..b'g' {
            assert_eq!(typed(&backup, key), key + 1, "{}", backup.log());
        }
    }
}

#[test]
fn output_waits_for_as_many_backups_as_were_asked_for() {
    let (one, mut two) = (backup(), backup());
    let mut group = Group::new(&[&one, &two], 2, ProtectionMode::Pause);
    let from = group.wait_protected().released;
    group.wait("epochs", |told| told.released > from + 2);

    two.child.as_mut().unwrap().kill().unwrap();
    two.child.as_mut().unwrap().wait().unwrap();

    let told = group.wait("the loss", |told| told.backups.iter().any(|backup| backup.failed.is_some()));
    let held = group.wait("epochs of the other", |now| now.backups[0].epoch > told.backups[0].epoch || now.epoch > 0);
    std::thread::sleep(Duration::from_millis(100));
    let still = group.keep();
    assert_eq!((held.state, still.released), (ProtectionState::Protected, held.released), "{still:?}");

    // A backup that is there again is enough.
    let again = backup();
    group.ask(&Request::AddBackup { place: BackupPlace { node: 2, socket: again.folder.incoming() } });
    group.wait("epochs", |told| told.released > still.released + 2);
}

#[test]
fn a_machine_in_best_effort_mode_goes_on_without_and_is_protected_again() {
    let mut first = backup();
    let mut group = Group::new(&[&first], 1, ProtectionMode::BestEffort);
    group.wait_protected();

    first.child.as_mut().unwrap().kill().unwrap();
    first.child.as_mut().unwrap().wait().unwrap();

    group.wait("degraded", |told| told.state == ProtectionState::Degraded);
    assert!(group.register.claim(1).is_err(), "nobody may go on from an old copy");
    let second = backup();
    group.ask(&Request::AddBackup { place: BackupPlace { node: 1, socket: second.folder.incoming() } });
    group.wait_protected();
    assert_eq!(typed(&group.primary, b'x'), b'y');
}

#[test]
fn a_backup_that_has_promised_a_term_fences_the_owner_before() {
    let backup = backup();
    let mut group = Group::new(&[&backup], 1, ProtectionMode::Pause);
    group.wait_protected();

    say(&backup.folder.backup(), Word::Promise { term: 2 }).unwrap();

    let (status, report) = group.primary.end();
    assert_eq!(status, Some(0), "{}", group.primary.log());
    assert_eq!(report.unwrap().outcome, Some(queztl_vmm::config::Outcome::Moved));
    // A term that was not promised is not served.
    assert!(say(&backup.folder.backup(), Word::Promote { term: 3 }).is_err());
}

#[test]
fn protection_ends_when_it_is_not_wanted_any_more() {
    let backup = backup();
    let mut group = Group::new(&[&backup], 1, ProtectionMode::Pause);
    group.wait_protected();
    let refused = Client::connect(&group.primary.folder.control()).unwrap().command(&Request::Unprotect {});
    assert!(refused.unwrap_err().to_string().contains("copies count"));

    group.register = group.register.expose(PRIMARY, 1).unwrap();
    group.ask(&Request::Adopt { register: group.register.clone() });
    group.ask(&Request::Unprotect {});

    let told = Client::connect(&group.primary.folder.control()).unwrap().protection().unwrap();
    assert_eq!(told.state, ProtectionState::Off);
    assert_eq!(typed(&group.primary, b'x'), b'y');
}

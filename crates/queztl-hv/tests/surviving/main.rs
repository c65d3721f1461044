//! Machines survive their hosts: two daemons, each in a network namespace of its own, a guest that counts over TCP, and somebody
//! outside who counts along.
//!
//! Needs root, the program `ip`, /dev/net/tun, and the small Linux; without one of them, the tests say so and are skipped.

#[path = "../common/mod.rs"]
mod common;
mod hosts;
mod oracle;

use std::time::{Duration, Instant};

use hosts::{Host, Network};
use oracle::Oracle;
use queztl_api::{BackupAddress, ProtectRequest, ProtectionMode, ProtectionState, VmState};

/// How long things may take that are no promise of time.
const LONG: Duration = Duration::from_secs(90);
/// On a busy host, shorter ones run out by themselves.
const LEASE_MS: u32 = 1000;
const SILENCE_MS: u32 = 800;

/// A guest that counts, protected by the second host, and who counts along.
struct Scene {
    hosts: Vec<Host>,
    oracle: Oracle,
    register: tempfile::TempDir,
    /// The host that has the machine.
    here: usize,
    /// Somebody has said that it is to be protected; from then on it is by itself.
    told: std::cell::Cell<bool>,
    _network: Network,
}

impl Scene {
    fn new() -> Option<Scene> {
        Scene::with(2, Host::spawn_counter)
    }

    fn with(hosts: usize, spawn: impl FnOnce(&Host)) -> Option<Scene> {
        let network = Network::new(hosts)?;
        common::linux()?;
        let hosts: Vec<Host> = (0..hosts).map(|number| Host::start(&network, number)).collect();
        spawn(&hosts[0]);
        let oracle = Oracle::start(&network);
        oracle.wait_for(20);
        let (register, told) = (tempfile::tempdir().unwrap(), false.into());
        Some(Scene { hosts, oracle, register, here: 0, told, _network: network })
    }

    fn here(&self) -> &Host {
        &self.hosts[self.here]
    }

    /// Of two.
    fn there(&self) -> &Host {
        &self.hosts[1 - self.here]
    }

    fn others(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().enumerate().filter(|(number, _)| *number != self.here).map(|(_, host)| host)
    }

    fn protect(&self, mode: ProtectionMode) {
        self.protect_for(mode, LEASE_MS);
    }

    fn protect_for(&self, mode: ProtectionMode, lease_ms: u32) {
        if !self.told.get() {
            self.tell(&ProtectRequest { mode, lease_ms, ..self.request() });
        }
        self.wait_state(ProtectionState::Protected);
    }

    /// By all other hosts.
    fn request(&self) -> ProtectRequest {
        let backups = self.others().map(|host| BackupAddress::to(host.address())).collect();
        let register = format!("file:{}", self.register.path().display());
        let (interval_ms, lease_ms, silence_ms) = (Some(25), LEASE_MS, SILENCE_MS);
        ProtectRequest { interval_ms, lease_ms, silence_ms, ..ProtectRequest::new(backups, register) }
    }

    fn tell(&self, request: &ProtectRequest) {
        assert!(!self.told.replace(true), "it is protected by itself");
        self.here().protect(request).unwrap();
    }

    fn wait_state(&self, state: ProtectionState) {
        self.eventually("the protection's state", || match self.here().protection() {
            Ok(told) if told.state == state => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }

    #[track_caller]
    fn eventually(&self, what: &str, mut done: impl FnMut() -> Result<(), String>) {
        let started = Instant::now();
        while let Err(why) = done() {
            assert!(started.elapsed() < LONG, "{what}: {why}\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn logs(&self) -> String {
        self.hosts.iter().map(Host::logs).collect()
    }

    /// The machine runs at another host, which has it from now on, and counting goes on.
    fn expect_failover(&mut self) {
        let before = self.here;
        let runs = |host: &Host| host.state() == Some(VmState::Running);
        let mut there = None;
        self.eventually("a backup goes on", || {
            // The one before may be frozen, and answer nothing.
            there = (0..self.hosts.len()).find(|number| *number != before && runs(&self.hosts[*number]));
            there.map(drop).ok_or_else(|| "it runs nowhere".into())
        });
        self.here = there.unwrap();
        self.expect_counting();
    }

    /// As many copies as are wanted have what leaves.
    fn wait_complete(&self, copies: u32) {
        self.eventually("all copies", || match self.here().protection() {
            Ok(told) if told.state == ProtectionState::Protected && told.acks == copies && told.seeking.is_none() => {
                assert_eq!((told.wanted, told.backups.len()), (copies, copies as usize));
                Ok(())
            }
            other => Err(format!("{other:?}")),
        });
    }

    /// It is no machine of this host any more; a copy of it may be.
    fn expect_forgotten(&self, host: usize) {
        self.eventually("the old owner forgets", || match self.hosts[host].state() {
            None | Some(VmState::Starting) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }

    fn expect_counting(&self) {
        let from = self.oracle.count();
        self.eventually("counting goes on", || {
            self.oracle.check();
            let now = self.oracle.count();
            (now > from + 10).then_some(()).ok_or(format!("at {now} of {from}"))
        });
    }
}

#[test]
fn no_acknowledged_count_is_lost_when_processes_and_daemons_are_killed() {
    let Some(mut scene) = Scene::new() else { return };
    for round in 0..8 {
        scene.protect(ProtectionMode::Pause);
        scene.expect_counting();
        // At different moments of an epoch.
        std::thread::sleep(Duration::from_millis(7 * round));
        let before = scene.oracle.count();

        let victim = scene.here;
        let with_its_daemon = round % 2 == 1;
        if with_its_daemon {
            scene.hosts[victim].kill_daemon();
        }
        scene.hosts[victim].kill_machine();
        scene.expect_failover();

        println!("round {round}: {before} counted before, longest silence {:?}", scene.oracle.longest_silence());
        if with_its_daemon {
            scene.hosts[victim].restart_daemon();
        }
        scene.expect_forgotten(victim);
    }
    let told = scene.oracle.stop();
    println!("{told:?}");
}

/// A guest that writes a journal: what it has said to be on its disk is there wherever it goes on.
#[test]
fn no_acknowledged_record_on_a_disk_is_lost_when_processes_and_daemons_are_killed() {
    let Some(mut scene) = Scene::with(2, Host::spawn_journal) else { return };
    for round in 0..4 {
        scene.protect(ProtectionMode::Pause);
        scene.expect_counting();
        std::thread::sleep(Duration::from_millis(11 * round));

        let victim = scene.here;
        if round % 2 == 1 {
            scene.hosts[victim].kill_daemon();
        }
        scene.hosts[victim].kill_machine();
        scene.expect_failover();

        let counted = scene.oracle.count();
        let found = scene.here().journal(counted);
        assert_eq!(found, (1..=counted).collect::<Vec<_>>(), "round {round}\n{}", scene.logs());
        if round % 2 == 1 {
            scene.hosts[victim].restart_daemon();
        }
        scene.expect_forgotten(victim);
    }
    println!("{:?}", scene.oracle.stop());
}

/// The old owner is cut off, and lives.
#[test]
fn an_owner_that_was_followed_lets_nothing_out() {
    let Some(mut scene) = Scene::new() else { return };
    scene.protect(ProtectionMode::Pause);
    scene.expect_counting();
    let old = scene.here;

    // Neither the register nor the backup hears of it; the machine's process goes on.
    scene.hosts[old].freeze_daemon();
    scene.expect_failover();

    let sent = scene.hosts[old].frames_sent();
    scene.expect_counting();
    std::thread::sleep(Duration::from_millis(500));
    // One that has heard of the new term has ended by itself.
    let now = scene.hosts[old].frames_sent();
    assert!(now.is_none() || now == sent, "the old owner speaks: {sent:?}, then {now:?}");

    scene.hosts[old].thaw_daemon();
    scene.expect_forgotten(old);
    scene.expect_counting();
    scene.oracle.stop();
}

/// The backup is cut off, and comes back.
#[test]
fn output_waits_while_the_backup_is_out_of_reach() {
    let Some(scene) = Scene::new() else { return };
    let lease_ms = 3000;
    scene.protect_for(ProtectionMode::Pause, lease_ms);
    scene.expect_counting();

    scene.there().freeze_daemon();
    std::thread::sleep(Duration::from_millis(300));
    let stopped = scene.oracle.count();
    std::thread::sleep(Duration::from_millis(u64::from(lease_ms) * 4 / 3));
    // One answer may have been on its way.
    assert!(scene.oracle.count() <= stopped + 1, "something left without an acknowledgement");

    scene.there().thaw_daemon();
    scene.expect_counting();
    let state = scene.here().state();
    assert_eq!(state, Some(VmState::Running), "a backup that was away claims nothing\n{}", scene.logs());
    scene.oracle.stop();
}

/// A daemon that ends as it should says goodbye: nobody takes its machines, unless it stays away for a lease.
#[test]
fn a_machine_stays_where_it_is_while_its_daemon_is_replaced() {
    let Some(mut scene) = Scene::new() else { return };
    scene.protect_for(ProtectionMode::Pause, 60_000);
    scene.expect_counting();

    scene.hosts[0].end_daemon();
    // Longer than a silence would be held for death.
    std::thread::sleep(Duration::from_millis(u64::from(SILENCE_MS) * 2));
    scene.hosts[0].restart_daemon();

    scene.expect_counting();
    assert_eq!(scene.here().state(), Some(VmState::Running), "{}", scene.logs());
    scene.wait_state(ProtectionState::Protected);
    scene.oracle.stop();
}

#[test]
fn in_best_effort_mode_the_guest_goes_on_without_its_backup_and_is_protected_again() {
    let Some(mut scene) = Scene::new() else { return };
    scene.protect(ProtectionMode::BestEffort);

    let there = 1 - scene.here;
    scene.hosts[there].kill_daemon();
    scene.wait_state(ProtectionState::Degraded);
    scene.expect_counting();

    scene.hosts[there].restart_daemon();
    scene.wait_state(ProtectionState::Protected);
    scene.expect_counting();
    scene.here().unprotect();
    scene.expect_counting();
    scene.eventually("the copy that is of no use any more is removed", || match scene.there().state() {
        None => Ok(()),
        other => Err(format!("{other:?}")),
    });
    scene.oracle.stop();
}

/// Nobody says anything after the beginning: each host dies in turn, and comes back when all have.
#[test]
fn a_machine_whose_hosts_die_one_after_the_other_stays_protected_by_itself() {
    let Some(mut scene) = Scene::with(3, Host::spawn_counter) else { return };
    scene.protect(ProtectionMode::Pause);
    scene.wait_complete(2);
    scene.expect_counting();

    let first = scene.here;
    scene.hosts[first].kill();
    scene.expect_failover();
    // By the third, although two copies are wanted.
    scene.wait_state(ProtectionState::Protected);
    let told = scene.here().protection().unwrap();
    assert_eq!((told.wanted, told.acks), (2, 1));
    scene.expect_counting();

    let second = scene.here;
    scene.hosts[second].kill();
    scene.expect_failover();
    assert_ne!(scene.here, first);
    scene.wait_state(ProtectionState::Seeking);
    assert!(scene.here().protection().unwrap().seeking.is_some());

    scene.hosts[first].restart_daemon();
    scene.wait_state(ProtectionState::Protected);
    scene.hosts[second].restart_daemon();
    scene.wait_complete(2);
    scene.expect_counting();
    scene.oracle.stop();
}

#[test]
fn a_backup_that_stays_away_is_replaced() {
    let Some(mut scene) = Scene::with(3, Host::spawn_counter) else { return };
    scene.tell(&ProtectRequest { backup_count: Some(1), ..scene.request() });
    scene.wait_complete(1);
    scene.expect_counting();

    scene.hosts[1].kill();
    let to = scene.hosts[2].address();
    scene.eventually("another backup", || match scene.here().protection() {
        Ok(told) if told.backups.iter().all(|backup| backup.to == to) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    scene.wait_complete(1);
    scene.expect_counting();

    scene.hosts[0].kill();
    scene.expect_failover();
    assert_eq!(scene.here, 2);
    scene.oracle.stop();
}

#[test]
fn the_next_daemon_goes_on_seeking_copies_until_it_is_told_not_to() {
    let Some(mut scene) = Scene::new() else { return };
    scene.protect(ProtectionMode::Pause);
    scene.hosts[0].kill();
    scene.expect_failover();
    scene.wait_state(ProtectionState::Seeking);

    scene.hosts[1].kill_daemon();
    scene.hosts[1].restart_daemon();
    scene.wait_state(ProtectionState::Seeking);

    scene.here().unprotect();
    assert!(scene.here().protection().unwrap_err().contains("not protected"));
    scene.hosts[0].restart_daemon();
    scene.expect_forgotten(0);
    assert!(scene.here().protection().is_err());
    scene.expect_counting();
    scene.oracle.stop();
}

#[test]
fn a_machine_that_is_protected_once_is_not_protected_by_who_goes_on() {
    let Some(mut scene) = Scene::new() else { return };
    scene.tell(&ProtectRequest { again: false, ..scene.request() });
    scene.wait_complete(1);

    scene.hosts[0].kill();
    scene.expect_failover();

    assert!(scene.here().protection().unwrap_err().contains("not protected"));
    scene.oracle.stop();
}

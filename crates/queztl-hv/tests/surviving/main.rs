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
    hosts: [Host; 2],
    oracle: Oracle,
    register: tempfile::TempDir,
    /// The host that has the machine.
    here: usize,
    _network: Network,
}

impl Scene {
    fn new() -> Option<Scene> {
        Scene::with(Host::spawn_counter)
    }

    fn with(spawn: impl FnOnce(&Host)) -> Option<Scene> {
        let network = Network::new()?;
        common::linux()?;
        let hosts = [0, 1].map(|number| Host::start(&network, number));
        spawn(&hosts[0]);
        let oracle = Oracle::start(&network);
        oracle.wait_for(20);
        Some(Scene { hosts, oracle, register: tempfile::tempdir().unwrap(), here: 0, _network: network })
    }

    fn here(&self) -> &Host {
        &self.hosts[self.here]
    }

    fn there(&self) -> &Host {
        &self.hosts[1 - self.here]
    }

    fn protect(&self, mode: ProtectionMode) {
        self.protect_for(mode, LEASE_MS);
    }

    fn protect_for(&self, mode: ProtectionMode, lease_ms: u32) {
        let backup = BackupAddress::to(self.there().address());
        let register = format!("file:{}", self.register.path().display());
        let request =
            ProtectRequest { mode, interval_ms: Some(25), lease_ms, ..ProtectRequest::new(vec![backup], register) };
        let request = ProtectRequest { silence_ms: SILENCE_MS, ..request };
        // The daemon that had the machine before may still have to take note.
        self.eventually("protection begins", || self.here().protect(&request));
        self.wait_state(ProtectionState::Protected);
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

    /// The machine runs at the other host, which has it from now on, and counting goes on.
    fn expect_failover(&mut self) {
        let there = 1 - self.here;
        let host = &self.hosts[there];
        self.eventually("the backup goes on", || match host.state() {
            Some(VmState::Running) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        self.here = there;
        self.expect_counting();
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
        // It is no machine of this host any more.
        scene.eventually("the old owner forgets", || match scene.hosts[victim].state() {
            None => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    let told = scene.oracle.stop();
    println!("{told:?}");
}

/// A guest that writes a journal: what it has said to be on its disk is there wherever it goes on.
#[test]
fn no_acknowledged_record_on_a_disk_is_lost_when_processes_and_daemons_are_killed() {
    let Some(mut scene) = Scene::with(Host::spawn_journal) else { return };
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
        scene.eventually("the old owner forgets", || match scene.hosts[victim].state() {
            None => Ok(()),
            other => Err(format!("{other:?}")),
        });
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
    scene.eventually("the old owner ends", || match scene.hosts[old].state() {
        None => Ok(()),
        other => Err(format!("{other:?}")),
    });
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

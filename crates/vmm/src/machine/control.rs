//! What the control socket asks of a running machine.
//!
//! Promise: what is changed here (balloon, hot-plugged memory, limits) holds across restarts of the guest, since the
//! configuration changes with it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::assembly::Live;
use super::events::End;
use super::migrate::MigrationOrder;
use super::{MachineHandle, SnapshotOrder, lock, read};
use crate::config::{MachineConfig, RateLimit};
use crate::control::{
    Answer, Balloon, DeviceLimit, GuestMemoryStats, Hotplug, Memory, Reason, Refusal, Request, Response, RunState,
    Status, Target, Vcpu,
};
use crate::devices::legacy::generation;
use crate::devices::virtio::balloon;
use crate::devices::virtio::mem::BLOCK_BYTES;

/// How long vCPUs, and then devices, may take to stop. A vCPU is stopped within a block of instructions, a device within
/// its requests in flight.
const PAUSE_LIMIT: Duration = Duration::from_secs(10);
/// How long a guest may take to tell of its memory before the last figures have to do.
const STATS_LIMIT: Duration = Duration::from_millis(100);

impl Target for MachineHandle {
    fn execute(&self, request: Request) -> Response {
        let done = |result: Result<(), Refusal>| match result {
            Ok(()) => Response::Done {},
            Err(refusal) => Response::Error(refusal),
        };
        match request {
            Request::Status {} => Response::Status(Box::new(self.status())),
            Request::Metrics {} => Response::Metrics(Box::new(self.metrics())),
            Request::Pause {} => done(self.pause()),
            Request::Resume {} => done(self.go_on_here()),
            Request::Stop {} => {
                self.stop();
                Response::Done {}
            }
            Request::PowerButton {} => done(self.press_power_button()),
            Request::Reset {} => {
                self.reset();
                Response::Done {}
            }
            Request::CancelSnapshot {} => {
                self.shared.writing.cancel();
                Response::Done {}
            }
            // It comes after all that was asked for before.
            Request::Settle {} => Response::Done {},
            Request::Balloon { target_bytes } => done(self.set_balloon(target_bytes)),
            Request::Memory { requested_bytes } => done(self.set_hotplug(requested_bytes)),
            Request::Limit { device, limit } => done(self.set_limit(&device, limit)),
            Request::Migration {} => Response::Migration(self.migration()),
            Request::CancelMigration {} => done(self.cancel_migration()),
            Request::Protection {} => Response::Protection(Box::new(self.protection())),
            Request::Adopt { register } => done(self.adopt(&register)),
            Request::Unprotect {} => done(self.unprotect()),
            Request::Acks { acks } => done(self.require_acks(acks)),
            long @ (Request::Snapshot { .. }
            | Request::Fork { .. }
            | Request::Migrate { .. }
            | Request::Protect { .. }
            | Request::AddBackup { .. }) => self.carry_out(long).response,
        }
    }

    fn carry_out(&self, request: Request) -> Answer {
        let refused = |refusal| Response::Error(refusal).into();
        match request {
            Request::Snapshot { directory, base, disks, stay_paused } => {
                let order = SnapshotOrder { directory, base, disks, stay_paused };
                self.snapshot(&order).map_or_else(refused, |report| Response::Snapshot(report).into())
            }
            Request::Fork { directory, disks } => match self.fork(&directory, &disks) {
                Ok((report, files)) => Answer { response: Response::Fork(report), files },
                Err(refusal) => refused(refusal),
            },
            Request::Migrate { socket, stripes, max_rounds, shared, mode, patience_ms } => {
                let order = MigrationOrder { socket, stripes, max_rounds, shared, mode, patience_ms };
                self.migrate(order).map_or_else(refused, |()| Response::Done {}.into())
            }
            Request::Protect { order } => self.protect(*order).map_or_else(refused, |()| Response::Done {}.into()),
            Request::AddBackup { place } => self.add_backup(place).map_or_else(refused, |()| Response::Done {}.into()),
            other => self.execute(other).into(),
        }
    }
}

impl MachineHandle {
    /// Stops all vCPUs, then makes the devices quiet. After an error, whatever has stopped stays so until
    /// [`MachineHandle::resume`].
    pub fn pause(&self) -> Result<(), Refusal> {
        let _transition = lock(&self.shared.transition);
        self.stand_still()
    }

    /// [`MachineHandle::pause`] for whoever holds the transition.
    pub(super) fn stand_still(&self) -> Result<(), Refusal> {
        let late = |what| Refusal::new(Reason::Timeout, format!("{what} within {} s", PAUSE_LIMIT.as_secs()));
        if !self.shared.vcpus.pause(PAUSE_LIMIT) {
            return Err(late("a vCPU did not stop"));
        }
        let gate = read(&self.shared.live).as_ref().map(|live| live.gate.clone());
        if gate.is_some_and(|gate| !gate.close(PAUSE_LIMIT)) {
            return Err(late("a device did not become quiet"));
        }
        Ok(())
    }

    /// Goes on after a pause.
    pub fn resume(&self) {
        let _transition = lock(&self.shared.transition);
        self.go_on();
    }

    /// [`MachineHandle::resume`] for whoever holds the transition.
    pub(super) fn go_on(&self) {
        if let Some(live) = read(&self.shared.live).as_ref() {
            live.gate.open();
        }
        self.shared.vcpus.resume();
    }

    /// Asks the guest to switch itself off. It does when something in it listens to the button; a paused one once it goes on.
    pub fn press_power_button(&self) -> Result<(), Refusal> {
        let power = read(&self.shared.live).as_ref().map(|live| live.legacy.pm.clone());
        power.ok_or_else(restarting)?.press_power_button();
        Ok(())
    }

    /// Gives the guest another generation identifier: it goes on as a copy of what it was, and must not use random numbers
    /// that the other copies use, too.
    ///
    /// # Errors
    /// Between two runs of the guest.
    pub fn change_generation(&self, id: [u8; generation::LEN]) -> Result<(), Refusal> {
        let generation = read(&self.shared.live).as_ref().map(|live| live.generation.clone());
        let failed = |error| Refusal::new(Reason::Invalid, format!("the identifier cannot be written: {error}"));
        generation.ok_or_else(restarting)?.change(id).map_err(failed)
    }

    /// Starts the guest anew without asking it. A paused machine stays paused, before the new guest's first instruction.
    pub fn reset(&self) {
        self.shared.events.note(End::Reset);
    }

    /// Asks the guest to give up memory until the balloon holds `bytes`.
    pub fn set_balloon(&self, bytes: u64) -> Result<(), Refusal> {
        let mut config = lock(&self.shared.config);
        if bytes > config.ram_bytes {
            let message = format!("the balloon cannot hold more than the guest's RAM, {} bytes", config.ram_bytes);
            return Err(Refusal::new(Reason::Invalid, message));
        }
        config.balloon_bytes = bytes;
        if let Some(live) = read(&self.shared.live).as_ref() {
            live.balloon.set_target_bytes(bytes);
        }
        Ok(())
    }

    /// Asks the guest to use so many bytes of the memory that can be hot-plugged.
    pub fn set_hotplug(&self, bytes: u64) -> Result<(), Refusal> {
        let mut config = lock(&self.shared.config);
        let max = config.hotplug_bytes;
        if max == 0 {
            let message = "the machine has no memory to hot-plug: start it with --memory-hotplug";
            return Err(Refusal::new(Reason::Missing, message));
        }
        if bytes > max || !bytes.is_multiple_of(BLOCK_BYTES) {
            let (max, block) = (max >> 20, BLOCK_BYTES >> 20);
            let message = format!("from 0 to {max} MiB can be hot-plugged, in blocks of {block} MiB");
            return Err(Refusal::new(Reason::Invalid, message));
        }
        config.hotplug_requested_bytes = bytes;
        if let Some(mem) = read(&self.shared.live).as_ref().and_then(|live| live.mem.clone()) {
            mem.set_requested_bytes(bytes);
        }
        Ok(())
    }

    /// Puts another rate limit in force on the device of this name.
    pub fn set_limit(&self, device: &str, limit: RateLimit) -> Result<(), Refusal> {
        if [limit.bytes, limit.requests].iter().flatten().any(|rate| rate.per_second == 0 || rate.burst == 0) {
            return Err(Refusal::new(
                Reason::Invalid,
                "a rate and its burst are at least 1; leave out what has no limit",
            ));
        }
        let mut config = lock(&self.shared.config);
        let Some(wished) = configured_limit(&mut config, device) else {
            let message = format!("the machine has no device {device:?} whose rate can be limited: see `status`");
            return Err(Refusal::new(Reason::Missing, message));
        };
        *wished = limit;
        if let Some(live) = read(&self.shared.live).as_ref() {
            live.limiters.iter().filter(|(name, _)| name == device).for_each(|(_, limiter)| limiter.set(limit));
        }
        Ok(())
    }

    /// How the machine is. Asks the guest for its memory figures and waits a moment for them.
    pub fn status(&self) -> Status {
        let shared = &self.shared;
        let config = lock(&shared.config).clone();
        let live = read(&shared.live);
        let state = match (shared.vcpus.is_paused(), live.as_ref()) {
            (true, _) => RunState::Paused,
            (false, Some(_)) => RunState::Running,
            (false, None) => RunState::Restarting,
        };
        let guest = live.as_ref().and_then(|live| guest_memory(&live.balloon, state == RunState::Running));
        Status {
            state,
            pid: std::process::id(),
            accelerator: live.as_ref().map_or("", |live| live.accelerator).to_owned(),
            uptime_ms: milliseconds(shared.started.elapsed()),
            restarts: shared.restarts.load(Ordering::Relaxed),
            vcpus: shared.vcpus.cpu_times_ns().into_iter().map(|cpu_ns| Vcpu { cpu_ns }).collect(),
            memory: memory(&config, live.as_ref(), guest),
            limits: live.as_ref().map(limits).unwrap_or_default(),
            snapshot: shared.writing.progress(),
        }
    }
}

fn restarting() -> Refusal {
    Refusal::new(Reason::Invalid, "the guest is just starting anew: try again in a moment")
}

pub(super) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Where the configuration keeps the limit of this name; see [`Live::limiters`].
fn configured_limit<'a>(config: &'a mut MachineConfig, device: &str) -> Option<&'a mut RateLimit> {
    if device == "rng" {
        return Some(&mut config.rng_limit);
    }
    if let Some(number) = device.strip_prefix("disk") {
        return config.disks.get_mut(number.parse::<usize>().ok()?).map(|disk| &mut disk.limit);
    }
    let (number, direction) = device.strip_prefix("net")?.split_once('-')?;
    let net = config.nets.get_mut(number.parse::<usize>().ok()?)?;
    match direction {
        "rx" => Some(&mut net.receive_limit),
        "tx" => Some(&mut net.transmit_limit),
        _ => None,
    }
}

pub(super) fn memory(config: &MachineConfig, live: Option<&Live>, guest: Option<GuestMemoryStats>) -> Memory {
    Memory {
        ram_bytes: config.ram_bytes,
        resident_bytes: live.and_then(|live| live.ram.allocated_bytes().ok()).unwrap_or(0),
        balloon: Balloon {
            target_bytes: config.balloon_bytes,
            actual_bytes: live.map_or(0, |live| live.balloon.actual_bytes()),
        },
        hotplug: (config.hotplug_bytes > 0).then(|| Hotplug {
            max_bytes: config.hotplug_bytes,
            requested_bytes: config.hotplug_requested_bytes,
            plugged_bytes: live.and_then(|live| live.mem.as_ref()).map_or(0, |mem| mem.plugged_bytes()),
        }),
        arriving_bytes: live.and_then(|live| live.ram.arriving()).map_or(0, |arriving| arriving.missing_bytes()),
        guest,
    }
}

fn limits(live: &Live) -> Vec<DeviceLimit> {
    let limit = |(device, limiter): &(String, Arc<crate::devices::virtio::limit::Limiter>)| DeviceLimit {
        device: device.clone(),
        limit: limiter.limit(),
        waits: limiter.waits(),
    };
    live.limiters.iter().map(limit).collect()
}

/// The guest's figures: fresh ones if `ask` and it answers soon, else the last, if any.
pub(super) fn guest_memory(balloon: &balloon::Balloon, ask: bool) -> Option<GuestMemoryStats> {
    let asked = Instant::now();
    if ask {
        balloon.refresh_stats(STATS_LIMIT);
    }
    let (stats, at) = balloon.stats()?;
    let age = asked.saturating_duration_since(at);
    Some(GuestMemoryStats {
        age_ms: milliseconds(age),
        total_bytes: stats.total_bytes,
        free_bytes: stats.free_bytes,
        available_bytes: stats.available_bytes,
        disk_caches_bytes: stats.disk_caches_bytes,
        major_faults: stats.major_faults,
        minor_faults: stats.minor_faults,
        swapped_in_bytes: stats.swapped_in_bytes,
        swapped_out_bytes: stats.swapped_out_bytes,
    })
}

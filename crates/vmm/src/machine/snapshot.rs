//! Taking a snapshot of a running machine.
//!
//! ```text
//!  running ──> stand still: vCPUs parked, devices quiet ──> cut: states, memory ──> go on ──> write, sync, rename
//!     ^                       │ cannot                       │ fails                             │ fails
//!     └───────────────────────┴──────────────────────────────┴───────────────────────────────────┘ nothing is left
//! ```
//! Promise: whatever fails, the machine goes on as it did before, and no half snapshot has the name of one.

use std::path::Path;
use std::time::{Duration, Instant};

use super::assembly::Live;
use super::restore::disk_sectors;
use super::{MachineHandle, lock};
use crate::config::MachineConfig;
use crate::control::{Reason, Refusal, SnapshotReport};
use crate::snapshot::state::is_counted;
use crate::snapshot::{self, ClockState, MEMORY_FILE, MachineState, Persist, Staging, memory};

/// How long the vCPUs may take to tell their states.
const STATES_LIMIT: Duration = Duration::from_secs(10);

/// A machine's state at one moment, and what else was done at that moment.
struct Cut<T> {
    state: MachineState,
    other: T,
    pause: Duration,
    /// The machine was paused before.
    was_paused: bool,
}

impl MachineHandle {
    /// Takes a snapshot into `directory`, which is made. The machine stands still only for the moment that it shows, and
    /// stays so afterwards if `stay_paused`.
    pub fn snapshot(&self, directory: &Path, stay_paused: bool) -> Result<SnapshotReport, Refusal> {
        let started = Instant::now();
        let staging = Staging::begin(directory)?;
        let file = staging.create(MEMORY_FILE)?;
        let failed = snapshot::Error::io(staging.path(MEMORY_FILE), "writing the memory");
        let cut = self.cut(stay_paused, |live| Ok(memory::write(&live.ram, &file).map_err(failed)?))?;
        let written = file
            .sync_all()
            .map_err(snapshot::Error::io(staging.path(MEMORY_FILE), "writing the memory"))
            .and_then(|()| staging.write_state(&cut.state))
            .and_then(|()| staging.commit());
        if let Err(error) = written {
            if stay_paused && !cut.was_paused {
                self.resume();
            }
            return Err(error.into());
        }
        Ok(SnapshotReport {
            pause_ns: nanoseconds(cut.pause),
            total_ns: nanoseconds(started.elapsed()),
            memory_bytes: cut.other,
        })
    }

    /// Makes the machine stand still, takes its state and does `other` meanwhile. It goes on unless it was paused before
    /// or shall stay so.
    fn cut<T>(&self, stay_paused: bool, other: impl FnOnce(&Live) -> Result<T, Refusal>) -> Result<Cut<T>, Refusal> {
        let _transition = lock(&self.shared.transition);
        let config = lock(&self.shared.config).clone();
        if is_counted(&config) {
            let message = "a machine whose time is made of instructions has no snapshots: each run is the same anyway";
            return Err(Refusal::new(Reason::Invalid, message));
        }
        let restarting = || Refusal::new(Reason::Busy, "the guest is restarting or has ended: try again");
        let live = lock(&self.shared.live).clone().ok_or_else(restarting)?;
        let was_paused = self.shared.vcpus.is_paused();
        let started = Instant::now();
        let taken = self.stand_still().and_then(|()| {
            let state = self.state(config, &live)?;
            Ok((state, other(&live)?))
        });
        let stays = was_paused || (stay_paused && taken.is_ok());
        if !stays {
            self.go_on();
        }
        let pause = started.elapsed();
        taken.map(|(state, other)| Cut { state, other, pause, was_paused })
    }

    /// The state of all parts. Devices come before the interrupt controllers, and these before the vCPUs' own: bringing one
    /// up to date may raise an interrupt in the next.
    fn state(&self, config: MachineConfig, live: &Live) -> Result<MachineState, Refusal> {
        let board = &live.board;
        let devices = live.transports.iter().map(|transport| transport.save()).collect();
        let legacy = live.legacy.save();
        let controllers = board.irqchip().save();
        let vcpus = self.shared.vcpus.states(STATES_LIMIT);
        let vcpus = vcpus.map_err(|error| Refusal::new(Reason::Failed, error.to_string()))?;
        let clock = board.clock();
        Ok(MachineState {
            config,
            accelerator: live.accelerator.to_owned(),
            processor: live.vm.processor().into_iter().map(Into::into).collect(),
            vcpus,
            controllers,
            legacy,
            paravirtual_clock: board.kvmclock().save(),
            devices,
            disk_sectors: disk_sectors(live),
            clock: ClockState { ticks: clock.tsc(), hz: clock.tsc_hz(), wall_clock_ns: clock.wall_clock_ns() },
        })
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl From<snapshot::Error> for Refusal {
    fn from(error: snapshot::Error) -> Refusal {
        let reason = match &error {
            snapshot::Error::Io { .. } => Reason::Failed,
            _ => Reason::Invalid,
        };
        Refusal::new(reason, error.to_string())
    }
}

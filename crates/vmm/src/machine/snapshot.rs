//! Taking a snapshot of a running machine.
//!
//! ```text
//!  running ──> stand still: vCPUs parked, devices quiet ──> cut: states, RAM frozen ──> go on ──> write, sync, rename
//!     ^                       │ cannot                       │ fails                              │ fails
//!     └───────────────────────┴──────────────────────────────┴────────────────────────────────────┘ nothing is left
//! ```
//! RAM is frozen, not copied, while the machine stands still; what a snapshot writes and a fork passes on is that frozen
//! image ([`queztl_guest_memory::GuestRam::freeze`]).
//!
//! Promise: whatever fails, the machine goes on as it did before, and no half snapshot has the name of one.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use queztl_guest_memory::{Frozen, GuestRam, ImageError, LayerId, Settling};

use super::assembly::Live;
use super::restore::disk_sectors;
use super::{MachineHandle, lock, read};
use crate::config::MachineConfig;
use crate::control::{DiskCut, Reason, Refusal, SnapshotProgress, SnapshotReport};
use crate::snapshot::memory::Base;
use crate::snapshot::state::is_counted;
use crate::snapshot::{self, ClockState, MEMORY_FILE, MachineState, Persist, Staging};

/// How long the vCPUs may take to tell their states.
const STATES_LIMIT: Duration = Duration::from_secs(10);

/// A snapshot as it is wished.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnapshotOrder {
    /// Where it will be; its parent exists.
    pub directory: PathBuf,
    /// The directory, beside it, of the snapshot that was taken or restored last, on whose memory it shall build.
    pub base: Option<PathBuf>,
    /// Disks that go on in other files.
    pub disks: Vec<DiskCut>,
    /// The machine stays paused, if all goes well.
    pub stay_paused: bool,
}

/// What others can see of the snapshot that is being written, and how they stop it.
#[derive(Debug, Default)]
pub(super) struct Writing(Mutex<Option<State>>);

#[derive(Debug)]
struct State {
    progress: SnapshotProgress,
    cancelled: bool,
}

impl Writing {
    /// From now on there is one, of a machine with so much RAM.
    fn begin(&self, total_bytes: u64) -> Present<'_> {
        let progress = SnapshotProgress { done_bytes: 0, total_bytes };
        *lock(&self.0) = Some(State { progress, cancelled: false });
        Present(self)
    }

    pub fn cancel(&self) {
        if let Some(state) = &mut *lock(&self.0) {
            state.cancelled = true;
        }
    }

    pub fn progress(&self) -> Option<SnapshotProgress> {
        lock(&self.0).as_ref().map(|state| state.progress)
    }
}

/// The snapshot that is being written, until it is dropped.
struct Present<'a>(&'a Writing);

impl Present<'_> {
    /// RAM has been written up to this offset; false if it is to end.
    fn reached(&self, offset: u64) -> bool {
        lock(&self.0.0).as_mut().is_none_or(|state| {
            state.progress.done_bytes = offset.min(state.progress.total_bytes);
            !state.cancelled
        })
    }
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        *lock(&self.0.0) = None;
    }
}

/// A machine at one moment.
pub(super) struct Cut {
    pub state: MachineState,
    pub ram: Arc<GuestRam>,
    pub frozen: Frozen,
    /// How long it took until it stood still, and how long it did in all; up to the cut if it stays so.
    pub stop: Duration,
    pub pause: Duration,
    /// The machine was paused before.
    pub was_paused: bool,
}

impl MachineHandle {
    /// Takes a snapshot. The machine stands still only for the moment that the snapshot shows.
    ///
    /// # Errors
    /// It cannot be taken or written; then the machine is as before, but disks that were cut stay so.
    pub fn snapshot(&self, order: &SnapshotOrder) -> Result<SnapshotReport, Refusal> {
        let started = Instant::now();
        let base = order.base.as_deref().map(|base| Base::look_at(base, &order.directory)).transpose()?;
        let staging = Staging::begin(&order.directory)?;
        let present = self.shared.writing.begin(lock(&self.shared.config).ram_bytes);
        let cut = self.cut(&order.disks, order.stay_paused)?;
        let Cut { mut state, ram, frozen, pause, was_paused, .. } = cut;
        let (layer, bases) = base.map_or((None, Vec::new()), |base| (Some(base.layer), base.names));
        state.bases = bases;
        let written = write(staging, &state, &frozen, layer, &present);
        drop(present);
        drop(frozen);
        give_back(&ram);
        if written.is_err() && order.stay_paused && !was_paused {
            self.resume();
        }
        let (pause_ns, total_ns) = (nanoseconds(pause), nanoseconds(started.elapsed()));
        Ok(SnapshotReport { pause_ns, total_ns, memory_bytes: written? })
    }

    /// Makes the machine's state ready for clones, in `directory`, and gives the files of its memory, which never change.
    ///
    /// # Errors
    /// Those of [`MachineHandle::snapshot`].
    pub fn fork(&self, directory: &Path, disks: &[DiskCut]) -> Result<(SnapshotReport, Vec<OwnedFd>), Refusal> {
        let started = Instant::now();
        let staging = Staging::begin(directory)?;
        let cut = self.cut(disks, false)?;
        let (files, table) = cut.frozen.image().parts();
        let failed = |error: std::io::Error| Refusal::new(Reason::Failed, format!("passing memory on: {error}"));
        let files = files.iter().map(|file| file.as_fd().try_clone_to_owned());
        let files = files.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        staging.write_table(&table)?;
        staging.write_state(&cut.state)?;
        staging.commit()?;
        let (pause_ns, total_ns) = (nanoseconds(cut.pause), nanoseconds(started.elapsed()));
        let memory_bytes = cut.ram.allocated_bytes().unwrap_or(0);
        Ok((SnapshotReport { pause_ns, total_ns, memory_bytes }, files))
    }

    /// Makes the machine stand still, takes its state and freezes its RAM. It goes on unless it was paused before or shall
    /// stay so.
    pub(super) fn cut(&self, disks: &[DiskCut], stay_paused: bool) -> Result<Cut, Refusal> {
        self.cut_with(disks, stay_paused, || ())
    }

    /// The same; `at_cut` is called while the machine stands still, and sees no device at work.
    pub(super) fn cut_with(&self, disks: &[DiskCut], stay_paused: bool, at_cut: impl FnOnce()) -> Result<Cut, Refusal> {
        let overlays: Vec<_> = disks.iter().map(|disk| (disk.index, disk.overlay.clone())).collect();
        let settler = settler()?;
        let _transition = lock(&self.shared.transition);
        let config = lock(&self.shared.config).clone();
        if is_counted(&config) {
            let message = "a machine whose time is made of instructions has no snapshots: each run is the same anyway";
            return Err(Refusal::new(Reason::Invalid, message));
        }
        let restarting = || Refusal::new(Reason::Busy, "the guest is restarting or has ended: try again");
        let live = read(&self.shared.live).clone().ok_or_else(restarting)?;
        let was_paused = self.shared.vcpus.is_paused();
        let started = Instant::now();
        let still = self.stand_still();
        let stop = started.elapsed();
        let taken = still.and_then(|()| {
            at_cut();
            let cuts = self.prepare_disk_cuts(&overlays)?;
            // The state names the disks' files of now, which stay as they are if they are cut.
            let state = self.state(config, &live)?;
            let (frozen, settling) = live.ram.freeze().map_err(snapshot::Error::from)?;
            // Without the thread the work is done here and now.
            let _ = settler.send(settling);
            self.commit_disk_cuts(cuts)?;
            Ok((state, frozen))
        });
        let stays = was_paused || (stay_paused && taken.is_ok());
        if !stays {
            self.go_on();
        }
        let pause = started.elapsed();
        taken.map(|(state, frozen)| Cut { state, ram: live.ram, frozen, stop, pause, was_paused })
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
            bases: Vec::new(),
            clock: ClockState { ticks: clock.tsc(), hz: clock.tsc_hz(), wall_clock_ns: clock.wall_clock_ns() },
        })
    }
}

/// Writes all there is of a snapshot, down to the disk; gives the bytes of memory.
fn write(
    staging: Staging,
    state: &MachineState,
    frozen: &Frozen,
    base: Option<LayerId>,
    present: &Present<'_>,
) -> Result<u64, snapshot::Error> {
    let file = staging.create(MEMORY_FILE)?;
    let written = frozen.image().write_with(&file, base, |offset| present.reached(offset))?;
    staging.write_table(&written.table)?;
    staging.write_state(state)?;
    staging.commit()?;
    Ok(written.data_bytes)
}

/// A thread that does what is left of a freeze; it runs before the machine stands still, so that nobody waits for its
/// start.
fn settler() -> Result<Sender<Settling>, Refusal> {
    let (sender, work) = channel::<Settling>();
    let body = move || work.into_iter().for_each(Settling::run);
    let thread = std::thread::Builder::new().name("settle".into()).spawn(body);
    let failed = |error| Refusal::new(Reason::Failed, format!("no thread for a freeze of memory: {error}"));
    thread.map(|_| sender).map_err(failed)
}

/// Frozen pages of which the machine has its own copies, and nobody else needs, go back to the host.
pub(super) fn give_back(ram: &GuestRam) {
    match ram.reclaim() {
        Ok(bytes) => tracing::debug!(bytes, "frozen memory given back"),
        Err(error) => tracing::warn!(%error, "frozen memory cannot be given back"),
    }
}

pub(super) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl From<snapshot::Error> for Refusal {
    fn from(error: snapshot::Error) -> Refusal {
        let reason = match &error {
            snapshot::Error::Memory(ImageError::Cancelled) => Reason::Cancelled,
            snapshot::Error::Io { .. } | snapshot::Error::Memory(ImageError::Io { .. }) => Reason::Failed,
            _ => Reason::Invalid,
        };
        Refusal::new(reason, chain(&error))
    }
}

/// An error and what has led to it. Those that tell their source themselves are not repeated.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

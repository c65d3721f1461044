//! The machine goes on elsewhere: the source's side of [`crate::migration`].
//!
//! Each round is a freeze, as for a snapshot ([`super::snapshot`]): the guest stands still for a moment only, and what is sent
//! is a frozen image that nobody writes to. The last one leaves it standing still.
//!
//! Disks that the guest writes to go first ([`super::mirror`]), and what it writes to them during the rounds goes with the next
//! one. Those that both hosts see are flushed and let go when the machine stands still for good; what stays here has them back
//! before it goes on.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use queztl_guest_memory::LayerId;
use queztl_parallel_transfer::Sent;
use queztl_storage::Disk;

use super::events::End;
use super::mirror::{copy_marked, copy_most, marked, put_writes};
use super::snapshot::{Cut, chain, give_back, nanoseconds};
use super::{MachineHandle, lock, read};
use crate::config::Pages;
use crate::control::{Blackout, Migration, MigrationMode, MigrationPhase, Reason, Refusal};
use crate::devices::virtio::block::Block;
use crate::migration::{Begin, Error, LastRound, Link, MAX_STRIPES, Verdict};
use crate::snapshot;

/// When a round has brought no more than this, the next one is so short that the guest may stand still for it.
const SHORT_ROUND_BYTES: u64 = 2 << 20;
/// A round that has brought more than this part of the one before shows that more rounds do not help: the guest writes as
/// fast as can be sent. In percent.
const NO_PROGRESS: u64 = 80;

/// Who marks blocks for a migration.
const MARKER: u32 = u32::MAX;
/// How long a target that does not run the machine may take to let go of its disks, and how often it is looked.
const LOCK_LIMIT: Duration = Duration::from_secs(10);
const LOCK_LOOK: Duration = Duration::from_millis(5);

/// A migration as it is wished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationOrder {
    /// The Unix socket that leads to the target.
    pub socket: PathBuf,
    pub stripes: u32,
    pub max_rounds: u32,
    /// Disks, by their numbers, that are written to and are the same files there.
    pub shared: Vec<usize>,
    pub mode: MigrationMode,
    /// How long a target that runs the machine waits for a source that it cannot reach.
    pub patience_ms: u64,
}

/// What a migration is at; kept after its end.
#[derive(Default)]
pub(super) struct Progress {
    state: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    figures: Migration,
    started: Option<Instant>,
    cancelled: bool,
    /// In doubt, it was told to go on here.
    abandoned: bool,
    /// Handles of the connections: shut down, they end.
    connections: Vec<UnixStream>,
    /// Disks that were let go: whoever runs the machine has them.
    released: Vec<Arc<dyn Disk>>,
}

/// The disks that the machine writes to.
pub(super) struct Disks {
    /// Those that go with it.
    moved: Vec<Arc<Block>>,
    /// Those that are there already.
    shared: Vec<Arc<Block>>,
}

impl Disks {
    fn sizes(&self) -> Vec<u64> {
        self.moved.iter().map(|disk| disk.disk().topology().size_bytes).collect()
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        self.moved.iter().for_each(|disk| disk.journal().stop());
    }
}

impl Progress {
    pub(super) fn change(&self, change: impl FnOnce(&mut Migration)) {
        let mut told = lock(&self.state);
        change(&mut told.figures);
        told.figures.total_ns = told.started.map_or(0, |started| nanoseconds(started.elapsed()));
    }

    pub(super) fn add(&self, sent: Sent) {
        self.change(|figures| {
            figures.data_bytes += sent.data_bytes;
            figures.wire_bytes += sent.wire_bytes;
            figures.round_bytes = sent.data_bytes;
        });
    }

    /// Keeps a connection to end it when the migration is cancelled.
    pub(super) fn connected(&self, connection: UnixStream) {
        let mut told = lock(&self.state);
        if told.cancelled {
            hang_up(&connection);
        }
        told.connections.push(connection);
    }

    fn add_disk(&self, bytes: usize) {
        self.change(|figures| figures.disk_bytes += bytes as u64);
    }

    /// From here on it cannot be cancelled; gives the number of the last round.
    pub(super) fn begin_blackout(&self) -> Result<u64, Refusal> {
        let mut told = lock(&self.state);
        if told.cancelled {
            return Err(cancelled());
        }
        told.figures.phase = MigrationPhase::Blackout;
        told.figures.round += 1;
        Ok(u64::from(told.figures.round))
    }

    pub(super) fn is_cancelled(&self) -> bool {
        lock(&self.state).cancelled
    }

    /// The target runs the machine; false if it was told to go on here.
    pub(super) fn begin_serving(&self) -> bool {
        let mut told = lock(&self.state);
        if !told.abandoned {
            (told.figures.phase, told.figures.message) = (MigrationPhase::Serving, None);
        }
        !told.abandoned
    }

    pub(super) fn is_abandoned(&self) -> bool {
        lock(&self.state).abandoned
    }

    /// Connections of before are of no use any more.
    pub(super) fn disconnected(&self) {
        lock(&self.state).connections.clear();
    }
}

impl MachineHandle {
    /// Begins to bring the machine to another place.
    ///
    /// # Errors
    /// It cannot be moved, or is on its way already.
    pub fn migrate(&self, order: MigrationOrder) -> Result<(), Refusal> {
        let invalid = |message: String| Err(Refusal::new(Reason::Invalid, message));
        if !(1..=MAX_STRIPES).contains(&order.stripes) {
            return invalid(format!("memory is sent over 1 to {MAX_STRIPES} connections, not {}", order.stripes));
        }
        let disks = self.disks_to_move(&order.shared)?;
        if !disks.moved.is_empty() && self.shared.vcpus.is_paused() {
            return invalid("the machine is paused, and its disks are read as it runs: resume it first".into());
        }
        let protection = lock(&self.shared.protection).clone();
        if protection.is_some_and(|protecting| !protecting.has_ended()) {
            return invalid("the machine is protected: hand it over to a backup, or unprotect it first".into());
        }
        if order.mode != MigrationMode::PreCopy && lock(&self.shared.config).pages == Pages::Huge2M {
            return invalid(
                "RAM of reserved huge pages cannot come after the machine: choose the mode pre-copy".into(),
            );
        }
        let progress = self.begin_migration()?;
        let (handle, body) = (self.clone(), progress.clone());
        let body = move || handle.carry_over(&order, disks, &body);
        let thread = std::thread::Builder::new().name("migration".into()).spawn(body);
        thread.map(drop).map_err(|error| {
            progress.change(|figures| figures.phase = MigrationPhase::Failed);
            Refusal::new(Reason::Failed, format!("no thread for a migration: {error}"))
        })
    }

    fn begin_migration(&self) -> Result<Arc<Progress>, Refusal> {
        let mut current = lock(&self.shared.migration);
        let phase = lock(&current.state).figures.phase;
        if phase.is_active() || phase == MigrationPhase::InDoubt {
            return Err(Refusal::new(Reason::Busy, "the machine is on its way already: cancel that first"));
        }
        let figures = Migration { phase: MigrationPhase::Copying, ..Migration::default() };
        let told = Told { figures, started: Some(Instant::now()), ..Told::default() };
        *current = Arc::new(Progress { state: Mutex::new(told) });
        Ok(current.clone())
    }

    /// How a migration goes.
    pub fn migration(&self) -> Migration {
        let progress = lock(&self.shared.migration).clone();
        let told = lock(&progress.state);
        let mut figures = told.figures.clone();
        if let Some(started) = told.started.filter(|_| figures.phase.is_active()) {
            figures.total_ns = nanoseconds(started.elapsed());
        }
        figures
    }

    /// Gives a migration up.
    ///
    /// # Errors
    /// There is none, or it is too late: the machine is being handed over.
    pub fn cancel_migration(&self) -> Result<(), Refusal> {
        let progress = lock(&self.shared.migration).clone();
        let mut told = lock(&progress.state);
        match told.figures.phase {
            MigrationPhase::Copying => {
                told.cancelled = true;
                told.connections.iter().for_each(hang_up);
                Ok(())
            }
            MigrationPhase::Blackout => {
                Err(Refusal::new(Reason::Busy, "it is too late to cancel: the machine is being handed over"))
            }
            MigrationPhase::Serving => Err(Refusal::new(
                Reason::Busy,
                "it is too late to cancel: the machine runs at the target, and what is here is old",
            )),
            _ => Err(Refusal::new(Reason::Missing, "the machine is not on its way anywhere")),
        }
    }

    /// Goes on here after a pause, or a migration that is in doubt.
    ///
    /// # Errors
    /// The machine runs elsewhere, or its disks are in use.
    pub(super) fn go_on_here(&self) -> Result<(), Refusal> {
        let progress = lock(&self.shared.migration).clone();
        {
            let mut told = lock(&progress.state);
            match told.figures.phase {
                MigrationPhase::Serving => {
                    let text =
                        "the machine runs at the target and fetches its memory from here: it cannot go on here, too";
                    return Err(Refusal::new(Reason::Busy, text));
                }
                MigrationPhase::InDoubt => told.abandoned = true,
                _ => {}
            }
        }
        self.take_disks_back().map(|()| self.resume())
    }

    fn disks_to_move(&self, shared: &[usize]) -> Result<Disks, Refusal> {
        let written: Vec<(usize, Arc<Block>)> =
            self.disks().into_iter().enumerate().filter(|(_, disk)| !disk.disk().read_only()).collect();
        if let Some(number) = shared.iter().find(|number| !written.iter().any(|(index, _)| index == *number)) {
            return Err(Refusal::new(Reason::Missing, format!("the machine writes to no disk {number}")));
        }
        let (shared, moved): (Vec<_>, Vec<_>) = written.into_iter().partition(|(index, _)| shared.contains(index));
        let blocks = |disks: Vec<(usize, Arc<Block>)>| disks.into_iter().map(|(_, disk)| disk).collect();
        Ok(Disks { moved: blocks(moved), shared: blocks(shared) })
    }

    /// Brings the machine over, and tells how it went.
    fn carry_over(&self, order: &MigrationOrder, disks: Disks, progress: &Progress) {
        let result = self.copy(order, &disks, progress);
        drop(disks);
        lock(&progress.state).connections.clear();
        let (phase, message) = match result {
            Ok(Verdict::There) => (MigrationPhase::Moved, None),
            Ok(Verdict::InDoubt(error)) => (MigrationPhase::InDoubt, Some(chain(&error))),
            Ok(Verdict::Here(error)) => (MigrationPhase::Failed, Some(chain(&error))),
            Err(error) if progress.is_cancelled() => {
                tracing::debug!(%error, "the migration was cancelled");
                (MigrationPhase::Cancelled, None)
            }
            Err(error) => (MigrationPhase::Failed, Some(error.to_string())),
        };
        tracing::info!(?phase, message, "the migration has ended");
        progress.change(|figures| (figures.phase, figures.message) = (phase, message));
        if phase == MigrationPhase::Moved {
            self.shared.events.note(End::Moved);
        }
    }

    /// Copies disks, then RAM in rounds, and hands the machine over. After an error, and if it stays here, the guest runs as
    /// before.
    fn copy(&self, order: &MigrationOrder, disks: &Disks, progress: &Progress) -> Result<Verdict, Refusal> {
        let begin = Begin::new(self.ram_runs()?, order.stripes, disks.sizes());
        let mut link = Link::open(&order.socket, &begin, |wire| progress.connected(wire)).map_err(refusal)?;
        self.copy_disks(&link, disks, progress).map_err(refusal)?;
        let (mut base, mut before) = (None, u64::MAX);
        let rounds = if order.mode == MigrationMode::PostCopy { 0 } else { order.max_rounds.max(1) };
        let mut is_short = false;
        for round in 1..=rounds {
            if progress.is_cancelled() {
                return Err(cancelled());
            }
            let sent = self.round(&mut link, disks, round, &mut base, progress)?;
            is_short = sent <= SHORT_ROUND_BYTES;
            if is_short || (round > 1 && sent > before / 100 * NO_PROGRESS) {
                break;
            }
            before = sent;
        }
        self.keep_writes(&link, disks, progress).map_err(refusal)?;
        match order.mode {
            MigrationMode::PreCopy => self.last_round(&mut link, disks, base, progress),
            MigrationMode::Auto if is_short => self.last_round(&mut link, disks, base, progress),
            MigrationMode::PostCopy | MigrationMode::Auto => self.switch_over(&link, order, disks, base, progress),
        }
    }

    /// All of the disks that go with the machine, and most of what is written meanwhile.
    fn copy_disks(&self, link: &Link, disks: &Disks, progress: &Progress) -> Result<(), Error> {
        if disks.moved.is_empty() {
            return Ok(());
        }
        disks.moved.iter().for_each(|disk| disk.journal().mark(MARKER));
        copy_most(&disks.moved, MARKER, || self.settle_disks(progress), |part| put(link, progress, part))?;
        link.sync()
    }

    /// From now on writes are kept; what was marked before goes now.
    fn keep_writes(&self, link: &Link, disks: &Disks, progress: &Progress) -> Result<(), Error> {
        if disks.moved.is_empty() {
            return Ok(());
        }
        disks.moved.iter().for_each(|disk| disk.journal().start());
        let marks = marked(&disks.moved, MARKER);
        self.settle_disks(progress)?;
        copy_marked(&disks.moved, &marks, |part| put(link, progress, part))?;
        // What goes when the machine stands still is little, and so is what is made durable then.
        link.sync()
    }

    /// A moment in which no device is at work.
    fn settle_disks(&self, progress: &Progress) -> Result<(), Error> {
        if progress.is_cancelled() {
            return Err(Error::Still("it was cancelled".into()));
        }
        let _transition = lock(&self.shared.transition);
        let (started, was_paused) = (Instant::now(), self.shared.vcpus.is_paused());
        let still = self.stand_still();
        if !was_paused {
            self.go_on();
        }
        progress.change(|figures| figures.pauses_ns += nanoseconds(started.elapsed()));
        still.map_err(|refusal| Error::Still(refusal.message))
    }

    /// One round while the guest runs; gives the bytes that were sent.
    fn round(
        &self,
        link: &mut Link,
        disks: &Disks,
        round: u32,
        base: &mut Option<LayerId>,
        progress: &Progress,
    ) -> Result<u64, Refusal> {
        progress.change(|figures| figures.round = round);
        let marks = marked(&disks.moved, MARKER);
        let Cut { ram, frozen, pause, .. } = self.cut(&[], false)?;
        progress.change(|figures| figures.pauses_ns += nanoseconds(pause));
        let sent = link.round(u64::from(round), frozen.image(), *base);
        *base = frozen.top();
        drop(frozen);
        give_back(&ram);
        let sent = sent.map_err(refusal)?;
        progress.add(sent);
        let mut of_disks = 0;
        let put = |part: &[u8]| {
            of_disks += part.len() as u64;
            put(link, progress, part)
        };
        copy_marked(&disks.moved, &marks, put).map_err(refusal)?;
        Ok(sent.data_bytes + of_disks)
    }

    /// The rest, and the end here if all is well.
    fn last_round(
        &self,
        link: &mut Link,
        disks: &Disks,
        base: Option<LayerId>,
        progress: &Progress,
    ) -> Result<Verdict, Refusal> {
        let round = progress.begin_blackout()?;
        let started = Instant::now();
        let Cut { state, ram, frozen, was_paused, stop, pause } = self.cut(&[], true)?;
        let stays_here = || self.stay_here(was_paused);
        let mut parts =
            Blackout { stop_ns: nanoseconds(stop), cut_ns: nanoseconds(pause - stop), ..Blackout::default() };
        let state = snapshot::encode(&state).map_err(Refusal::from);
        let at = Instant::now();
        let last = state.and_then(|state| {
            self.last_of_disks(link, disks, progress)?;
            parts.disks_ns = nanoseconds(at.elapsed());
            link.last_round(round, frozen.image(), base, &state).map_err(refusal)
        });
        drop(frozen);
        let LastRound { sent, sending, waiting, making } = last.inspect_err(|_| {
            stays_here();
            give_back(&ram);
        })?;
        progress.add(sent);
        let at = Instant::now();
        let verdict = link.run();
        parts.memory_ns = nanoseconds(sending);
        parts.network_ns = nanoseconds(waiting + at.elapsed());
        parts.start_ns = nanoseconds(making);
        progress.change(|figures| {
            (figures.blackout_ns, figures.blackout) = (nanoseconds(started.elapsed()), parts);
        });
        if matches!(verdict, Verdict::Here(_)) {
            stays_here();
        }
        Ok(verdict)
    }

    /// The machine was to go, and does not.
    pub(super) fn stay_here(&self, was_paused: bool) {
        match self.take_disks_back() {
            Ok(()) if !was_paused => self.resume(),
            Ok(()) => {}
            Err(refusal) => tracing::error!(%refusal, "the machine stands still: resume it when its disks are free"),
        }
    }

    /// What was written to disks since the writes are kept; and those that both hosts see are let go.
    pub(super) fn last_of_disks(&self, link: &Link, disks: &Disks, progress: &Progress) -> Result<(), Refusal> {
        let known = |now: &Arc<Block>| disks.moved.iter().chain(&disks.shared).any(|disk| Arc::ptr_eq(disk, now));
        if !self.written_disks().iter().all(known) {
            return Err(Refusal::new(Reason::Busy, "the guest has restarted meanwhile: try again"));
        }
        let writes: Vec<_> = disks.moved.iter().map(|disk| disk.journal().take()).collect();
        let writes = (0..).zip(&writes).flat_map(|(number, writes)| writes.iter().map(move |write| (number, write)));
        put_writes(writes, |part| put(link, progress, part)).map_err(refusal)?;
        for disk in disks.shared.iter().map(|disk| disk.disk()) {
            let failed = |error| Refusal::new(Reason::Failed, format!("a disk cannot be let go: {error}"));
            lock(&progress.state).released.push(disk.clone());
            disk.release().map_err(failed)?;
        }
        Ok(())
    }

    /// Has the disks again that were let go for a migration, so that the machine can go on here.
    pub(super) fn take_disks_back(&self) -> Result<(), Refusal> {
        let progress = lock(&self.shared.migration).clone();
        let deadline = Instant::now() + LOCK_LIMIT;
        loop {
            let mut told = lock(&progress.state);
            let Some(disk) = told.released.last() else { return Ok(()) };
            match disk.thaw() {
                Ok(()) => drop(told.released.pop()),
                Err(error) if Instant::now() >= deadline => {
                    let text =
                        format!("a disk that was let go is in use elsewhere, so the machine stands still: {error}");
                    return Err(Refusal::new(Reason::Busy, text));
                }
                Err(_) => {
                    drop(told);
                    std::thread::sleep(LOCK_LOOK);
                }
            }
        }
    }

    /// RAM as (guest-physical address, bytes).
    pub(super) fn ram_runs(&self) -> Result<Vec<(u64, u64)>, Refusal> {
        let live = read(&self.shared.live);
        let live = live.as_ref().ok_or_else(|| Refusal::new(Reason::Busy, "the guest is restarting: try again"))?;
        Ok(live.ram.ranges().collect())
    }
}

fn put(link: &Link, progress: &Progress, part: &[u8]) -> Result<(), Error> {
    link.disk(part)?;
    progress.add_disk(part.len());
    Ok(())
}

fn hang_up(connection: &UnixStream) {
    // One that has ended is as it should be.
    let _ = connection.shutdown(Shutdown::Both);
}

fn cancelled() -> Refusal {
    Refusal::new(Reason::Failed, "it was cancelled")
}

pub(super) fn refusal(error: Error) -> Refusal {
    Refusal::new(Reason::Failed, chain(&error))
}

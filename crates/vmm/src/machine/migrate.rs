//! The machine goes on elsewhere: the source's side of [`crate::migration`].
//!
//! Each round is a freeze, as for a snapshot ([`super::snapshot`]): the guest stands still for a moment only, and what is sent
//! is a frozen image that nobody writes to. The last one leaves it standing still.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use queztl_guest_memory::LayerId;
use queztl_parallel_transfer::Sent;

use super::events::End;
use super::snapshot::{Cut, chain, give_back, nanoseconds};
use super::{MachineHandle, lock, read};
use crate::control::{Migration, MigrationPhase, Reason, Refusal};
use crate::migration::{Begin, Error, Link, MAX_STRIPES, Verdict};
use crate::snapshot;

/// When a round has brought no more than this, the next one is so short that the guest may stand still for it.
const SHORT_ROUND_BYTES: u64 = 2 << 20;
/// A round that has brought more than this part of the one before shows that more rounds do not help: the guest writes as
/// fast as can be sent. In percent.
const NO_PROGRESS: u64 = 80;

/// A migration as it is wished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationOrder {
    /// The Unix socket that leads to the target.
    pub socket: PathBuf,
    pub stripes: u32,
    pub max_rounds: u32,
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
    /// Handles of the connections: shut down, they end.
    connections: Vec<UnixStream>,
}

impl Progress {
    fn change(&self, change: impl FnOnce(&mut Migration)) {
        let mut told = lock(&self.state);
        change(&mut told.figures);
        told.figures.total_ns = told.started.map_or(0, |started| nanoseconds(started.elapsed()));
    }

    fn add(&self, sent: Sent) {
        self.change(|figures| {
            figures.data_bytes += sent.data_bytes;
            figures.wire_bytes += sent.wire_bytes;
            figures.round_bytes = sent.data_bytes;
        });
    }

    /// Keeps a connection to end it when the migration is cancelled.
    fn connected(&self, connection: UnixStream) {
        let mut told = lock(&self.state);
        if told.cancelled {
            hang_up(&connection);
        }
        told.connections.push(connection);
    }

    /// From here on it cannot be cancelled; gives the number of the last round.
    fn begin_blackout(&self) -> Result<u64, Refusal> {
        let mut told = lock(&self.state);
        if told.cancelled {
            return Err(cancelled());
        }
        told.figures.phase = MigrationPhase::Blackout;
        told.figures.round += 1;
        Ok(u64::from(told.figures.round))
    }

    fn is_cancelled(&self) -> bool {
        lock(&self.state).cancelled
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
        if lock(&self.shared.config).disks.iter().any(|disk| !disk.read_only) {
            return invalid("the machine has a disk that it writes to, which cannot be moved with it yet".into());
        }
        let progress = self.begin_migration()?;
        let (handle, body) = (self.clone(), progress.clone());
        let body = move || handle.carry_over(&order, &body);
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
            _ => Err(Refusal::new(Reason::Missing, "the machine is not on its way anywhere")),
        }
    }

    /// Brings the machine over, and tells how it went.
    fn carry_over(&self, order: &MigrationOrder, progress: &Progress) {
        let result = self.copy(order, progress);
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

    /// Copies RAM in rounds and hands the machine over. After an error, and if it stays here, the guest runs as before.
    fn copy(&self, order: &MigrationOrder, progress: &Progress) -> Result<Verdict, Refusal> {
        let begin = Begin::new(self.ram_runs()?, order.stripes);
        let mut link = Link::open(&order.socket, &begin, |wire| progress.connected(wire)).map_err(refusal)?;
        let (mut base, mut before) = (None, u64::MAX);
        for round in 1..=order.max_rounds.max(1) {
            if progress.is_cancelled() {
                return Err(cancelled());
            }
            let sent = self.round(&mut link, round, &mut base, progress)?;
            if sent <= SHORT_ROUND_BYTES || (round > 1 && sent > before / 100 * NO_PROGRESS) {
                break;
            }
            before = sent;
        }
        self.last_round(&mut link, base, progress)
    }

    /// One round while the guest runs; gives the bytes that were sent.
    fn round(
        &self,
        link: &mut Link,
        round: u32,
        base: &mut Option<LayerId>,
        progress: &Progress,
    ) -> Result<u64, Refusal> {
        progress.change(|figures| figures.round = round);
        let Cut { ram, frozen, pause, .. } = self.cut(&[], false)?;
        progress.change(|figures| figures.pauses_ns += nanoseconds(pause));
        let sent = link.round(u64::from(round), frozen.image(), *base);
        *base = frozen.top();
        drop(frozen);
        give_back(&ram);
        let sent = sent.map_err(refusal)?;
        progress.add(sent);
        Ok(sent.data_bytes)
    }

    /// The rest, and the end here if all is well.
    fn last_round(&self, link: &mut Link, base: Option<LayerId>, progress: &Progress) -> Result<Verdict, Refusal> {
        let round = progress.begin_blackout()?;
        let started = Instant::now();
        let Cut { state, ram, frozen, was_paused, .. } = self.cut(&[], true)?;
        let stays_here = || {
            if !was_paused {
                self.resume();
            }
        };
        let state = snapshot::encode(&state).map_err(Refusal::from);
        let sent = state.and_then(|state| link.last_round(round, frozen.image(), base, &state).map_err(refusal));
        drop(frozen);
        let sent = sent.inspect_err(|_| {
            stays_here();
            give_back(&ram);
        })?;
        progress.add(sent);
        let verdict = link.run();
        progress.change(|figures| figures.blackout_ns = nanoseconds(started.elapsed()));
        if matches!(verdict, Verdict::Here(_)) {
            stays_here();
        }
        Ok(verdict)
    }

    /// RAM as (guest-physical address, bytes).
    pub(super) fn ram_runs(&self) -> Result<Vec<(u64, u64)>, Refusal> {
        let live = read(&self.shared.live);
        let live = live.as_ref().ok_or_else(|| Refusal::new(Reason::Busy, "the guest is restarting: try again"))?;
        Ok(live.ram.ranges().collect())
    }
}

fn hang_up(connection: &UnixStream) {
    // One that has ended is as it should be.
    let _ = connection.shutdown(Shutdown::Both);
}

fn cancelled() -> Refusal {
    Refusal::new(Reason::Failed, "it was cancelled")
}

fn refusal(error: Error) -> Refusal {
    Refusal::new(Reason::Failed, chain(&error))
}

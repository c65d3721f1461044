//! The machine goes on elsewhere before its memory does (post-copy): the source's side from the switch on.
//!
//! ```text
//!  stands still ──> SWITCH, RUN ──> serving: frozen RAM is sent, asked for or not ──> nothing more is needed: ends
//!       │ fails           │            │ a connection breaks: made anew, as often as it takes
//!       v                 v
//!  goes on here       in doubt: asks the target itself; goes on here only if somebody says so who knows
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use queztl_guest_memory::LayerId;

use super::MachineHandle;
use super::migrate::{Disks, MigrationOrder, Progress, refusal};
use super::snapshot::{Cut, chain, give_back, nanoseconds};
use crate::control::{Blackout, Late, MigrationPhase, Refusal};
use crate::migration::late::{Switch, Token, joined};
use crate::migration::offer::{Offer, Session};
use crate::migration::{Error, LastRound, Link, Verdict};
use crate::snapshot;

/// How long between two tries to reach a target that runs the machine.
const RETRY: Duration = Duration::from_millis(200);

/// What is to be sent, and how to come back to whom.
struct Serving<'a> {
    order: &'a MigrationOrder,
    token: Token,
    offer: Arc<Offer>,
    progress: &'a Progress,
    /// What was sent before it began.
    before: (u64, u64),
    began: Instant,
}

impl MachineHandle {
    /// Hands the machine over, then sends what of its memory is newer than `base`, or all.
    pub(super) fn switch_over(
        &self,
        link: &Link,
        order: &MigrationOrder,
        disks: &Disks,
        base: Option<LayerId>,
        progress: &Progress,
    ) -> Result<Verdict, Refusal> {
        progress.begin_blackout()?;
        let started = Instant::now();
        let Cut { state, ram, frozen, was_paused, stop, pause } = self.cut(&[], true)?;
        let mut parts =
            Blackout { stop_ns: nanoseconds(stop), cut_ns: nanoseconds(pause - stop), ..Blackout::default() };
        let switched = snapshot::encode(&state).map_err(Refusal::from).and_then(|state| {
            let at = Instant::now();
            self.last_of_disks(link, disks, progress)?;
            parts.disks_ns = nanoseconds(at.elapsed());
            let missing = joined(frozen.image().newer_runs(base).map_err(snapshot::Error::from)?);
            let offer = Offer::new(frozen.image().clone(), &missing);
            let token = Token::random().map_err(refusal)?;
            let runs = missing.len() as u32;
            let switch = Switch { token: token.clone(), patience_ms: order.patience_ms, runs };
            let (session, round) = link.switch(&switch, &missing, &state, &offer).map_err(refusal)?;
            let bytes = missing.iter().map(|(_, bytes)| bytes).sum();
            Ok((session, round, offer, token, bytes))
        });
        drop(frozen);
        let (session, round, offer, token, missing_bytes) = switched.inspect_err(|_| {
            self.stay_here(was_paused);
            give_back(&ram);
        })?;
        let LastRound { sent, sending, waiting, making } = round;
        progress.add(sent);
        let at = Instant::now();
        let verdict = link.run();
        parts.memory_ns = nanoseconds(sending);
        parts.network_ns = nanoseconds(waiting + at.elapsed());
        parts.start_ns = nanoseconds(making);
        let mut before = (0, 0);
        progress.change(|figures| {
            (figures.blackout_ns, figures.blackout) = (nanoseconds(started.elapsed()), parts);
            figures.late = Some(Late { missing_bytes, ..Late::default() });
            before = (figures.data_bytes, figures.wire_bytes);
        });
        let serving = Serving { order, token, offer, progress, before, began: Instant::now() };
        match verdict {
            Verdict::There => Ok(serving.run(Ok(session))),
            Verdict::InDoubt(error) => {
                drop(session);
                let message = Some(chain(&error));
                progress.change(|figures| (figures.phase, figures.message) = (MigrationPhase::InDoubt, message));
                Ok(serving.run(Err(error)))
            }
            Verdict::Here(error) => {
                drop(session);
                self.stay_here(was_paused);
                Ok(Verdict::Here(error))
            }
        }
    }
}

impl Serving<'_> {
    /// Sends memory until the target needs no more, across broken connections; gives up only if the machine was told to go on
    /// here while it was in doubt where it runs.
    fn run(&self, first: Result<Session, Error>) -> Verdict {
        let mut session = first;
        loop {
            let ended = match session {
                Ok(present) => {
                    if !self.progress.begin_serving() {
                        return Verdict::Here(Error::Protocol("it was told to go on here"));
                    }
                    self.offer.push();
                    let ended = present.wait(|| self.tell(|_| ()));
                    ended.map(|faults| {
                        self.tell(|late| {
                            (late.faults, late.fault_p50_ns, late.fault_p99_ns) =
                                (faults.count, faults.p50_ns, faults.p99_ns);
                        });
                    })
                }
                Err(error) => Err(error),
            };
            let Err(error) = ended else { return Verdict::There };
            if self.progress.is_abandoned() {
                return Verdict::Here(error);
            }
            self.progress.change(|figures| figures.message = Some(format!("the target is not reached: {error}")));
            std::thread::sleep(RETRY);
            session = self.resume();
        }
    }

    fn resume(&self) -> Result<Session, Error> {
        self.progress.disconnected();
        let MigrationOrder { socket, stripes, .. } = self.order;
        let session = Link::resume(socket, &self.token, *stripes, &self.offer, |wire| self.progress.connected(wire));
        session.inspect(|_| {
            tracing::info!("the target is there again");
            self.tell(|late| late.reconnects += 1);
        })
    }

    fn tell(&self, change: impl FnOnce(&mut Late)) {
        let (data, wire) = self.offer.sent();
        self.progress.change(|figures| {
            (figures.data_bytes, figures.wire_bytes) = (self.before.0 + data, self.before.1 + wire);
            if let Some(late) = &mut figures.late {
                late.whole_ns = nanoseconds(self.began.elapsed());
                change(late);
            }
        });
    }
}

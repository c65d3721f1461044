//! The backup's daemon: holds the process with the copy, watches the register, and takes the machine when its owner is gone.

use std::cmp;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use queztl_api::{
    BackupOrder, BackupPeer, BackupPromise, Code, CopyVersion, Operation, OperationKind, Problem, PromiseRequest,
};
use queztl_distributed_ram::{Candidate, Outcome, Phase, Promise, Version};
use queztl_vmm::process::Start;
use queztl_vmm::protection::{Word, WordAnswer, say};

use super::Signs;
use super::register::{self, Entry, Store};
use crate::manager::Core;
use crate::vms::{Claim, Machine};

/// Between two looks at the register, and at most between two looks at the owner's signs of life.
const LOOKS: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(25)];
/// The same when something has just happened, and for how long.
const CLOSE_LOOK: Duration = Duration::from_millis(4);
const CLOSE_LOOKS: Duration = Duration::from_millis(500);
/// How long the others may take to say whether they hear of the owner.
const PROBE_LIMIT: Duration = Duration::from_millis(200);
/// How long the end of a copy may take.
const GIVING_UP: Duration = Duration::from_secs(5);
/// So long a copy is kept that counts for nothing and that nobody brings anything to.
const UNWANTED: Duration = Duration::from_secs(60);

impl Core {
    /// Keeps a copy of a machine; returns when it runs here.
    pub(crate) fn keep_copy(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        claim: &Claim,
        order: BackupOrder,
    ) -> Result<(), Problem> {
        let over = Arc::new(AtomicBool::new(false));
        let store = register::open(&order.register)?;
        // Whatever was promised here before, and is forgotten, was promised to a term that the register knows.
        let known = store.read(&machine.id).map_err(|error| Problem::new(Code::Host, error.to_string()))?;
        let term = known.map_or(0, |entry| entry.register.term);
        let [silence, lease] = [order.silence_ms, order.lease_ms].map(|ms| Duration::from_millis(ms.into()));
        let signs = Arc::new(Signs::new(silence, lease.max(silence)));
        machine.lock().signs = Some(signs.clone());
        let watch = Watch { core: self.clone(), machine: machine.clone(), store, order, signs, over: over.clone() };
        let thread = std::thread::Builder::new().name("watch".into()).spawn(move || watch.run());
        let thread = thread.map_err(|error| Problem::new(Code::Host, format!("no thread for a backup: {error}")))?;
        let result = self.run_from(machine, claim, Start::Backup { term }, Vec::new());
        over.store(true, Ordering::Release);
        machine.lock().signs = None;
        let _ = thread.join();
        result
    }

    /// What the owner of a machine says of a copy that is kept here already: the group may have changed. A copy that was kept for
    /// something else before is given up, so that another can be kept. `None` if none is kept here.
    ///
    /// # Errors
    /// Who says so is not the owner, or the machine is no copy.
    pub(crate) fn hear_again(&self, id: &str, order: &BackupOrder) -> Result<Option<Operation>, Problem> {
        let store = register::open(&order.register)?;
        let known = store.read(id).map_err(|error| Problem::new(Code::Host, error.to_string()))?;
        if known.is_none_or(|entry| entry.register.term != order.term) {
            let text = "the register knows another owner of the machine, or none: is it the same one for all daemons?";
            return Err(Problem::new(Code::State, text));
        }
        let Ok(machine) = self.machines.find(id) else { return Ok(None) };
        let before = {
            let inner = machine.lock();
            inner.order.clone().filter(|_| inner.record.arriving)
        };
        let Some(before) = before else {
            let text =
                format!("the machine {id} is here already: is it the same daemon, or did it have the machine before?");
            return Err(Problem::new(Code::Exists, text));
        };
        let kept = self.operation_on(id, OperationKind::KeepCopy);
        match ((order.term, order.node).cmp(&(before.term, before.node)), kept) {
            (cmp::Ordering::Less, _) => {
                Err(Problem::new(Code::State, "what is said of the copy that is kept here is out of date"))
            }
            (cmp::Ordering::Equal, Some(kept)) => {
                machine.lock().order = Some(order.clone());
                let again = order.again.as_deref().cloned();
                self.amend(&machine, |record| record.again = again, |_, _| Ok(()))?;
                Ok(Some(kept))
            }
            _ => self.give_up_copy(&machine).map(|()| None),
        }
    }

    /// Ends the process with a copy, and waits until nothing is left of it.
    fn give_up_copy(&self, machine: &Machine) -> Result<(), Problem> {
        self.forget_incoming(&machine.id)?;
        let deadline = Instant::now() + GIVING_UP;
        while self.machines.find(&machine.id).is_ok() {
            if Instant::now() > deadline {
                let text = "the copy that was kept here before is not gone yet: try again";
                return Err(Problem::new(Code::Busy, text));
            }
            std::thread::sleep(LOOKS[0]);
        }
        Ok(())
    }

    /// Has the copy of a machine serve no owner of a lower term.
    pub(crate) fn promise(&self, id: &str, request: PromiseRequest) -> Result<BackupPromise, Problem> {
        let machine = self.machines.find(id)?;
        let (given, copy) = if request.probe {
            let signs = machine.lock().signs.clone();
            (signs.is_some_and(|signs| signs.suspect()), copy(&machine))
        } else {
            let told = promise(&machine, request.term)?;
            (told.is_some(), told.and_then(|told| told.copy))
        };
        Ok(BackupPromise { given, copy: copy.map(|Version { term, epoch }| CopyVersion { term, epoch }) })
    }
}

/// The promise of the process that keeps a copy; `None` if it has promised a higher term.
fn promise(machine: &Machine, term: u64) -> Result<Option<Promise>, Problem> {
    match say(&machine.folder.backup(), Word::Promise { term }) {
        Ok(WordAnswer::Promise { promise }) => Ok(promise.map(Into::into)),
        Ok(_) => Err(Problem::new(Code::Internal, "the process of the backup answers something else")),
        Err(error) => Err(Problem::new(Code::State, format!("no copy of the machine is kept here: {error}"))),
    }
}

/// What the process has, if it answers.
fn copy(machine: &Machine) -> Option<Version> {
    match say(&machine.folder.backup(), Word::Copy {}) {
        Ok(WordAnswer::Copy { copy, .. }) => copy,
        _ => None,
    }
}

/// Watches one group.
struct Watch {
    core: Arc<Core>,
    machine: Arc<Machine>,
    store: Box<dyn Store>,
    order: BackupOrder,
    signs: Arc<Signs>,
    over: Arc<AtomicBool>,
}

/// What is known of the register.
struct Seen {
    entry: Entry,
    /// Since when it has been so.
    since: Instant,
    /// This daemon has claimed the term, and somebody else has a newer copy.
    yielded: bool,
}

impl Watch {
    fn run(&self) {
        let usual = Duration::from_millis(u64::from(self.order.silence_ms.min(self.order.lease_ms)) / 16);
        let usual = usual.clamp(LOOKS[0], LOOKS[1]);
        let mut seen: Option<Seen> = None;
        let mut close_until = Instant::now();
        let mut wanted = Instant::now();
        while !self.over.load(Ordering::Acquire) && !self.core.is_closed() {
            let close = Instant::now() < close_until;
            if self.signs.wait(if close { CLOSE_LOOK.min(usual) } else { usual }) && !close {
                close_until = Instant::now() + CLOSE_LOOKS;
            }
            // Also when nothing follows from it: whoever does not look has not heard.
            let suspected = self.signs.suspect();
            let entry = match self.store.read(&self.machine.id) {
                Ok(Some(entry)) => entry,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(%error, vm = self.machine.id, "the register cannot be read");
                    continue;
                }
            };
            let known = match seen.take() {
                Some(before) if before.entry == entry => before,
                _ => Seen { entry, since: Instant::now(), yielded: false },
            };
            let known = seen.insert(known);
            if self.is_wanted(&known.entry) {
                wanted = Instant::now();
            } else if wanted.elapsed() > UNWANTED {
                return self.give_up();
            }
            match self.look(known, suspected) {
                Ok(()) => {}
                Err(problem) => tracing::warn!(%problem, vm = self.machine.id, "the machine is not taken over yet"),
            }
        }
    }

    /// Whether the copy may be of use to anybody.
    fn is_wanted(&self, entry: &Entry) -> bool {
        let register = &entry.register;
        let counts = match register.phase {
            Phase::Alone => register.owner == self.order.node,
            Phase::Protected => register.members.contains(&self.order.node),
            Phase::Claimed => true,
        };
        counts || self.signs.is_connected()
    }

    fn give_up(&self) {
        tracing::warn!(vm = self.machine.id, "nobody wants the copy that is kept here: it is given up");
        if let Err(problem) = self.core.forget_incoming(&self.machine.id) {
            tracing::warn!(%problem, vm = self.machine.id, "a copy that nobody wants is left");
        }
    }

    /// The others that keep copies.
    fn peers(&self) -> Vec<BackupPeer> {
        self.machine.lock().order.as_ref().map_or_else(Vec::new, |order| order.peers.clone())
    }

    /// Takes the machine if its owner is gone.
    fn look(&self, seen: &mut Seen, suspected: bool) -> Result<(), Problem> {
        let entry = &seen.entry;
        let register = &entry.register;
        if register.owner == self.order.node && register.phase == Phase::Alone {
            // The process has not heard of it yet, or could not.
            return self.promote(register.term);
        }
        let lease = Duration::from_millis(entry.lease_ms.into());
        let told = (entry.over && !seen.yielded) || seen.since.elapsed() >= lease + lease / 10;
        let Ok(claimed) = register.claim(self.order.node).map(|register| entry.next(register)) else {
            return Ok(());
        };
        if !told && !suspected {
            return Ok(());
        }
        let Some(own) = copy(&self.machine) else { return Ok(()) };
        // A suspicion is of the owner that has sent the copy, and of no candidate.
        let gone = told || register.phase == Phase::Protected && own.term == register.term && self.is_gone(entry, own);
        if !gone || !self.swap(entry, &claimed)? {
            return Ok(());
        }
        tracing::warn!(vm = self.machine.id, term = claimed.register.term, told, "its owner is gone: claimed");
        if let Some(node) = self.decide(&claimed)? {
            tracing::info!(node, "another backup has a newer copy: it can claim the next term");
            let yielded = Entry { over: true, ..claimed.next(claimed.register.clone()) };
            if self.swap(&claimed, &yielded)? {
                *seen = Seen { entry: yielded, since: Instant::now(), yielded: true };
            }
        }
        Ok(())
    }

    /// Whether as many others as it would take to go on hear nothing of the owner, either, and none of them has a newer copy: a
    /// daemon that is alone in having lost sight of the owner must not stop it.
    fn is_gone(&self, entry: &Entry, own: Version) -> bool {
        let mut needed = entry.register.answers_needed() - 1;
        let request = PromiseRequest { term: entry.register.term, probe: true };
        for peer in self.peers().iter().filter(|peer| entry.register.members.contains(&peer.node)) {
            if needed == 0 {
                break;
            }
            let Some(answer) = self.ask_daemon(peer, &request, PROBE_LIMIT) else { continue };
            let copy = answer.copy.map(|CopyVersion { term, epoch }| Version { term, epoch });
            if answer.given && copy.is_some_and(|copy| copy <= own) {
                needed -= 1;
            }
        }
        needed == 0
    }

    /// The next term is ours: looks for the newest copy, and takes over if it is here; otherwise says where it is.
    fn decide(&self, claimed: &Entry) -> Result<Option<u32>, Problem> {
        let term = claimed.register.term;
        let Some(own) = promise(&self.machine, term)? else {
            return Err(Problem::new(Code::State, "this copy has promised a later term"));
        };
        let mut candidate = Candidate::new(self.order.node, &claimed.register, own);
        let lease = Duration::from_millis(claimed.lease_ms.into());
        let deadline = Instant::now() + lease;
        loop {
            match candidate.outcome() {
                Outcome::TakeOver(version) => return self.take_over(claimed, version).map(|()| None),
                Outcome::YieldTo(node) => return Ok(Some(node)),
                Outcome::Waiting if Instant::now() >= deadline => {
                    let text = "too few of the other backups answer to know whose copy is the newest";
                    return Err(Problem::new(Code::Timeout, text));
                }
                Outcome::Waiting => self.ask(&mut candidate, lease),
            }
        }
    }

    /// Asks the members that have not answered, once.
    fn ask(&self, candidate: &mut Candidate, patience: Duration) {
        let (term, missing) = (candidate.term(), candidate.missing().collect::<Vec<_>>());
        let peers = self.peers();
        let answers = missing.into_iter().filter_map(|node| {
            let peer = peers.iter().find(|peer| peer.node == node)?;
            Some((node, self.ask_peer(peer, term, patience)?))
        });
        answers.collect::<Vec<_>>().into_iter().for_each(|(node, promise)| candidate.promised(node, promise));
        std::thread::sleep(Duration::from_millis(10));
    }

    fn ask_peer(&self, peer: &BackupPeer, term: u64, patience: Duration) -> Option<Promise> {
        let request = PromiseRequest { term, probe: false };
        let answer = self.ask_daemon(peer, &request, patience).filter(|answer| answer.given)?;
        let copy = answer.copy.map(|CopyVersion { term, epoch }| Version { term, epoch });
        Some(Promise { term, copy })
    }

    fn ask_daemon(&self, peer: &BackupPeer, request: &PromiseRequest, patience: Duration) -> Option<BackupPromise> {
        let client = self.core.kept_client_of(&peer.address).ok()?;
        let asked = async { tokio::time::timeout(patience, client.promise(&self.machine.id, request)).await };
        self.core.runtime.block_on(asked).ok()?.ok()
    }

    /// Writes the register, then has the process go on.
    fn take_over(&self, claimed: &Entry, version: Version) -> Result<(), Problem> {
        let term = claimed.register.term;
        let taken = claimed.register.take_over(self.order.node, term);
        let taken = taken.map_err(|error| Problem::new(Code::State, error.to_string()))?;
        if !self.swap(claimed, &claimed.next(taken))? {
            return Err(Problem::new(Code::State, "somebody else has claimed it meanwhile"));
        }
        tracing::warn!(vm = self.machine.id, term, epoch = version.epoch, "the machine goes on here");
        self.promote(term)
    }

    /// Has the process go on, which it may have heard before.
    fn promote(&self, term: u64) -> Result<(), Problem> {
        let failed = |error| Problem::new(Code::Host, format!("the copy cannot go on, and is told again: {error}"));
        say(&self.machine.folder.backup(), Word::Promote { term }).map(drop).map_err(failed)?;
        self.over.store(true, Ordering::Release);
        Ok(())
    }

    fn swap(&self, before: &Entry, after: &Entry) -> Result<bool, Problem> {
        let swapped = self.store.swap(&self.machine.id, Some(before), after);
        swapped.map_err(|error| Problem::new(Code::Host, error.to_string()))
    }
}

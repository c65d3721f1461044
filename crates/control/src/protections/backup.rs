//! The backup's daemon: holds the process with the copy, watches the register, and takes the machine when its owner is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use queztl_api::{BackupOrder, BackupPeer, BackupPromise, Code, CopyVersion, Problem, PromiseRequest};
use queztl_distributed_ram::{Candidate, Lease, Outcome, Promise, Version};
use queztl_vmm::process::Start;
use queztl_vmm::protection::{Word, WordAnswer, say};

use super::client;
use super::register::{self, Entry, Store};
use crate::manager::Core;
use crate::vms::{Claim, Machine};

/// By how much clocks of two hosts may differ in speed, in millionths, with what a busy host adds: between its look at the
/// lease and the frame's leaving, an owner may be held up. A tenth of the lease.
const DRIFT_PPM: u32 = 50_000;

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
        let node = order.node;
        let watch = Watch { core: self.clone(), machine: machine.clone(), store, order, over: over.clone() };
        let thread = std::thread::Builder::new().name("watch".into()).spawn(move || watch.run());
        let thread = thread.map_err(|error| Problem::new(Code::Host, format!("no thread for a backup: {error}")))?;
        let result = self.run_from(machine, claim, Start::Backup {}, Vec::new());
        over.store(true, Ordering::Release);
        let _ = thread.join();
        result?;
        machine.lock().record.node = Some(node);
        Ok(())
    }

    /// Has the copy of a machine serve no owner of a lower term.
    pub(crate) fn promise(&self, id: &str, request: PromiseRequest) -> Result<BackupPromise, Problem> {
        let machine = self.machines.find(id)?;
        let told = promise(&machine, request.term)?;
        let copy = told.and_then(|told| told.copy).map(|Version { term, epoch }| CopyVersion { term, epoch });
        Ok(BackupPromise { given: told.is_some(), copy })
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

/// Watches one group.
struct Watch {
    core: Arc<Core>,
    machine: Arc<Machine>,
    store: Box<dyn Store>,
    order: BackupOrder,
    over: Arc<AtomicBool>,
}

impl Watch {
    fn run(&self) {
        let pause = Duration::from_millis(u64::from(self.order.lease_ms) / 40);
        let pause = pause.clamp(Duration::from_millis(2), Duration::from_millis(25));
        let mut seen: Option<(Entry, Instant)> = None;
        while !self.over.load(Ordering::Acquire) && !self.core.is_closed() {
            std::thread::sleep(pause);
            let entry = match self.store.read(&self.machine.id) {
                Ok(Some(entry)) => entry,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(%error, vm = self.machine.id, "the register cannot be read");
                    continue;
                }
            };
            let since = match &seen {
                Some((before, since)) if *before == entry => *since,
                _ => Instant::now(),
            };
            seen = Some((entry.clone(), since));
            match self.look(&entry, since.elapsed()) {
                Ok(()) => {}
                Err(problem) => tracing::warn!(%problem, vm = self.machine.id, "the machine is not taken over yet"),
            }
        }
    }

    /// Takes the machine if its owner is gone.
    fn look(&self, entry: &Entry, unchanged: Duration) -> Result<(), Problem> {
        let lease_ns = u64::from(entry.lease_ms) * 1_000_000;
        let is_over = entry.over || unchanged >= Duration::from_nanos(Lease::wait_ns(lease_ns, DRIFT_PPM));
        let Ok(claimed) = entry.register.claim(self.order.node).map(|register| entry.next(register)) else {
            return Ok(());
        };
        if !is_over || !self.has_copy() || !self.swap(entry, &claimed)? {
            return Ok(());
        }
        tracing::warn!(vm = self.machine.id, term = claimed.register.term, "its owner is gone: claimed");
        self.decide(&claimed)
    }

    /// The next term is ours: looks for the newest copy.
    fn decide(&self, claimed: &Entry) -> Result<(), Problem> {
        let term = claimed.register.term;
        let Some(own) = promise(&self.machine, term)? else {
            return Err(Problem::new(Code::State, "this copy has promised a later term"));
        };
        let mut candidate = Candidate::new(self.order.node, &claimed.register, own);
        let lease = Duration::from_millis(claimed.lease_ms.into());
        let deadline = Instant::now() + lease;
        loop {
            match candidate.outcome() {
                Outcome::TakeOver(version) => return self.take_over(claimed, version),
                Outcome::YieldTo(node) => {
                    tracing::info!(node, "another backup has a newer copy: it claims the next term");
                    return Ok(());
                }
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
        let answers = missing.into_iter().filter_map(|node| {
            let peer = self.order.peers.iter().find(|peer| peer.node == node)?;
            Some((node, self.ask_peer(peer, term, patience)?))
        });
        answers.collect::<Vec<_>>().into_iter().for_each(|(node, promise)| candidate.promised(node, promise));
        std::thread::sleep(Duration::from_millis(10));
    }

    fn ask_peer(&self, peer: &BackupPeer, term: u64, patience: Duration) -> Option<Promise> {
        let client = client(&self.core.config.home, &peer.address).ok()?;
        let request = PromiseRequest { term };
        let asked = async { tokio::time::timeout(patience, client.promise(&self.machine.id, &request)).await };
        let answer = self.core.runtime.block_on(asked).ok()?.ok().filter(|answer| answer.given)?;
        let copy = answer.copy.map(|CopyVersion { term, epoch }| Version { term, epoch });
        Some(Promise { term, copy })
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
        let failed = |error| Problem::new(Code::Host, format!("the copy cannot go on: {error}"));
        say(&self.machine.folder.backup(), Word::Promote { term }).map(drop).map_err(failed)?;
        // The process is told once.
        self.over.store(true, Ordering::Release);
        Ok(())
    }

    fn has_copy(&self) -> bool {
        let told = say(&self.machine.folder.backup(), Word::Copy {});
        matches!(told, Ok(WordAnswer::Copy { copy: Some(_), .. }))
    }

    fn swap(&self, before: &Entry, after: &Entry) -> Result<bool, Problem> {
        let swapped = self.store.swap(&self.machine.id, Some(before), after);
        swapped.map_err(|error| Problem::new(Code::Host, error.to_string()))
    }
}

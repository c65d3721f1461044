//! Backups that are lost are brought back, or replaced by others when they stay away.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use queztl_api::{BackupAddress, Problem};
use queztl_client::Client;
use queztl_vmm::control::{self, Request};

use super::owner::{Warden, place};
use crate::supervisor;
use crate::vms::VmRecord;

/// Between two attempts to bring a backup back.
const BRING_BACK: Duration = Duration::from_secs(1);
/// So long a backup may be away before another one takes its place.
const AWAY: Duration = Duration::from_secs(3);
/// Between two attempts to find another one: at first, and at most.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(15)];

/// What goes on about the backups.
#[derive(Default)]
pub(super) struct Bringing {
    calls: std::collections::BTreeMap<u32, Call>,
    /// Raised whenever the group is another one.
    generation: u64,
    /// The group that each backup's daemon was told of last.
    told: std::collections::BTreeMap<u32, u64>,
    /// Since when backups have been away.
    away: std::collections::BTreeMap<u32, Instant>,
    attempt: Option<Attempt>,
    /// When another one may be sought, and how long the pause before that was.
    next: Option<(Instant, Duration)>,
    attempts: usize,
}

/// A backup's daemon is asked to make ready, or told of the group.
struct Call {
    began: Instant,
    generation: u64,
    /// Whether it has heard.
    thread: Option<JoinHandle<bool>>,
}

/// A daemon that keeps no copy yet is asked.
struct Attempt {
    node: u32,
    address: BackupAddress,
    client: Arc<Client>,
    replaces: Option<u32>,
    answer: mpsc::Receiver<Result<(), Problem>>,
}

impl Warden {
    /// Backups whose connection is lost are asked to make ready again; those that know another group are told of this one.
    pub(super) fn bring_back(&mut self, told: &control::Protection) {
        for node in self.guarded.backups.clone() {
            let lost = told.backups.iter().any(|backup| backup.node == node && backup.failed.is_some());
            match lost {
                true => drop(self.bringing.away.entry(node).or_insert_with(Instant::now)),
                false => drop(self.bringing.away.remove(&node)),
            }
            let busy = self.finish_call(node);
            let current = self.bringing.told.get(&node) == Some(&self.bringing.generation);
            if !busy && (lost || !current) {
                let (began, generation) = (Instant::now(), self.bringing.generation);
                let call = Call { began, generation, thread: self.call(node, lost) };
                self.bringing.calls.insert(node, call);
            }
        }
    }

    /// All backups' daemons know this group.
    pub(super) fn all_were_told(&mut self) {
        self.bringing.told = self.guarded.backups.iter().map(|node| (*node, self.bringing.generation)).collect();
    }

    /// Whether a call is under way, or was a moment ago.
    fn finish_call(&mut self, node: u32) -> bool {
        let Some(call) = self.bringing.calls.get_mut(&node) else { return false };
        if call.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return true;
        }
        if call.thread.take().is_some_and(|thread| thread.join().unwrap_or(false)) {
            self.bringing.told.insert(node, call.generation);
        }
        call.began.elapsed() < BRING_BACK
    }

    /// In a thread of its own: a daemon that is gone takes its time to say so, and the lease does not wait.
    fn call(&self, node: u32, lost: bool) -> Option<JoinHandle<bool>> {
        let (core, machine, client) = (self.core.clone(), self.machine.clone(), self.clients.get(&node)?.clone());
        let request = core.request_to(&machine, &self.guarded, node, self.entry.register.term);
        let body = move || match core.invite(&client, &request) {
            Ok(()) => {
                if lost {
                    // What fails now is seen with the next look.
                    let _ = supervisor::command(&machine.folder, &Request::AddBackup { place: place(node) });
                }
                true
            }
            Err(error) => {
                tracing::debug!(%error, node, "a backup is out of reach");
                false
            }
        };
        std::thread::Builder::new().name("bring back".into()).spawn(body).ok()
    }

    /// Seeks daemons in the place of backups that stay away, or that were never there.
    pub(super) fn seek(&mut self, told: &control::Protection) {
        if !self.guarded.request.again {
            return;
        }
        if let Some(attempt) = self.bringing.attempt.take() {
            match attempt.answer.try_recv() {
                Err(mpsc::TryRecvError::Empty) => self.bringing.attempt = Some(attempt),
                Ok(Ok(())) => self.accept(attempt),
                Ok(Err(problem)) => self.refused(&attempt.address, &problem.detail),
                Err(mpsc::TryRecvError::Disconnected) => self.refused(&attempt.address, "it was not asked"),
            }
            return;
        }
        self.raise_acks(told);
        let gone = self.bringing.away.iter().find(|(_, since)| since.elapsed() > AWAY).map(|(node, _)| *node);
        let missing = self.guarded.backups.len() < self.guarded.wanted();
        if !missing && gone.is_none() {
            (self.bringing.next, self.bringing.attempts) = (None, 0);
            self.machine.lock().seeking = None;
            return;
        }
        if self.bringing.next.is_none_or(|(at, _)| Instant::now() >= at) {
            self.begin_attempt(gone.filter(|_| !missing));
        }
    }

    /// More copies are there than must have what leaves, and more were asked for.
    fn raise_acks(&self, told: &control::Protection) {
        let whole = told.backups.iter().filter(|backup| backup.failed.is_none() && backup.epoch.is_some()).count();
        let possible = self.guarded.acks().min(whole);
        if told.counts() && self.entry.register.acks < possible {
            let _ = supervisor::command(&self.machine.folder, &Request::Acks { acks: possible });
        }
    }

    fn begin_attempt(&mut self, replaces: Option<u32>) {
        let pause = self.bringing.next.map_or(PAUSES[0], |(_, pause)| (pause * 2).min(PAUSES[1]));
        self.bringing.next = Some((Instant::now() + pause, pause));
        let known = self.guarded.request.backups.iter().chain(&self.guarded.spares).cloned().collect::<Vec<_>>();
        let keeps = |address: &BackupAddress| self.guarded.request.backups.iter().any(|one| one.to == address.to);
        let candidates: Vec<BackupAddress> =
            self.core.candidates(&known).into_iter().filter(|address| !keeps(address)).collect();
        if candidates.is_empty() {
            self.say_why("a copy is out of reach, and no other daemon is known that could keep one".into());
            return;
        }
        let address = candidates[self.bringing.attempts % candidates.len()].clone();
        self.bringing.attempts += 1;
        match self.ask(&address, replaces) {
            Ok(attempt) => self.bringing.attempt = attempt,
            Err(problem) => self.refused(&address, &problem.detail),
        }
    }

    /// Takes a number for a daemon, and asks it; `None` if the register has changed meanwhile.
    fn ask(&mut self, address: &BackupAddress, replaces: Option<u32>) -> Result<Option<Attempt>, Problem> {
        let client = Arc::new(self.core.client_of(address)?);
        let mut next = self.entry.next(self.entry.register.clone());
        let numbers = next.take_numbers(1);
        let Some(node) = numbers.first().copied().filter(|_| self.replace_entry(next)) else { return Ok(None) };
        let mut group = self.guarded.clone();
        group.add(node, address.clone(), replaces);
        let request = self.core.request_to(&self.machine, &group, node, self.entry.register.term);
        let (told, answer) = mpsc::channel();
        let (core, asked) = (self.core.clone(), client.clone());
        let body = move || drop(told.send(core.invite(&asked, &request)));
        // Without a thread, the answer is that nobody was asked.
        let _ = std::thread::Builder::new().name("seek".into()).spawn(body);
        Ok(Some(Attempt { node, address: address.clone(), client, replaces, answer }))
    }

    /// A daemon has made ready: it keeps a copy from now on.
    fn accept(&mut self, attempt: Attempt) {
        let Attempt { node, address, client, replaces, .. } = attempt;
        let relay = match self.relay(node, &client) {
            Ok(relay) => relay,
            Err(problem) => return self.refused(&address, &problem.detail),
        };
        tracing::info!(vm = self.machine.id, node, to = address.to, ?replaces, "another daemon keeps a copy");
        self.relays.insert(node, relay);
        self.clients.insert(node, client);
        self.guarded.add(node, address, replaces);
        if let Some(gone) = replaces {
            self.relays.remove(&gone);
            self.clients.remove(&gone);
            self.bringing.away.remove(&gone);
        }
        self.bringing.generation += 1;
        let guarded = self.guarded.clone();
        let note = |record: &mut VmRecord| {
            if let Some(noted) = &mut record.protection {
                *noted = super::Guarded { ending: noted.ending, ..guarded };
            }
        };
        if let Err(problem) = self.core.amend(&self.machine, note, |_, _| Ok(())) {
            tracing::error!(%problem, vm = self.machine.id, "the next daemon does not know of a backup");
        }
        let added = supervisor::command(&self.machine.folder, &Request::AddBackup { place: place(node) });
        if let Err(problem) = added {
            tracing::warn!(%problem, node, "the process does not take a backup");
        }
        // The next one need not wait.
        self.bringing.next = None;
    }

    fn refused(&self, address: &BackupAddress, why: &str) {
        self.say_why(format!("{}: {why}", address.to));
    }

    fn say_why(&self, why: String) {
        let mut inner = self.machine.lock();
        if inner.seeking.as_deref() != Some(&why) {
            tracing::warn!(vm = self.machine.id, why, "fewer daemons keep copies than should");
            inner.seeking = Some(why);
        }
    }
}

impl super::Guarded {
    /// Another daemon keeps a copy, perhaps instead of one that is known from now on only.
    fn add(&mut self, node: u32, address: BackupAddress, replaces: Option<u32>) {
        self.spares.retain(|spare| spare.to != address.to);
        if let Some(index) = self.backups.iter().position(|other| Some(*other) == replaces) {
            self.backups.remove(index);
            self.spares.push(self.request.backups.remove(index));
        }
        self.backups.push(node);
        self.request.backups.push(address);
    }
}

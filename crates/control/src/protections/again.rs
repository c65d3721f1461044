//! A machine that goes on here is protected again, in the way it was: the owner before has told each backup how.
//!
//! Who can be asked is asked, until at least one daemon keeps a copy; the [warden](super::owner) brings the others. What is to be done
//! is noted with the machine, so that the next daemon does it, too. It ends with `unprotect`, and with the machine.

use std::sync::Arc;
use std::time::Duration;

use queztl_api::{BackupAddress, Code, EventKind, Problem, ProtectRequest, ProtectionState};

use super::owner::{Warden, first_entry};
use super::{Guarded, register};
use crate::manager::Core;
use crate::vms::Machine;

/// Between two attempts: at first, and at most.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(10)];
/// Between two looks at whether it is still wanted.
const LOOK: Duration = Duration::from_millis(100);

/// A daemon that keeps a copy from now on.
type Invited = (u32, BackupAddress);

impl Core {
    /// Begins to protect a machine again, if that is noted; tries until it has begun.
    pub(crate) fn protect_again(self: &Arc<Self>, machine: &Arc<Machine>) {
        if wish(machine).is_none() {
            return;
        }
        self.note_protection(machine, ProtectionState::Seeking);
        let (core, seeker) = (self.clone(), machine.clone());
        let body = move || core.seek(&seeker);
        if let Err(error) = std::thread::Builder::new().name("protect again".into()).spawn(body) {
            tracing::error!(%error, vm = machine.id, "the machine is not protected again");
        }
    }

    fn seek(self: &Arc<Self>, machine: &Arc<Machine>) {
        let mut pause = PAUSES[0];
        while let Some(request) = wish(machine).filter(|_| !self.is_closed()) {
            if machine.lock().live.is_none() {
                std::thread::sleep(LOOK);
                continue;
            }
            match self.begin_again(machine, request) {
                Ok(()) => return,
                Err(problem) => {
                    tracing::warn!(%problem, vm = machine.id, "the machine is not protected again yet");
                    machine.lock().seeking = Some(problem.detail);
                }
            }
            let mut left = pause;
            while !left.is_zero() && !self.is_closed() && wish(machine).is_some() {
                std::thread::sleep(left.min(LOOK));
                left = left.saturating_sub(LOOK);
            }
            pause = (pause * 2).min(PAUSES[1]);
        }
    }

    /// Finds daemons that keep copies, and has the process begin.
    fn begin_again(self: &Arc<Self>, machine: &Arc<Machine>, request: ProtectRequest) -> Result<(), Problem> {
        self.check_copyable(machine)?;
        let mut candidates = self.candidates(&request.backups);
        if candidates.is_empty() {
            return Err(Problem::new(Code::State, "no other daemon is known that could keep a copy"));
        }
        candidates.truncate(16);
        let store = register::open(&request.register)?;
        let (node, entry, numbers) = first_entry(&*store, &machine.record(), request.lease_ms, candidates.len())?;
        let all = Guarded {
            request: ProtectRequest { backups: candidates, ..request.clone() },
            node,
            backups: numbers,
            spares: Vec::new(),
            ending: false,
        };
        let invited = self.invite_enough(machine, &all, entry.register.term, request.backup_count)?;
        let (numbers, backups): (Vec<u32>, Vec<BackupAddress>) = invited.into_iter().unzip();
        let spares = all.request.backups.iter().chain(&request.backups);
        let spares = spares.filter(|spare| backups.iter().all(|backup| backup.to != spare.to)).cloned().collect();
        let guarded =
            Guarded { request: ProtectRequest { backups, ..request.clone() }, backups: numbers, spares, ..all };
        let warden = Warden::new(self, machine, store, entry, guarded.clone(), Some(ProtectionState::Seeking))?;
        let begun = self.take_up(machine, guarded).and_then(|()| warden.begin_process());
        if let Err(problem) = begun {
            warden.dismiss_backups();
            self.note_again(machine, request);
            return Err(problem);
        }
        machine.lock().seeking = None;
        warden.spawn()
    }

    /// As many as are wanted of those that can be asked, or at least one.
    fn invite_enough(
        &self,
        machine: &Arc<Machine>,
        all: &Guarded,
        term: u64,
        wanted: Option<u32>,
    ) -> Result<Vec<Invited>, Problem> {
        let wanted = wanted.map_or(1, |count| count as usize).max(1);
        let (mut invited, mut refusals) = (Vec::new(), Vec::new());
        let mut left: Vec<Invited> = all.places().map(|(node, address)| (node, address.clone())).collect();
        while invited.len() < wanted && !left.is_empty() {
            let batch: Vec<Invited> = left.drain(..left.len().min(wanted - invited.len())).collect();
            for (place, answer) in self.invite_all(machine, all, term, batch) {
                match answer {
                    Ok(()) => invited.push(place),
                    Err(problem) => refusals.push(format!("{}: {}", place.1.to, problem.detail)),
                }
            }
        }
        match invited.is_empty() {
            true => Err(Problem::new(Code::Host, refusals.join("; "))),
            false => Ok(invited),
        }
    }

    fn invite_all(
        &self,
        machine: &Machine,
        all: &Guarded,
        term: u64,
        batch: Vec<Invited>,
    ) -> Vec<(Invited, Result<(), Problem>)> {
        let invite = |(node, address): &Invited| {
            let client = self.client_of(address)?;
            self.invite(&client, &self.request_to(machine, all, *node, term))
        };
        std::thread::scope(|scope| {
            let asked: Vec<_> = batch.iter().map(|place| scope.spawn(move || invite(place))).collect();
            let lost = |_| Err(Problem::new(Code::Internal, "the question was not asked"));
            let answers: Vec<_> = asked.into_iter().map(|asked| asked.join().unwrap_or_else(lost)).collect();
            batch.clone().into_iter().zip(answers).collect()
        })
    }

    /// Notes that a machine is protected, unless that is not wanted any more.
    fn take_up(&self, machine: &Machine, guarded: Guarded) -> Result<(), Problem> {
        let mut wanted = false;
        let note = |record: &mut crate::vms::VmRecord| {
            wanted = record.again.is_some() && record.protection.is_none() && !record.deleting;
            if wanted {
                (record.protection, record.again) = (Some(guarded), None);
            }
        };
        self.amend(machine, note, |_, _| Ok(()))?;
        wanted.then_some(()).ok_or_else(|| Problem::new(Code::Cancelled, "it is not to be protected any more"))
    }

    /// Notes that a machine is not protected, but is to be.
    pub(super) fn note_again(&self, machine: &Machine, request: ProtectRequest) {
        let note = |record: &mut crate::vms::VmRecord| {
            if record.protection.take().is_some_and(|guarded| !guarded.ending) {
                record.again = Some(request);
            }
        };
        if let Err(problem) = self.amend(machine, note, |_, _| Ok(())) {
            tracing::error!(%problem, vm = machine.id, "it cannot be noted that a machine is to be protected again");
        }
    }

    /// Tells that a machine's protection is in another state.
    pub(super) fn note_protection(&self, machine: &Machine, state: ProtectionState) {
        let name = machine.record().name.to_string();
        let what = match state {
            ProtectionState::Off => "is not protected any more",
            ProtectionState::Seeking => "runs without protection: daemons are sought that keep copies of it",
            ProtectionState::Copying => "runs without protection until the first copies are whole",
            ProtectionState::Protected => "is protected",
            ProtectionState::Degraded => "runs without protection: copies are out of reach",
            ProtectionState::Fenced => "is another daemon's",
        };
        let message = format!("virtual machine {name} {what}");
        let kind = EventKind::ProtectionChanged { vm: machine.id.clone(), name, state };
        if let Err(problem) = self.store.write(|change| Ok(change.event(kind, message)?)) {
            tracing::warn!(%problem, vm = machine.id, "an event is not noted");
        }
    }
}

/// How a machine that runs here is to be protected again, if it is.
pub(super) fn wish(machine: &Machine) -> Option<ProtectRequest> {
    let inner = machine.lock();
    let free = !inner.deleted && !inner.record.deleting && !inner.record.arriving && inner.record.protection.is_none();
    inner.record.again.clone().filter(|_| free)
}

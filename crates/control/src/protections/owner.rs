//! The primary's daemon: keeps the lease, writes the register, brings backups back.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use queztl_api::{
    BackupOrder, BackupPeer, BackupState, Code, EndingReason, Problem, ProtectRequest, Protection, ProtectionMode,
    ProtectionState, ReceiveRequest,
};
use queztl_client::Client;
use queztl_distributed_ram::{Phase, Register};
use queztl_vmm::control::{self, BackupPlace, Client as Process, ProtectOrder, RegisterWish, Request, ThrottleOrder};

use super::register::{self, Entry, Store};
use super::signs::SIGNS;
use super::{Guarded, there};
use crate::manager::Core;
use crate::migrations::Relay;
use crate::supervisor;
use crate::vms::lifecycle::Command;
use crate::vms::{Machine, VmRecord};

/// Between two attempts to bring a backup back.
const BRING_BACK: Duration = Duration::from_secs(1);
/// How long the end of a protection may take.
const END_LIMIT: Duration = Duration::from_secs(10);
/// How long connections may take to end when the daemon does.
const GOODBYES: Duration = Duration::from_millis(500);
/// Between two looks at a register that nothing depends on any more.
const LOOK: Duration = Duration::from_millis(100);

impl Core {
    /// Begins to copy a machine to other daemons.
    pub(crate) fn protect(self: &Arc<Self>, vm: &str, request: ProtectRequest) -> Result<Protection, Problem> {
        let request = self.complete(request)?;
        check(&request)?;
        let machine = self.machines.find(vm)?;
        machine.admit(Command::Snapshot)?;
        let record = machine.record();
        self.check_copyable(&machine)?;
        if record.protection.is_some() {
            let text = format!("{:?} is protected already: unprotect it first", record.name.as_str());
            return Err(Problem::new(Code::State, text));
        }
        let store = register::open(&request.register)?;
        let (node, entry) = first_entry(&*store, &record, request.lease_ms)?;
        let backups: Vec<u32> = (0..).filter(|other| *other != node).take(request.backups.len()).collect();
        let guarded = Guarded { request, node, backups, ending: false };
        let warden = Warden::new(self, &machine, store, entry, guarded.clone())?;
        self.amend(&machine, |record| record.protection = Some(guarded.clone()), |_, _| Ok(()))?;
        if let Err(problem) = warden.begin() {
            warden.dismiss_backups();
            self.amend(&machine, |record| record.protection = None, |_, _| Ok(()))?;
            return Err(problem);
        }
        warden.spawn()?;
        self.protection(vm)
    }

    /// How a machine's protection goes.
    pub(crate) fn protection(&self, vm: &str) -> Result<Protection, Problem> {
        let machine = self.machines.find(vm)?;
        let record = machine.record();
        let Some(guarded) = &record.protection else {
            return Err(Problem::new(Code::State, format!("{:?} is not protected", record.name.as_str())));
        };
        let told = Process::connect(&machine.folder.control()).and_then(|mut process| process.protection());
        Ok(described(&told.map_err(|error| supervisor::refusal(&error))?, guarded))
    }

    /// Ends a machine's protection; it goes on.
    pub(crate) fn unprotect(self: &Arc<Self>, vm: &str) -> Result<(), Problem> {
        let machine = self.machines.find(vm)?;
        if machine.record().protection.is_none() {
            return Err(Problem::new(Code::State, format!("{:?} is not protected", machine.record().name.as_str())));
        }
        let end = |record: &mut VmRecord| {
            record.protection.iter_mut().for_each(|guarded| guarded.ending = true);
        };
        self.amend(&machine, end, |_, _| Ok(()))?;
        let deadline = Instant::now() + END_LIMIT;
        while machine.record().protection.is_some() {
            if Instant::now() > deadline {
                let text =
                    "the register does not say yet that the machine is on its own: it is tried again until it does";
                return Err(Problem::new(Code::Timeout, text));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// A machine that was protected when the daemon before ended: its protection goes on, or somebody else has it.
    pub(crate) fn recover_protection(self: &Arc<Self>, machine: &Arc<Machine>) -> Result<(), Problem> {
        let Some(guarded) = machine.record().protection else { return Ok(()) };
        let store = register::open(&guarded.request.register)?;
        let entry = Entry::new(Register::new(guarded.node), guarded.request.lease_ms);
        Warden::new(self, machine, store, entry, guarded)?.spawn()
    }
}

fn check(request: &ProtectRequest) -> Result<(), Problem> {
    let count = request.backups.len();
    let acks = request.acks.map_or(count, |acks| acks as usize);
    let rules = [
        ((1..=8).contains(&count), "backups", "are 1 to 8"),
        ((1..=count).contains(&acks), "acks", "is at least 1, and no more than there are backups"),
        ((1..=16).contains(&request.stripes), "stripes", "is from 1 to 16"),
        (request.throttle_threshold < 100, "throttle_threshold", "is from 0 to 99"),
        (request.max_throttle < 100, "max_throttle", "is from 0 to 99"),
        (request.curve.len() <= 32 << 10, "curve", "has 32 KiB at most"),
        ((100..=60_000).contains(&request.lease_ms), "lease_ms", "is from 100 to 60000"),
        ((20..=60_000).contains(&request.silence_ms), "silence_ms", "is from 20 to 60000"),
        (request.interval_ms.is_none_or(|ms| (1..=10_000).contains(&ms)), "interval_ms", "is from 1 to 10000"),
        ((1 << 16..=1 << 32).contains(&request.buffer_bytes), "buffer_bytes", "is from 64 KiB to 4 GiB"),
    ];
    match rules.into_iter().find(|(holds, ..)| !holds) {
        Some((_, field, what)) => Err(Problem::invalid(field, what)),
        None => Ok(()),
    }
}

/// This daemon's number, and what the register says; which is made if there is none.
fn first_entry(store: &dyn Store, record: &VmRecord, lease_ms: u32) -> Result<(u32, Entry), Problem> {
    let failed = |error: register::StoreError| Problem::new(Code::Host, error.to_string());
    let node = record.node.unwrap_or(0);
    let before = store.read(&record.id).map_err(failed)?;
    let register = match &before {
        None => Register::new(node),
        Some(entry) if entry.register.owner == node && entry.register.phase == Phase::Alone => entry.register.clone(),
        Some(_) => {
            let text =
                "the register says that another daemon has the machine: use the one that has it, or another register";
            return Err(Problem::new(Code::State, text));
        }
    };
    let renewal = before.as_ref().map_or(0, |entry| entry.renewal + 1);
    let entry = Entry { renewal, ..Entry::new(register, lease_ms) };
    match store.swap(&record.id, before.as_ref(), &entry).map_err(failed)? {
        true => Ok((node, entry)),
        false => Err(Problem::new(Code::Busy, "somebody else has changed the register: try again")),
    }
}

/// Looks after one protection.
struct Warden {
    core: Arc<Core>,
    machine: Arc<Machine>,
    store: Box<dyn Store>,
    entry: Entry,
    guarded: Guarded,
    clients: BTreeMap<u32, Arc<Client>>,
    relays: BTreeMap<u32, Relay>,
    renewed: Option<Instant>,
    tried: BTreeMap<u32, Instant>,
}

/// What becomes of a protection.
enum Turn {
    GoesOn,
    /// The machine is not protected any more; perhaps it has ended.
    Over,
    /// Another daemon has the machine.
    Lost,
}

impl Warden {
    fn new(
        core: &Arc<Core>,
        machine: &Arc<Machine>,
        store: Box<dyn Store>,
        entry: Entry,
        guarded: Guarded,
    ) -> Result<Warden, Problem> {
        let mut clients = BTreeMap::new();
        let mut relays = BTreeMap::new();
        let beat = Duration::from_millis(guarded.request.silence_ms.into()) / SIGNS;
        let _runtime = core.runtime.enter();
        for (node, address) in guarded.places() {
            let client = Arc::new(core.client_of_known(address)?);
            let socket = machine.folder.path().join(socket(node));
            let relay = Relay::start(&socket, client.clone(), machine.id.clone(), Some(beat))?;
            relays.insert(node, relay);
            clients.insert(node, client);
        }
        let (core, machine) = (core.clone(), machine.clone());
        Ok(Warden { core, machine, store, entry, guarded, clients, relays, renewed: None, tried: BTreeMap::new() })
    }

    /// Has the backups make ready, and the process begin.
    fn begin(&self) -> Result<(), Problem> {
        for node in self.guarded.backups.iter().copied() {
            self.expect(node).map_err(|error| there(&error))?;
        }
        let request = &self.guarded.request;
        let order = ProtectOrder {
            register: self.entry.register.clone(),
            backups: self.guarded.backups.iter().map(|node| place(*node)).collect(),
            acks: request.acks.map_or(request.backups.len(), |acks| acks as usize),
            mode: match request.mode {
                ProtectionMode::Pause => control::ProtectionMode::Pause,
                ProtectionMode::BestEffort => control::ProtectionMode::BestEffort,
            },
            interval_ms: request.interval_ms.map(u64::from),
            buffer_bytes: request.buffer_bytes,
            stripes: request.stripes,
            patience_ms: u64::from(request.lease_ms) * 2,
            throttle: ThrottleOrder {
                threshold_percent: request.throttle_threshold,
                max_percent: request.max_throttle,
                curve: request.curve.clone(),
            },
            base: 0,
        };
        supervisor::command(&self.machine.folder, &Request::Protect { order: Box::new(order) })
    }

    /// Has a backup wait for the machine.
    fn expect(&self, node: u32) -> Result<(), queztl_client::Error> {
        let record = self.machine.record();
        let peer = |(node, address): (u32, &queztl_api::BackupAddress)| BackupPeer { node, address: address.clone() };
        let order = BackupOrder {
            node,
            register: self.guarded.request.register.clone(),
            lease_ms: self.guarded.request.lease_ms,
            silence_ms: self.guarded.request.silence_ms,
            peers: self.guarded.places().filter(|(other, _)| *other != node).map(peer).collect(),
        };
        let receive = ReceiveRequest {
            id: record.id,
            name: record.name,
            spec: record.spec,
            macs: record.macs.iter().map(ToString::to_string).collect(),
            shared: Vec::new(),
            backup: Some(order),
        };
        let client = &self.clients[&node];
        self.core.runtime.block_on(client.receive(&receive)).map(drop)
    }

    fn dismiss_backups(&self) {
        for (node, client) in &self.clients {
            if let Err(error) = self.core.runtime.block_on(client.forget_incoming(&self.machine.id)) {
                tracing::warn!(%error, node, "a daemon may keep a copy that is of no use any more");
            }
        }
    }

    fn spawn(mut self) -> Result<(), Problem> {
        let thread = std::thread::Builder::new().name("protection".into()).spawn(move || self.run());
        thread.map(drop).map_err(|error| Problem::new(Code::Host, format!("no thread for a protection: {error}")))
    }

    fn run(&mut self) {
        let often = u64::from(self.guarded.request.silence_ms.min(self.guarded.request.lease_ms)) / 10;
        let pause = Duration::from_millis(often).clamp(Duration::from_millis(5), LOOK / 2);
        while !self.core.is_closed() {
            let lives = self.machine.lock().live.is_some();
            let turn = if lives { self.turn() } else { self.after_the_end() };
            match turn {
                // The end of the process is no time to sleep.
                Turn::GoesOn if lives => drop(self.machine.wait(pause, |inner| inner.live.is_none().then_some(()))),
                Turn::GoesOn => std::thread::sleep(Duration::from_millis(5)),
                Turn::Over => return self.conclude(),
                Turn::Lost => return self.give_up(),
            }
        }
        // Those that keep copies need not think that the machine is gone.
        let goodbyes = std::mem::take(&mut self.relays).into_values().map(|relay| relay.close(GOODBYES));
        self.core.runtime.block_on(futures_util::future::join_all(goodbyes));
    }

    /// The machine runs.
    fn turn(&mut self) -> Turn {
        let Ok(told) = Process::connect(&self.machine.folder.control()).and_then(|mut p| p.protection()) else {
            return Turn::GoesOn;
        };
        let ending = self.machine.record().protection.is_none_or(|guarded| guarded.ending);
        let register = match (&told.wish, ending) {
            (_, true) if told.counts() => Some(self.entry.register.expose(self.guarded.node, told.term())),
            (_, true) => return self.unprotect(),
            (Some(RegisterWish::Expose {}), _) => Some(self.entry.register.expose(self.guarded.node, told.term())),
            (Some(RegisterWish::Protect { members, acks }), _) => {
                let members = members.iter().copied().collect();
                Some(self.entry.register.protect(self.guarded.node, told.term(), members, *acks))
            }
            (None, _) => None,
        };
        let due = Duration::from_millis(u64::from(self.entry.lease_ms) / 3);
        match register {
            Some(Ok(register)) => self.write(register),
            // It has changed, and the process hears of it.
            Some(Err(_)) => self.read_again(),
            None if self.renewed.is_none_or(|renewed| renewed.elapsed() >= due) => {
                self.write(self.entry.register.clone())
            }
            None => {}
        }
        if self.entry.register.owner != self.guarded.node {
            return Turn::Lost;
        }
        if !ending {
            self.bring_back(&told);
        }
        Turn::GoesOn
    }

    /// Writes the register, which renews the lease, and tells the process.
    fn write(&mut self, register: Register) {
        let next = self.entry.next(register);
        match self.store.swap(&self.machine.id, Some(&self.entry), &next) {
            Ok(true) => {
                self.renewed = Some(Instant::now());
                self.entry = next;
                self.tell();
            }
            Ok(false) => self.read_again(),
            Err(error) => tracing::warn!(%error, vm = self.machine.id, "the lease is not renewed"),
        }
    }

    fn read_again(&mut self) {
        match self.store.read(&self.machine.id) {
            Ok(Some(entry)) => {
                self.entry = entry;
                self.tell();
            }
            Ok(None) => {
                tracing::error!(vm = self.machine.id, "the register is gone: nothing leaves the machine any more")
            }
            Err(error) => tracing::warn!(%error, vm = self.machine.id, "the register cannot be read"),
        }
    }

    fn tell(&self) {
        let request = Request::Adopt { register: self.entry.register.clone() };
        if let Err(problem) = supervisor::command(&self.machine.folder, &request) {
            tracing::debug!(%problem, "the process does not hear what the register says");
        }
    }

    /// Backups whose connection is lost are asked to make ready again.
    fn bring_back(&mut self, told: &control::Protection) {
        let lost: Vec<u32> = told.backups.iter().filter(|b| b.failed.is_some()).map(|backup| backup.node).collect();
        // After a restart of the daemon, the process knows only those that it has lost.
        for node in lost {
            if self.tried.get(&node).is_some_and(|tried| tried.elapsed() < BRING_BACK) {
                continue;
            }
            self.tried.insert(node, Instant::now());
            self.call_again(node);
        }
    }

    /// In a thread of its own: a daemon that is gone takes its time to say so, and the lease does not wait.
    fn call_again(&self, node: u32) {
        let (core, machine, store) = (self.core.clone(), self.machine.clone(), self.guarded.request.register.clone());
        let (entry, guarded, clients) = (self.entry.clone(), self.guarded.clone(), self.clients.clone());
        let body = move || {
            let Ok(store) = register::open(&store) else { return };
            let (relays, tried) = (BTreeMap::new(), BTreeMap::new());
            let folder = machine.folder.clone();
            let caller = Warden { core, machine, store, entry, guarded, clients, relays, renewed: None, tried };
            let expected = match caller.expect(node) {
                // It has waited all the time.
                Err(error) if error.problem().is_some_and(|problem| problem.code == Code::Exists) => Ok(()),
                other => other,
            };
            match expected {
                Ok(()) => drop(supervisor::command(&folder, &Request::AddBackup { place: place(node) })),
                Err(error) => tracing::debug!(%error, node, "a backup is still out of reach"),
            }
        };
        let _ = std::thread::Builder::new().name("bring back".into()).spawn(body);
    }

    /// The register says that the machine is on its own.
    fn unprotect(&mut self) -> Turn {
        match supervisor::command(&self.machine.folder, &Request::Unprotect {}) {
            Ok(()) => Turn::Over,
            Err(problem) if problem.code == Code::Invalid => Turn::Over,
            Err(_) => Turn::GoesOn,
        }
    }

    /// The machine's process has ended.
    fn after_the_end(&mut self) -> Turn {
        let reason = self.machine.record().ended.map(|ended| ended.reason);
        let Ok(Some(entry)) = self.store.read(&self.machine.id) else { return Turn::GoesOn };
        if entry.register.owner != self.guarded.node {
            return Turn::Lost;
        }
        self.entry = entry;
        let term = self.entry.register.term;
        let failed =
            matches!(reason, Some(EndingReason::ProcessFailed | EndingReason::Confinement | EndingReason::Moved));
        let next = match (failed, self.entry.register.phase) {
            (true, Phase::Protected) if self.entry.over => None,
            // Nothing of it leaves any more: nobody need wait.
            (true, Phase::Protected) => Some(Entry { over: true, ..self.entry.next(self.entry.register.clone()) }),
            (false, Phase::Protected) => {
                self.entry.register.expose(self.guarded.node, term).ok().map(|register| self.entry.next(register))
            }
            _ => return Turn::Over,
        };
        if let Some(next) = next {
            let _ = self.store.swap(&self.machine.id, Some(&self.entry), &next);
        }
        Turn::GoesOn
    }

    /// There is no protection any more.
    fn conclude(&mut self) {
        self.dismiss_backups();
        self.relays.clear();
        if self.machine.lock().deleted {
            return;
        }
        if let Err(problem) = self.core.amend(&self.machine, |record| record.protection = None, |_, _| Ok(())) {
            tracing::error!(%problem, vm = self.machine.id, "the end of a protection cannot be noted");
        }
    }

    /// Another daemon has the machine: here it is forgotten.
    fn give_up(&mut self) {
        tracing::warn!(vm = self.machine.id, term = self.entry.register.term, "another daemon has taken the machine");
        self.relays.clear();
        let ended = self.core.end_process(&self.machine).and_then(|()| self.core.remove(&self.machine));
        if let Err(problem) = ended {
            tracing::error!(%problem, vm = self.machine.id, "a machine that another daemon has is left behind");
        }
    }
}

fn socket(node: u32) -> PathBuf {
    format!("backup-{node}.sock").into()
}

fn place(node: u32) -> BackupPlace {
    BackupPlace { node, socket: socket(node) }
}

fn described(told: &control::Protection, guarded: &Guarded) -> Protection {
    let state = match told.state {
        control::ProtectionState::Off => ProtectionState::Off,
        control::ProtectionState::Copying => ProtectionState::Copying,
        control::ProtectionState::Protected => ProtectionState::Protected,
        control::ProtectionState::Degraded => ProtectionState::Degraded,
        control::ProtectionState::Fenced => ProtectionState::Fenced,
    };
    let backup = |(node, address): (u32, &queztl_api::BackupAddress)| {
        let known = told.backups.iter().find(|backup| backup.node == node);
        BackupState {
            to: address.to.clone(),
            epoch: known.and_then(|backup| backup.epoch),
            round_trip_ns: known.map_or(0, |backup| backup.round_trip_ns),
            behind_ns: known.map_or(0, |backup| backup.behind_ns),
            failed: known.and_then(|backup| backup.failed.clone()),
        }
    };
    let (mode, backups) = (guarded.request.mode, guarded.backups.len());
    Protection {
        state,
        mode,
        acks: guarded.request.acks.unwrap_or(u32::try_from(backups).unwrap_or(u32::MAX)),
        term: told.term(),
        epoch: told.epoch,
        released: told.released,
        interval_ns: told.interval_ns,
        pause_ns: told.pause_ns,
        lag_ns: told.lag_ns,
        epoch_bytes: told.epoch_bytes,
        data_bytes: told.data_bytes,
        wire_bytes: told.wire_bytes,
        waiting_bytes: told.waiting_bytes,
        buffer_bytes: guarded.request.buffer_bytes,
        dropped_frames: told.dropped_frames,
        throttle_percent: told.throttle_percent,
        stalled: told.stalled,
        backups: guarded.places().map(backup).collect(),
    }
}

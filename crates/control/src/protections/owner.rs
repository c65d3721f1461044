//! The primary's daemon: keeps the lease, writes the register, brings backups back.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use queztl_api::{
    BackupState, Code, EndingReason, Problem, ProtectRequest, Protection, ProtectionMode, ProtectionState,
};
use queztl_client::Client;
use queztl_distributed_ram::{Phase, Register};
use queztl_vmm::control::{self, BackupPlace, Client as Process, ProtectOrder, RegisterWish, Request, ThrottleOrder};

use super::Guarded;
use super::again::wish;
use super::bring::Bringing;
use super::register::{self, Entry, Store};
use super::signs::SIGNS;
use crate::manager::Core;
use crate::migrations::Relay;
use crate::supervisor;
use crate::vms::lifecycle::Command;
use crate::vms::{Machine, VmRecord};

/// How long the end of a protection may take.
const END_LIMIT: Duration = Duration::from_secs(10);
/// How long connections may take to end when the daemon does.
const GOODBYES: Duration = Duration::from_millis(500);
/// How long a daemon may take to forget a copy.
const FORGETTING: Duration = Duration::from_secs(2);
/// Between two looks at a register that nothing depends on any more.
const LOOK: Duration = Duration::from_millis(100);

impl Core {
    /// Begins to copy a machine to other daemons.
    pub(crate) fn protect(self: &Arc<Self>, vm: &str, request: ProtectRequest) -> Result<Protection, Problem> {
        let (request, spares) = self.complete(request)?;
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
        let (node, entry, backups) = first_entry(&*store, &record, request.lease_ms, request.backups.len())?;
        let guarded = Guarded { request, node, backups, spares, ending: false };
        let state = Some(ProtectionState::Copying);
        let mut warden = Warden::new(self, &machine, store, entry, guarded.clone(), state)?;
        let note = |record: &mut VmRecord| (record.protection, record.again) = (Some(guarded), None);
        self.amend(&machine, note, |_, _| Ok(()))?;
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
        let seeking = machine.lock().seeking.clone();
        let Some(guarded) = &record.protection else {
            let wish = wish(&machine)
                .ok_or_else(|| Problem::new(Code::State, format!("{:?} is not protected", record.name.as_str())))?;
            let seeking = seeking.unwrap_or_else(|| "daemons that could keep one are asked".into());
            let nobody = Guarded { request: wish, node: 0, backups: Vec::new(), spares: Vec::new(), ending: false };
            let described = described(&control::Protection::default(), &nobody, Some(seeking));
            return Ok(Protection { state: ProtectionState::Seeking, ..described });
        };
        let told = Process::connect(&machine.folder.control()).and_then(|mut process| process.protection());
        Ok(described(&told.map_err(|error| supervisor::refusal(&error))?, guarded, seeking))
    }

    /// Ends a machine's protection; it goes on.
    pub(crate) fn unprotect(self: &Arc<Self>, vm: &str) -> Result<(), Problem> {
        let machine = self.machines.find(vm)?;
        if machine.record().protection.is_none() && wish(&machine).is_none() {
            return Err(Problem::new(Code::State, format!("{:?} is not protected", machine.record().name.as_str())));
        }
        let end = |record: &mut VmRecord| {
            record.again = None;
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
        let told = Process::connect(&machine.folder.control()).and_then(|mut process| process.protection());
        let unheard = told.is_ok_and(|told| told.state == control::ProtectionState::Off);
        if unheard && guarded.request.again && !guarded.ending {
            // The daemon ended before it had told the process.
            self.note_again(machine, guarded.wish());
            return Ok(());
        }
        let store = register::open(&guarded.request.register)?;
        let entry = Entry::new(Register::new(guarded.node), guarded.request.lease_ms);
        Warden::new(self, machine, store, entry, guarded, None)?.spawn()
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

/// This daemon's number, what the register says, and the numbers of so many backups. The register is made if there is none.
pub(super) fn first_entry(
    store: &dyn Store,
    record: &VmRecord,
    lease_ms: u32,
    backups: usize,
) -> Result<(u32, Entry, Vec<u32>), Problem> {
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
    let next_node = before.as_ref().map_or(0, |entry| entry.next_node);
    let mut entry = Entry { renewal, next_node, ..Entry::new(register, lease_ms) };
    let numbers = entry.take_numbers(backups);
    match store.swap(&record.id, before.as_ref(), &entry).map_err(failed)? {
        true => Ok((node, entry, numbers)),
        false => Err(Problem::new(Code::Busy, "somebody else has changed the register: try again")),
    }
}

/// Looks after one protection.
pub(super) struct Warden {
    pub core: Arc<Core>,
    pub machine: Arc<Machine>,
    store: Box<dyn Store>,
    pub entry: Entry,
    pub guarded: Guarded,
    pub clients: BTreeMap<u32, Arc<Client>>,
    pub relays: BTreeMap<u32, Relay>,
    renewed: Option<Instant>,
    pub bringing: Bringing,
    /// What was told of last.
    state: Option<ProtectionState>,
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
    /// With connections to those that keep copies; `state` is what is known of the protection.
    pub(super) fn new(
        core: &Arc<Core>,
        machine: &Arc<Machine>,
        store: Box<dyn Store>,
        entry: Entry,
        guarded: Guarded,
        state: Option<ProtectionState>,
    ) -> Result<Warden, Problem> {
        let mut warden = Warden {
            core: core.clone(),
            machine: machine.clone(),
            store,
            entry,
            guarded,
            clients: BTreeMap::new(),
            relays: BTreeMap::new(),
            renewed: None,
            bringing: Bringing::default(),
            state,
        };
        for (node, address) in warden.guarded.clone().places() {
            let client = Arc::new(core.client_of_known(address)?);
            let relay = warden.relay(node, &client)?;
            warden.relays.insert(node, relay);
            warden.clients.insert(node, client);
        }
        Ok(warden)
    }

    /// Where the process finds a backup.
    pub(super) fn relay(&self, node: u32, client: &Arc<Client>) -> Result<Relay, Problem> {
        let beat = Duration::from_millis(self.guarded.request.silence_ms.into()) / SIGNS;
        let _runtime = self.core.runtime.enter();
        let socket = self.machine.folder.path().join(socket(node));
        Relay::start(&socket, client.clone(), self.machine.id.clone(), Some(beat))
    }

    /// Has the backups make ready, and the process begin.
    fn begin(&mut self) -> Result<(), Problem> {
        for (node, client) in &self.clients {
            let request = self.core.request_to(&self.machine, &self.guarded, *node, self.entry.register.term);
            self.core.invite(client, &request)?;
        }
        self.all_were_told();
        self.begin_process()
    }

    /// Has the process begin, with as many acknowledgements as the backups can give.
    pub(super) fn begin_process(&self) -> Result<(), Problem> {
        let request = &self.guarded.request;
        let order = ProtectOrder {
            register: self.entry.register.clone(),
            backups: self.guarded.backups.iter().map(|node| place(*node)).collect(),
            acks: self.guarded.acks().min(self.guarded.backups.len()),
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

    pub(super) fn dismiss_backups(&self) {
        for (node, client) in &self.clients {
            let asked = async { tokio::time::timeout(FORGETTING, client.forget_incoming(&self.machine.id)).await };
            match self.core.runtime.block_on(asked) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, node, "a daemon keeps a copy for a while that is of no use"),
                Err(_) => tracing::warn!(node, "a daemon that does not answer may keep a copy for a while"),
            }
        }
    }

    pub(super) fn spawn(mut self) -> Result<(), Problem> {
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
            self.seek(&told);
        }
        let state = state(told.state);
        if self.state.replace(state).is_some_and(|before| before != state) {
            self.core.note_protection(&self.machine, state);
        }
        Turn::GoesOn
    }

    /// Writes the register, which renews the lease, and tells the process.
    fn write(&mut self, register: Register) {
        self.replace_entry(self.entry.next(register));
    }

    /// Whether the register has the new value.
    pub(super) fn replace_entry(&mut self, next: Entry) -> bool {
        match self.store.swap(&self.machine.id, Some(&self.entry), &next) {
            Ok(true) => {
                self.renewed = Some(Instant::now());
                self.entry = next;
                self.tell();
                return true;
            }
            Ok(false) => self.read_again(),
            Err(error) => tracing::warn!(%error, vm = self.machine.id, "the lease is not renewed"),
        }
        false
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
        self.machine.lock().seeking = None;
        if let Err(problem) = self.core.amend(&self.machine, |record| record.protection = None, |_, _| Ok(())) {
            tracing::error!(%problem, vm = self.machine.id, "the end of a protection cannot be noted");
        }
        self.core.note_protection(&self.machine, ProtectionState::Off);
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

pub(super) fn place(node: u32) -> BackupPlace {
    BackupPlace { node, socket: socket(node) }
}

fn state(told: control::ProtectionState) -> ProtectionState {
    match told {
        control::ProtectionState::Off => ProtectionState::Off,
        control::ProtectionState::Copying => ProtectionState::Copying,
        control::ProtectionState::Protected => ProtectionState::Protected,
        control::ProtectionState::Degraded => ProtectionState::Degraded,
        control::ProtectionState::Fenced => ProtectionState::Fenced,
    }
}

fn described(told: &control::Protection, guarded: &Guarded, seeking: Option<String>) -> Protection {
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
    let in_force = told.register.as_ref().filter(|register| register.phase == Phase::Protected);
    let acks = in_force.map_or(guarded.acks(), |register| register.acks);
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    Protection {
        state: state(told.state),
        mode: guarded.request.mode,
        acks: count(acks),
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
        wanted: count(guarded.wanted()),
        seeking,
        backups: guarded.places().map(backup).collect(),
    }
}

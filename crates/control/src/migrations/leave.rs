//! The source: a machine leaves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use queztl_api::{
    BackupAddress, BlackoutParts, Code, LateMemory, MigrateRequest, MigrationMode, MigrationReport, Operation,
    OperationKind, Problem, ReceiveRequest, SharedDisk, VmState,
};
use queztl_client::Client;
use queztl_vmm::control::{
    Blackout, Client as Process, Late, Migration, MigrationMode as Mode, MigrationPhase, Request,
};
use serde_json::json;

use super::LEAVING_SOCKET;
use super::Relay;
use crate::manager::Core;
use crate::operations::Task;
use crate::store::VMS;
use crate::supervisor;
use crate::vms::lifecycle::Command;
use crate::vms::{Claim, DiskSource, Machine, VmRecord};

/// How often the process is asked how it goes.
const TURN: Duration = Duration::from_millis(10);
/// How long a process that has moved its machine may take to end.
const END_LIMIT: Duration = Duration::from_secs(30);
/// How long between two questions to a daemon that does not answer.
const ASK_AGAIN: Duration = Duration::from_secs(1);

impl Core {
    pub(crate) fn migrate(self: &Arc<Self>, vm: &str, request: MigrateRequest) -> Result<Operation, Problem> {
        if !(1..=16).contains(&request.stripes) {
            return Err(Problem::invalid("stripes", "is from 1 to 16"));
        }
        if !(1..=100).contains(&request.max_rounds) {
            return Err(Problem::invalid("max_rounds", "is from 1 to 100"));
        }
        if !(1..=86_400).contains(&request.patience_s) {
            return Err(Problem::invalid("patience_s", "is from 1 to 86400"));
        }
        if request.mode != MigrationMode::PreCopy && !request.source_loss_accepted {
            let text = "must be true for this mode: until all memory has come, the machine is lost if either host is";
            return Err(Problem::invalid("source_loss_accepted", text));
        }
        let client = Arc::new(self.client_of(&address(&request))?);
        let machine = self.machines.find(vm)?;
        self.check_copyable(&machine)?;
        if machine.record().protection.is_some() {
            return Err(Problem::new(Code::State, format!("{vm:?} is protected: unprotect it before it moves")));
        }
        let claim = machine.claim(OperationKind::Migrate, Command::Clone)?;
        let work = machine.clone();
        let mut record = machine.record();
        record.leaving = Some(request.clone());
        self.begin(
            OperationKind::Migrate,
            Some(machine.id.clone()),
            |change| {
                change.put(VMS, &record.id, &record)?;
                machine.lock().record.leaving = record.leaving.clone();
                Ok(())
            },
            move |core, task| {
                let sent = core.send_machine(&work, &client, &request, task);
                core.conclude_departure(&work, &claim, sent)
            },
        )
    }

    /// The daemon has died while a machine was on its way from here. The connections were the dead daemon's, so that its process
    /// has given up, or handed the machine over, or is in doubt.
    pub(crate) fn recover_departure(self: &Arc<Self>, machine: &Arc<Machine>) -> Result<(), Problem> {
        let Some(request) = machine.record().leaving else { return Ok(()) };
        let client = Arc::new(self.client_of_known(&address(&request))?);
        // Whatever it is now: nobody else knows of it yet.
        let claim = machine.claim(OperationKind::Migrate, Command::Restore)?;
        let work = machine.clone();
        let finish = move |core: &Arc<Core>, task: &Task| {
            // One whose memory goes after it connects again.
            let _runtime = core.runtime.enter();
            let socket = work.folder.path().join(LEAVING_SOCKET);
            let relay = Relay::start(&socket, client.clone(), work.id.clone(), None);
            let relay = relay.inspect_err(|problem| tracing::warn!(%problem, "a machine cannot be reached again"));
            let moved = core.finish_departure(&work, &client, &request, task);
            drop(relay);
            let moved = moved.inspect_err(|_| core.call_off(&work, &client));
            core.conclude_departure(&work, &claim, moved)
        };
        self.begin(OperationKind::Migrate, Some(machine.id.clone()), |_| Ok(()), finish).map(drop)
    }

    /// A machine that has left is forgotten here; one that has not is no longer on its way.
    fn conclude_departure(
        &self,
        machine: &Machine,
        _claim: &Claim,
        moved: Result<MigrationReport, Problem>,
    ) -> Result<serde_json::Value, Problem> {
        match moved {
            Ok(report) => self.remove(machine).map(|()| json!(report)),
            Err(problem) => {
                self.amend(machine, |record| record.leaving = None, |_, _| Ok(()))?;
                Err(problem)
            }
        }
    }

    /// Whether other daemons can have copies of it.
    pub(crate) fn check_copyable(&self, machine: &Machine) -> Result<(), Problem> {
        if self.snapshots(&machine.id)?.is_empty() {
            return Ok(());
        }
        let text =
            format!("{:?} has snapshots, which do not go with it: delete them first", machine.record().name.as_str());
        Err(Problem::new(Code::State, text))
    }

    /// Brings the machine over; afterwards it has no process here.
    fn send_machine(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        client: &Arc<Client>,
        request: &MigrateRequest,
        task: &Task,
    ) -> Result<MigrationReport, Problem> {
        let record = machine.record();
        let shared = if request.shared_disks { shared_disks(&record)? } else { Vec::new() };
        let receive = ReceiveRequest {
            id: record.id.clone(),
            name: record.name,
            spec: record.spec,
            macs: record.macs.iter().map(ToString::to_string).collect(),
            shared: shared.clone(),
            backup: None,
        };
        self.runtime.block_on(client.receive(&receive)).map_err(there)?;
        let moved = self.hand_over(machine, client, request, &shared, task);
        moved.inspect_err(|_| self.call_off(machine, client))
    }

    /// The other daemon need not wait for the machine any more. If it is not told, it waits for a minute.
    fn call_off(&self, machine: &Machine, client: &Client) {
        if let Err(error) = self.runtime.block_on(client.forget_incoming(&machine.id)) {
            tracing::warn!(%error, "the other daemon may wait for the machine for a while");
        }
    }

    /// Lets the two processes speak with each other until the machine is there, or will not be.
    fn hand_over(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        client: &Arc<Client>,
        request: &MigrateRequest,
        shared: &[SharedDisk],
        task: &Task,
    ) -> Result<MigrationReport, Problem> {
        let socket = machine.folder.path().join(LEAVING_SOCKET);
        let _runtime = self.runtime.enter();
        let relay = Relay::start(&socket, client.clone(), machine.id.clone(), None)?;
        let order = Request::Migrate {
            socket: LEAVING_SOCKET.into(),
            stripes: request.stripes,
            max_rounds: request.max_rounds,
            shared: shared.iter().map(|disk| disk.index as usize).collect(),
            mode: mode(request.mode),
            patience_ms: u64::from(request.patience_s) * 1000,
        };
        supervisor::command(&machine.folder, &order)?;
        let moved = self.finish_departure(machine, client, request, task);
        drop(relay);
        let _ = std::fs::remove_file(&socket);
        moved
    }

    /// Follows a migration to its end; afterwards the machine has no process here, or runs on.
    fn finish_departure(
        &self,
        machine: &Arc<Machine>,
        client: &Client,
        request: &MigrateRequest,
        task: &Task,
    ) -> Result<MigrationReport, Problem> {
        task.cancellable(true);
        let told = loop {
            let told = self.follow(machine, client, task);
            task.cancellable(false);
            let told = told?;
            if told.phase != MigrationPhase::InDoubt {
                break told;
            }
            self.decide(machine, client)?;
            if told.late.is_none() {
                self.end_process(machine)?;
                break Migration { phase: MigrationPhase::Moved, ..told };
            }
            // Its process comes to the same answer, and goes on to send memory.
            std::thread::sleep(ASK_AGAIN);
        };
        match told.phase {
            MigrationPhase::Moved => self.gone(machine)?,
            MigrationPhase::Cancelled => return Err(Problem::new(Code::Cancelled, "the machine stays here")),
            _ => {
                let why = told.message.unwrap_or_else(|| "the process does not say why".into());
                return Err(Problem::new(Code::Host, format!("the machine stays here: {why}")));
            }
        }
        Ok(MigrationReport {
            to: request.to.clone(),
            rounds: told.round,
            data_bytes: told.data_bytes,
            wire_bytes: told.wire_bytes,
            disk_bytes: told.disk_bytes,
            total_ns: told.total_ns,
            blackout_ns: told.blackout_ns,
            blackout: parts(&told.blackout),
            pauses_ns: told.pauses_ns,
            late: told.late.as_ref().map(late),
        })
    }

    /// The machine's process ends by itself.
    fn gone(&self, machine: &Machine) -> Result<(), Problem> {
        let alive = |state| crate::vms::lifecycle::is_alive(state);
        machine.wait(END_LIMIT, |inner| (!alive(inner.state)).then_some(()));
        self.end_process(machine)
    }

    /// The last word's answer was lost: the target's daemon knows whether the machine runs there. Until it says so, the machine
    /// stands still here.
    fn decide(&self, machine: &Machine, client: &Client) -> Result<(), Problem> {
        loop {
            match self.runtime.block_on(client.vm(&machine.id)) {
                Ok(vm) if matches!(vm.state, VmState::Running | VmState::Paused) => return Ok(()),
                // It may still begin: that is known soon.
                Ok(vm) if vm.state == VmState::Starting => {}
                Ok(_) => break,
                Err(error) if error.problem().is_some_and(|problem| problem.code == Code::NotFound) => break,
                Err(error) => tracing::warn!(%error, vm = machine.id, "in doubt where the machine is: asking again"),
            }
            std::thread::sleep(ASK_AGAIN);
        }
        supervisor::command(&machine.folder, &Request::Resume {})?;
        Err(Problem::new(Code::Host, "the machine stays here: the connection was lost when it was handed over"))
    }

    /// A machine that runs at the target and lacks memory from here: has it ended there?
    fn check_runs_there(&self, machine: &Machine, client: &Client) -> Result<(), Problem> {
        let why = match self.runtime.block_on(client.vm(&machine.id)) {
            Ok(vm) => match (vm.state, vm.ended) {
                (VmState::Running | VmState::Paused | VmState::Starting, _) => return Ok(()),
                (_, Some(ended)) => ended.message,
                (_, None) => "it does not run there".to_owned(),
            },
            Err(error) if error.problem().is_some_and(|problem| problem.code == Code::NotFound) => {
                "nobody knows it there any more".to_owned()
            }
            // As long as it is not known, what is here may be needed.
            Err(_) => return Ok(()),
        };
        self.end_process(machine)?;
        let text = format!(
            "the machine ended at the target before all of its memory had come: {why}; here are its disks as they were when \
             it left"
        );
        Err(Problem::new(Code::Host, text))
    }

    /// Follows a migration to its end.
    fn follow(&self, machine: &Machine, client: &Client, task: &Task) -> Result<Migration, Problem> {
        let (mut last, mut cancelled) = (Migration::default(), false);
        let (mut answered, mut asked) = (Instant::now(), Instant::now());
        loop {
            match Process::connect(&machine.folder.control()).and_then(|mut process| process.migration()) {
                // A daemon has died before it had told the process.
                Ok(told) if told.phase == MigrationPhase::None => {
                    return Err(Problem::new(Code::State, "the machine stays here: it had not begun to leave"));
                }
                Ok(told) => (last, answered) = (told, Instant::now()),
                // It ends by itself when all is well; whether it has is seen by whoever looks after it.
                Err(_) if machine.lock().live.is_none() => return ended_as_moved(machine, last),
                Err(error) if answered.elapsed() > END_LIMIT => return Err(supervisor::refusal(&error)),
                Err(_) => {}
            }
            if !last.phase.is_active() && last.phase != MigrationPhase::None {
                return Ok(last);
            }
            if last.phase == MigrationPhase::Serving {
                task.cancellable(false);
            }
            if last.phase == MigrationPhase::Serving && last.message.is_some() && asked.elapsed() >= ASK_AGAIN {
                self.check_runs_there(machine, client)?;
                asked = Instant::now();
            }
            task.progress(last.data_bytes + last.disk_bytes, 0, "bytes");
            if !cancelled && task.check().is_err() {
                cancelled = true;
                // Too late is no failure: then it moves.
                let _ = supervisor::command(&machine.folder, &Request::CancelMigration {});
            }
            std::thread::sleep(TURN);
        }
    }
}

/// A process that is gone: has it moved its machine?
fn ended_as_moved(machine: &Machine, last: Migration) -> Result<Migration, Problem> {
    let ended = machine.wait(END_LIMIT, |inner| inner.live.is_none().then(|| inner.record.ended.clone()));
    match ended.flatten() {
        Some(ending) if ending.reason == queztl_api::EndingReason::Moved => {
            Ok(Migration { phase: MigrationPhase::Moved, ..last })
        }
        Some(ending) => Err(Problem::new(Code::State, format!("the machine has ended: {}", ending.message))),
        None => Err(Problem::new(Code::Timeout, "the machine's process does not answer")),
    }
}

/// The files that the machine writes to and that were given by their paths.
fn shared_disks(record: &VmRecord) -> Result<Vec<SharedDisk>, Problem> {
    use std::os::unix::fs::MetadataExt;
    let paths = (0..).zip(&record.disks).filter_map(|(index, disk)| match &disk.source {
        DiskSource::Path(path) if !disk.read_only => Some((index, path)),
        _ => None,
    });
    let shared = paths.map(|(index, path)| {
        let failed = |error| Problem::new(Code::Host, format!("the disk {path:?} cannot be looked at: {error}"));
        let file = std::fs::metadata(path).map_err(failed)?;
        Ok(SharedDisk { index, inode: file.ino(), length_bytes: file.len() })
    });
    shared.collect()
}

fn parts(told: &Blackout) -> BlackoutParts {
    let Blackout { stop_ns, cut_ns, disks_ns, memory_ns, network_ns, start_ns } = *told;
    BlackoutParts { stop_ns, cut_ns, disks_ns, memory_ns, network_ns, start_ns }
}

fn mode(mode: MigrationMode) -> Mode {
    match mode {
        MigrationMode::PreCopy => Mode::PreCopy,
        MigrationMode::PostCopy => Mode::PostCopy,
        MigrationMode::Auto => Mode::Auto,
    }
}

fn late(told: &Late) -> LateMemory {
    let Late { missing_bytes, whole_ns, reconnects, faults, fault_p50_ns, fault_p99_ns } = *told;
    LateMemory { missing_bytes, whole_ns, reconnects, faults, fault_p50_ns, fault_p99_ns }
}

fn address(request: &MigrateRequest) -> BackupAddress {
    let MigrateRequest { to, token, authority, .. } = request.clone();
    BackupAddress { to, token, authority }
}

/// What the other daemon says.
fn there(error: queztl_client::Error) -> Problem {
    let text = match error.problem() {
        Some(problem) => problem.detail.clone(),
        None => error.to_string(),
    };
    Problem::new(Code::Host, format!("the other daemon does not take the machine: {text}"))
}

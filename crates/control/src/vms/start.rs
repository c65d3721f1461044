//! Machines begin to run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use queztl_api::{Code, EventKind, Operation, OperationKind, Problem, Timestamp, VmState};
use queztl_vmm::control::{RunState, Status};
use queztl_vmm::process::{Identity, MachineFile, Start};
use serde_json::json;

use super::config::{self, DiskFile};
use super::lifecycle::{Command, Observation};
use super::{Claim, DiskSource, Live, Machine, VmRecord, Wish};
use crate::images;
use crate::manager::Core;
use crate::store::{Change, LAYERS};
use crate::supervisor;

/// How long a process may take until it answers; the first start may have to wait for a busy host.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// The same where a machine comes from another daemon. Its process gives up much sooner when nothing comes.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// And where it keeps a copy of a machine, which is needed when it is needed: centuries.
const COPY_LIMIT: Duration = Duration::from_secs(1 << 33);

impl Core {
    pub(crate) fn start(self: &Arc<Self>, vm: &str) -> Result<Operation, Problem> {
        let machine = self.machines.find(vm)?;
        let claim = machine.claim(OperationKind::Start, Command::Start)?;
        let work = machine.clone();
        self.begin(
            OperationKind::Start,
            Some(machine.id.clone()),
            |_| Ok(()),
            move |core, _| {
                // What somebody wishes is a new beginning.
                work.lock().record.crashes.clear();
                core.run(&work, &claim)?;
                drop(claim);
                Ok(json!(work.describe()))
            },
        )
    }

    /// Boots a machine, and waits until its process answers.
    pub(crate) fn run(self: &Arc<Self>, machine: &Arc<Machine>, claim: &Claim) -> Result<(), Problem> {
        self.run_from(machine, claim, Start::Boot, Vec::new())
    }

    /// Lets a machine run from where `start` says. `memory` are the files that [`Start::Fork`] speaks of; their numbers are
    /// filled in here.
    pub(crate) fn run_from(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        _claim: &Claim,
        start: Start,
        memory: Vec<Arc<std::os::fd::OwnedFd>>,
    ) -> Result<(), Problem> {
        let limit = match start {
            Start::Incoming { .. } => ARRIVAL_LIMIT,
            Start::Backup { .. } => COPY_LIMIT,
            _ => READY_LIMIT,
        };
        let record = machine.record();
        if record.protection.is_some() {
            let name = record.name.as_str();
            let text =
                format!("{name:?} was protected, and a backup may go on with it: look there, and delete it here");
            return Err(Problem::new(Code::State, text));
        }
        let file = self.machine_file(&record, start)?;
        self.note_start(machine)?;
        self.prepare_groups();
        let spawned = self.spawner.spawn(&machine.folder, file, &memory);
        drop(memory);
        let (process, pidfd) = match spawned {
            Ok(spawned) => spawned,
            Err(problem) => {
                self.note_failed_start(machine, &problem);
                return Err(problem);
            }
        };
        let live = Live {
            process,
            pidfd: Arc::new(pidfd),
            accelerator: String::new(),
            started_at: Timestamp::now(),
            ending: None,
        };
        self.confine(machine, &record, process.pid);
        let unwanted = {
            let mut inner = machine.lock();
            inner.live = Some(live.clone());
            inner.record.wish == Wish::Off
        };
        self.watch(machine, &live);
        if unwanted {
            // Killed before there was a process.
            supervisor::kill(&live.pidfd)?;
        }
        let status = self.await_answer(machine, &live, limit)?;
        self.answered(machine, &live, &status);
        Ok(())
    }

    /// What the process is to run.
    pub(crate) fn machine_file(&self, record: &VmRecord, start: Start) -> Result<MachineFile, Problem> {
        let boot = self.boot_files(&record.spec)?;
        let disks = record.disks.iter().map(|disk| {
            let (path, format, trusted) = match &disk.source {
                DiskSource::Path(path) => (path.clone(), None, false),
                DiskSource::Mirror(number) => {
                    let folder = super::machine::directory(&self.config.home, &record.id);
                    (folder.join(format!("disk{number}.raw")), Some(queztl_vmm::config::Format::Raw), true)
                }
                DiskSource::Image(name) => {
                    let image = self.image_record(name)?;
                    (image.path(&self.config.home), Some(images::format(image.format)), true)
                }
                DiskSource::Layer(id) => {
                    let layer = self.store.get(LAYERS, id)?.ok_or_else(|| Problem::not_found("disk file", id))?;
                    (layer.path(&self.config.home), Some(queztl_vmm::config::Format::Qcow2), true)
                }
            };
            Ok(DiskFile { path, format, trusted, read_only: disk.read_only, serial: disk.serial.clone() })
        });
        let disks = disks.collect::<Result<Vec<_>, Problem>>()?;
        let mut config = config::machine(&record.spec, &boot, &disks, &record.macs)?;
        if boot.own {
            // Linux takes its first name from there; the user's own words come later and win.
            config.cmdline = format!("hostname={} {}", record.name, config.cmdline).trim_end().to_owned();
        }
        let mut file = MachineFile { start, ..MachineFile::new(config) };
        if let Start::Restore { snapshot: state, .. } | Start::Fork { state, .. } = &file.start {
            // What the state builds on lies beside it, perhaps in another machine's directory.
            file.sandbox.read.extend(state.parent().map(std::path::Path::to_path_buf));
        }
        Ok(file)
    }

    fn note_start(&self, machine: &Machine) -> Result<(), Problem> {
        let begin = |record: &mut VmRecord| {
            record.wish = Wish::On;
            record.started_before = true;
            // A guest that boots has nothing in common with what was saved of it.
            record.last_snapshot = None;
        };
        // What is still in the making is noted and told of when it is whole.
        if !machine.record().complete {
            begin(&mut machine.lock().record);
            machine.observe(Observation::Spawned);
            return Ok(());
        }
        self.amend(machine, begin, |change, record| changed(change, record, VmState::Starting, "is being started"))?;
        machine.observe(Observation::Spawned);
        Ok(())
    }

    /// Waits until the process answers, or has ended.
    fn await_answer(&self, machine: &Arc<Machine>, live: &Live, limit: Duration) -> Result<Status, Problem> {
        let deadline = Instant::now() + limit;
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(status) = supervisor::status(&machine.folder) {
                return Ok(status);
            }
            let ended = machine.wait(pause, |inner| inner.live.is_none().then(|| inner.record.ended.clone()));
            if let Some(ended) = ended {
                let why = ended.map_or_else(|| "its process has ended".to_owned(), |ending| ending.message);
                let text = format!("{:?} could not be started: {why}", machine.record().name.as_str());
                return Err(Problem::new(Code::Host, text));
            }
            if Instant::now() >= deadline {
                let _ = supervisor::kill(&live.pidfd);
                let seconds = limit.as_secs();
                let text = format!("the process of the machine does not answer after {seconds} s: it was ended");
                return Err(Problem::new(Code::Timeout, text));
            }
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Takes note that the process answers.
    pub(crate) fn answered(&self, machine: &Machine, live: &Live, status: &Status) {
        let record = {
            let mut inner = machine.lock();
            inner.restarts = status.restarts;
            match &mut inner.live {
                Some(now) if now.process == live.process => now.accelerator = status.accelerator.clone(),
                _ => return,
            }
            inner.record.clone()
        };
        let paused = status.state == RunState::Paused;
        if let Some(state) = machine.observe(Observation::Answered { paused })
            && record.complete
        {
            self.tell(&record, state, if paused { "is paused" } else { "runs" });
        }
    }

    fn note_failed_start(&self, machine: &Machine, problem: &Problem) {
        machine.observe(Observation::Ended { crashed: true });
        let message = format!("could not be started: {}", problem.detail);
        let noted = self.amend(
            machine,
            |record| record.wish = Wish::Off,
            |change, record| changed(change, record, VmState::Crashed, &message),
        );
        if let Err(problem) = noted {
            tracing::error!(vm = machine.id, %problem, "a failed start cannot be noted");
        }
    }

    /// Tells of a machine's new state.
    pub(crate) fn tell(&self, record: &VmRecord, state: VmState, what: &str) {
        if let Err(problem) = self.store.write(|change| changed(change, record, state, what)) {
            tracing::error!(vm = record.id, %problem, "an event cannot be noted");
        }
    }
}

/// Tells of a machine's new state, as part of a change.
pub(crate) fn changed(change: &mut Change<'_>, record: &VmRecord, state: VmState, what: &str) -> Result<(), Problem> {
    let kind = EventKind::VmChanged { vm: record.id.clone(), name: record.name.to_string(), state };
    Ok(change.event(kind, format!("virtual machine {} {what}", record.name))?)
}

/// What tells a restored machine from the one it was made from.
pub(crate) fn identity(record: &VmRecord) -> Result<Identity, Problem> {
    Ok(Identity { generation_id: super::naming::random_bytes()?, macs: record.macs.clone() })
}

//! Snapshots are taken.

use std::sync::Arc;

use queztl_api::{
    Code, EventKind, Name, Operation, OperationKind, Problem, Snapshot, SnapshotKind, SnapshotRequest, Timestamp,
};
use queztl_vmm::control::SnapshotProgress;
use serde_json::json;

use super::{SnapshotRecord, allocated_bytes, directory, key, remove_directory, remove_unfinished};
use crate::manager::Core;
use crate::operations::Task;
use crate::store::{SNAPSHOTS, VMS};
use crate::supervisor;
use crate::vms::lifecycle::Command;
use crate::vms::{Machine, make_folder};

/// The longest description, bytes.
const MAX_DESCRIPTION_BYTES: usize = 1024;
/// Most snapshots of a machine.
const MAX_SNAPSHOTS: usize = 1000;

impl Core {
    pub(crate) fn snapshot(self: &Arc<Self>, vm: &str, request: SnapshotRequest) -> Result<Operation, Problem> {
        if request.description.len() > MAX_DESCRIPTION_BYTES {
            return Err(Problem::invalid("description", format!("has at most {MAX_DESCRIPTION_BYTES} bytes")));
        }
        let machine = self.machines.find(vm)?;
        let claim = machine.claim(OperationKind::Snapshot, Command::Snapshot)?;
        let name = self.snapshot_name(&machine, request.name.clone())?;
        self.begin(
            OperationKind::Snapshot,
            Some(machine.id.clone()),
            |_| Ok(()),
            move |core, task| {
                task.cancellable(true);
                let snapshot = core.take_snapshot(&machine, &name, &request, false, task)?;
                drop(claim);
                Ok(json!(snapshot))
            },
        )
    }

    /// The name of a new snapshot, if it can have it.
    pub(crate) fn snapshot_name(&self, machine: &Machine, wished: Option<Name>) -> Result<Name, Problem> {
        let records = self.snapshot_records(&machine.id)?;
        if records.len() >= MAX_SNAPSHOTS {
            let text = format!("the machine has {MAX_SNAPSHOTS} snapshots: delete some first");
            return Err(Problem::new(Code::Busy, text));
        }
        let is_taken = |name: &str| records.iter().any(|record| record.snapshot.name.as_str() == name);
        match wished {
            Some(name) if is_taken(name.as_str()) => {
                let text = format!("the machine has a snapshot {:?} already: choose another name", name.as_str());
                Err(Problem::new(Code::Exists, text))
            }
            Some(name) => Ok(name),
            None => {
                let stem = Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
                let numbered = (1..).map(|number| if number == 1 { stem.clone() } else { format!("{stem}-{number}") });
                let name = numbered.take(MAX_SNAPSHOTS + 1).find(|name| !is_taken(name)).unwrap_or(stem.clone());
                name.parse().map_err(|error| Problem::new(Code::Internal, format!("{error}")))
            }
        }
    }

    /// Takes a snapshot of a machine that somebody has claimed.
    pub(crate) fn take_snapshot(
        &self,
        machine: &Machine,
        name: &Name,
        request: &SnapshotRequest,
        scheduled: bool,
        task: &Task,
    ) -> Result<Snapshot, Problem> {
        make_folder(&machine.folder.snapshots())?;
        let target = directory(machine, name.as_str());
        // No record knows it: it is left over.
        remove_directory(&target)?;
        let record = machine.record();
        let base = record.last_snapshot.clone().filter(|_| request.incremental);
        let cut = self.stack(&record.id, &record.disks)?;
        self.begin_cut(machine, &cut)?;
        let ask = |base: Option<&Name>| {
            let base = base.map(|base| directory(machine, base.as_str()));
            supervisor::snapshot(&machine.folder, &target, base.as_deref(), &cut.orders, |progress| {
                if let Some(SnapshotProgress { done_bytes, total_bytes }) = progress {
                    task.progress(done_bytes, total_bytes, "bytes");
                }
                task.check()
            })
        };
        let taken = match ask(base.as_ref()) {
            Ok(pause_ns) => Ok((pause_ns, base)),
            // What it should build on is not what the process remembers: then all of it.
            Err(problem) if base.is_some() && problem.code == Code::Invalid => {
                ask(None).map(|pause_ns| (pause_ns, None))
            }
            Err(problem) => Err(problem),
        };
        task.cancellable(false);
        let (pause_ns, base) = match taken {
            Ok(taken) => taken,
            Err(problem) => {
                self.settle_cut(machine)?;
                // Nothing has its name yet; what is there is no snapshot.
                let _ = remove_directory(&target);
                remove_unfinished(machine);
                return Err(problem);
            }
        };
        let snapshot = Snapshot {
            name: name.clone(),
            vm: record.id.clone(),
            kind: if base.is_some() { SnapshotKind::Incremental } else { SnapshotKind::Full },
            base,
            created_at: Timestamp::now(),
            description: request.description.clone(),
            scheduled,
            size_bytes: allocated_bytes(&target),
            pause_ns,
        };
        self.note_snapshot(machine, SnapshotRecord { snapshot: snapshot.clone(), disks: cut.old })?;
        Ok(snapshot)
    }

    fn note_snapshot(&self, machine: &Machine, taken: SnapshotRecord) -> Result<(), Problem> {
        self.store.write(|change| {
            let name = &taken.snapshot.name;
            let mut inner = machine.lock();
            let mut record = inner.record.clone();
            record.cut_disks.clear();
            record.last_snapshot = Some(name.clone());
            change.put(SNAPSHOTS, &key(&record.id, name.as_str()), &taken)?;
            change.put(VMS, &record.id, &record)?;
            let kind = EventKind::SnapshotTaken { vm: record.id.clone(), snapshot: name.to_string() };
            let pause_ms = taken.snapshot.pause_ns as f64 / 1e6;
            change.event(
                kind,
                format!("snapshot {name} of {} was taken; the guest stood still for {pause_ms:.1} ms", record.name),
            )?;
            inner.record = record;
            Ok(())
        })
    }
}

//! Snapshots: a machine's memory, devices and disks at one point in time.
//!
//! Promises:
//! - a snapshot that is listed is whole: memory, devices and disks are on the disk before its record is;
//! - a snapshot that fails leaves the machine as it was;
//! - what a snapshot is made of is there for as long as the snapshot is, whatever becomes of its machine's disks;
//! - one that others build on is not deleted; the refusal names them.
//!
//! ```text
//! $QUEZTL_HOME/vms/ID/snapshots/NAME/    what the machine's process has written
//! ```

mod cut;
pub(crate) mod layers;
mod restore;
mod take;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use queztl_api::{Code, EventKind, Name, Operation, OperationKind, Problem, Snapshot};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::manager::Core;
use crate::store::{SNAPSHOTS, VMS};
use crate::vms::lifecycle::Command;
use crate::vms::{DiskRecord, Machine};
pub(crate) use layers::{LayerBase, LayerRecord};

/// A snapshot as the store has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    pub snapshot: Snapshot,
    /// The machine's disks at that time; none of them is written any more.
    pub disks: Vec<DiskRecord>,
}

/// The key of a machine's snapshot.
pub(crate) fn key(vm: &str, name: &str) -> String {
    format!("{vm}/{name}")
}

/// Where a snapshot is.
pub(crate) fn directory(machine: &Machine, name: &str) -> PathBuf {
    machine.folder.snapshots().join(name)
}

impl Core {
    /// Oldest first.
    pub(crate) fn snapshots(&self, vm: &str) -> Result<Vec<Snapshot>, Problem> {
        let machine = self.machines.find(vm)?;
        let mut snapshots: Vec<Snapshot> =
            self.snapshot_records(&machine.id)?.into_iter().map(|r| r.snapshot).collect();
        snapshots.sort_by_key(|snapshot| snapshot.created_at);
        Ok(snapshots)
    }

    pub(crate) fn snapshot_records(&self, vm: &str) -> Result<Vec<SnapshotRecord>, Problem> {
        let records = self.store.list_with(SNAPSHOTS, &format!("{vm}/"))?;
        Ok(records.into_iter().map(|(_, record)| record).collect())
    }

    pub(crate) fn snapshot_record(&self, machine: &Machine, name: &Name) -> Result<SnapshotRecord, Problem> {
        let record = self.store.get(SNAPSHOTS, &key(&machine.id, name.as_str()))?;
        record.ok_or_else(|| Problem::not_found("snapshot", name.as_str()))
    }

    pub(crate) fn delete_snapshot(self: &Arc<Self>, vm: &str, name: &Name) -> Result<Operation, Problem> {
        let machine = self.machines.find(vm)?;
        self.snapshot_record(&machine, name)?;
        let claim = machine.claim(OperationKind::DeleteSnapshot, Command::Restore)?;
        self.refuse_built_on(&machine, name)?;
        let name = name.clone();
        self.begin(
            OperationKind::DeleteSnapshot,
            Some(machine.id.clone()),
            |_| Ok(()),
            move |core, _| {
                core.remove_snapshot(&machine, &name)?;
                drop(claim);
                Ok(json!(null))
            },
        )
    }

    /// A sentence if other snapshots build on this one.
    fn refuse_built_on(&self, machine: &Machine, name: &Name) -> Result<(), Problem> {
        let records = self.snapshot_records(&machine.id)?;
        let on_it = records.iter().filter(|record| record.snapshot.base.as_ref() == Some(name));
        let names: Vec<String> = on_it.map(|record| format!("{:?}", record.snapshot.name.as_str())).collect();
        if names.is_empty() {
            return Ok(());
        }
        let text = format!(
            "snapshot {:?} cannot be deleted: {} build on it; delete these first",
            name.as_str(),
            names.join(", ")
        );
        Err(Problem::new(Code::InUse, text))
    }

    /// Forgets a snapshot, and removes its files.
    pub(crate) fn remove_snapshot(&self, machine: &Machine, name: &Name) -> Result<(), Problem> {
        self.refuse_built_on(machine, name)?;
        let forgotten = self.store.write(|change| {
            change.remove(SNAPSHOTS, &key(&machine.id, name.as_str()))?;
            let mut inner = machine.lock();
            if inner.record.last_snapshot.as_ref() == Some(name) {
                inner.record.last_snapshot = None;
                change.put(VMS, &machine.id, &inner.record)?;
            }
            let kind = EventKind::SnapshotDeleted { vm: machine.id.clone(), snapshot: name.to_string() };
            change.event(kind, format!("snapshot {name} of {} was deleted", inner.record.name))?;
            drop(inner);
            layers::forget_unused(change)
        })?;
        layers::remove_files(&self.config.home, &forgotten);
        remove_directory(&directory(machine, name.as_str()))
    }

    /// Removes what no record knows: snapshots that were never finished or were being deleted, and files of disks. And
    /// finds out which disks machines use whose snapshots a dead daemon was about to take.
    pub(crate) fn recover_snapshots(&self) -> Result<(), Problem> {
        for machine in self.machines.all() {
            self.settle_cut(&machine)?;
            let known = self.snapshot_records(&machine.id)?;
            let Ok(entries) = std::fs::read_dir(machine.folder.snapshots()) else { continue };
            for entry in entries.flatten() {
                let name = entry.file_name();
                let is_known = known.iter().any(|record| Some(record.snapshot.name.as_str()) == name.to_str());
                if !is_known && let Err(problem) = remove_directory(&entry.path()) {
                    tracing::warn!(vm = machine.id, %problem, "what is left of a snapshot stays");
                }
            }
        }
        self.sweep_layers()
    }
}

fn remove_directory(path: &Path) -> Result<(), Problem> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Problem::new(Code::Host, format!("{path:?} cannot be removed: {error}")))
        }
        _ => Ok(()),
    }
}

/// Removes what a process has left that died while it took a snapshot, or made a fork. The machine is claimed: nobody else
/// takes one.
pub(crate) fn remove_unfinished(machine: &Machine) {
    let Ok(entries) = std::fs::read_dir(machine.folder.snapshots()) else { return };
    let unfinished = |name: &std::ffi::OsStr| name.to_str().is_some_and(queztl_vmm::snapshot::is_unfinished);
    for entry in entries.flatten().filter(|entry| unfinished(&entry.file_name())) {
        if let Err(problem) = remove_directory(&entry.path()) {
            tracing::warn!(vm = machine.id, %problem, "what is left of a snapshot stays");
        }
    }
}

/// What the files of a directory take on the host.
fn allocated_bytes(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    let sizes = entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.blocks() * 512);
    sizes.sum()
}

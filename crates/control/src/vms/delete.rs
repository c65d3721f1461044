//! Machines go.

use std::sync::Arc;

use queztl_api::{Code, EventKind, Operation, OperationKind, Problem};

use super::lifecycle::{self, Command};
use super::{Machine, VmRecord};
use crate::manager::Core;
use crate::snapshots::layers;
use crate::store::{SNAPSHOTS, VM_NAMES, VMS};

impl Core {
    pub(crate) fn delete(self: &Arc<Self>, vm: &str, force: bool) -> Result<Operation, Problem> {
        let machine = self.machines.find(vm)?;
        let command = if force { Command::Restore } else { Command::Delete };
        // By force, also what is on its way: its process is ended first, and so is what was being done.
        if force && lifecycle::is_alive(machine.state()) {
            self.end_process(&machine)?;
        }
        let claim = machine.claim_soon(OperationKind::Delete, command, super::stop::END_LIMIT)?;
        let mut record = machine.record();
        record.deleting = true;
        let work = machine.clone();
        self.begin(
            OperationKind::Delete,
            Some(machine.id.clone()),
            |change| Ok(change.put(VMS, &record.id, &record)?),
            move |core, _| {
                core.end_process(&work)?;
                core.remove(&work)?;
                drop(claim);
                Ok(serde_json::Value::Null)
            },
        )
    }

    /// Removes a machine without a process: its files, then what is known of it.
    pub(crate) fn remove(&self, machine: &Machine) -> Result<(), Problem> {
        let record = machine.record();
        remove_files(machine)?;
        let forgotten = self.store.write(|change| {
            for (key, _) in change.list_with(SNAPSHOTS, &format!("{}/", record.id))? {
                change.remove(SNAPSHOTS, &key)?;
            }
            change.remove(VMS, &record.id)?;
            // Its name may have gone to another machine only if it never was this one's.
            if change.get(VM_NAMES, record.name.as_str())?.as_ref() == Some(&record.id) {
                change.remove(VM_NAMES, record.name.as_str())?;
            }
            change.forget_history(&record.id)?;
            let kind = EventKind::VmDeleted { vm: record.id.clone(), name: record.name.to_string() };
            change.event(kind, format!("virtual machine {} was deleted", record.name))?;
            layers::forget_unused(change)
        })?;
        machine.lock().deleted = true;
        self.machines.remove(&record.id);
        self.drop_figures(machine);
        layers::remove_files(&self.config.home, &forgotten);
        remove_folder(machine);
        Ok(())
    }

    /// Takes back a machine that could not be made.
    pub(crate) fn discard(&self, machine: &Machine) {
        let result = self.remove_incomplete(&machine.record());
        machine.lock().deleted = true;
        self.machines.remove(&machine.id);
        if let Err(problem) = result {
            tracing::error!(vm = machine.id, %problem, "a machine that could not be made is left behind");
        }
    }

    /// Forgets a machine that was never whole.
    pub(crate) fn remove_incomplete(&self, record: &VmRecord) -> Result<(), Problem> {
        crate::supervisor::end_unknown(&self.spawner, &super::machine::directory(&self.config.home, &record.id))?;
        let forgotten = self.store.write(|change| {
            change.remove(VMS, &record.id)?;
            if change.get(VM_NAMES, record.name.as_str())?.as_ref() == Some(&record.id) {
                change.remove(VM_NAMES, record.name.as_str())?;
            }
            layers::forget_unused(change)
        })?;
        layers::remove_files(&self.config.home, &forgotten);
        // Nothing in it was in use by anybody: it never was a machine.
        let folder = super::machine::directory(&self.config.home, &record.id);
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Problem::new(Code::Host, format!("{folder:?} cannot be removed: {error}")))
            }
            _ => Ok(()),
        }
    }
}

/// Removes what lies in a machine's directory, except disks, which others may use.
fn remove_files(machine: &Machine) -> Result<(), Problem> {
    let folder = machine.folder.path();
    let failed = |error| Problem::new(Code::Host, format!("{folder:?} cannot be removed: {error}"));
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_name() == "disks" {
            continue;
        }
        let is_folder = entry.file_type().map_err(failed)?.is_dir();
        let removed =
            if is_folder { std::fs::remove_dir_all(entry.path()) } else { std::fs::remove_file(entry.path()) };
        removed.map_err(failed)?;
    }
    Ok(())
}

/// Removes the directory unless disks in it are in use.
fn remove_folder(machine: &Machine) {
    let _ = std::fs::remove_dir(machine.folder.path().join("disks"));
    let _ = std::fs::remove_dir(machine.folder.path());
}

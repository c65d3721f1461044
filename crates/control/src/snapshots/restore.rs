//! Machines go back to where they were.

use std::sync::Arc;

use queztl_api::{Code, Name, Operation, OperationKind, Problem};
use queztl_vmm::config::MachineConfig;
use queztl_vmm::process::Start;
use queztl_vmm::snapshot::Snapshot as Saved;
use serde_json::json;

use super::{SnapshotRecord, directory, layers};
use crate::manager::Core;
use crate::store::{LAYERS, VMS};
use crate::vms::lifecycle::Command;
use crate::vms::{Claim, Machine};

impl Core {
    pub(crate) fn restore(self: &Arc<Self>, vm: &str, name: &Name) -> Result<Operation, Problem> {
        let machine = self.machines.find(vm)?;
        let record = self.snapshot_record(&machine, name)?;
        let claim = machine.claim(OperationKind::Restore, Command::Restore)?;
        self.begin(
            OperationKind::Restore,
            Some(machine.id.clone()),
            |_| Ok(()),
            move |core, _| {
                core.restore_from(&machine, &claim, &record)?;
                drop(claim);
                Ok(json!(machine.describe()))
            },
        )
    }

    /// Lets a machine go on from a snapshot; what it was doing is lost.
    pub(crate) fn restore_from(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        claim: &Claim,
        record: &SnapshotRecord,
    ) -> Result<(), Problem> {
        let name = &record.snapshot.name;
        let snapshot = directory(machine, name.as_str());
        let config = self.machine_file(&machine.record(), Start::Boot)?.config;
        check(name, &snapshot, &config)?;
        self.end_process(machine)?;
        let cut = self.stack(&machine.id, &record.disks)?;
        let forgotten = self.store.write(|change| {
            let mut inner = machine.lock();
            let mut vm = inner.record.clone();
            vm.disks = cut.new.clone();
            vm.cut_disks.clear();
            for layer in &cut.layers {
                change.put(LAYERS, &layer.id, layer)?;
            }
            change.put(VMS, &vm.id, &vm)?;
            inner.record = vm;
            drop(inner);
            layers::forget_unused(change)
        })?;
        layers::remove_files(&self.config.home, &forgotten);
        let identity = crate::vms::identity(&machine.record())?;
        self.run_from(machine, claim, Start::Restore { snapshot, identity: Some(identity) }, Vec::new())?;
        self.remember_base(machine, name)?;
        self.introduce_soon(machine);
        Ok(())
    }

    /// The next incremental snapshot builds on this one.
    fn remember_base(&self, machine: &Machine, name: &Name) -> Result<(), Problem> {
        self.amend(machine, |record| record.last_snapshot = Some(name.clone()), |_, _| Ok(()))
    }

    /// Lets a machine that has crashed go on from its newest good snapshot; gives its name, or `None` if there is none.
    pub(crate) fn restore_newest(
        self: &Arc<Self>,
        machine: &Arc<Machine>,
        claim: &Claim,
    ) -> Result<Option<String>, Problem> {
        let mut records = self.snapshot_records(&machine.id)?;
        records.sort_by_key(|record| std::cmp::Reverse(record.snapshot.created_at));
        for record in records {
            let name = record.snapshot.name.clone();
            match self.restore_from(machine, claim, &record) {
                Ok(()) => return Ok(Some(name.to_string())),
                Err(problem) => {
                    tracing::warn!(vm = machine.id, snapshot = name.as_str(), %problem, "a snapshot cannot be restored");
                }
            }
        }
        Ok(None)
    }
}

/// Refuses a snapshot that is damaged or of another machine, before anything is given up for it.
fn check(name: &Name, path: &std::path::Path, config: &MachineConfig) -> Result<(), Problem> {
    match Saved::open(path).and_then(|saved| saved.check_shape(config)) {
        Ok(()) => Ok(()),
        Err(error) => {
            let text = format!("snapshot {:?} cannot be restored: {error}", name.as_str());
            Err(Problem::new(Code::State, text))
        }
    }
}

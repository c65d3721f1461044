//! Changes of machines; limits take effect at once.

use std::collections::BTreeSet;
use std::sync::Arc;

use queztl_api::{Code, Limits, Problem, UpdateVm, Vm};
use queztl_vmm::control::Request;

use super::lifecycle::is_alive;
use super::{Machine, VmRecord, config};
use crate::manager::Core;
use crate::store::{VM_NAMES, VMS};
use crate::supervisor;

impl Core {
    /// Waits for nobody: a machine that is in the middle of something can be changed too.
    pub(crate) fn update(self: &Arc<Self>, vm: &str, request: UpdateVm) -> Result<Vm, Problem> {
        let machine = self.machines.find(vm)?;
        let old = machine.record();
        let new = changed(&old, &request)?;
        self.store.write(|change| {
            if new.name != old.name {
                if change.get(VM_NAMES, new.name.as_str())?.is_some() {
                    let text =
                        format!("there is a virtual machine {:?} already: choose another name", new.name.as_str());
                    return Err(Problem::new(Code::Exists, text));
                }
                change.remove(VM_NAMES, old.name.as_str())?;
                change.put(VM_NAMES, new.name.as_str(), &new.id)?;
            }
            // What others have written meanwhile stays: only what this changes is replaced.
            let mut inner = machine.lock();
            if inner.deleted {
                return Err(Problem::not_found("virtual machine", vm));
            }
            let mut record = inner.record.clone();
            record.name = new.name.clone();
            record.spec = new.spec.clone();
            change.put(VMS, &record.id, &record)?;
            inner.record = record;
            Ok(())
        })?;
        self.machines.rename(&machine);
        if request.limits.is_some() && is_alive(machine.state()) {
            self.apply_limits(&machine, &old.spec.limits, &new.spec.limits)?;
        }
        Ok(machine.describe())
    }

    /// Puts new limits of a running machine in force.
    fn apply_limits(&self, machine: &Arc<Machine>, old: &Limits, new: &Limits) -> Result<(), Problem> {
        let folder = &machine.folder;
        if new.balloon_bytes != old.balloon_bytes {
            supervisor::command(folder, &Request::Balloon { target_bytes: new.balloon_bytes })?;
        }
        if new.hotplug_bytes != old.hotplug_bytes {
            supervisor::command(folder, &Request::Memory { requested_bytes: new.hotplug_bytes })?;
        }
        let devices: BTreeSet<&String> = old.rates.keys().chain(new.rates.keys()).collect();
        for device in devices {
            if old.rates.get(device) != new.rates.get(device) {
                let limit = new.rates.get(device).map(config::device_limit).unwrap_or_default();
                supervisor::command(folder, &Request::Limit { device: device.clone(), limit })?;
            }
        }
        if new.cpu != old.cpu {
            self.limit_cpu(machine, &new.cpu)?;
        }
        Ok(())
    }
}

/// The record as it will be; the request's fields are checked.
fn changed(old: &VmRecord, request: &UpdateVm) -> Result<VmRecord, Problem> {
    let mut new = old.clone();
    if let Some(name) = &request.name {
        new.name = name.clone();
    }
    if let Some(limits) = &request.limits {
        config::check_limits("limits", limits, &old.spec)?;
        new.spec.limits = limits.clone();
    }
    if let Some(on_crash) = request.on_crash {
        new.spec.on_crash = on_crash;
    }
    if let Some(checkpoints) = request.checkpoints {
        new.spec.checkpoints = checkpoints;
    }
    if let Some(autostart) = request.autostart {
        new.spec.autostart = autostart;
    }
    if let Some(labels) = &request.labels {
        new.spec.labels = labels.clone();
    }
    config::check(&new.spec)?;
    Ok(new)
}

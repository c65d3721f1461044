//! The machines of a manager, by identifier and by name.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use queztl_api::Problem;

use crate::vms::Machine;

#[derive(Debug, Default)]
pub(crate) struct Machines(RwLock<Maps>);

#[derive(Debug, Default)]
struct Maps {
    by_id: BTreeMap<String, Arc<Machine>>,
    /// Names and identifiers.
    names: BTreeMap<String, String>,
}

impl Machines {
    fn read(&self) -> RwLockReadGuard<'_, Maps> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Maps> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine with this identifier or name.
    pub(crate) fn find(&self, vm: &str) -> Result<Arc<Machine>, Problem> {
        let maps = self.read();
        let by_name = || maps.names.get(vm).and_then(|id| maps.by_id.get(id));
        maps.by_id.get(vm).or_else(by_name).cloned().ok_or_else(|| Problem::not_found("virtual machine", vm))
    }

    /// All, oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<Machine>> {
        self.read().by_id.values().cloned().collect()
    }

    pub(crate) fn has_name(&self, name: &str) -> bool {
        self.read().names.contains_key(name)
    }

    pub(crate) fn insert(&self, machine: Arc<Machine>) {
        let (id, name) = (machine.id.clone(), machine.record().name.to_string());
        let mut maps = self.write();
        maps.names.insert(name, id.clone());
        maps.by_id.insert(id, machine);
    }

    /// The machine's name has changed.
    pub(crate) fn rename(&self, machine: &Machine) {
        let name = machine.record().name.to_string();
        let mut maps = self.write();
        maps.names.retain(|_, id| *id != machine.id);
        maps.names.insert(name, machine.id.clone());
    }

    pub(crate) fn remove(&self, id: &str) {
        let mut maps = self.write();
        maps.by_id.remove(id);
        maps.names.retain(|_, known| known != id);
    }
}

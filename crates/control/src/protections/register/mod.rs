//! The register: one value for each group, which all its daemons see, and which changes by compare-and-swap only.
//!
//! Besides what the group agrees on ([`Register`]) it holds a counter that the owner raises to renew its lease. Whoever sees
//! the value unchanged for longer than the lease takes the owner for dead; and since each change names the value that it
//! replaces, a renewal and a claim exclude each other.

mod etcd;
mod file;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use queztl_api::Problem;
use queztl_distributed_ram::{Node, Register};
use serde::{Deserialize, Serialize};

use etcd::EtcdStore;
use file::FileStore;

/// A group's value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub register: Register,
    /// How often the lease was renewed, whoever had it.
    pub renewal: u64,
    pub lease_ms: u32,
    /// Whoever has the term says that it does nothing with it: there is no lease to wait for.
    pub over: bool,
    /// Numbers from this one on were given to no node.
    #[serde(default)]
    pub next_node: u32,
}

impl Entry {
    /// The value of a group that has just been made.
    pub fn new(register: Register, lease_ms: u32) -> Entry {
        Entry { register, renewal: 0, lease_ms, over: false, next_node: 0 }
    }

    /// The value that follows, with another register or the same.
    pub fn next(&self, register: Register) -> Entry {
        Entry { register, renewal: self.renewal + 1, over: false, ..self.clone() }
    }

    /// Takes so many numbers for new nodes, which nobody has had: a daemon that hears late of what has become of its machine must
    /// not find its own number in another's place.
    pub fn take_numbers(&mut self, count: usize) -> Vec<Node> {
        let known = self.register.members.iter().chain([&self.register.owner]).max();
        let first = self.next_node.max(known.map_or(0, |node| node.saturating_add(1)));
        let numbers: Vec<Node> = (first..).take(count).collect();
        self.next_node = numbers.last().map_or(first, |last| last.saturating_add(1));
        numbers
    }
}

/// Where registers are. Group names are machines' identifiers.
pub(super) trait Store: Send + Sync {
    /// The group's value, if it has one.
    ///
    /// # Errors
    /// It cannot be read now.
    fn read(&self, group: &str) -> Result<Option<Entry>, StoreError>;

    /// Changes the value from `before`; false if it is another one by now.
    ///
    /// # Errors
    /// It is not known whether it has changed.
    fn swap(&self, group: &str, before: Option<&Entry>, after: &Entry) -> Result<bool, StoreError>;
}

/// Why a register is out of reach.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("the register {path:?} fails: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("the register {path:?} holds something else: {source}")]
    Content { path: PathBuf, source: serde_json::Error },
    #[error("the register is out of reach: {0}")]
    Etcd(#[from] crate::etcd::EtcdError),
    #[error("the register holds something else: {source}")]
    Value { source: serde_json::Error },
}

/// The store that an address names.
pub(super) fn open(address: &str) -> Result<Box<dyn Store>, Problem> {
    if let Some(path) = address.strip_prefix("file:").filter(|path| path.starts_with('/')) {
        return Ok(Box::new(FileStore::new(path)));
    }
    match address.strip_prefix("etcd://").and_then(EtcdStore::new) {
        Some(store) => Ok(Box::new(store)),
        None => Err(Problem::invalid(
            "register",
            "is file:/directory, which all daemons see, or etcd://host:port,host:port",
        )),
    }
}

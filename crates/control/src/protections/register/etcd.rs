//! Registers in etcd.

use super::{Entry, Store, StoreError};
use crate::etcd::Etcd;

/// What all keys begin with.
const PREFIX: &str = "queztl/registers/";

/// The registers of an etcd cluster.
#[derive(Debug)]
pub(super) struct EtcdStore(Etcd);

impl EtcdStore {
    /// The cluster of these servers, `host:port,host:port…`; `None` if these are none.
    pub fn new(servers: &str) -> Option<EtcdStore> {
        Etcd::new(servers).map(EtcdStore)
    }
}

impl Store for EtcdStore {
    fn read(&self, group: &str) -> Result<Option<Entry>, StoreError> {
        let text = self.0.get(&key(group))?;
        text.map(|text| serde_json::from_str(&text).map_err(|source| StoreError::Value { source })).transpose()
    }

    fn swap(&self, group: &str, before: Option<&Entry>, after: &Entry) -> Result<bool, StoreError> {
        Ok(self.0.swap(&key(group), before.map(value).as_deref(), Some(&value(after)))?)
    }
}

fn key(group: &str) -> String {
    format!("{PREFIX}{group}")
}

/// The same value gives the same text.
fn value(entry: &Entry) -> String {
    serde_json::to_string(entry).unwrap_or_default()
}

//! In etcd.

use super::{Coordinator, CoordinatorError};
use crate::etcd::Etcd;

/// What all keys begin with.
const PREFIX: &str = "queztl/clusters/";

/// An etcd that all nodes reach.
#[derive(Debug)]
pub(crate) struct Shared(pub Etcd);

impl Coordinator for Shared {
    fn list(&self, prefix: &str) -> Result<Vec<(String, String)>, CoordinatorError> {
        let found = self.0.list(&format!("{PREFIX}{prefix}"))?;
        Ok(found.into_iter().map(|(key, value)| (key[PREFIX.len().min(key.len())..].to_owned(), value)).collect())
    }

    fn swap(&self, key: &str, before: Option<&str>, after: Option<&str>) -> Result<bool, CoordinatorError> {
        Ok(self.0.swap(&format!("{PREFIX}{key}"), before, after)?)
    }
}

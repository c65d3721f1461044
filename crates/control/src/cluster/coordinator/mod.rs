//! Where the nodes agree: words that belong to words, changed by compare-and-swap.
//!
//! One machine, or a few, need nothing else: the founder's own store is the truth, and the others ask the founder
//! ([`Founder`]). Where the cluster is to survive its founder, it is etcd. All three keep the same promises, which one suite
//! of tests checks.

mod embedded;
mod etcd;
mod founder;
#[cfg(test)]
mod tests;

use crate::etcd::EtcdError;
use crate::store::StoreError;

pub(crate) use embedded::Embedded;
pub(crate) use etcd::Shared;
pub(crate) use founder::Founder;

/// What the nodes have agreed on.
pub(crate) trait Coordinator: Send + Sync {
    /// All keys that begin so, in their order, and their values.
    ///
    /// # Errors
    /// They cannot be read now.
    fn list(&self, prefix: &str) -> Result<Vec<(String, String)>, CoordinatorError>;

    /// Changes a value from `before` to `after`, of which `None` is no value; false if it is another one by now.
    ///
    /// # Errors
    /// It is not known whether it has changed.
    fn swap(&self, key: &str, before: Option<&str>, after: Option<&str>) -> Result<bool, CoordinatorError>;
}

/// Why the nodes' agreements are out of reach.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CoordinatorError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    #[error("the cluster's founder does not answer: {}", queztl_client_error(.0))]
    Founder(#[from] queztl_client::Error),
}

/// What went wrong, and why.
pub(crate) fn queztl_client_error(error: &queztl_client::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

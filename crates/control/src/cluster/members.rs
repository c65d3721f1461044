//! The members of a cluster, as the coordinator has them: `CLUSTER/members/NAME`.

use queztl_api::{Code, Name, Problem, Timestamp};
use serde::{Deserialize, Serialize};

use super::coordinator::{Coordinator, CoordinatorError};
use super::identity::Fingerprint;

/// A member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    pub name: Name,
    /// `host:port`.
    pub address: String,
    /// The certificate that it is known by.
    #[serde(with = "hex::serde")]
    pub certificate: Fingerprint,
    pub joined_at: Timestamp,
    /// It takes no new machines.
    #[serde(default)]
    pub draining: bool,
}

/// The members of one cluster.
pub(crate) struct Members<'a> {
    pub cluster: &'a str,
    pub coordinator: &'a dyn Coordinator,
}

/// Where a cluster's members are.
pub(crate) fn prefix(cluster: &str) -> String {
    format!("{cluster}/members/")
}

impl Members<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}{name}", prefix(self.cluster))
    }

    pub fn all(&self) -> Result<Vec<Member>, CoordinatorError> {
        let found = self.coordinator.list(&prefix(self.cluster))?;
        let read = |(key, text): (String, String)| match serde_json::from_str::<Member>(&text) {
            Ok(member) if key == self.key(member.name.as_str()) => Some(member),
            // Somebody else has written it: it admits nobody.
            _ => {
                tracing::warn!(key, "this is no member of the cluster");
                None
            }
        };
        Ok(found.into_iter().filter_map(read).collect())
    }

    /// Adds a member.
    ///
    /// # Errors
    /// [`Code::Exists`] if the name is taken.
    pub fn add(&self, member: &Member) -> Result<(), Problem> {
        let added = self.coordinator.swap(&self.key(member.name.as_str()), None, Some(&text(member)));
        match added.map_err(out_of_reach)? {
            true => Ok(()),
            false => Err(taken(&member.name)),
        }
    }

    /// Changes a member that is still what it is taken for.
    pub fn change(&self, before: &Member, after: Option<&Member>) -> Result<(), Problem> {
        let after = after.map(text);
        let changed = self.coordinator.swap(&self.key(before.name.as_str()), Some(&text(before)), after.as_deref());
        match changed.map_err(out_of_reach)? {
            true => Ok(()),
            false => Err(Problem::new(Code::Busy, format!("the node {} has just changed: try again", before.name))),
        }
    }
}

/// The same member gives the same text.
fn text(member: &Member) -> String {
    serde_json::to_string(member).unwrap_or_default()
}

pub(crate) fn taken(name: &Name) -> Problem {
    let text =
        format!("the cluster has a node {name} already: give another name with --name, or remove that node first");
    Problem::new(Code::Exists, text)
}

pub(crate) fn out_of_reach(error: CoordinatorError) -> Problem {
    Problem::new(Code::Host, format!("the cluster's members cannot be asked for now: {error}"))
}

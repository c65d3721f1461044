//! The nodes as others see them: in lists, by name, and by what is left of their memory.

use std::sync::Arc;

use queztl_api::{
    AgreedChange, AgreedChanged, AgreedQuery, AgreedValue, BackupAddress, Code, Name, Node, NodeState, Problem,
    Timestamp,
};
use queztl_client::Client;

use super::members::{self, Member};
use super::{Cluster, Joined};
use crate::manager::Core;

impl Core {
    /// All nodes by name; none if this daemon is in no cluster.
    pub(crate) fn nodes(&self) -> Vec<Node> {
        let Some(joined) = self.cluster.joined() else { return Vec::new() };
        let view = joined.view();
        let describe = |member: &Member| {
            let this = member.certificate == joined.own;
            let seen = view.seen.get(&member.name);
            let state = match (this || view.is_seen(&member.name), member.draining) {
                _ if this && view.removed => NodeState::Left,
                (false, _) => NodeState::Unreachable,
                (true, true) => NodeState::Draining,
                (true, false) => NodeState::Ready,
            };
            Node {
                name: member.name.clone(),
                address: member.address.clone(),
                state,
                this,
                founder: member.name == joined.settings.founder,
                joined_at: member.joined_at,
                seen_at: if this { Some(Timestamp::now()) } else { seen.map(|seen| seen.at) },
                status: if this { Some(self.node_status()) } else { seen.map(|seen| seen.status.clone()) },
            }
        };
        let mut nodes: Vec<Node> = view.members.iter().map(describe).collect();
        if view.removed && !nodes.iter().any(|node| node.this) {
            nodes.push(Node {
                name: joined.settings.name.clone(),
                address: joined.settings.address.clone(),
                state: NodeState::Left,
                this: true,
                founder: false,
                joined_at: Timestamp::UNIX_EPOCH,
                seen_at: None,
                status: None,
            });
        }
        nodes
    }

    /// A client of another daemon, which is named by its address or by its name as a node.
    pub(crate) fn client_of(&self, address: &BackupAddress) -> Result<Client, Problem> {
        if !is_name(&address.to) {
            return crate::protections::client(&self.config.home, address);
        }
        let joined = self.cluster.joined().ok_or_else(|| no_cluster(&address.to))?;
        let member = joined.member(&address.to).ok_or_else(|| Problem::not_found("node", &address.to))?;
        if member.certificate == joined.own {
            return Err(Problem::invalid("to", format!("{} is this node itself: name another one", address.to)));
        }
        joined.meet(member.name.as_str(), &member.address)
    }

    /// The same for a question that must not wait for a handshake: with a node, a connection is kept.
    pub(crate) fn kept_client_of(&self, address: &BackupAddress) -> Result<Arc<Client>, Problem> {
        let member = self.cluster.joined().filter(|_| is_name(&address.to)).and_then(|joined| {
            let member = joined.member(&address.to)?;
            Some((joined, member))
        });
        match member {
            Some((joined, member)) => joined.client_of(&member),
            None => self.client_of(address).map(Arc::new),
        }
    }

    /// The same for what was begun with a node that may have left since: then nobody answers.
    pub(crate) fn client_of_known(&self, address: &BackupAddress) -> Result<Client, Problem> {
        let gone = |problem: Problem| match is_name(&address.to) {
            true => {
                let to = format!("unix:/nonexistent/node/{}", address.to);
                crate::protections::client(&self.config.home, &BackupAddress::to(to))
            }
            false => Err(problem),
        };
        self.client_of(address).or_else(gone)
    }

    /// This node's name, if this daemon is one.
    pub(crate) fn own_name(&self) -> Option<Name> {
        Some(self.cluster.joined()?.settings.name.clone())
    }

    /// The other nodes that take machines, the one with the most free memory first.
    pub(crate) fn ready_nodes(&self) -> Vec<(Name, u64)> {
        let ready = self.nodes().into_iter().filter(|node| node.state == NodeState::Ready && !node.this);
        let mut ready: Vec<(Name, u64)> =
            ready.filter_map(|node| Some((node.name, node.status?.memory_available_bytes))).collect();
        ready.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
        ready
    }

    /// Where the daemons agree on whose machine one is, if nobody says so.
    pub(crate) fn default_register(&self) -> Result<String, Problem> {
        let missing = "say with a register where the daemons agree: this one is in no cluster that has a coordinator";
        let joined = self.cluster.joined().ok_or_else(|| Problem::invalid("register", missing))?;
        if joined.etcd.is_some() {
            return Ok(joined.settings.coordinator.clone());
        }
        let text = format!(
            "the cluster keeps its agreements at {} alone, and would lose them with it just when they are needed: give --register \
             etcd://host:port, or make the cluster with --coordinator etcd://…",
            joined.settings.founder
        );
        Err(Problem::invalid("register", text))
    }

    /// What the nodes have agreed on, for one that has it not itself.
    pub(crate) fn agreed(&self, query: &AgreedQuery) -> Result<Vec<AgreedValue>, Problem> {
        let joined = self.keeper()?;
        let found =
            joined.agreed(self, |coordinator| coordinator.list(&query.prefix)).map_err(members::out_of_reach)?;
        Ok(found.into_iter().map(|(key, value)| AgreedValue { key, value }).collect())
    }

    /// Changes it. Members are added by their admission alone, and keep their certificates.
    pub(crate) fn agree(&self, change: &AgreedChange) -> Result<AgreedChanged, Problem> {
        let joined = self.keeper()?;
        check_change(&joined.settings.cluster, change)?;
        let (before, after) = (change.before.as_deref(), change.after.as_deref());
        let changed = joined.agreed(self, |coordinator| coordinator.swap(&change.key, before, after));
        let changed = changed.map_err(members::out_of_reach)?;
        if changed {
            self.refresh(&joined)?;
        }
        Ok(AgreedChanged { changed })
    }

    fn keeper(&self) -> Result<Arc<Joined>, Problem> {
        let joined = self.cluster.need()?;
        if joined.etcd.is_some() || joined.founder.is_some() {
            return Err(Problem::new(
                Code::State,
                "this node does not keep what the nodes agree on: ask the coordinator",
            ));
        }
        Ok(joined)
    }

    /// This node takes no machines while it is drained.
    pub(crate) fn check_takes_machines(&self) -> Result<(), Problem> {
        if self.cluster.is_draining() {
            let text = "this node takes no new machines: `queztl-hv node ready` ends its draining";
            return Err(Problem::new(Code::State, text));
        }
        Ok(())
    }
}

impl Cluster {
    pub(crate) fn is_node(&self) -> bool {
        self.joined().is_some()
    }

    fn is_draining(&self) -> bool {
        self.joined().and_then(|joined| joined.own()).is_some_and(|own| own.draining)
    }
}

/// Whether a text names a node: addresses have a colon.
pub(crate) fn is_name(to: &str) -> bool {
    to.parse::<Name>().is_ok()
}

pub(crate) fn no_cluster(name: &str) -> Problem {
    let text =
        format!("{name:?} is no address, and this daemon is in no cluster: write https://host:port or unix:/path");
    Problem::invalid("to", text)
}

/// What a node may change of what the founder keeps for all.
pub(super) fn check_change(cluster: &str, change: &AgreedChange) -> Result<(), Problem> {
    let refused = |why: &str| Err(Problem::new(Code::Forbidden, format!("{:?} {why}", change.key)));
    let Some(name) = change.key.strip_prefix(&members::prefix(cluster)) else {
        return refused("is nothing that nodes change");
    };
    let read = |text: &Option<String>| text.as_deref().and_then(|text| serde_json::from_str::<Member>(text).ok());
    match (read(&change.before), &change.after) {
        (None, _) => refused("is added by its admission alone"),
        (Some(_), None) => Ok(()),
        (Some(before), Some(_)) => match read(&change.after) {
            Some(after) if after.certificate == before.certificate && after.name.as_str() == name => Ok(()),
            _ => refused("keeps its name and certificate"),
        },
    }
}

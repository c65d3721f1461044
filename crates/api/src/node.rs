//! Nodes: daemons that know each other.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Name;

/// A daemon of the cluster, as this one sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Its name, which can be used wherever an address of a daemon is given.
    pub name: Name,
    /// Where other nodes reach it: `host:port`.
    pub address: String,
    /// How it is.
    pub state: NodeState,
    /// It is the one that answers.
    pub this: bool,
    /// It has the key with which new nodes are admitted.
    pub founder: bool,
    /// When it joined.
    #[schema(value_type = String, format = DateTime)]
    pub joined_at: Timestamp,
    /// When it was heard of last, if it was since the daemon that answers has started.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub seen_at: Option<Timestamp>,
    /// What it said then.
    pub status: Option<NodeStatus>,
}

/// How a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// It takes machines.
    Ready,
    /// It takes no new machines, and its own are moved away.
    Draining,
    /// It has not answered for some seconds.
    Unreachable,
    /// It is no member any more; only the node itself still says so.
    Left,
}

/// What a node says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeStatus {
    /// The daemon's version.
    pub version: String,
    /// Processors of the host that the daemon may use.
    pub cpus: u32,
    /// All memory of the host.
    pub memory_bytes: u64,
    /// Of that, what can be used without swapping.
    pub memory_available_bytes: u64,
    /// Machines that have a process there, copies of others' machines excepted.
    pub vms: u32,
    /// Their virtual processors.
    pub vcpus: u32,
    /// Their memory.
    pub vm_memory_bytes: u64,
    /// How many of them are protected.
    pub protections: u32,
    /// Copies that are kept there of other nodes' machines.
    pub copies: u32,
}

/// Makes a cluster whose first node is this daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InitNode {
    /// Its name; the host's where it is left out.
    #[serde(default)]
    pub name: Option<Name>,
    /// Where it listens for other nodes: `address:port`; port 7444 of all addresses where it is left out.
    #[serde(default)]
    pub listen: Option<String>,
    /// Where other nodes reach it: `host:port`.
    #[serde(default)]
    pub advertise: Option<String>,
    /// Where the nodes agree: `etcd://host:port,host:port`; this daemon's own store where it is left out.
    #[serde(default)]
    pub coordinator: Option<String>,
}

/// Makes this daemon a node of a cluster that there is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JoinNode {
    /// What the cluster's founder gave out for this.
    pub token: String,
    /// Its name; the host's where it is left out.
    #[serde(default)]
    pub name: Option<Name>,
    /// Where it listens for other nodes: `address:port`; port 7444 of all addresses where it is left out.
    #[serde(default)]
    pub listen: Option<String>,
    /// Where other nodes reach it: `host:port`.
    #[serde(default)]
    pub advertise: Option<String>,
}

impl std::fmt::Debug for JoinNode {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinNode").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A token for one new node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeTokenRequest {
    /// It ends after so long; an hour where it is left out.
    #[serde(default)]
    pub expires_in_seconds: Option<u64>,
}

/// A token that admits one new node, once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeToken {
    /// What `node join` takes: the cluster's address, its authority's fingerprint, and a secret.
    pub token: String,
    /// When it ends.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
}

impl std::fmt::Debug for NodeToken {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeToken").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

/// What a daemon that wishes to join says to the founder.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdmissionRequest {
    /// The token's secret.
    pub secret: String,
    /// The name it wishes.
    pub name: Name,
    /// Its public key: an uncompressed point of P-256, hexadecimal.
    #[schema(pattern = "^04[0-9a-f]{128}$")]
    pub public_key: String,
    /// Its version.
    pub version: String,
    /// Its clock.
    #[schema(value_type = String, format = DateTime)]
    pub now: Timestamp,
}

impl std::fmt::Debug for AdmissionRequest {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdmissionRequest").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What it gets for it. It is a member once it has said where it is, with this certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Admission {
    /// Its certificate, PEM.
    pub certificate: String,
    /// The authority that all nodes trust, PEM.
    pub authority: String,
    /// Where the nodes agree.
    pub coordinator: String,
}

/// A node tells the founder where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeHello {
    /// Where other nodes reach it: `host:port`.
    pub address: String,
}

/// Asks for what the nodes have agreed on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AgreedQuery {
    /// What the keys begin with.
    pub prefix: String,
}

/// A value that the nodes have agreed on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AgreedValue {
    /// What it is about.
    pub key: String,
    /// The value.
    pub value: String,
}

/// Changes a value if it is still the one that is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AgreedChange {
    /// What it is about.
    pub key: String,
    /// The known value; none if there is to be none yet.
    #[serde(default)]
    pub before: Option<String>,
    /// The new value; none to remove it.
    #[serde(default)]
    pub after: Option<String>,
}

/// Whether it has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AgreedChanged {
    /// False if the value was another one by then.
    pub changed: bool,
}

/// What became of a node's machines: the result of its draining.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrainReport {
    /// Machines that moved, and where each is now.
    pub moved: Vec<DrainMove>,
    /// Machines that stay, and why.
    pub stayed: Vec<DrainStay>,
}

/// A machine that moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrainMove {
    /// The machine's name.
    pub vm: String,
    /// The node that has it now.
    pub to: Name,
}

/// A machine that stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrainStay {
    /// The machine's name.
    pub vm: String,
    /// Why it could not be moved.
    pub why: String,
}

//! Machines on their way from one daemon to another.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Name, VmSpec};

/// Brings a running machine to another daemon. Its snapshots do not go with it: it must have none.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrateRequest {
    /// The other daemon: a node's name, `https://host:port`, or `unix:/path` of one on the same host.
    pub to: String,
    /// A token of that daemon with scope `admin`; needed over https.
    #[serde(default)]
    pub token: Option<String>,
    /// Certificates to trust, PEM, rather than the host's usual authorities.
    #[serde(default)]
    pub authority: Option<String>,
    /// Connections for memory.
    #[serde(default = "stripes")]
    #[schema(minimum = 1, maximum = 16, default = 2)]
    pub stripes: u32,
    /// Rounds of copying at most before the machine stands still for the last one.
    #[serde(default = "max_rounds")]
    #[schema(minimum = 1, maximum = 100, default = 8)]
    pub max_rounds: u32,
}

impl std::fmt::Debug for MigrateRequest {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MigrateRequest").field("to", &self.to).finish_non_exhaustive()
    }
}

impl MigrateRequest {
    /// A request with the usual settings.
    pub fn to(address: impl Into<String>) -> MigrateRequest {
        let (stripes, max_rounds) = (stripes(), max_rounds());
        MigrateRequest { to: address.into(), token: None, authority: None, stripes, max_rounds }
    }
}

fn stripes() -> u32 {
    2
}

fn max_rounds() -> u32 {
    8
}

/// How a migration went: the result of its operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrationReport {
    /// The daemon that has the machine now.
    pub to: String,
    /// Rounds of copying, the last one included.
    pub rounds: u32,
    /// Memory that was sent.
    pub data_bytes: u64,
    /// What that took on the wire.
    pub wire_bytes: u64,
    /// From the first connection to the end, in nanoseconds.
    pub total_ns: u64,
    /// How long the guest stood still when it was handed over, in nanoseconds.
    pub blackout_ns: u64,
    /// How long it stood still in the rounds before, in nanoseconds.
    pub pauses_ns: u64,
}

/// A machine that is to arrive here from another daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReceiveRequest {
    /// Its identifier, which stays what it was.
    #[schema(pattern = "^[0-9a-f]{32}$")]
    pub id: String,
    /// Its name.
    pub name: Name,
    /// What it is.
    pub spec: VmSpec,
    /// The addresses of its network devices, in their order.
    pub macs: Vec<String>,
    /// It does not come to stay: a copy of it is kept, and goes on if it has to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<crate::BackupOrder>,
}

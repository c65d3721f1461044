//! What answers.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The daemon and its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Info {
    /// The daemon's version.
    pub version: String,
    /// The daemon's process.
    pub pid: u32,
    /// The host it runs on.
    pub host: HostInfo,
    /// What can run virtual CPUs here, the preferred one first.
    pub accelerators: Vec<AcceleratorInfo>,
}

/// A host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostInfo {
    /// Its name.
    pub name: String,
    /// The release of its kernel.
    pub kernel: String,
    /// How many processors the daemon may use.
    pub cpus: u32,
    /// All its memory.
    pub memory_bytes: u64,
    /// Of that, what can be used without swapping.
    pub memory_available_bytes: u64,
}

/// One way to run virtual CPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AcceleratorInfo {
    /// `kvm` or `soft`, as in a machine's `accel`.
    pub name: String,
    /// Can it run an ordinary guest here?
    pub usable: bool,
    /// A sentence: why it is or is not.
    pub detail: String,
}

//! What the process may reach.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How far a process is kept from the rest of the host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sandbox {
    pub mode: SandboxMode,
    /// Files and directories that may be read besides those that the machine's configuration names: snapshots elsewhere,
    /// disks to come.
    pub read: Vec<PathBuf>,
    /// Directories in which files may be made, written and removed besides, and files that may be written.
    pub write: Vec<PathBuf>,
}

/// Whether there is a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SandboxMode {
    /// As far as this host's kernel and the process's rights allow; what is missing is logged.
    #[default]
    On,
    /// No machine without all of it.
    Required,
    /// None.
    Off,
}

//! What the process may reach of the host, besides the descriptors that it holds.
//!
//! Promises, where the kernel has what it takes:
//! - files: the machine's directory, its kernel, initial RAM disks, disks with their backing files, the snapshot it starts
//!   from, what the machine's file allows besides, and a few files of the kernel that tell of this process and this host
//!   (Landlock). Nothing can be executed, no device opened but KVM's;
//! - networks: none but the TAP devices and passt that are open before (a network namespace of its own, for root; Landlock for
//!   TCP in any case); no abstract Unix sockets of others;
//! - rights: no new ones (`no_new_privs`), and of root's none but those that [`rights`] names; no memory of the guest in a
//!   core file.
//!
//! Landlock and namespaces are properties of a thread which those that it starts inherit. So [`enter`] comes before all
//! threads, and after whatever needs more. Lists of system calls ([`crate::confine`]) come on top: they say what can be
//! done, this says to what. A mount namespace would hide names besides, which Landlock does not; it is not worth its price.

mod files;
mod needs;
mod rights;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use needs::Needs;

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
    /// As far as this host's kernel and the process's rights allow; what is missing is told.
    #[default]
    On,
    /// No machine without Landlock as this program knows it.
    Required,
    /// None.
    Off,
}

/// Why a process cannot be kept from the rest of the host.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("{path:?} cannot be used: {source}")]
    Path { path: PathBuf, source: io::Error },
    #[error(
        "this kernel cannot keep the process to its files ({0}): use a kernel with Landlock (CONFIG_SECURITY_LANDLOCK, \
         Linux 6.12 or newer for all of it), or the sandbox mode \"on\""
    )]
    Landlock(String),
    #[error("the process's rights cannot be given up ({step}): {source}")]
    Rights { step: &'static str, source: io::Error },
}

/// Keeps this thread, and all that it starts from now on, to what is needed. Gives a sentence for each part that this host
/// cannot have.
///
/// # Errors
/// Something that is needed is not there, or [`SandboxMode::Required`] cannot be met.
pub fn enter(mode: SandboxMode, needs: &Needs) -> Result<Vec<String>, SandboxError> {
    if mode == SandboxMode::Off {
        return Ok(Vec::new());
    }
    rights::bound_resources()?;
    rights::forbid_new()?;
    let mut missing = Vec::new();
    missing.extend(rights::leave_namespaces());
    match files::keep_to(needs)? {
        None => {}
        Some(lack) if mode == SandboxMode::Required => return Err(SandboxError::Landlock(lack)),
        Some(lack) => missing.push(format!("the process is not kept to its files as it should be: {lack}")),
    }
    rights::give_up()?;
    Ok(missing)
}

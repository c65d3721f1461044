//! What a process gives up besides files.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs};

use super::SandboxError;

/// Open files: disks with their backing files, and a few for each connection of the socket device.
const MAX_FILES: u64 = 16 << 10;

/// What is left of root's rights: to use the files that root could use when the machine was made, among those that
/// Landlock leaves; and to handle the kernel's own faults on guest memory (userfaultfd(2)). Looking into other processes,
/// which the latter allows too, Landlock forbids.
const KEPT: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::SYS_PTRACE);

/// No core file, which would hold the guest's memory; no more open files than anybody needs.
pub(super) fn bound_resources() -> Result<(), SandboxError> {
    let failed = |source: rustix::io::Errno| SandboxError::Rights { step: "limits", source: source.into() };
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).map_err(failed)?;
    let files = getrlimit(Resource::Nofile);
    let most = files.maximum.map_or(MAX_FILES, |maximum| maximum.min(MAX_FILES));
    setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: Some(most) }).map_err(failed)
}

/// Programs that would have more rights do not get them (prctl(2), PR_SET_NO_NEW_PRIVS).
pub(super) fn forbid_new() -> Result<(), SandboxError> {
    set_no_new_privs(true).map_err(|error| SandboxError::Rights { step: "no new rights", source: error.into() })
}

/// Leaves the host's networks, host name and message queues; gives a sentence if this process may not.
pub(super) fn leave_namespaces() -> Option<String> {
    // SAFETY: none of these namespaces has to do with memory, descriptors or other threads.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS) };
    (result != 0).then(|| {
        let error = io::Error::last_os_error();
        format!("the process stays in the host's network namespace, which only root may leave: {error}")
    })
}

/// Gives up root's rights, if it has them, but for a few.
pub(super) fn give_up() -> Result<(), SandboxError> {
    let failed = |source: rustix::io::Errno| SandboxError::Rights { step: "capabilities", source: source.into() };
    let have = capabilities(None).map_err(failed)?;
    let left = have.permitted & KEPT;
    let left =
        CapabilitySets { effective: have.effective & KEPT, permitted: left, inheritable: CapabilitySet::empty() };
    set_capabilities(None, left).map_err(failed)
}

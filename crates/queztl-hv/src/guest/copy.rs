//! `queztl-hv copy`: files and directories into a guest and out of it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use queztl_agent_client::{Error, Policy, Summary};
use queztl_api::Name;

use super::{CopyArgs, failure};
use crate::report::Failure;
use crate::status::Status;

/// What is copied, and in which direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// A file of the host to a path of the guest.
    In { from: PathBuf, to: OsString },
    /// A path of the guest to one of the host.
    Out { from: OsString, to: PathBuf },
}

/// Copies through the agent of the guest behind `vsock`.
///
/// # Errors
/// The agent's and the files'.
pub fn copy(args: &CopyArgs, vsock: &Path, way: &Way) -> Result<Status, Failure> {
    let summary = through_agent(args, vsock, way).map_err(|error| failure(&error))?;
    tracing::info!(entries = summary.entries, bytes = summary.bytes, "copied");
    if summary.skipped > 0 {
        let what = "devices, sockets, pipes and links that lead out of the copy are left out";
        eprintln!("queztl-hv: warning: {what}: {} of them", summary.skipped);
    }
    Ok(Status::Success)
}

fn through_agent(args: &CopyArgs, vsock: &Path, way: &Way) -> Result<Summary, Error> {
    let mut agent = args.target.connect(vsock)?;
    match way {
        Way::In { from, to } => agent.put(from, to),
        Way::Out { from, to } => {
            let policy = Policy { max_bytes: args.max_size, ..Policy::WARY };
            agent.get(from, to, policy)
        }
    }
}

/// Which guest is meant, and which way: exactly one of both ends has `NAME:` in front. With a socket given, the name is
/// `guest`; else it is the machine's. A path with a slash before the colon is one of the host.
///
/// # Errors
/// None or both are in a guest.
pub fn way(args: &CopyArgs) -> Result<(String, Way), Failure> {
    let by_socket = args.target.vsock.is_some();
    match (in_guest(&args.source, by_socket), in_guest(&args.destination, by_socket)) {
        (None, Some((vm, to))) => Ok((vm, Way::In { from: (&args.source).into(), to })),
        (Some((vm, from)), None) => Ok((vm, Way::Out { from, to: (&args.destination).into() })),
        _ => {
            let prefix = if by_socket { "guest:" } else { "VM:" };
            Err(Failure::usage(format!(
                "exactly one of SRC and DST must begin with `{prefix}`; write ./NAME for a file of the host that has a colon"
            )))
        }
    }
}

/// The machine and the path in it; none behind the colon is root's home.
fn in_guest(path: &OsStr, by_socket: bool) -> Option<(String, OsString)> {
    let bytes = path.as_bytes();
    let colon = bytes.iter().position(|&byte| byte == b':')?;
    let name = std::str::from_utf8(&bytes[..colon]).ok()?;
    let known = if by_socket { name == "guest" } else { name.parse::<Name>().is_ok() };
    let rest = &bytes[colon + 1..];
    let rest = if rest.is_empty() { b".".as_slice() } else { rest };
    known.then(|| (name.to_owned(), OsStr::from_bytes(rest).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_prefix_means_the_guest() {
        let guest = |text: &str| in_guest(OsStr::new(text), true).map(|(_, path)| path);
        assert_eq!(guest("guest:/etc/hosts"), Some("/etc/hosts".into()));
        assert_eq!(guest("guest:"), Some(".".into()));
        assert_eq!(guest("./guest:x"), None);
        assert_eq!(guest("web-1:x"), None);
        assert_eq!(guest("/etc/hosts"), None);
    }

    #[test]
    fn a_machines_name_means_its_guest() {
        let guest = |text: &str| in_guest(OsStr::new(text), false);
        assert_eq!(guest("web-1:/etc/hosts"), Some(("web-1".into(), "/etc/hosts".into())));
        assert_eq!(guest("web-1:a:b"), Some(("web-1".into(), "a:b".into())));
        assert_eq!(guest("./web-1:x"), None);
        assert_eq!(guest(":x"), None);
    }
}

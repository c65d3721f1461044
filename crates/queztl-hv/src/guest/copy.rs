//! `queztl-hv copy`: files and directories into a guest and out of it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use queztl_agent_client::{Error, Policy, Summary};

use super::{CopyArgs, failure};
use crate::report::Failure;
use crate::status::Status;

/// In front of a path in the guest.
const GUEST: &[u8] = b"guest:";

/// Copies what is asked for.
pub fn copy(args: &CopyArgs) -> Result<Status, Failure> {
    let summary = match (in_guest(&args.source), in_guest(&args.destination)) {
        (None, Some(destination)) => put(args, destination),
        (Some(source), None) => get(args, source),
        _ => {
            return Err(Failure::usage(
                "exactly one of SRC and DST must begin with `guest:`; write ./guest:NAME for a file of the host that does",
            ));
        }
    };
    let summary = summary.map_err(|error| failure(&error))?;
    tracing::info!(entries = summary.entries, bytes = summary.bytes, "copied");
    if summary.skipped > 0 {
        let what = "devices, sockets, pipes and links that lead out of the copy are left out";
        tracing::warn!(entries = summary.skipped, "{what}");
    }
    Ok(Status::Success)
}

/// The path behind the prefix; none behind it is root's home.
fn in_guest(path: &OsStr) -> Option<OsString> {
    let rest = path.as_bytes().strip_prefix(GUEST)?;
    Some(OsStr::from_bytes(if rest.is_empty() { b"." } else { rest }).to_owned())
}

fn put(args: &CopyArgs, destination: OsString) -> Result<Summary, Error> {
    args.target.connect()?.put(Path::new(&args.source), &destination)
}

fn get(args: &CopyArgs, source: OsString) -> Result<Summary, Error> {
    let policy = Policy { max_bytes: args.max_size, ..Policy::WARY };
    args.target.connect()?.get(&source, Path::new(&args.destination), policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_prefix_means_the_guest() {
        let guest = |text: &str| in_guest(OsStr::new(text));
        assert_eq!(guest("guest:/etc/hosts"), Some("/etc/hosts".into()));
        assert_eq!(guest("guest:"), Some(".".into()));
        assert_eq!(guest("./guest:x"), None);
        assert_eq!(guest("/etc/hosts"), None);
    }
}

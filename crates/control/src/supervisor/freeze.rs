//! What a machine's process is asked for when its state is to be kept.

use std::os::fd::OwnedFd;
use std::path::Path;

use queztl_api::Problem;
use queztl_vmm::control::{Client, DiskCut, Request};
use queztl_vmm::process::Folder;

use super::refusal;

/// Takes a snapshot into `directory` and gives how long the guest stood still, in nanoseconds.
pub(crate) fn snapshot(
    folder: &Folder,
    directory: &Path,
    base: Option<&Path>,
    disks: &[DiskCut],
) -> Result<u64, Problem> {
    let request = Request::Snapshot {
        directory: directory.to_path_buf(),
        base: base.map(Path::to_path_buf),
        disks: disks.to_vec(),
        stay_paused: false,
    };
    let taken = Client::connect(&folder.control()).and_then(|mut client| client.snapshot(&request));
    taken.map(|report| report.pause_ns).map_err(|error| refusal(&error))
}

/// Makes the machine's state ready for clones; gives the files of its memory.
pub(crate) fn fork(folder: &Folder, directory: &Path, disks: &[DiskCut]) -> Result<Vec<OwnedFd>, Problem> {
    let request = Request::Fork { directory: directory.to_path_buf(), disks: disks.to_vec() };
    let forked = Client::connect(&folder.control()).and_then(|mut client| client.fork(&request));
    forked.map(|(_, memory)| memory).map_err(|error| refusal(&error))
}

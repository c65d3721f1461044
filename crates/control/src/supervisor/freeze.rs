//! What a machine's process is asked for when its state is to be kept.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use queztl_api::Problem;
use queztl_vmm::control::{Client, ClientError, DiskCut, Request, SnapshotProgress};
use queztl_vmm::process::Folder;

use super::refusal;

/// Between two looks at how far a snapshot is.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Takes a snapshot into `directory` and gives how long the guest stood still, in nanoseconds. It takes as long as it takes;
/// `look` hears how far it is, and its error ends it.
pub(crate) fn snapshot(
    folder: &Folder,
    directory: &Path,
    base: Option<&Path>,
    disks: &[DiskCut],
    look: impl Fn(Option<SnapshotProgress>) -> Result<(), Problem>,
) -> Result<u64, Problem> {
    let request = Request::Snapshot {
        directory: directory.to_path_buf(),
        base: base.map(Path::to_path_buf),
        disks: disks.to_vec(),
        stay_paused: false,
    };
    let ask = || Client::connect(&folder.control()).and_then(|mut client| client.snapshot(&request));
    let taken = std::thread::scope(|scope| {
        let (done, answer) = sync_channel(1);
        // The receiver is there until the answer is.
        scope.spawn(move || drop(done.send(ask())));
        loop {
            match answer.recv_timeout(LOOK_INTERVAL) {
                Ok(taken) => return taken,
                Err(RecvTimeoutError::Disconnected) => return Err(ClientError::Gone),
                Err(RecvTimeoutError::Timeout) => {
                    let progress = super::status(folder).and_then(|status| status.snapshot);
                    if look(progress).is_err() {
                        // A process that does not hear this does not answer the other request either.
                        let _ = super::command(folder, &Request::CancelSnapshot {});
                    }
                }
            }
        }
    });
    taken.map(|report| report.pause_ns).map_err(|error| refusal(&error))
}

/// Makes the machine's state ready for clones; gives the files of its memory.
pub(crate) fn fork(folder: &Folder, directory: &Path, disks: &[DiskCut]) -> Result<Vec<OwnedFd>, Problem> {
    let request = Request::Fork { directory: directory.to_path_buf(), disks: disks.to_vec() };
    let forked = Client::connect(&folder.control()).and_then(|mut client| client.fork(&request));
    forked.map(|(_, memory)| memory).map_err(|error| refusal(&error))
}

//! What a machine's process is asked for when its state is to be kept.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use queztl_api::{Code, Problem};
use queztl_vmm::process::Folder;

/// Where a disk goes on.
#[derive(Debug, Clone)]
pub(crate) struct DiskCut {
    pub index: usize,
    pub overlay: PathBuf,
}

/// Takes a snapshot into `directory` and gives how long the guest stood still, in nanoseconds.
pub(crate) fn snapshot(
    _folder: &Folder,
    _directory: &Path,
    _base: Option<&Path>,
    _disks: &[DiskCut],
) -> Result<u64, Problem> {
    Err(Problem::new(Code::Host, "this version cannot take snapshots of a running machine yet"))
}

/// Makes the machine's state ready for clones; gives the files of its memory.
pub(crate) fn fork(_folder: &Folder, _directory: &Path, _disks: &[DiskCut]) -> Result<Vec<OwnedFd>, Problem> {
    Err(Problem::new(Code::Host, "this version cannot clone a running machine yet"))
}

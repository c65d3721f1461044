//! What a machine needs of the host's files.

use std::path::{Path, PathBuf};

use queztl_storage::image;

use super::Sandbox;
use crate::config::{DiskConfig, MachineConfig, SerialOutput};
use crate::process::Start;

/// Files and directories, by what is done to them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// Read; with all that is below, if it is a directory.
    pub read: Vec<PathBuf>,
    /// Files that are read and written.
    pub write: Vec<PathBuf>,
    /// Directories that are worked in: files and sockets are made, written, renamed and removed below.
    pub work: Vec<PathBuf>,
    /// Read if it is there.
    pub perhaps: Vec<PathBuf>,
}

/// What the kernel tells of this process, of memory, nodes and locks.
const KERNEL_FILES: [&str; 4] = ["/proc/self", "/proc/locks", "/sys/kernel/mm", "/sys/devices/system/node"];

impl Needs {
    /// What a machine needs that is described in `folder`.
    pub fn of(folder: &Path, config: &MachineConfig, start: &Start, sandbox: &Sandbox) -> Needs {
        let mut needs = Needs { perhaps: KERNEL_FILES.iter().map(PathBuf::from).collect(), ..Needs::default() };
        needs.work.push(folder.to_path_buf());
        // A kernel that has gone is reported when it is read.
        needs.perhaps.push(config.kernel.clone());
        needs.perhaps.extend(config.initrd.iter().cloned());
        config.disks.iter().for_each(|disk| needs.add_disk(disk));
        if let SerialOutput::File(path) = &config.serial {
            needs.work.push(parent(path));
        }
        if let Some(path) = &config.vsock {
            needs.work.push(parent(path));
        }
        match start {
            Start::Boot | Start::Incoming { .. } | Start::Backup { .. } => {}
            Start::Restore { snapshot, .. } => needs.perhaps.push(snapshot.clone()),
            Start::Fork { state, .. } => needs.perhaps.push(state.clone()),
        }
        needs.read.extend(sandbox.read.iter().cloned());
        for path in &sandbox.write {
            if path.is_dir() { &mut needs.work } else { &mut needs.write }.push(path.clone());
        }
        needs
    }

    /// A disk, and the files that it builds on. An image that cannot be read is reported when it is opened.
    fn add_disk(&mut self, disk: &DiskConfig) {
        let chain = image::info(&disk.path, disk.format, disk.backing).map(|info| info.chain).unwrap_or_default();
        self.perhaps.extend(chain.into_iter().skip(1).map(|link| link.path));
        if disk.read_only || !disk.path.exists() {
            self.perhaps.push(disk.path.clone());
        } else {
            self.write.push(disk.path.clone());
        }
    }
}

fn parent(path: &Path) -> PathBuf {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new(".")).to_path_buf()
}

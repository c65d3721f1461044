//! `machine.json`: what a process is to run.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::folder::replace;
use super::sandbox::Sandbox;
use crate::config::MachineConfig;
use crate::confine;
use crate::snapshot::Identity;

/// The version of the file's format that this program writes and reads.
pub const VERSION: u32 = 1;
/// The longest file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// What `queztl-hv vmm` runs. Relative paths are relative to the machine's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineFile {
    /// [`VERSION`]; another one is refused.
    pub version: u32,
    pub config: MachineConfig,
    #[serde(default)]
    pub start: Start,
    /// What becomes of system calls that are not on a thread's list.
    #[serde(default)]
    pub seccomp: confine::Mode,
    /// What the process may reach.
    #[serde(default)]
    pub sandbox: Sandbox,
}

/// Where the guest begins.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Start {
    /// At its kernel's entry.
    #[default]
    Boot,
    /// Where a snapshot was taken.
    Restore {
        /// The snapshot's directory.
        snapshot: PathBuf,
        /// Who the guest is from now on; without one it is who it was.
        #[serde(default)]
        identity: Option<Identity>,
    },
    /// Where a running machine was forked.
    Fork {
        /// A snapshot directory without memory.
        state: PathBuf,
        /// The files of the memory, oldest first: descriptors that the process inherits.
        memory: Vec<RawFd>,
        #[serde(default)]
        identity: Option<Identity>,
    },
    /// Where a machine is that another process brings, through the socket [`super::Folder::incoming`].
    Incoming {
        /// The disks, by their numbers, that come with it; they are made here. All others are here.
        #[serde(default)]
        disks: Vec<usize>,
    },
    /// Where a machine is that another process protects, once that has died: see [`crate::protection`].
    Backup {
        /// What the group's register said after any copy that was kept here before was lost: no owner of a lower term is served.
        term: u64,
    },
}

/// Why there is nothing to run.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{path:?} cannot be read: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path:?} cannot be written: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path:?} has more than {MAX_BYTES} bytes, which no machine's description has")]
    Size { path: PathBuf },
    #[error("{path:?} describes no machine: {source}")]
    Content { path: PathBuf, source: serde_json::Error },
    #[error(
        "{path:?} is of version {version}, and this program reads version {VERSION}: use the program that wrote it"
    )]
    Version { path: PathBuf, version: u32 },
}

impl MachineFile {
    /// A machine that boots, confined as is usual.
    pub fn new(config: MachineConfig) -> MachineFile {
        let (seccomp, sandbox) = (confine::Mode::default(), Sandbox::default());
        MachineFile { version: VERSION, config, start: Start::Boot, seccomp, sandbox }
    }

    /// Reads a file that [`MachineFile::write`] or somebody else has written.
    pub fn read(path: &Path) -> Result<MachineFile, FileError> {
        /// The version, which tells whether the rest can be understood.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let read = |source| FileError::Read { path: path.to_path_buf(), source };
        let mut text = Vec::new();
        File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut text)).map_err(read)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(FileError::Size { path: path.to_path_buf() });
        }
        let content = |source| FileError::Content { path: path.to_path_buf(), source };
        let Versioned { version } = serde_json::from_slice(&text).map_err(content)?;
        if version != VERSION {
            return Err(FileError::Version { path: path.to_path_buf(), version });
        }
        serde_json::from_slice(&text).map_err(content)
    }

    /// Writes the file in one step: whoever reads finds this machine or the one before. It survives a power cut once
    /// this returns.
    pub fn write(&self, path: &Path) -> Result<(), FileError> {
        let text = serde_json::to_vec_pretty(self);
        let text = text.map_err(|source| FileError::Content { path: path.to_path_buf(), source })?;
        replace(path, &text).map_err(|source| FileError::Write { path: path.to_path_buf(), source })
    }
}

//! A snapshot to go on from.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use queztl_guest_memory::MemoryImage;
use queztl_network::Mac;
use serde::{Deserialize, Serialize};

use super::{Error, MachineState, directory, memory};
use crate::config::MachineConfig;

/// What tells a clone from its siblings before its guest runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The VM generation id, by which the guest learns that it was cloned; zero for a fresh one.
    #[serde(default, with = "hex::serde")]
    pub generation_id: [u8; 16],
    /// Addresses of the network devices, in their order; those left out stay as they were.
    #[serde(default)]
    pub macs: Vec<Mac>,
}

/// A snapshot whose state has been read and checked.
#[derive(Debug)]
pub struct Snapshot {
    pub(crate) state: MachineState,
    pub(crate) memory: MemoryImage,
}

impl Snapshot {
    /// Opens the snapshot in `folder`.
    ///
    /// # Errors
    /// It is no snapshot, damaged, of a newer version, or cannot be read.
    pub fn open(folder: &Path) -> Result<Snapshot, Error> {
        let state = directory::read_state(folder)?;
        let memory = memory::open(folder, &state)?;
        Ok(Snapshot { state, memory })
    }

    /// Reads everything that a machine could read from the snapshot in `folder`, which [`Snapshot::open`] does not: its time
    /// grows with the memory. Of several snapshots that build on each other, `known` keeps what was found sound.
    ///
    /// # Errors
    /// Those of [`Snapshot::open`]; [`Error::DamagedMemory`] where memory is not what was written.
    pub fn verify(folder: &Path, known: &mut HashSet<PathBuf>) -> Result<(), Error> {
        let Snapshot { state, .. } = Snapshot::open(folder)?;
        memory::verify(folder, &state, known)
    }

    /// Opens what a fork has left: its state in `folder`, its memory in `files`, in the order in which they came.
    ///
    /// # Errors
    /// Those of [`Snapshot::open`]; the files are not those of the state.
    pub fn open_fork(folder: &Path, files: Vec<File>) -> Result<Snapshot, Error> {
        let state = directory::read_state(folder)?;
        let memory = memory::open_passed(folder, files)?;
        Ok(Snapshot { state, memory })
    }

    /// What came from elsewhere: the bytes of a state file, and the memory.
    ///
    /// # Errors
    /// Those of [`Snapshot::open`] about the state.
    pub(crate) fn from_parts(state: &[u8], memory: MemoryImage) -> Result<Snapshot, Error> {
        let state = super::file::decode(state).ok_or(Error::Damaged("it is something else"))??;
        state.check()?;
        Ok(Snapshot { state, memory })
    }

    /// Whether a machine of this configuration can go on from the snapshot, as far as it shows before there is one.
    ///
    /// # Errors
    /// What must be otherwise.
    pub fn check_shape(&self, config: &MachineConfig) -> Result<(), Error> {
        self.state.check_shape(config)
    }

    /// The configuration of the machine as it was, with the paths of then.
    pub fn config(&self) -> &MachineConfig {
        &self.state.config
    }
}

//! A snapshot to go on from.

use std::fs::File;
use std::path::Path;

use queztl_network::Mac;
use serde::{Deserialize, Serialize};

use super::directory::{self, MEMORY_FILE};
use super::{Error, MachineState};
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
    pub(crate) memory: File,
}

impl Snapshot {
    /// Opens the snapshot in `folder`.
    ///
    /// # Errors
    /// It is no snapshot, damaged, of a newer version, or cannot be read.
    pub fn open(folder: &Path) -> Result<Snapshot, Error> {
        let state = directory::read_state(folder)?;
        let path = folder.join(MEMORY_FILE);
        let memory = File::open(&path).map_err(Error::io(path, "opening the memory"))?;
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

//! The one way by which a part of the machine gives its state and takes it back.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A state that no part of this kind can be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{part}: {reason}")]
pub struct Invalid {
    /// Which part refuses.
    pub part: &'static str,
    pub reason: &'static str,
}

impl Invalid {
    pub fn new(part: &'static str, reason: &'static str) -> Invalid {
        Invalid { part, reason }
    }

    /// An error unless `holds`.
    pub fn unless(holds: bool, part: &'static str, reason: &'static str) -> Result<(), Invalid> {
        if holds { Ok(()) } else { Err(Invalid::new(part, reason)) }
    }
}

/// A part of a machine whose state can be saved and restored.
///
/// Both are called while the machine stands still: no vCPU runs, no device thread works. `restore` is called on a part
/// that was just made with the same configuration; the interrupt controllers come before the devices, since a device
/// sets its line as a part of its restoration. After an error the part is of no use.
pub trait Persist {
    type State: Serialize + DeserializeOwned;

    /// The state, up to date. Devices are saved before the interrupt controllers: bringing a device up to date may raise
    /// its line.
    fn save(&self) -> Self::State;

    /// Takes over `state`, and arms the timers that it says are running.
    fn restore(&self, state: Self::State) -> Result<(), Invalid>;
}

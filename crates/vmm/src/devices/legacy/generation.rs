//! The virtual machine's generation identifier: how a guest learns that it is a copy of what it was.
//!
//! Promise: an identifier of 16 bytes lies in guest memory at [`GENERATION_ID`]; it stays the same over a pause and
//! changes, with a notice to the guest, whenever the guest goes on from a state that somebody else goes on from too: a
//! snapshot or a live fork. Linux mixes it into its random generator and seeds that anew.
//!
//! It is part of the memory, so a snapshot holds it without further ado.
//! Source: Microsoft, “Virtual Machine Generation ID”, 1.0.

use std::sync::Arc;

use queztl_guest_memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::notices::{Notice, Notices};
use crate::layout::GENERATION_ID;

/// Bytes of the identifier.
pub const LEN: usize = 16;

/// The identifier of one machine.
pub struct GenerationId {
    memory: Arc<GuestMemory>,
    notices: Arc<Notices>,
}

impl GenerationId {
    pub fn new(memory: Arc<GuestMemory>, notices: Arc<Notices>) -> GenerationId {
        GenerationId { memory, notices }
    }

    /// Puts an identifier in place before the guest runs for the first time.
    ///
    /// # Errors
    /// When there is no RAM at [`GENERATION_ID`].
    pub fn set(&self, id: [u8; LEN]) -> Result<(), GuestMemoryError> {
        self.memory.write_slice(&id, GuestAddress(GENERATION_ID))
    }

    /// Gives the guest another identifier and tells it so. Called before the vCPUs of a copy run; the guest acts on it
    /// within its next interrupt.
    ///
    /// # Errors
    /// As [`GenerationId::set`].
    pub fn change(&self, id: [u8; LEN]) -> Result<(), GuestMemoryError> {
        self.set(id)?;
        self.notices.raise(Notice::GenerationChanged);
        Ok(())
    }

    /// The identifier as the guest sees it.
    ///
    /// # Errors
    /// As [`GenerationId::set`].
    pub fn get(&self) -> Result<[u8; LEN], GuestMemoryError> {
        let mut id = [0; LEN];
        self.memory.read_slice(&mut id, GuestAddress(GENERATION_ID))?;
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use queztl_guest_memory::GuestRam;

    use super::super::testing::Line;
    use super::*;

    #[test]
    fn only_a_change_is_noticed() {
        let (ram, line) = (GuestRam::new(2 << 20).unwrap(), Arc::new(Line::default()));
        let id = GenerationId::new(ram.memory().clone(), Arc::new(Notices::new(line.irq())));
        id.set([1; LEN]).unwrap();
        assert_eq!((id.get().unwrap(), line.high()), ([1; LEN], false));
        id.change([2; LEN]).unwrap();
        assert_eq!((id.get().unwrap(), line.high()), ([2; LEN], true));
    }
}

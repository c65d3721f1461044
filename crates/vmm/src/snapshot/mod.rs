//! A machine's state as data: what a snapshot, a clone and a migration carry besides RAM.
//!
//! Every part that has a state implements [`Persist`] beside its code. States are plain values that serialise; times in
//! them are on the guest's clock, which goes on where it stopped. A state may come from a stranger: `restore` checks
//! whatever the part relies on and refuses the rest.
//!
//! Promises of a snapshot on disk:
//! - it is there as a whole, or not there (`directory.rs`); taking one leaves the machine as it was, whatever happens;
//! - a snapshot that is damaged, truncated, foreign or of a newer version is refused with a sentence (`file.rs`), and so is
//!   one of a machine of another shape or of another processor (`state.rs`);
//! - a state is taken and put back in one order (`machine/snapshot.rs`, `machine/restore.rs`).
//!
//! ```text
//! DIRECTORY/state.json    MachineState: versioned, checksummed, no unknown fields
//! DIRECTORY/memory        RAM, or what has changed since another snapshot: sparse, page-aligned, mapped as it is
//! DIRECTORY/memory.table  what of RAM is in it, with checksums: queztl_guest_memory::MemoryTable
//! ```

mod directory;
mod error;
mod file;
pub(crate) mod memory;
mod persist;
mod source;
pub(crate) mod state;
#[cfg(test)]
mod tests;

pub(crate) use directory::Staging;
pub use directory::{MEMORY_FILE, STATE_FILE, TABLE_FILE, is_unfinished};
pub use error::Error;
pub use file::VERSION;
#[cfg(test)]
pub(crate) use file::decode;
pub(crate) use file::encode;
pub use persist::{Invalid, Persist};
pub use source::{Identity, Snapshot};
pub use state::{ClockState, MachineState, ProcessorLeaf, VcpuState};

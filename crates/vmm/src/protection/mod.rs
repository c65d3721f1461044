//! A running machine is copied to other processes again and again, so that it survives its own.
//!
//! ```text
//!  primary (runs)                                              backup (`Start::Backup`), one of n
//!  connect, BEGIN {term, RAM}                   ──────────>    nothing is kept of an earlier connection's half epochs
//!  each epoch: frozen, goes on
//!     DISK: what was written to disks           ──────────>    kept for the epoch that follows
//!     EPOCH {term, epoch, base} and the state   ──────────>    a stage beside the copy
//!     what has changed since `base`             ══stripes══>   into the stage, digest summed up
//!     COMMIT {term, epoch, digest}              ──────────>    whole? [`Member`] decides; the stage becomes a part of the copy
//!     acknowledged                              <──────────
//!  k acknowledgements: output of the epoch leaves
//!                                      `promote` (its daemon)  makes the machine from the copy, and runs it
//! ```
//! Promises:
//! - frames that the guest sent in an epoch leave only when as many backups as the rule in force says have that epoch whole
//!   ([`Owner`] decides, [`Outlet`] obeys): an owner that was followed finds too few who acknowledge;
//! - a copy is always one whole epoch: changes are staged beside it, and become part of it in one step;
//! - a backup that has promised a term takes nothing of an owner of a lower one;
//! - disks and memory of a copy are of the same epoch.
//!
//! What is not held back: the socket device and the consoles, which are for whoever looks after the machine.
//!
//! [`Member`]: queztl_distributed_ram::Member
//! [`Owner`]: queztl_distributed_ram::Owner
//! [`Outlet`]: crate::devices::virtio::net::outlet::Outlet

mod copy;
mod digest;
mod link;
mod standby;
mod wire;
mod words;

use std::io;

use queztl_distributed_ram::{Epoch, Term, Version};
use queztl_guest_memory::ImageError;

pub(crate) use link::{Link, Offer};
pub use standby::{Promotion, stand_by};
pub(crate) use wire::{Begin, DiskPart, Reply};
pub use words::{Word, WordAnswer, say};

/// Why an epoch cannot be brought over, or a copy not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Carrier(#[from] crate::migration::Error),
    #[error("the connection to the other side fails: {0}")]
    Connection(#[from] queztl_qhp::Error),
    #[error("the memory cannot be brought over: {0}")]
    Transfer(#[from] queztl_parallel_transfer::Error),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Snapshot(#[from] crate::snapshot::Error),
    #[error("the other side does not speak as it should ({0}): is it of another version?")]
    Protocol(&'static str),
    #[error("an owner of term {theirs} is too late: term {promised} was promised")]
    Fenced { theirs: Term, promised: Term },
    #[error("epoch {} of term {} has not arrived whole", .0.epoch, .0.term)]
    Torn(Version),
    #[error("changes are staged on epoch {0}, which is not the copy's: all of the memory is needed")]
    NoBase(Epoch),
    #[error("there is no whole copy to go on from")]
    NoCopy,
    #[error("this backup has promised term {promised}, not {term}: claim again")]
    NotPromised { term: Term, promised: Term },
    #[error("the copy cannot be kept: {0}")]
    Copy(io::Error),
    #[error(transparent)]
    Mirror(#[from] crate::mirror::Error),
    #[error("the socket {path:?} fails: {source}")]
    Socket { path: std::path::PathBuf, source: io::Error },
    #[error("the process of the backup refuses: {0}")]
    Refused(String),
}

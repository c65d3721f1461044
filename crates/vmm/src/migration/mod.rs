//! A running machine goes on in another process, of this host or another one.
//!
//! ```text
//!  source (runs)                                              target (`Start::Incoming`)
//!  connect, BEGIN {RAM}                        ──────────>    a file in memory of the size of RAM
//!  connect stripes                             ──────────>
//!  disks: all of them, then what was written meanwhile ──>    files of their own ([`crate::mirror`])
//!  round 1: frozen, goes on, all of RAM        ══stripes══>   written
//!  round n: frozen, goes on, what has changed  ══stripes══>   written                  … until little changes
//!  last:    frozen, stays paused, the rest     ══stripes══>   written, and the state: a machine is made, ready
//!           before it, what was written to disks at the end
//!           disks that both hosts see: flushed, let go        opened
//!  RUN                                         ──────────>    goes on
//!  ended as moved                              <─────────
//! ```
//! Promises:
//! - the guest runs in one place or stands still, never in two: from RUN on, the source goes on only if the target has said
//!   that it does not; where that answer is lost, the source stands still, in doubt, and whoever can ask the target decides;
//! - whatever else fails, at any moment, leaves the machine running at the source;
//! - memory and disks of the machine that goes on are of the same moment, and what the guest had flushed is durable there;
//! - the bytes of a peer are checked before they are used: a stranger's state is refused or harmless.
//!
//! The wire is QHP over Unix sockets; who carries them to another host (and authenticates and encrypts) is not seen here. One
//! connection has the calls below, and each of the others a stripe of [`queztl_parallel_transfer`].

mod link;
pub(crate) mod memory;
pub(crate) mod target;
pub(crate) mod wire;

use std::io;

use queztl_guest_memory::ImageError;

pub(crate) use link::{LastRound, Link, Verdict};
pub use target::{Arrival, Arrived, receive};
pub(crate) use wire::Begin;
pub use wire::MAX_STRIPES;

/// Why a machine cannot be brought over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the other side cannot be reached: {0}")]
    Connect(io::Error),
    #[error("the connection to the other side fails: {0}")]
    Connection(#[from] queztl_qhp::Error),
    #[error("the memory cannot be brought over: {0}")]
    Transfer(#[from] queztl_parallel_transfer::Error),
    #[error("the other side refuses: {0}")]
    Refused(String),
    #[error("the other side does not speak as it should ({0}): is it of another version?")]
    Protocol(&'static str),
    #[error("the other side has version {theirs} of the protocol, and this program version {ours}")]
    Version { theirs: u32, ours: u32 },
    #[error("the machine that comes has {theirs} bytes of RAM, and a machine with {ours} is expected")]
    Ram { theirs: u64, ours: u64 },
    #[error("the machine that comes brings {theirs} disks, and {ours} are expected")]
    Disks { theirs: usize, ours: usize },
    #[error("memory for the machine that comes cannot be had: {0}")]
    Memory(io::Error),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Mirror(#[from] crate::mirror::Error),
    #[error("the machine cannot be made to stand still: {0}")]
    Still(String),
    #[error(transparent)]
    Snapshot(#[from] crate::snapshot::Error),
    #[error("nobody has brought the machine within {0} s")]
    Nobody(u64),
}

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
//! With post-copy, the rounds are left out, or end before little is left. What was not sent comes while the guest runs there:
//! ```text
//!  stays paused, SWITCH: the state, what is missing  ───>     a machine is made, ready; pages that this takes are asked for
//!  RUN                                         ──────────>    goes on; whoever touches what is missing waits for it
//!  pages that are waited for, and all others   ══stripes══>   put where they belong, once each   ([`offer`], [`pager`])
//!  a connection breaks: RESUME                 <────────>     what is missing
//!  ended as moved                              <─────────     nothing more is needed
//! ```
//! Promises:
//! - the guest runs in one place or stands still, never in two: from RUN on, the source goes on only if the target has said
//!   that it does not; where that answer is lost, the source stands still, in doubt, and whoever can ask the target decides;
//! - whatever else fails, at any moment, leaves the machine running at the source; with post-copy, only before RUN: from then on
//!   both hosts are needed until all memory has come, and a target whose source is gone for good ends its machine rather than
//!   let it see a page that is not its own;
//! - memory and disks of the machine that goes on are of the same moment, and what the guest had flushed is durable there;
//! - the bytes of a peer are checked before they are used: a stranger's state is refused or harmless.
//!
//! The wire is QHP over Unix sockets; who carries them to another host (and authenticates and encrypts) is not seen here. One
//! connection has the calls below, and each of the others a stripe of [`queztl_parallel_transfer`].

pub(crate) mod late;
mod link;
pub(crate) mod memory;
pub(crate) mod offer;
mod pager;
pub(crate) mod target;
pub(crate) mod wire;

use std::io;

use queztl_guest_memory::ImageError;

pub use late::examine;
pub(crate) use link::{LastRound, Link, Verdict};
pub use pager::{OnLost, Pager, Waiting};
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
    #[error(
        "the source of this machine's memory is gone for good, and {0} bytes were still there: the machine cannot go on"
    )]
    Lost(u64),
    #[error("nobody has brought the machine within {0} s")]
    Nobody(u64),
}

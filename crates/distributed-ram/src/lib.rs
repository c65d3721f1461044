//! Replication groups: memory that survives its host.
//!
//! One node, the *owner*, changes the memory and cuts it into epochs; *members* keep copies. What the owner lets out (packets,
//! disk flushes) waits until enough members have the epoch it belongs to. When the owner dies, a member goes on from the
//! last epoch that anybody outside can know of.
//!
//! Promises, for any number of crashes, restarts, partitions, delays, duplicates and reorderings:
//! - an owner that another one has followed can let out nothing that its successor does not know of, however late it hears of
//!   that: no clock is needed for this;
//! - no output that was let out while the group was protected is lost: whoever goes on has its epoch;
//! - there is always a whole epoch to go on from: members never change their copy in place.
//!
//! The parts are state machines without sockets, threads or clocks: events in, actions out. Production, the tests and the
//! model checker run the same ones.
//!
//! ```text
//!               cuts                          stages
//!   Owner ────────────── epoch ──────────────> Member        n members, k acknowledgements
//!     │ <──────────── acknowledgement ─────────── │
//!     v                                           │ owner silent
//!   lets out                                      v
//!   epochs ≤ acknowledged by k               Candidate ── claim ──> Register (compare and swap)
//!                                                 │ asks n − k + 1 members: so it meets one of any k
//!                                                 v
//!                                            the newest copy of those goes on
//! ```
//! What makes it safe is that promises meet acknowledgements. A candidate goes on once `n − k + 1` of `n` members have promised to
//! serve no lower term. Each set of `k` members has one of them, so from then on the owner before is short of
//! acknowledgements for whatever is new; and the newest copy of those that promised has all that was acknowledged. What the
//! owner before may still let out belongs to that copy. So a wrong suspicion ([`Detector`]) costs time, and nothing else. A
//! member that has lost its copy has also lost what it promised: it begins again from the register's term
//! ([`Member::fresh`]), and its word counts once it has a copy.
//!
//! The [`Register`] is the one thing that all agree on: a value that is only changed by compare-and-swap, in etcd or in a file
//! of one host. It is not asked for epochs.

mod candidate;
mod detector;
mod member;
mod owner;
mod register;

pub use candidate::{Candidate, Outcome};
pub use detector::{Detector, Patience};
pub use member::{Answer, Member, Promise};
pub use owner::{Owner, Release, Rule};
pub use register::{Phase, Register, RegisterError};

/// A node of the group.
pub type Node = u32;

/// A period of one owner. A higher term has a later owner; two owners never have the same.
pub type Term = u64;

/// A cut of the memory. Numbers go on over terms: the first epoch of a term follows the one that its owner began from.
pub type Epoch = u64;

/// Which state a copy holds. Of two versions the greater is the later one: terms first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
pub struct Version {
    /// The term of the owner that cut the epoch.
    pub term: Term,
    pub epoch: Epoch,
}

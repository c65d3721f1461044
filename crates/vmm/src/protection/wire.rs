//! What primary and backup say over their connections.

use queztl_distributed_ram::{Epoch as Number, Term, Version};
use serde::{Deserialize, Serialize};

/// Of what follows.
pub(super) const VERSION: u32 = 2;

/// QHP services. A call of [`BEGIN`] makes a connection the one for calls.
pub(super) const BEGIN: u32 = 0x101;
/// A stream of chunks, one way.
pub(super) const STRIPE: u32 = 0x102;
/// Told, not answered: [`Epoch`], a line feed, the machine's state as in a snapshot.
pub(super) const EPOCH: u32 = 0x103;
/// A call: [`Commit`], answered by [`Reply`].
pub(super) const COMMIT: u32 = 0x104;
/// A call: [`DiskPart`], a line feed, changes of disks ([`crate::mirror`]); the answer is empty. What belongs to an epoch comes before
/// it.
pub(super) const DISK: u32 = 0x105;

/// What is to come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Begin {
    pub version: u32,
    pub term: Term,
    /// RAM as (guest-physical address, bytes).
    pub ram: Vec<(u64, u64)>,
    pub stripes: u32,
    /// The sizes of the disks that are written to, in bytes.
    #[serde(default)]
    pub disks: Vec<u64>,
}

impl Begin {
    pub fn new(term: Term, ram: Vec<(u64, u64)>, stripes: u32, disks: Vec<u64>) -> Begin {
        Begin { version: VERSION, term, ram, stripes, disks }
    }
}

/// What changes of disks are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DiskPart {
    /// The disks as a whole, perhaps of no one moment: an epoch that begins anew makes them whole.
    Whole,
    /// The next epoch.
    Epoch,
}

/// An epoch whose memory follows over the stripes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Epoch {
    pub version: Version,
    /// The epoch of the same term that it is the difference to; none if it is all of the memory.
    pub base: Option<Number>,
    /// The transfer's number on this connection.
    pub round: u64,
    /// What has come before it as [`DiskPart::Epoch`].
    #[serde(default)]
    pub disk_bytes: u64,
}

/// All of an epoch was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Commit {
    pub version: Version,
    pub digest: u64,
}

/// What becomes of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reply {
    Acknowledged(Version),
    /// There is a higher term.
    Fenced(Term),
    /// It does not follow from the copy.
    NeedsAll,
}

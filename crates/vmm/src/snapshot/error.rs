//! Why there is no snapshot, or no machine from one.

use std::io;
use std::path::PathBuf;

use queztl_guest_memory::ImageError;

use super::Invalid;

/// What can go wrong with a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path:?}: {step}: {source}")]
    Io { path: PathBuf, step: &'static str, source: io::Error },
    #[error("{0:?} exists already: give the snapshot another name")]
    Exists(PathBuf),
    #[error("{0:?} is no place for a snapshot: name a directory to be made in one that exists")]
    NoPlace(PathBuf),
    #[error("{0:?} is no snapshot of a machine: name the directory of one")]
    Foreign(PathBuf),
    #[error(
        "the snapshot has format version {found}, and this program knows versions up to {known}: use a newer program"
    )]
    Newer { found: u64, known: u64 },
    #[error("the snapshot's state is damaged ({0}): use another snapshot")]
    Damaged(&'static str),
    #[error("the snapshot's state is not understood ({0}): it may be of another program's version")]
    NotUnderstood(String),
    #[error("the snapshot's state cannot be ({0}): use another snapshot")]
    Impossible(&'static str),
    #[error(transparent)]
    Memory(#[from] ImageError),
    #[error("{path:?}: {source}: use a snapshot that does not build on it")]
    DamagedMemory { path: PathBuf, source: ImageError },
    #[error("{0:?} is not beside the new snapshot: a snapshot and what it builds on have one parent directory")]
    BaseElsewhere(PathBuf),
    #[error("a snapshot builds on {0} others at most: take a full one")]
    TooManyBases(usize),
    #[error("a part's state is refused: {0}: use another snapshot")]
    Part(#[from] Invalid),
    #[error("the state of vCPU {vcpu} is refused: {reason}: use another snapshot")]
    Vcpu { vcpu: usize, reason: String },
    #[error("the snapshot is of a machine with {then} {what}, not {now}: restore it with as many")]
    Shape { what: &'static str, then: u64, now: u64 },
    #[error("the snapshot is of another machine: {0}")]
    OtherShape(&'static str),
    #[error(
        "disk {index} had {then} sectors when the snapshot was taken and has {now}: give the disk that belongs to the \
         snapshot"
    )]
    DiskSize { index: usize, then: u64, now: u64 },
    #[error(
        "the guest was told of another processor (CPUID leaf {leaf:#x}, subleaf {subleaf}): the snapshot was taken with \
         accelerator {then}, and this is {now}; restore it with the same on a host of the same kind"
    )]
    Processor { then: String, now: String, leaf: u32, subleaf: u32 },
    #[error("{0} MAC addresses are more than the machine has network devices")]
    Macs(usize),
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>, step: &'static str) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, step, source }
    }
}

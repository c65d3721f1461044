//! Why a kernel could not be loaded.

use std::io;
use std::path::PathBuf;

/// Why a kernel could not be loaded. Each says what happened, why, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {what} {path:?}: {source}", path = path.display().to_string())]
    Read { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{what} {path:?} is not a regular file: give the path of an image file", path = path.display().to_string())]
    NotAFile { what: &'static str, path: PathBuf },
    #[error(
        "kernel {path:?} is of no known kind: give an ELF vmlinux, a bzImage or a Multiboot 1 ELF",
        path = path.display().to_string()
    )]
    UnknownFormat { path: PathBuf },
    #[error("kernel {path:?} cannot be loaded: {source}", path = path.display().to_string())]
    Kernel { path: PathBuf, source: KernelError },
    #[error(
        "the kernel's command line of {len} bytes is too long: this kernel takes at most {limit} bytes, so shorten it"
    )]
    CmdlineTooLong { len: usize, limit: usize },
    #[error("the kernel's command line holds a zero byte: remove it")]
    CmdlineZero,
    #[error(
        "the initial RAM disk of {} does not fit beside the kernel into {} of RAM: give the guest at least {}",
        mib(*len), mib(*ram), mib(*needed)
    )]
    InitrdTooLarge { len: u64, ram: u64, needed: u64 },
    #[error(
        "the initial RAM disk of {} is too large: this kernel takes one only below address {limit:#x}, so use a disk",
        mib(*len)
    )]
    InitrdBeyondLimit { len: u64, limit: u64 },
    #[error("guest RAM cannot be written at {address:#x}: {source}")]
    Memory { address: u64, source: vm_memory::GuestMemoryError },
}

/// What is wrong with a kernel image.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("it cannot be read at offset {offset:#x}: {source}")]
    Io { offset: u64, source: io::Error },
    #[error("it ends before {what}, so it is truncated or damaged: build or fetch it again")]
    Truncated { what: &'static str },
    #[error("{what}, so it is damaged or not meant for this machine: build or fetch it again")]
    Malformed { what: &'static str },
    #[error("it is for another processor (ELF machine {machine}): give an x86 kernel")]
    WrongMachine { machine: u16 },
    #[error("it has no {protocol} entry point: choose another boot protocol or another kernel")]
    NoEntry { protocol: &'static str },
    #[error("its boot protocol is version {major}.{minor}: give a kernel with version 2.10 or later (Linux 2.6.31)")]
    OldProtocol { major: u8, minor: u8 },
    #[error(
        "it needs guest-physical addresses {start:#x}..{end:#x}, where there is no RAM: give the guest at least {}",
        mib(*end)
    )]
    OutsideRam { start: u64, end: u64 },
    #[error("its addresses {start:#x}..{end:#x} overlap {with}: link it elsewhere")]
    Overlap { start: u64, end: u64, with: &'static str },
    #[error("it cannot be decompressed ({format}): {source}")]
    Decompress { format: &'static str, source: io::Error },
    #[error("it asks its loader for features this one does not have (Multiboot flags {flags:#x})")]
    MultibootFlags { flags: u32 },
    #[error("its modules do not fit: {what}; give fewer or smaller ones, or more RAM")]
    Modules { what: &'static str },
    #[error("guest RAM cannot be written at {address:#x}: {source}")]
    Memory { address: u64, source: vm_memory::GuestMemoryError },
}

/// `bytes` as MiB, rounded up, for people.
fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

//! Why a disk cannot be opened, each with what to do about it.

use std::io;
use std::path::PathBuf;

use crate::qcow2::HeaderError;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("disk image {0} does not exist; create one with `truncate -s 8G {0}` or name another file")]
    Missing(PathBuf),
    #[error("{0} is a directory, not a disk image; name a file or a block device")]
    Directory(PathBuf),
    #[error("{0} is neither a regular file nor a block device, so it cannot be a disk")]
    NotADisk(PathBuf),
    #[error("disk image {0} is empty; give it a size with `truncate -s 8G {0}`")]
    Empty(PathBuf),
    #[error(
        "disk image {path} has {bytes} bytes, which is not a multiple of {block}; enlarge it with `truncate -s %{block} {path}`"
    )]
    Unaligned { path: PathBuf, bytes: u64, block: u32 },
    #[error("disk {path} may not be written ({source}); change its permissions or attach it read-only with `,ro`")]
    Unwritable { path: PathBuf, source: io::Error },
    #[error("disk {path} may not be read ({source}); change its permissions")]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("disk {path} is in use by {holder}; stop that first, or attach the disk read-only everywhere with `,ro`")]
    Locked { path: PathBuf, holder: String },
    #[error("block device {0} is in use by this host (mounted, or part of a volume); unmount it first")]
    Busy(PathBuf),
    #[error("disk {path} cannot be opened: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error("disk {path} cannot be used without the host's page cache ({source}); leave direct I/O off")]
    NoDirect { path: PathBuf, source: io::Error },
    #[error("what was written to disk {path} cannot be made durable: {source}")]
    Flush { path: PathBuf, source: io::Error },
    #[error(
        "image {overlay} does not build on {base}; make it with `queztl-hv image create --backing {base} {overlay}`"
    )]
    OtherBase { overlay: PathBuf, base: PathBuf },
    #[error("a disk queue cannot be set up: {0}")]
    Queue(io::Error),
    #[error("{path} {source}")]
    Qcow2 { path: PathBuf, source: HeaderError },
    #[error("{0} holds a qcow2 image by its first bytes, but not by its name; say `format=qcow2` or `format=raw`")]
    UnclearFormat(PathBuf),
    #[error("{0} is marked as damaged; look at it with `queztl-hv image check {0}`, or attach it read-only with `,ro`")]
    MarkedCorrupt(PathBuf),
    #[error("the disk in {path} has {bytes} bytes, which is not a positive multiple of 512")]
    DiskSize { path: PathBuf, bytes: u64 },
    #[error("image {image} builds on {backing}, which cannot be found: {source}")]
    BackingMissing { image: PathBuf, backing: PathBuf, source: io::Error },
    #[error(
        "image {image} wants to build on {backing}, outside its own folder; if you trust the image, allow it with `,backing=any`"
    )]
    BackingRefused { image: PathBuf, backing: PathBuf },
    #[error("image {image} builds on an image of format `{format}`; raw and qcow2 are known")]
    BackingFormat { image: PathBuf, format: String },
    #[error(
        "image {image} does not say which format its backing file {backing} has; write it down with `qemu-img rebase -u -F FORMAT`"
    )]
    BackingFormatMissing { image: PathBuf, backing: PathBuf },
    #[error("the backing files of an image return to {0}: such a chain has no end")]
    ChainLoop(PathBuf),
    #[error(
        "image {path} builds on more than {most} files, one on the other; flatten it with `queztl-hv image convert`"
    )]
    ChainTooLong { path: PathBuf, most: usize },
    #[error("{0} has a queue already, and a qcow2 image has one")]
    OneQueue(PathBuf),
    #[error("{0} exists already; name another file, or remove it first")]
    Exists(PathBuf),
    #[error("image {path} cannot be made: {source}")]
    Create { path: PathBuf, source: io::Error },
    #[error("image {path} cannot be given another size: {source}")]
    Resize { path: PathBuf, source: io::Error },
    #[error("a raw image cannot build on another, so {0} has to be a qcow2 image")]
    RawParent(PathBuf),
    #[error("how large is {0} to be? Say a size, such as 8G")]
    SizeMissing(PathBuf),
    #[error("the disk could not be copied: {0}")]
    Copy(io::Error),
    #[error("{path} has {clusters} clusters, too many to count: convert it to larger clusters first")]
    CheckTooLarge { path: PathBuf, clusters: u64 },
}

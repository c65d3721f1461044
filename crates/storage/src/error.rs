//! Why a disk cannot be opened, each with what to do about it.

use std::io;
use std::path::PathBuf;

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
    #[error("a disk queue cannot be set up: {0}")]
    Queue(io::Error),
}

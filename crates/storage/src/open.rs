//! Opening the files that disks lie in.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use crate::Error;

/// What lies at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    BlockDevice,
}

pub(crate) fn file_kind(path: &Path) -> Result<Kind, Error> {
    let path_buf = || path.to_path_buf();
    let metadata = std::fs::metadata(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::Missing(path_buf()),
        io::ErrorKind::PermissionDenied => Error::Unreadable { path: path_buf(), source },
        _ => Error::Open { path: path_buf(), source },
    })?;
    match metadata.file_type() {
        kind if kind.is_dir() => Err(Error::Directory(path_buf())),
        kind if kind.is_file() => Ok(Kind::File),
        kind if kind.is_block_device() => Ok(Kind::BlockDevice),
        _ => Err(Error::NotADisk(path_buf())),
    }
}

pub(crate) fn open_file(path: &Path, read_only: bool, kind: Kind) -> Result<File, Error> {
    // On a block device, O_EXCL refuses one that the host itself has mounted (open(2)).
    let flags = if kind == Kind::BlockDevice && !read_only { libc::O_EXCL } else { 0 };
    let open = OpenOptions::new().read(true).write(!read_only).custom_flags(flags).open(path);
    let path = path.to_path_buf();
    open.map_err(|source| match source.raw_os_error() {
        Some(libc::EBUSY) => Error::Busy(path),
        Some(libc::EACCES | libc::EPERM | libc::EROFS | libc::ETXTBSY) if !read_only => {
            Error::Unwritable { path, source }
        }
        Some(libc::EACCES | libc::EPERM) => Error::Unreadable { path, source },
        _ => Error::Open { path, source },
    })
}

//! Raw images and block devices: byte n of the disk is byte n of the file.

mod queue;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::transfer::Transfer;
use crate::{Buffer, Disk, DiskQueue, Error, Operation, Request, SECTOR_SIZE, Topology, lock};

/// Bytes in which the page cache holds a file: what it writes without reading first.
const PAGE_BYTES: u32 = 4096;

/// Which file, and how to use it.
#[derive(Debug, Clone)]
pub struct RawConfig {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// Refuse writes, and share the file with other readers.
    pub read_only: bool,
    /// Bypass the host's page cache for requests whose memory and offsets are aligned.
    pub direct: bool,
    /// Work on one request at a time, in the caller's thread: requests complete in the order in which they came.
    pub in_order: bool,
}

/// An open raw disk, locked against a second writer for as long as it or one of its queues lives.
#[derive(Debug)]
pub struct RawFile {
    inner: Arc<Inner>,
}

/// What the disk's queues share.
#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: File,
    direct: Option<File>,
    read_only: bool,
    in_order: bool,
    topology: Topology,
}

impl RawFile {
    /// Opens and locks the disk.
    pub fn open(config: &RawConfig) -> Result<RawFile, Error> {
        let path = config.path.clone();
        let kind = file_kind(&path)?;
        let mut file = open_file(&path, config.read_only, kind)?;
        lock::take(&file, &path, config.read_only)?;
        let topology = topology(&mut file, &path, kind)?;
        let direct = if config.direct { Some(reopen_direct(&file, &path, config.read_only)?) } else { None };
        let RawConfig { read_only, in_order, .. } = *config;
        Ok(RawFile { inner: Arc::new(Inner { path, file, direct, read_only, in_order, topology }) })
    }

    /// Where the disk lies.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// A queue that works in the caller's thread, for hosts without io_uring and for order.
    fn open_sync_queue(&self, depth: u32) -> Result<Box<dyn DiskQueue>, Error> {
        Ok(Box::new(queue::SyncQueue::new(self.inner.clone(), depth).map_err(Error::Queue)?))
    }
}

impl Disk for RawFile {
    fn topology(&self) -> Topology {
        self.inner.topology
    }

    fn read_only(&self) -> bool {
        self.inner.read_only
    }

    fn open_queue(&self, depth: u32) -> Result<Box<dyn DiskQueue>, Error> {
        if self.inner.in_order {
            return self.open_sync_queue(depth);
        }
        match queue::RingQueue::new(self.inner.clone(), depth) {
            Ok(queue) => Ok(Box::new(queue)),
            Err(error) => {
                tracing::warn!(
                    disk = %self.inner.path.display(), %error,
                    "io_uring is not available, so this disk works on one request at a time"
                );
                self.open_sync_queue(depth)
            }
        }
    }
}

impl Inner {
    /// Refuses what must not reach the file.
    fn check(&self, request: &Request) -> io::Result<()> {
        if self.read_only && !matches!(request.operation, Operation::Read | Operation::Flush) {
            return Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem));
        }
        let end = request.span_bytes().and_then(|span| request.offset_bytes.checked_add(span));
        match end {
            Some(end) if end <= self.topology.size_bytes => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "beyond the end of the disk")),
        }
    }

    /// The work on the file that a request is.
    fn transfer(&self, request: Request) -> Transfer {
        Transfer {
            file: self.descriptor(&request.buffers, request.offset_bytes),
            cached: self.file.as_raw_fd(),
            operation: request.operation,
            offset_bytes: request.offset_bytes,
            length_bytes: request.length_bytes,
            buffers: request.buffers,
        }
    }

    /// The descriptor for a read or write of `buffers`: without the page cache where that was asked for and the memory
    /// and offset allow it. The kernel keeps the two descriptors of one file coherent.
    fn descriptor(&self, buffers: &[Buffer], offset: u64) -> RawFd {
        let align = u64::from(self.topology.logical_block_bytes.max(SECTOR_SIZE as u32));
        let aligned = |b: &Buffer| (b.base() as u64).is_multiple_of(align) && (b.len() as u64).is_multiple_of(align);
        match &self.direct {
            Some(direct) if offset.is_multiple_of(align) && buffers.iter().all(aligned) => direct.as_raw_fd(),
            _ => self.file.as_raw_fd(),
        }
    }
}

/// What lies at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    BlockDevice,
}

fn file_kind(path: &Path) -> Result<Kind, Error> {
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

fn open_file(path: &Path, read_only: bool, kind: Kind) -> Result<File, Error> {
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

fn topology(file: &mut File, path: &Path, kind: Kind) -> Result<Topology, Error> {
    let open = |source: io::Error| Error::Open { path: path.to_path_buf(), source };
    let (logical, physical) = match kind {
        Kind::File => (SECTOR_SIZE as u32, PAGE_BYTES),
        Kind::BlockDevice => (
            rustix::fs::ioctl_blksszget(&*file).map_err(|e| open(e.into()))?,
            rustix::fs::ioctl_blkpbszget(&*file).map_err(|e| open(e.into()))?,
        ),
    };
    let size_bytes = file.seek(SeekFrom::End(0)).map_err(open)?;
    if size_bytes == 0 {
        return Err(Error::Empty(path.to_path_buf()));
    }
    if !size_bytes.is_multiple_of(u64::from(logical)) {
        return Err(Error::Unaligned { path: path.to_path_buf(), bytes: size_bytes, block: logical });
    }
    Ok(Topology { size_bytes, logical_block_bytes: logical, physical_block_bytes: physical.max(logical) })
}

/// A second descriptor of the very file that is locked, whatever has become of its name.
fn reopen_direct(file: &File, path: &Path, read_only: bool) -> Result<File, Error> {
    OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(libc::O_DIRECT)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .map_err(|source| Error::NoDirect { path: path.to_path_buf(), source })
}

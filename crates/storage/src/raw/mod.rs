//! Raw images and block devices: byte n of the disk is byte n of the file.

mod queue;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use crate::open::{Kind, file_kind, open_file};
use crate::transfer::{Tail, Transfer};
use crate::{Buffer, Disk, DiskQueue, Error, Extent, Request, SECTOR_SIZE, Topology, lock};

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

    /// Size of the disk in bytes, read without locking it.
    pub fn size_bytes(path: &Path) -> Result<u64, Error> {
        let kind = file_kind(path)?;
        let mut file = open_file(path, true, kind)?;
        Ok(topology(&mut file, path, kind)?.size_bytes)
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

    fn freeze(&self) -> Result<(), Error> {
        let Inner { file, path, read_only, .. } = &*self.inner;
        if !read_only {
            file.sync_data().map_err(|source| Error::Flush { path: path.clone(), source })?;
        }
        lock::take(file, path, true)
    }

    fn release(&self) -> Result<(), Error> {
        self.freeze()?;
        lock::give(&self.inner.file, &self.inner.path)
    }

    fn thaw(&self) -> Result<(), Error> {
        lock::take(&self.inner.file, &self.inner.path, self.inner.read_only)
    }

    fn extent(&self, offset_bytes: u64) -> io::Result<Extent> {
        let end = self.inner.topology.size_bytes;
        let seek = |to| match rustix::fs::seek(&self.inner.file, to) {
            Ok(place) => Ok(place.clamp(offset_bytes, end)),
            // No data behind this place.
            Err(Errno::NXIO) => Ok(end),
            Err(error) => Err(error),
        };
        let data = seek(rustix::fs::SeekFrom::Data(offset_bytes))?;
        let (zeroes, next) =
            if data > offset_bytes { (true, data) } else { (false, seek(rustix::fs::SeekFrom::Hole(offset_bytes))?) };
        Ok(Extent { zeroes, length_bytes: next - offset_bytes })
    }
}

impl Inner {
    /// The work on the file that a request is.
    fn transfer(&self, request: Request) -> Transfer {
        Transfer {
            file: self.descriptor(&request.buffers, request.offset_bytes),
            cached: self.file.as_raw_fd(),
            tail: Tail::Missing,
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

//! qcow2 images: disks that grow as they are written and build on others (qcow2 specification of QEMU).
//!
//! The library `imago` understands the format's tables; what moves bytes is ours. A read or a write of clusters that exist
//! goes straight between the file and guest memory, many at a time, exactly as on a raw disk. Everything that changes the
//! tables — the first write to a cluster, zeroing, discarding — happens in the device's thread, one after the other, so that
//! no transfer meets a cluster that is being moved.

mod chain;
mod header;
mod layer;
mod queue;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use imago::{FormatAccess, Mapping};

pub(crate) use chain::{Hold, Link, assemble as assemble_chain, open as open_chain};
pub(crate) use header::read_up_to;
pub use header::{Header, HeaderError};
pub(crate) use layer::Layer;

use crate::{Backing, Disk, DiskQueue, Error, Extent, SECTOR_SIZE, Topology, lock};

/// What a guest should write at once, in bytes: the host's page.
const PAGE_BYTES: u32 = 4096;

/// Which image, and how to use it.
#[derive(Debug, Clone)]
pub struct Qcow2Config {
    pub path: PathBuf,
    /// Refuse writes, and share the file with other readers.
    pub read_only: bool,
    /// Which backing files may be used.
    pub backing: Backing,
    /// Work on one request at a time, in the caller's thread: requests complete in the order in which they came.
    pub in_order: bool,
}

/// An open qcow2 image with its backing files, locked for as long as it or its queue lives.
#[derive(Debug)]
pub struct Qcow2Image {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    access: FormatAccess<Layer>,
    /// The image's own file: the lock belongs to it.
    file: File,
    read_only: bool,
    in_order: bool,
    topology: Topology,
    /// A queue is open. There is one at a time: see the module's documentation.
    queue_open: AtomicBool,
}

impl Qcow2Image {
    /// Opens and locks the image and all it builds on.
    pub fn open(config: &Qcow2Config) -> Result<Qcow2Image, Error> {
        let hold = if config.read_only { Hold::Read } else { Hold::Write };
        let links = chain::open(&config.path, hold, config.backing)?;
        let (path, queue_open) = (config.path.clone(), AtomicBool::new(false));
        let failed = |source| Error::Open { path: path.clone(), source };
        let file = links.first().ok_or_else(|| Error::Missing(path.clone()))?.file.try_clone().map_err(failed)?;
        let access = chain::assemble(links, config.read_only)?;
        let topology = Topology {
            size_bytes: access.size(),
            logical_block_bytes: SECTOR_SIZE as u32,
            physical_block_bytes: PAGE_BYTES,
        };
        let Qcow2Config { read_only, in_order, .. } = *config;
        Ok(Qcow2Image { inner: Arc::new(Inner { path, access, file, read_only, in_order, topology, queue_open }) })
    }

    /// Where the image lies.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }
}

impl Disk for Qcow2Image {
    fn topology(&self) -> Topology {
        self.inner.topology
    }

    fn read_only(&self) -> bool {
        self.inner.read_only
    }

    fn max_queues(&self) -> u16 {
        1
    }

    fn freeze(&self) -> Result<(), Error> {
        let Inner { access, file, path, read_only, .. } = &*self.inner;
        if !read_only {
            access
                .flush()
                .and_then(|()| access.sync())
                .map_err(|source| Error::Flush { path: path.clone(), source })?;
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

    fn open_queue(&self, depth: u32) -> Result<Box<dyn DiskQueue>, Error> {
        if self.inner.queue_open.swap(true, Ordering::AcqRel) {
            return Err(Error::OneQueue(self.inner.path.clone()));
        }
        Ok(Box::new(queue::Qcow2Queue::new(self.inner.clone(), depth)?))
    }

    fn extent(&self, offset_bytes: u64) -> std::io::Result<Extent> {
        let left = self.inner.topology.size_bytes.saturating_sub(offset_bytes);
        let (mapping, length_bytes) = self.inner.access.get_mapping(offset_bytes, left)?;
        Ok(Extent { zeroes: matches!(mapping, Mapping::Zero { .. }), length_bytes: length_bytes.min(left) })
    }
}

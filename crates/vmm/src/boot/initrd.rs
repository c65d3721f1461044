//! Initial RAM disks and modules: files that the kernel finds in its memory.

use std::fs::File;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress};

use super::error::{Error, KernelError};
use super::image::FileImage;
use super::placement::Placement;

/// cpio archives may follow one another at multiples of this (Linux `Documentation/driver-api/early-userspace`).
const ARCHIVE_ALIGN: u64 = 4;

/// Where a file lies in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    pub start: u64,
    pub len: u64,
}

/// A regular file with its length.
pub struct Source {
    path: PathBuf,
    what: &'static str,
    file: File,
    pub len: u64,
}

impl Source {
    /// Opens `path`; `what` names it in errors.
    pub fn open(path: &Path, what: &'static str) -> Result<Source, Error> {
        let failed = |source| Error::Read { what, path: path.into(), source };
        // A FIFO would block in open(2) until somebody writes to it, so ask first.
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if !metadata.is_file() {
            return Err(Error::NotAFile { what, path: path.into() });
        }
        let file = File::open(path).map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        Ok(Source { path: path.into(), what, file, len })
    }

    /// Gives the file up as a kernel image.
    pub fn into_image(self) -> Result<FileImage, Error> {
        let Source { path, what, file, .. } = self;
        FileImage::new(file).map_err(|source| Error::Read { what, path, source })
    }

    /// Copies the file to guest-physical `address`, where the caller has found RAM for it.
    pub fn copy_to_guest(&mut self, address: u64, placement: &Placement) -> Result<(), Error> {
        let copied =
            placement.memory.read_exact_volatile_from(GuestAddress(address), &mut self.file, self.len as usize);
        copied.map_err(|error| Error::Read {
            what: self.what,
            path: self.path.clone(),
            source: std::io::Error::other(error),
        })
    }
}

/// Puts the files one after another into the highest free RAM below `limit`; `None` without files or bytes.
pub fn load(paths: &[PathBuf], limit: u64, placement: &mut Placement) -> Result<Option<Loaded>, Error> {
    let mut sources =
        paths.iter().map(|p| Source::open(p, "initial RAM disk")).collect::<Result<Vec<Source>, Error>>()?;
    let padded = |source: &Source| source.len.saturating_add(ARCHIVE_ALIGN - 1) & !(ARCHIVE_ALIGN - 1);
    let len = sources.iter().map(padded).fold(0, u64::saturating_add);
    if len == 0 {
        return Ok(None);
    }
    let start = place(len, limit, placement)?;
    let mut next = start;
    for source in &mut sources {
        source.copy_to_guest(next, placement)?;
        next += padded(source);
    }
    Ok(Some(Loaded { start, len }))
}

fn place(len: u64, limit: u64, placement: &mut Placement) -> Result<u64, Error> {
    let claimed =
        placement.highest_free(len, limit).filter(|start| placement.claim(*start, len, "the initial RAM disk").is_ok());
    claimed.ok_or_else(|| too_large(len, limit, placement))
}

fn too_large(len: u64, limit: u64, placement: &Placement) -> Error {
    let needed = placement.highest_taken().saturating_add(len).saturating_add(0xfff);
    if needed > limit.min(queztl_guest_memory::LOW_RAM_END) {
        return Error::InitrdBeyondLimit { len, limit: limit.min(queztl_guest_memory::LOW_RAM_END) };
    }
    Error::InitrdTooLarge { len, ram: placement.ram_bytes(), needed }
}

/// Modules in the order given, each at the next free page boundary above `start`.
pub fn load_modules(paths: &[PathBuf], start: u64, placement: &mut Placement) -> Result<Vec<Loaded>, Error> {
    let mut next = start;
    let mut modules = Vec::new();
    for path in paths {
        let mut source = Source::open(path, "module")?;
        let address = next.next_multiple_of(0x1000);
        if source.len > 0 && placement.claim(address, source.len, "a module").is_err() {
            let needed = address.saturating_add(source.len);
            return Err(Error::InitrdTooLarge { len: source.len, ram: placement.ram_bytes(), needed });
        }
        source.copy_to_guest(address, placement)?;
        next = address + source.len;
        modules.push(Loaded { start: address, len: source.len });
    }
    Ok(modules)
}

/// The error of a kernel at `path`.
pub fn kernel_error(path: &Path, source: KernelError) -> Error {
    Error::Kernel { path: path.into(), source }
}

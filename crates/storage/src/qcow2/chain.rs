//! Opening an image with all the images it builds on.
//!
//! An image names its backing file itself, and an image may come from a stranger. So nothing is opened because a file says
//! so: a name leads only to files in the image's own folder, unless the user allows others; the format of a backing file
//! is the one that is written down, never guessed from bytes that a guest may have written; chains are bounded, and one
//! that returns to itself is refused.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder};

use super::header::Header;
use super::layer::Layer;
use crate::error::Error;
use crate::format::{Backing, Format};
use crate::open::{file_kind, open_file};
use crate::{SECTOR_SIZE, lock};

/// Most files of a chain.
const MAX_FILES: usize = 64;

/// One file of a chain, from the image itself down to its last backing file.
pub(crate) struct Link {
    pub path: PathBuf,
    pub format: Format,
    pub file: File,
    /// Of a qcow2 file.
    pub header: Option<Header>,
}

/// What the files of a chain are opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    /// To describe them: nothing is locked.
    Look,
    /// To read the disk: nobody may write to any of them.
    Read,
    /// To write to the first; nobody may write to the others.
    Write,
}

/// Opens and locks every file of the chain of `path`, a qcow2 image.
pub(crate) fn open(path: &Path, hold: Hold, backing: Backing) -> Result<Vec<Link>, Error> {
    let mut links: Vec<Link> = Vec::new();
    let mut next = Some((path.to_path_buf(), Format::Qcow2));
    while let Some((path, format)) = next.take() {
        if links.len() == MAX_FILES {
            return Err(Error::ChainTooLong { path: links.swap_remove(0).path, most: MAX_FILES });
        }
        let below = if hold == Hold::Write && !links.is_empty() { Hold::Read } else { hold };
        let link = open_link(path, format, below)?;
        refuse_loop(&links, &link)?;
        next = backing_of(&link, backing)?;
        links.push(link);
    }
    Ok(links)
}

fn open_link(path: PathBuf, format: Format, hold: Hold) -> Result<Link, Error> {
    let read_only = hold != Hold::Write;
    let file = open_file(&path, read_only, file_kind(&path)?)?;
    if hold != Hold::Look {
        lock::take(&file, &path, read_only)?;
    }
    let header = match format {
        Format::Raw => None,
        Format::Qcow2 => Some(Header::read(&file).map_err(|source| Error::Qcow2 { path: path.clone(), source })?),
    };
    if let Some(header) = header.as_ref().filter(|_| !read_only) {
        if header.corrupt {
            return Err(Error::MarkedCorrupt(path));
        }
        header.check_writable(&file).map_err(|source| Error::Qcow2 { path: path.clone(), source })?;
    }
    if let Some(bytes) = header.as_ref().map(|h| h.disk_bytes).filter(|bytes| bytes % SECTOR_SIZE != 0 || *bytes == 0) {
        return Err(Error::DiskSize { path, bytes });
    }
    Ok(Link { path, format, file, header })
}

fn refuse_loop(links: &[Link], link: &Link) -> Result<(), Error> {
    let identity = |file: &File| file.metadata().map(|m| (m.dev(), m.ino())).ok();
    let new = identity(&link.file);
    match links.iter().any(|earlier| identity(&earlier.file) == new) {
        true => Err(Error::ChainLoop(link.path.clone())),
        false => Ok(()),
    }
}

/// Where the chain goes on.
fn backing_of(link: &Link, rule: Backing) -> Result<Option<(PathBuf, Format)>, Error> {
    let Some(header) = &link.header else { return Ok(None) };
    let Some(name) = &header.backing_file else { return Ok(None) };
    let image = || link.path.clone();
    let format = match header.backing_format.as_deref() {
        Some("qcow2") => Format::Qcow2,
        Some("raw" | "file") => Format::Raw,
        Some(other) => return Err(Error::BackingFormat { image: image(), format: other.to_owned() }),
        None => return Err(Error::BackingFormatMissing { image: image(), backing: name.into() }),
    };
    let folder = link.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let named = folder.join(name);
    let real = named.canonicalize().map_err(|source| Error::BackingMissing {
        image: image(),
        backing: named.clone(),
        source,
    })?;
    let allowed = match rule {
        Backing::Any => true,
        Backing::SameFolder => folder.canonicalize().is_ok_and(|folder| real.starts_with(folder)),
        Backing::None => false,
    };
    match allowed {
        true => Ok(Some((real, format))),
        false => Err(Error::BackingRefused { image: image(), backing: real }),
    }
}

/// The chain as one disk. `links` is not empty.
pub(crate) fn assemble(links: Vec<Link>, read_only: bool) -> Result<FormatAccess<Layer>, Error> {
    let mut below: Option<FormatAccess<Layer>> = None;
    for (depth, link) in links.into_iter().enumerate().rev() {
        let write = depth == 0 && !read_only;
        let layer = Layer::new(link.path.clone(), link.file);
        let failed = |source| Error::Open { path: link.path.clone(), source };
        let access = match link.format {
            Format::Raw => {
                Raw::builder(layer).write(write).open(DenyImplicitOpenGate::default()).map(FormatAccess::new)
            }
            Format::Qcow2 => Qcow2::<Layer>::builder(layer)
                .write(write)
                .backing(below.take())
                .data_file(None)
                .open(DenyImplicitOpenGate::default())
                .map(FormatAccess::new),
        };
        below = Some(access.map_err(failed)?);
    }
    below.ok_or_else(|| Error::Missing(PathBuf::new()))
}

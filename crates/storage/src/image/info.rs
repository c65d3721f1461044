//! What an image is, read without disturbing who uses it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::qcow2::{Hold, Link, open_chain};
use crate::{Backing, Error, Format, RawFile, settle_format};

/// An image and what it builds on.
#[derive(Debug, Clone)]
pub struct Info {
    /// Size of the disk in bytes.
    pub disk_bytes: u64,
    /// The image first, then its backing files.
    pub chain: Vec<LinkInfo>,
}

/// One file of a chain.
#[derive(Debug, Clone)]
pub struct LinkInfo {
    pub path: PathBuf,
    pub format: Format,
    /// Space that the file takes on the host, in bytes.
    pub file_bytes: u64,
    /// Cluster size of a qcow2 image in bytes.
    pub cluster_bytes: Option<u64>,
    /// Internal snapshots of a qcow2 image.
    pub snapshots: u32,
    /// Marked as damaged by a program that found out.
    pub corrupt: bool,
}

/// Describes the image at `path`.
pub fn info(path: &Path, format: Option<Format>, backing: Backing) -> Result<Info, Error> {
    match settle_format(path, format)? {
        Format::Raw => raw(path),
        Format::Qcow2 => {
            let chain = open_chain(path, Hold::Look, backing)?;
            let disk_bytes = chain.first().and_then(|link| link.header.as_ref()).map_or(0, |header| header.disk_bytes);
            Ok(Info { disk_bytes, chain: chain.iter().map(LinkInfo::of).collect() })
        }
    }
}

fn raw(path: &Path) -> Result<Info, Error> {
    let disk_bytes = RawFile::size_bytes(path)?;
    let link = LinkInfo {
        path: path.to_path_buf(),
        format: Format::Raw,
        file_bytes: std::fs::metadata(path).map_or(0, |metadata| metadata.blocks() * 512),
        cluster_bytes: None,
        snapshots: 0,
        corrupt: false,
    };
    Ok(Info { disk_bytes, chain: vec![link] })
}

impl LinkInfo {
    fn of(link: &Link) -> LinkInfo {
        LinkInfo {
            path: link.path.clone(),
            format: link.format,
            file_bytes: link.file.metadata().map_or(0, |metadata| metadata.blocks() * 512),
            cluster_bytes: link.header.as_ref().map(|header| header.cluster_bytes()),
            snapshots: link.header.as_ref().map_or(0, |header| header.snapshots),
            corrupt: link.header.as_ref().is_some_and(|header| header.corrupt),
        }
    }
}

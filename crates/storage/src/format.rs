//! Image formats, and which one a file is.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::qcow2::{Header, HeaderError, Hold, Qcow2Config, Qcow2Image, open_chain};
use crate::{Disk, Error, RawConfig, RawFile};

/// How a disk lies in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Byte n of the disk is byte n of the file.
    Raw,
    /// QEMU's format: grows as it is written, builds on other images.
    Qcow2,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        })
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Format, String> {
        match text {
            "raw" => Ok(Format::Raw),
            "qcow2" => Ok(Format::Qcow2),
            _ => Err(format!("'{text}' is not an image format: there are raw and qcow2")),
        }
    }
}

/// Which backing files an image may lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backing {
    /// Those in the image's own folder or below it.
    #[default]
    SameFolder,
    /// Any that this process may read. For images whose origin is trusted.
    Any,
    /// None at all.
    None,
}

/// Which disk, and how to use it.
#[derive(Debug, Clone)]
pub struct ImageConfig {
    pub path: std::path::PathBuf,
    /// The format, if the user has said it.
    pub format: Option<Format>,
    /// Refuse writes, and share the file with other readers.
    pub read_only: bool,
    /// Which backing files may be used.
    pub backing: Backing,
    /// Bypass the host's page cache where memory and offsets allow it (raw disks).
    pub direct: bool,
    /// Work on one request at a time, in the caller's thread.
    pub in_order: bool,
}

/// Opens the disk, locked against a second writer.
pub fn open_disk(config: &ImageConfig) -> Result<Arc<dyn Disk>, Error> {
    let ImageConfig { path, read_only, backing, direct, in_order, .. } = config.clone();
    match settle(&path, config.format)? {
        Format::Raw => Ok(Arc::new(RawFile::open(&RawConfig { path, read_only, direct, in_order })?)),
        Format::Qcow2 => Ok(Arc::new(Qcow2Image::open(&Qcow2Config { path, read_only, backing, in_order })?)),
    }
}

/// Opens `overlay`, a qcow2 image that builds directly on the file at `base`, for writing. The disk at `base` must have
/// been frozen ([`Disk::freeze`]) if it is open for writing.
///
/// Where the files below lie does not matter: `overlay` was made by whoever asks, and what builds on what below it was
/// decided when `base` was opened.
pub fn open_overlay(overlay: &Path, base: &Path, in_order: bool) -> Result<Arc<dyn Disk>, Error> {
    let identity = |path: &Path| std::fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
    let links = open_chain(overlay, Hold::Look, Backing::Any)?;
    let below = links.get(1).and_then(|link| identity(&link.path));
    if below.is_none() || below != identity(base) {
        return Err(Error::OtherBase { overlay: overlay.to_path_buf(), base: base.to_path_buf() });
    }
    drop(links);
    let config = Qcow2Config { path: overlay.to_path_buf(), read_only: false, backing: Backing::Any, in_order };
    Ok(Arc::new(Qcow2Image::open(&config)?))
}

/// The format of the file at `path`: the one that was said, else the one that its name and its first bytes agree on.
///
/// The bytes alone decide nothing: the guest of a raw disk writes them, and could make the host open files of its choice as
/// "backing files" the next time.
pub fn settle(path: &Path, said: Option<Format>) -> Result<Format, Error> {
    if let Some(format) = said {
        return Ok(format);
    }
    let looks_like_qcow2 = File::open(path).is_ok_and(|file| !matches!(Header::read(&file), Err(HeaderError::Magic)));
    let called_qcow2 = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("qcow2"));
    match (called_qcow2, looks_like_qcow2 && path.is_file()) {
        (true, _) => Ok(Format::Qcow2),
        (false, true) => Err(Error::UnclearFormat(path.to_path_buf())),
        (false, false) => Ok(Format::Raw),
    }
}

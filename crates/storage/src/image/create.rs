//! New images, and images of another size.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use imago::FormatCreateBuilder;
use imago::format::PreallocateMode;
use imago::format::drivers::FormatDriverInstance;

use super::info;
use crate::qcow2::{Hold, Layer, assemble_chain, open_chain};
use crate::{Backing, Error, Format, SECTOR_SIZE, lock};

/// What a new image is to be.
#[derive(Debug, Clone)]
pub struct CreateConfig {
    pub path: PathBuf,
    pub format: Format,
    /// Size of the disk in bytes; that of the parent if there is one and nothing is said.
    pub size_bytes: Option<u64>,
    /// The image that a qcow2 image builds on.
    pub parent: Option<Parent>,
}

/// An image to build on.
#[derive(Debug, Clone)]
pub struct Parent {
    pub path: PathBuf,
    pub format: Format,
}

/// Makes an image; a file that exists is not touched. Nothing is left behind on an error.
pub fn create(config: &CreateConfig) -> Result<u64, Error> {
    let size = size_of(config)?;
    let path = config.path.clone();
    let file =
        File::options().read(true).write(true).create_new(true).open(&path).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => Error::Exists(path.clone()),
            _ => Error::Create { path: path.clone(), source },
        })?;
    let made = match config.format {
        Format::Raw => file.set_len(size),
        Format::Qcow2 => format_qcow2(config, file, size),
    };
    match made {
        Ok(()) => Ok(size),
        Err(source) => {
            // Nobody else has seen the file yet; the first error is the one to tell.
            let _ = std::fs::remove_file(&path);
            Err(Error::Create { path, source })
        }
    }
}

fn size_of(config: &CreateConfig) -> Result<u64, Error> {
    let path = || config.path.clone();
    if config.parent.is_some() && config.format == Format::Raw {
        return Err(Error::RawParent(path()));
    }
    let parent = match &config.parent {
        Some(parent) => Some(info(&parent.path, Some(parent.format), Backing::Any)?.disk_bytes),
        None => None,
    };
    match config.size_bytes.or(parent) {
        Some(bytes) if bytes > 0 && bytes.is_multiple_of(SECTOR_SIZE) => Ok(bytes),
        Some(bytes) => Err(Error::DiskSize { path: path(), bytes }),
        None => Err(Error::SizeMissing(path())),
    }
}

fn format_qcow2(config: &CreateConfig, file: File, size: u64) -> io::Result<()> {
    let layer = Layer::new(config.path.clone(), file);
    let mut builder = imago::qcow2::Qcow2::<Layer>::create_builder(layer).size(size);
    if let Some(parent) = &config.parent {
        builder = builder.backing(name_from(&config.path, &parent.path)?, parent.format.to_string());
    }
    builder.create()
}

/// How an image calls its parent: by its name alone if both lie in one folder, so that the folder can be moved.
fn name_from(image: &Path, parent: &Path) -> io::Result<String> {
    let real = parent.canonicalize()?;
    let folder = image.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = folder.canonicalize()?;
    let name = real.strip_prefix(&folder).unwrap_or(&real);
    let name = name.to_str().ok_or_else(|| io::Error::other("the name of the backing file is not UTF-8"))?;
    Ok(name.to_owned())
}

/// Gives the disk of an image another size. Making it smaller loses what lies behind the new end.
pub fn resize(path: &Path, format: Format, size_bytes: u64) -> Result<(), Error> {
    if size_bytes == 0 || !size_bytes.is_multiple_of(SECTOR_SIZE) {
        return Err(Error::DiskSize { path: path.to_path_buf(), bytes: size_bytes });
    }
    let failed = |source| Error::Resize { path: path.to_path_buf(), source };
    match format {
        Format::Raw => {
            let file = File::options().write(true).open(path).map_err(failed)?;
            lock::take(&file, path, false)?;
            file.set_len(size_bytes).map_err(failed)
        }
        Format::Qcow2 => {
            let mut access = assemble_chain(open_chain(path, Hold::Write, Backing::Any)?, false)?;
            let image: &mut dyn FormatDriverInstance<Storage = Layer> = access.inner_mut();
            match size_bytes >= image.size() {
                true => image.resize_grow(size_bytes, PreallocateMode::None),
                false => image.resize_shrink(size_bytes),
            }
            .map_err(failed)?;
            access.flush().map_err(failed)
        }
    }
}

//! Files of the host become images.
//!
//! A copy is sparse, or shares its blocks with the original where the file system can (reflink). A qcow2 file is checked
//! before it is believed; one that builds on others is flattened, since what those are is not the store's to say.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use queztl_api::{
    Code, EventKind, Image, ImageFormat, ImportImage, Name, Operation, OperationKind, Problem, Timestamp,
};
use queztl_storage::{Backing, ImageConfig, image};
use queztl_vmm::config::Format;
use rustix::fs::{SeekFrom, seek};
use serde_json::json;

use super::{ImageRecord, format, image_path, unfinished};
use crate::manager::Core;
use crate::operations::Task;
use crate::store::IMAGES;

/// Bytes that are copied between two looks at whether somebody has cancelled.
const PIECE_BYTES: u64 = 16 << 20;

impl Core {
    pub(crate) fn import_image(self: &Arc<Self>, request: ImportImage) -> Result<Operation, Problem> {
        if !request.path.is_absolute() {
            return Err(Problem::invalid("path", "is no absolute path; the daemon has its own directory"));
        }
        self.refuse_taken(&request.name)?;
        self.begin(
            OperationKind::ImportImage,
            Some(request.name.to_string()),
            |_| Ok(()),
            move |core, task| {
                let new = unfinished(&core.config.home);
                let result = import(&request, &new, task);
                core.publish(&request.name, &new, result).map(|image| json!(image))
            },
        )
    }

    /// A sentence if there is an image of this name.
    pub(super) fn refuse_taken(&self, name: &Name) -> Result<(), Problem> {
        match self.store.get(IMAGES, name.as_str())? {
            None => Ok(()),
            Some(_) => Err(taken(name)),
        }
    }

    /// Gives a finished file its name, or removes it. `made` is the image's format and what it builds on.
    pub(super) fn publish(
        &self,
        name: &Name,
        new: &Path,
        made: Result<(ImageFormat, Option<Name>), Problem>,
    ) -> Result<Image, Problem> {
        let published = made.and_then(|(image_format, backing)| {
            let info = image::info(new, Some(format(image_format)), Backing::Any).map_err(|error| broken(&error))?;
            let record = ImageRecord {
                name: name.clone(),
                format: image_format,
                size_bytes: info.disk_bytes,
                backing,
                created_at: Timestamp::now(),
            };
            let path = image_path(&self.config.home, name, image_format);
            self.store.write(|change| {
                if change.get(IMAGES, name.as_str())?.is_some() {
                    return Err(taken(name));
                }
                if let Some(backing) = &record.backing {
                    let known = change.get(IMAGES, backing.as_str())?;
                    known.ok_or_else(|| Problem::not_found("image", backing.as_str()))?;
                }
                // Before the record: a file without one is swept, a record without its file is not mended.
                durable_rename(new, &path)?;
                change.put(IMAGES, name.as_str(), &record)?;
                let kind = EventKind::ImageAdded { image: name.to_string() };
                Ok(change.event(kind, format!("image {name} was added"))?)
            })?;
            Ok(record)
        });
        if published.is_err() {
            // The first error is the one to tell; the sweep at the next start takes what stays.
            let _ = std::fs::remove_file(new);
        }
        self.describe_image(&published?)
    }
}

fn taken(name: &Name) -> Problem {
    let text = format!("there is an image {:?} already: choose another name, or delete it first", name.as_str());
    Problem::new(Code::Exists, text)
}

pub(super) fn broken(error: &queztl_storage::Error) -> Problem {
    Problem::new(Code::Host, error.to_string())
}

fn durable_rename(from: &Path, to: &Path) -> Result<(), Problem> {
    let renamed = File::open(from).and_then(|file| file.sync_all()).and_then(|()| std::fs::rename(from, to));
    let synced = renamed.and_then(|()| match to.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    });
    synced.map_err(|error| Problem::new(Code::Host, format!("the image cannot be kept: {error}")))
}

fn import(request: &ImportImage, new: &Path, task: &Task) -> Result<(ImageFormat, Option<Name>), Problem> {
    let wanted = request.format.map(format);
    let refused = |error: queztl_storage::Error| Problem::invalid("path", error.to_string());
    let settled = queztl_storage::settle_format(&request.path, wanted).map_err(refused)?;
    task.cancellable(true);
    match settled {
        Format::Raw => {
            copy(&request.path, new, task)?;
            Ok((ImageFormat::Raw, None))
        }
        Format::Qcow2 => {
            let report = image::check(&request.path).map_err(refused)?;
            if report.errors > 0 {
                let finding = report.findings.first().cloned().unwrap_or_default();
                let text = format!("{:?} is damaged, and not taken: {finding}", request.path);
                return Err(Problem::invalid("path", text));
            }
            let info = image::info(&request.path, Some(settled), Backing::SameFolder).map_err(refused)?;
            let chained = info.chain.len() > 1;
            if chained {
                flatten(&request.path, Format::Qcow2, Backing::SameFolder, new, Format::Qcow2, task)?;
            } else {
                copy(&request.path, new, task)?;
            }
            Ok((ImageFormat::Qcow2, None))
        }
    }
}

/// Copies a disk with all that it builds on into one new image.
pub(super) fn flatten(
    from: &Path,
    from_format: Format,
    backing: Backing,
    to: &Path,
    to_format: Format,
    task: &Task,
) -> Result<(), Problem> {
    let source = ImageConfig {
        path: from.to_path_buf(),
        format: Some(from_format),
        read_only: true,
        backing,
        direct: false,
        in_order: false,
    };
    // The copy cannot be interrupted in its middle.
    task.cancellable(false);
    let copied = image::convert(&source, to, to_format, |done, total| task.progress(done, total, "bytes"));
    copied.map(drop).map_err(|error| broken(&error))
}

/// Copies a file as it is: by sharing its blocks, or else its data without the holes.
fn copy(from: &Path, to: &Path, task: &Task) -> Result<(), Problem> {
    let failed = |error: io::Error| {
        let code = if error.kind() == io::ErrorKind::NotFound { Code::Invalid } else { Code::Host };
        Problem::new(code, format!("{from:?} cannot be copied: {error}"))
    };
    let source = File::open(from).map_err(failed)?;
    let size = rustix::fs::seek(&source, SeekFrom::End(0)).map_err(|error| failed(error.into()))?;
    let target = File::options().write(true).create_new(true).open(to).map_err(failed)?;
    if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
        task.progress(size, size, "bytes");
        return Ok(());
    }
    target.set_len(size).map_err(failed)?;
    let mut at = 0;
    while at < size {
        // A file system without holes says that all is data.
        let data = match seek(&source, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break,
            Err(rustix::io::Errno::INVAL) => at,
            Err(error) => return Err(failed(error.into())),
        };
        let end = seek(&source, SeekFrom::Hole(data)).unwrap_or(size).min(size);
        copy_run(&source, &target, data, end, |done| {
            task.progress(done, size, "bytes");
            task.check()
        })
        .map_err(|error| error.unwrap_or_else(failed))?;
        at = end;
    }
    task.progress(size, size, "bytes");
    Ok(())
}

/// Why a run was not copied.
enum CopyError {
    Io(io::Error),
    Stopped(Problem),
}

impl CopyError {
    fn unwrap_or_else(self, failed: impl FnOnce(io::Error) -> Problem) -> Problem {
        match self {
            CopyError::Io(error) => failed(error),
            CopyError::Stopped(problem) => problem,
        }
    }
}

fn copy_run(
    source: &File,
    target: &File,
    start: u64,
    end: u64,
    mut step: impl FnMut(u64) -> Result<(), Problem>,
) -> Result<(), CopyError> {
    let (mut from, mut to) = (start, start);
    while from < end {
        let piece = usize::try_from((end - from).min(PIECE_BYTES)).unwrap_or(usize::MAX);
        let copied = match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), piece) {
            Ok(copied) => copied,
            // Not between these two files: by hand.
            Err(rustix::io::Errno::XDEV | rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => {
                copy_piece(source, target, &mut from, piece).map_err(CopyError::Io)?
            }
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(CopyError::Io(error.into())),
        };
        if copied == 0 {
            return Err(CopyError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        to = from;
        step(from).map_err(CopyError::Stopped)?;
    }
    Ok(())
}

fn copy_piece(source: &File, target: &File, at: &mut u64, piece: usize) -> io::Result<usize> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; piece.min(1 << 20)];
    let read = source.read_at(&mut bytes, *at)?;
    target.write_all_at(&bytes[..read], *at)?;
    *at += read as u64;
    Ok(read)
}

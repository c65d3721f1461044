//! Memory images: all RAM of a guest at one point in time, as layers of files that nobody writes to any more.
//!
//! Promises:
//! - an image never changes: whoever maps its files privately sees the RAM of that point in time, whatever the machine it
//!   was taken from, or another one made from it, writes later;
//! - what is read from a table is checked before it is used: a damaged table or a file that was cut off is refused when
//!   the image is opened, and is no fault while the guest runs;
//! - an image is mapped, not read: what a guest never touches is never loaded.
//!
//! ```text
//!   layer 2                    ####        ##         pages written between freeze 1 and freeze 2
//!   layer 1              ##        ######             pages written between freeze 0 and freeze 1
//!   layer 0        ################################   all RAM at freeze 0 (or a snapshot's file)
//!   image      =   000000110000222211111100220000 …   segments: the newest layer that has the page
//! ```
//! An image keeps the segments and not what they hide, so that it does not grow with the number of layers.
//!
//! The files must stay as they are while they are used. Those in memory are sealed when others get them. Files on disk
//! are kept open, so they may be deleted, but whoever is permitted to cut them off ends the guests made from them (SIGBUS).

mod bytes;
mod error;
mod segment;
mod shape;
mod store;
mod table;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

pub use error::ImageError;
pub(crate) use segment::{ImageFile, Segment, overlay, within};
pub use shape::Shape;
pub(crate) use store::is_zero;
pub use store::{Piece, Written};
pub use table::{LayerId, MemoryTable};
use table::{MAX_LAYERS, Run};

use crate::arriving::Arriving;

/// Segments of an image at most; each is a mapping, and Linux permits 65,530 (`vm.max_map_count`).
pub(crate) const MAX_SEGMENTS: usize = 16 << 10;
/// Files of an image at most: they are passed on as descriptors, of which one message takes 253 (`SCM_MAX_FD`).
pub(crate) const MAX_FILES: usize = 250;

/// All RAM of a guest at one point in time. Clones are cheap and share the files.
#[derive(Debug, Clone)]
pub struct MemoryImage {
    shape: Shape,
    /// Names of the layers, oldest first; [`Segment::layer`] is a place among them. The oldest may be forgotten.
    layers: Arc<Vec<LayerId>>,
    segments: Arc<Vec<Segment>>,
    /// What is not there yet, of an image that comes while it is used.
    arriving: Option<Arc<Arriving>>,
}

impl MemoryImage {
    pub(crate) fn new(shape: Shape, layers: Vec<LayerId>, segments: Vec<Segment>) -> MemoryImage {
        MemoryImage { shape, layers: Arc::new(layers), segments: Arc::new(segments), arriving: None }
    }

    /// The image in files on disk: that of a full snapshot, then those of incremental ones, oldest first, each with its
    /// table. The files are kept open. Nothing is read from them; see [`MemoryTable::verify`].
    ///
    /// # Errors
    /// When a file is shorter than its table says or anybody may write to it, or when the images do not belong together.
    pub fn open(chain: Vec<(File, MemoryTable)>) -> Result<MemoryImage, ImageError> {
        let mut image: Option<MemoryImage> = None;
        for (file, table) in chain {
            let files = [Arc::new(ImageFile::foreign(file))];
            image = Some(match image {
                None if table.base.is_none() => MemoryImage::assemble(&files, &table, None)?,
                Some(below) if table.base.is_some() && table.base == below.layers.last().copied() => {
                    MemoryImage::assemble(&files, &table, Some(&below))?
                }
                _ => return Err(ImageError::Chain),
            });
        }
        let image = image.ok_or(ImageError::Chain)?;
        image.check_cover()?;
        Ok(image)
    }

    /// The image that [`MemoryImage::parts`] of another process has described.
    ///
    /// # Errors
    /// When the table does not fit the files, or does not have all of RAM.
    pub fn from_parts(files: Vec<File>, table: &MemoryTable) -> Result<MemoryImage, ImageError> {
        let files: Vec<_> = files.into_iter().map(|file| Arc::new(ImageFile::foreign(file))).collect();
        if table.base.is_some() {
            return Err(ImageError::Chain);
        }
        let image = MemoryImage::assemble(&files, table, None)?;
        image.check_cover()?;
        Ok(image)
    }

    /// The image of RAM that lies in one file, in which offsets are those in RAM. Nobody may write to the file any more.
    ///
    /// # Errors
    /// When the file is shorter than RAM, or anybody may write to it.
    pub fn of_file(file: File, shape: Shape) -> Result<MemoryImage, ImageError> {
        let bytes = shape.bytes();
        check_file(&file, bytes)?;
        let file = Arc::new(ImageFile::foreign(file));
        let all = Segment { start: 0, len: bytes, offset: 0, layer: 0, file };
        Ok(MemoryImage::new(shape, vec![LayerId::random()?], vec![all]))
    }

    /// The same where the runs of RAM in `missing`, as (offset, length), come later: RAM that is made from the image lets whoever
    /// touches such a page wait until the second value was given it. What the file has there is forgotten.
    ///
    /// # Errors
    /// Those of [`MemoryImage::of_file`]; runs that are not of whole pages of this RAM; a host on which this process may not
    /// handle page faults.
    pub fn arriving(
        file: File,
        shape: Shape,
        missing: &[(u64, u64)],
    ) -> Result<(MemoryImage, Arc<Arriving>), ImageError> {
        let arriving = Arc::new(Arriving::new(&file, shape.clone(), missing)?);
        let mut image = MemoryImage::of_file(file, shape)?;
        image.arriving = Some(arriving.clone());
        Ok((image, arriving))
    }

    /// What is not there yet, if the image comes while it is used and is not whole.
    pub(crate) fn not_whole(&self) -> Option<&Arc<Arriving>> {
        self.arriving.as_ref().filter(|arriving| !arriving.is_whole())
    }

    /// What another process needs to have this image: files, and a table that says what is in them. From then on the
    /// files stay as they are for good: [`crate::GuestRam::reclaim`] no longer gives back parts of them.
    pub fn parts(&self) -> (Vec<impl std::os::fd::AsFd + use<>>, MemoryTable) {
        let mut numbers = HashMap::new();
        let mut files = Vec::new();
        let mut runs = Vec::with_capacity(self.segments.len());
        for segment in self.segments.iter() {
            let file = *numbers.entry(Arc::as_ptr(&segment.file)).or_insert_with(|| {
                segment.file.export();
                files.push(Exported(segment.file.clone()));
                files.len() as u32 - 1
            });
            let Segment { start, len, offset, layer, .. } = *segment;
            runs.push(Run { start, len, offset, file, layer });
        }
        let table = MemoryTable {
            shape: self.shape.clone(),
            base: None,
            layers: self.layers.to_vec(),
            files: files.len() as u32,
            runs,
            chunks: Vec::new(),
        };
        (files, table)
    }

    /// The RAM that the image is of.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The newest layer: what an incremental image of a machine made from this one is taken on.
    pub fn top(&self) -> Option<LayerId> {
        self.layers.last().copied()
    }

    /// Whether what is newer than this layer can be told.
    pub fn descends_from(&self, layer: LayerId) -> bool {
        self.layers.contains(&layer)
    }

    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Whether nobody but the owner of `self` looks at the same list of segments.
    pub(crate) fn is_alone(&self) -> bool {
        Arc::strong_count(&self.segments) == 1
    }

    /// The image with `segments` of one more layer on top, without their layer numbers.
    pub(crate) fn with_layer(&self, id: LayerId, mut segments: Vec<Segment>) -> MemoryImage {
        let mut layers = self.layers.to_vec();
        let mut lower = self.segments.clone();
        if layers.len() == MAX_LAYERS {
            // The names of the older half are forgotten: as a base of incremental images they are too old.
            let forgotten = MAX_LAYERS as u32 / 2;
            layers.drain(..forgotten as usize);
            let older = |s: &Segment| Segment { layer: s.layer.saturating_sub(forgotten), ..s.clone() };
            lower = Arc::new(lower.iter().map(older).collect());
        }
        segments.iter_mut().for_each(|segment| segment.layer = layers.len() as u32);
        layers.push(id);
        MemoryImage::new(self.shape.clone(), layers, overlay(&lower, &segments))
    }

    /// The segments that are newer than layer `base`.
    fn since(&self, base: LayerId) -> Result<Vec<Segment>, ImageError> {
        let place = self.layers.iter().rposition(|id| *id == base).ok_or(ImageError::NotDescended)? as u32;
        Ok(self.segments.iter().filter(|segment| segment.layer > place).cloned().collect())
    }

    /// Puts the runs of `table` on top of `below`.
    fn assemble(
        files: &[Arc<ImageFile>],
        table: &MemoryTable,
        below: Option<&MemoryImage>,
    ) -> Result<MemoryImage, ImageError> {
        if files.len() != table.files as usize {
            return Err(ImageError::Damaged("it is of another number of files"));
        }
        if let Some(below) = below {
            below.check_shape(&table.shape)?;
        }
        for (number, file) in (0..).zip(files) {
            let needed = table.runs.iter().filter(|run| run.file == number).map(|run| run.offset + run.len).max();
            check_file(&file.file, needed.unwrap_or(0))?;
        }
        let (mut layers, lower) = below.map_or((Vec::new(), &[][..]), |b| (b.layers.to_vec(), &b.segments[..]));
        let first = layers.len() as u32;
        layers.extend(&table.layers);
        let upper: Vec<Segment> = table
            .runs
            .iter()
            .map(|run| Segment {
                start: run.start,
                len: run.len,
                offset: run.offset,
                layer: first + run.layer,
                file: files[run.file as usize].clone(),
            })
            .collect();
        let segments = overlay(lower, &upper);
        match segments.len() {
            count if count > MAX_SEGMENTS => Err(ImageError::Scattered(count)),
            _ => Ok(MemoryImage::new(table.shape.clone(), layers, segments)),
        }
    }

    /// Checks that the image is of RAM of this shape.
    pub(crate) fn check_shape(&self, shape: &Shape) -> Result<(), ImageError> {
        if self.shape == *shape {
            return Ok(());
        }
        Err(ImageError::OtherShape {
            image: self.shape.bytes() >> 20,
            image_runs: self.shape.runs().len(),
            ram: shape.bytes() >> 20,
            ram_runs: shape.runs().len(),
        })
    }

    /// Checks that every byte of RAM lies somewhere.
    fn check_cover(&self) -> Result<(), ImageError> {
        let end = self.segments.iter().try_fold(0, |end, s| (s.start == end).then(|| s.end()));
        match end {
            Some(end) if end == self.shape.bytes() => Ok(()),
            _ => Err(ImageError::Damaged("parts of RAM are missing")),
        }
    }
}

/// A file of an image, for others to have.
#[derive(Debug)]
struct Exported(Arc<ImageFile>);

impl std::os::fd::AsFd for Exported {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.file.as_fd()
    }
}

/// Checks that `needed` bytes of the file are there to be mapped, and that not anybody may change them.
fn check_file(file: &File, needed: u64) -> Result<(), ImageError> {
    let metadata = file.metadata().map_err(ImageError::io("the memory file cannot be looked at"))?;
    if !metadata.is_file() {
        return Err(ImageError::Damaged("the memory is in something that is no file"));
    }
    if metadata.len() < needed {
        return Err(ImageError::Short { bytes: metadata.len(), needed });
    }
    // Files in memory have no name, and so no permissions that matter.
    match metadata.mode() & 0o002 != 0 && metadata.nlink() > 0 {
        true => Err(ImageError::Writable),
        false => Ok(()),
    }
}

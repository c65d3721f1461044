//! Writing an image to a file, and verifying what was written.
//!
//! Offset in the file is offset in RAM. Zeroes become holes, whether they were holes before or pages full of zeroes.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::table::{CHUNK_BYTES, Run};
use super::{ImageError, LayerId, MemoryImage, MemoryTable, Segment, within};
use crate::PAGE_SIZE;

/// A part of RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    Data(&'a [u8]),
    /// So many bytes of zeroes.
    Zero(u64),
}

/// What is written at once before it is brought to the disk: as long as that takes, nobody can give up, and it is in the
/// host's cache twice.
const SYNC_BYTES: u64 = 256 << 20;

/// What [`MemoryImage::write`] has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub table: MemoryTable,
    /// Bytes that are not holes.
    pub data_bytes: u64,
}

impl MemoryImage {
    /// Calls `f` with (offset in RAM, bytes) of the runs of pages that are not zero.
    pub(crate) fn for_each_data(&self, f: impl FnMut(u64, &[u8]) -> Result<(), ImageError>) -> Result<(), ImageError> {
        gather(&self.segments, self.shape.bytes(), f).map(drop)
    }

    /// Calls `f` with all of RAM that is newer than layer `base`, lowest offsets first; all that is not zero, without a base.
    ///
    /// # Errors
    /// When this image does not descend from the base or a layer cannot be read, and those of `f`.
    pub fn for_each_piece(
        &self,
        base: Option<LayerId>,
        mut f: impl FnMut(u64, Piece<'_>) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let Some(base) = base else { return self.for_each_data(|offset, data| f(offset, Piece::Data(data))) };
        let segments = self.since(base)?;
        let mut zeroes = Zeroes { segments: &segments, told: 0 };
        gather(&segments, self.shape.bytes(), |offset, data| {
            zeroes.up_to(offset, &mut f)?;
            zeroes.told = offset + data.len() as u64;
            f(offset, Piece::Data(data))
        })?;
        zeroes.up_to(u64::MAX, &mut f)
    }

    /// Reads RAM from `offset` on.
    ///
    /// # Errors
    /// The place is not all in RAM, or a layer cannot be read.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ImageError> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.shape.bytes());
        let end = end.ok_or(ImageError::Damaged("what is to be read is no RAM"))?;
        for part in within(&self.segments, offset, end) {
            let place = &mut buffer[(part.start - offset) as usize..][..part.len as usize];
            let read = part.file.file.read_exact_at(place, part.offset);
            read.map_err(ImageError::io("a layer of guest RAM cannot be read"))?;
        }
        Ok(())
    }

    /// The runs of RAM, as (offset, length), that are newer than layer `base`; those that are not holes, without a base. Lowest
    /// first. No page is read.
    ///
    /// # Errors
    /// When this image does not descend from the base, or a layer cannot be looked at.
    pub fn newer_runs(&self, base: Option<LayerId>) -> Result<Vec<(u64, u64)>, ImageError> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let mut add = |start: u64, len: u64| match runs.last_mut() {
            Some((last, bytes)) if *last + *bytes == start => *bytes += len,
            _ => runs.push((start, len)),
        };
        match base {
            Some(base) => self.since(base)?.iter().for_each(|segment| add(segment.start, segment.len)),
            None => {
                for segment in self.segments.iter() {
                    for_each_data(&segment.file.file, segment.offset, segment.len, |offset, len| {
                        add(segment.start + (offset - segment.offset), len);
                        Ok(())
                    })?;
                }
            }
        }
        Ok(runs)
    }

    /// Copies all data to `file`, where offsets are those in RAM. Returns the bytes copied.
    pub(crate) fn copy_to(&self, file: &File) -> Result<u64, ImageError> {
        let mut copied = 0;
        self.for_each_data(|offset, data| {
            copied += data.len() as u64;
            file.write_all_at(data, offset).map_err(ImageError::io("a copy of guest RAM cannot be written"))
        })?;
        Ok(copied)
    }

    /// Writes all RAM to `file`, an empty one, and waits until it is durable. With a `base`, only what is newer than that
    /// layer: such a file needs the one the base is the top of.
    ///
    /// # Errors
    /// When this image does not descend from the base, or the file cannot be written.
    pub fn write(&self, file: &File, base: Option<LayerId>) -> Result<Written, ImageError> {
        self.write_with(file, base, |_| true)
    }

    /// The same; `go_on` hears now and then which offset in RAM has been reached, and gives up by `false`.
    ///
    /// # Errors
    /// Those of [`MemoryImage::write`], and [`ImageError::Cancelled`].
    pub fn write_with(
        &self,
        file: &File,
        base: Option<LayerId>,
        mut go_on: impl FnMut(u64) -> bool,
    ) -> Result<Written, ImageError> {
        let segments = match base {
            Some(base) => self.since(base)?,
            None => self.segments.to_vec(),
        };
        let bytes = self.shape.bytes();
        let metadata = file.metadata().map_err(ImageError::io("the memory file cannot be looked at"))?;
        if metadata.len() > 0 {
            return Err(ImageError::NotEmpty);
        }
        file.set_len(bytes).map_err(ImageError::io("the memory file cannot be made as large as RAM"))?;
        let (mut data_bytes, mut synced_bytes) = (0, 0);
        let sync_failed = "the memory file cannot be made durable";
        let chunks = gather(&segments, bytes, |offset, data| {
            if !go_on(offset) {
                return Err(ImageError::Cancelled);
            }
            data_bytes += data.len() as u64;
            file.write_all_at(data, offset).map_err(ImageError::io("the memory file cannot be written"))?;
            if data_bytes - synced_bytes >= SYNC_BYTES {
                file.sync_data().map_err(ImageError::io(sync_failed))?;
                synced_bytes = data_bytes;
            }
            Ok(())
        })?;
        file.sync_all().map_err(ImageError::io(sync_failed))?;
        let layer = *self.layers.last().ok_or(ImageError::Chain)?;
        let runs = runs_of(&segments);
        let table = MemoryTable { shape: self.shape.clone(), base, layers: vec![layer], files: 1, runs, chunks };
        Ok(Written { table, data_bytes })
    }
}

/// Tells of what lies in segments and is no data.
struct Zeroes<'a> {
    /// Those that are not told of whole, lowest first.
    segments: &'a [Segment],
    /// All below this offset is told.
    told: u64,
}

impl Zeroes<'_> {
    fn up_to(
        &mut self,
        end: u64,
        f: &mut impl FnMut(u64, Piece<'_>) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        while let Some((segment, rest)) = self.segments.split_first().filter(|(segment, _)| segment.start < end) {
            let (from, to) = (segment.start.max(self.told), segment.end().min(end));
            if from < to {
                f(from, Piece::Zero(to - from))?;
                self.told = to;
            }
            if segment.end() > end {
                break;
            }
            self.segments = rest;
        }
        Ok(())
    }
}

/// Calls `f` with (offset in RAM, bytes) of the runs of pages of `segments` that are not zero, lowest first. Returns number
/// and checksum of each chunk with data.
fn gather(
    segments: &[Segment],
    ram_bytes: u64,
    f: impl FnMut(u64, &[u8]) -> Result<(), ImageError>,
) -> Result<Vec<(u32, u32)>, ImageError> {
    let mut gatherer = Gatherer::new(f, ram_bytes);
    for segment in segments {
        for_each_data(&segment.file.file, segment.offset, segment.len, |offset, len| {
            gatherer.add(segment, segment.start + (offset - segment.offset), len)
        })?;
    }
    gatherer.flush()?;
    Ok(gatherer.chunks)
}

/// The runs of a file in which offsets are those in RAM.
fn runs_of(segments: &[Segment]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for Segment { start, len, .. } in segments {
        match runs.last_mut() {
            Some(last) if last.start + last.len == *start => last.len += len,
            _ => runs.push(Run { start: *start, len: *len, offset: *start, file: 0, layer: 0 }),
        }
    }
    runs
}

/// Calls `f` with (offset, length) of the parts of a file's range that are not holes, whole pages each.
fn for_each_data(
    file: &File,
    start: u64,
    len: u64,
    mut f: impl FnMut(u64, u64) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let end = start + len;
    let mut at = start;
    while at < end {
        let data = match rustix::fs::seek(file.as_fd(), SeekFrom::Data(at)) {
            Ok(data) => data / PAGE_SIZE * PAGE_SIZE,
            Err(Errno::NXIO) => break,
            // A file system that knows no holes.
            Err(_) => return f(at, end - at),
        };
        if data >= end {
            break;
        }
        let data = data.max(at);
        let hole = rustix::fs::seek(file.as_fd(), SeekFrom::Hole(data));
        let hole =
            hole.map_err(|errno| ImageError::Io { doing: "no holes in the memory file", source: errno.into() })?;
        let stop = hole.next_multiple_of(PAGE_SIZE).min(end);
        f(data, stop - data)?;
        at = stop;
    }
    Ok(())
}

/// Gathers data by chunks, and passes on each chunk's pages and notes its checksum when the next one begins.
struct Gatherer<F> {
    f: F,
    ram_bytes: u64,
    /// The chunk that is gathered.
    number: u64,
    chunk: Vec<u8>,
    is_empty: bool,
    chunks: Vec<(u32, u32)>,
}

impl<F: FnMut(u64, &[u8]) -> Result<(), ImageError>> Gatherer<F> {
    fn new(f: F, ram_bytes: u64) -> Gatherer<F> {
        let chunk = vec![0; CHUNK_BYTES as usize];
        Gatherer { f, ram_bytes, number: 0, chunk, is_empty: true, chunks: Vec::new() }
    }

    /// Takes `len` bytes of `segment` that belong at `start` in RAM.
    fn add(&mut self, segment: &Segment, start: u64, len: u64) -> Result<(), ImageError> {
        let (mut at, end) = (start, start + len);
        while at < end {
            let number = at / CHUNK_BYTES;
            if number != self.number {
                self.flush()?;
                self.number = number;
            }
            let stop = end.min((number + 1) * CHUNK_BYTES);
            let place = (at % CHUNK_BYTES) as usize..(at % CHUNK_BYTES + (stop - at)) as usize;
            let offset = segment.offset + (at - segment.start);
            let read = segment.file.file.read_exact_at(&mut self.chunk[place], offset);
            read.map_err(ImageError::io("a layer of guest RAM cannot be read"))?;
            self.is_empty = false;
            at = stop;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ImageError> {
        if self.is_empty {
            return Ok(());
        }
        let start = self.number * CHUNK_BYTES;
        let chunk = &self.chunk[..chunk_bytes(self.number, self.ram_bytes)];
        let mut wrote = false;
        for (from, to) in data_pages(chunk) {
            (self.f)(start + from as u64, &chunk[from..to])?;
            wrote = true;
        }
        if wrote {
            self.chunks.push((self.number as u32, crc32fast::hash(chunk)));
        }
        self.chunk.fill(0);
        self.is_empty = true;
        Ok(())
    }
}

/// Bytes of a chunk; the last may be a short one.
fn chunk_bytes(number: u64, ram_bytes: u64) -> usize {
    CHUNK_BYTES.min(ram_bytes.saturating_sub(number * CHUNK_BYTES)) as usize
}

/// The runs of pages that are not zero, as places in the chunk.
fn data_pages(chunk: &[u8]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (number, page) in chunk.chunks(PAGE_SIZE as usize).enumerate() {
        let from = number * PAGE_SIZE as usize;
        match runs.last_mut() {
            _ if is_zero(page) => {}
            Some((_, to)) if *to == from => *to += page.len(),
            _ => runs.push((from, from + page.len())),
        }
    }
    runs
}

/// Whether a page has no bit set.
pub(crate) fn is_zero(page: &[u8]) -> bool {
    // SAFETY: any bytes are a number.
    let (head, words, tail) = unsafe { page.align_to::<u128>() };
    head.iter().chain(tail).all(|byte| *byte == 0)
        && words.chunks(4).all(|words| words.iter().fold(0, |all, word| all | word) == 0)
}

impl MemoryTable {
    /// Reads all of a memory file and compares it with the checksums.
    ///
    /// # Errors
    /// [`ImageError::Checksum`] for the first chunk that differs, [`ImageError::Short`], or when the file cannot be read.
    pub fn verify(&self, file: &File) -> Result<(), ImageError> {
        let bytes = self.shape.bytes();
        super::check_file(file, bytes)?;
        let mut buffer = vec![0; CHUNK_BYTES as usize];
        let mut read = |number: u64| {
            let chunk = &mut buffer[..chunk_bytes(number, bytes)];
            let done = file.read_exact_at(chunk, number * CHUNK_BYTES);
            done.map_err(ImageError::io("the memory file cannot be read"))?;
            Ok::<_, ImageError>((crc32fast::hash(chunk), is_zero(chunk)))
        };
        for (number, crc) in &self.chunks {
            let chunk = u64::from(*number);
            if read(chunk)?.0 != *crc {
                return Err(ImageError::Checksum { chunk });
            }
        }
        for_each_data(file, 0, bytes, |start, len| {
            for chunk in start / CHUNK_BYTES..(start + len).div_ceil(CHUNK_BYTES) {
                let known = self.chunks.binary_search_by_key(&chunk, |(number, _)| u64::from(*number)).is_ok();
                if !known && !read(chunk)?.1 {
                    return Err(ImageError::Checksum { chunk });
                }
            }
            Ok(())
        })
    }
}

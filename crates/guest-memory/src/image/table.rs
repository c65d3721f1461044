//! The table of a memory image: which bytes of RAM lie where in which file.
//!
//! ```text
//! "QZMEMTAB"  version u32
//! shape       count u32, then (address u64, bytes u64) each
//! base        16 bytes, the layer that the image was taken on; zeroes if it has all of RAM
//! layers      count u32, then 16 bytes each, oldest first
//! files       count u32
//! runs        count u32, then (offset in RAM u64, bytes u64, offset in file u64, file u32, layer u32) each
//! chunks      count u32, then (number u32, CRC-32 u32) each: the 2 MiB of the file that are not all zeroes
//! checksum    CRC-32 u32 of everything before it
//! ```
//! All numbers are little-endian; runs and chunks are sorted, and runs do not overlap.

use super::bytes::{Reader, Writer};
use super::{ImageError, MAX_FILES, MAX_SEGMENTS, Shape};
use crate::PAGE_SIZE;

const MAGIC: [u8; 8] = *b"QZMEMTAB";
/// Of the format.
pub(super) const VERSION: u32 = 1;
/// Layers that a table names at most.
pub(super) const MAX_LAYERS: usize = 4096;
/// Bytes that have a checksum together.
pub(super) const CHUNK_BYTES: u64 = 2 << 20;
/// Chunks of 64 TiB of RAM.
const MAX_CHUNKS: usize = 32 << 20;

/// The name of one layer: random, so that no other has it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LayerId([u8; 16]);

impl LayerId {
    const NONE: [u8; 16] = [0; 16];

    pub(crate) fn random() -> Result<LayerId, ImageError> {
        let mut bytes = [0; 16];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .map_err(ImageError::io("no random number for the name of a layer"))?;
        Ok(LayerId(bytes))
    }
}

impl std::fmt::Debug for LayerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// A run of RAM and where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// In RAM.
    pub start: u64,
    pub len: u64,
    /// In the file.
    pub offset: u64,
    pub file: u32,
    pub layer: u32,
}

/// The table of a memory image; see the format in `docs/snapshots.md`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryTable {
    pub(super) shape: Shape,
    pub(super) base: Option<LayerId>,
    pub(super) layers: Vec<LayerId>,
    pub(super) files: u32,
    pub(super) runs: Vec<Run>,
    /// Number and CRC-32 of each chunk that is not all zeroes.
    pub(super) chunks: Vec<(u32, u32)>,
}

impl MemoryTable {
    /// The newest layer: the base of incremental images taken on this one.
    pub fn top(&self) -> Option<LayerId> {
        self.layers.last().copied()
    }

    /// The layer that this image was taken on, if it is an incremental one.
    pub fn base(&self) -> Option<LayerId> {
        self.base
    }

    /// The RAM that the image is of.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Bytes of RAM that the image has.
    pub fn bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.len).sum()
    }

    /// As bytes, to be kept in a file of its own or sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.bytes(&MAGIC);
        writer.u32(VERSION);
        self.shape.encode(&mut writer);
        writer.bytes(&self.base.map_or(LayerId::NONE, |base| base.0));
        writer.u32(self.layers.len() as u32);
        self.layers.iter().for_each(|layer| writer.bytes(&layer.0));
        writer.u32(self.files);
        writer.u32(self.runs.len() as u32);
        for run in &self.runs {
            [run.start, run.len, run.offset].into_iter().for_each(|number| writer.u64(number));
            [run.file, run.layer].into_iter().for_each(|number| writer.u32(number));
        }
        writer.u32(self.chunks.len() as u32);
        self.chunks.iter().for_each(|(number, crc)| {
            writer.u32(*number);
            writer.u32(*crc);
        });
        let checksum = crc32fast::hash(&writer.0);
        writer.u32(checksum);
        writer.0
    }

    /// Reads a table. Whatever the bytes are, what is returned keeps to the RAM it is of: runs are sorted, whole pages, and
    /// do not overlap. Whether they lie inside of the files is checked when these are known.
    ///
    /// # Errors
    /// When the bytes are not a table of a version that is known.
    pub fn from_bytes(bytes: &[u8]) -> Result<MemoryTable, ImageError> {
        let mut reader = Reader(bytes);
        if reader.array()? != MAGIC {
            return Err(ImageError::Damaged("it is something else"));
        }
        match reader.u32()? {
            VERSION => {}
            other => return Err(ImageError::Version(other)),
        }
        let (body, checksum) = bytes.split_last_chunk::<4>().ok_or(ImageError::Damaged("it was cut off"))?;
        if crc32fast::hash(body) != u32::from_le_bytes(*checksum) {
            return Err(ImageError::Damaged("its checksum does not match"));
        }
        MemoryTable::decode(Reader(&reader.0[..reader.0.len() - checksum.len()]))
    }

    /// Reads what follows the version, without the checksum.
    fn decode(mut reader: Reader<'_>) -> Result<MemoryTable, ImageError> {
        let shape = Shape::decode(&mut reader)?;
        let base = Some(reader.array()?).filter(|base| *base != LayerId::NONE).map(LayerId);
        let layers = reader.count(MAX_LAYERS, 16)?;
        let layers = (0..layers).map(|_| reader.array().map(LayerId)).collect::<Result<Vec<_>, _>>()?;
        let files = reader.u32()?;
        if layers.is_empty() || files > MAX_FILES as u32 {
            return Err(ImageError::Damaged("it counts layers or files that cannot be"));
        }
        let runs = decode_runs(&mut reader, &shape, files, layers.len())?;
        let chunks = decode_chunks(&mut reader, shape.bytes())?;
        match reader.0.is_empty() {
            true => Ok(MemoryTable { shape, base, layers, files, runs, chunks }),
            false => Err(ImageError::Damaged("it is longer than it says")),
        }
    }
}

fn decode_runs(reader: &mut Reader<'_>, shape: &Shape, files: u32, layers: usize) -> Result<Vec<Run>, ImageError> {
    let count = reader.count(MAX_SEGMENTS, 32)?;
    let (mut runs, mut end, bytes) = (Vec::with_capacity(count), 0, shape.bytes());
    for _ in 0..count {
        let (start, len, offset) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let (file, layer) = (reader.u32()?, reader.u32()?);
        let next = start.checked_add(len).filter(|next| *next <= bytes);
        let aligned = [start, len, offset].iter().all(|number| number.is_multiple_of(PAGE_SIZE));
        let known = file < files && (layer as usize) < layers && offset.checked_add(len).is_some();
        match next {
            Some(next) if aligned && known && len > 0 && start >= end => end = next,
            _ => return Err(ImageError::Damaged("a run is not where one can be")),
        }
        runs.push(Run { start, len, offset, file, layer });
    }
    Ok(runs)
}

fn decode_chunks(reader: &mut Reader<'_>, ram_bytes: u64) -> Result<Vec<(u32, u32)>, ImageError> {
    let most = usize::try_from(ram_bytes.div_ceil(CHUNK_BYTES)).unwrap_or(usize::MAX).min(MAX_CHUNKS);
    let count = reader.count(most, 8)?;
    let mut chunks: Vec<(u32, u32)> = Vec::with_capacity(count);
    for _ in 0..count {
        let (number, crc) = (reader.u32()?, reader.u32()?);
        let sorted = chunks.last().is_none_or(|(last, _)| *last < number);
        if !sorted || number as usize >= most {
            return Err(ImageError::Damaged("a checksum is of no chunk"));
        }
        chunks.push((number, crc));
    }
    Ok(chunks)
}

//! Decompression of kernels on the host, as streams: a software CPU would spend billions of instructions on it.
//!
//! Memory is bounded whatever the input says: each format's window is limited to what kernel builds use at most.

use std::io::{self, BufReader, Read};

/// Largest window or dictionary, as in the kernel's own decompressors (`ZSTD_WINDOWSIZE_MAX`; xz uses 128 MiB too).
const WINDOW_LOG_MAX: u32 = 27;
/// Memory limit of the xz and lzma decoders in KiB: the window and their tables.
const LZMA_MEMORY_KIB: u32 = (160 << 20) >> 10;
/// Uncompressed size of a block of the legacy LZ4 format (all but the last have it).
const LZ4_BLOCK_BYTES: usize = 8 << 20;
const LZ4_LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// The compressions a Linux kernel build can choose, less LZO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Gzip,
    Bzip2,
    Lzma,
    Xz,
    Lz4,
    Zstd,
}

impl Format {
    /// Recognises the format by its first bytes (Linux `scripts/extract-vmlinux`).
    pub fn detect(start: &[u8]) -> Option<Format> {
        let magics: [(&[u8], Format); 6] = [
            (&[0x1f, 0x8b, 0x08], Format::Gzip),
            (b"BZh", Format::Bzip2),
            (&[0x5d, 0x00, 0x00], Format::Lzma),
            (b"\xfd7zXZ\0", Format::Xz),
            (&LZ4_LEGACY_MAGIC, Format::Lz4),
            (&[0x28, 0xb5, 0x2f, 0xfd], Format::Zstd),
        ];
        magics.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, format)| *format)
    }

    pub fn name(self) -> &'static str {
        match self {
            Format::Gzip => "gzip",
            Format::Bzip2 => "bzip2",
            Format::Lzma => "lzma",
            Format::Xz => "xz",
            Format::Lz4 => "lz4",
            Format::Zstd => "zstd",
        }
    }

    /// The decompressed bytes of `input`. What follows the compressed data is ignored.
    pub fn reader(self, input: impl Read + 'static) -> io::Result<Box<dyn Read>> {
        let input = BufReader::with_capacity(256 << 10, input);
        Ok(match self {
            Format::Gzip => Box::new(flate2::bufread::GzDecoder::new(input)),
            Format::Bzip2 => Box::new(bzip2::bufread::BzDecoder::new(input)),
            Format::Lzma => Box::new(lzma_rust2::LzmaReader::new_mem_limit(input, LZMA_MEMORY_KIB, None)?),
            Format::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(input, false, LZMA_MEMORY_KIB)),
            Format::Lz4 => Box::new(Lz4Legacy::new(input)?),
            Format::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
                decoder.window_log_max(WINDOW_LOG_MAX)?;
                Box::new(decoder.single_frame())
            }
        })
    }
}

/// The LZ4 legacy frame, `lz4 -l`: a magic number, then independent blocks, each behind its compressed size
/// (`lz4_Frame_format.md`, “Legacy frame”).
struct Lz4Legacy<R> {
    input: R,
    block: Vec<u8>,
    position: usize,
}

impl<R: Read> Lz4Legacy<R> {
    fn new(mut input: R) -> io::Result<Self> {
        let mut magic = [0; 4];
        input.read_exact(&mut magic)?;
        if magic != LZ4_LEGACY_MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not an LZ4 legacy frame"));
        }
        Ok(Lz4Legacy { input, block: Vec::new(), position: 0 })
    }

    /// Decompresses the next block; false at the end. A size without data behind it is the uncompressed length that
    /// kernel builds append.
    fn next_block(&mut self) -> io::Result<bool> {
        let mut size = Vec::with_capacity(4);
        self.input.by_ref().take(4).read_to_end(&mut size)?;
        let Ok(size) = <[u8; 4]>::try_from(size) else { return Ok(false) };
        let size = u64::from(u32::from_le_bytes(size));
        let mut compressed = Vec::new();
        let got = self.input.by_ref().take(size.min(2 * LZ4_BLOCK_BYTES as u64)).read_to_end(&mut compressed)?;
        if got == 0 {
            return Ok(false);
        }
        self.block.resize(LZ4_BLOCK_BYTES, 0);
        let len = lz4_flex::block::decompress_into(&compressed, &mut self.block)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.block.truncate(len);
        self.position = 0;
        Ok(len > 0)
    }
}

impl<R: Read> Read for Lz4Legacy<R> {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        if self.position == self.block.len() && !self.next_block()? {
            return Ok(0);
        }
        let count = data.len().min(self.block.len() - self.position);
        data[..count].copy_from_slice(&self.block[self.position..self.position + count]);
        self.position += count;
        Ok(count)
    }
}

//! Kernel images as bytes by offset: a file, or the output of a decompressor that never exists as a whole.
//!
//! Segments go straight from here into guest memory, so that loading touches no more host memory than the guest gets.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use queztl_guest_memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use super::error::KernelError;

/// Bytes at the start of a decompressed kernel that can be read more than once: the ELF headers.
const PREFIX_BYTES: usize = 64 << 10;
/// Most bytes a decompressor may deliver. A few kilobytes of compressed zeros would otherwise keep the loader busy
/// for hours.
const MAX_STREAM_BYTES: u64 = 2 << 30;
const COPY_BYTES: usize = 256 << 10;

/// Random or forward-only access to an image's bytes.
pub trait Image {
    /// Fills `data` from `offset`. Fails with `UnexpectedEof` past the end, and with `Unsupported` before the present
    /// position of a forward-only image.
    fn read_at(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()>;
    /// Copies `len` bytes from `offset` to guest-physical address `gpa`.
    fn copy_to_guest(&mut self, offset: u64, len: u64, memory: &GuestMemory, gpa: u64) -> Result<(), KernelError>;
    /// The number of bytes, if known before they are read.
    fn len(&self) -> Option<u64>;
    /// Whether the bytes up to `end` can be read without losing others.
    fn can_peek(&self, end: u64) -> bool;
}

/// Reads `N` bytes at `offset`; `what` names them in the error.
pub fn read_array<const N: usize>(
    image: &mut dyn Image,
    offset: u64,
    what: &'static str,
) -> Result<[u8; N], KernelError> {
    let mut data = [0; N];
    read_exact(image, offset, &mut data, what)?;
    Ok(data)
}

/// Fills `data` from `offset`; `what` names the bytes in the error.
pub fn read_exact(image: &mut dyn Image, offset: u64, data: &mut [u8], what: &'static str) -> Result<(), KernelError> {
    image.read_at(offset, data).map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => KernelError::Truncated { what },
        _ => KernelError::Io { offset, source },
    })
}

/// An image in a file.
pub struct FileImage {
    file: File,
    len: u64,
}

impl FileImage {
    /// Takes over `file`, a regular file.
    pub fn new(file: File) -> io::Result<FileImage> {
        let len = file.metadata()?.len();
        Ok(FileImage { file, len })
    }

    /// The bytes from `offset` on, `len` of them, as a reader.
    pub fn reader(&self, offset: u64, len: u64) -> io::Result<impl Read + 'static> {
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(file.take(len))
    }
}

impl Image for FileImage {
    fn read_at(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(data, offset)
    }

    fn copy_to_guest(&mut self, offset: u64, len: u64, memory: &GuestMemory, gpa: u64) -> Result<(), KernelError> {
        if len == 0 {
            return Ok(());
        }
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(KernelError::Truncated { what: "the end of a segment" });
        }
        self.file.seek(SeekFrom::Start(offset)).map_err(|source| KernelError::Io { offset, source })?;
        memory
            .read_exact_volatile_from(GuestAddress(gpa), &mut self.file, len as usize)
            .map_err(|source| KernelError::Memory { address: gpa, source })
    }

    fn len(&self) -> Option<u64> {
        Some(self.len)
    }

    fn can_peek(&self, _end: u64) -> bool {
        true
    }
}

/// An image that comes out of a decompressor: its first [`PREFIX_BYTES`] can be read at will, the rest forwards only.
pub struct StreamImage {
    reader: io::Take<Box<dyn Read>>,
    format: &'static str,
    prefix: Vec<u8>,
    /// How many bytes have been taken from the reader.
    position: u64,
}

impl StreamImage {
    /// Starts to decompress; `format` names the compression in errors.
    pub fn new(reader: Box<dyn Read>, format: &'static str) -> Result<StreamImage, KernelError> {
        let mut reader = reader.take(MAX_STREAM_BYTES);
        let mut prefix = Vec::new();
        reader
            .by_ref()
            .take(PREFIX_BYTES as u64)
            .read_to_end(&mut prefix)
            .map_err(|source| KernelError::Decompress { format, source })?;
        let position = prefix.len() as u64;
        Ok(StreamImage { reader, format, prefix, position })
    }

    fn skip_to(&mut self, offset: u64) -> io::Result<()> {
        let Some(gap) = offset.checked_sub(self.position) else {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "segments are not in the order of the file"));
        };
        let skipped = io::copy(&mut self.reader.by_ref().take(gap), &mut io::sink())?;
        self.position += skipped;
        if skipped < gap { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    fn read_stream(&mut self, data: &mut [u8]) -> io::Result<()> {
        self.reader.read_exact(data)?;
        self.position += data.len() as u64;
        Ok(())
    }
}

impl Image for StreamImage {
    fn read_at(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.prefix.len());
        let buffered = data.len().min(self.prefix.len() - start);
        data[..buffered].copy_from_slice(&self.prefix[start..start + buffered]);
        let rest = &mut data[buffered..];
        if rest.is_empty() {
            return Ok(());
        }
        self.skip_to(offset.saturating_add(buffered as u64))?;
        self.read_stream(rest)
    }

    fn copy_to_guest(&mut self, offset: u64, len: u64, memory: &GuestMemory, gpa: u64) -> Result<(), KernelError> {
        let mut buffer = vec![0; COPY_BYTES.min(len as usize)];
        let mut done = 0;
        while done < len {
            let count = (len - done).min(COPY_BYTES as u64) as usize;
            let format = self.format;
            self.read_at(offset.saturating_add(done), &mut buffer[..count]).map_err(|source| match source.kind() {
                io::ErrorKind::UnexpectedEof => KernelError::Truncated { what: "the end of a segment" },
                _ => KernelError::Decompress { format, source },
            })?;
            memory
                .write_slice(&buffer[..count], GuestAddress(gpa + done))
                .map_err(|source| KernelError::Memory { address: gpa, source })?;
            done += count as u64;
        }
        Ok(())
    }

    fn len(&self) -> Option<u64> {
        None
    }

    fn can_peek(&self, end: u64) -> bool {
        end <= self.prefix.len() as u64
    }
}

//! Copying a disk from one image to a new one, in any formats.

use std::path::Path;

use super::{CreateConfig, create};
use crate::{Backing, Buffer, Disk, DiskQueue, Error, Format, ImageConfig, Operation, Request, open_disk};

/// Bytes that are read at once.
const PIECE_BYTES: u64 = 1 << 20;
/// Runs of zeroes of this length and place take no space in the copy, bytes.
const GRAIN_BYTES: usize = 64 << 10;

/// Copies the disk of `from` to the new image `to`, which depends on nothing. `progress` hears how many bytes of how many
/// are done. On an error the new image is removed.
pub fn convert(
    from: &ImageConfig,
    to: &Path,
    format: Format,
    mut progress: impl FnMut(u64, u64),
) -> Result<u64, Error> {
    let source = open_disk(&ImageConfig { read_only: true, ..from.clone() })?;
    let size = source.topology().size_bytes;
    let new = CreateConfig { path: to.to_path_buf(), format, size_bytes: Some(size), parent: None };
    create(&new)?;
    let copied = (|| {
        let target = open_disk(&ImageConfig {
            path: to.to_path_buf(),
            format: Some(format),
            read_only: false,
            backing: Backing::None,
            direct: false,
            in_order: false,
        })?;
        copy(&*source, &*target, &mut progress)
    })();
    if copied.is_err() {
        // The copy is of no use to anybody, and the first error is the one to tell.
        let _ = std::fs::remove_file(to);
    }
    copied.map(|()| size)
}

fn copy(source: &dyn Disk, target: &dyn Disk, progress: &mut impl FnMut(u64, u64)) -> Result<(), Error> {
    let size = source.topology().size_bytes;
    let (mut input, mut output) = (source.open_queue(1)?, target.open_queue(1)?);
    let mut bytes = vec![0; PIECE_BYTES as usize];
    let mut offset = 0;
    while offset < size {
        progress(offset, size);
        let extent = source.extent(offset).map_err(Error::Copy)?;
        // A file that says nothing of a place is read there.
        let length = if extent.length_bytes == 0 { size - offset } else { extent.length_bytes };
        if extent.zeroes {
            offset += length;
            continue;
        }
        let piece = &mut bytes[..length.min(PIECE_BYTES) as usize];
        transfer(&mut *input, Operation::Read, offset, piece)?;
        write_piece(&mut *output, offset, piece)?;
        offset += piece.len() as u64;
    }
    transfer(&mut *output, Operation::Flush, 0, &mut [])?;
    progress(size, size);
    Ok(())
}

/// Writes what is not zero.
fn write_piece(output: &mut dyn DiskQueue, offset: u64, piece: &mut [u8]) -> Result<(), Error> {
    let mut at = 0;
    for grain in piece.chunks_mut(GRAIN_BYTES) {
        if grain.iter().any(|byte| *byte != 0) {
            transfer(output, Operation::Write { durable: false }, offset + at, grain)?;
        }
        at += grain.len() as u64;
    }
    Ok(())
}

/// Carries out one request and waits for its end.
fn transfer(queue: &mut dyn DiskQueue, operation: Operation, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
    let buffers = vec![Buffer::new(bytes.as_mut_ptr(), bytes.len())];
    let request = Request { token: 0, operation, offset_bytes: offset, length_bytes: 0, buffers };
    // SAFETY: `bytes` is borrowed until the request has completed.
    unsafe { queue.submit(request) };
    queue.kick().map_err(Error::Copy)?;
    queue.drain();
    match queue.completed() {
        Some(completion) => completion.result.map_err(Error::Copy),
        None => Err(Error::Copy(std::io::Error::other("a request got lost"))),
    }
}

//! Guest RAM as a file: the regions one after the other, lowest first, holes where pages are zero.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use queztl_guest_memory::{GuestRam, PAGE_SIZE};
use rustix::fs::SeekFrom;
use vm_memory::{Bytes, GuestAddress};

use super::Error;

/// Bytes that are copied at a time.
const CHUNK: u64 = 256 << 10;

/// Writes `ram`, which nobody writes to meanwhile; gives how many bytes were not zero.
pub(crate) fn write(ram: &GuestRam, file: &File) -> io::Result<u64> {
    file.set_len(ram.bytes())?;
    let (mut offset, mut written) = (0, 0);
    let mut buffer = vec![0; CHUNK as usize];
    for (start, len) in ram.ranges() {
        for at in (0..len).step_by(CHUNK as usize) {
            let chunk = &mut buffer[..(len - at).min(CHUNK) as usize];
            ram.memory().read_slice(chunk, GuestAddress(start + at)).map_err(io::Error::other)?;
            written += write_pages(chunk, file, offset + at)?;
        }
        offset += len;
    }
    Ok(written)
}

/// Writes those of the pages that are not zero.
fn write_pages(pages: &[u8], file: &File, offset: u64) -> io::Result<u64> {
    let mut written = 0;
    for (number, page) in (0..).zip(pages.chunks(PAGE_SIZE as usize)) {
        if page.iter().any(|byte| *byte != 0) {
            file.write_all_at(page, offset + number * PAGE_SIZE)?;
            written += page.len() as u64;
        }
    }
    Ok(written)
}

/// Fills `ram`, which is zero, from `file`.
pub(crate) fn read(ram: &GuestRam, file: &File) -> Result<(), Error> {
    let bytes = file.metadata().map_err(|error| Error::Memory(error.to_string()))?.len();
    if bytes != ram.bytes() {
        return Err(Error::Memory(format!("it has {bytes} bytes and not {}", ram.bytes())));
    }
    copy_in(ram, file).map_err(|error| Error::Memory(error.to_string()))
}

fn copy_in(ram: &GuestRam, file: &File) -> io::Result<()> {
    let mut offset = 0;
    let mut buffer = vec![0; CHUNK as usize];
    for (start, len) in ram.ranges() {
        let mut at = 0;
        while at < len {
            at = match rustix::fs::seek(file.as_fd(), SeekFrom::Data(offset + at)) {
                Ok(data) => (data - offset) & !(PAGE_SIZE - 1),
                Err(rustix::io::Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            if at >= len {
                break;
            }
            let chunk = &mut buffer[..(len - at).min(CHUNK) as usize];
            file.read_exact_at(chunk, offset + at)?;
            ram.memory().write_slice(chunk, GuestAddress(start + at)).map_err(io::Error::other)?;
            at += chunk.len() as u64;
        }
        offset += len;
    }
    Ok(())
}

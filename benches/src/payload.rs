//! A guest of a few instructions: it writes one byte to the serial port and sleeps.
//!
//! An ELF file with a PVH entry point, which every monitor here boots without firmware in between.

use std::io;
use std::path::{Path, PathBuf};

/// What the guest writes.
pub const BYTE: u8 = b'!';

const ADDRESS: u32 = 0x10_0000;
const NOTE_AT: u64 = 0x200;
const CODE_AT: u64 = 0x1000;
/// XEN_ELFNOTE_PHYS32_ENTRY.
const PHYS32_ENTRY: u32 = 18;

/// 32-bit code: `mov dx, 0x3f8; mov al, BYTE; out dx, al; cli; hlt; jmp` back to the `hlt`.
const CODE: [u8; 11] = [0x66, 0xba, 0xf8, 0x03, 0xb0, BYTE, 0xee, 0xfa, 0xf4, 0xeb, 0xfd];

/// Writes the guest's image into `folder`.
///
/// # Errors
/// The file cannot be written.
pub fn write(folder: &Path) -> io::Result<PathBuf> {
    write_program(folder, "payload", &CODE)
}

/// Writes a guest whose whole program is `code`, in 32-bit protected mode, into `folder`.
///
/// # Errors
/// The file cannot be written.
pub fn write_program(folder: &Path, name: &str, code: &[u8]) -> io::Result<PathBuf> {
    let path = folder.join(name);
    std::fs::write(&path, image(code))?;
    Ok(path)
}

fn image(code: &[u8]) -> Vec<u8> {
    let note = note();
    let mut file = header();
    file.extend(segment(1, CODE_AT, ADDRESS.into(), code.len() as u64, 0x1000));
    file.extend(segment(4, NOTE_AT, 0, note.len() as u64, 4));
    file.resize(NOTE_AT as usize, 0);
    file.extend(note);
    file.resize(CODE_AT as usize, 0);
    file.extend(code);
    file
}

/// The header of a 64-bit x86 program with two segments.
fn header() -> Vec<u8> {
    let mut header = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    header.extend([2u16, 62].into_iter().flat_map(u16::to_le_bytes));
    header.extend(1u32.to_le_bytes());
    header.extend([u64::from(ADDRESS), 64, 0].into_iter().flat_map(u64::to_le_bytes));
    header.extend(0u32.to_le_bytes());
    header.extend([64u16, 56, 2, 64, 0, 0].into_iter().flat_map(u16::to_le_bytes));
    header
}

fn segment(kind: u32, offset: u64, address: u64, bytes: u64, align: u64) -> Vec<u8> {
    let read_write_execute = 7u32;
    let mut segment: Vec<u8> = [kind, read_write_execute].into_iter().flat_map(u32::to_le_bytes).collect();
    segment.extend([offset, address, address, bytes, bytes, align].into_iter().flat_map(u64::to_le_bytes));
    segment
}

fn note() -> Vec<u8> {
    let mut note: Vec<u8> = [4, 4, PHYS32_ENTRY].into_iter().flat_map(u32::to_le_bytes).collect();
    note.extend(b"Xen\0");
    note.extend(ADDRESS.to_le_bytes());
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_have_the_sizes_that_they_state() {
        let image = image(&CODE);
        assert_eq!(header().len(), 64);
        assert_eq!(segment(1, 0, 0, 0, 0).len(), 56);
        assert_eq!(&image[CODE_AT as usize..], CODE);
        assert_eq!(&image[NOTE_AT as usize + 12..][..4], b"Xen\0");
    }
}

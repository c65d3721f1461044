//! A guest of a few instructions: it writes one byte to the serial port and sleeps.
//!
//! An ELF file with a PVH entry point, which every monitor here boots without firmware in between.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

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

/// A guest that fills its RAM, and then writes to one page after the other, with a byte to the serial port for each, or for
/// several ([`Writer::pages_per_byte`]).
#[derive(Debug, Clone, Copy)]
pub struct Writer {
    pub ram_mib: u64,
    /// Pages that it writes in a second, by its time-stamp counter; 0 for as many as it can.
    pub rate: u32,
}

/// Where its data begin.
const DATA: u32 = 0x40_0000;

impl Writer {
    /// Pages that it writes for each byte that it says: who writes all it can would say more than anybody can listen to.
    pub fn pages_per_byte(&self) -> u32 {
        if self.rate == 0 { 256 } else { 1 }
    }

    /// Its program.
    ///
    /// # Errors
    /// There is too little RAM, or too much for 32 bits.
    pub fn code(&self) -> Result<Vec<u8>> {
        let ticks = if self.rate == 0 { 0 } else { ticks_per_second() / u64::from(self.rate) };
        program(self.ram_mib, u32::try_from(ticks)?, self.pages_per_byte())
    }
}

/// Of the host's counter, which guests have at the same pace.
fn ticks_per_second() -> u64 {
    // SAFETY: every processor that runs this has the counter.
    let ticks = || unsafe { std::arch::x86_64::_rdtsc() };
    let (start, first) = (Instant::now(), ticks());
    std::thread::sleep(Duration::from_millis(20));
    (ticks() - first) * 1000 / start.elapsed().as_micros().max(1) as u64 * 1000
}

fn program(ram_mib: u64, pace_ticks: u32, pages_per_byte: u32) -> Result<Vec<u8>> {
    let end = u32::try_from(ram_mib.saturating_sub(2) << 20).ok().filter(|end| *end > DATA);
    let end = end.context("the guest's RAM is from 8 to 3072 MiB")?;
    let mut code = Vec::new();
    // mov edi, DATA; mov ecx, words; mov eax, pattern; rep stosd
    code.push(0xbf);
    code.extend(DATA.to_le_bytes());
    code.push(0xb9);
    code.extend(((end - DATA) / 4).to_le_bytes());
    code.extend([0xb8, 0x21, 0x43, 0x65, 0x87, 0xf3, 0xab]);
    // mov esi, DATA; mov dx, 0x3f8; rdtsc; mov ebp, eax (with dx put back below)
    code.push(0xbe);
    code.extend(DATA.to_le_bytes());
    code.extend([0x0f, 0x31, 0x89, 0xc5]);
    // mov ebx, 1: pages until the next byte
    code.extend([0xbb, 1, 0, 0, 0]);
    let next = code.len();
    // next: dec ebx; jnz +13; mov ebx, pages_per_byte; mov edx, 0x3f8; mov al, '.'; out dx, al
    code.extend([0xff, 0xcb, 0x75, 13, 0xbb]);
    code.extend(pages_per_byte.to_le_bytes());
    code.extend([0xba, 0xf8, 0x03, 0, 0, 0xb0, b'.', 0xee]);
    // inc dword [esi]; add esi, 4096; cmp esi, end; jb +5; mov esi, DATA
    code.extend([0xff, 0x06, 0x81, 0xc6, 0, 0x10, 0, 0, 0x81, 0xfe]);
    code.extend(end.to_le_bytes());
    code.extend([0x72, 0x05, 0xbe]);
    code.extend(DATA.to_le_bytes());
    // wait: rdtsc; sub eax, ebp; cmp eax, pace_ticks; jb wait; add ebp, pace_ticks
    code.extend([0x0f, 0x31, 0x29, 0xe8, 0x3d]);
    code.extend(pace_ticks.to_le_bytes());
    code.extend([0x72, 0xf5, 0x81, 0xc5]);
    code.extend(pace_ticks.to_le_bytes());
    // jmp next
    code.push(0xeb);
    let distance = next as i64 - (code.len() as i64 + 1);
    code.push(i8::try_from(distance)? as u8);
    Ok(code)
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

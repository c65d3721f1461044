//! Page tables for the entry in 64-bit mode: the first 4 GiB mapped to themselves by 2 MiB pages.

use super::error::Error;
use super::low;
use super::placement::Placement;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
const TABLE_BYTES: u64 = 0x1000;
const LARGE_PAGE_BYTES: u64 = 2 << 20;
const DIRECTORIES: u64 = 4;

/// Writes the tables at [`low::PAGE_TABLES`] and gives the address of the top-level one.
pub fn write_identity_map(placement: &Placement) -> Result<u64, Error> {
    let top = low::PAGE_TABLES;
    let pointers = top + TABLE_BYTES;
    let directories = pointers + TABLE_BYTES;
    placement.write(top, &(pointers | PRESENT_WRITABLE).to_le_bytes())?;
    for index in 0..DIRECTORIES {
        let directory = directories + index * TABLE_BYTES;
        placement.write(pointers + index * 8, &(directory | PRESENT_WRITABLE).to_le_bytes())?;
        placement.write(directory, &directory_bytes(index))?;
    }
    Ok(top)
}

fn directory_bytes(index: u64) -> Vec<u8> {
    let first = index * 512;
    (first..first + 512).flat_map(|page| ((page * LARGE_PAGE_BYTES) | LARGE | PRESENT_WRITABLE).to_le_bytes()).collect()
}

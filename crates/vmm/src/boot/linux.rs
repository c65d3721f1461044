//! The Linux/x86 boot protocol (Linux `Documentation/arch/x86/boot.rst` and `zero-page.rst`), 64-bit and 32-bit entry.

use super::bzimage::{HEADER_START, SetupHeader};
use super::elf::{Class, Elf};
use super::error::{Error, KernelError};
use super::image::{FileImage, Image};
use super::initrd;
use super::placement::Placement;
use super::state::{InitialState, Mode};
use super::{BootConfig, cmdline, low, paging};

/// Offsets in the zero page.
const ACPI_RSDP: usize = 0x070;
const E820_COUNT: usize = 0x1e8;
const TYPE_OF_LOADER: usize = 0x210;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_BYTES: usize = 0x21c;
const CMDLINE_POINTER: usize = 0x228;
const SETUP_DATA_POINTER: usize = 0x250;
const E820_TABLE: usize = 0x2d0;
const E820_MAX: usize = 128;
const E820_ENTRY_BYTES: usize = 20;

/// A loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// `setup_data` type of a seed for the random number generator.
const SETUP_RNG_SEED: u32 = 9;
/// The 64-bit entry point, from the start of the protected-mode part.
const ENTRY_64_OFFSET: u64 = 0x200;

/// A kernel that lies in guest memory.
pub struct Loaded {
    entry: u64,
    is_64_bit: bool,
    header: SetupHeader,
}

/// Loads the segments of an ELF kernel, which may come out of a bzImage with its `header`.
pub fn load_elf(
    image: &mut dyn Image,
    elf: &Elf,
    header: SetupHeader,
    placement: &mut Placement,
) -> Result<Loaded, KernelError> {
    let entry = elf.physical_entry().ok_or(KernelError::Malformed { what: "its entry point lies in no segment" })?;
    load_segments(image, elf, placement)?;
    Ok(Loaded { entry, is_64_bit: elf.class == Class::Elf64, header })
}

/// Loads the segments of an ELF file at their physical addresses. Guest memory beyond the file's part of a segment is
/// left as it is, that is, zero.
pub fn load_segments(image: &mut dyn Image, elf: &Elf, placement: &mut Placement) -> Result<(), KernelError> {
    for segment in &elf.load {
        placement.claim(segment.physical, segment.memory_bytes, "another of its segments")?;
    }
    for segment in &elf.load {
        image.copy_to_guest(segment.offset, segment.file_bytes, placement.memory, segment.physical)?;
    }
    Ok(())
}

/// Loads a bzImage: the kernel inside if its compression is known, else the whole, to decompress itself.
pub fn load_bzimage(image: &mut FileImage, placement: &mut Placement) -> Result<Loaded, KernelError> {
    let header = SetupHeader::read(image)?;
    if let Some(mut payload) = header.payload(image)? {
        let elf = Elf::parse(&mut payload)?;
        return load_elf(&mut payload, &elf, header, placement);
    }
    let offset = header.protected_mode_offset();
    let len = image.len().and_then(|file_len| file_len.checked_sub(offset)).filter(|len| *len > ENTRY_64_OFFSET);
    let len = len.ok_or(KernelError::Truncated { what: "its protected-mode part" })?;
    let start = header.preferred_address();
    placement.claim(start, header.init_bytes().max(len), "another part of it")?;
    image.copy_to_guest(offset, len, placement.memory, start)?;
    let is_64_bit = header.is_64_bit();
    let entry = if is_64_bit { start + ENTRY_64_OFFSET } else { start };
    Ok(Loaded { entry, is_64_bit, header })
}

/// Places the initial RAM disk, the command line and the zero page, and gives the state at the kernel's entry.
pub fn finish(loaded: Loaded, config: &BootConfig, placement: &mut Placement) -> Result<InitialState, Error> {
    let header = &loaded.header;
    cmdline::write(config.cmdline, header.cmdline_limit(), placement)?;
    let initrd = initrd::load(config.initrd, header.initrd_limit(), placement)?;
    let mut page = zero_page(header, placement, config.rsdp);
    if let Some(initrd) = initrd {
        page[RAMDISK_IMAGE..RAMDISK_IMAGE + 4].copy_from_slice(&(initrd.start as u32).to_le_bytes());
        page[RAMDISK_BYTES..RAMDISK_BYTES + 4].copy_from_slice(&(initrd.len as u32).to_le_bytes());
    }
    if let Some(seed) = &config.rng_seed {
        placement.write(low::SETUP_DATA, &rng_seed(seed))?;
        page[SETUP_DATA_POINTER..SETUP_DATA_POINTER + 8].copy_from_slice(&low::SETUP_DATA.to_le_bytes());
    }
    placement.write(low::ZERO_PAGE, &page)?;
    let mode =
        if loaded.is_64_bit { Mode::Long { cr3: paging::write_identity_map(placement)? } } else { Mode::Protected };
    let mut state = InitialState::new(mode, loaded.entry);
    state.rsi = low::ZERO_PAGE;
    Ok(state)
}

fn zero_page(header: &SetupHeader, placement: &Placement, rsdp: Option<u64>) -> [u8; 4096] {
    let mut page = [0; 4096];
    page[HEADER_START..HEADER_START + header.bytes().len()].copy_from_slice(header.bytes());
    page[TYPE_OF_LOADER] = LOADER_UNDEFINED;
    page[CMDLINE_POINTER..CMDLINE_POINTER + 4].copy_from_slice(&(low::CMDLINE as u32).to_le_bytes());
    page[SETUP_DATA_POINTER..SETUP_DATA_POINTER + 8].fill(0);
    page[ACPI_RSDP..ACPI_RSDP + 8].copy_from_slice(&rsdp.unwrap_or(0).to_le_bytes());
    let map = placement.memory_map();
    let count = map.len().min(E820_MAX);
    page[E820_COUNT] = count as u8;
    for (index, range) in map[..count].iter().enumerate() {
        let at = E820_TABLE + index * E820_ENTRY_BYTES;
        page[at..at + 8].copy_from_slice(&range.start.to_le_bytes());
        page[at + 8..at + 16].copy_from_slice(&range.len.to_le_bytes());
        page[at + 16..at + 20].copy_from_slice(&(range.kind as u32).to_le_bytes());
    }
    page
}

/// A `setup_data` entry: next, type, length, data.
fn rng_seed(seed: &[u8; 32]) -> Vec<u8> {
    let mut entry = Vec::with_capacity(48);
    entry.extend(0u64.to_le_bytes());
    entry.extend(SETUP_RNG_SEED.to_le_bytes());
    entry.extend((seed.len() as u32).to_le_bytes());
    entry.extend(seed);
    entry
}

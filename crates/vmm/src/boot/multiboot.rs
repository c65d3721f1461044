//! The Multiboot specification, version 0.6.96: 32-bit protected mode, EAX holds a magic number, EBX points to the
//! information structure.

use super::elf::{Elf, is_elf, u32_at};
use super::error::{Error, KernelError};
use super::image::Image;
use super::initrd;
use super::linux::load_segments;
use super::placement::{MemoryKind, Placement};
use super::state::{InitialState, Mode};
use super::{BootConfig, cmdline, low};

/// The header lies in the first bytes of the file (§3.1).
pub const SEARCH_BYTES: usize = 8192;
const HEADER_MAGIC: u32 = 0x1bad_b002;
const LOADER_MAGIC: u64 = 0x2bad_b002;

/// Header flags (§3.1.2). The low 16 bits are requirements; a video mode is one that nobody can rely on.
const HEADER_PAGE_ALIGN: u32 = 1 << 0;
const HEADER_MEMORY_INFO: u32 = 1 << 1;
const HEADER_VIDEO: u32 = 1 << 2;
const HEADER_ADDRESSES: u32 = 1 << 16;
const KNOWN_REQUIREMENTS: u32 = HEADER_PAGE_ALIGN | HEADER_MEMORY_INFO | HEADER_VIDEO;

/// Information flags (§3.3): memory, command line, modules, memory map, loader name.
const INFO_FLAGS: u32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;
const INFO_BYTES: usize = 116;
const LOADER_NAME: &[u8] = b"queztl\0";
const MODULE_BYTES: u64 = 16;
const MODULES_MAX: usize = ((low::MULTIBOOT_NAMES - low::MULTIBOOT_MODULES) / MODULE_BYTES) as usize;

/// A header, found at `offset` of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    offset: u64,
    flags: u32,
    addresses: Addresses,
}

/// Load addresses for files whose own format says nothing (§3.1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Addresses {
    header: u32,
    load: u32,
    load_end: u32,
    bss_end: u32,
    entry: u32,
}

/// Looks for a header in the first bytes of a file.
pub fn find(start: &[u8]) -> Option<Header> {
    let start = &start[..start.len().min(SEARCH_BYTES)];
    let offset = (0..start.len().saturating_sub(11)).step_by(4).find(|&at| {
        let [magic, flags, checksum] = [0, 4, 8].map(|field| u32_at(start, at + field));
        magic == HEADER_MAGIC && magic.wrapping_add(flags).wrapping_add(checksum) == 0
    })?;
    let word = |field: usize| start.get(offset + field..offset + field + 4).map_or(0, |bytes| u32_at(bytes, 0));
    let addresses =
        Addresses { header: word(12), load: word(16), load_end: word(20), bss_end: word(24), entry: word(28) };
    Some(Header { offset: offset as u64, flags: word(4), addresses })
}

/// Loads the kernel with its modules and gives the state at its entry.
pub fn load(
    image: &mut dyn Image,
    header: Header,
    config: &BootConfig,
    placement: &mut Placement,
) -> Result<InitialState, Error> {
    let kernel = |source: KernelError| initrd::kernel_error(config.kernel, source);
    let unknown = header.flags & 0xffff & !KNOWN_REQUIREMENTS;
    if unknown != 0 {
        return Err(kernel(KernelError::MultibootFlags { flags: unknown }));
    }
    let entry = load_kernel(image, header, placement).map_err(kernel)?;
    if config.initrd.len() > MODULES_MAX {
        return Err(kernel(KernelError::Modules { what: "there are more than 256" }));
    }
    let modules = initrd::load_modules(config.initrd, placement.highest_taken(), placement)?;
    cmdline::write(config.cmdline, low::CMDLINE_ROOM as usize - 1, placement)?;
    write_modules(&modules, config, placement)?;
    write_info(modules.len() as u32, placement)?;
    let mut state = InitialState::new(Mode::Protected, entry);
    state.rax = LOADER_MAGIC;
    state.rbx = low::MULTIBOOT_INFO;
    Ok(state)
}

fn load_kernel(image: &mut dyn Image, header: Header, placement: &mut Placement) -> Result<u64, KernelError> {
    if header.flags & HEADER_ADDRESSES != 0 {
        return load_by_addresses(image, header, placement);
    }
    let start: [u8; 4] = super::image::read_array(image, 0, "the ELF header")?;
    if !is_elf(&start) {
        return Err(KernelError::Malformed { what: "its Multiboot header gives no addresses and it is no ELF file" });
    }
    let elf = Elf::parse(image)?;
    let entry = elf.physical_entry().filter(|entry| *entry <= u64::from(u32::MAX));
    let entry = entry.ok_or(KernelError::Malformed { what: "its entry point lies in no segment below 4 GiB" })?;
    load_segments(image, &elf, placement)?;
    Ok(entry)
}

fn load_by_addresses(image: &mut dyn Image, header: Header, placement: &mut Placement) -> Result<u64, KernelError> {
    let a = header.addresses;
    let wrong = KernelError::Malformed { what: "the addresses in its Multiboot header contradict each other" };
    let file_len = image.len().unwrap_or(0);
    // The header's own address tells where in the file the text that goes to `load` begins.
    let before_header = u64::from(a.header).checked_sub(a.load.into());
    let Some(offset) = before_header.and_then(|before| header.offset.checked_sub(before)) else { return Err(wrong) };
    let len = match a.load_end {
        0 => file_len.saturating_sub(offset),
        end => match u64::from(end).checked_sub(a.load.into()) {
            Some(len) => len,
            None => return Err(wrong),
        },
    };
    let memory_len = u64::from(a.bss_end).saturating_sub(a.load.into()).max(len);
    if u64::from(a.entry).wrapping_sub(a.load.into()) >= memory_len {
        return Err(wrong);
    }
    placement.claim(a.load.into(), memory_len, "another part of it")?;
    image.copy_to_guest(offset, len, placement.memory, a.load.into())?;
    Ok(a.entry.into())
}

fn write_modules(modules: &[initrd::Loaded], config: &BootConfig, placement: &Placement) -> Result<(), Error> {
    let mut table = Vec::new();
    let mut names = Vec::new();
    for (module, path) in modules.iter().zip(config.initrd) {
        let name = low::MULTIBOOT_NAMES + names.len() as u64;
        names.extend(path.as_os_str().as_encoded_bytes());
        names.push(0);
        for value in [module.start, module.start + module.len, name, 0] {
            table.extend((value as u32).to_le_bytes());
        }
    }
    if names.len() as u64 > low::MULTIBOOT_NAMES_END - low::MULTIBOOT_NAMES {
        let source = KernelError::Modules { what: "their names are longer than 56 KiB" };
        return Err(initrd::kernel_error(config.kernel, source));
    }
    placement.write(low::MULTIBOOT_MODULES, &table)?;
    placement.write(low::MULTIBOOT_NAMES, &names)
}

fn write_info(modules: u32, placement: &Placement) -> Result<(), Error> {
    let mut map = Vec::new();
    for range in placement.memory_map() {
        map.extend(20u32.to_le_bytes());
        map.extend(range.start.to_le_bytes());
        map.extend(range.len.to_le_bytes());
        map.extend((range.kind as u32).to_le_bytes());
    }
    let usable = |start: u64| {
        let range = placement.memory_map().into_iter().find(|r| r.start == start && r.kind == MemoryKind::Usable);
        (range.map_or(0, |r| r.len) / 1024) as u32
    };
    let loader_name = low::MULTIBOOT_INFO + INFO_BYTES as u64;
    let mut info = [0; INFO_BYTES];
    let mut put = |at: usize, value: u32| info[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put(0, INFO_FLAGS);
    put(4, usable(0).min(640));
    put(8, usable(low::BIOS_END));
    put(16, low::CMDLINE as u32);
    put(20, modules);
    put(24, low::MULTIBOOT_MODULES as u32);
    put(44, map.len() as u32);
    put(48, low::MULTIBOOT_MEMORY_MAP as u32);
    put(64, loader_name as u32);
    placement.write(low::MULTIBOOT_INFO, &info)?;
    placement.write(loader_name, LOADER_NAME)?;
    placement.write(low::MULTIBOOT_MEMORY_MAP, &map)
}

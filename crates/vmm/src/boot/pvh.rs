//! The PVH boot protocol (Xen `docs/misc/pvh.pandoc`, `xen/include/public/arch-x86/hvm/start_info.h`): 32-bit protected
//! mode, EBX points to the start info.

use super::elf::Elf;
use super::error::{Error, KernelError};
use super::image::Image;
use super::initrd;
use super::linux::load_segments;
use super::placement::Placement;
use super::state::{InitialState, Mode};
use super::{BootConfig, cmdline, low};

/// Note with the physical address of the 32-bit entry point.
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
const START_INFO_MAGIC: u32 = 0x336e_c578;
const START_INFO_VERSION: u32 = 1;
/// Linux x86 `COMMAND_LINE_SIZE` less the final zero.
const CMDLINE_LIMIT: usize = 2047;
/// The memory map's room, in entries.
const MAP_MAX: usize = 128;

/// The entry point, if the kernel has one for PVH.
pub fn entry(elf: &Elf, image: &mut dyn Image) -> Option<u64> {
    elf.find_note(image, b"Xen", Some(XEN_ELFNOTE_PHYS32_ENTRY))
}

/// Loads a kernel with a PVH `entry` and gives the state there.
pub fn load(
    image: &mut dyn Image,
    elf: &Elf,
    entry: u64,
    config: &BootConfig,
    placement: &mut Placement,
) -> Result<InitialState, Error> {
    let kernel = |source: KernelError| initrd::kernel_error(config.kernel, source);
    if !elf.load.iter().any(|s| entry.wrapping_sub(s.physical) < s.memory_bytes) || entry > u64::from(u32::MAX) {
        return Err(kernel(KernelError::Malformed { what: "its PVH entry point lies in no segment" }));
    }
    load_segments(image, elf, placement).map_err(kernel)?;
    cmdline::write(config.cmdline, CMDLINE_LIMIT, placement)?;
    let initrd = initrd::load(config.initrd, 1 << 32, placement)?;
    write_start_info(initrd, config.rsdp, placement)?;
    let mut state = InitialState::new(Mode::Protected, entry);
    state.rbx = low::PVH_INFO;
    Ok(state)
}

fn write_start_info(initrd: Option<initrd::Loaded>, rsdp: Option<u64>, placement: &Placement) -> Result<(), Error> {
    let map = placement.memory_map();
    let count = map.len().min(MAP_MAX);
    let mut info = Vec::with_capacity(56);
    info.extend(START_INFO_MAGIC.to_le_bytes());
    info.extend(START_INFO_VERSION.to_le_bytes());
    info.extend(0u32.to_le_bytes()); // flags
    info.extend(u32::from(initrd.is_some()).to_le_bytes());
    info.extend(low::PVH_MODULES.to_le_bytes());
    info.extend(low::CMDLINE.to_le_bytes());
    info.extend(rsdp.unwrap_or(0).to_le_bytes());
    info.extend(low::PVH_MEMORY_MAP.to_le_bytes());
    info.extend((count as u32).to_le_bytes());
    info.extend(0u32.to_le_bytes());
    placement.write(low::PVH_INFO, &info)?;
    if let Some(initrd) = initrd {
        let entry: Vec<u8> = [initrd.start, initrd.len, 0, 0].iter().flat_map(|v| v.to_le_bytes()).collect();
        placement.write(low::PVH_MODULES, &entry)?;
    }
    let mut table = Vec::new();
    for range in &map[..count] {
        table.extend(range.start.to_le_bytes());
        table.extend(range.len.to_le_bytes());
        table.extend((range.kind as u32).to_le_bytes());
        table.extend(0u32.to_le_bytes());
    }
    placement.write(low::PVH_MEMORY_MAP, &table)
}

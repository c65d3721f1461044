//! What the loaders put below 1 MiB, and where.
//!
//! ```text
//! 0000_0500  global descriptor table
//! 0000_6000  PVH: start info, module list, memory map
//! 0000_7000  Linux: zero page (`boot_params`)
//! 0000_8000  boot stack
//! 0000_9000  page tables, identity, 4 GiB by 2 MiB pages
//! 0000_f000  Linux: setup data (random seed)
//! 0001_0000  Multiboot: information, memory map, module list and names
//! 0002_0000  command line, at most 64 KiB with its final zero
//! 0003_0000  free
//! 0009_fc00  BIOS area: nothing of ours but the ACPI tables
//! 0010_0000  kernel
//! ```
//! A kernel's segments may use what is free here; nothing of the loaders lies anywhere else except RAM disks and modules.

/// PVH `hvm_start_info`.
pub const PVH_INFO: u64 = 0x6000;
/// PVH module list (one entry).
pub const PVH_MODULES: u64 = 0x6100;
/// PVH memory map.
pub const PVH_MEMORY_MAP: u64 = 0x6200;
/// Linux `boot_params`.
pub const ZERO_PAGE: u64 = 0x7000;
/// First address above the boot stack, less the 16 bytes that keep it aligned for a call.
pub const STACK_TOP: u64 = 0x8ff0;
/// Top-level page table; the others follow.
pub const PAGE_TABLES: u64 = 0x9000;
/// Linux `setup_data` list.
pub const SETUP_DATA: u64 = 0xf000;
/// Multiboot information, then the memory map.
pub const MULTIBOOT_INFO: u64 = 0x1_0000;
/// Multiboot memory map.
pub const MULTIBOOT_MEMORY_MAP: u64 = 0x1_0100;
/// Multiboot module list.
pub const MULTIBOOT_MODULES: u64 = 0x1_1000;
/// Names of the Multiboot modules.
pub const MULTIBOOT_NAMES: u64 = 0x1_2000;
/// End of the names.
pub const MULTIBOOT_NAMES_END: u64 = 0x2_0000;
/// Command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Room for the command line with its final zero, in bytes.
pub const CMDLINE_ROOM: u64 = 0x1_0000;
/// End of the loaders' structures.
pub const END: u64 = 0x3_0000;
/// Start of the extended BIOS data area: the RAM below 1 MiB that an operating system may use ends here.
pub const BIOS_START: u64 = 0x9_fc00;
/// End of the BIOS area.
pub const BIOS_END: u64 = 0x10_0000;

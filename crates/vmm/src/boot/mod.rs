//! Boot loaders: from a kernel file on the host to the state of the first vCPU at the kernel's entry point.
//!
//! Promises:
//! - no firmware runs in the guest: the kernel is entered directly, with the structures its boot protocol wants;
//! - compressed kernels are decompressed here, at the host's speed;
//! - every byte of a kernel or RAM disk is hostile: whatever the file holds, the result is a state or an [`Error`], and
//!   nothing is written outside the guest's RAM.
//!
//! | file | entered by |
//! |---|---|
//! | bzImage, compression known | the ELF kernel inside, Linux 64-bit (or 32-bit) boot protocol |
//! | bzImage, compression unknown | its own 64-bit (or 32-bit) entry; it decompresses itself |
//! | ELF with a Linux note | Linux 64-bit (or 32-bit) boot protocol |
//! | any file with a Multiboot 1 header | Multiboot 1 |
//! | other ELF with a PVH note | PVH |
//! | other ELF | Linux 64-bit (or 32-bit) boot protocol |
//!
//! Linux knows both its own protocol and PVH; its own is preferred because it starts in 64-bit mode, which spares the
//! guest the way there. What lies where below 1 MiB: [`low`].

mod bzimage;
mod cmdline;
mod decompress;
mod elf;
mod error;
mod image;
mod initrd;
mod linux;
mod low;
mod multiboot;
mod paging;
mod placement;
mod pvh;
mod state;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use queztl_guest_memory::GuestMemory;
use serde::{Deserialize, Serialize};

pub use error::{Error, KernelError};
pub use state::{CODE_SELECTOR, DATA_SELECTOR, InitialState, Mode, Segment, TASK_SELECTOR, Table};

use bzimage::SetupHeader;
use elf::Elf;
use image::{FileImage, Image};
use placement::Placement;

/// What to boot.
#[derive(Debug, Clone, Copy)]
pub struct BootConfig<'a> {
    /// The kernel's file.
    pub kernel: &'a Path,
    /// Initial RAM disks (Linux and PVH: concatenated) or modules (Multiboot).
    pub initrd: &'a [PathBuf],
    /// The kernel's command line.
    pub cmdline: &'a str,
    /// Guest-physical address of the ACPI root pointer, if there are tables.
    pub rsdp: Option<u64>,
    /// How the kernel is entered.
    pub protocol: Protocol,
    /// A seed for the kernel's random number generator (Linux's own protocol only). Without it a guest that has no
    /// other source of entropy waits for one.
    pub rng_seed: Option<[u8; 32]>,
}

/// How the kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// As the file suggests, see [the table](self).
    #[default]
    Auto,
    /// Linux's own protocol.
    Linux,
    /// PVH; the file must be an ELF file with a PVH note.
    Pvh,
    /// Multiboot 1; the file must have a header.
    Multiboot,
}

/// Loads the kernel and what belongs to it into `memory`, which must be fresh, that is, all zero.
pub fn load(config: &BootConfig, memory: &GuestMemory) -> Result<InitialState, Error> {
    let mut image = initrd::Source::open(config.kernel, "kernel")?.into_image()?;
    let mut placement = Placement::new(memory);
    let state = load_image(&mut image, config, &mut placement)?;
    let gdt: Vec<u8> = state.gdt_entries().iter().flat_map(|entry| entry.to_le_bytes()).collect();
    placement.write(state.gdt.base, &gdt)?;
    Ok(state)
}

fn load_image(image: &mut FileImage, config: &BootConfig, placement: &mut Placement) -> Result<InitialState, Error> {
    let kernel = |source: KernelError| initrd::kernel_error(config.kernel, source);
    let mut start = vec![0; image.len().unwrap_or(0).min(multiboot::SEARCH_BYTES as u64) as usize];
    image::read_exact(image, 0, &mut start, "its first bytes").map_err(kernel)?;
    match choose(&start, image, config)? {
        Choice::Multiboot(header) => multiboot::load(image, header, config, placement),
        Choice::Pvh(elf, entry) => pvh::load(image, &elf, entry, config, placement),
        Choice::BzImage => {
            let loaded = linux::load_bzimage(image, placement).map_err(kernel)?;
            linux::finish(loaded, config, placement)
        }
        Choice::Linux(elf) => {
            let loaded = linux::load_elf(image, &elf, SetupHeader::for_elf(), placement).map_err(kernel)?;
            linux::finish(loaded, config, placement)
        }
    }
}

enum Choice {
    BzImage,
    Linux(Elf),
    Pvh(Elf, u64),
    Multiboot(multiboot::Header),
}

fn choose(start: &[u8], image: &mut FileImage, config: &BootConfig) -> Result<Choice, Error> {
    let kernel = |source: KernelError| initrd::kernel_error(config.kernel, source);
    let no_entry = |protocol| Err(kernel(KernelError::NoEntry { protocol }));
    let linux_or_auto = matches!(config.protocol, Protocol::Auto | Protocol::Linux);
    if bzimage::is_bzimage(start) && linux_or_auto {
        return Ok(Choice::BzImage);
    }
    let header = multiboot::find(start);
    if !elf::is_elf(start) {
        return match (header, config.protocol) {
            (Some(header), Protocol::Auto | Protocol::Multiboot) => Ok(Choice::Multiboot(header)),
            (_, Protocol::Auto) => Err(Error::UnknownFormat { path: config.kernel.into() }),
            (_, Protocol::Linux) => no_entry("Linux"),
            (_, Protocol::Pvh) => no_entry("PVH"),
            (None, Protocol::Multiboot) => no_entry("Multiboot"),
        };
    }
    if config.protocol == Protocol::Multiboot {
        return header.map_or_else(|| no_entry("Multiboot"), |header| Ok(Choice::Multiboot(header)));
    }
    let elf = Elf::parse(image).map_err(kernel)?;
    let pvh_entry = pvh::entry(&elf, image);
    match (config.protocol, pvh_entry) {
        (Protocol::Linux, _) => Ok(Choice::Linux(elf)),
        (Protocol::Pvh, Some(entry)) => Ok(Choice::Pvh(elf, entry)),
        (Protocol::Pvh, None) => no_entry("PVH"),
        _ if elf.find_note(image, b"Linux", None).is_some() => Ok(Choice::Linux(elf)),
        _ => Ok(match (header, pvh_entry) {
            (Some(header), _) => Choice::Multiboot(header),
            (None, Some(entry)) => Choice::Pvh(elf, entry),
            (None, None) => Choice::Linux(elf),
        }),
    }
}

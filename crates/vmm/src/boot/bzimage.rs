//! The Linux setup header (Linux `Documentation/arch/x86/boot.rst`, “The Real-Mode Kernel Header”): read from a bzImage,
//! made up for an ELF kernel.

use super::decompress::Format;
use super::elf::{u16_at, u32_at, u64_at};
use super::error::KernelError;
use super::image::{FileImage, Image, StreamImage, read_array, read_exact};

/// Offset of the setup header in a bzImage and in the zero page.
pub const HEADER_START: usize = 0x1f1;
/// The header never reaches beyond this (the zero page's next field).
const HEADER_END: usize = 0x290;
/// Oldest protocol with the fields needed here: `payload_offset` 2.08, `pref_address` and `init_size` 2.10.
const MIN_VERSION: u16 = 0x020a;
const SECTOR_BYTES: u64 = 512;
const MAGIC: &[u8; 4] = b"HdrS";
/// `xloadflags`: there is a 64-bit entry point at 0x200.
const XLF_KERNEL_64: u16 = 1 << 0;

/// A setup header, at its place in the first bytes of the zero page.
#[derive(Clone)]
pub struct SetupHeader {
    bytes: [u8; HEADER_END],
}

/// Whether the file starts as a bzImage does.
pub fn is_bzimage(start: &[u8]) -> bool {
    start.get(0x202..0x206) == Some(MAGIC) && start.get(0x1fe..0x200) == Some(&[0x55, 0xaa])
}

impl SetupHeader {
    /// The header of a kernel that came without one.
    pub fn for_elf() -> SetupHeader {
        let mut bytes = [0; HEADER_END];
        bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        bytes[0x202..0x206].copy_from_slice(MAGIC);
        bytes[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
        bytes[0x211] = 1; // LOADED_HIGH
        bytes[0x22c..0x230].copy_from_slice(&u32::MAX.to_le_bytes());
        bytes[0x230..0x234].copy_from_slice(&0x20_0000u32.to_le_bytes());
        bytes[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
        SetupHeader { bytes }
    }

    /// Reads the header of a bzImage.
    pub fn read(image: &mut dyn Image) -> Result<SetupHeader, KernelError> {
        let start: [u8; 0x208] = read_array(image, 0, "the end of its setup header")?;
        if !is_bzimage(&start) {
            return Err(KernelError::Malformed { what: "it is no bzImage" });
        }
        let version = u16_at(&start, 0x206);
        if version < MIN_VERSION {
            let [minor, major] = version.to_le_bytes();
            return Err(KernelError::OldProtocol { major, minor });
        }
        let end = (0x202 + usize::from(start[0x201])).clamp(0x264, HEADER_END);
        let mut bytes = [0; HEADER_END];
        read_exact(image, HEADER_START as u64, &mut bytes[HEADER_START..end], "the end of its setup header")?;
        Ok(SetupHeader { bytes })
    }

    /// The header's bytes, to be copied to [`HEADER_START`] of the zero page.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[HEADER_START..]
    }

    /// Most bytes of the command line, without its final zero.
    pub fn cmdline_limit(&self) -> usize {
        u32_at(&self.bytes, 0x238) as usize
    }

    /// First address that an initial RAM disk must not reach.
    pub fn initrd_limit(&self) -> u64 {
        u64::from(u32_at(&self.bytes, 0x22c)) + 1
    }

    /// Where the kernel likes to be loaded.
    pub fn preferred_address(&self) -> u64 {
        u64_at(&self.bytes, 0x258)
    }

    /// Bytes the kernel needs from its load address until it has read its memory map.
    pub fn init_bytes(&self) -> u64 {
        u32_at(&self.bytes, 0x260).into()
    }

    /// Whether the kernel is entered in 64-bit mode.
    pub fn is_64_bit(&self) -> bool {
        u16_at(&self.bytes, 0x236) & XLF_KERNEL_64 != 0
    }

    /// File offset of the part that runs in protected or long mode.
    pub fn protected_mode_offset(&self) -> u64 {
        let sectors = match self.bytes[HEADER_START] {
            0 => 4,
            sectors => u64::from(sectors),
        };
        (sectors + 1) * SECTOR_BYTES
    }

    /// The kernel proper, decompressed, if it is compressed in a known way.
    pub fn payload(&self, image: &mut FileImage) -> Result<Option<StreamImage>, KernelError> {
        let offset = self.protected_mode_offset() + u64::from(u32_at(&self.bytes, 0x248));
        let len = u64::from(u32_at(&self.bytes, 0x24c));
        if len < 16 {
            return Ok(None);
        }
        if image.len().is_some_and(|file_len| offset + len > file_len) {
            return Err(KernelError::Truncated { what: "the end of its compressed payload" });
        }
        let magic: [u8; 6] = read_array(image, offset, "its compressed payload")?;
        let Some(format) = Format::detect(&magic) else { return Ok(None) };
        let failed = |source| KernelError::Decompress { format: format.name(), source };
        let compressed = image.reader(offset, len).map_err(failed)?;
        StreamImage::new(format.reader(compressed).map_err(failed)?, format.name()).map(Some)
    }
}

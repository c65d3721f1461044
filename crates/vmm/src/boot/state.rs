//! The state of the first vCPU at the kernel's entry point, for any accelerator to take over.

/// First byte of the global descriptor table in guest memory.
pub(super) const GDT_ADDRESS: u64 = 0x500;

/// Selector of the boot code segment (`__BOOT_CS`, Linux `Documentation/arch/x86/boot.rst`).
pub const CODE_SELECTOR: u16 = 0x10;
/// Selector of the boot data segment (`__BOOT_DS`).
pub const DATA_SELECTOR: u16 = 0x18;
/// Selector of the task state segment.
pub const TASK_SELECTOR: u16 = 0x20;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Registers at the kernel's entry. What is not named here has its value after reset; interrupts are off and the
/// interrupt descriptor table is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitialState {
    pub rip: u64,
    pub rsp: u64,
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub mode: Mode,
    /// The global descriptor table, already in guest memory.
    pub gdt: Table,
    pub cs: Segment,
    /// DS, ES, FS, GS and SS alike.
    pub data: Segment,
    /// The task register.
    pub tr: Segment,
}

/// The processor mode at entry; privilege level 0 in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// 64-bit mode with paging on; the tables map the first 4 GiB to themselves.
    Long {
        /// Guest-physical address of the top-level page table.
        cr3: u64,
    },
    /// 32-bit protected mode with paging off.
    Protected,
}

/// A descriptor table register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    /// Guest-physical (and linear) address of the first byte.
    pub base: u64,
    /// Offset of the last byte.
    pub limit: u16,
}

/// A segment register with its hidden part (SDM vol. 3A §3.4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub selector: u16,
    pub base: u64,
    /// Offset of the last byte (granularity already applied).
    pub limit: u32,
    /// Type, S, DPL and P: bits 40..=47 of the descriptor.
    pub access: u8,
    /// AVL, L, D/B and G in bits 0..=3: bits 52..=55 of the descriptor.
    pub flags: u8,
}

impl Segment {
    const LONG: u8 = 1 << 1;
    const SIZE_32: u8 = 1 << 2;
    const GRANULAR: u8 = 1 << 3;

    fn code(mode: Mode) -> Segment {
        let size = if matches!(mode, Mode::Long { .. }) { Self::LONG } else { Self::SIZE_32 };
        Segment { selector: CODE_SELECTOR, base: 0, limit: u32::MAX, access: 0x9b, flags: Self::GRANULAR | size }
    }

    fn data() -> Segment {
        let flags = Self::GRANULAR | Self::SIZE_32;
        Segment { selector: DATA_SELECTOR, base: 0, limit: u32::MAX, access: 0x93, flags }
    }

    fn task() -> Segment {
        Segment { selector: TASK_SELECTOR, base: 0, limit: 0x67, access: 0x8b, flags: 0 }
    }

    /// The four bits of the type field.
    pub fn kind(&self) -> u8 {
        self.access & 0xf
    }

    /// S: a code or data segment rather than a system one.
    pub fn is_code_or_data(&self) -> bool {
        self.access & 0x10 != 0
    }

    /// L: 64-bit code.
    pub fn is_long(&self) -> bool {
        self.flags & Self::LONG != 0
    }

    /// D/B: 32-bit operands and addresses by default.
    pub fn is_32_bit(&self) -> bool {
        self.flags & Self::SIZE_32 != 0
    }

    /// G: the descriptor counts its limit in 4 KiB units.
    pub fn is_granular(&self) -> bool {
        self.flags & Self::GRANULAR != 0
    }

    /// The segment as an 8-byte descriptor.
    pub fn descriptor(&self) -> u64 {
        let limit = u64::from(if self.is_granular() { self.limit >> 12 } else { self.limit });
        (limit & 0xffff)
            | (self.base & 0xff_ffff) << 16
            | u64::from(self.access) << 40
            | (limit >> 16 & 0xf) << 48
            | u64::from(self.flags) << 52
            | (self.base >> 24 & 0xff) << 56
    }
}

impl InitialState {
    /// Entry at `rip` in `mode`, every general register zero but the stack pointer.
    pub(super) fn new(mode: Mode, rip: u64) -> InitialState {
        InitialState {
            rip,
            rsp: super::low::STACK_TOP,
            rax: 0,
            rbx: 0,
            rcx: 0,
            rdx: 0,
            rsi: 0,
            rdi: 0,
            rbp: 0,
            mode,
            gdt: Table { base: GDT_ADDRESS, limit: GDT_ENTRIES * 8 - 1 },
            cs: Segment::code(mode),
            data: Segment::data(),
            tr: Segment::task(),
        }
    }

    /// RFLAGS: everything clear but the bit that is always set.
    pub fn rflags(&self) -> u64 {
        2
    }

    pub fn cr0(&self) -> u64 {
        match self.mode {
            Mode::Long { .. } => CR0_PE | CR0_ET | CR0_PG,
            Mode::Protected => CR0_PE | CR0_ET,
        }
    }

    pub fn cr3(&self) -> u64 {
        match self.mode {
            Mode::Long { cr3 } => cr3,
            Mode::Protected => 0,
        }
    }

    pub fn cr4(&self) -> u64 {
        match self.mode {
            Mode::Long { .. } => CR4_PAE,
            Mode::Protected => 0,
        }
    }

    pub fn efer(&self) -> u64 {
        match self.mode {
            Mode::Long { .. } => EFER_LME | EFER_LMA,
            Mode::Protected => 0,
        }
    }

    /// The table that belongs at [`InitialState::gdt`]. The task descriptor takes two entries in long mode.
    pub(super) fn gdt_entries(&self) -> [u64; GDT_ENTRIES as usize] {
        [0, 0, self.cs.descriptor(), self.data.descriptor(), self.tr.descriptor(), 0]
    }
}

const GDT_ENTRIES: u16 = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_the_architectural_encoding() {
        let long = InitialState::new(Mode::Long { cr3: 0x9000 }, 0);
        let protected = InitialState::new(Mode::Protected, 0);
        assert_eq!(long.cs.descriptor(), 0x00af_9b00_0000_ffff);
        assert_eq!(protected.cs.descriptor(), 0x00cf_9b00_0000_ffff);
        assert_eq!(protected.data.descriptor(), 0x00cf_9300_0000_ffff);
        assert_eq!(protected.tr.descriptor(), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn long_mode_is_active_with_paging_and_pae() {
        let state = InitialState::new(Mode::Long { cr3: 0x9000 }, 0);
        assert_eq!((state.cr0(), state.cr3(), state.cr4(), state.efer()), (0x8000_0011, 0x9000, 0x20, 0x500));
    }
}

//! The architectural state of one CPU: what a snapshot holds and what a boot loader sets.

mod check;

use serde::{Deserialize, Serialize};

pub use check::BadState;

/// A segment register with its hidden part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[repr(C)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    pub base: u64,
    /// Limit in bytes, granularity applied.
    pub limit: u32,
    pub selector: u16,
    /// Type in bits 0–3, S 4, DPL 5–6, P 7, AVL 12, L 13, D/B 14, G 15: bits 8–23 of a descriptor's second word.
    /// Zero for a null selector.
    pub attributes: u16,
}

/// Bits of [`Segment::attributes`].
pub mod attribute {
    pub const ACCESSED: u16 = 1 << 0;
    /// Writable data, readable code.
    pub const WRITABLE: u16 = 1 << 1;
    /// Expand-down data, conforming code.
    pub const CONFORMING: u16 = 1 << 2;
    pub const CODE: u16 = 1 << 3;
    /// Code or data rather than a system segment.
    pub const NON_SYSTEM: u16 = 1 << 4;
    pub const DPL_SHIFT: u16 = 5;
    pub const PRESENT: u16 = 1 << 7;
    pub const LONG: u16 = 1 << 13;
    pub const BIG: u16 = 1 << 14;
    pub const GRANULARITY: u16 = 1 << 15;
}

impl Segment {
    /// Descriptor privilege level, 0..=3.
    pub fn dpl(&self) -> u8 {
        (self.attributes >> attribute::DPL_SHIFT) as u8 & 3
    }

    pub fn has(&self, attribute: u16) -> bool {
        self.attributes & attribute != 0
    }

    /// A real-mode segment.
    pub fn real(selector: u16) -> Segment {
        Segment { base: u64::from(selector) << 4, limit: 0xffff, selector, attributes: 0x93 }
    }
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[repr(C)]
#[serde(deny_unknown_fields)]
pub struct Table {
    pub base: u64,
    pub limit: u16,
}

/// Segment register numbers, as instructions encode them.
pub mod seg {
    pub const ES: usize = 0;
    pub const CS: usize = 1;
    pub const SS: usize = 2;
    pub const DS: usize = 3;
    pub const FS: usize = 4;
    pub const GS: usize = 5;
}

/// General register numbers, as instructions encode them.
pub mod gpr {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
    pub const R11: usize = 11;
}

/// Control-register and EFER bits.
pub mod bits {
    pub const CR0_PE: u64 = 1 << 0;
    pub const CR0_MP: u64 = 1 << 1;
    pub const CR0_EM: u64 = 1 << 2;
    pub const CR0_TS: u64 = 1 << 3;
    pub const CR0_ET: u64 = 1 << 4;
    pub const CR0_NE: u64 = 1 << 5;
    pub const CR0_WP: u64 = 1 << 16;
    pub const CR0_AM: u64 = 1 << 18;
    pub const CR0_NW: u64 = 1 << 29;
    pub const CR0_CD: u64 = 1 << 30;
    pub const CR0_PG: u64 = 1 << 31;

    pub const CR4_VME: u64 = 1 << 0;
    pub const CR4_PVI: u64 = 1 << 1;
    pub const CR4_TSD: u64 = 1 << 2;
    pub const CR4_DE: u64 = 1 << 3;
    pub const CR4_PSE: u64 = 1 << 4;
    pub const CR4_PAE: u64 = 1 << 5;
    pub const CR4_MCE: u64 = 1 << 6;
    pub const CR4_PGE: u64 = 1 << 7;
    pub const CR4_PCE: u64 = 1 << 8;
    pub const CR4_OSFXSR: u64 = 1 << 9;
    pub const CR4_OSXMMEXCPT: u64 = 1 << 10;
    pub const CR4_UMIP: u64 = 1 << 11;
    pub const CR4_FSGSBASE: u64 = 1 << 16;
    pub const CR4_OSXSAVE: u64 = 1 << 18;
    pub const CR4_SMEP: u64 = 1 << 20;
    pub const CR4_SMAP: u64 = 1 << 21;

    pub const EFER_SCE: u64 = 1 << 0;
    pub const EFER_LME: u64 = 1 << 8;
    pub const EFER_LMA: u64 = 1 << 10;
    pub const EFER_NXE: u64 = 1 << 11;
}

/// RFLAGS bits.
pub mod rflags {
    pub const CF: u64 = 1 << 0;
    pub const RESERVED_ONE: u64 = 1 << 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
    /// The six flags that arithmetic sets.
    pub const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;
}

/// The registers of the memory and system-call machinery that live in MSRs and belong to the CPU itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[repr(C)]
#[serde(deny_unknown_fields)]
pub struct Msrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub tsc_aux: u64,
    pub tsc_adjust: u64,
    pub pat: u64,
    pub misc_enable: u64,
    pub debug_control: u64,
    pub mtrr_default: u64,
    pub mtrr_fixed: [u64; 11],
    /// Base and mask pairs.
    pub mtrr_variable: [u64; 16],
    /// IA32_SPEC_CTRL, where the accelerator offers it: what the guest asks of the host's speculation.
    pub speculation_control: u64,
}

/// One vector register: room for 512 bits, of which as many count as the guest was promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(C, align(64))]
pub struct Vector(#[serde(with = "hex::serde")] pub [u8; 64]);

impl Default for Vector {
    fn default() -> Self {
        Vector([0; 64])
    }
}

/// x87, MMX and vector state.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[repr(C, align(64))]
#[serde(deny_unknown_fields)]
pub struct Fpu {
    /// The 512 bytes of FXSAVE64; only the x87 part (control, status, tag, opcode, pointers, ST0–ST7) counts here.
    #[serde(with = "hex::serde")]
    pub legacy: [u8; 512],
    pub vectors: [Vector; 32],
    pub mxcsr: u32,
}

impl std::fmt::Debug for Fpu {
    /// Without the registers, which would bury everything around them.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fpu").field("mxcsr", &self.mxcsr).finish_non_exhaustive()
    }
}

impl Default for Fpu {
    /// As after FNINIT and with MXCSR at its reset value.
    fn default() -> Self {
        let mut legacy = [0; 512];
        legacy[..2].copy_from_slice(&0x037f_u16.to_le_bytes());
        Fpu { legacy, vectors: [Vector::default(); 32], mxcsr: 0x1f80 }
    }
}

/// Whether a CPU runs, sleeps in HLT or waits to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Activity {
    #[default]
    Running,
    /// HLT until an interrupt.
    Halted,
    /// After reset of an application processor, or INIT.
    WaitForStartup,
}

/// Everything a CPU is, in plain data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8–R15.
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [Segment; 6],
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: Table,
    pub idtr: Table,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub xcr0: u64,
    /// DR0–DR3, and DR6, DR7 at their own numbers.
    pub dr: [u64; 8],
    pub msrs: Msrs,
    pub fpu: Fpu,
    pub activity: Activity,
    /// No interrupt before the next instruction (after STI or a load of SS).
    pub interrupt_shadow: bool,
    /// Between an NMI's delivery and the next IRET.
    pub nmi_masked: bool,
    /// Retired instructions; the base of instruction-counted time.
    pub instructions: u64,
}

impl Default for State {
    /// As after power-on (SDM vol. 3A table 9-1).
    fn default() -> Self {
        let mut segments = [Segment::real(0); 6];
        segments[seg::CS] = Segment { base: 0xffff_0000, selector: 0xf000, ..Segment::real(0) };
        let mut state = State {
            gpr: [0; 16],
            rip: 0xfff0,
            rflags: rflags::RESERVED_ONE,
            segments,
            ldtr: Segment { limit: 0xffff, attributes: 0x82, ..Segment::default() },
            tr: Segment { limit: 0xffff, attributes: 0x8b, ..Segment::default() },
            gdtr: Table { base: 0, limit: 0xffff },
            idtr: Table { base: 0, limit: 0xffff },
            cr0: bits::CR0_CD | bits::CR0_NW | bits::CR0_ET,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 1,
            dr: [0; 8],
            msrs: Msrs { pat: 0x0007_0406_0007_0406, misc_enable: 1, ..Msrs::default() },
            fpu: Fpu::default(),
            activity: Activity::Running,
            interrupt_shadow: false,
            nmi_masked: false,
            instructions: 0,
        };
        state.dr[6] = 0xffff_0ff0;
        state.dr[7] = 0x400;
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_survives_the_way_through_text_and_other_fields_are_refused() {
        let mut state = State { rip: u64::MAX, instructions: 7, ..State::default() };
        state.fpu.vectors[31].0[63] = 0xa5;
        state.fpu.legacy[160] = 0x5a;
        state.msrs.mtrr_variable[15] = 1 << 63;
        let mut text = serde_json::to_value(&state).unwrap();
        assert_eq!(serde_json::from_value::<State>(text.clone()).unwrap(), state);
        text["gpr"].as_array_mut().unwrap().pop();
        assert!(serde_json::from_value::<State>(text).is_err());
    }
}

//! Where the guest's arithmetic flags are, and how to get them back.
//!
//! A TLB lookup destroys the host's flags, and any instruction that can fault must show the guest's. Saving them each
//! time would cost more than most instructions. Often they need not be saved: they can be computed again from what the
//! instruction that set them left behind, a [`Recipe`], and the recipe is only followed where the fault really happens.

use iced_x86::{Instruction, Mnemonic, OpKind, RflagsBits};

use super::asm::{Asm, host};
use crate::decode::flags::{ARITHMETIC, is_variable_shift};

/// Most bytes of a recipe.
const MOST: usize = 24;

/// Code that sets the host's flags as an earlier instruction did, from registers. May destroy RAX.
#[derive(Clone, Copy)]
pub(super) struct Recipe {
    bytes: [u8; MOST],
    len: u8,
    /// Host registers that it reads, a bit each.
    pub reads: u16,
    /// A single instruction: better than loading the flags.
    pub short: bool,
}

impl Recipe {
    fn new(code: &[u8], reads: u16, short: bool) -> Option<Recipe> {
        let mut bytes = [0; MOST];
        bytes.get_mut(..code.len())?.copy_from_slice(code);
        Some(Recipe { bytes, len: code.len() as u8, reads, short })
    }

    pub fn emit(&self, asm: &mut Asm) {
        asm.raw(&self.bytes[..usize::from(self.len)]);
    }

    /// The recipe of an instruction on registers that are all where they live: `insn` as encoded for the host, `code`
    /// its bytes.
    pub fn of(insn: &Instruction, code: &[u8]) -> Option<Recipe> {
        let register = |operand: u32| {
            let register = insn.op_register(operand);
            (register.is_gpr() && !super::registers::is_high_byte(register)).then(|| register.full_register().number())
        };
        if insn.op_count() != 2 || insn.op0_kind() != OpKind::Register {
            return None;
        }
        let size = insn.op0_register().size();
        let first = register(0)?;
        let (second, imm) = match insn.op1_kind() {
            OpKind::Register => (Some(register(1)?), 0),
            OpKind::Memory => return None,
            _ => (None, insn.immediate(1) as i32),
        };
        let reads = 1 << first | second.map_or(0, |second| 1 << second);
        let wide = size == 8;
        match insn.mnemonic() {
            Mnemonic::Cmp | Mnemonic::Test => Recipe::new(code, reads, true),
            Mnemonic::And | Mnemonic::Or | Mnemonic::Xor if size >= 4 => {
                let mut asm = Asm::default();
                asm.op_reg(wide, &[0x85], first as u8, first as u8);
                Recipe::new(&asm.bytes, 1 << first, true)
            }
            Mnemonic::Add | Mnemonic::Sub if size >= 4 && second != Some(first) => {
                // The operation undone and done again, on a copy.
                let subtracts = insn.mnemonic() == Mnemonic::Sub;
                let mut asm = Asm::default();
                asm.mov(host::RAX, first as u8);
                for subtract in [!subtracts, subtracts] {
                    match second {
                        Some(second) => {
                            let opcode = if subtract { 0x2b } else { 0x03 };
                            asm.op_reg(wide, &[opcode], host::RAX, second as u8);
                        }
                        None => asm.group_imm(wide, if subtract { 5 } else { 0 }, host::RAX, imm),
                    }
                }
                Recipe::new(&asm.bytes, reads, false)
            }
            _ => None,
        }
    }
}

/// Where the arithmetic flags are. Nowhere, if nobody will read them.
#[derive(Clone, Copy)]
pub(super) struct Flags {
    /// In the host's.
    pub in_host: bool,
    /// Their image is in the CPU's state.
    pub in_state: bool,
    pub recipe: Option<Recipe>,
}

impl Flags {
    pub const IN_STATE: Flags = Flags { in_host: false, in_state: true, recipe: None };
}

/// How an instruction treats the flags.
#[derive(Clone, Copy)]
pub(super) struct FlagUse {
    /// Flags that must be in the host's when it runs: those it reads, and those that pass through it to a reader.
    pub needs: u32,
    pub sets: bool,
    /// Some old flag is read after it.
    pub passes: bool,
}

impl FlagUse {
    /// `live` are the flags that are read after `insn`.
    pub fn of(insn: &Instruction, live: u32) -> FlagUse {
        let modified = insn.rflags_modified() & ARITHMETIC;
        let certain = if is_variable_shift(insn) { 0 } else { modified & !insn.rflags_undefined() };
        let passing = live & ARITHMETIC & !certain;
        let reads = insn.rflags_read() & ARITHMETIC;
        let needs = reads | if modified != 0 { passing } else { 0 };
        FlagUse { needs, sets: modified != 0, passes: passing != 0 }
    }

    /// Of the old flags, only the carry counts.
    pub fn needs_carry_only(&self) -> bool {
        self.needs == RflagsBits::CF
    }
}

//! Which instructions' flags somebody reads.

use iced_x86::{Instruction, Mnemonic, OpKind, RflagsBits};

use super::lower::has_memory;
use super::operands::{Kind, kind};
use crate::ops::moves;

/// The flags an instruction reads or changes, as far as arithmetic goes.
pub(crate) const ARITHMETIC: u32 =
    RflagsBits::CF | RflagsBits::PF | RflagsBits::AF | RflagsBits::ZF | RflagsBits::SF | RflagsBits::OF;

/// For each instruction, whether the flags it sets may be read before they are all set again. An instruction that
/// can fault counts as reading them: the handler sees RFLAGS.
/// Beside it, the flags that may be read before the first instruction sets them.
pub(super) fn live_flags(instructions: &[Instruction]) -> (Vec<bool>, u32) {
    let (live, before) = flags_live(instructions);
    (instructions.iter().zip(live).map(|(insn, live)| insn.rflags_modified() & live != 0).collect(), before)
}

/// The flags that may be read after each instruction before they are set again, and those that may be read before the
/// first, in the notation of [`RflagsBits`].
pub(crate) fn flags_live(instructions: &[Instruction]) -> (Vec<u32>, u32) {
    let mut live = ARITHMETIC;
    let mut result = vec![live; instructions.len()];
    for (index, insn) in instructions.iter().enumerate().rev() {
        result[index] = live;
        // A conditional writer, such as a shift by CL, may leave them all; what is undefined may pass through.
        let certain = insn.rflags_modified() & !insn.rflags_undefined();
        let certain = if is_variable_shift(insn) { 0 } else { certain };
        live &= !certain;
        live |= insn.rflags_read() & ARITHMETIC;
        if may_fault(insn) {
            live = ARITHMETIC;
        }
    }
    (result, live)
}

/// Shifts and rotates by CL change no flag if the count is zero.
pub(crate) fn is_variable_shift(insn: &Instruction) -> bool {
    use Mnemonic::*;
    let by_cl = insn.op_count() >= 2 && insn.op_kind(insn.op_count() - 1) == OpKind::Register;
    let masked_to_zero = insn.op_count() >= 2 && kind(insn, insn.op_count() - 1) == Kind::Imm;
    matches!(insn.mnemonic(), Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd) && (by_cl || masked_to_zero)
        || insn.has_rep_prefix()
        || insn.has_repne_prefix()
}

/// Whether an instruction can raise an exception or is carried out by code that looks at the flags.
pub(crate) fn may_fault(insn: &Instruction) -> bool {
    use Mnemonic::*;
    has_memory(insn) && insn.mnemonic() != Lea
        || !matches!(
            insn.mnemonic(),
            Mov | Movzx
                | Movsx
                | Movsxd
                | Lea
                | Add
                | Or
                | Adc
                | Sbb
                | And
                | Sub
                | Xor
                | Cmp
                | Test
                | Inc
                | Dec
                | Neg
                | Not
                | Imul
                | Shl
                | Sal
                | Shr
                | Sar
                | Rol
                | Ror
                | Bswap
                | Cbw
                | Cwde
                | Cdqe
                | Cwd
                | Cdq
                | Cqo
                | Nop
                | Xchg
                | Endbr64
        ) && !moves::is_setcc(insn)
            && !moves::is_cmovcc(insn)
}

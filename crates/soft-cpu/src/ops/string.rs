//! MOVS, STOS, LODS, CMPS and SCAS, with and without REP.
//!
//! A repeated instruction works in runs that stay within one page on each side and does each run with the host's own
//! string instruction, so overlapping operands come out as the architecture has it. After every run the registers are
//! exact, which makes the instruction restartable after a fault and interruptible between runs.

use std::arch::asm;

use iced_x86::{Instruction, Mnemonic};

use crate::cpu::{Cpu, slot};
use crate::decode::Operands;
use crate::fault::Outcome;
use crate::flags;
use crate::mmu::{PAGE, Span};
use crate::op::{Flow, Handler, Op, check, offset};
use crate::ops::native_flags::Arithmetic;
use crate::state::{gpr, rflags};
use crate::system::operand::Touch;

const RAX: u8 = offset(gpr::RAX);
const RCX: u8 = offset(gpr::RCX);
const RSI: u8 = offset(gpr::RSI);
const RDI: u8 = offset(gpr::RDI);

/// Elements done before pending work is looked at again.
const ROUND: u64 = 1 << 16;

/// How an instruction repeats; kept in [`Op::imm`].
mod repeat {
    pub const NONE: u64 = 0;
    /// REP, REPE.
    pub const EQUAL: u64 = 1;
    /// REPNE.
    pub const NOT_EQUAL: u64 = 2;
}

/// Which string instruction.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Move,
    Store,
    Load,
    Compare,
    Scan,
}

/// The registers and rules of one string instruction. `op.shift` is the address size in bytes, `op.segment` the source
/// segment's base, `op.base` the destination segment's.
struct Strings<'a> {
    op: &'a Op,
    mask: u64,
}

impl Strings<'_> {
    fn new(op: &Op) -> Strings<'_> {
        let mask = match op.shift {
            2 => 0xffff,
            4 => 0xffff_ffff,
            _ => u64::MAX,
        };
        Strings { op, mask }
    }

    /// The linear address of the element that `register` points to, after its segment's checks.
    fn linear(&self, cpu: &mut Cpu, base: u8, register: u8, size: u64, touch: Touch) -> Outcome<u64> {
        let segment = usize::from(base / 8) - slot::SEGMENT_BASES;
        let place = cpu.reg::<u64>(register) & self.mask;
        cpu.linear(segment, place, size, touch)
    }

    fn source<T: Arithmetic>(&self, cpu: &mut Cpu) -> Outcome<u64> {
        self.linear(cpu, self.op.segment, RSI, T::SIZE, Touch::Read)
    }

    fn destination<T: Arithmetic>(&self, cpu: &mut Cpu, touch: Touch) -> Outcome<u64> {
        self.linear(cpu, self.op.base, RDI, T::SIZE, touch)
    }

    /// Whether a segment has no limit that a run could meet after its first element.
    fn unlimited(&self, cpu: &Cpu, base: u8) -> bool {
        cpu.flat() || cpu.segments[usize::from(base / 8) - slot::SEGMENT_BASES].limit == u32::MAX
    }

    /// Sets as much of a register as the address size covers.
    fn set(&self, cpu: &mut Cpu, register: u8, value: u64) {
        match self.op.shift {
            2 => cpu.set_reg(register, value as u16),
            4 => cpu.set_reg(register, value as u32),
            _ => cpu.set_reg(register, value),
        }
    }

    fn add(&self, cpu: &mut Cpu, register: u8, value: u64) {
        let old: u64 = cpu.reg(register);
        self.set(cpu, register, old.wrapping_add(value));
    }

    fn count(&self, cpu: &Cpu) -> u64 {
        cpu.reg::<u64>(RCX) & self.mask
    }
}

fn backwards(cpu: &Cpu) -> bool {
    cpu.rflags_system & rflags::DF != 0
}

/// Elements of `size` bytes from `address` in the present direction that lie wholly in its page (none if the first one
/// crosses).
fn elements_in_page(address: u64, size: u64, backwards: bool) -> u64 {
    let inside = address % PAGE;
    if inside + size > PAGE {
        return 0;
    }
    if backwards { inside / size + 1 } else { (PAGE - inside) / size }
}

/// One string instruction; `KIND` as [`Kind`].
extern "C" fn string<T: Arithmetic, const KIND: u8>(cpu: &mut Cpu, op: &Op) -> Flow {
    let kind = [Kind::Move, Kind::Store, Kind::Load, Kind::Compare, Kind::Scan][KIND as usize];
    let strings = Strings::new(op);
    if op.imm == repeat::NONE {
        check!(one::<T>(cpu, &strings, kind));
        return Flow::Next;
    }
    let mut budget = if cpu.traps_iterations() { 1 } else { ROUND };
    loop {
        let count = strings.count(cpu);
        if count == 0 {
            return Flow::Next;
        }
        if budget == 0 {
            cpu.rip = op.ip(cpu);
            return Flow::Again;
        }
        let done = check!(run::<T>(cpu, &strings, kind, count.min(budget)));
        strings.set(cpu, RCX, count - done);
        budget -= done;
        if matches!(kind, Kind::Compare | Kind::Scan) {
            let equal = cpu.flags & flags::ZF != 0;
            if equal != (op.imm == repeat::EQUAL) {
                return Flow::Next;
            }
        }
    }
}

/// Does up to `count` elements, at least one; returns how many. Source and destination registers have moved. A fault
/// leaves them at the element that faulted, with everything before it done.
fn run<T: Arithmetic>(cpu: &mut Cpu, strings: &Strings<'_>, kind: Kind, count: u64) -> Outcome<u64> {
    let done = match kind {
        Kind::Move => move_run::<T>(cpu, strings, count)?,
        Kind::Store => store_run::<T>(cpu, strings, count)?,
        _ => 0,
    };
    if done != 0 {
        return Ok(done);
    }
    one::<T>(cpu, strings, kind)?;
    Ok(1)
}

fn step<T: Arithmetic>(cpu: &Cpu, count: u64) -> u64 {
    let bytes = count.wrapping_mul(T::SIZE);
    if backwards(cpu) { bytes.wrapping_neg() } else { bytes }
}

/// Addresses that wrap around their address size within a run are left to the single-element path.
fn wraps(strings: &Strings<'_>, cpu: &Cpu, register: u8) -> bool {
    strings.mask != u64::MAX && cpu.reg::<u64>(register) & strings.mask & !(PAGE - 1) == strings.mask & !(PAGE - 1)
}

fn move_run<T: Arithmetic>(cpu: &mut Cpu, strings: &Strings<'_>, count: u64) -> Outcome<u64> {
    let back = backwards(cpu);
    let (from, to) = (strings.source::<T>(cpu)?, strings.destination::<T>(cpu, Touch::Write)?);
    let count = count.min(elements_in_page(from, T::SIZE, back)).min(elements_in_page(to, T::SIZE, back));
    let limited = !strings.unlimited(cpu, strings.op.segment) || !strings.unlimited(cpu, strings.op.base);
    if count <= 1 || limited || wraps(strings, cpu, RSI) || wraps(strings, cpu, RDI) {
        return Ok(0);
    }
    let Some(source) = cpu.ram_read(from, T::SIZE)? else { return Ok(0) };
    let Some(destination) = cpu.ram_write(to, T::SIZE)? else { return Ok(0) };
    // SAFETY: both pointers lead into pages of RAM and the run stays within each page.
    unsafe { host_move::<T>(source.pointer, destination.pointer, count, back) };
    check_in(cpu, destination, to, T::SIZE, count, back)?;
    let moved = step::<T>(cpu, count);
    strings.add(cpu, RSI, moved);
    strings.add(cpu, RDI, moved);
    Ok(count)
}

fn store_run<T: Arithmetic>(cpu: &mut Cpu, strings: &Strings<'_>, count: u64) -> Outcome<u64> {
    let back = backwards(cpu);
    let to = strings.destination::<T>(cpu, Touch::Write)?;
    let count = count.min(elements_in_page(to, T::SIZE, back));
    if count <= 1 || !strings.unlimited(cpu, strings.op.base) || wraps(strings, cpu, RDI) {
        return Ok(0);
    }
    let Some(destination) = cpu.ram_write(to, T::SIZE)? else { return Ok(0) };
    let value = cpu.reg::<u64>(RAX);
    // SAFETY: the pointer leads into a page of RAM and the run stays within it.
    unsafe { host_store::<T>(value, destination.pointer, count, back) };
    check_in(cpu, destination, to, T::SIZE, count, back)?;
    let moved = step::<T>(cpu, count);
    strings.add(cpu, RDI, moved);
    Ok(count)
}

/// Reports a finished run of writes.
fn check_in(cpu: &mut Cpu, span: Span, address: u64, size: u64, count: u64, backwards: bool) -> Outcome<()> {
    let lowest = if backwards { address - (count - 1) * size } else { address };
    cpu.commit(span.extended(lowest, count * size))
}

/// The host's REP MOVS.
///
/// # Safety
/// `count` elements in the given direction are valid on both sides.
unsafe fn host_move<T: Arithmetic>(source: *const u8, destination: *mut u8, count: u64, backwards: bool) {
    macro_rules! rep {
        ($instruction:literal) => {
            // SAFETY: as the caller promises; the direction flag is clear again at the end.
            unsafe {
                if backwards {
                    asm!("std", $instruction, "cld", inout("rcx") count => _, inout("rsi") source => _, inout("rdi") destination => _);
                } else {
                    asm!($instruction, inout("rcx") count => _, inout("rsi") source => _, inout("rdi") destination => _);
                }
            }
        };
    }
    match T::SIZE {
        1 => rep!("rep movsb"),
        2 => rep!("rep movsw"),
        4 => rep!("rep movsd"),
        _ => rep!("rep movsq"),
    }
}

/// The host's REP STOS.
///
/// # Safety
/// `count` elements in the given direction are valid.
unsafe fn host_store<T: Arithmetic>(value: u64, destination: *mut u8, count: u64, backwards: bool) {
    macro_rules! rep {
        ($instruction:literal) => {
            // SAFETY: as the caller promises; the direction flag is clear again at the end.
            unsafe {
                if backwards {
                    asm!("std", $instruction, "cld", inout("rcx") count => _, in("rax") value, inout("rdi") destination => _);
                } else {
                    asm!($instruction, inout("rcx") count => _, in("rax") value, inout("rdi") destination => _);
                }
            }
        };
    }
    match T::SIZE {
        1 => rep!("rep stosb"),
        2 => rep!("rep stosw"),
        4 => rep!("rep stosd"),
        _ => rep!("rep stosq"),
    }
}

/// One element of any string instruction, without its count.
fn one<T: Arithmetic>(cpu: &mut Cpu, strings: &Strings<'_>, kind: Kind) -> Outcome<()> {
    let moved = step::<T>(cpu, 1);
    match kind {
        Kind::Move => {
            let from = strings.source::<T>(cpu)?;
            let to = strings.destination::<T>(cpu, Touch::Write)?;
            let value = cpu.load::<T>(from)?;
            cpu.store(to, value)?;
        }
        Kind::Store => {
            let to = strings.destination::<T>(cpu, Touch::Write)?;
            cpu.store::<T>(to, cpu.reg(RAX))?;
        }
        Kind::Load => {
            let from = strings.source::<T>(cpu)?;
            let value = cpu.load::<T>(from)?;
            cpu.set_reg(RAX, value);
        }
        Kind::Compare => {
            let from = strings.source::<T>(cpu)?;
            let to = strings.destination::<T>(cpu, Touch::Read)?;
            let a = cpu.load::<T>(from)?;
            let b = cpu.load::<T>(to)?;
            T::sub(a, b, &mut cpu.flags);
        }
        Kind::Scan => {
            let to = strings.destination::<T>(cpu, Touch::Read)?;
            let b = cpu.load::<T>(to)?;
            T::sub(cpu.reg(RAX), b, &mut cpu.flags);
        }
    }
    if matches!(kind, Kind::Move | Kind::Load | Kind::Compare) {
        strings.add(cpu, RSI, moved);
    }
    if kind != Kind::Load {
        strings.add(cpu, RDI, moved);
    }
    Ok(())
}

macro_rules! sized {
    ($size:expr, $kind:literal) => {
        match $size {
            1 => string::<u8, $kind>,
            2 => string::<u16, $kind>,
            4 => string::<u32, $kind>,
            _ => string::<u64, $kind>,
        }
    };
}

/// The operation of a string instruction (INS and OUTS belong to the system half).
pub(crate) fn select(insn: &Instruction, operands: &Operands, op: &mut Op) -> Option<()> {
    let size = match insn.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Stosb | Mnemonic::Lodsb | Mnemonic::Cmpsb | Mnemonic::Scasb => 1,
        Mnemonic::Movsw | Mnemonic::Stosw | Mnemonic::Lodsw | Mnemonic::Cmpsw | Mnemonic::Scasw => 2,
        Mnemonic::Movsd | Mnemonic::Stosd | Mnemonic::Lodsd | Mnemonic::Cmpsd | Mnemonic::Scasd => 4,
        Mnemonic::Movsq | Mnemonic::Stosq | Mnemonic::Lodsq | Mnemonic::Cmpsq | Mnemonic::Scasq => 8,
        _ => return None,
    };
    let handler: Handler = match insn.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsq => sized!(size, 0),
        Mnemonic::Movsd if insn.is_string_instruction() => sized!(size, 0),
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => sized!(size, 1),
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => sized!(size, 2),
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsq => sized!(size, 3),
        Mnemonic::Cmpsd if insn.is_string_instruction() => sized!(size, 3),
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => sized!(size, 4),
        _ => return None,
    };
    op.run = handler;
    op.shift = operands.address_size;
    op.segment = operands.string_source;
    op.base = offset(slot::SEGMENT_BASES + crate::state::seg::ES);
    op.imm = if insn.has_repne_prefix() {
        repeat::NOT_EQUAL
    } else if insn.has_rep_prefix() {
        repeat::EQUAL
    } else {
        repeat::NONE
    };
    Some(())
}

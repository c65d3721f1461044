//! Control and debug registers, and the translations that depend on them (SDM vol. 3A §2.5, §4.10; vol. 3B §18.2).

use iced_x86::{Instruction, OpKind, Register};

use super::deliver::DR7_GENERAL_DETECT;
use super::operand::size_mask;
use super::{Next, require_cpl0};
use crate::cpu::Cpu;
use crate::fault::{Exception, Outcome, vector};
use crate::mmu::PHYSICAL_BITS;
use crate::state::{attribute, bits, gpr, seg};

const CR0_KEPT: u64 = bits::CR0_PE
    | bits::CR0_MP
    | bits::CR0_EM
    | bits::CR0_TS
    | bits::CR0_NE
    | bits::CR0_WP
    | bits::CR0_AM
    | bits::CR0_NW
    | bits::CR0_CD
    | bits::CR0_PG;

/// A change of one of these leaves no translation valid.
const CR0_FLUSH: u64 = bits::CR0_PG | bits::CR0_WP | bits::CR0_PE;
const CR4_FLUSH: u64 = bits::CR4_PSE | bits::CR4_PAE | bits::CR4_PGE | bits::CR4_SMEP | bits::CR4_SMAP;

/// DR6: an access to a debug register under general detect.
const DR6_GENERAL_DETECT: u64 = 1 << 13;

fn number(register: Register, first: Register) -> usize {
    (register as usize).wrapping_sub(first as usize)
}

fn is_control(register: Register) -> bool {
    (Register::CR0..=Register::CR15).contains(&register)
}

/// MOV to and from control and debug registers.
pub(crate) fn move_special(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    let (destination, source) = (insn.op0_register(), insn.op1_register());
    require_cpl0(cpu)?;
    if is_control(destination) {
        let value = cpu.register(source);
        return write_control(cpu, number(destination, Register::CR0), value);
    }
    if is_control(source) {
        let value = read_control(cpu, number(source, Register::CR0))?;
        cpu.set_register(destination, value);
        return Ok(Next::Continue);
    }
    if (Register::DR0..=Register::DR15).contains(&destination) {
        let value = cpu.register(source);
        return write_debug(cpu, number(destination, Register::DR0), value);
    }
    if (Register::DR0..=Register::DR15).contains(&source) {
        let index = debug_index(cpu, number(source, Register::DR0))?;
        cpu.set_register(destination, cpu.dr[index]);
        return Ok(Next::Continue);
    }
    cpu.fail(Exception::ud())
}

fn read_control(cpu: &mut Cpu, index: usize) -> Outcome<u64> {
    match index {
        0 => Ok(cpu.cr0),
        2 => Ok(cpu.cr2),
        3 => Ok(cpu.cr3),
        4 => Ok(cpu.cr4),
        8 => Ok(u64::from(cpu.outside(|platform, id| platform.task_priority(id)))),
        _ => cpu.fail(Exception::ud()),
    }
}

fn write_control(cpu: &mut Cpu, index: usize, value: u64) -> Outcome<Next> {
    match index {
        0 => write_cr0(cpu, value)?,
        2 => cpu.cr2 = value,
        3 => return write_cr3(cpu, value),
        4 => write_cr4(cpu, value)?,
        8 => {
            if value > 15 {
                return cpu.fail(Exception::gp(0));
            }
            cpu.outside(|platform, id| platform.set_task_priority(id, value as u8));
            cpu.recheck_events();
        }
        _ => return cpu.fail(Exception::ud()),
    }
    Ok(Next::Sync)
}

/// Sets CR0 with everything that follows from it, long mode included.
fn write_cr0(cpu: &mut Cpu, value: u64) -> Outcome<()> {
    let has = |bit: u64| value & bit != 0;
    let paging_without_protection = has(bits::CR0_PG) && !has(bits::CR0_PE);
    let write_through_without_cache = has(bits::CR0_NW) && !has(bits::CR0_CD);
    if value >> 32 != 0 || paging_without_protection || write_through_without_cache {
        return cpu.fail(Exception::gp(0));
    }
    let starts_paging = has(bits::CR0_PG) && cpu.cr0 & bits::CR0_PG == 0;
    let stops_paging = !has(bits::CR0_PG) && cpu.cr0 & bits::CR0_PG != 0;
    let long_code = cpu.segments[seg::CS].has(attribute::LONG);
    if starts_paging && cpu.efer & bits::EFER_LME != 0 {
        if cpu.cr4 & bits::CR4_PAE == 0 || long_code {
            return cpu.fail(Exception::gp(0));
        }
        cpu.efer |= bits::EFER_LMA;
    }
    if stops_paging {
        if cpu.flat() {
            return cpu.fail(Exception::gp(0));
        }
        cpu.efer &= !bits::EFER_LMA;
    }
    let new = value & CR0_KEPT | bits::CR0_ET;
    if (cpu.cr0 ^ new) & CR0_FLUSH != 0 {
        cpu.flush_tlb_all();
    }
    cpu.cr0 = new;
    cpu.refresh();
    Ok(())
}

/// MOV to CR3.
fn write_cr3(cpu: &mut Cpu, value: u64) -> Outcome<Next> {
    if cpu.long_mode() && value >> PHYSICAL_BITS != 0 {
        return cpu.fail(Exception::gp(0));
    }
    cpu.cr3 = value;
    cpu.flush_tlb_non_global();
    Ok(Next::Sync)
}

fn write_cr4(cpu: &mut Cpu, value: u64) -> Outcome<()> {
    let allowed = cpu.shared.cpuid.features().cr4;
    if value & !allowed != 0 || (cpu.long_mode() && value & bits::CR4_PAE == 0) {
        return cpu.fail(Exception::gp(0));
    }
    let changed = cpu.cr4 ^ value;
    cpu.cr4 = value;
    if changed & CR4_FLUSH != 0 {
        cpu.flush_tlb_all();
    }
    cpu.refresh();
    Ok(())
}

/// DR4 and DR5 are other names of DR6 and DR7, unless debugging extensions take them away.
fn debug_index(cpu: &mut Cpu, index: usize) -> Outcome<usize> {
    if matches!(index, 4 | 5) && cpu.cr4 & bits::CR4_DE != 0 || index > 7 {
        return cpu.fail(Exception::ud());
    }
    if cpu.dr[7] & DR7_GENERAL_DETECT != 0 {
        return cpu.fail(Exception { address: DR6_GENERAL_DETECT, ..Exception::new(vector::DB) });
    }
    Ok(if matches!(index, 4 | 5) { index + 2 } else { index })
}

fn write_debug(cpu: &mut Cpu, index: usize, value: u64) -> Outcome<Next> {
    let index = debug_index(cpu, index)?;
    if index >= 6 && value >> 32 != 0 {
        return cpu.fail(Exception::gp(0));
    }
    cpu.dr[index] = match index {
        6 => value & 0xe00f | 0xffff_0ff0,
        7 => value & 0xffff_23ff | 0x400,
        _ => value,
    };
    Ok(Next::Sync)
}

/// CLTS.
pub(crate) fn clts(cpu: &mut Cpu) -> Outcome<Next> {
    require_cpl0(cpu)?;
    cpu.cr0 &= !bits::CR0_TS;
    cpu.refresh();
    Ok(Next::Sync)
}

/// LMSW: the low four bits of CR0; PE can be set but not cleared.
pub(crate) fn lmsw(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    require_cpl0(cpu)?;
    let value = cpu.read_operand(insn, 0, 2)?;
    let kept = cpu.cr0 & !0xe;
    write_cr0(cpu, kept | value & 0xf)?;
    Ok(Next::Sync)
}

/// SMSW.
pub(crate) fn smsw(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    super::tables::check_umip(cpu)?;
    let size = if insn.op0_kind() == OpKind::Register { insn.op0_register().size() } else { 2 };
    cpu.write_operand(insn, 0, size, cpu.cr0 & size_mask(size))?;
    Ok(Next::Continue)
}

/// INVLPG.
pub(crate) fn invlpg(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    require_cpl0(cpu)?;
    let segment = super::operand::segment_index(insn.memory_segment());
    let address = cpu.regs[crate::cpu::slot::SEGMENT_BASES + segment].wrapping_add(cpu.memory_offset(insn));
    cpu.flush_tlb_page(if cpu.flat() { address } else { address & 0xffff_ffff });
    Ok(Next::Sync)
}

/// XGETBV.
pub(crate) fn xgetbv(cpu: &mut Cpu) -> Outcome<Next> {
    check_xsave_enabled(cpu)?;
    let value = match cpu.regs[gpr::RCX] as u32 {
        0 => cpu.xcr0,
        1 => cpu.xcr0 & super::xsave::in_use(cpu),
        _ => return cpu.fail(Exception::gp(0)),
    };
    super::set_edx_eax(cpu, value);
    Ok(Next::Continue)
}

/// XSETBV.
pub(crate) fn xsetbv(cpu: &mut Cpu) -> Outcome<Next> {
    check_xsave_enabled(cpu)?;
    require_cpl0(cpu)?;
    let value = super::edx_eax(cpu);
    let offered = cpu.shared.cpuid.features().xcr0;
    let avx_without_sse = value & 6 == 4;
    if cpu.regs[gpr::RCX] as u32 != 0 || value & 1 == 0 || value & !offered != 0 || avx_without_sse {
        return cpu.fail(Exception::gp(0));
    }
    cpu.xcr0 = value;
    cpu.refresh();
    Ok(Next::Sync)
}

pub(crate) fn check_xsave_enabled(cpu: &mut Cpu) -> Outcome<()> {
    if cpu.cr4 & bits::CR4_OSXSAVE == 0 {
        return cpu.fail(Exception::ud());
    }
    Ok(())
}

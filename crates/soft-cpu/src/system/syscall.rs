//! The fast ways between user and kernel: SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS and the FS/GS base instructions.
//!
//! The vendor is AMD: SYSCALL and SYSRET work in compatibility mode, SYSENTER and SYSEXIT only in legacy protected mode.

use iced_x86::{Code, Instruction};

use super::{Next, require_cpl0};
use crate::cpu::{CodeSize, Cpu, slot};
use crate::fault::{Exception, Outcome, vector};
use crate::mmu::canonical;
use crate::state::{Segment, attribute, bits, gpr, rflags, seg};

/// Code that ring `dpl` runs, base 0, limit 4 GiB.
fn flat_code(selector: u16, dpl: u8, size: u16) -> Segment {
    let attributes = 0x9b | u16::from(dpl) << attribute::DPL_SHIFT | attribute::GRANULARITY | size;
    Segment { base: 0, limit: u32::MAX, selector, attributes }
}

/// A stack that ring `dpl` uses, base 0, limit 4 GiB.
fn flat_stack(selector: u16, dpl: u8) -> Segment {
    let attributes = 0x93 | u16::from(dpl) << attribute::DPL_SHIFT | attribute::GRANULARITY | attribute::BIG;
    Segment { base: 0, limit: u32::MAX, selector, attributes }
}

/// What [`Cpu::refresh`] derives when 64-bit code of ring `cpl` begins to run, without asking anything.
#[inline]
pub(crate) fn enter64(cpu: &mut Cpu, cpl: u8) {
    if cpl == 3 && !cpu.entered_user {
        return cpu.refresh();
    }
    cpu.cpl = cpl;
    cpu.code_size = CodeSize::Bits64;
    cpu.stack_mask = u64::MAX;
    for index in [seg::ES, seg::CS, seg::SS, seg::DS] {
        cpu.regs[slot::SEGMENT_BASES + index] = 0;
    }
    cpu.select_tlb();
}

/// SYSCALL (APM vol. 3).
pub(crate) fn syscall(cpu: &mut Cpu) -> Outcome<Next> {
    if cpu.efer & bits::EFER_SCE == 0 || cpu.cr0 & bits::CR0_PE == 0 {
        return cpu.fail(Exception::ud());
    }
    let selector = (cpu.msrs.star >> 32) as u16 & !3;
    // RFLAGS.TF as it was belongs to the program; the kernel's first instruction is not single-stepped.
    cpu.trap_pending = false;
    if !cpu.long_mode() {
        return Ok(syscall_legacy(cpu, selector));
    }
    let target = if cpu.flat() { cpu.msrs.lstar } else { cpu.msrs.cstar };
    let flags = cpu.rflags();
    cpu.regs[gpr::RCX] = cpu.next_rip;
    cpu.regs[gpr::R11] = flags & !rflags::RF;
    cpu.set_rflags(flags & !cpu.msrs.sfmask & !rflags::RF);
    cpu.segments[seg::CS] = flat_code(selector, 0, attribute::LONG);
    cpu.segments[seg::SS] = flat_stack(selector.wrapping_add(8), 0);
    cpu.rip = target;
    enter64(cpu, 0);
    Ok(Next::Jump)
}

fn syscall_legacy(cpu: &mut Cpu, selector: u16) -> Next {
    cpu.regs[gpr::RCX] = cpu.next_rip & 0xffff_ffff;
    cpu.rip = cpu.msrs.star & 0xffff_ffff;
    cpu.rflags_system &= !(rflags::IF | rflags::VM | rflags::RF);
    set_code_and_stack(cpu, selector, 0, attribute::BIG);
    Next::Jump
}

fn set_code_and_stack(cpu: &mut Cpu, selector: u16, dpl: u8, size: u16) {
    let rpl = u16::from(dpl);
    cpu.set_segment(seg::CS, flat_code(selector | rpl, dpl, size));
    cpu.set_segment(seg::SS, flat_stack(selector.wrapping_add(8) | rpl, dpl));
    cpu.refresh();
}

/// SYSRET (APM vol. 3). A target that is not canonical faults at the target, in ring 3.
pub(crate) fn sysret(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    if cpu.efer & bits::EFER_SCE == 0 || cpu.cr0 & bits::CR0_PE == 0 {
        return cpu.fail(Exception::ud());
    }
    require_cpl0(cpu)?;
    let base = (cpu.msrs.star >> 48) as u16;
    let target = cpu.regs[gpr::RCX];
    let wide = insn.code() == Code::Sysretq;
    if cpu.long_mode() {
        let flags = cpu.regs[gpr::R11];
        cpu.set_rflags(flags & !(rflags::RF | rflags::VM));
    } else {
        cpu.rflags_system |= rflags::IF;
    }
    let stack = base.wrapping_add(8) | 3;
    cpu.segments[seg::SS] = flat_stack(stack, 3);
    if wide {
        cpu.segments[seg::CS] = flat_code(base.wrapping_add(16) | 3, 3, attribute::LONG);
        cpu.rip = target;
        enter64(cpu, 3);
    } else {
        cpu.set_segment(seg::CS, flat_code(base | 3, 3, attribute::BIG));
        cpu.rip = target & 0xffff_ffff;
        cpu.refresh();
    }
    cpu.recheck_events();
    Ok(Next::Jump)
}

fn check_sysenter(cpu: &mut Cpu) -> Outcome<u16> {
    if cpu.long_mode() {
        return cpu.fail(Exception::ud());
    }
    let selector = cpu.msrs.sysenter_cs as u16 & !3;
    if cpu.cr0 & bits::CR0_PE == 0 || selector == 0 {
        return cpu.fail(Exception::gp(0));
    }
    Ok(selector)
}

/// SYSENTER: #UD in long mode, as on every AMD processor.
pub(crate) fn sysenter(cpu: &mut Cpu) -> Outcome<Next> {
    let selector = check_sysenter(cpu)?;
    cpu.rflags_system &= !(rflags::IF | rflags::VM | rflags::RF);
    cpu.regs[gpr::RSP] = cpu.msrs.sysenter_esp & 0xffff_ffff;
    cpu.rip = cpu.msrs.sysenter_eip & 0xffff_ffff;
    set_code_and_stack(cpu, selector, 0, attribute::BIG);
    Ok(Next::Jump)
}

/// SYSEXIT: #UD in long mode, as on every AMD processor.
pub(crate) fn sysexit(cpu: &mut Cpu) -> Outcome<Next> {
    let selector = check_sysenter(cpu)?;
    require_cpl0(cpu)?;
    cpu.regs[gpr::RSP] = cpu.regs[gpr::RCX] & 0xffff_ffff;
    cpu.rip = cpu.regs[gpr::RDX] & 0xffff_ffff;
    set_code_and_stack(cpu, selector.wrapping_add(16), 3, attribute::BIG);
    Ok(Next::Jump)
}

/// Sets the base of FS or GS.
#[inline]
pub(crate) fn set_base(cpu: &mut Cpu, index: usize, base: u64) {
    cpu.segments[index].base = base;
    cpu.regs[slot::SEGMENT_BASES + index] = base;
}

/// SWAPGS.
pub(crate) fn swapgs(cpu: &mut Cpu) -> Outcome<Next> {
    if !cpu.flat() {
        return cpu.fail(Exception::ud());
    }
    require_cpl0(cpu)?;
    let user = cpu.segments[seg::GS].base;
    let kernel = std::mem::replace(&mut cpu.msrs.kernel_gs_base, user);
    set_base(cpu, seg::GS, kernel);
    Ok(Next::Continue)
}

/// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE.
pub(crate) fn segment_base(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    if !cpu.flat() || cpu.cr4 & bits::CR4_FSGSBASE == 0 {
        return cpu.fail(Exception::ud());
    }
    let register = insn.op0_register();
    match insn.code() {
        Code::Rdfsbase_r32 | Code::Rdfsbase_r64 => cpu.set_register(register, cpu.segments[seg::FS].base),
        Code::Rdgsbase_r32 | Code::Rdgsbase_r64 => cpu.set_register(register, cpu.segments[seg::GS].base),
        code => {
            let base = cpu.register(register);
            if !canonical(base) {
                return cpu.fail(Exception::gp(0));
            }
            let index = if matches!(code, Code::Wrfsbase_r32 | Code::Wrfsbase_r64) { seg::FS } else { seg::GS };
            set_base(cpu, index, base);
        }
    }
    Ok(Next::Continue)
}

/// LSTAR, CSTAR, FS/GS base and the like take canonical addresses only.
pub(crate) fn canonical_or_gp(cpu: &mut Cpu, value: u64) -> Outcome<u64> {
    if canonical(value) { Ok(value) } else { cpu.fail(Exception::with_error(vector::GP, 0)) }
}

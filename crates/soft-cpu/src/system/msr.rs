//! RDMSR and WRMSR, the time-stamp counter, CPUID.
//!
//! Registers of the memory and system-call machinery live in [`crate::state::Msrs`]; local APIC, paravirtual clock and
//! whatever else belongs to the machine is asked of the platform; a register that neither knows raises #GP. A few
//! registers that kernels touch on AMD processors without expecting a fault read as zero and swallow writes.

use super::syscall::{canonical_or_gp, set_base};
use super::{Next, edx_eax, require_cpl0, set_edx_eax};
use crate::cpu::Cpu;
use crate::fault::{Exception, Outcome};
use crate::state::{bits, gpr, seg};

/// Register numbers (SDM vol. 4; APM vol. 2 appendix A).
pub(crate) mod number {
    pub const TSC: u32 = 0x10;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const MICROCODE_REVISION: u32 = 0x8b;
    pub const MTRR_CAPABILITIES: u32 = 0xfe;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAPABILITIES: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const DEBUG_CONTROL: u32 = 0x1d9;
    pub const MTRR_VARIABLE_FIRST: u32 = 0x200;
    pub const MTRR_VARIABLE_LAST: u32 = 0x20f;
    pub const MTRR_FIX_64K: u32 = 0x250;
    pub const MTRR_FIX_16K_FIRST: u32 = 0x258;
    pub const MTRR_FIX_16K_LAST: u32 = 0x259;
    pub const MTRR_FIX_4K_FIRST: u32 = 0x268;
    pub const MTRR_FIX_4K_LAST: u32 = 0x26f;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEFAULT_TYPE: u32 = 0x2ff;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const SFMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
    pub const SYSCFG: u32 = 0xc001_0010;
    pub const HWCR: u32 = 0xc001_0015;
    pub const PATCH_LOADER: u32 = 0xc001_0020;
    pub const INTERRUPT_PENDING: u32 = 0xc001_0055;
    pub const TSEG_ADDRESS: u32 = 0xc001_0112;
    pub const TSEG_MASK: u32 = 0xc001_0113;
    pub const VM_CONTROL: u32 = 0xc001_0114;
    pub const LOAD_STORE_CONFIG: u32 = 0xc001_1020;
    pub const INSTRUCTION_CACHE_CONFIG: u32 = 0xc001_1021;
    pub const DATA_CACHE_CONFIG: u32 = 0xc001_1022;
    pub const BUS_UNIT_CONFIG: u32 = 0xc001_1023;
    pub const DECODE_CONFIG: u32 = 0xc001_1029;
    pub const BUS_UNIT_CONFIG_2: u32 = 0xc001_102a;
}

/// Eight variable ranges, fixed ranges, write combining.
const MTRR_CAPABILITIES: u64 = 0x508;
/// EFER bit: indirect branches of inner rings do not follow outer ones'; nothing here could make them.
const EFER_AUTOMATIC_IBRS: u64 = 1 << 21;

/// The time-stamp counter as the guest sees it.
pub(crate) fn time_stamp(cpu: &mut Cpu) -> u64 {
    let instructions = cpu.instructions;
    let counter = cpu.shared.platform.tsc(cpu.id, instructions);
    counter.wrapping_add(cpu.msrs.tsc_adjust)
}

fn set_tsc_adjust(cpu: &mut Cpu, value: u64) {
    cpu.msrs.tsc_adjust = value;
    cpu.outside(|platform, id| platform.set_tsc_adjust(id, value));
}

fn check_time_stamp(cpu: &mut Cpu) -> Outcome<()> {
    if cpu.cr4 & bits::CR4_TSD != 0 && cpu.cpl != 0 {
        return cpu.fail(Exception::gp(0));
    }
    Ok(())
}

/// RDTSC.
pub(crate) fn rdtsc(cpu: &mut Cpu) -> Outcome<Next> {
    check_time_stamp(cpu)?;
    let value = time_stamp(cpu);
    set_edx_eax(cpu, value);
    Ok(Next::Continue)
}

/// RDTSCP.
pub(crate) fn rdtscp(cpu: &mut Cpu) -> Outcome<Next> {
    check_time_stamp(cpu)?;
    let value = time_stamp(cpu);
    set_edx_eax(cpu, value);
    cpu.regs[gpr::RCX] = cpu.msrs.tsc_aux & 0xffff_ffff;
    Ok(Next::Continue)
}

/// CPUID.
pub(crate) fn cpuid(cpu: &mut Cpu) -> Outcome<Next> {
    let shared = cpu.shared.clone();
    let found = shared.cpuid.query(cpu, cpu.regs[gpr::RAX] as u32, cpu.regs[gpr::RCX] as u32);
    cpu.regs[gpr::RAX] = u64::from(found.eax);
    cpu.regs[gpr::RBX] = u64::from(found.ebx);
    cpu.regs[gpr::RCX] = u64::from(found.ecx);
    cpu.regs[gpr::RDX] = u64::from(found.edx);
    Ok(Next::Sync)
}

/// RDMSR.
pub(crate) fn rdmsr(cpu: &mut Cpu) -> Outcome<Next> {
    require_cpl0(cpu)?;
    let index = cpu.regs[gpr::RCX] as u32;
    let value = match read(cpu, index) {
        Some(value) => value,
        None => match cpu.outside(|platform, id| platform.msr_read(id, index)) {
            Some(value) => value,
            None => return cpu.fail(Exception::gp(0)),
        },
    };
    set_edx_eax(cpu, value);
    Ok(Next::Continue)
}

/// WRMSR.
pub(crate) fn wrmsr(cpu: &mut Cpu) -> Outcome<Next> {
    require_cpl0(cpu)?;
    let (index, value) = (cpu.regs[gpr::RCX] as u32, edx_eax(cpu));
    if write(cpu, index, value)? {
        return Ok(Next::Sync);
    }
    if !cpu.outside(|platform, id| platform.msr_write(id, index, value)) {
        return cpu.fail(Exception::gp(0));
    }
    Ok(Next::Sync)
}

/// Index into the fixed-range registers.
fn fixed_range(index: u32) -> Option<usize> {
    match index {
        number::MTRR_FIX_64K => Some(0),
        number::MTRR_FIX_16K_FIRST..=number::MTRR_FIX_16K_LAST => {
            Some((index - number::MTRR_FIX_16K_FIRST) as usize + 1)
        }
        number::MTRR_FIX_4K_FIRST..=number::MTRR_FIX_4K_LAST => Some((index - number::MTRR_FIX_4K_FIRST) as usize + 3),
        _ => None,
    }
}

/// Registers that read as zero and ignore writes.
fn is_inert(index: u32) -> bool {
    matches!(
        index,
        number::MICROCODE_REVISION
            | number::MCG_CAPABILITIES
            | number::MCG_STATUS
            | number::SYSCFG
            | number::HWCR
            | number::PATCH_LOADER
            | number::INTERRUPT_PENDING
            | number::TSEG_ADDRESS
            | number::TSEG_MASK
            | number::VM_CONTROL
            | number::LOAD_STORE_CONFIG
            | number::INSTRUCTION_CACHE_CONFIG
            | number::DATA_CACHE_CONFIG
            | number::BUS_UNIT_CONFIG
            | number::DECODE_CONFIG
            | number::BUS_UNIT_CONFIG_2
    )
}

/// A register that the CPU itself holds.
fn read(cpu: &mut Cpu, index: u32) -> Option<u64> {
    let msrs = &cpu.msrs;
    Some(match index {
        number::TSC => time_stamp(cpu),
        number::TSC_ADJUST => msrs.tsc_adjust,
        number::MTRR_CAPABILITIES => MTRR_CAPABILITIES,
        number::SYSENTER_CS => msrs.sysenter_cs,
        number::SYSENTER_ESP => msrs.sysenter_esp,
        number::SYSENTER_EIP => msrs.sysenter_eip,
        number::MISC_ENABLE => msrs.misc_enable,
        number::DEBUG_CONTROL => msrs.debug_control,
        number::MTRR_VARIABLE_FIRST..=number::MTRR_VARIABLE_LAST => {
            msrs.mtrr_variable[(index - number::MTRR_VARIABLE_FIRST) as usize]
        }
        number::PAT => msrs.pat,
        number::MTRR_DEFAULT_TYPE => msrs.mtrr_default,
        number::EFER => cpu.efer,
        number::STAR => msrs.star,
        number::LSTAR => msrs.lstar,
        number::CSTAR => msrs.cstar,
        number::SFMASK => msrs.sfmask,
        number::FS_BASE => cpu.segments[seg::FS].base,
        number::GS_BASE => cpu.segments[seg::GS].base,
        number::KERNEL_GS_BASE => msrs.kernel_gs_base,
        number::TSC_AUX => msrs.tsc_aux,
        _ if is_inert(index) => 0,
        _ => return fixed_range(index).map(|range| msrs.mtrr_fixed[range]),
    })
}

/// Writes a register that the CPU itself holds; false if it is the platform's.
fn write(cpu: &mut Cpu, index: u32, value: u64) -> Outcome<bool> {
    match index {
        number::FS_BASE | number::GS_BASE => {
            let base = canonical_or_gp(cpu, value)?;
            set_base(cpu, if index == number::FS_BASE { seg::FS } else { seg::GS }, base);
        }
        number::KERNEL_GS_BASE => cpu.msrs.kernel_gs_base = canonical_or_gp(cpu, value)?,
        number::TSC => {
            let change = value.wrapping_sub(time_stamp(cpu));
            set_tsc_adjust(cpu, cpu.msrs.tsc_adjust.wrapping_add(change));
        }
        number::TSC_ADJUST => set_tsc_adjust(cpu, value),
        number::SYSENTER_CS => cpu.msrs.sysenter_cs = value & 0xffff_ffff,
        number::SYSENTER_ESP => cpu.msrs.sysenter_esp = canonical_or_gp(cpu, value)?,
        number::SYSENTER_EIP => cpu.msrs.sysenter_eip = canonical_or_gp(cpu, value)?,
        number::MISC_ENABLE => cpu.msrs.misc_enable = value,
        number::DEBUG_CONTROL => cpu.msrs.debug_control = value & 0x3,
        number::EFER => write_efer(cpu, value)?,
        number::STAR => cpu.msrs.star = value,
        number::LSTAR => cpu.msrs.lstar = canonical_or_gp(cpu, value)?,
        number::CSTAR => cpu.msrs.cstar = canonical_or_gp(cpu, value)?,
        number::SFMASK => cpu.msrs.sfmask = value & 0xffff_ffff,
        number::TSC_AUX => {
            if value >> 32 != 0 {
                return cpu.fail(Exception::gp(0));
            }
            cpu.msrs.tsc_aux = value;
        }
        number::MTRR_CAPABILITIES => return cpu.fail(Exception::gp(0)),
        _ if is_inert(index) => {}
        _ => return write_memory_type(cpu, index, value),
    }
    Ok(true)
}

/// PAT and MTRRs: kept and checked, without effect, for all memory is coherent here.
fn write_memory_type(cpu: &mut Cpu, index: u32, value: u64) -> Outcome<bool> {
    let known = |kind: u8| matches!(kind, 0 | 1 | 4 | 5 | 6);
    let pat_known = |kind: u8| known(kind) || kind == 7;
    match index {
        number::PAT if value.to_le_bytes().into_iter().all(pat_known) => cpu.msrs.pat = value,
        number::MTRR_DEFAULT_TYPE if known(value as u8) && value & !0xcff == 0 => cpu.msrs.mtrr_default = value,
        number::PAT | number::MTRR_DEFAULT_TYPE => return cpu.fail(Exception::gp(0)),
        number::MTRR_VARIABLE_FIRST..=number::MTRR_VARIABLE_LAST => {
            cpu.msrs.mtrr_variable[(index - number::MTRR_VARIABLE_FIRST) as usize] = value;
        }
        _ => {
            let Some(range) = fixed_range(index) else { return Ok(false) };
            if !value.to_le_bytes().into_iter().all(known) {
                return cpu.fail(Exception::gp(0));
            }
            cpu.msrs.mtrr_fixed[range] = value;
        }
    }
    Ok(true)
}

/// EFER: LME cannot change under paging, LMA is the CPU's own.
fn write_efer(cpu: &mut Cpu, value: u64) -> Outcome<()> {
    let allowed = bits::EFER_SCE | bits::EFER_LME | bits::EFER_LMA | bits::EFER_NXE | EFER_AUTOMATIC_IBRS;
    let changed = cpu.efer ^ value;
    let paging = cpu.cr0 & bits::CR0_PG != 0;
    if value & !allowed != 0 || (paging && changed & bits::EFER_LME != 0) {
        return cpu.fail(Exception::gp(0));
    }
    cpu.efer = value & !bits::EFER_LMA | cpu.efer & bits::EFER_LMA;
    if changed & bits::EFER_NXE != 0 {
        cpu.flush_tlb_all();
    }
    cpu.refresh();
    Ok(())
}

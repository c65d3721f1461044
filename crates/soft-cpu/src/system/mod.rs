//! The system half of the CPU: privileged instructions, control transfer between segments and rings, delivery of
//! exceptions and interrupts, port I/O, state saving — everything that is neither hot nor runs natively.
//!
//! Promise: an instruction either happens as a whole or raises an exception with nothing changed (REP INS and REP OUTS
//! happen element by element). Not offered, and raising #GP or #UD where met: task switches and task gates,
//! virtual-8086 mode, virtual-machine extensions, MONITOR and MWAIT.
//!
//! One way in for instructions, [`execute`]; one for events, [`deliver`]; the files are families of instructions.

mod deliver;
mod descriptor;
mod far;
mod flags;
mod hypercall;
mod legacy;
mod msr;
pub(crate) mod operand;
mod port;
mod registers;
mod syscall;
mod tables;
#[cfg(test)]
mod tests;
pub(crate) mod xsave;

use iced_x86::{Instruction, Mnemonic, OpKind};

pub(crate) use deliver::deliver;

use crate::cpu::{Cpu, slot};
use crate::fault::{Exception, Outcome, vector};
use crate::state::{Activity, Segment, Table, attribute, bits, gpr, rflags, seg};
use xsave::Save;

/// How the block goes on after an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// With the next instruction of the block.
    Continue,
    /// `cpu.rip` has been set by the instruction; the block ends and everything is looked at anew.
    Jump,
    /// The instruction is complete, but modes, translations, code or what may interrupt have changed: the block ends.
    Sync,
    /// HLT: complete, and the CPU halts.
    Halt,
    /// A repeated instruction has done a part of its work: it runs again after a look at pending events.
    Again,
}

/// Something to be delivered through the interrupt descriptor table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    Exception(Exception),
    /// A maskable interrupt with its vector.
    External(u8),
    Nmi,
}

/// A double fault could not be delivered: the processor shuts down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TripleFault;

/// Fails with #GP(0) outside ring 0.
#[inline]
fn require_cpl0(cpu: &mut Cpu) -> Outcome<()> {
    if cpu.cpl == 0 { Ok(()) } else { cpu.fail(Exception::gp(0)) }
}

/// EDX:EAX.
fn edx_eax(cpu: &Cpu) -> u64 {
    cpu.regs[gpr::RDX] << 32 | cpu.regs[gpr::RAX] & 0xffff_ffff
}

/// Sets EDX:EAX, clearing the upper halves of both registers.
fn set_edx_eax(cpu: &mut Cpu, value: u64) {
    cpu.regs[gpr::RAX] = value & 0xffff_ffff;
    cpu.regs[gpr::RDX] = value >> 32;
}

/// Executes an instruction. `cpu.rip` is its address, `cpu.next_rip` the one after.
pub(crate) fn execute(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    use Mnemonic as M;
    match insn.mnemonic() {
        M::Syscall => syscall::syscall(cpu),
        M::Sysret | M::Sysretq => syscall::sysret(cpu, insn),
        M::Sysenter => syscall::sysenter(cpu),
        M::Sysexit | M::Sysexitq => syscall::sysexit(cpu),
        M::Swapgs => syscall::swapgs(cpu),
        M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => syscall::segment_base(cpu, insn),
        M::Iret | M::Iretd | M::Iretq => far::iret(cpu, insn),
        M::Jmp => far::jump(cpu, insn),
        M::Call => far::call(cpu, insn),
        M::Retf => far::ret(cpu, insn),
        M::Pushf | M::Pushfd | M::Pushfq => flags::pushf(cpu, insn),
        M::Popf | M::Popfd | M::Popfq => flags::popf(cpu, insn),
        M::Cli => flags::cli(cpu),
        M::Sti => flags::sti(cpu),
        M::Stac => flags::stac(cpu),
        M::Clac => flags::clac(cpu),
        M::Cld => set_direction(cpu, false),
        M::Std => set_direction(cpu, true),
        M::Rdtsc => msr::rdtsc(cpu),
        M::Rdtscp => msr::rdtscp(cpu),
        M::Rdpid => read_processor_id(cpu, insn),
        M::Rdmsr => msr::rdmsr(cpu),
        M::Wrmsr => msr::wrmsr(cpu),
        M::Cpuid => msr::cpuid(cpu),
        M::In => port::input(cpu, insn),
        M::Out => port::output(cpu, insn),
        M::Insb | M::Insw | M::Insd => port::string(cpu, insn, true),
        M::Outsb | M::Outsw | M::Outsd => port::string(cpu, insn, false),
        M::Mov => move_any(cpu, insn),
        M::Push => tables::push_segment(cpu, insn),
        M::Pop => pop(cpu, insn),
        M::Invlpg => registers::invlpg(cpu, insn),
        M::Hlt => require_cpl0(cpu).map(|()| Next::Halt),
        M::Int => interrupt(cpu, insn.immediate8(), true),
        M::Int3 => interrupt(cpu, vector::BP, true),
        M::Int1 => icebp(cpu),
        M::Into => into(cpu),
        M::Clts => registers::clts(cpu),
        M::Pause => Ok(pause(cpu)),
        _ => execute_rare(cpu, insn),
    }
}

fn execute_rare(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    use Mnemonic as M;
    match insn.mnemonic() {
        M::Fxsave | M::Fxsave64 => xsave::fxsave(cpu, insn),
        M::Fxrstor | M::Fxrstor64 => xsave::fxrstor(cpu, insn),
        M::Xsave | M::Xsave64 => xsave::xsave(cpu, insn, Save::Plain),
        M::Xsaveopt | M::Xsaveopt64 => xsave::xsave(cpu, insn, Save::Optimised),
        M::Xsavec | M::Xsavec64 => xsave::xsave(cpu, insn, Save::Compacted),
        M::Xrstor | M::Xrstor64 => xsave::xrstor(cpu, insn),
        M::Xgetbv => registers::xgetbv(cpu),
        M::Xsetbv => registers::xsetbv(cpu),
        M::Lgdt | M::Lidt => tables::load_table_register(cpu, insn),
        M::Sgdt | M::Sidt => tables::store_table_register(cpu, insn),
        M::Lldt => tables::lldt(cpu, insn),
        M::Ltr => tables::ltr(cpu, insn),
        M::Sldt => tables::store_selector(cpu, insn, cpu.ldtr.selector),
        M::Str => tables::store_selector(cpu, insn, cpu.tr.selector),
        M::Smsw => registers::smsw(cpu, insn),
        M::Lmsw => registers::lmsw(cpu, insn),
        M::Lar => tables::lar(cpu, insn),
        M::Lsl => tables::lsl(cpu, insn),
        M::Verr => tables::verify(cpu, insn, false),
        M::Verw => tables::verify(cpu, insn, true),
        M::Arpl => tables::arpl(cpu, insn),
        M::Les => tables::load_far_pointer(cpu, insn, seg::ES),
        M::Lds => tables::load_far_pointer(cpu, insn, seg::DS),
        M::Lss => tables::load_far_pointer(cpu, insn, seg::SS),
        M::Lfs => tables::load_far_pointer(cpu, insn, seg::FS),
        M::Lgs => tables::load_far_pointer(cpu, insn, seg::GS),
        M::Pusha => legacy::pusha(cpu, 2),
        M::Pushad => legacy::pusha(cpu, 4),
        M::Popa => legacy::popa(cpu, 2),
        M::Popad => legacy::popa(cpu, 4),
        M::Enter => legacy::enter(cpu, insn),
        M::Leave => legacy::leave(cpu, insn),
        M::Bound => legacy::bound(cpu, insn),
        M::Salc => legacy::salc(cpu),
        // Caches are coherent here, so nothing needs to be written back.
        M::Wbinvd | M::Wbnoinvd | M::Invd => require_cpl0(cpu).map(|()| Next::Continue),
        M::Rdpmc => cpu.fail(Exception::gp(0)),
        M::Vmcall | M::Vmmcall => hypercall::hypercall(cpu),
        M::Lfence | M::Sfence | M::Mfence => {
            std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
            Ok(Next::Continue)
        }
        M::Nop | M::Reservednop | M::Endbr32 | M::Endbr64 => Ok(Next::Continue),
        M::Prefetch
        | M::Prefetchw
        | M::Prefetchwt1
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2 => Ok(Next::Continue),
        _ => cpu.fail(Exception::ud()),
    }
}

/// Whether an instruction must be the last of its block: [`execute`] may answer anything but [`Next::Continue`].
pub(crate) fn ends_block(insn: &Instruction) -> bool {
    use Mnemonic as M;
    match insn.mnemonic() {
        M::Mov => {
            insn.op0_kind() == OpKind::Register
                && (tables::is_segment(insn.op0_register()) || tables::is_special(insn.op0_register()))
        }
        M::Pop => insn.op0_kind() == OpKind::Register && tables::is_segment(insn.op0_register()),
        M::Jmp | M::Call => !(insn.is_jmp_short_or_near() || insn.is_call_near() || is_near_indirect(insn)),
        M::Syscall | M::Sysret | M::Sysretq | M::Sysenter | M::Sysexit | M::Sysexitq => true,
        M::Iret | M::Iretd | M::Iretq | M::Retf | M::Int | M::Int1 | M::Int3 | M::Into => true,
        M::Popf | M::Popfd | M::Popfq | M::Sti | M::Hlt | M::Clts | M::Lmsw | M::Invlpg | M::Xsetbv => true,
        M::Wrmsr | M::Cpuid | M::In | M::Out | M::Pause => true,
        M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => insn.is_string_instruction(),
        M::Les | M::Lds | M::Lss | M::Lfs | M::Lgs => true,
        _ => false,
    }
}

fn is_near_indirect(insn: &Instruction) -> bool {
    insn.is_jmp_near_indirect() || insn.is_call_near_indirect()
}

fn set_direction(cpu: &mut Cpu, down: bool) -> Outcome<Next> {
    cpu.rflags_system = cpu.rflags_system & !rflags::DF | if down { rflags::DF } else { 0 };
    Ok(Next::Continue)
}

fn read_processor_id(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    if !cpu.shared.cpuid.features().rdpid {
        return cpu.fail(Exception::ud());
    }
    cpu.set_register(insn.op0_register(), cpu.msrs.tsc_aux);
    Ok(Next::Continue)
}

/// MOV with a segment, control or debug register, or any other that reaches the slow path.
fn move_any(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    let register = |index: u32| match insn.op_kind(index) {
        OpKind::Register => insn.op_register(index),
        _ => iced_x86::Register::None,
    };
    let (to, from) = (register(0), register(1));
    if tables::is_segment(to) {
        return tables::move_to_segment(cpu, insn);
    }
    if tables::is_segment(from) {
        return tables::move_from_segment(cpu, insn);
    }
    if tables::is_special(to) || tables::is_special(from) {
        return registers::move_special(cpu, insn);
    }
    let size = match (to, from) {
        (iced_x86::Register::None, iced_x86::Register::None) => insn.memory_size().size(),
        (iced_x86::Register::None, from) => from.size(),
        (to, _) => to.size(),
    };
    let value = cpu.read_operand(insn, 1, size)?;
    cpu.write_operand(insn, 0, size, value)?;
    Ok(Next::Continue)
}

fn pop(cpu: &mut Cpu, insn: &Instruction) -> Outcome<Next> {
    if insn.op0_kind() == OpKind::Register && tables::is_segment(insn.op0_register()) {
        return tables::pop_segment(cpu, insn);
    }
    legacy::pop(cpu, insn)
}

/// INT n and INT3.
fn interrupt(cpu: &mut Cpu, number: u8, checked: bool) -> Outcome<Next> {
    deliver::software_interrupt(cpu, number, checked)?;
    Ok(Next::Jump)
}

/// INT1: #DB whatever the gate's privilege, with DR6 as it is.
fn icebp(cpu: &mut Cpu) -> Outcome<Next> {
    interrupt(cpu, vector::DB, false)
}

/// INTO.
fn into(cpu: &mut Cpu) -> Outcome<Next> {
    if cpu.flags & crate::flags::OF == 0 {
        return Ok(Next::Sync);
    }
    interrupt(cpu, vector::OF, true)
}

/// How long a program has been spinning.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spin {
    /// The instruction count at the last PAUSE.
    last: u64,
    /// PAUSEs in a row since the host CPU was last offered.
    pauses: u32,
    /// How often it was offered in this spin.
    offers: u32,
}

/// PAUSE: the program spins for another CPU, which may be waiting for this host CPU. A short spin costs little; a long one
/// offers the host CPU again and again, and where there are fewer of them than CPUs here, it ends up sleeping.
fn pause(cpu: &mut Cpu) -> Next {
    /// PAUSEs before the host CPU is offered, and between two offers.
    const PATIENCE: u32 = 32;
    /// Most instructions from one PAUSE to the next in what counts as the same spin.
    const LOOP: u64 = 32;
    let same = cpu.instructions.wrapping_sub(cpu.spin.last) <= LOOP;
    let Spin { pauses, offers, .. } = if same { cpu.spin } else { Spin::default() };
    cpu.spin = Spin { last: cpu.instructions, pauses: pauses + 1, offers };
    if cpu.spin.pauses >= PATIENCE {
        cpu.spin = Spin { pauses: 0, offers: offers.saturating_add(1), ..cpu.spin };
        cpu.give_way(offers);
    } else {
        std::hint::spin_loop();
    }
    Next::Sync
}

/// INIT: the processor forgets its modes and waits for a start-up IPI. MSRs, floating-point state and the time-stamp
/// counter stay (SDM vol. 3A table 9-1).
pub(crate) fn init(cpu: &mut Cpu) {
    let reset = crate::state::State::default();
    cpu.regs[..16].fill(0);
    cpu.regs[gpr::RDX] = u64::from(cpu.shared.cpuid.get(1, 0).eax);
    cpu.regs[slot::ZERO] = 0;
    cpu.set_rflags(reset.rflags);
    cpu.rip = reset.rip;
    for (index, segment) in reset.segments.into_iter().enumerate() {
        cpu.set_segment(index, segment);
    }
    (cpu.ldtr, cpu.tr) = (reset.ldtr, reset.tr);
    (cpu.gdtr, cpu.idtr) = (reset.gdtr, reset.idtr);
    // The cache bits survive INIT.
    let kept = bits::CR0_CD | bits::CR0_NW;
    cpu.cr0 = reset.cr0 & !kept | cpu.cr0 & kept;
    (cpu.cr2, cpu.cr3, cpu.cr4, cpu.efer) = (0, 0, 0, 0);
    cpu.dr = reset.dr;
    cpu.activity = Activity::WaitForStartup;
    (cpu.interrupt_shadow, cpu.nmi_masked, cpu.trap_pending) = (false, false, false);
    cpu.exception = None;
    cpu.flush_tlb_all();
    cpu.refresh();
}

/// Start-up IPI: real mode at `vector << 12`.
pub(crate) fn startup(cpu: &mut Cpu, vector: u8) {
    let code = Segment { base: u64::from(vector) << 12, selector: u16::from(vector) << 8, ..Segment::real(0) };
    debug_assert!(code.has(attribute::PRESENT));
    cpu.set_segment(seg::CS, code);
    cpu.rip = 0;
    cpu.idtr = Table { base: 0, limit: 0xffff };
    cpu.activity = Activity::Running;
    cpu.refresh();
}

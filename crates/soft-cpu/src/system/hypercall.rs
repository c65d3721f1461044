//! VMCALL and VMMCALL: what a guest asks of its hypervisor, by KVM's numbers (Linux, Documentation/virt/kvm/x86/hypercalls.rst).
//!
//! Offered where CPUID leaf 0x4000_0001 says so: the wake-up of a halted CPU, which spin locks use so that a CPU whose
//! lock is held elsewhere sleeps instead of spinning. Everything else is answered with "no such call".

use super::Next;
use crate::cpu::Cpu;
use crate::fault::{Exception, Outcome};
use crate::state::gpr;

/// KVM_HC_KICK_CPU: wakes the CPU whose APIC id is in RCX from HLT, or from its next HLT.
const KICK_CPU: u64 = 5;
/// KVM_FEATURE_PV_UNHALT in EAX of CPUID leaf 0x4000_0001.
const FEATURE_UNHALT: u32 = 1 << 7;

/// KVM_EPERM and KVM_ENOSYS, negated.
const NOT_PERMITTED: u64 = 1_u64.wrapping_neg();
const NO_SUCH_CALL: u64 = 1000_u64.wrapping_neg();

/// VMCALL or VMMCALL; both are answered, whatever the vendor.
pub(super) fn hypercall(cpu: &mut Cpu) -> Outcome<Next> {
    let features = cpu.shared.cpuid.get(0x4000_0001, 0).eax;
    if features & FEATURE_UNHALT == 0 {
        return cpu.fail(Exception::ud());
    }
    let mask = if cpu.flat() { u64::MAX } else { 0xffff_ffff };
    let number = cpu.regs[gpr::RAX] & mask;
    let answer = match number {
        _ if cpu.cpl != 0 => NOT_PERMITTED,
        KICK_CPU => {
            // APIC ids are the CPUs' numbers.
            cpu.shared.kick(cpu.regs[gpr::RCX] & mask);
            0
        }
        _ => NO_SUCH_CALL,
    };
    cpu.regs[gpr::RAX] = answer & mask;
    Ok(Next::Continue)
}

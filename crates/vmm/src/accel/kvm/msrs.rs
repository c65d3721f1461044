//! Model-specific registers: which of them KVM keeps, which the board does, and their way to and from [`State`].

use kvm_bindings::{Msrs as MsrBuffer, kvm_msr_entry};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};
use queztl_soft_cpu::State;
use queztl_soft_cpu::state::Msrs;

use super::Controllers;
use crate::irqchip::{MSR_APIC_BASE, MSR_TSC_DEADLINE};
use crate::kvmclock::{MSR_SYSTEM_TIME, MSR_SYSTEM_TIME_OLD, MSR_WALL_CLOCK, MSR_WALL_CLOCK_OLD};

/// IA32_TIME_STAMP_COUNTER and IA32_TSC_ADJUST.
pub(super) const MSR_TSC: u32 = 0x10;
pub(super) const MSR_TSC_ADJUST: u32 = 0x3b;

/// A register and where [`State`] keeps it.
type Field = (u32, fn(&mut Msrs) -> &mut u64);

/// What system calls and the memory they touch depend on (SDM vol. 4).
const SYSTEM: [Field; 9] = [
    (0xc000_0081, |m| &mut m.star),
    (0xc000_0082, |m| &mut m.lstar),
    (0xc000_0083, |m| &mut m.cstar),
    (0xc000_0084, |m| &mut m.sfmask),
    (0xc000_0102, |m| &mut m.kernel_gs_base),
    (0xc000_0103, |m| &mut m.tsc_aux),
    (0x174, |m| &mut m.sysenter_cs),
    (0x175, |m| &mut m.sysenter_esp),
    (0x176, |m| &mut m.sysenter_eip),
];
/// What is kept and has no effect on what instructions do.
const OTHER: [Field; 5] = [
    (0x277, |m| &mut m.pat),
    (0x1a0, |m| &mut m.misc_enable),
    (0x1d9, |m| &mut m.debug_control),
    (0x2ff, |m| &mut m.mtrr_default),
    (0x48, |m| &mut m.speculation_control),
];
const MTRR_FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
const MTRR_VARIABLE: u32 = 0x200;

/// How much of the registers to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// What an instruction can depend on.
    System,
    All,
}

/// The registers of one kind of vCPU: those of [`State`] that this host's KVM has.
#[derive(Debug, Clone)]
pub(super) struct MsrSet {
    system: Vec<u32>,
    other: Vec<u32>,
}

impl MsrSet {
    /// Asks `vcpu` which registers it has.
    pub fn of(vcpu: &VcpuFd) -> MsrSet {
        let others = OTHER.iter().map(|(index, _)| *index);
        let ranges = MTRR_FIXED.into_iter().chain(MTRR_VARIABLE..MTRR_VARIABLE + 16);
        MsrSet {
            system: existing(vcpu, SYSTEM.iter().map(|(index, _)| *index).collect()),
            other: existing(vcpu, others.chain(ranges).collect()),
        }
    }

    fn indices(&self, extent: Extent) -> Vec<u32> {
        match extent {
            Extent::System => self.system.clone(),
            Extent::All => self.system.iter().chain(&self.other).copied().collect(),
        }
    }

    /// Fills the registers of `state` from the vCPU.
    pub fn load(&self, vcpu: &VcpuFd, state: &mut State, extent: Extent) -> Result<(), kvm_ioctls::Error> {
        for entry in read(vcpu, &self.indices(extent))? {
            if let Some(place) = place(&mut state.msrs, entry.index) {
                *place = entry.data;
            }
        }
        Ok(())
    }

    /// Fills the vCPU's registers from `state`. One that KVM refuses is left as it is.
    pub fn store(&self, vcpu: &VcpuFd, state: &State, extent: Extent) -> Result<(), kvm_ioctls::Error> {
        let mut msrs = state.msrs.clone();
        let entries: Vec<kvm_msr_entry> = self
            .indices(extent)
            .into_iter()
            .filter_map(|index| Some(kvm_msr_entry { index, data: *place(&mut msrs, index)?, ..Default::default() }))
            .collect();
        let mut rest = &entries[..];
        // The kernel stops at the first register that it refuses.
        while !rest.is_empty() {
            let done = vcpu.set_msrs(&buffer(rest))?;
            if done >= rest.len() {
                break;
            }
            tracing::debug!("KVM refuses {:#x} for MSR {:#x}", rest[done].data, rest[done].index);
            rest = &rest[done + 1..];
        }
        Ok(())
    }
}

/// Those of `indices` that the vCPU has. The kernel stops at the first that it has not.
fn existing(vcpu: &VcpuFd, mut indices: Vec<u32>) -> Vec<u32> {
    while let Ok(found) = read(vcpu, &indices) {
        if found.len() >= indices.len() {
            return indices;
        }
        indices.remove(found.len());
    }
    Vec::new()
}

/// Where `index` is kept.
fn place(msrs: &mut Msrs, index: u32) -> Option<&mut u64> {
    if let Some((_, field)) = SYSTEM.iter().chain(&OTHER).find(|(number, _)| *number == index) {
        return Some(field(msrs));
    }
    if let Some(range) = MTRR_FIXED.iter().position(|number| *number == index) {
        return msrs.mtrr_fixed.get_mut(range);
    }
    msrs.mtrr_variable.get_mut(index.checked_sub(MTRR_VARIABLE)? as usize)
}

fn buffer(entries: &[kvm_msr_entry]) -> MsrBuffer {
    MsrBuffer::from_entries(entries).expect("there are fewer registers than KVM takes at once")
}

/// Reads registers; stops at the first that the vCPU does not have.
pub(super) fn read(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, kvm_ioctls::Error> {
    let entries: Vec<_> = indices.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
    let mut buffer = buffer(&entries);
    let count = vcpu.get_msrs(&mut buffer)?;
    Ok(buffer.as_slice().iter().take(count).copied().collect())
}

/// Writes registers; stops at the first that the kernel refuses.
pub(super) fn write(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), kvm_ioctls::Error> {
    vcpu.set_msrs(&buffer(entries)).map(drop)
}

/// Sends the guest's accesses to the board's own registers to user space: the paravirtual clock's, and the local APIC's
/// unless the kernel keeps it; and changes of the time-stamp counter, which timers and clocks must follow. Those of the x2APIC cannot be filtered, and come by themselves: without a local APIC in
/// the kernel they are unknown there.
pub(super) fn filter(vm: &VmFd, controllers: Controllers) -> Result<(), kvm_ioctls::Error> {
    // A clear bit denies the kernel the register.
    const DENIED: [u8; 1] = [0];
    let mut registers =
        vec![MSR_WALL_CLOCK_OLD, MSR_SYSTEM_TIME_OLD, MSR_WALL_CLOCK, MSR_SYSTEM_TIME, MSR_TSC, MSR_TSC_ADJUST];
    if controllers == Controllers::User {
        registers.extend([MSR_APIC_BASE, MSR_TSC_DEADLINE]);
    }
    let range = |base| MsrFilterRange {
        flags: match base {
            MSR_TSC => MsrFilterRangeFlags::WRITE,
            _ => MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
        },
        base,
        msr_count: 1,
        bitmap: &DENIED,
    };
    let ranges: Vec<_> = registers.into_iter().map(range).collect();
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_has_a_place_of_its_own() {
        let mut msrs = Msrs::default();
        let all: Vec<u32> = SYSTEM
            .iter()
            .chain(&OTHER)
            .map(|(index, _)| *index)
            .chain(MTRR_FIXED)
            .chain(MTRR_VARIABLE..MTRR_VARIABLE + 16)
            .collect();
        for (value, index) in (1_u64..).zip(&all) {
            *place(&mut msrs, *index).unwrap() = value;
        }
        for (value, index) in (1_u64..).zip(&all) {
            assert_eq!(place(&mut msrs, *index).copied(), Some(value), "{index:#x}");
        }
        assert!(place(&mut msrs, 0x210).is_none() && place(&mut msrs, 0x1b).is_none());
    }
}

//! All registers of a vCPU, out of KVM and back.

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED,
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, kvm_mp_state, kvm_vcpu_events, kvm_xcr, kvm_xcrs,
};
use kvm_ioctls::VcpuFd;
use queztl_soft_cpu::State;
use queztl_soft_cpu::state::Activity;

use super::msrs::{Extent, MsrSet};
use super::{fpu, registers};
use crate::accel::Error;

/// Moves registers of one vCPU. Nothing may be under way in it: the last device access must have been completed.
pub(super) struct Transfer<'a> {
    pub vcpu: &'a VcpuFd,
    pub msrs: &'a MsrSet,
}

fn failed(step: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |error| Error::Kvm { step, source: error.into() }
}

impl Transfer<'_> {
    /// Reads the registers. Those that `extent` leaves out have their values after reset; activity, instruction count
    /// and TSC adjustment are not KVM's.
    pub fn load(&self, extent: Extent) -> Result<State, Error> {
        let get = failed("reading a vCPU's registers");
        let mut state = State::default();
        registers::read_regs(&mut state, &self.vcpu.get_regs().map_err(&get)?);
        registers::read_sregs(&mut state, &self.vcpu.get_sregs().map_err(&get)?);
        registers::read_debug(&mut state, &self.vcpu.get_debug_regs().map_err(&get)?);
        state.fpu = fpu::from_xsave(&self.vcpu.get_xsave().map_err(&get)?);
        // A host without XSAVE has no such register.
        state.xcr0 = self.vcpu.get_xcrs().map_or(1, |xcrs| xcr0(&xcrs));
        self.msrs.load(self.vcpu, &mut state, extent).map_err(&get)?;
        let events = self.vcpu.get_vcpu_events().map_err(&get)?;
        state.interrupt_shadow = events.interrupt.shadow != 0;
        state.nmi_masked = events.nmi.masked != 0;
        Ok(state)
    }

    /// Writes the registers that differ from `before`, which the vCPU holds.
    pub fn store_changes(&self, before: &State, state: &State, extent: Extent) -> Result<(), Error> {
        let set = failed("setting a vCPU's registers");
        let mut system = before.clone();
        (system.gpr, system.rip, system.rflags, system.fpu) = (state.gpr, state.rip, state.rflags, state.fpu.clone());
        if system != *state || before.rflags != state.rflags {
            let held = self.vcpu.get_sregs().map_err(&set)?;
            self.vcpu.set_sregs(&registers::sregs(state, &held)).map_err(&set)?;
        }
        if before.msrs != state.msrs {
            self.msrs.store(self.vcpu, state, extent).map_err(&set)?;
        }
        if before.xcr0 != state.xcr0 {
            self.vcpu.set_xcrs(&xcrs(state.xcr0)).map_err(&set)?;
        }
        if before.fpu != state.fpu {
            let mut area = self.vcpu.get_xsave().map_err(&set)?;
            fpu::put_into_xsave(&state.fpu, &mut area);
            // SAFETY: the kernel reads no further than the structure: guests have no state component beyond its end,
            // which AMX alone would be.
            unsafe { self.vcpu.set_xsave(&area) }.map_err(&set)?;
        }
        if before.dr != state.dr {
            self.vcpu.set_debug_regs(&registers::debug(state)).map_err(&set)?;
        }
        self.vcpu.set_regs(&registers::regs(state)).map_err(&set)?;
        let masks = |state: &State| (state.interrupt_shadow, state.nmi_masked);
        if masks(before) != masks(state) {
            self.store_masks(state).map_err(&set)?;
        }
        Ok(())
    }

    /// Whether the vCPU runs, sleeps or waits; for vCPUs whose local APIC the kernel keeps.
    pub fn activity(&self) -> Result<Activity, Error> {
        let state = self.vcpu.get_mp_state().map_err(failed("reading a vCPU's activity"))?;
        Ok(match state.mp_state {
            KVM_MP_STATE_HALTED => Activity::Halted,
            KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED => Activity::WaitForStartup,
            _ => Activity::Running,
        })
    }

    /// Sets what [`Transfer::activity`] gives.
    pub fn set_activity(&self, activity: Activity) -> Result<(), Error> {
        let mp_state = match activity {
            Activity::Running => KVM_MP_STATE_RUNNABLE,
            Activity::Halted => KVM_MP_STATE_HALTED,
            Activity::WaitForStartup => KVM_MP_STATE_UNINITIALIZED,
        };
        self.vcpu.set_mp_state(kvm_mp_state { mp_state }).map_err(failed("setting a vCPU's activity"))
    }

    fn store_masks(&self, state: &State) -> Result<(), kvm_ioctls::Error> {
        // Interrupt shadow by MOV SS and by STI; the latter is the weaker one.
        const BY_STI: u8 = 2;
        let mut events = self.vcpu.get_vcpu_events()?;
        events.interrupt.shadow = if state.interrupt_shadow { BY_STI } else { 0 };
        events.nmi.masked = u8::from(state.nmi_masked);
        events.flags = KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_NMI_PENDING;
        self.vcpu.set_vcpu_events(&events)
    }

    /// Forgets interrupts and exceptions that were on their way: the vCPU is reset.
    pub fn forget_events(&self) -> Result<(), Error> {
        let events = kvm_vcpu_events {
            flags: KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_NMI_PENDING,
            ..Default::default()
        };
        self.vcpu.set_vcpu_events(&events).map_err(failed("resetting a vCPU"))
    }
}

fn xcr0(xcrs: &kvm_xcrs) -> u64 {
    let count = (xcrs.nr_xcrs as usize).min(xcrs.xcrs.len());
    xcrs.xcrs[..count].iter().find(|xcr| xcr.xcr == 0).map_or(1, |xcr| xcr.value)
}

fn xcrs(xcr0: u64) -> kvm_xcrs {
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    xcrs.xcrs[0] = kvm_xcr { xcr: 0, value: xcr0, ..Default::default() };
    xcrs
}

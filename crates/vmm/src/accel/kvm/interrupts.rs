//! What is on its way to a vCPU: settled before registers leave it, and the local APIC in one form whoever keeps it.

use kvm_bindings::{KVM_VCPUEVENT_VALID_NMI_PENDING, kvm_msr_entry, kvm_vcpu_events};
use queztl_soft_cpu::platform::Event;
use queztl_soft_cpu::{Exception, State, vector};

use super::finish::TripleFault;
use super::lapic;
use super::msrs::{self, Extent};
use super::vcpu::{KvmVcpu, failed};
use crate::accel::{Error, VcpuExit};
use crate::irqchip::{LapicState, MSR_APIC_BASE, MSR_TSC_DEADLINE};

/// An event that KVM has taken from its source and not brought to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Underway {
    Event(Event),
    /// A trap, which comes after its instruction. A fault needs no note: its instruction raises it again.
    DebugTrap,
    Fault,
}

fn underway(events: &kvm_vcpu_events) -> Option<Underway> {
    if events.exception.injected != 0 {
        return Some(if events.exception.nr == vector::DB { Underway::DebugTrap } else { Underway::Fault });
    }
    if events.nmi.injected != 0 {
        return Some(Underway::Event(Event::Nmi));
    }
    // A software interrupt has not moved past its instruction yet, and is raised again.
    let interrupt = match events.interrupt.soft {
        0 => Underway::Event(Event::Interrupt(events.interrupt.nr)),
        _ => Underway::Fault,
    };
    (events.interrupt.injected != 0).then_some(interrupt)
}

impl KvmVcpu {
    /// Brings what is under way to the guest, by the software CPU: afterwards the registers are all there is. `Some` if
    /// that shuts the processor down.
    pub(super) fn settle(&mut self) -> Result<Option<VcpuExit>, Error> {
        let mut events = self.fd.get_vcpu_events().map_err(failed("reading what is under way to a vCPU"))?;
        let Some(underway) = underway(&events) else { return Ok(None) };
        let before = self.load(Extent::System)?;
        let result = match underway {
            Underway::Event(event) => self.finisher()?.accept(&before, event),
            Underway::DebugTrap => self.finisher()?.take_exception(&before, Exception::new(vector::DB)),
            Underway::Fault => Ok(before.clone()),
        };
        events.exception.injected = 0;
        events.exception.pending = 0;
        events.interrupt.injected = 0;
        events.nmi.injected = 0;
        events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING;
        self.fd.set_vcpu_events(&events).map_err(failed("settling what is under way to a vCPU"))?;
        let state: State = match result {
            Ok(state) => state,
            Err(TripleFault) => return Ok(Some(VcpuExit::Shutdown)),
        };
        self.store(&before, &state, Extent::System)?;
        Ok(None)
    }

    /// See [`crate::accel::Vcpu::local_apic`].
    pub(super) fn load_local_apic(&self) -> Result<LapicState, Error> {
        let mut state = if self.in_kernel() {
            let page = self.fd.get_lapic().map_err(failed("reading a local APIC"))?;
            let mut state = lapic::from_page(&page);
            let read = msrs::read(&self.fd, &[MSR_APIC_BASE, MSR_TSC_DEADLINE]);
            for entry in read.map_err(failed("reading a local APIC"))? {
                let place = if entry.index == MSR_APIC_BASE { &mut state.base } else { &mut state.tsc_deadline };
                *place = entry.data;
            }
            state
        } else {
            self.vm.board.irqchip().lapic_state(self.id).unwrap_or_default()
        };
        let events = self.fd.get_vcpu_events().map_err(failed("reading a local APIC"))?;
        state.nmi |= events.nmi.pending != 0;
        Ok(state)
    }

    /// See [`crate::accel::Vcpu::set_local_apic`].
    pub(super) fn store_local_apic(&mut self, state: &LapicState) -> Result<(), Error> {
        state.check()?;
        let step = "setting a local APIC";
        let mut events = self.fd.get_vcpu_events().map_err(failed(step))?;
        events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING;
        events.nmi.pending = u8::from(self.in_kernel() && state.nmi);
        self.fd.set_vcpu_events(&events).map_err(failed(step))?;
        if !self.in_kernel() {
            self.page.set_apic_base(state.base);
            return Ok(self.vm.board.irqchip().set_lapic_state(self.id, state)?);
        }
        let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
        msrs::write(&self.fd, &[entry(MSR_APIC_BASE, state.base)]).map_err(failed(step))?;
        let mut page = self.fd.get_lapic().map_err(failed(step))?;
        lapic::put_into_page(state, self.id, &mut page);
        self.fd.set_lapic(&page).map_err(failed(step))?;
        msrs::write(&self.fd, &[entry(MSR_TSC_DEADLINE, state.tsc_deadline)]).map_err(failed(step))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_is_named_once() {
        let mut events = kvm_vcpu_events::default();
        assert_eq!(underway(&events), None);
        (events.interrupt.injected, events.interrupt.nr) = (1, 0x51);
        assert_eq!(underway(&events), Some(Underway::Event(Event::Interrupt(0x51))));
        events.interrupt.soft = 1;
        assert_eq!(underway(&events), Some(Underway::Fault));
        events.nmi.injected = 1;
        assert_eq!(underway(&events), Some(Underway::Event(Event::Nmi)));
        (events.exception.injected, events.exception.nr) = (1, vector::PF);
        assert_eq!(underway(&events), Some(Underway::Fault));
        events.exception.nr = vector::DB;
        assert_eq!(underway(&events), Some(Underway::DebugTrap));
    }
}

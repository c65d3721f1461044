//! The host kernel's local APICs: how the board's interrupts reach them, and how it learns of ends of interrupt
//! (Linux `Documentation/virt/kvm/api.rst`, KVM_CAP_SPLIT_IRQCHIP, KVM_SIGNAL_MSI, KVM_SET_GSI_ROUTING).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_IRQ_ROUTING_MSI, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
    KVM_X2APIC_API_USE_32BIT_IDS, KvmIrqRouting, kvm_enable_cap, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_msi, kvm_msi,
};
use kvm_ioctls::{Cap, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::vm::Inner;
use crate::accel::{Error, MessageBinding};
use crate::irqchip::{LocalApics, Msi};
use crate::layout::IOAPIC_PINS;

/// Most eventfds that are interrupts. The kernel takes 4,096 routes, the I/O APIC's inputs included.
const MAX_MESSAGES: usize = 1024;

/// Makes the kernel keep the local APICs of vCPUs that are created from now on, with identifiers of 32 bits: 255 is one
/// of them in x2APIC mode, not the broadcast.
pub(super) fn keep_in_kernel(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    let mut cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    cap.args[0] = u64::from(IOAPIC_PINS);
    vm.enable_cap(&cap)?;
    if vm.check_extension(Cap::X2ApicApi) {
        let mut cap = kvm_enable_cap { cap: KVM_CAP_X2APIC_API, ..Default::default() };
        cap.args[0] = u64::from(KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK);
        vm.enable_cap(&cap)?;
    }
    Ok(())
}

/// What the kernel knows of the ways to its local APICs: a table that is only ever replaced as a whole.
#[derive(Debug, Default)]
pub(super) struct Routes(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    /// Level-triggered inputs of the I/O APIC, whose ends must be told.
    inputs: Vec<(u32, Msi)>,
    /// Eventfds that are interrupts, by route number; these follow those of the inputs.
    messages: BTreeMap<u32, Msi>,
}

impl Table {
    fn announce(&self, vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
        let inputs = self.inputs.iter().map(|(pin, msi)| route(*pin, *msi));
        let entries: Vec<_> = inputs.chain(self.messages.iter().map(|(gsi, msi)| route(*gsi, *msi))).collect();
        let routes = KvmIrqRouting::from_entries(&entries).expect("there are fewer routes than the kernel takes");
        vm.set_gsi_routing(&routes)
    }

    fn free_route(&self) -> Option<u32> {
        (IOAPIC_PINS..).take(MAX_MESSAGES).find(|gsi| !self.messages.contains_key(gsi))
    }
}

impl Routes {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_inputs(&self, vm: &VmFd, inputs: &[(u32, Msi)]) -> Result<(), kvm_ioctls::Error> {
        let mut table = self.lock();
        table.inputs = inputs.to_vec();
        table.announce(vm)
    }

    /// Makes signals of `event` the interrupt `msi`.
    pub fn bind(&self, vm: &VmFd, msi: Msi, event: &EventFd) -> Result<MessageBinding, Error> {
        let mut table = self.lock();
        let gsi = table.free_route().ok_or(Error::Routes(MAX_MESSAGES))?;
        table.messages.insert(gsi, msi);
        let bound = table.announce(vm).and_then(|()| vm.register_irqfd(event, gsi));
        if bound.is_err() {
            table.messages.remove(&gsi);
        }
        bound.map(|()| MessageBinding(gsi)).map_err(failed("binding an interrupt"))
    }

    /// Replaces the interrupt of a binding.
    pub fn change(&self, vm: &VmFd, binding: MessageBinding, msi: Msi) -> Result<(), Error> {
        let mut table = self.lock();
        match table.messages.get_mut(&binding.0) {
            Some(place) if *place != msi => *place = msi,
            _ => return Ok(()),
        }
        table.announce(vm).map_err(failed("moving an interrupt"))
    }

    /// Ends a binding.
    pub fn unbind(&self, vm: &VmFd, binding: MessageBinding, event: &EventFd) -> Result<(), Error> {
        let mut table = self.lock();
        vm.unregister_irqfd(event, binding.0).map_err(failed("releasing an interrupt"))?;
        table.messages.remove(&binding.0);
        table.announce(vm).map_err(failed("releasing an interrupt"))
    }
}

fn failed(step: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |error| Error::Kvm { step, source: error.into() }
}

/// The local APICs of one machine, as the board reaches them. Does nothing once the machine is gone.
pub(super) struct KernelApics(Weak<Inner>);

impl KernelApics {
    pub fn new(vm: Weak<Inner>) -> KernelApics {
        KernelApics(vm)
    }
}

impl LocalApics for KernelApics {
    fn send(&self, msi: Msi) {
        let Some(vm) = self.0.upgrade() else { return };
        let message = kvm_msi {
            address_lo: msi.address as u32,
            address_hi: (msi.address >> 32) as u32,
            data: msi.data,
            ..Default::default()
        };
        if let Err(error) = vm.fd.signal_msi(message) {
            tracing::warn!("an interrupt cannot be delivered: {error}");
        }
    }

    fn set_level_inputs(&self, inputs: &[(u32, Msi)]) {
        let Some(vm) = self.0.upgrade() else { return };
        if let Err(error) = vm.routes.set_inputs(&vm.fd, inputs) {
            tracing::warn!("interrupt inputs cannot be announced: {error}");
        }
    }
}

fn route(gsi: u32, msi: Msi) -> kvm_irq_routing_entry {
    let msi = kvm_irq_routing_msi {
        address_lo: msi.address as u32,
        address_hi: (msi.address >> 32) as u32,
        data: msi.data,
        ..Default::default()
    };
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
        ..Default::default()
    }
}

//! The host kernel's local APICs: how the board's interrupts reach them, and how it learns of ends of interrupt
//! (Linux `Documentation/virt/kvm/api.rst`, KVM_CAP_SPLIT_IRQCHIP, KVM_SIGNAL_MSI, KVM_SET_GSI_ROUTING).

use std::sync::Weak;

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_enable_cap, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_msi, kvm_msi,
};
use kvm_ioctls::VmFd;

use super::vm::Inner;
use crate::irqchip::{LocalApics, Msi};
use crate::layout::IOAPIC_PINS;

/// Makes the kernel keep the local APICs of vCPUs that are created from now on.
pub(super) fn keep_in_kernel(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    let mut cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    cap.args[0] = u64::from(IOAPIC_PINS);
    vm.enable_cap(&cap)
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
        let entries: Vec<_> = inputs.iter().map(|(pin, msi)| route(*pin, *msi)).collect();
        let routes = KvmIrqRouting::from_entries(&entries).expect("there are fewer inputs than KVM takes routes");
        if let Err(error) = vm.fd.set_gsi_routing(&routes) {
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

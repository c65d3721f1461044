//! Guest RAM as KVM's memory slots, and the dirty log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use queztl_guest_memory::GuestRam;

use crate::accel::DirtyPages;

/// One slot for each run of RAM. Holds the RAM for as long as KVM may use it: must be dropped after the machine.
pub(super) struct Slots {
    ram: Arc<GuestRam>,
    logging: AtomicBool,
}

impl Slots {
    /// Gives all of `ram` to `vm`.
    pub fn new(vm: &VmFd, ram: Arc<GuestRam>) -> Result<Slots, kvm_ioctls::Error> {
        let slots = Slots { ram, logging: AtomicBool::new(false) };
        slots.set(vm, 0)?;
        Ok(slots)
    }

    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    fn set(&self, vm: &VmFd, flags: u32) -> Result<(), kvm_ioctls::Error> {
        for (slot, (start, len)) in (0..).zip(self.ram.ranges()) {
            let host = self.ram.host_page(start).map_or(0, |page| page.host as u64);
            let region = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: start,
                memory_size: len,
                userspace_addr: host,
            };
            // SAFETY: the mapping has this length and lives as long as `self`, which outlives the machine.
            unsafe { vm.set_user_memory_region(region) }?;
        }
        Ok(())
    }

    /// Starts or ends the log. Starting one that runs changes nothing.
    pub fn log_dirty_pages(&self, vm: &VmFd, on: bool) -> Result<(), kvm_ioctls::Error> {
        self.set(vm, if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 })?;
        self.logging.store(on, Ordering::Relaxed);
        Ok(())
    }

    pub fn is_logging(&self) -> bool {
        self.logging.load(Ordering::Relaxed)
    }

    /// Takes what vCPUs wrote to since the last call; writes during the call are in this result or in the next. Only
    /// while there is a log.
    pub fn take_dirty_pages(&self, vm: &VmFd) -> Result<Vec<DirtyPages>, kvm_ioctls::Error> {
        let ranges = (0..).zip(self.ram.ranges());
        ranges
            .map(|(slot, (start, len))| Ok(DirtyPages { start, bitmap: vm.get_dirty_log(slot, len as usize)? }))
            .collect()
    }
}

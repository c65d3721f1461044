//! One virtual machine of KVM: what its vCPUs share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MAX_CPUID_ENTRIES, KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_INVAL,
    KVM_MSR_EXIT_REASON_UNKNOWN, kvm_enable_cap,
};
use kvm_ioctls::{Cap, IoEventAddress, VmFd};
use queztl_guest_memory::GuestRam;
use queztl_soft_cpu::cpuid::{CpuidConfig, CpuidPolicy, CpuidResult};
use queztl_soft_cpu::state::BadState;
use queztl_soft_cpu::{Shared, State};
use vmm_sys_util::eventfd::EventFd;

use super::apics::{self, KernelApics, Routes};
use super::cpuid::Policy;
use super::finish;
use super::kick::Kick;
use super::memory::Slots;
use super::msrs::{self, MsrSet};
use super::vcpu::KvmVcpu;
use super::{Controllers, Kvm};
use crate::accel::soft::drop_paths_on_unplug;
use crate::accel::{DirtyPages, Error, MessageBinding, Vcpu, Vm, dirty};
use crate::board::Board;
use crate::irqchip::Msi;

/// Three pages and one that Intel's processors want for real mode, in the hole below 4 GiB (Linux
/// `Documentation/virt/kvm/api.rst`, KVM_SET_TSS_ADDR and KVM_SET_IDENTITY_MAP_ADDR).
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// A virtual machine on KVM.
pub struct KvmVm {
    inner: Arc<Inner>,
    kicks: Vec<Arc<Kick>>,
}

/// What vCPUs need of their machine. The descriptor is closed before the RAM goes: fields are dropped in order.
pub(super) struct Inner {
    pub fd: VmFd,
    slots: Slots,
    pub board: Arc<Board>,
    pub policy: Policy,
    cpuid_config: CpuidConfig,
    /// The registers that this KVM has, known from the first vCPU.
    pub msrs: OnceLock<MsrSet>,
    /// What the host's time-stamp counter showed when the machine's was zero.
    pub tsc_start: u64,
    pub native: bool,
    pub controllers: Controllers,
    pub routes: Routes,
    /// Made when the first instruction needs it.
    soft: Mutex<Option<Arc<Shared>>>,
    /// Instructions that the software CPU finished.
    pub finished: AtomicU64,
    /// Returns of KVM for anything at all.
    pub exits: AtomicU64,
}

impl KvmVm {
    pub(super) fn new(kvm: &Kvm, ram: Arc<GuestRam>, board: Arc<Board>, vcpus: u32) -> Result<KvmVm, Error> {
        let failed = |step| move |error: kvm_ioctls::Error| Error::Kvm { step, source: error.into() };
        let Kvm { device, native, controllers } = kvm;
        let (native, controllers) = (*native, *controllers);
        let tsc_start = board.clock().host_tsc_start().ok_or(Error::KvmCounter)?;
        let fd = device.create_vm().map_err(failed("creating the machine"))?;
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS).map_err(failed("placing the identity map"))?;
        fd.set_tss_address(TSS_ADDRESS).map_err(failed("placing the task state segment"))?;
        if controllers == Controllers::Kernel {
            apics::keep_in_kernel(&fd).map_err(failed("making interrupt controllers"))?;
        }
        exit_on_msrs(&fd, controllers).map_err(failed("taking over model-specific registers"))?;
        let slots = Slots::new(&fd, ram).map_err(failed("giving it memory"))?;
        let supported =
            device.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("asking for processor features"))?;
        let config = board.cpuid_config(vcpus);
        let policy = if native { Policy::hardware(&supported, &config) } else { Policy::emulated(&supported, &config) };
        let kicks: Vec<Arc<Kick>> = (0..vcpus).map(|_| Arc::default()).collect();
        for (id, kick) in (0..).zip(&kicks) {
            let kick = kick.clone();
            board.irqchip().set_waker(id, Arc::new(move || crate::accel::VcpuHandle::notify(&*kick)));
        }
        let inner = Inner {
            fd,
            slots,
            board,
            policy,
            cpuid_config: config,
            msrs: OnceLock::new(),
            tsc_start,
            native,
            controllers,
            routes: Routes::default(),
            soft: Mutex::new(None),
            finished: AtomicU64::new(0),
            exits: AtomicU64::new(0),
        };
        let inner = Arc::new(inner);
        follow_plugging(&inner);
        if controllers == Controllers::Kernel {
            let apics = KernelApics::new(Arc::downgrade(&inner));
            inner.board.irqchip().use_local_apics(Arc::new(apics));
        }
        Ok(KvmVm { inner, kicks })
    }

    /// Instructions that KVM could not execute and the software CPU finished.
    pub fn finished_instructions(&self) -> u64 {
        self.inner.finished.load(Ordering::Relaxed)
    }
}

/// Memory that is plugged and unplugged becomes a slot and ceases to be one.
fn follow_plugging(inner: &Arc<Inner>) {
    let machine = Arc::downgrade(inner);
    inner.slots.ram().watch_plugging(move |change| {
        let Some(machine) = machine.upgrade() else { return Ok(()) };
        Ok(machine.slots.change(&machine.fd, change)?)
    });
}

fn exit_on_msrs(fd: &VmFd, controllers: Controllers) -> Result<(), kvm_ioctls::Error> {
    let reasons = KVM_MSR_EXIT_REASON_FILTER | KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN;
    let mut cap = kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, ..Default::default() };
    cap.args[0] = u64::from(reasons);
    fd.enable_cap(&cap)?;
    msrs::filter(fd, controllers)
}

impl Inner {
    /// What the software CPUs beside the vCPUs share.
    pub fn soft_shared(&self) -> Result<Arc<Shared>, Error> {
        let mut soft = self.soft.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = &*soft {
            return Ok(shared.clone());
        }
        let shared = finish::shared(self.slots.ram().clone(), self.board.clone(), &self.cpuid_config)?;
        drop_paths_on_unplug(self.slots.ram(), &shared);
        *soft = Some(shared.clone());
        Ok(shared)
    }

    fn log_dirty_pages(&self, on: bool) -> Result<(), Error> {
        let switched = self.slots.log_dirty_pages(&self.fd, on);
        switched.map_err(|error| Error::Kvm { step: "switching the dirty log", source: error.into() })
    }

    /// What vCPUs wrote, by the kernel's log, and what devices and the software CPUs beside them did, by the trackers.
    fn take_dirty_pages(&self) -> Result<Vec<DirtyPages>, Error> {
        let log = self.slots.take_dirty_pages(&self.fd);
        let log = log.map_err(|error| Error::Kvm { step: "reading the dirty log", source: error.into() })?;
        let tracked = dirty::take_tracked(self.slots.ram());
        let soft = self.soft.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(shared) = soft {
            shared.drop_write_paths();
        }
        Ok(dirty::union(log, &tracked))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let (finished, exits) = (self.finished.load(Ordering::Relaxed), self.exits.load(Ordering::Relaxed));
        let percent = finished as f64 * 100.0 / exits.max(1) as f64;
        tracing::info!(finished, exits, percent, "exits of KVM, and those that the software CPU finished");
    }
}

impl Vm for KvmVm {
    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, Error> {
        let kick = self.kicks[id as usize].clone();
        Ok(Box::new(KvmVcpu::new(id, self.inner.clone(), kick)?))
    }

    fn processor(&self) -> Vec<((u32, u32), CpuidResult)> {
        self.inner.policy.leaves().to_vec()
    }

    /// Where the software CPU finishes instructions, the state must do for it too; else the processor itself refuses what
    /// cannot be.
    fn check_state(&self, state: &State) -> Result<(), BadState> {
        if self.inner.native { Ok(()) } else { CpuidPolicy::new(&self.inner.cpuid_config).check(state) }
    }

    fn start_dirty_log(&self) -> Result<(), Error> {
        self.inner.log_dirty_pages(true)?;
        self.inner.take_dirty_pages().map(drop)
    }

    fn take_dirty_log(&self) -> Result<Vec<DirtyPages>, Error> {
        if !self.inner.slots.is_logging() {
            return Ok(Vec::new());
        }
        self.inner.take_dirty_pages()
    }

    fn stop_dirty_log(&self) -> Result<(), Error> {
        self.inner.log_dirty_pages(false)
    }

    fn bind_notification(&self, address: u64, value: u32, event: &EventFd) -> Result<bool, Error> {
        if !self.inner.fd.check_extension(Cap::Ioeventfd) {
            return Ok(false);
        }
        let bound = self.inner.fd.register_ioevent(event, &IoEventAddress::Mmio(address), value);
        bound.map_err(|error| Error::Kvm { step: "binding a notification", source: error.into() })?;
        Ok(true)
    }

    fn bind_message(&self, msi: Msi, event: &EventFd) -> Result<Option<MessageBinding>, Error> {
        let in_kernel = self.inner.controllers == Controllers::Kernel;
        if !in_kernel || !self.inner.fd.check_extension(Cap::Irqfd) {
            return Ok(None);
        }
        self.inner.routes.bind(&self.inner.fd, msi, event).map(Some)
    }

    fn change_message(&self, binding: MessageBinding, msi: Msi) -> Result<(), Error> {
        self.inner.routes.change(&self.inner.fd, binding, msi)
    }

    fn unbind_message(&self, binding: MessageBinding, event: &EventFd) -> Result<(), Error> {
        self.inner.routes.unbind(&self.inner.fd, binding, event)
    }
}

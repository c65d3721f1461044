//! The page that a vCPU shares with the host's kernel (`struct kvm_run`), and the exits read from it.
//!
//! A mapping of our own, so that other threads can set `immediate_exit` for as long as they hold it, whether or not the
//! vCPU itself still exists. Everything else belongs to the vCPU's thread.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IO_OUT,
    KVM_EXIT_IOAPIC_EOI, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SET_TPR, KVM_EXIT_SHUTDOWN,
    KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR, kvm_run,
};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Why KVM gave the thread back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    /// `count` accesses of `size` bytes each, whose data lie in the shared page at `offset`.
    Port {
        port: u16,
        size: usize,
        count: usize,
        offset: usize,
        write: bool,
    },
    /// One access of `len` bytes, 1..=8.
    Mmio {
        address: u64,
        len: usize,
        data: [u8; 8],
        write: bool,
    },
    ReadMsr {
        index: u32,
    },
    WriteMsr {
        index: u32,
        value: u64,
    },
    /// The guest ended a level-triggered interrupt; the I/O APIC must know.
    EndOfInterrupt {
        vector: u8,
    },
    /// HLT; interrupts may be off.
    Halted,
    /// The interrupt window opened, CR8 changed, or nothing at all: look at everything again.
    Look,
    /// Triple fault.
    Shutdown,
    /// KVM could not go on: the instruction at hand is one it cannot execute, or worse.
    InternalError {
        suberror: u32,
        data: [u64; 4],
    },
    /// The hardware refused the registers.
    FailEntry {
        reason: u64,
    },
    /// Something that cannot happen to this machine.
    Other(u32),
}

/// The shared page.
pub(super) struct RunPage {
    start: *mut kvm_run,
    len: usize,
}

// SAFETY: the mapping is owned; the one field that several threads touch, `immediate_exit`, is accessed atomically, all
// others by the vCPU's thread alone (see the methods).
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    /// Maps the shared page of `vcpu`, whose length KVM gave as `len` bytes.
    pub fn map(vcpu: BorrowedFd<'_>, len: usize) -> io::Result<RunPage> {
        if len < size_of::<kvm_run>() {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        // SAFETY: a new mapping at an address of the host kernel's choice touches nothing that exists.
        let start =
            unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, vcpu, 0)? };
        Ok(RunPage { start: start.cast(), len })
    }

    /// Makes the next or the present `KVM_RUN` return at once, or no longer. From any thread.
    pub fn set_immediate_exit(&self, on: bool) {
        // SAFETY: the byte lies in the mapping, is aligned as any byte is, and is only accessed atomically.
        let flag = unsafe { AtomicU8::from_ptr(&raw mut (*self.start).immediate_exit) };
        flag.store(u8::from(on), Ordering::SeqCst);
    }

    /// Asks for an exit as soon as the guest can take an interrupt.
    pub fn request_interrupt_window(&self, on: bool) {
        // SAFETY: in the mapping; the vCPU's thread is the only writer and not inside KVM.
        unsafe { (&raw mut (*self.start).request_interrupt_window).write_volatile(u8::from(on)) };
    }

    /// At the last exit, the guest could take an interrupt.
    pub fn ready_for_interrupt(&self) -> bool {
        // SAFETY: in the mapping; the kernel does not write outside of KVM_RUN.
        unsafe { (&raw const (*self.start).ready_for_interrupt_injection).read_volatile() != 0 }
    }

    /// RFLAGS.IF at the last exit.
    pub fn interrupt_flag(&self) -> bool {
        // SAFETY: as above.
        unsafe { (&raw const (*self.start).if_flag).read_volatile() != 0 }
    }

    /// CR8 at the last exit, or for the next entry.
    pub fn cr8(&self) -> u8 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.start).cr8).read_volatile() as u8 & 0xf }
    }

    pub fn set_cr8(&self, class: u8) {
        // SAFETY: in the mapping; the vCPU's thread is the only writer and not inside KVM.
        unsafe { (&raw mut (*self.start).cr8).write_volatile(u64::from(class & 0xf)) };
    }

    /// IA32_APIC_BASE for the next entry.
    pub fn set_apic_base(&self, base: u64) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.start).apic_base).write_volatile(base) };
    }

    /// Answers [`Exit::ReadMsr`]; `None` is #GP.
    pub fn answer_read(&self, value: Option<u64>) {
        // SAFETY: in the mapping, and the `msr` member is the one in use after that exit.
        unsafe {
            let msr = &raw mut (*self.start).__bindgen_anon_1.msr;
            (&raw mut (*msr).data).write_volatile(value.unwrap_or(0));
            (&raw mut (*msr).error).write_volatile(u8::from(value.is_none()));
        }
    }

    /// Answers [`Exit::WriteMsr`]; false is #GP.
    pub fn answer_write(&self, done: bool) {
        // SAFETY: as above.
        unsafe {
            let msr = &raw mut (*self.start).__bindgen_anon_1.msr;
            (&raw mut (*msr).error).write_volatile(u8::from(!done));
        }
    }

    /// Answers a reading [`Exit::Mmio`]. At most 8 bytes.
    pub fn answer_mmio(&self, data: [u8; 8]) {
        // SAFETY: in the mapping, and the `mmio` member is the one in use after that exit.
        unsafe { (&raw mut (*self.start).__bindgen_anon_1.mmio.data).write_volatile(data) };
    }

    /// The data of [`Exit::Port`]: `len` bytes at `offset`; empty if the kernel named a place outside the page.
    pub fn port_data(&mut self, offset: usize, len: usize) -> &mut [u8] {
        if offset.checked_add(len).is_none_or(|end| end > self.len) || offset < size_of::<kvm_run>() {
            return &mut [];
        }
        // SAFETY: checked to lie inside the mapping, beyond the structure that others touch; the kernel does not write
        // outside of KVM_RUN, and the borrow keeps this thread from entering it.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast::<u8>().add(offset), len) }
    }

    /// What the last `KVM_RUN` ended with.
    pub fn exit(&self) -> Exit {
        // SAFETY: in the mapping; the kernel does not write outside of KVM_RUN.
        let reason = unsafe { (&raw const (*self.start).exit_reason).read_volatile() };
        // SAFETY: as above; every member of the union is plain data, and the reason says which one is in use.
        let detail = unsafe { (&raw const (*self.start).__bindgen_anon_1).read_volatile() };
        match reason {
            // SAFETY: the member that belongs to this reason.
            KVM_EXIT_IO => port(unsafe { detail.io }),
            // SAFETY: as above.
            KVM_EXIT_MMIO => mmio(unsafe { detail.mmio }),
            // SAFETY: as above.
            KVM_EXIT_X86_RDMSR => Exit::ReadMsr { index: unsafe { detail.msr.index } },
            KVM_EXIT_X86_WRMSR => {
                // SAFETY: as above.
                let msr = unsafe { detail.msr };
                Exit::WriteMsr { index: msr.index, value: msr.data }
            }
            // SAFETY: as above.
            KVM_EXIT_IOAPIC_EOI => Exit::EndOfInterrupt { vector: unsafe { detail.eoi.vector } },
            KVM_EXIT_HLT => Exit::Halted,
            KVM_EXIT_IRQ_WINDOW_OPEN | KVM_EXIT_SET_TPR | KVM_EXIT_INTR => Exit::Look,
            KVM_EXIT_SHUTDOWN => Exit::Shutdown,
            KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: as above.
                let internal = unsafe { detail.internal };
                let count = (internal.ndata as usize).min(4);
                let mut data = [0; 4];
                data[..count].copy_from_slice(&internal.data[..count]);
                Exit::InternalError { suberror: internal.suberror, data }
            }
            KVM_EXIT_FAIL_ENTRY => {
                // SAFETY: as above.
                Exit::FailEntry { reason: unsafe { detail.fail_entry.hardware_entry_failure_reason } }
            }
            other => Exit::Other(other),
        }
    }
}

fn port(io: kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_4) -> Exit {
    Exit::Port {
        port: io.port,
        size: usize::from(io.size).clamp(1, 4),
        count: io.count as usize,
        offset: usize::try_from(io.data_offset).unwrap_or(usize::MAX),
        write: u32::from(io.direction) == KVM_EXIT_IO_OUT,
    }
}

fn mmio(mmio: kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_6) -> Exit {
    Exit::Mmio {
        address: mmio.phys_addr,
        len: (mmio.len as usize).clamp(1, 8),
        data: mmio.data,
        write: mmio.is_write != 0,
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length, and used by nobody any more.
        let unmapped = unsafe { munmap(self.start.cast(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

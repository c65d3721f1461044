//! One vCPU and its run loop.
//!
//! ```text
//! run ──> stop? ──> events of the controllers ──> halted? park : KVM_RUN ──> exit ─┐
//!   ^                INIT, start-up: software CPU      ^                           │ devices: board, on this thread
//!   │                interrupt: KVM_INTERRUPT,         │                           │ instruction unknown: software CPU
//!   │                or an exit when one can be taken  └──────── look again <──────┘
//!   └── Stopped, Shutdown, Failed: the last device access is completed first
//! ```

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_bindings::{
    KVM_INTERNAL_ERROR_EMULATION, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr, kvm_interrupt,
};
use kvm_ioctls::VcpuFd;
use queztl_soft_cpu::State;
use queztl_soft_cpu::platform::{Accepts, Event};
use queztl_soft_cpu::state::Activity;

use super::Controllers;
use super::finish::{Finisher, TripleFault};
use super::kick::{Kick, STOP};
use super::msrs::{Extent, MSR_TSC, MSR_TSC_ADJUST, MsrSet};
use super::page::{Exit, RunPage};
use super::transfer::Transfer;
use super::vm::Inner;
use crate::accel::{Counted, Error, Vcpu, VcpuExit, VcpuHandle};
use crate::confine::Kind;
use crate::irqchip::{IrqChip, LapicState, MSR_APIC_BASE};

/// Completing one device access can lead to this many more: an instruction accesses at most a few.
const MOST_COMPLETIONS: usize = 64;

pub(super) struct KvmVcpu {
    pub(super) id: u32,
    pub(super) fd: VcpuFd,
    pub(super) page: RunPage,
    kick: Arc<Kick>,
    pub(super) vm: Arc<Inner>,
    msrs: MsrSet,
    activity: Activity,
    /// The guest's counter less the machine's ([`crate::clock::Clock::tsc`]).
    tsc_adjust: u64,
    /// An access was handed to the board; KVM completes the instruction at the next entry.
    completing: bool,
    /// An interrupt was given to KVM since the last entry, or the registers were changed: what the shared page says
    /// about interrupts is out of date.
    stale: bool,
    finisher: Option<Finisher>,
}

/// Whether the loop goes on.
enum Next {
    Again,
    Return(VcpuExit),
}

pub(super) fn failed(step: &'static str) -> impl Fn(kvm_ioctls::Error) -> Error {
    move |error| Error::Kvm { step, source: error.into() }
}

impl KvmVcpu {
    pub fn new(id: u32, vm: Arc<Inner>, kick: Arc<Kick>) -> Result<KvmVcpu, Error> {
        let fd = vm.fd.create_vcpu(u64::from(id)).map_err(failed("creating a vCPU"))?;
        fd.set_cpuid2(&vm.policy.for_vcpu(id)).map_err(failed("describing the processor to the guest"))?;
        // SAFETY: the descriptor is open as long as `fd` lives, which is longer than the borrow.
        let descriptor = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
        let map = || {
            RunPage::map(descriptor.as_fd(), vm.fd.run_size())
                .map_err(|source| Error::Kvm { step: "mapping a vCPU's shared page", source })
        };
        let page = map()?;
        kick.attach(map()?);
        let msrs = vm.msrs.get_or_init(|| MsrSet::of(&fd)).clone();
        let tsc_adjust = set_counter(&fd, vm.tsc_start, vm.native);
        vm.board.set_tsc_adjust(id, tsc_adjust);
        // The kernel knows itself which vCPUs wait for their start.
        let waits = id != 0 && vm.controllers == Controllers::User;
        let activity = if waits { Activity::WaitForStartup } else { Activity::Running };
        Ok(KvmVcpu {
            id,
            fd,
            page,
            kick,
            vm,
            msrs,
            activity,
            tsc_adjust,
            completing: false,
            stale: true,
            finisher: None,
        })
    }

    fn transfer(&self) -> Transfer<'_> {
        Transfer { vcpu: &self.fd, msrs: &self.msrs }
    }

    pub(super) fn load(&self, extent: Extent) -> Result<State, Error> {
        let mut state = self.transfer().load(extent)?;
        state.activity = if self.in_kernel() { self.transfer().activity()? } else { self.activity };
        state.msrs.tsc_adjust = self.tsc_adjust;
        Ok(state)
    }

    pub(super) fn store(&mut self, before: &State, state: &State, extent: Extent) -> Result<(), Error> {
        self.transfer().store_changes(before, state, extent)?;
        if !self.in_kernel() {
            self.activity = state.activity;
        } else if before.activity != state.activity {
            self.transfer().set_activity(state.activity)?;
        }
        self.stale = true;
        Ok(())
    }

    /// Whether the kernel keeps the local APIC, and with it HLT and the start of processors.
    pub(super) fn in_kernel(&self) -> bool {
        self.vm.controllers == Controllers::Kernel
    }

    fn run_to_exit(&mut self) -> Result<VcpuExit, Error> {
        loop {
            if self.kick.take() & STOP != 0 {
                return Ok(VcpuExit::Stopped);
            }
            if let Next::Return(exit) = self.take_events()? {
                return Ok(exit);
            }
            if self.activity != Activity::Running {
                self.kick.park();
                continue;
            }
            if !self.enter()? {
                continue;
            }
            if let Next::Return(exit) = self.handle_exit()? {
                return Ok(exit);
            }
        }
    }

    /// Runs the guest; false if it did not come to an exit.
    fn enter(&mut self) -> Result<bool, Error> {
        let chip = self.vm.board.irqchip();
        let priority = chip.task_priority(self.id);
        let pending = if self.in_kernel() {
            self.id == 0 && chip.pic_pending()
        } else {
            self.page.set_cr8(priority);
            chip.has_event(self.id)
        };
        self.page.request_interrupt_window(pending && !self.can_take_interrupt());
        if !self.kick.enter() {
            return Ok(false);
        }
        let result = self.fd.run().map(drop);
        self.kick.leave();
        self.vm.exits.fetch_add(1, Ordering::Relaxed);
        self.stale = false;
        self.completing = false;
        if !self.in_kernel() && self.page.cr8() != priority {
            self.vm.board.irqchip().set_task_priority(self.id, self.page.cr8());
        }
        match result {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Ok(false),
            Err(error) => Err(failed("running a vCPU")(error)),
        }
    }

    fn can_take_interrupt(&self) -> bool {
        !self.stale && self.page.ready_for_interrupt() && self.page.interrupt_flag()
    }

    /// Takes everything that the controllers have for this vCPU now.
    fn take_events(&mut self) -> Result<Next, Error> {
        if self.in_kernel() {
            return self.take_pic().map(|()| Next::Again);
        }
        loop {
            let running = self.activity != Activity::WaitForStartup;
            let accepts = Accepts { interrupts: running && self.can_take_interrupt(), nmi: running };
            // Until there is nothing left: whoever sent an event has notified once, and may not do so again.
            let Some(event) = self.vm.board.irqchip().take_event(self.id, accepts) else { break };
            match event {
                Event::Interrupt(vector) => {
                    self.vm.board.counters(self.id).count(Counted::Interrupt);
                    self.inject(vector)?;
                }
                Event::Nmi => self.fd.nmi().map_err(failed("injecting an NMI"))?,
                Event::Startup(_) if running => continue,
                Event::Init | Event::Startup(_) => {
                    if let Next::Return(exit) = self.reset(event)? {
                        return Ok(Next::Return(exit));
                    }
                    continue;
                }
            }
            self.activity = Activity::Running;
        }
        // A halted guest that may take an interrupt, but of which KVM says nothing certain, must run to find out.
        if self.activity == Activity::Halted
            && !self.can_take_interrupt()
            && (self.stale || self.page.interrupt_flag())
            && self.vm.board.irqchip().has_event(self.id)
        {
            self.activity = Activity::Running;
        }
        Ok(Next::Again)
    }

    /// Takes the PIC pair's interrupt: all that the kernel's local APICs do not know of.
    fn take_pic(&mut self) -> Result<(), Error> {
        let chip = self.vm.board.irqchip();
        let ready = self.id == 0 && chip.pic_pending() && self.can_take_interrupt();
        // Asking acknowledges: not before the guest can take it.
        let vector = if ready { chip.take_pic() } else { None };
        vector.map_or(Ok(()), |vector| self.inject(vector))
    }

    fn inject(&mut self, vector: u8) -> Result<(), Error> {
        // _IOW(KVMIO, 0x86, struct kvm_interrupt), linux/kvm.h.
        const KVM_INTERRUPT: libc::c_ulong = 0x4004_ae86;
        let interrupt = kvm_interrupt { irq: u32::from(vector) };
        // SAFETY: the descriptor is a vCPU's and the kernel only reads the structure.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), KVM_INTERRUPT, &raw const interrupt) };
        if result != 0 {
            return Err(Error::Kvm { step: "injecting an interrupt", source: std::io::Error::last_os_error() });
        }
        self.stale = true;
        Ok(())
    }

    /// INIT and start-up.
    fn reset(&mut self, event: Event) -> Result<Next, Error> {
        self.complete()?;
        let before = self.load(Extent::System)?;
        let result = self.finisher()?.accept(&before, event);
        // Most vCPUs never need it again.
        self.finisher = None;
        let Ok(state) = result else { return Ok(Next::Return(VcpuExit::Shutdown)) };
        if event == Event::Init {
            self.transfer().forget_events()?;
        }
        self.store(&before, &state, Extent::System)?;
        Ok(Next::Again)
    }

    fn handle_exit(&mut self) -> Result<Next, Error> {
        let exit = self.page.exit();
        match exit {
            Exit::Look => {}
            Exit::EndOfInterrupt { vector } => self.vm.board.irqchip().end_of_interrupt(vector),
            Exit::Halted => {
                self.vm.board.counters(self.id).count(Counted::Halt);
                self.activity = Activity::Halted;
            }
            Exit::Shutdown => return Ok(Next::Return(VcpuExit::Shutdown)),
            Exit::InternalError { suberror: KVM_INTERNAL_ERROR_EMULATION, .. } => return self.finish_instruction(),
            Exit::InternalError { suberror, data } => {
                return Err(Error::KvmInternal { suberror, data });
            }
            Exit::FailEntry { reason } => return Err(Error::KvmEntry { reason }),
            Exit::Other(reason) => return Err(Error::KvmExit { reason }),
            access => self.access(access),
        }
        Ok(Next::Again)
    }

    /// Hands an access to the board.
    fn access(&mut self, access: Exit) {
        self.completing = true;
        let board = &self.vm.board;
        match access {
            Exit::Port { .. } => board.counters(self.id).count(Counted::Port),
            Exit::Mmio { .. } => board.counters(self.id).count(Counted::Mmio),
            Exit::ReadMsr { .. } | Exit::WriteMsr { .. } => board.counters(self.id).count(Counted::Msr),
            _ => {}
        }
        match access {
            Exit::Port { port, size, count, offset, write } => {
                let data = self.page.port_data(offset, size.saturating_mul(count));
                for part in data.chunks_exact_mut(size) {
                    if write { board.port_write(port, part) } else { board.port_read(port, part) }
                }
            }
            Exit::Mmio { address, len, data, write: true } => board.mmio_write(self.id, address, &data[..len]),
            Exit::Mmio { address, len, mut data, write: false } => {
                board.mmio_read(self.id, address, &mut data[..len]);
                self.page.answer_mmio(data);
            }
            // The kernel asks only for what its own local APIC refuses.
            Exit::ReadMsr { index } | Exit::WriteMsr { index, .. } if self.in_kernel() && IrqChip::owns_msr(index) => {
                self.page.answer_write(false);
            }
            Exit::ReadMsr { index: MSR_TSC_ADJUST } => {
                self.page.answer_read(self.vm.native.then_some(self.tsc_adjust));
            }
            Exit::WriteMsr { index: index @ (MSR_TSC | MSR_TSC_ADJUST), value } => {
                let done = self.write_counter(index, value);
                self.page.answer_write(done);
            }
            Exit::ReadMsr { index } => self.page.answer_read(board.msr_read(self.id, index)),
            Exit::WriteMsr { index, value } => {
                let done = board.msr_write(self.id, index, value);
                if done && index == MSR_APIC_BASE {
                    self.page.set_apic_base(value);
                }
                self.page.answer_write(done);
            }
            _ => self.completing = false,
        }
    }

    /// The guest writes its counter, or the adjustment; false is #GP. Where ring 3 reads the host's counter whatever
    /// happens, the counter cannot be moved and there is no adjustment to write.
    fn write_counter(&mut self, index: u32, value: u64) -> bool {
        if !self.vm.native {
            tracing::debug!(vcpu = self.id, "the guest writes its time-stamp counter, which this host cannot move");
            return index == MSR_TSC;
        }
        let adjust = if index == MSR_TSC { value.wrapping_sub(self.vm.board.clock().tsc()) } else { value };
        self.set_tsc_adjust(adjust);
        true
    }

    /// Makes the guest's counter the machine's plus `adjust`, where that can be.
    fn set_tsc_adjust(&mut self, adjust: u64) {
        if adjust == self.tsc_adjust {
            return;
        }
        if !self.vm.native {
            tracing::debug!(vcpu = self.id, adjust, "this host cannot move the time-stamp counter");
            return;
        }
        if set_counter(&self.fd, self.vm.tsc_start.wrapping_sub(adjust), true) == 0 {
            self.tsc_adjust = adjust;
            self.vm.board.set_tsc_adjust(self.id, adjust);
        }
    }

    /// Lets KVM finish the instruction of the last access without going on to the next.
    fn complete(&mut self) -> Result<(), Error> {
        for _ in 0..MOST_COMPLETIONS {
            if !self.completing {
                return Ok(());
            }
            self.page.set_immediate_exit(true);
            let result = self.fd.run().map(drop);
            self.completing = false;
            match result {
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
                Err(error) => return Err(failed("completing a device access")(error)),
                // The instruction has another access to make.
                Ok(()) => match self.page.exit() {
                    access @ (Exit::Port { .. } | Exit::Mmio { .. }) => self.access(access),
                    Exit::Halted => self.activity = Activity::Halted,
                    _ => {}
                },
            }
        }
        Ok(())
    }

    /// Executes, on the software CPU, the instruction at which KVM gave up.
    fn finish_instruction(&mut self) -> Result<Next, Error> {
        let before = self.load(Extent::System)?;
        tracing::trace!(vcpu = self.id, "finishing the instruction at {:#x}", before.rip);
        self.vm.finished.fetch_add(1, Ordering::Relaxed);
        let state = match self.finisher()?.finish(&before) {
            Ok(state) => state,
            Err(TripleFault) => return Ok(Next::Return(VcpuExit::Shutdown)),
        };
        self.store(&before, &state, Extent::System)?;
        Ok(Next::Again)
    }

    pub(super) fn finisher(&mut self) -> Result<&mut Finisher, Error> {
        if self.finisher.is_none() {
            self.finisher = Some(Finisher::new(self.vm.soft_shared()?, self.id));
        }
        Ok(self.finisher.as_mut().expect("made just now"))
    }
}

/// Makes the guest's counter the machine's, where KVM can; returns by how much it is ahead.
fn set_counter(fd: &VcpuFd, start: u64, native: bool) -> u64 {
    // _IOW(KVMIO, 0xe1, struct kvm_device_attr), linux/kvm.h.
    const KVM_SET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee1;
    // Where ring 3 reads the host's counter, ring 0 must read the same.
    let offset = if native { start.wrapping_neg() } else { 0 };
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: &raw const offset as u64,
        flags: 0,
    };
    // SAFETY: the descriptor is a vCPU's; the kernel reads the structure and the eight bytes that it points to.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), KVM_SET_DEVICE_ATTR, &raw const attribute) };
    if result == 0 && native { 0 } else { start }
}

impl Vcpu for KvmVcpu {
    fn state(&self) -> State {
        self.load(Extent::All).unwrap_or_else(|error| {
            tracing::error!("{error}");
            State::default()
        })
    }

    fn set_state(&mut self, state: &State) {
        if let Err(error) = self.try_set_state(state) {
            tracing::error!("{error}");
        }
    }

    fn try_set_state(&mut self, state: &State) -> Result<(), Error> {
        self.complete()?;
        self.transfer().forget_events()?;
        let before = self.load(Extent::All)?;
        self.store(&before, state, Extent::All)?;
        self.set_tsc_adjust(state.msrs.tsc_adjust);
        Ok(())
    }

    fn local_apic(&self) -> Result<LapicState, Error> {
        self.load_local_apic()
    }

    fn set_local_apic(&mut self, state: &LapicState) -> Result<(), Error> {
        self.store_local_apic(state)
    }

    fn run(&mut self) -> VcpuExit {
        self.kick.adopt_thread();
        let exit = self.run_to_exit().and_then(|exit| {
            self.complete()?;
            // A processor that has shut down keeps its registers as they were.
            let settled = if exit == VcpuExit::Stopped { self.settle()? } else { None };
            Ok(settled.unwrap_or(exit))
        });
        exit.unwrap_or_else(|error| {
            tracing::error!(vcpu = self.id, "{error}");
            VcpuExit::Failed
        })
    }

    fn handle(&self) -> Arc<dyn VcpuHandle> {
        self.kick.clone()
    }

    fn thread(&self) -> Kind {
        Kind::VcpuKvm
    }

    fn instructions(&self) -> Option<u64> {
        None
    }
}

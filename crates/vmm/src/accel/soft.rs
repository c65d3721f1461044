//! The software accelerator: [`queztl_soft_cpu`] behind the seam.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use queztl_guest_memory::GuestRam;
use queztl_soft_cpu::cpuid::{CpuidPolicy, CpuidResult, CpuidTable};
use queztl_soft_cpu::platform::{Accepts, Event, Idle, Platform};
use queztl_soft_cpu::state::{Activity, BadState};
use queztl_soft_cpu::{Control, Cpu, Exit, Shared, State, TRANSLATION_THRESHOLD};

use super::{Accelerator, Counted, DirtyPages, Error, Vcpu, VcpuExit, VcpuHandle, Vm, dirty};
use crate::board::Board;
use crate::config::{SoftOptions, SoftTranslator};
use crate::confine::Kind;
use crate::irqchip::LapicState;

/// Runs guests on the software CPU: everywhere, without privileges.
#[derive(Debug)]
pub struct Soft {
    options: SoftOptions,
}

impl Soft {
    /// What it is called in snapshots.
    pub const NAME: &'static str = "soft";

    /// The software accelerator with these options.
    pub fn new(options: SoftOptions) -> Soft {
        Soft { options }
    }
}

impl Accelerator for Soft {
    fn name(&self) -> &'static str {
        Soft::NAME
    }

    fn create_vm(&self, ram: Arc<GuestRam>, board: Arc<Board>, vcpus: u32) -> Result<Box<dyn Vm>, Error> {
        let mut cpuid = CpuidPolicy::new(&board.cpuid_config(vcpus));
        if vcpus > 1 {
            offer_wake_ups(&mut cpuid);
        }
        if board.clock().is_instruction_counted() {
            hide_random_numbers(&mut cpuid);
        }
        let platform = Arc::new(BoardPlatform::new(board.clone()));
        let host_cpus = std::thread::available_parallelism().map_or(usize::MAX, usize::from);
        let shared = Shared::new(ram.clone(), platform, cpuid, vcpus).map_err(Error::CodeMemory)?;
        let shared = Arc::new(shared.on_host_cpus(host_cpus));
        for id in 0..vcpus {
            let control = shared.control(id);
            board.irqchip().set_waker(id, Arc::new(move || control.notify()));
        }
        drop_paths_on_unplug(&ram, &shared);
        let translator = self.options.translator;
        Ok(Box::new(SoftVm { shared, ram, board, translator, logging: AtomicBool::new(false) }))
    }
}

/// When memory is unplugged, the CPUs of `shared` drop their ways to it. What is plugged they find by themselves.
pub(super) fn drop_paths_on_unplug(ram: &GuestRam, shared: &Arc<Shared>) {
    let shared = Arc::downgrade(shared);
    ram.watch_plugging(move |change| {
        if !change.plugged
            && let Some(shared) = shared.upgrade()
        {
            shared.drop_all_paths();
        }
        Ok(())
    });
}

/// KVM_FEATURE_PV_UNHALT: a vCPU that waits for a spin lock sleeps, and the one that frees the lock wakes it. With more
/// vCPUs than host CPUs, spinning would take the time of the very vCPU it waits for.
fn offer_wake_ups(cpuid: &mut CpuidTable) {
    const LEAF_PARAVIRTUAL: u32 = 0x4000_0001;
    const EAX_PV_UNHALT: u32 = 1 << 7;
    cpuid.edit(LEAF_PARAVIRTUAL, 0, |leaf| leaf.eax |= EAX_PV_UNHALT);
}

/// No RDRAND and no RDSEED: a run that repeats exactly has nothing random in it.
fn hide_random_numbers(cpuid: &mut CpuidTable) {
    const LEAF1_ECX_RDRAND: u32 = 1 << 30;
    const LEAF7_EBX_RDSEED: u32 = 1 << 18;
    cpuid.edit(1, 0, |leaf| leaf.ecx &= !LEAF1_ECX_RDRAND);
    cpuid.edit(7, 0, |leaf| leaf.ebx &= !LEAF7_EBX_RDSEED);
}

struct SoftVm {
    shared: Arc<Shared>,
    ram: Arc<GuestRam>,
    board: Arc<Board>,
    translator: SoftTranslator,
    /// The trackers always run; this says whether anybody has asked.
    logging: AtomicBool,
}

impl SoftVm {
    /// Takes the trackers' bits. Until its fast write paths are dropped, a CPU may write without a mark, but only to
    /// pages that are in the result.
    fn take_tracked(&self) -> Vec<DirtyPages> {
        let log = dirty::take_tracked(&self.ram);
        self.shared.drop_write_paths();
        log
    }
}

impl Vm for SoftVm {
    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, Error> {
        let mut cpu = Cpu::new(self.shared.clone(), id);
        cpu.set_translator(match self.translator {
            SoftTranslator::Off => None,
            SoftTranslator::On => Some(TRANSLATION_THRESHOLD),
            SoftTranslator::Eager => Some(0),
        });
        if id != 0 {
            cpu.set_state(&State { activity: Activity::WaitForStartup, ..State::default() });
        }
        Ok(Box::new(SoftVcpu { cpu, id, board: self.board.clone() }))
    }

    fn processor(&self) -> Vec<((u32, u32), CpuidResult)> {
        self.shared.cpuid().leaves().collect()
    }

    fn check_state(&self, state: &State) -> Result<(), BadState> {
        self.shared.cpuid().check(state)
    }

    fn start_dirty_log(&self) -> Result<(), Error> {
        self.take_tracked();
        self.logging.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn take_dirty_log(&self) -> Result<Vec<DirtyPages>, Error> {
        Ok(if self.logging.load(Ordering::Relaxed) { self.take_tracked() } else { Vec::new() })
    }

    fn stop_dirty_log(&self) -> Result<(), Error> {
        self.logging.store(false, Ordering::Relaxed);
        Ok(())
    }
}

struct SoftVcpu {
    cpu: Cpu,
    id: u32,
    board: Arc<Board>,
}

impl Vcpu for SoftVcpu {
    fn state(&self) -> State {
        self.cpu.state()
    }

    fn set_state(&mut self, state: &State) {
        self.cpu.set_state(state);
        self.board.set_tsc_adjust(self.id, state.msrs.tsc_adjust);
    }

    fn local_apic(&self) -> Result<LapicState, Error> {
        Ok(self.board.irqchip().lapic_state(self.id).unwrap_or_default())
    }

    fn set_local_apic(&mut self, state: &LapicState) -> Result<(), Error> {
        Ok(self.board.irqchip().set_lapic_state(self.id, state)?)
    }

    fn run(&mut self) -> VcpuExit {
        match self.cpu.run() {
            Exit::Stopped => VcpuExit::Stopped,
            Exit::Shutdown => VcpuExit::Shutdown,
        }
    }

    fn handle(&self) -> Arc<dyn VcpuHandle> {
        Arc::new(SoftHandle { control: self.cpu.control() })
    }

    fn thread(&self) -> Kind {
        Kind::VcpuSoft
    }

    fn instructions(&self) -> Option<u64> {
        Some(self.cpu.instructions())
    }
}

impl Drop for SoftVcpu {
    fn drop(&mut self) {
        let cost = self.cpu.translator_statistics();
        if cost.blocks > 0 {
            tracing::info!(
                vcpu = self.id,
                blocks = cost.blocks,
                instructions = cost.instructions,
                code_bytes = cost.code_bytes,
                milliseconds = cost.time.as_secs_f64() * 1e3,
                evictions = cost.evictions,
                "translated"
            );
        }
    }
}

struct SoftHandle {
    control: Arc<Control>,
}

impl VcpuHandle for SoftHandle {
    fn notify(&self) {
        self.control.notify();
    }

    fn stop(&self) {
        self.control.stop();
    }

    fn halted_ns(&self) -> u64 {
        self.control.parked_ns()
    }
}

/// The board, as the software CPU sees its surroundings.
pub(super) struct BoardPlatform {
    board: Arc<Board>,
}

impl BoardPlatform {
    pub fn new(board: Arc<Board>) -> BoardPlatform {
        BoardPlatform { board }
    }

    fn count(&self, cpu: u32, what: Counted) {
        self.board.counters(cpu).count(what);
    }

    /// Moves instruction-counted time to `instructions` and fires what has become due.
    fn advance(&self, instructions: u64) {
        let clock = self.board.clock();
        if clock.is_instruction_counted() {
            clock.set_instructions(instructions);
            self.board.timers().run_expired(clock.now_ns());
        }
    }

    /// The instruction count of the next deadline.
    fn next_deadline(&self) -> Option<u64> {
        self.board.clock().instructions_at(self.board.timers().next_deadline()?)
    }
}

/// How often instruction-counted time is moved forward when no timer is due, in instructions: devices that are read
/// without the TSC in between see time pass at this grain.
const GRAIN: u64 = 10_000;

impl Platform for BoardPlatform {
    fn mmio_read(&self, cpu: u32, address: u64, data: &mut [u8]) {
        self.count(cpu, Counted::Mmio);
        self.board.mmio_read(cpu, address, data);
    }

    fn mmio_write(&self, cpu: u32, address: u64, data: &[u8]) {
        self.count(cpu, Counted::Mmio);
        self.board.mmio_write(cpu, address, data);
    }

    fn port_read(&self, cpu: u32, port: u16, data: &mut [u8]) {
        self.count(cpu, Counted::Port);
        self.board.port_read(port, data);
    }

    fn port_write(&self, cpu: u32, port: u16, data: &[u8]) {
        self.count(cpu, Counted::Port);
        self.board.port_write(port, data);
    }

    fn msr_read(&self, cpu: u32, msr: u32) -> Option<u64> {
        self.count(cpu, Counted::Msr);
        self.board.msr_read(cpu, msr)
    }

    fn msr_write(&self, cpu: u32, msr: u32, value: u64) -> bool {
        self.count(cpu, Counted::Msr);
        self.board.msr_write(cpu, msr, value)
    }

    fn take_event(&self, cpu: u32, accepts: Accepts) -> Option<Event> {
        let event = self.board.irqchip().take_event(cpu, accepts);
        if matches!(event, Some(Event::Interrupt(_))) {
            self.count(cpu, Counted::Interrupt);
        }
        event
    }

    fn task_priority(&self, cpu: u32) -> u8 {
        self.board.irqchip().task_priority(cpu)
    }

    fn set_task_priority(&self, cpu: u32, class: u8) {
        self.board.irqchip().set_task_priority(cpu, class);
    }

    fn tsc(&self, _cpu: u32, instructions: u64) -> u64 {
        self.board.clock().set_instructions(instructions);
        self.board.clock().tsc()
    }

    fn set_tsc_adjust(&self, cpu: u32, adjust: u64) {
        self.board.set_tsc_adjust(cpu, adjust);
    }

    fn instruction_limit(&self, _cpu: u32, instructions: u64) -> u64 {
        if !self.board.clock().is_instruction_counted() {
            return u64::MAX;
        }
        self.advance(instructions);
        let next = instructions + GRAIN;
        self.next_deadline().map_or(next, |deadline| deadline.clamp(instructions + 1, next))
    }

    fn idle(&self, cpu: u32, instructions: u64) -> Idle {
        self.count(cpu, Counted::Halt);
        if !self.board.clock().is_instruction_counted() {
            return Idle::Park;
        }
        self.advance(instructions);
        match self.next_deadline() {
            _ if self.board.irqchip().has_event(cpu) => Idle::SkipTo(instructions),
            Some(deadline) => Idle::SkipTo(deadline.max(instructions + 1)),
            None => Idle::Park,
        }
    }

    fn entered_user_mode(&self, _cpu: u32) {
        self.board.user_mode_entered();
    }
}

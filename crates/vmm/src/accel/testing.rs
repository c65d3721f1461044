//! A bench for tests of accelerators: a machine of 2 MiB with one device and a guest of a few instructions.
//!
//! A guest ends with UD2 and no interrupt descriptor table: a triple fault leaves its registers as they were.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use queztl_guest_memory::{GuestRam, RamConfig};
use queztl_soft_cpu::cpuid::CpuidResult;
use queztl_soft_cpu::state::{BadState, Segment, State, Table, seg};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::kvm::{Controllers, Kvm};
use super::probe::KvmSupport;
use super::soft::Soft;
use super::{Accelerator, DirtyPages, Error, MessageBinding, Vcpu, VcpuHandle, Vm};
use crate::board::{Board, BoardParts};
use crate::bus::{Bus, BusDevice};
use crate::clock::Clock;
use crate::config::{SoftOptions, SoftTranslator};
use crate::devices::legacy::{MachineEvents, PanicKind};
use crate::irqchip::{IrqChip, Msi};
use crate::kvmclock::KvmClock;
use crate::layout::LAPIC_BASE;
use crate::timers::Timers;

pub const CODE: u64 = 0x1000;
pub const TABLES: u64 = 0x2000;
pub const GDT: u64 = 0x5000;
pub const IDT: u64 = 0x6000;
pub const HANDLER: u64 = 0x7000;
pub const STACK: u64 = 0xf000;
/// Free for guests' data, up to the end of RAM.
pub const DATA: u64 = 0x1_0000;
/// A device register in the hole of the physical addresses, mapped at the same linear address.
pub const DEVICE: u64 = 0x30_0000;
pub const RAM_BYTES: u64 = 2 << 20;
/// Hot-plug memory, where there is some, and its linear address.
pub const HOTPLUG: u64 = 4 << 30;
pub const HOTPLUG_BYTES: u64 = 4 << 20;
pub const HOTPLUG_LINEAR: u64 = 0x40_0000;

/// Of page-table entries.
const PRESENT_WRITABLE_USER: u64 = 7;
const LARGE: u64 = 1 << 7;

pub const UD2: [u8; 2] = [0x0f, 0x0b];
pub const IRETQ: [u8; 2] = [0x48, 0xcf];

/// `mov al, byte; out 0xe9, al`
pub fn say(byte: u8) -> [u8; 4] {
    [0xb0, byte, 0xe6, 0xe9]
}

/// `mov edi, register; mov dword [rdi], value`, for the local APIC.
pub fn apic_write(register: u32, value: u32) -> Vec<u8> {
    let address = (LAPIC_BASE as u32 + register).to_le_bytes();
    code(&[&[0xbf], &address, &[0xc7, 0x07], &value.to_le_bytes()])
}

pub fn code(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// Waits, for some seconds at the longest.
#[track_caller]
pub fn wait_for(what: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !what() {
        assert!(Instant::now() < deadline, "it does not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Remembers what is written; reads give 0x5a.
#[derive(Default)]
pub struct Recorder {
    pub written: Mutex<Vec<u8>>,
    pub on_read: Mutex<Option<Arc<dyn VcpuHandle>>>,
}

impl BusDevice for Recorder {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0x5a);
        if let Some(handle) = self.on_read.lock().unwrap().take() {
            handle.stop();
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        self.written.lock().unwrap().extend(data);
    }
}

struct NoEvents;

impl MachineEvents for NoEvents {
    fn power_off(&self) {}
    fn reset(&self) {}
    fn guest_panicked(&self, _kind: PanicKind) {}
    fn debug_exit(&self, _value: u32) {}
    fn boot_mark(&self) {}
}

/// Every accelerator of this host, with every kind of controllers; says which there is not.
pub fn accelerators() -> Vec<(String, Box<dyn Accelerator>)> {
    let soft = |translator| Box::new(Soft::new(SoftOptions { translator, ..SoftOptions::default() }));
    let mut all: Vec<(String, Box<dyn Accelerator>)> =
        vec![("soft".into(), soft(SoftTranslator::Off)), ("soft, translator".into(), soft(SoftTranslator::Eager))];
    for controllers in [Controllers::User, Controllers::Kernel] {
        match Kvm::open(KvmSupport::probe()) {
            Ok(kvm) => all.push((format!("kvm, {controllers:?}"), Box::new(kvm.with_controllers(controllers)))),
            Err(error) => println!("skipped: KVM with {controllers:?} controllers: {error}"),
        }
    }
    all
}

impl Vm for Box<dyn Vm> {
    fn create_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, Error> {
        (**self).create_vcpu(id)
    }

    fn processor(&self) -> Vec<((u32, u32), CpuidResult)> {
        (**self).processor()
    }

    fn check_state(&self, state: &State) -> Result<(), BadState> {
        (**self).check_state(state)
    }

    fn start_dirty_log(&self) -> Result<(), Error> {
        (**self).start_dirty_log()
    }

    fn take_dirty_log(&self) -> Result<Vec<DirtyPages>, Error> {
        (**self).take_dirty_log()
    }

    fn stop_dirty_log(&self) -> Result<(), Error> {
        (**self).stop_dirty_log()
    }

    fn bind_notification(&self, address: u64, value: u32, event: &EventFd) -> Result<bool, Error> {
        (**self).bind_notification(address, value, event)
    }

    fn bind_message(&self, msi: Msi, event: &EventFd) -> Result<Option<MessageBinding>, Error> {
        (**self).bind_message(msi, event)
    }

    fn change_message(&self, binding: MessageBinding, msi: Msi) -> Result<(), Error> {
        (**self).change_message(binding, msi)
    }

    fn unbind_message(&self, binding: MessageBinding, event: &EventFd) -> Result<(), Error> {
        (**self).unbind_message(binding, event)
    }
}

pub struct Bench<V> {
    pub vm: V,
    pub ram: Arc<GuestRam>,
    pub board: Arc<Board>,
    pub recorder: Arc<Recorder>,
}

impl Bench<Box<dyn Vm>> {
    /// A machine of `vcpus` processors on `accelerator`, with `code` in memory.
    pub fn on(accelerator: &dyn Accelerator, code: &[u8], vcpus: u32) -> Self {
        Bench::build(code, vcpus, |ram, board| accelerator.create_vm(ram, board, vcpus).unwrap())
    }

    /// The same with one vCPU and [`HOTPLUG_BYTES`] of hot-plug memory, mapped from [`HOTPLUG_LINEAR`] on. Nothing of it is
    /// plugged.
    pub fn with_hotplug(accelerator: &dyn Accelerator, code: &[u8]) -> Self {
        let ram = GuestRam::with_hotplug(&RamConfig::plain(RAM_BYTES), HOTPLUG_BYTES).unwrap();
        let create = |ram, board| accelerator.create_vm(ram, board, 1).unwrap();
        let bench = Bench::build_over(ram, code, 1, Clock::real_time(), create);
        for block in 0..HOTPLUG_BYTES >> 21 {
            let entry = (HOTPLUG + (block << 21)) | LARGE | PRESENT_WRITABLE_USER;
            bench.put(TABLES + 0x2000 + ((HOTPLUG_LINEAR >> 21) + block) * 8, &entry.to_le_bytes());
        }
        bench
    }

    /// Another machine on `accelerator`, with this one's RAM and time: a machine that has been moved, but for its vCPUs.
    pub fn moved_to(&self, accelerator: &dyn Accelerator, vcpus: u32) -> Self {
        let clock = Clock::real_time().resumed_at(self.board.clock().tsc());
        let create = |ram, board| accelerator.create_vm(ram, board, vcpus).unwrap();
        let moved = Bench::build_at(&[], vcpus, clock, create);
        let mut ram = vec![0; RAM_BYTES as usize];
        self.ram.memory().read_slice(&mut ram, GuestAddress(0)).unwrap();
        moved.put(0, &ram);
        moved
    }
}

impl<V: Vm> Bench<V> {
    /// A machine that `create` makes, with `code` in memory.
    pub fn build(code: &[u8], vcpus: u32, create: impl FnOnce(Arc<GuestRam>, Arc<Board>) -> V) -> Bench<V> {
        Bench::build_at(code, vcpus, Clock::real_time(), create)
    }

    fn build_at(
        code: &[u8],
        vcpus: u32,
        clock: Clock,
        create: impl FnOnce(Arc<GuestRam>, Arc<Board>) -> V,
    ) -> Bench<V> {
        Bench::build_over(GuestRam::new(RAM_BYTES).unwrap(), code, vcpus, clock, create)
    }

    fn build_over(
        ram: GuestRam,
        code: &[u8],
        vcpus: u32,
        clock: Clock,
        create: impl FnOnce(Arc<GuestRam>, Arc<Board>) -> V,
    ) -> Bench<V> {
        let ram = Arc::new(ram);
        let clock = Arc::new(clock);
        let timers = Timers::new(clock.clone());
        let irqchip = IrqChip::new(vcpus, clock.clone(), &timers);
        let recorder = Arc::new(Recorder::default());
        let (mut ports, mut mmio) = (Bus::default(), Bus::default());
        ports.insert(0xe9, 1, recorder.clone()).unwrap();
        mmio.insert(DEVICE, 8, recorder.clone()).unwrap();
        irqchip.insert_into(&mut ports, &mut mmio).unwrap();
        let kvmclock = KvmClock::new(ram.memory().clone(), clock.clone(), vcpus);
        let parts = BoardParts {
            ports,
            mmio,
            irqchip,
            clock,
            timers,
            kvmclock,
            events: Arc::new(NoEvents),
            socket_vcpus: vcpus,
        };
        let board = Arc::new(Board::new(parts));
        let vm = create(ram.clone(), board.clone());
        let bench = Bench { vm, ram, board, recorder };
        bench.fill(code);
        bench
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.ram.memory().write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub fn get(&self, at: u64) -> u64 {
        self.ram.memory().read_obj(GuestAddress(at)).unwrap()
    }

    /// Code; identity tables for the first 4 MiB and the local APICs, for both rings; a GDT with code at 0x08 and data
    /// at 0x10.
    fn fill(&self, code: &[u8]) {
        self.put(CODE, code);
        self.put(TABLES, &((TABLES + 0x1000) | PRESENT_WRITABLE_USER).to_le_bytes());
        self.put(TABLES + 0x1000, &((TABLES + 0x2000) | PRESENT_WRITABLE_USER).to_le_bytes());
        for page in 0..2_u64 {
            let entry = page << 21 | LARGE | PRESENT_WRITABLE_USER;
            self.put(TABLES + 0x2000 + page * 8, &entry.to_le_bytes());
        }
        // The local APICs' registers, in the fourth GiB.
        const APIC_TABLE: u64 = 0xa000;
        self.put(TABLES + 0x1000 + 3 * 8, &(APIC_TABLE | PRESENT_WRITABLE_USER).to_le_bytes());
        let apic = LAPIC_BASE | LARGE | PRESENT_WRITABLE_USER;
        self.put(APIC_TABLE + (LAPIC_BASE >> 21 & 0x1ff) * 8, &apic.to_le_bytes());
        self.put(GDT + 8, &0x00af_9b00_0000_ffff_u64.to_le_bytes());
        self.put(GDT + 16, &0x00cf_9300_0000_ffff_u64.to_le_bytes());
    }

    /// `code`, of at most 128 bytes, handles `vector` in ring 0.
    pub fn handle(&self, vector: u8, code: &[u8]) {
        assert!(code.len() <= 128);
        let handler = HANDLER + u64::from(vector % 32) * 128;
        let gate = (handler & 0xffff) | 0x08 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
        self.put(IDT + u64::from(vector) * 16, &gate.to_le_bytes());
        self.put(handler, code);
    }

    /// vCPU 0 at [`CODE`] in 64-bit mode.
    pub fn start(&self) -> Box<dyn Vcpu> {
        self.start_vcpu(0)
    }

    /// A vCPU at [`CODE`] in 64-bit mode, with its number in RBX and a stack that 16 vCPUs do not share.
    pub fn start_vcpu(&self, id: u32) -> Box<dyn Vcpu> {
        let mut vcpu = self.vm.create_vcpu(id).unwrap();
        let mut state = long_mode(vcpu.state());
        state.activity = queztl_soft_cpu::state::Activity::Running;
        state.gpr[3] = u64::from(id);
        state.gpr[4] -= u64::from(id % 16) * 0x200;
        vcpu.set_state(&state);
        vcpu
    }

    /// Raises a legacy interrupt line.
    pub fn raise(&self, line: u32) {
        crate::irq::InterruptSink::set_level(self.board.irqchip(), line, true);
    }

    pub fn said(&self) -> Vec<u8> {
        self.recorder.written.lock().unwrap().clone()
    }
}

pub fn long_mode(mut state: State) -> State {
    let data = Segment { base: 0, limit: u32::MAX, selector: 0x10, attributes: 0xc093 };
    state.segments = [data; 6];
    state.segments[seg::CS] = Segment { selector: 0x08, attributes: 0xa09b, ..data };
    state.gdtr = Table { base: GDT, limit: 0xff };
    state.idtr = Table { base: 0, limit: 0 };
    (state.cr0, state.cr3, state.cr4, state.efer) = (0x8000_0031, TABLES, 0x620, 0x500);
    (state.rip, state.rflags) = (CODE, 2);
    state.gpr = [0; 16];
    state.gpr[4] = STACK;
    state
}

pub fn with_idt(vcpu: &mut Box<dyn Vcpu>) {
    let mut state = vcpu.state();
    state.idtr = Table { base: IDT, limit: 0xfff };
    vcpu.set_state(&state);
}

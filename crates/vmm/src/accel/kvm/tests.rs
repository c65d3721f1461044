//! Guests of a few instructions on the host's KVM. Without one, the tests say so and pass.
//!
//! A guest ends with UD2 and no interrupt descriptor table: a triple fault leaves its registers as they were.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use queztl_guest_memory::GuestRam;
use queztl_soft_cpu::state::{Activity, Segment, Table, seg};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::accel::{State, Vcpu, VcpuExit, VcpuHandle, Vm};
use crate::board::BoardParts;
use crate::bus::{Bus, BusDevice};
use crate::clock::Clock;
use crate::devices::legacy::{MachineEvents, PanicKind};
use crate::irqchip::IrqChip;
use crate::kvmclock::KvmClock;
use crate::layout::LAPIC_BASE;
use crate::timers::Timers;

const CODE: u64 = 0x1000;
const TABLES: u64 = 0x2000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const HANDLER: u64 = 0x7000;
const STACK: u64 = 0xf000;
/// A device register in the hole of the physical addresses, mapped at the same linear address.
const DEVICE: u64 = 0x30_0000;
const RAM_BYTES: u64 = 2 << 20;

const UD2: [u8; 2] = [0x0f, 0x0b];
/// `mov al, byte; out 0xe9, al`
fn say(byte: u8) -> [u8; 4] {
    [0xb0, byte, 0xe6, 0xe9]
}

/// Remembers what is written; reads give 0x5a.
#[derive(Default)]
struct Recorder {
    written: Mutex<Vec<u8>>,
    on_read: Mutex<Option<Arc<dyn VcpuHandle>>>,
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

struct Bench {
    vm: KvmVm,
    ram: Arc<GuestRam>,
    board: Arc<Board>,
    recorder: Arc<Recorder>,
}

impl Bench {
    /// A machine with `code` in memory, or nothing where the host has no KVM.
    fn new(code: &[u8], vcpus: u32) -> Option<Bench> {
        Bench::with(code, vcpus, None)
    }

    fn with(code: &[u8], vcpus: u32, controllers: Option<Controllers>) -> Option<Bench> {
        let kvm = match Kvm::open(KvmSupport::probe()) {
            Ok(kvm) => match controllers {
                Some(controllers) => kvm.with_controllers(controllers),
                None => kvm,
            },
            Err(error) => {
                println!("skipped: {error}");
                return None;
            }
        };
        let ram = Arc::new(GuestRam::new(RAM_BYTES).unwrap());
        let clock = Arc::new(Clock::real_time());
        let timers = Timers::new(clock.clone());
        let irqchip = IrqChip::new(vcpus, clock.clone(), &timers);
        let recorder = Arc::new(Recorder::default());
        let (mut ports, mut mmio) = (Bus::default(), Bus::default());
        ports.insert(0xe9, 1, recorder.clone()).unwrap();
        mmio.insert(DEVICE, 8, recorder.clone()).unwrap();
        irqchip.insert_into(&mut ports, &mut mmio).unwrap();
        let kvmclock = KvmClock::new(ram.memory().clone(), clock.clone(), vcpus);
        let parts = BoardParts { ports, mmio, irqchip, clock, timers, kvmclock, events: Arc::new(NoEvents) };
        let board = Arc::new(Board::new(parts));
        let vm = kvm.create(ram.clone(), board.clone(), vcpus).unwrap();
        let bench = Bench { vm, ram, board, recorder };
        bench.fill(code);
        Some(bench)
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.ram.memory().write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn get(&self, at: u64) -> u64 {
        self.ram.memory().read_obj(GuestAddress(at)).unwrap()
    }

    /// Code; identity tables for the first GiB, for both rings; a GDT with code at 0x08.
    fn fill(&self, code: &[u8]) {
        const PRESENT_WRITABLE_USER: u64 = 7;
        const LARGE: u64 = 1 << 7;
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
    }

    /// `code` handles `vector` in ring 0.
    fn handle(&self, vector: u8, code: &[u8]) {
        let gate = (HANDLER & 0xffff) | 0x08 << 16 | 0x8e00 << 32 | (HANDLER >> 16 & 0xffff) << 48;
        self.put(IDT + u64::from(vector) * 16, &gate.to_le_bytes());
        self.put(HANDLER, code);
    }

    /// vCPU 0 at [`CODE`] in 64-bit mode.
    fn start(&self) -> Box<dyn Vcpu> {
        let mut vcpu = self.vm.create_vcpu(0).unwrap();
        let state = long_mode(vcpu.state());
        vcpu.set_state(&state);
        vcpu
    }

    /// Raises a legacy interrupt line.
    fn raise(&self, line: u32) {
        crate::irq::InterruptSink::set_level(self.board.irqchip(), line, true);
    }

    fn said(&self) -> Vec<u8> {
        self.recorder.written.lock().unwrap().clone()
    }
}

fn long_mode(mut state: State) -> State {
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

fn with_idt(vcpu: &mut Box<dyn Vcpu>) {
    let mut state = vcpu.state();
    state.idtr = Table { base: IDT, limit: 0xfff };
    vcpu.set_state(&state);
}

fn code(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

#[test]
fn ports_and_memory_are_reached_and_a_triple_fault_ends_the_run() {
    // in al, 0xe9; mov [0x8000], al
    let program = code(&[&say(b'K'), &[0xe4, 0xe9, 0x88, 0x04, 0x25, 0, 0x80, 0, 0], &UD2]);
    let Some(bench) = Bench::new(&program, 1) else { return };
    let mut vcpu = bench.start();
    assert_eq!(vcpu.run(), VcpuExit::Shutdown);
    assert_eq!((bench.said(), bench.get(0x8000)), (b"K".to_vec(), 0x5a));
    assert_eq!((vcpu.state().rip, vcpu.state().gpr[0]), (CODE + program.len() as u64 - 2, 0x5a));
}

#[test]
fn registers_survive_the_way_into_kvm_and_back() {
    let Some(bench) = Bench::new(&UD2, 1) else { return };
    let mut vcpu = bench.start();
    let mut state = vcpu.state();
    for (index, register) in state.gpr.iter_mut().enumerate() {
        *register = 0x1111_0000_0000 + index as u64;
    }
    (state.msrs.lstar, state.msrs.star, state.msrs.kernel_gs_base) = (0x1234, 0x0023_0010 << 32, 0x7fff_0000);
    state.fpu.legacy[32..40].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 0x80]);
    state.fpu.vectors[3].0[..16].copy_from_slice(&[7; 16]);
    (state.rflags, state.cr2, state.dr[0]) = (0x203, 0xdead_b000, 0x4444);
    vcpu.set_state(&state);
    assert_eq!(vcpu.state(), state);
}

#[test]
fn an_access_is_complete_before_registers_leave() {
    // mov eax, [DEVICE]; jmp $
    let address = (DEVICE as u32).to_le_bytes();
    let program = code(&[&[0x8b, 0x04, 0x25], &address, &[0xeb, 0xfe]]);
    let Some(bench) = Bench::new(&program, 1) else { return };
    let mut vcpu = bench.start();
    *bench.recorder.on_read.lock().unwrap() = Some(vcpu.handle());
    assert_eq!(vcpu.run(), VcpuExit::Stopped);
    assert_eq!((vcpu.state().gpr[0], vcpu.state().rip), (0x5a5a_5a5a, CODE + 7));
}

#[test]
fn a_stop_reaches_a_vcpu_that_spins_sleeps_or_has_not_started() {
    for program in [&[0xeb, 0xfe][..], &[0xf4, 0xeb, 0xfd]] {
        let Some(bench) = Bench::new(program, 1) else { return };
        let mut vcpu = bench.start();
        let handle = vcpu.handle();
        handle.stop();
        assert_eq!(vcpu.run(), VcpuExit::Stopped);
        let start = Instant::now();
        for _ in 0..20 {
            let runner = std::thread::spawn(move || {
                let exit = vcpu.run();
                (vcpu, exit)
            });
            std::thread::sleep(Duration::from_millis(1));
            handle.stop();
            let (back, exit) = runner.join().unwrap();
            assert_eq!(exit, VcpuExit::Stopped);
            vcpu = back;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }
}

#[test]
fn what_kvm_cannot_execute_is_finished_with_its_exception() {
    // cmpxchg16b [0x8000]; int3
    let program = [0x48, 0x0f, 0xc7, 0x0c, 0x25, 0, 0x80, 0, 0, 0xcc];
    let Some(bench) = Bench::new(&program, 1) else { return };
    bench.handle(3, &code(&[&say(b'3'), &UD2]));
    let mut vcpu = bench.start();
    with_idt(&mut vcpu);
    let mut state = vcpu.state();
    (state.gpr[3], state.gpr[1]) = (0xaaaa, 0xbbbb);
    vcpu.set_state(&state);
    assert_eq!(vcpu.run(), VcpuExit::Shutdown);
    assert_eq!((bench.get(0x8000), bench.get(0x8008), bench.said()), (0xaaaa, 0xbbbb, b"3".to_vec()));
    println!("finished by the software CPU: {}", bench.vm.finished_instructions());
}

#[test]
fn code_that_kvm_wrote_is_not_stale_on_the_software_cpu() {
    // again: cmpxchg16b [0x8000]; mov byte [CODE + 5], 0x10, which makes that [0x8010]; dec esi; jnz again
    let exchange = [0x48, 0x0f, 0xc7, 0x0c, 0x25, 0, 0x80, 0, 0];
    let patch = [0xc6, 0x04, 0x25, 0x05, 0x10, 0, 0, 0x10];
    let Some(bench) = Bench::new(&code(&[&exchange, &patch, &[0xff, 0xce, 0x75, 0xeb], &UD2]), 1) else { return };
    let mut vcpu = bench.start();
    let mut state = vcpu.state();
    (state.gpr[3], state.gpr[6]) = (0xaaaa, 2);
    vcpu.set_state(&state);
    assert_eq!(vcpu.run(), VcpuExit::Shutdown);
    assert_eq!((bench.get(0x8000), bench.get(0x8010)), (0xaaaa, 0xaaaa));
}

/// Waits, for a few seconds at the longest.
#[track_caller]
fn wait_for(what: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !what() {
        assert!(Instant::now() < deadline, "it does not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// `mov edi, register; mov dword [rdi], value`, for the local APIC.
fn apic_write(register: u32, value: u32) -> Vec<u8> {
    let address = (LAPIC_BASE as u32 + register).to_le_bytes();
    code(&[&[0xbf], &address, &[0xc7, 0x07], &value.to_le_bytes()])
}

const BOTH: [Controllers; 2] = [Controllers::User, Controllers::Kernel];

#[test]
fn an_interrupt_wakes_a_halted_vcpu() {
    const VECTOR: u8 = 0x40;
    // software-enable; say; sti; hlt; say; ud2
    let program = code(&[&apic_write(0xf0, 0x1ff), &say(b'0'), &[0xfb, 0xf4], &say(b'b'), &UD2]);
    for controllers in BOTH {
        let Some(bench) = Bench::with(&program, 1, Some(controllers)) else { return };
        bench.handle(VECTOR, &code(&[&say(b'a'), &[0x48, 0xcf]]));
        bench.put(GDT + 16, &0x00cf_9300_0000_ffff_u64.to_le_bytes());
        let mut vcpu = bench.start();
        with_idt(&mut vcpu);
        let runner = std::thread::spawn(move || {
            let exit = vcpu.run();
            (exit, vcpu.state().rip)
        });
        wait_for(|| bench.said() == b"0");
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(bench.said(), b"0", "nothing happens without an interrupt");
        bench.board.irqchip().send_msi(LAPIC_BASE, u32::from(VECTOR));
        wait_for(|| bench.said().len() == 3);
        // There is a table, but no gate for UD2's exception, nor for what follows.
        let (exit, rip) = runner.join().unwrap();
        let end = CODE + program.len() as u64 - 2;
        assert_eq!((exit, rip, bench.said()), (VcpuExit::Shutdown, end, b"0ab".to_vec()), "{controllers:?}");
    }
}

#[test]
fn the_pic_interrupts_the_first_vcpu() {
    // sti; hlt; say; ud2
    let program = code(&[&[0xfb, 0xf4], &say(b'b'), &UD2]);
    for controllers in BOTH {
        let Some(bench) = Bench::with(&program, 1, Some(controllers)) else { return };
        bench.handle(0x24, &code(&[&say(b'a'), &[0x48, 0xcf]]));
        bench.put(GDT + 16, &0x00cf_9300_0000_ffff_u64.to_le_bytes());
        let mut vcpu = bench.start();
        with_idt(&mut vcpu);
        // Vectors from 0x20, everything unmasked.
        for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0)] {
            bench.board.port_write(port, &[value]);
        }
        let runner = std::thread::spawn(move || vcpu.run());
        std::thread::sleep(Duration::from_millis(5));
        bench.raise(4);
        wait_for(|| bench.said() == b"ab");
        assert_eq!(runner.join().unwrap(), VcpuExit::Shutdown, "{controllers:?}");
    }
}

#[test]
fn init_and_start_up_bring_a_second_vcpu_to_real_mode() {
    // To vCPU 1: INIT, then start-up at page 9; cli; hlt
    let parts = [apic_write(0x310, 1 << 24), apic_write(0x300, 0x4500), apic_write(0x300, 0x4609), vec![0xfa, 0xf4]];
    for controllers in BOTH {
        let Some(bench) = Bench::with(&parts.concat(), 2, Some(controllers)) else { return };
        // mov ax, cs; out 0xe9, al; mov al, ah; out 0xe9, al; cli; hlt
        bench.put(0x9000, &[0x8c, 0xc8, 0xe6, 0xe9, 0x88, 0xe0, 0xe6, 0xe9, 0xfa, 0xf4]);
        let mut second = bench.vm.create_vcpu(1).unwrap();
        let mut first = bench.start();
        assert_eq!(second.state().activity, Activity::WaitForStartup);
        let handles = [first.handle(), second.handle()];
        let first = std::thread::spawn(move || first.run());
        let second = std::thread::spawn(move || (second.run(), second.state()));
        wait_for(|| bench.said().len() == 2);
        std::thread::sleep(Duration::from_millis(20));
        handles.iter().for_each(|handle| handle.stop());
        let (exit, state) = second.join().unwrap();
        assert_eq!((exit, bench.said()), (VcpuExit::Stopped, vec![0x00, 0x09]), "{controllers:?}");
        assert_eq!((state.rip, state.activity), (10, Activity::Halted), "{controllers:?}");
        assert_eq!(first.join().unwrap(), VcpuExit::Stopped);
    }
}

#[test]
fn the_dirty_log_has_the_pages_that_were_written() {
    // mov [0x12000], eax; mov [0x15000], eax
    let program = code(&[&[0x89, 0x04, 0x25, 0, 0x20, 1, 0], &[0x89, 0x04, 0x25, 0, 0x50, 1, 0], &UD2]);
    let Some(bench) = Bench::new(&program, 1) else { return };
    assert_eq!(bench.vm.take_dirty_pages().unwrap(), []);
    bench.vm.log_dirty_pages(true).unwrap();
    let mut vcpu = bench.start();
    assert_eq!(vcpu.run(), VcpuExit::Shutdown);
    let log = bench.vm.take_dirty_pages().unwrap();
    let dirty = |page: usize| log[0].bitmap[page / 64] >> (page % 64) & 1;
    assert_eq!((log.len(), log[0].start, dirty(0x12), dirty(0x15), dirty(0x13)), (1, 0, 1, 1, 0));
    let again = bench.vm.take_dirty_pages().unwrap();
    assert!(again[0].bitmap.iter().all(|word| *word == 0), "taking the log empties it");
}

#[test]
fn the_guests_counter_is_the_machines() {
    // rdtsc; mov [0x8000], eax; mov [0x8004], edx
    let program = code(&[&[0x0f, 0x31], &[0x89, 0x04, 0x25, 0, 0x80, 0, 0], &[0x89, 0x14, 0x25, 4, 0x80, 0, 0], &UD2]);
    let Some(bench) = Bench::new(&program, 1) else { return };
    let mut vcpu = bench.start();
    let adjust = vcpu.state().msrs.tsc_adjust;
    let before = bench.board.clock().tsc();
    assert_eq!(vcpu.run(), VcpuExit::Shutdown);
    let (after, seen) = (bench.board.clock().tsc(), bench.get(0x8000).wrapping_sub(adjust));
    assert!((before..=after).contains(&seen), "{before} {seen} {after} (adjust {adjust})");
}

/// Figures, not promises: how fast ring 3 computes, against the same loop on the host.
#[test]
#[ignore = "a measurement"]
fn ring_3_compute_against_the_host() {
    const LOOPS: u64 = 1_000_000_000;
    // dec rcx; jnz
    let Some(bench) = Bench::new(&code(&[&[0x48, 0xff, 0xc9, 0x75, 0xfb], &UD2]), 1) else { return };
    let mut vcpu = bench.start();
    let mut state = vcpu.state();
    state.segments[seg::CS] = Segment { selector: 0x33, attributes: 0xa0fb, ..state.segments[seg::CS] };
    let data = Segment { selector: 0x2b, attributes: 0xc0f3, ..state.segments[seg::DS] };
    for index in [seg::SS, seg::DS, seg::ES] {
        state.segments[index] = data;
    }
    state.gpr[1] = LOOPS;
    vcpu.set_state(&state);
    let start = Instant::now();
    assert_eq!(vcpu.run(), VcpuExit::Shutdown);
    let guest = start.elapsed();
    let start = Instant::now();
    // SAFETY: counts a register down and touches nothing else.
    unsafe { std::arch::asm!("2: dec {0}", "jnz 2b", inout(reg) LOOPS => _) };
    let host = start.elapsed();
    println!("guest {guest:?}, host {host:?}: {:.1} % of the host", host.as_secs_f64() / guest.as_secs_f64() * 100.0);
}

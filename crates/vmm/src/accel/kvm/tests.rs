//! Guests of a few instructions on the host's KVM. Without one, the tests say so and pass.

use std::time::{Duration, Instant};

use queztl_soft_cpu::state::{Activity, Segment, seg};

use super::*;
use crate::accel::testing::{Bench as AnyBench, CODE, DEVICE, IRETQ, UD2, apic_write, code, say, wait_for, with_idt};
use crate::accel::{VcpuExit, Vm};
use crate::layout::LAPIC_BASE;

type Bench = AnyBench<KvmVm>;

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
        Some(Bench::build(code, vcpus, |ram, board| kvm.create(ram, board, vcpus).unwrap()))
    }
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

const BOTH: [Controllers; 2] = [Controllers::User, Controllers::Kernel];

#[test]
fn an_interrupt_wakes_a_halted_vcpu() {
    const VECTOR: u8 = 0x40;
    // software-enable; say; sti; hlt; say; ud2
    let program = code(&[&apic_write(0xf0, 0x1ff), &say(b'0'), &[0xfb, 0xf4], &say(b'b'), &UD2]);
    for controllers in BOTH {
        let Some(bench) = Bench::with(&program, 1, Some(controllers)) else { return };
        bench.handle(VECTOR, &code(&[&say(b'a'), &IRETQ]));
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
        bench.handle(0x24, &code(&[&say(b'a'), &IRETQ]));
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

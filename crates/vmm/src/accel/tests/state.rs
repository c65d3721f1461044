//! A vCPU's state is all of it: put into another machine, the guest goes on.

use std::time::{Duration, Instant};

use queztl_soft_cpu::state::{Segment, seg};

use crate::accel::testing::{Bench, DATA, IRETQ, UD2, accelerators, apic_write, code, with_idt};
use crate::accel::{Accelerator, Vcpu, VcpuExit, Vm};

const TIMER: u8 = 0x41;
/// The guest does not end before so many of its timer's interrupts have come.
const TICKS: u8 = 20;
const SEED: u64 = 0x1234_5678_9abc_def1;
const FACTOR: u64 = 6_364_136_223_846_793_005;
const STEP: u64 = 0x0000_0001_0000_0003;

/// Where the guest leaves its results: ticks, the product of its loop, and XMM0, stepped once a tick.
const PRODUCT: u64 = DATA + 8;
const VECTOR: u64 = DATA + 16;

fn at(opcode: &[u8], address: u64) -> Vec<u8> {
    code(&[opcode, &(address as u32).to_le_bytes()])
}

/// Multiplies and adds in a loop under a timer's interrupts, then waits for the last of these.
fn program() -> Vec<u8> {
    code(&[
        &apic_write(0xf0, 0x1ff),
        &apic_write(0x3e0, 0xb),
        &apic_write(0x320, 0x2_0000 | u32::from(TIMER)),
        &apic_write(0x380, 2_000_000),
        // sti; again: imul r8, r9; add r8, r10; dec rcx; jnz again
        &[0xfb, 0x4d, 0x0f, 0xaf, 0xc1, 0x4d, 0x01, 0xd0, 0x48, 0xff, 0xc9, 0x75, 0xf4],
        // wait: cmp qword [DATA], TICKS; jb wait
        &at(&[0x48, 0x83, 0x3c, 0x25], DATA),
        &[TICKS, 0x72, 0xf5],
        // cli; mov [PRODUCT], r8; movq [VECTOR], xmm0
        &[0xfa],
        &at(&[0x4c, 0x89, 0x04, 0x25], PRODUCT),
        &at(&[0x66, 0x0f, 0xd6, 0x04, 0x25], VECTOR),
        &UD2,
    ])
}

/// push rdi; inc qword [DATA]; paddq xmm0, xmm1; end of interrupt; pop rdi; iretq
fn handler() -> Vec<u8> {
    let count = at(&[0x48, 0xff, 0x04, 0x25], DATA);
    code(&[&[0x57], &count, &[0x66, 0x0f, 0xd4, 0xc1], &apic_write(0xb0, 0), &[0x5f], &IRETQ])
}

fn start(accelerator: &dyn Accelerator, loops: u64) -> (Bench<Box<dyn Vm>>, Box<dyn Vcpu>) {
    let bench = Bench::on(accelerator, &program(), 1);
    bench.handle(TIMER, &handler());
    let mut vcpu = bench.start();
    with_idt(&mut vcpu);
    let mut state = vcpu.state();
    (state.gpr[1], state.gpr[8], state.gpr[9], state.gpr[10]) = (loops, SEED, FACTOR, 1);
    state.fpu.vectors[1].0[..8].copy_from_slice(&STEP.to_le_bytes());
    vcpu.set_state(&state);
    (bench, vcpu)
}

/// Runs for a while.
fn leg(vcpu: &mut dyn Vcpu) -> VcpuExit {
    let handle = vcpu.handle();
    std::thread::scope(|scope| {
        let runner = scope.spawn(|| vcpu.run());
        std::thread::sleep(Duration::from_millis(3));
        handle.stop();
        runner.join().unwrap()
    })
}

/// Moves the guest from one accelerator to the next, again and again, until it ends.
fn hop(name: &str, hosts: &[&dyn Accelerator], loops: u64) {
    let (mut bench, mut vcpu) = start(hosts[0], loops);
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut moves = 0;
    while leg(&mut *vcpu) == VcpuExit::Stopped {
        assert!(
            Instant::now() < deadline,
            "{name}: it does not end; {} ticks, {:#x?}",
            bench.get(DATA),
            vcpu.local_apic()
        );
        moves += 1;
        let to = hosts[moves % hosts.len()];
        let (state, local_apic) = (vcpu.state(), vcpu.local_apic().unwrap());
        drop(vcpu);
        bench = bench.moved_to(to, 1);
        vcpu = bench.vm.create_vcpu(0).unwrap();
        vcpu.set_state(&state);
        vcpu.set_local_apic(&local_apic).unwrap();
        assert_eq!(vcpu.state().gpr, state.gpr, "{name}");
        assert_eq!(vcpu.state().fpu, state.fpu, "{name}");
    }
    let product = (0..loops).fold(SEED, |product, _| product.wrapping_mul(FACTOR).wrapping_add(1));
    let (ticks, vector) = (bench.get(DATA), bench.get(VECTOR));
    println!("{name}: {moves} moves, {ticks} ticks");
    assert!(moves > 0 && ticks >= u64::from(TICKS), "{name}: {moves} moves, {ticks} ticks");
    assert_eq!(bench.get(PRODUCT), product, "{name}");
    assert_eq!(vector, ticks.wrapping_mul(STEP), "{name}: each interrupt was handled once");
}

#[test]
fn a_guest_that_is_moved_again_and_again_goes_on_exactly() {
    for (name, accelerator) in accelerators() {
        let loops = if name.starts_with("soft") { 5_000_000 } else { 100_000 };
        hop(&name, &[&*accelerator], loops);
    }
}

#[test]
fn a_guest_can_be_moved_from_any_accelerator_to_any_other() {
    let all = accelerators();
    let hosts: Vec<_> = all.iter().map(|(_, accelerator)| &**accelerator).collect();
    hop("in turns", &hosts, 3_000_000);
}

#[test]
fn what_the_guest_writes_to_its_counter_moves_with_it() {
    const START: u64 = 0x100 << 32;
    // mov ecx, 0x10; mov edx, 0x100; xor eax, eax; wrmsr; hlt; rdtsc; mov [DATA], eax; mov [DATA + 4], edx; ud2
    let program = code(&[
        &[0xb9, 0x10, 0, 0, 0, 0xba, 0, 1, 0, 0, 0x31, 0xc0, 0x0f, 0x30, 0x0f, 0x31],
        &at(&[0x89, 0x04, 0x25], DATA),
        &at(&[0x89, 0x14, 0x25], DATA + 4),
        &UD2,
    ]);
    const READ: u64 = crate::accel::testing::CODE + 14;
    for (name, accelerator) in accelerators() {
        if !name.starts_with("soft") && !crate::accel::probe::KvmSupport::probe().is_native() {
            println!("skipped: {name}: this host cannot move the time-stamp counter");
            continue;
        }
        let bench = Bench::on(&*accelerator, &program, 1);
        let mut vcpu = bench.start();
        assert_eq!(vcpu.run(), VcpuExit::Shutdown);
        let first = bench.get(DATA);
        let mut state = vcpu.state();
        state.rip = READ;
        let bench = bench.moved_to(&*accelerator, 1);
        let mut vcpu = bench.vm.create_vcpu(0).unwrap();
        vcpu.set_state(&state);
        assert_eq!(vcpu.run(), VcpuExit::Shutdown);
        let second = bench.get(DATA);
        assert!(START <= first && first < second && second < START << 1, "{name}: {first:#x} {second:#x}");
    }
}

#[test]
fn masks_and_vector_registers_survive_the_way_there_and_back() {
    for (name, accelerator) in accelerators() {
        let bench = Bench::on(&*accelerator, &UD2, 1);
        let mut vcpu = bench.start();
        let mut state = vcpu.state();
        (state.nmi_masked, state.interrupt_shadow) = (true, true);
        state.xcr0 = 7;
        for (index, vector) in state.fpu.vectors[..16].iter_mut().enumerate() {
            vector.0[..32].fill(index as u8 + 1);
        }
        state.segments[seg::FS] = Segment { base: 0x7fff_1234_5000, ..state.segments[seg::FS] };
        vcpu.set_state(&state);
        assert_eq!(vcpu.state(), state, "{name}");
        vcpu.set_state(&state);
        assert_eq!(vcpu.state(), state, "{name}: a second time");
    }
}

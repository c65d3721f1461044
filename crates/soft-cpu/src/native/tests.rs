//! What the differential test cannot reach from ring 3 of a 64-bit host: other modes, closed units, several CPUs.

use std::sync::{Arc, Mutex};

use queztl_guest_memory::GuestRam;

use crate::control::Control;
use crate::cpu::Cpu;
use crate::cpuid::{CpuidConfig, CpuidPolicy};
use crate::fault::{Exception, vector};
use crate::platform::Platform;
use crate::run::Exit;
use crate::shared::Shared;
use crate::state::{Segment, State, bits, gpr, rflags, seg};

const CODE: u64 = 0x1000;
const DATA: u64 = 0x2000;

/// A machine on which a write to any port stops the writer.
#[derive(Default)]
struct Stopper {
    controls: Mutex<Vec<Arc<Control>>>,
}

impl Platform for Stopper {
    fn port_write(&self, cpu: u32, _: u16, _: &[u8]) {
        self.controls.lock().unwrap()[cpu as usize].stop();
    }
}

/// CPUs in 32-bit protected mode without paging, every unit open, about to run `code`.
fn machine(cpus: u32, code: &[u8]) -> Vec<Cpu> {
    let platform = Arc::new(Stopper::default());
    let ram = Arc::new(GuestRam::new(1 << 20).unwrap());
    let cpuid = CpuidPolicy::new(&CpuidConfig::one_socket(cpus, 1_000_000_000));
    let shared = Arc::new(Shared::new(ram, platform.clone(), cpuid, cpus).unwrap());
    let mut machine: Vec<Cpu> = (0..cpus).map(|id| Cpu::new(shared.clone(), id)).collect();
    for cpu in &mut machine {
        platform.controls.lock().unwrap().push(cpu.control());
        cpu.write_physical(CODE, code);
        cpu.set_state(&protected());
    }
    machine
}

fn protected() -> State {
    let mut state = State::default();
    let data = Segment { base: 0, limit: u32::MAX, selector: 0x10, attributes: 0xc093 };
    state.segments = [data; 6];
    state.segments[seg::CS] = Segment { selector: 8, attributes: 0xc09b, ..data };
    state.cr0 = bits::CR0_PE | bits::CR0_NE | bits::CR0_MP | bits::CR0_ET;
    state.cr4 = bits::CR4_OSFXSR | bits::CR4_OSXSAVE | bits::CR4_OSXMMEXCPT;
    state.xcr0 = 7;
    state.rip = CODE;
    state
}

/// Runs one instruction with `change` made to the state before.
fn step(code: &[u8], change: impl FnOnce(&mut State)) -> (State, Result<(), Exception>) {
    let mut cpu = machine(1, code).remove(0);
    let mut state = cpu.state();
    change(&mut state);
    cpu.set_state(&state);
    let result = cpu.step();
    (cpu.state(), result)
}

fn raised(code: &[u8], change: impl FnOnce(&mut State)) -> Option<u8> {
    step(code, change).1.err().map(|exception| exception.vector)
}

const FADD: &[u8] = &[0xd8, 0xc1];
const PADDB_MMX: &[u8] = &[0x0f, 0xfc, 0xc1];
const PADDB_SSE: &[u8] = &[0x66, 0x0f, 0xfc, 0xc1];
const VPADDB: &[u8] = &[0xc5, 0xf1, 0xfc, 0xc2];
const WAIT: &[u8] = &[0x9b];
const POPCNT: &[u8] = &[0xf3, 0x0f, 0xb8, 0xc1];

#[test]
fn task_switched_makes_every_unit_unavailable() {
    for code in [FADD, PADDB_MMX, PADDB_SSE, VPADDB, WAIT] {
        assert_eq!(raised(code, |state| state.cr0 |= bits::CR0_TS), Some(vector::NM), "{code:02x?}");
        assert_eq!(raised(code, |_| ()), None, "{code:02x?}");
    }
    assert_eq!(raised(POPCNT, |state| state.cr0 |= bits::CR0_TS), None);
}

#[test]
fn emulation_makes_x87_unavailable_and_mmx_and_sse_undefined() {
    let emulate = |state: &mut State| state.cr0 |= bits::CR0_EM;
    assert_eq!(raised(FADD, emulate), Some(vector::NM));
    assert_eq!(raised(PADDB_MMX, emulate), Some(vector::UD));
    assert_eq!(raised(PADDB_SSE, emulate), Some(vector::UD));
}

#[test]
fn vectors_do_not_exist_until_the_system_enables_them() {
    assert_eq!(raised(PADDB_SSE, |state| state.cr4 &= !bits::CR4_OSFXSR), Some(vector::UD));
    assert_eq!(raised(VPADDB, |state| state.cr4 &= !bits::CR4_OSXSAVE), Some(vector::UD));
    assert_eq!(raised(VPADDB, |state| state.xcr0 = 3), Some(vector::UD));
}

#[test]
fn an_unmasked_x87_exception_waits_for_the_next_waiting_instruction() {
    // fld1; fdiv st0, st1 with st1 empty: stack fault, invalid operation unmasked.
    let mut cpu = machine(1, &[0xd9, 0xe8, 0xd8, 0xf1, 0xdf, 0xe0, 0xd9, 0xe8]).remove(0);
    let mut state = cpu.state();
    state.fpu.legacy[..2].copy_from_slice(&0x037e_u16.to_le_bytes());
    cpu.set_state(&state);
    for _ in 0..3 {
        assert_eq!(cpu.step(), Ok(()));
    }
    let status = cpu.state().gpr[gpr::RAX];
    assert_eq!(status & 0x80c1, 0x80c1, "busy, summary, stack fault and invalid, not {status:#x}");
    assert_eq!(cpu.step().unwrap_err().vector, vector::MF);
}

#[test]
fn an_unmasked_sse_exception_leaves_the_destination_alone() {
    let divps = &[0x0f, 0x5e, 0xc1];
    let ones = [0, 0, 0x80, 0x3f].repeat(4);
    let divide = |cr4: u64| {
        step(divps, |state| {
            state.cr4 = cr4;
            state.fpu.mxcsr = 0x1f80 & !(1 << 9);
            state.fpu.vectors[0].0[..16].copy_from_slice(&ones);
        })
    };
    let (state, result) = divide(bits::CR4_OSFXSR | bits::CR4_OSXMMEXCPT);
    assert_eq!(result.unwrap_err().vector, vector::XM);
    assert_eq!(state.fpu.vectors[0].0[..16], ones);
    assert_eq!(state.fpu.mxcsr & 0x3f, 1 << 2);
    assert_eq!(divide(bits::CR4_OSFXSR).1.unwrap_err().vector, vector::UD);
}

#[test]
fn decimal_arithmetic_follows_the_manual() {
    let run = |code: &[u8], ax: u64, flags: u64| {
        let (state, result) = step(code, |state| {
            state.gpr[gpr::RAX] = ax;
            state.rflags |= flags;
        });
        result.map(|()| (state.gpr[gpr::RAX], state.rflags & (rflags::CF | rflags::AF)))
    };
    const CF: u64 = rflags::CF;
    const AF: u64 = rflags::AF;
    // 79 + 35 = ae, adjusted to 14 carry 1; SDM vol. 2A, DAA example.
    assert_eq!(run(&[0x27], 0xae, 0), Ok((0x14, CF | AF)));
    // 35 - 47 = ee, adjusted to 88 borrow 1; SDM vol. 2A, DAS example.
    assert_eq!(run(&[0x2f], 0xee, CF | AF), Ok((0x88, CF | AF)));
    assert_eq!(run(&[0x37], 0x000b, 0), Ok((0x0101, CF | AF)));
    assert_eq!(run(&[0x3f], 0x0205, AF), Ok((0x000f, CF | AF)));
    assert_eq!(run(&[0xd4, 10], 0x004b, 0).map(|r| r.0), Ok(0x0705));
    assert_eq!(run(&[0xd5, 10], 0x0705, 0).map(|r| r.0), Ok(0x004b));
    assert_eq!(run(&[0xd4, 0], 0x004b, 0).unwrap_err().vector, vector::DE);
}

#[test]
fn forms_that_only_32_bit_code_has_run_too() {
    // add bl, 5 by opcode 82
    let (state, result) = step(&[0x82, 0xc3, 5], |state| state.gpr[gpr::RBX] = 0x10fe);
    assert_eq!((result, state.gpr[gpr::RBX]), (Ok(()), 0x1003));
    // inc esi
    let (state, result) = step(&[0x46], |state| state.gpr[gpr::RSI] = 0xffff_ffff);
    assert_eq!((result, state.gpr[gpr::RSI]), (Ok(()), 0));
}

#[test]
fn vzeroall_outside_64_bit_mode_clears_eight_registers() {
    let (state, result) = step(&[0xc5, 0xfc, 0x77], |state| state.fpu.vectors.iter_mut().for_each(|v| v.0.fill(1)));
    assert_eq!(result, Ok(()));
    assert_eq!(state.fpu.vectors[7].0, [0; 64]);
    assert_eq!(state.fpu.vectors[8].0, [1; 64]);
}

#[test]
fn stored_environments_show_no_host_addresses() {
    // fld1; fadd st0, st0; fnstenv [DATA]
    let mut cpu = machine(1, &[0xd9, 0xe8, 0xd8, 0xc0, 0xd9, 0x35, 0, 0x20, 0, 0]).remove(0);
    for _ in 0..3 {
        assert_eq!(cpu.step(), Ok(()));
    }
    let mut image = [0xff; 28];
    cpu.read_physical(DATA, &mut image);
    assert_eq!(image[12..], [0; 16]);
    assert_eq!(image[..2], 0x037f_u16.to_le_bytes());
}

#[test]
fn a_locked_instruction_across_two_pages_is_atomic() {
    const ROUNDS: u32 = 20_000;
    // 1: lock add dword [DATA + 0xffe], 1; dec ecx; jnz 1b; out 0x80, al
    let code = [0xf0, 0x83, 0x05, 0xfe, 0x2f, 0, 0, 1, 0x49, 0x75, 0xf5, 0xe6, 0x80];
    let mut machine = machine(2, &code);
    for cpu in &mut machine {
        let mut state = cpu.state();
        state.gpr[gpr::RCX] = u64::from(ROUNDS);
        cpu.set_state(&state);
    }
    let threads: Vec<_> = machine
        .into_iter()
        .map(|mut cpu| {
            std::thread::spawn(move || {
                assert_eq!(cpu.run(), Exit::Stopped);
                assert_eq!(cpu.state().gpr[gpr::RCX], 0);
                cpu
            })
        })
        .collect();
    let mut cpus: Vec<Cpu> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let cpu = &mut cpus[0];
    let mut head = [0; 2];
    let mut tail = [0; 2];
    cpu.read_physical(DATA + 0xffe, &mut head);
    cpu.read_physical(DATA + 0x1000, &mut tail);
    assert_eq!(u32::from_le_bytes([head[0], head[1], tail[0], tail[1]]), 2 * ROUNDS);
}

#[test]
fn no_mapping_of_thunks_is_writable_and_executable() {
    let _machine = machine(1, PADDB_SSE);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let rights: Vec<&str> =
        maps.lines().filter(|line| line.contains("queztl-thunks")).filter_map(|line| line.split(' ').nth(1)).collect();
    assert!(rights.len() >= 2, "both views are mapped: {rights:?}");
    assert!(rights.iter().all(|rights| !(rights.contains('w') && rights.contains('x'))), "{rights:?}");
}

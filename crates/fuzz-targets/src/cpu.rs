//! The software CPU: any bytes as code, in every mode, on a small machine.

use std::sync::Arc;

use queztl_guest_memory::GuestRam;
use queztl_soft_cpu::cpuid::{CpuidConfig, CpuidPolicy};
use queztl_soft_cpu::platform::{Idle, Platform};
use queztl_soft_cpu::state::{Activity, Segment, Table, bits, gpr, seg};
use queztl_soft_cpu::{Cpu, Shared, State};
use vm_memory::{Bytes as _, GuestAddress};

use crate::bytes::Bytes;

const RAM_BYTES: u64 = 4 << 20;
const CODE: u64 = 0x8000;
const STACK: u64 = 0x7000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const TABLES: u64 = 0x1000;
/// Instructions executed at most.
const STEPS: usize = 100;
/// Rounds of repeated string instructions at most: billions are right, and no defect.
const ROUNDS: u64 = 1 << 16;

/// A board with nothing on it.
struct Nothing;

impl Platform for Nothing {
    fn idle(&self, _: u32, instructions: u64) -> Idle {
        Idle::SkipTo(instructions + 1)
    }
}

/// The first byte chooses the mode, then come the registers, then the code.
pub fn execute(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mode = bytes.u8();
    let ram = Arc::new(GuestRam::new(RAM_BYTES).expect("memory for a guest"));
    let write = |address: u64, value: &[u8]| ram.memory().write_slice(value, GuestAddress(address)).expect("RAM");
    write_tables(&write);
    let cpuid = CpuidPolicy::new(&CpuidConfig::one_socket(1, 1_000_000_000));
    let shared = Shared::new(ram.clone(), Arc::new(Nothing), cpuid, 1).expect("memory for code");
    let mut cpu = Cpu::new(Arc::new(shared), 0);
    let mut state = initial(mode, cpu.state());
    for register in 0..16 {
        // Small numbers are addresses of RAM more often than not.
        let value = bytes.u32();
        state.gpr[register] = if mode & 0x80 != 0 { u64::from(value) << 32 | u64::from(value) } else { value.into() };
    }
    state.gpr[gpr::RSP] = STACK;
    cpu.set_state(&state);
    write(CODE, bytes.take(RAM_BYTES as usize / 2));
    let (mut rounds, mut count) = (0, state.gpr[gpr::RCX]);
    for _ in 0..STEPS {
        let end = cpu.finish_instruction();
        let after = cpu.state();
        let left = after.gpr[gpr::RCX];
        rounds += count.checked_sub(left).filter(|rounds| *rounds <= ROUNDS).unwrap_or(0);
        count = left;
        if end.is_some() || after.activity != Activity::Running || rounds >= ROUNDS {
            break;
        }
    }
}

/// Identity paging with large pages that ring 3 may use, a GDT, and gates that lead back to the code.
fn write_tables(write: &impl Fn(u64, &[u8])) {
    const PRESENT_WRITE_USER: u64 = 7;
    const LARGE: u64 = 1 << 7;
    write(TABLES, &((TABLES + 0x1000) | PRESENT_WRITE_USER).to_le_bytes());
    write(TABLES + 0x1000, &((TABLES + 0x2000) | PRESENT_WRITE_USER).to_le_bytes());
    for page in 0..4 {
        write(TABLES + 0x2000 + page * 8, &(page << 21 | LARGE | PRESENT_WRITE_USER).to_le_bytes());
    }
    // Null, 64-bit code, data, 32-bit code of ring 3, data of ring 3, 64-bit code of ring 3, 32-bit code, 16-bit code.
    let descriptors: [u64; 8] = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x00cf_9b00_0000_ffff,
        0x000f_9b00_0000_ffff,
    ];
    for (index, descriptor) in (0..).zip(descriptors) {
        write(GDT + index * 8, &descriptor.to_le_bytes());
    }
    for vector in 0..64 {
        let gate = CODE | 0x08 << 16 | 0x8e << 40;
        write(IDT + vector * 16, &gate.to_le_bytes());
    }
}

/// The registers of a mode: real, protected with 16 and 32 bits, 64 bits in ring 0 and 3, 32 bits under 64.
fn initial(mode: u8, mut state: State) -> State {
    let flat = |selector, attributes| Segment { selector, attributes, limit: u32::MAX, base: 0 };
    state.rip = CODE;
    state.gdtr = Table { base: GDT, limit: 63 };
    state.idtr = Table { base: IDT, limit: 0x3ff };
    state.activity = Activity::Running;
    let mode = mode & 7;
    if mode == 0 {
        let segment = Segment { selector: 0, attributes: 0x93, limit: 0xffff, base: 0 };
        state.segments = [segment; 6];
        state.segments[seg::CS].attributes = 0x9b;
        state.idtr = Table { base: 0, limit: 0x3ff };
        return state;
    }
    state.cr0 = bits::CR0_PE | bits::CR0_ET | bits::CR0_NE;
    state.segments = [flat(0x10, 0xc093); 6];
    state.segments[seg::CS] = flat(0x30, 0xc09b);
    match mode {
        1 => state.segments[seg::CS] = flat(0x38, 0x809b),
        2 => {}
        _ => {
            state.cr0 |= bits::CR0_PG | bits::CR0_WP;
            state.cr3 = TABLES;
            state.cr4 = bits::CR4_PAE | bits::CR4_OSFXSR | bits::CR4_OSXMMEXCPT | bits::CR4_OSXSAVE;
            state.efer = bits::EFER_LME | bits::EFER_LMA | bits::EFER_SCE | bits::EFER_NXE;
            state.xcr0 = 7;
            state.segments[seg::CS] = match mode {
                4 => flat(0x2b, 0xa0fb),
                5 => flat(0x1b, 0xc0fb),
                _ => flat(0x08, 0xa09b),
            };
            if matches!(mode, 4 | 5) {
                state.segments[seg::SS] = flat(0x23, 0xc0f3);
            }
        }
    }
    state
}

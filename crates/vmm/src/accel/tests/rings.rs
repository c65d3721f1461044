//! Ring changes: out by IRETQ and SYSRETQ, in by interrupts.

use queztl_soft_cpu::state::{Segment, Table};

use crate::accel::VcpuExit;
use crate::accel::testing::{Bench, DATA, GDT, IDT, IRETQ, STACK, UD2, accelerators, apic_write, code};

const TIMER: u8 = 0x41;
const TICKS: u8 = 10;
/// Interrupts, the code segment that the last one came from, rounds of ring 3.
const COUNT: u64 = DATA;
const FROM: u64 = DATA + 8;
const ROUNDS: u64 = DATA + 16;
const TASK_STATE: u64 = DATA + 0x1000;
const USER: u64 = DATA + 0x2000;
const USER_STACK: u64 = DATA + 0x4000;
const USER_DATA: u8 = 0x1b;
const USER_CODE: u8 = 0x23;

fn at(opcode: &[u8], address: u64) -> Vec<u8> {
    code(&[opcode, &(address as u32).to_le_bytes()])
}

/// Starts the timer, then leaves ring 0 by `way_out`.
fn program(way_out: &[u8]) -> Vec<u8> {
    code(&[
        &apic_write(0xf0, 0x1ff),
        &apic_write(0x3e0, 0xb),
        &apic_write(0x320, 0x2_0000 | u32::from(TIMER)),
        &apic_write(0x380, 1_000_000),
        way_out,
    ])
}

fn goes_out_and_comes_in(way_out: &[u8]) {
    for (name, accelerator) in accelerators() {
        let bench = Bench::on(&*accelerator, &program(way_out), 1);
        bench.put(GDT + 0x18, &0x00cf_f300_0000_ffff_u64.to_le_bytes());
        bench.put(GDT + 0x20, &0x00af_fb00_0000_ffff_u64.to_le_bytes());
        bench.put(TASK_STATE + 4, &STACK.to_le_bytes());
        // again: inc qword [ROUNDS]; jmp again
        bench.put(USER, &code(&[&at(&[0x48, 0xff, 0x04, 0x25], ROUNDS), &[0xeb, 0xf6]]));
        // inc qword [COUNT]; mov rax, [rsp + 8]; mov [FROM], rax; end of interrupt; cmp qword [COUNT], TICKS; jae end;
        // iretq; end: ud2
        let handler = code(&[
            &at(&[0x48, 0xff, 0x04, 0x25], COUNT),
            &[0x48, 0x8b, 0x44, 0x24, 0x08],
            &at(&[0x48, 0x89, 0x04, 0x25], FROM),
            &apic_write(0xb0, 0),
            &at(&[0x48, 0x83, 0x3c, 0x25], COUNT),
            &[TICKS, 0x73, 0x02],
            &IRETQ,
            &UD2,
        ]);
        bench.handle(TIMER, &handler);
        let mut vcpu = bench.start();
        let mut state = vcpu.state();
        state.idtr = Table { base: IDT, limit: 0xfff };
        state.tr = Segment { base: TASK_STATE, limit: 0x67, selector: 0x28, attributes: 0x8b };
        state.efer |= 1;
        state.msrs.star = 0x0010_0008 << 32;
        (state.gpr[1], state.gpr[11]) = (USER, 0x202);
        vcpu.set_state(&state);
        assert_eq!(vcpu.run(), VcpuExit::Shutdown, "{name}");
        let (count, from) = (bench.get(COUNT), bench.get(FROM));
        assert_eq!((count, from & 0xffff), (u64::from(TICKS), u64::from(USER_CODE)), "{name}");
        assert!(bench.get(ROUNDS) > 0, "{name}: ring 3 ran");
    }
}

#[test]
fn interrupts_come_in_from_ring_3_and_iretq_goes_back() {
    // push USER_DATA; push USER_STACK; push 0x202; push USER_CODE; push USER; iretq
    let push = |value: u64| code(&[&[0x68], &(value as u32).to_le_bytes()]);
    let values = [USER_DATA.into(), USER_STACK, 0x202, USER_CODE.into(), USER];
    goes_out_and_comes_in(&code(&[&values.map(push).concat(), &IRETQ]));
}

#[test]
fn sysretq_goes_out() {
    // mov esp, USER_STACK; sysretq
    goes_out_and_comes_in(&code(&[&[0xbc], &(USER_STACK as u32).to_le_bytes(), &[0x48, 0x0f, 0x07]]));
}

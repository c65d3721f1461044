//! What a handler finds on its stack, and what becomes of events that cannot be delivered.

use super::*;
use crate::fault::vector;

fn frame(guest: &mut Guest, top: u64) -> [u64; 5] {
    [top - 8, top - 16, top - 24, top - 32, top - 40].map(|address| guest.peek64(address))
}

#[test]
fn an_interrupt_of_ring_3_goes_to_the_ring_0_stack() {
    let mut guest = Guest::user();
    let flags = guest.cpu.rflags();

    deliver(&mut guest.cpu, Delivery::External(0x40)).unwrap();

    let stack = [u64::from(USER_DATA), USER_STACK, flags, u64::from(USER_CODE64), USER_CODE];
    assert_eq!(frame(&mut guest, RSP0), stack);
    assert_eq!(guest.reg(gpr::RSP), RSP0 - 40);
    assert_eq!((guest.cpu.rip, guest.cpu.cpl, guest.selector(seg::CS)), (HANDLER, 0, CODE64));
    assert_eq!(guest.selector(seg::SS), 0, "SS is null with the new ring");
    assert_eq!(guest.cpu.rflags() & rflags::IF, 0);
}

#[test]
fn a_page_fault_pushes_its_error_code_and_sets_cr2() {
    let mut guest = Guest::user();
    let exception = guest.run(&[0x8a, 0x04, 0x25, 0, 0, 0x40, 0]).unwrap_err(); // mov al, [UNMAPPED]

    guest.deliver(exception).unwrap();

    assert_eq!(guest.cpu.cr2, UNMAPPED);
    assert_eq!(guest.peek64(guest.cpu.regs[gpr::RSP]), 4, "user, read, not present");
    assert_eq!(guest.reg(gpr::RSP), RSP0 - 48);
    assert_eq!(guest.peek64(RSP0 - 24) & rflags::RF, rflags::RF, "faults resume with RF set");
    assert_eq!(guest.peek64(RSP0 - 40), USER_CODE, "a fault returns to its instruction");
}

#[test]
fn the_interrupt_stack_table_is_used_in_ring_0_too_and_aligned() {
    let mut guest = Guest::kernel();
    guest.gate64(vector::NMI, 0x8e, 1);

    deliver(&mut guest.cpu, Delivery::Nmi).unwrap();

    assert_eq!(guest.reg(gpr::RSP), IST_STACK - 40);
    assert_eq!(guest.selector(seg::SS), DATA, "the ring did not change");
    assert!(guest.cpu.nmi_masked);
}

#[test]
fn the_stack_is_aligned_to_16_without_a_switch() {
    let mut guest = Guest::kernel();
    guest.set(gpr::RSP, KERNEL_STACK - 5);

    deliver(&mut guest.cpu, Delivery::External(0x40)).unwrap();

    assert_eq!(guest.reg(gpr::RSP), KERNEL_STACK - 16 - 40);
    assert_eq!(guest.peek64(KERNEL_STACK - 32), KERNEL_STACK - 5);
}

#[test]
fn a_trap_gate_keeps_interrupts_on() {
    let mut guest = Guest::user();
    guest.gate64(0x40, 0x8f, 0);

    deliver(&mut guest.cpu, Delivery::External(0x40)).unwrap();

    assert_ne!(guest.cpu.rflags() & rflags::IF, 0);
}

#[test]
fn a_program_reaches_only_gates_of_its_own_privilege() {
    let mut guest = Guest::user();
    guest.gate64(3, 0xee, 0);

    assert_eq!(guest.fault(&[0xcd, 0x80]), (vector::GP, Some(0x80 * 8 + 2)));
    guest.ok(&[0xcc]);

    assert_eq!(guest.cpu.rip, HANDLER);
    assert_eq!(guest.peek64(RSP0 - 40), USER_CODE + 1, "INT3 returns after itself");
    assert_eq!(guest.peek64(RSP0 - 24) & rflags::RF, 0);
}

#[test]
fn int1_ignores_the_gates_privilege() {
    let mut guest = Guest::user();
    guest.ok(&[0xf1]);
    assert_eq!(guest.peek64(RSP0 - 40), USER_CODE + 1);
}

#[test]
fn an_absent_gate_is_not_present_with_its_vector() {
    let mut guest = Guest::user();
    guest.gate64(0x80, 0x6e, 0);
    assert_eq!(guest.fault(&[0xcd, 0x80]), (vector::NP, Some(0x80 * 8 + 2)));
}

#[test]
fn a_vector_beyond_the_table_is_a_protection_fault() {
    let mut guest = Guest::kernel();
    guest.cpu.idtr.limit = 0x80 * 16 + 14;
    assert_eq!(guest.fault(&[0xcd, 0x80]), (vector::GP, Some(0x80 * 8 + 2)));
}

#[test]
fn a_gate_to_32_bit_code_is_refused_in_long_mode() {
    let mut guest = Guest::kernel();
    guest.poke(IDT + 0x80 * 16 + 2, &CODE32.to_le_bytes());
    assert_eq!(guest.fault(&[0xcd, 0x80]), (vector::GP, Some(u32::from(CODE32))));
}

#[test]
fn a_task_gate_is_refused() {
    let mut guest = Guest::protected();
    guest.poke(IDT + 0x80 * 8 + 5, &[0x85]);
    assert_eq!(guest.fault(&[0xcd, 0x80]), (vector::GP, Some(0x80 * 8 + 2)));
}

#[test]
fn a_fault_on_the_way_replaces_a_benign_event() {
    let mut guest = Guest::kernel();
    guest.gate64(0x40, 0x0e, 0); // not present

    deliver(&mut guest.cpu, Delivery::External(0x40)).unwrap();

    let error = guest.peek64(guest.cpu.regs[gpr::RSP]);
    assert_eq!(error, 0x40 * 8 + 3, "external, in the IDT");
}

#[test]
fn two_contributory_faults_make_a_double_fault() {
    let mut guest = Guest::kernel();
    guest.gate64(vector::GP, 0x0e, 0);
    guest.gate64(vector::DF, 0x8e, 1);

    guest.deliver(Exception::gp(0)).unwrap();

    assert_eq!(guest.reg(gpr::RSP), IST_STACK - 48, "through the double fault's own stack");
    assert_eq!(guest.peek64(IST_STACK - 48), 0);
}

#[test]
fn a_page_fault_while_delivering_a_page_fault_is_a_double_fault() {
    let mut guest = Guest::kernel();
    guest.gate64(vector::DF, 0x8e, 1);
    guest.set(gpr::RSP, UNMAPPED + 0x1000);

    guest.deliver(Exception::page_fault(0x1234, 0)).unwrap();

    assert_eq!(guest.reg(gpr::RSP), IST_STACK - 48);
    assert_eq!(guest.cpu.cr2, UNMAPPED + 0x1000 - 8, "CR2 shows the second fault");
}

#[test]
fn a_page_fault_after_a_contributory_one_is_delivered_as_such() {
    let mut guest = Guest::user();
    guest.gate64(vector::PF, 0x8e, 1);
    guest.poke(TSS + 4, &(UNMAPPED + 0x1000).to_le_bytes());

    guest.deliver(Exception::gp(0)).unwrap();

    assert_eq!(guest.reg(gpr::RSP), IST_STACK - 48);
    assert_eq!(guest.peek64(IST_STACK - 48), 2, "the kernel's write");
}

#[test]
fn a_double_fault_that_cannot_be_delivered_shuts_down() {
    let mut guest = Guest::kernel();
    guest.gate64(vector::GP, 0x0e, 0);
    guest.gate64(vector::DF, 0x0e, 0);
    assert_eq!(guest.deliver(Exception::gp(0)), Err(TripleFault));
}

#[test]
fn a_non_canonical_ring_0_stack_is_a_stack_fault() {
    let mut guest = Guest::user();
    guest.gate64(vector::SS, 0x8e, 1);
    guest.poke(TSS + 4, &(1_u64 << 60).to_le_bytes());

    deliver(&mut guest.cpu, Delivery::External(0x40)).unwrap();

    assert_eq!(guest.reg(gpr::RSP), IST_STACK - 48);
}

#[test]
fn single_stepping_traps_after_the_instruction() {
    let mut guest = Guest::user();
    guest.cpu.set_rflags(guest.cpu.rflags() | rflags::TF);

    let exception = guest.run(&[0x90]).unwrap_err();
    guest.deliver(exception).unwrap();

    assert_eq!(exception.vector, vector::DB);
    assert_eq!(guest.peek64(RSP0 - 40), USER_CODE + 1);
    assert_ne!(guest.cpu.dr[6] & 1 << 14, 0);
    assert_eq!(guest.cpu.rflags() & rflags::TF, 0);
}

#[test]
fn protected_mode_switches_stacks_through_the_task_state() {
    let mut guest = Guest::protected();
    let mut state = guest.cpu.state();
    state.segments[seg::CS] = Segment { selector: USER_CODE32, attributes: 0xc0fb, limit: u32::MAX, base: 0 };
    state.segments[seg::SS] = Segment { selector: USER_DATA, attributes: 0xc0f3, limit: u32::MAX, base: 0 };
    (state.rip, state.gpr[gpr::RSP]) = (USER_CODE, USER_STACK);
    guest.cpu.set_state(&state);

    guest.deliver(Exception::gp(0x18)).unwrap();

    let stack: Vec<u32> = (1..=6).map(|slot| guest.peek32(RSP0 - slot * 4)).collect();
    let flags = (rflags::RESERVED_ONE | rflags::RF) as u32;
    let wanted = [u32::from(USER_DATA), USER_STACK as u32, flags, u32::from(USER_CODE32), USER_CODE as u32, 0x18];
    assert_eq!(stack, wanted);
    assert_eq!((guest.selector(seg::SS), guest.reg(gpr::RSP)), (DATA, RSP0 - 24));
    assert_eq!((guest.cpu.rip, guest.cpu.cpl), (HANDLER, 0));
}

#[test]
fn real_mode_uses_the_vector_table() {
    let mut guest = Guest::real();
    guest.poke(0x80 * 4, &0x2000_0123_u32.to_le_bytes());
    guest.cpu.set_rflags(rflags::IF | rflags::TF | rflags::CF);
    guest.cpu.set_rflags(rflags::IF | rflags::CF);

    guest.ok(&[0xcd, 0x80]);

    assert_eq!((guest.selector(seg::CS), guest.cpu.rip), (0x2000, 0x123));
    assert_eq!(guest.cpu.segments[seg::CS].base, 0x2_0000);
    let stack = [2, 4, 6].map(|depth| guest.peek16(KERNEL_STACK - depth));
    assert_eq!(stack, [(rflags::IF | rflags::CF | 2) as u16, 0x1000, 2]);
    assert_eq!(guest.cpu.rflags() & rflags::IF, 0);
    guest.ok(&[0xcf]); // iret
    assert_eq!((guest.selector(seg::CS), guest.cpu.rip), (0x1000, 2));
    assert_ne!(guest.cpu.rflags() & rflags::IF, 0);
    assert_eq!(guest.reg(gpr::RSP), KERNEL_STACK);
}

#[test]
fn init_and_startup_begin_in_real_mode() {
    let mut guest = Guest::user();
    guest.cpu.msrs.lstar = 0x1234;

    crate::system::init(&mut guest.cpu);
    assert_eq!(guest.cpu.activity, crate::state::Activity::WaitForStartup);
    crate::system::startup(&mut guest.cpu, 0x9a);

    assert_eq!((guest.selector(seg::CS), guest.cpu.segments[seg::CS].base, guest.cpu.rip), (0x9a00, 0x9_a000, 0));
    assert_eq!((guest.cpu.cr0 & bits::CR0_PE, guest.cpu.efer, guest.cpu.cpl), (0, 0, 0));
    assert_eq!(guest.cpu.msrs.lstar, 0x1234, "INIT keeps MSRs");
}

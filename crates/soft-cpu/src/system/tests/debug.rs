//! Breakpoints on data, instructions and ports.

use super::*;
use crate::fault::vector;

const WRITE: u64 = 1;
const IO: u64 = 2;
const ACCESS: u64 = 3;
const ONE: u64 = 0;
const TWO: u64 = 1;
const EIGHT: u64 = 2;
const FOUR: u64 = 3;
const CELL: u64 = 0x3_0000;

/// Breakpoint 0, enabled locally.
fn watch(guest: &mut Guest, address: u64, condition: u64, length: u64) {
    guest.cpu.dr[0] = address;
    guest.cpu.dr[7] = 0x401 | condition << 16 | length << 18;
}

/// The DR6 bits of the #DB that an instruction ends with, if it does.
fn hits(guest: &mut Guest, code: &[u8]) -> Option<u64> {
    let exception = guest.run(code).err()?;
    assert_eq!(exception.vector, vector::DB);
    Some(exception.address)
}

/// `mov [rbx], al`, `mov [rbx], rax`, `mov al, [rbx]`.
const STORE_BYTE: &[u8] = &[0x88, 0x03];
const STORE: &[u8] = &[0x48, 0x89, 0x03];
const LOAD_BYTE: &[u8] = &[0x8a, 0x03];

#[test]
fn a_watchpoint_covers_its_length_from_the_aligned_address_on() {
    for (length, bytes) in [(ONE, 1), (TWO, 2), (FOUR, 4), (EIGHT, 8)] {
        for offset in 0..16 {
            let mut guest = Guest::kernel();
            watch(&mut guest, CELL + 8 + bytes - 1, WRITE, length);
            guest.set(gpr::RBX, CELL + offset);
            let expected = (8..8 + bytes).contains(&offset).then_some(1);
            assert_eq!(hits(&mut guest, STORE_BYTE), expected, "{bytes} bytes, offset {offset}");
        }
    }
}

#[test]
fn a_wide_access_meets_a_watchpoint_inside_it() {
    for (offset, expected) in [(0, None), (1, Some(1)), (8, Some(1)), (9, None)] {
        let mut guest = Guest::kernel();
        watch(&mut guest, CELL + 8, WRITE, ONE);
        guest.set(gpr::RBX, CELL + offset);
        assert_eq!(hits(&mut guest, STORE), expected, "offset {offset}");
    }
}

#[test]
fn only_access_watchpoints_see_reads() {
    for (condition, expected) in [(WRITE, None), (ACCESS, Some(1))] {
        let mut guest = Guest::kernel();
        watch(&mut guest, CELL, condition, ONE);
        guest.set(gpr::RBX, CELL);
        assert_eq!(hits(&mut guest, LOAD_BYTE), expected);
    }
}

#[test]
fn a_disabled_breakpoint_does_nothing() {
    let mut guest = Guest::kernel();
    watch(&mut guest, CELL, WRITE, ONE);
    guest.cpu.dr[7] &= !3;
    guest.set(gpr::RBX, CELL);
    assert_eq!(hits(&mut guest, STORE_BYTE), None);
}

#[test]
fn the_trap_comes_after_the_instruction_with_its_effect() {
    let mut guest = Guest::kernel();
    watch(&mut guest, CELL, WRITE, FOUR);
    guest.set(gpr::RBX, CELL).set(gpr::RAX, 0x1234);
    assert_eq!(hits(&mut guest, STORE), Some(1));
    assert_eq!((guest.peek64(CELL), guest.cpu.rip), (0x1234, KERNEL_CODE + 3));
}

#[test]
fn the_stack_and_addresses_relative_to_the_instruction_are_watched_too() {
    let mut guest = Guest::kernel();
    watch(&mut guest, KERNEL_STACK - 8, WRITE, EIGHT);
    assert_eq!(hits(&mut guest, &[0x50]), Some(1), "push rax");
    let mut guest = Guest::kernel();
    watch(&mut guest, KERNEL_CODE + 6 + 0x100, WRITE, ONE);
    assert_eq!(hits(&mut guest, &[0x88, 0x05, 0, 1, 0, 0]), Some(1), "mov [rip + 0x100], al");
}

#[test]
fn a_repeated_store_traps_after_the_iteration_that_hits() {
    let mut guest = Guest::kernel();
    watch(&mut guest, CELL + 2, WRITE, ONE);
    guest.set(gpr::RDI, CELL).set(gpr::RCX, 8);
    assert_eq!(hits(&mut guest, &[0xf3, 0xaa]), Some(1));
    assert_eq!((guest.reg(gpr::RCX), guest.reg(gpr::RDI), guest.cpu.rip), (5, CELL + 3, KERNEL_CODE));
    assert_ne!(guest.cpu.rflags_system & rflags::RF, 0, "its own breakpoint must not strike again");
}

#[test]
fn a_load_of_ss_holds_its_watchpoint_back_for_one_instruction() {
    let mut guest = Guest::kernel();
    guest.poke(CELL, &DATA.to_le_bytes());
    watch(&mut guest, CELL, ACCESS, TWO);
    guest.set(gpr::RBX, CELL);
    assert_eq!(hits(&mut guest, &[0x8e, 0x13]), None, "mov ss, [rbx]");
    assert_eq!(hits(&mut guest, &[0x90]), Some(1), "nop");
}

#[test]
fn int1_after_a_load_of_ss_takes_the_held_watchpoint_with_it() {
    let mut guest = Guest::kernel();
    guest.poke(CELL, &DATA.to_le_bytes());
    watch(&mut guest, CELL, ACCESS, TWO);
    guest.set(gpr::RBX, CELL);
    assert_eq!(hits(&mut guest, &[0x8e, 0x13]), None, "mov ss, [rbx]");
    assert_eq!(hits(&mut guest, &[0xf1]), None, "int1: one #DB, not a second on top of its frame");
    assert_ne!(guest.cpu.dr[6] & 1, 0, "the handler learns of the watchpoint");
}

#[test]
fn an_instruction_breakpoint_is_a_fault_that_rf_and_a_load_of_ss_suppress() {
    let mut guest = Guest::kernel();
    watch(&mut guest, KERNEL_CODE, 0, ONE);
    assert!(guest.cpu.instruction_breakpoint().is_err());
    assert_eq!(
        guest.cpu.exception.take().map(|exception| (exception.vector, exception.address)),
        Some((vector::DB, 1))
    );
    guest.cpu.rflags_system |= rflags::RF;
    assert!(guest.cpu.instruction_breakpoint().is_ok());
    guest.ok(&[0x90]);
    assert_eq!(guest.cpu.rflags_system & rflags::RF, 0, "RF holds for one instruction");
    guest.cpu.rip = KERNEL_CODE;
    guest.cpu.shadow_debug_traps();
    assert!(guest.cpu.instruction_breakpoint().is_ok());
}

#[test]
fn iret_restores_rf_where_it_matters_and_faults_save_it() {
    let mut guest = Guest::kernel();
    watch(&mut guest, 0x5000_0000, 0, ONE);
    let flags = rflags::RESERVED_ONE | rflags::RF;
    guest.push64(&[u64::from(DATA), KERNEL_STACK, flags, u64::from(CODE64), KERNEL_CODE]);
    guest.ok(&[0x48, 0xcf]);
    assert_ne!(guest.cpu.rflags_system & rflags::RF, 0);
    guest.deliver(Exception::ud()).unwrap();
    let frame = guest.reg(gpr::RSP);
    assert_ne!(guest.peek64(frame + 16) & rflags::RF, 0);
    assert_eq!(guest.cpu.rflags_system & rflags::RF, 0);
}

#[test]
fn io_breakpoints_need_debugging_extensions() {
    let mut guest = Guest::kernel();
    watch(&mut guest, 0x81, IO, ONE);
    assert_eq!(hits(&mut guest, &[0xe6, 0x81]), None, "out 0x81, al");
    guest.cpu.cr4 |= bits::CR4_DE;
    assert_eq!(hits(&mut guest, &[0xe6, 0x81]), Some(1));
    assert_eq!(hits(&mut guest, &[0xe6, 0x82]), None);
    assert_eq!(hits(&mut guest, &[0xe7, 0x80]), Some(1), "out 0x80, eax covers port 0x81");
}

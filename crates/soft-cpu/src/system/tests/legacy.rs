//! 16- and 32-bit oddities, and the segment checks that 64-bit code does not know.

use super::*;
use crate::fault::vector;

#[test]
fn pusha_and_popa_are_each_others_inverse() {
    let mut guest = Guest::protected();
    for register in [0, 1, 2, 3, 5, 6, 7] {
        guest.set(register, 0x1111_1111 * (register as u64 + 1));
    }
    guest.ok(&[0x60]); // pushad
    assert_eq!(guest.reg(gpr::RSP), KERNEL_STACK - 32);
    assert_eq!(guest.peek32(KERNEL_STACK - 20), KERNEL_STACK as u32, "the stack pointer as it was before");
    let before = guest.cpu.regs;
    guest.cpu.regs[..4].fill(0);
    guest.ok(&[0x61]); // popad
    assert_eq!(guest.cpu.regs[..4], before[..4]);
    assert_eq!(guest.reg(gpr::RSP), KERNEL_STACK);
}

#[test]
fn enter_builds_nested_frames_and_leave_undoes_them() {
    let mut guest = Guest::kernel();
    guest.set(gpr::RBP, 0x8800);
    guest.poke(0x8800 - 8, &0xabcd_u64.to_le_bytes());

    guest.ok(&[0xc8, 0x20, 0x00, 0x02]); // enter 32, 2

    let frame = KERNEL_STACK - 8;
    assert_eq!(guest.reg(gpr::RBP), frame);
    assert_eq!([frame, frame - 8, frame - 16].map(|a| guest.peek64(a)), [0x8800, 0xabcd, frame]);
    assert_eq!(guest.reg(gpr::RSP), frame - 16 - 32);
    guest.ok(&[0xc9]); // leave
    assert_eq!((guest.reg(gpr::RBP), guest.reg(gpr::RSP)), (0x8800, KERNEL_STACK));
}

#[test]
fn bound_checks_both_ends() {
    const BOUND: &[u8] = &[0x62, 0x05, 0, 0x80, 0, 0]; // bound eax, [0x8000]
    let mut guest = Guest::protected();
    guest.poke(0x8000, &(-5_i32).to_le_bytes());
    guest.poke(0x8004, &9_i32.to_le_bytes());
    guest.set(gpr::RAX, u64::from(-5_i32 as u32)).ok(BOUND);
    guest.set(gpr::RAX, 10);
    assert_eq!(guest.fault(BOUND), (vector::BR, None));
}

#[test]
fn a_pop_to_memory_computes_its_address_after_the_pop() {
    let mut guest = Guest::kernel();
    guest.push64(&[0x1234]);
    guest.ok(&[0x8f, 0x44, 0x24, 0x10]); // pop qword [rsp + 16]
    assert_eq!(guest.peek64(KERNEL_STACK + 16), 0x1234);
    assert_eq!(guest.reg(gpr::RSP), KERNEL_STACK);
}

#[test]
fn a_pop_to_memory_that_faults_leaves_the_stack() {
    let mut guest = Guest::kernel();
    guest.push64(&[1]).set(gpr::RBX, UNMAPPED);
    assert_eq!(guest.fault(&[0x8f, 0x03]), (vector::PF, Some(2))); // pop qword [rbx]
}

#[test]
fn segment_limits_hold_in_protected_mode() {
    let mut guest = Guest::protected();
    guest.cpu.segments[seg::DS].limit = 0x7fff;
    guest.cpu.segments[seg::ES].attributes = 0;
    assert_eq!(guest.fault(&[0xa0, 0, 0x80, 0, 0]), (vector::GP, Some(0))); // mov al, [0x8000]
    guest.ok(&[0xa0, 0xff, 0x7f, 0, 0]);
    assert_eq!(guest.fault(&[0x26, 0xa0, 0, 0x70, 0, 0]), (vector::GP, Some(0)), "a null segment"); // es:
}

#[test]
fn code_segments_cannot_be_written() {
    let mut guest = Guest::protected();
    assert_eq!(guest.fault(&[0x2e, 0xa2, 0, 0x80, 0, 0]), (vector::GP, Some(0))); // mov [cs:0x8000], al
}

#[test]
fn an_lds_loads_register_and_segment() {
    let mut guest = Guest::protected();
    guest.poke(0x8000, &0x1122_3344_u32.to_le_bytes());
    guest.poke(0x8004, &DATA.to_le_bytes());
    guest.ok(&[0xc5, 0x1d, 0, 0x80, 0, 0]); // lds ebx, [0x8000]
    assert_eq!((guest.reg(gpr::RBX), guest.selector(seg::DS)), (0x1122_3344, DATA));
}

#[test]
fn segment_registers_are_pushed_at_operand_size() {
    let mut guest = Guest::protected();
    guest.ok(&[0x1e]); // push ds
    assert_eq!((guest.reg(gpr::RSP), guest.peek32(KERNEL_STACK - 4)), (KERNEL_STACK - 4, u32::from(DATA)));
    guest.ok(&[0x07]); // pop es
    assert_eq!((guest.reg(gpr::RSP), guest.selector(seg::ES)), (KERNEL_STACK, DATA));
}

#[test]
fn arpl_raises_the_requested_privilege() {
    let mut guest = Guest::protected();
    guest.set(gpr::RAX, 0x10).set(gpr::RCX, 3).ok(&[0x63, 0xc8]); // arpl ax, cx
    assert_eq!((guest.reg(gpr::RAX), guest.cpu.rflags() & rflags::ZF), (0x13, rflags::ZF));
}

#[test]
fn real_mode_loads_make_paragraphs() {
    let mut guest = Guest::real();
    guest.set(gpr::RAX, 0x1234).ok(&[0x8e, 0xd8]); // mov ds, ax
    assert_eq!(guest.cpu.segments[seg::DS].base, 0x1_2340);
    guest.ok(&[0xea, 0x10, 0x00, 0x00, 0x20]); // jmp 0x2000:0x10
    assert_eq!((guest.cpu.segments[seg::CS].base, guest.cpu.rip), (0x2_0000, 0x10));
}

#[test]
fn a_32_bit_iret_returns_to_ring_3() {
    let mut guest = Guest::protected();
    let frame = [u32::from(USER_DATA), USER_STACK as u32, 0x202, u32::from(USER_CODE32), USER_CODE as u32];
    let top = KERNEL_STACK - 20;
    for (address, value) in (top..).step_by(4).zip(frame.iter().rev()) {
        guest.poke(address, &value.to_le_bytes());
    }
    guest.set(gpr::RSP, top).ok(&[0xcf]);
    assert_eq!((guest.cpu.cpl, guest.cpu.rip, guest.reg(gpr::RSP)), (3, USER_CODE, USER_STACK));
    assert_eq!((guest.selector(seg::DS), guest.cpu.rflags()), (0, 0x202));
}

/// Runs one instruction at `ip` of the code segment at 0x10000.
fn real_at(ip: u64, bytes: &[u8], prepare: impl FnOnce(&mut Guest)) -> Guest {
    let mut guest = Guest::real();
    guest.cpu.rip = ip;
    prepare(&mut guest);
    guest.ok(bytes);
    guest
}

#[test]
fn branches_of_16_bit_code_wrap_within_64_kib() {
    let ip = |at, bytes: &[u8]| real_at(at, bytes, |_| ()).cpu.rip;
    assert_eq!(ip(0xfff0, &[0xeb, 0x20]), 0x0012, "jmp short forwards");
    assert_eq!(ip(0x0010, &[0xeb, 0x80]), 0xff92, "jmp short backwards");
    assert_eq!(ip(0x8000, &[0xe9, 0xfd, 0x8f]), 0x1000, "jmp near");
    assert_eq!(ip(0xfff0, &[0x73, 0x20]), 0x0012, "jnc");
    let call = real_at(0xfff0, &[0xe8, 0x0d, 0x10], |_| ());
    assert_eq!((call.cpu.rip, call.reg(gpr::RSP)), (0x1000, KERNEL_STACK - 2));
}

#[test]
fn a_32_bit_operand_size_keeps_all_of_the_instruction_pointer_in_16_bit_code() {
    let mut guest = real_at(0x100, &[0x66, 0xe8, 0x00, 0x10, 0, 0], |_| ());
    assert_eq!((guest.cpu.rip, guest.reg(gpr::RSP)), (0x1106, KERNEL_STACK - 4));
    assert_eq!(guest.peek32(KERNEL_STACK - 4), 0x106);
    guest.ok(&[0x66, 0xc3]);
    assert_eq!((guest.cpu.rip, guest.reg(gpr::RSP)), (0x106, KERNEL_STACK));
}

#[test]
fn counting_branches_use_the_register_of_their_address_size() {
    let cx = real_at(0, &[0xe2, 0x10], |guest| _ = guest.set(gpr::RCX, 0xabcd_0001));
    assert_eq!((cx.cpu.rip, cx.reg(gpr::RCX)), (2, 0xabcd_0000), "loop with CX");
    let ecx = real_at(0, &[0x67, 0xe2, 0x10], |guest| _ = guest.set(gpr::RCX, 0x1_0000));
    assert_eq!((ecx.cpu.rip, ecx.reg(gpr::RCX)), (0x13, 0xffff), "loop with ECX");
    let jcxz = real_at(0, &[0xe3, 0x10], |guest| _ = guest.set(gpr::RCX, 0xabcd_0000));
    assert_eq!(jcxz.cpu.rip, 0x12);
}

#[test]
fn addresses_of_16_bit_code_wrap_within_their_segment() {
    let guest = real_at(0, &[0x8a, 0x00], |guest| {
        guest.set(gpr::RBX, 0xdead_fff0).set(gpr::RSI, 0x20).poke(0x10, &[0x5a]);
    });
    assert_eq!(guest.reg(gpr::RAX) & 0xff, 0x5a, "mov al, [bx + si]");
    let mut guest = real_at(0, &[0xac], |guest| {
        guest.set(gpr::RSI, 0xabcd_ffff).poke(0xffff, &[0x77]);
    });
    assert_eq!((guest.reg(gpr::RAX) & 0xff, guest.reg(gpr::RSI)), (0x77, 0xabcd_0000), "lodsb");
    guest.set(gpr::RBX, 0xffff);
    assert_eq!(guest.fault(&[0x8b, 0x07]), (vector::GP, Some(0)), "mov ax, [bx] across the limit");
}

#[test]
fn a_16_bit_stack_wraps_and_keeps_the_upper_half_of_the_pointer() {
    let mut guest = real_at(0, &[0x50], |guest| _ = guest.set(gpr::RSP, 0x1234_0000).set(gpr::RAX, 0xbeef));
    assert_eq!((guest.reg(gpr::RSP), guest.peek16(0xfffe)), (0x1234_fffe, 0xbeef));
    guest.ok(&[0x5b]);
    assert_eq!((guest.reg(gpr::RSP), guest.reg(gpr::RBX)), (0x1234_0000, 0xbeef));
    guest.set(gpr::RSP, 1);
    assert_eq!(guest.fault(&[0x50]), (vector::SS, Some(0)), "push across the limit");
}

#[test]
fn hot_stack_operations_obey_the_stack_segments_limit() {
    let mut guest = Guest::protected();
    let stack = Segment { selector: DATA, attributes: 0x4093, limit: 0x8fff, base: 0 };
    guest.cpu.set_segment(seg::SS, stack);
    guest.cpu.refresh();
    guest.set(gpr::RSP, 0x9000).ok(&[0x50]); // push eax
    guest.set(gpr::RSP, 0x9001);
    assert_eq!(guest.fault(&[0x50]), (vector::SS, Some(0)));
    guest.set(gpr::RSP, 0x8ffd);
    assert_eq!(guest.fault(&[0x58]), (vector::SS, Some(0)), "pop eax");
    assert_eq!(guest.fault(&[0xc3]), (vector::SS, Some(0)), "ret");
}

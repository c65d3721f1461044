//! IRET, SYSCALL and SYSRET, far branches and the segment loads that go with them.

use super::*;
use crate::cpu::CodeSize;
use crate::fault::vector;

const IRETQ: &[u8] = &[0x48, 0xcf];
const SYSCALL: &[u8] = &[0x0f, 0x05];
const SYSRETQ: &[u8] = &[0x48, 0x0f, 0x07];
const SYSRETL: &[u8] = &[0x0f, 0x07];

fn user_frame(flags: u64) -> [u64; 5] {
    [u64::from(USER_DATA), USER_STACK, flags, u64::from(USER_CODE64), USER_CODE]
}

#[test]
fn iretq_goes_to_ring_3() {
    let mut guest = Guest::kernel();
    guest.cpu.nmi_masked = true;

    guest.push64(&user_frame(rflags::IF | rflags::ZF | 2)).ok(IRETQ);

    assert_eq!((guest.cpu.cpl, guest.cpu.rip, guest.reg(gpr::RSP)), (3, USER_CODE, USER_STACK));
    assert_eq!((guest.selector(seg::CS), guest.selector(seg::SS)), (USER_CODE64, USER_DATA));
    assert_eq!(guest.cpu.rflags(), rflags::IF | rflags::ZF | 2);
    assert!(!guest.cpu.nmi_masked, "IRET ends NMI handling");
    assert_eq!(guest.selector(seg::DS), 0, "data segments of the inner ring become null");
}

#[test]
fn iretq_in_the_same_ring_pops_the_stack_too() {
    let mut guest = Guest::kernel();
    guest.push64(&[0, 0x8888, 2, u64::from(CODE64), KERNEL_CODE + 0x100]).ok(IRETQ);
    assert_eq!((guest.cpu.rip, guest.reg(gpr::RSP), guest.selector(seg::SS)), (KERNEL_CODE + 0x100, 0x8888, 0));
}

#[test]
fn iretq_enters_compatibility_mode() {
    let mut guest = Guest::kernel();
    let frame = [u64::from(USER_DATA), USER_STACK, 2, u64::from(USER_CODE32), USER_CODE];
    guest.push64(&frame).ok(IRETQ);
    assert_eq!((guest.cpu.code_size, guest.cpu.cpl), (CodeSize::Bits32, 3));
}

#[test]
fn iretq_refuses_bad_frames() {
    let bad = [
        ([0, 0, 2, 0, 0], (vector::GP, Some(0))),
        ([u64::from(USER_DATA), 0, 2, u64::from(USER_CODE64), 1 << 50], (vector::GP, Some(0))),
        ([u64::from(DATA), 0, 2, u64::from(USER_CODE64), 0], (vector::GP, Some(u32::from(DATA)))),
        ([0, 0, 2, u64::from(USER_CODE64), 0], (vector::GP, Some(0))),
        ([0, 0, 2, u64::from(DATA), 0], (vector::GP, Some(u32::from(DATA)))),
        ([0, 0, 2, 0xf8, 0], (vector::GP, Some(0xf8))),
    ];
    for (frame, fault) in bad {
        let mut guest = Guest::kernel();
        guest.push64(&frame);
        assert_eq!(guest.fault(IRETQ), fault, "{frame:x?}");
    }
}

#[test]
fn iretq_refuses_nested_tasks_and_inner_rings() {
    let mut guest = Guest::kernel();
    guest.cpu.set_rflags(rflags::NT);
    guest.push64(&user_frame(2));
    assert_eq!(guest.fault(IRETQ), (vector::GP, Some(0)));

    let mut guest = Guest::user();
    guest.push64(&[u64::from(DATA), 0, 2, u64::from(CODE64), 0]);
    assert_eq!(guest.fault(IRETQ), (vector::GP, Some(u32::from(CODE64))));
}

#[test]
fn iretq_in_ring_3_changes_neither_if_nor_iopl() {
    let mut guest = Guest::user();
    guest.push64(&user_frame(rflags::IOPL | rflags::CF | 2)).ok(IRETQ);
    assert_eq!(guest.cpu.rflags(), rflags::IF | rflags::CF | 2);
}

#[test]
fn syscall_and_sysret_are_each_others_inverse() {
    let mut guest = Guest::user();
    guest.cpu.msrs.lstar = HANDLER;
    guest.cpu.msrs.sfmask = rflags::IF | rflags::TF;
    guest.cpu.set_rflags(rflags::IF | rflags::CF);
    let flags = guest.cpu.rflags();

    guest.ok(SYSCALL);

    assert_eq!((guest.cpu.cpl, guest.cpu.rip), (0, HANDLER));
    assert_eq!((guest.reg(gpr::RCX), guest.reg(gpr::R11)), (USER_CODE + 2, flags));
    assert_eq!(guest.cpu.rflags(), rflags::CF | 2);
    assert_eq!((guest.selector(seg::CS), guest.selector(seg::SS)), (CODE64, DATA));
    guest.ok(SYSRETQ);
    assert_eq!((guest.cpu.cpl, guest.cpu.rip, guest.cpu.rflags()), (3, USER_CODE + 2, flags));
    assert_eq!((guest.selector(seg::CS), guest.selector(seg::SS)), (USER_CODE64, USER_DATA));
}

#[test]
fn syscall_from_compatibility_mode_enters_cstar() {
    let mut guest = Guest::kernel();
    guest.cpu.msrs.cstar = HANDLER;
    guest.set(gpr::RCX, USER_CODE).set(gpr::R11, rflags::IF | 2).ok(SYSRETL);
    assert_eq!((guest.cpu.code_size, guest.selector(seg::CS)), (CodeSize::Bits32, USER_CODE32));

    guest.ok(SYSCALL);

    assert_eq!((guest.cpu.rip, guest.cpu.code_size, guest.cpu.cpl), (HANDLER, CodeSize::Bits64, 0));
    assert_eq!(guest.reg(gpr::RCX), USER_CODE + 2);
}

#[test]
fn syscall_needs_to_be_enabled_and_sysret_ring_0() {
    let mut guest = Guest::user();
    assert_eq!(guest.fault(SYSRETQ), (vector::GP, Some(0)));
    guest.cpu.efer &= !bits::EFER_SCE;
    assert_eq!(guest.fault(SYSCALL), (vector::UD, None));
}

#[test]
fn sysenter_does_not_exist_in_long_mode() {
    let mut guest = Guest::user();
    assert_eq!(guest.fault(&[0x0f, 0x34]), (vector::UD, None));
}

#[test]
fn sysenter_and_sysexit_work_in_protected_mode() {
    let mut guest = Guest::protected();
    // Sysenter selectors follow one another: code, stack, user code, user stack.
    (guest.cpu.msrs.sysenter_cs, guest.cpu.msrs.sysenter_esp) = (0x80, 0x8000);
    guest.cpu.msrs.sysenter_eip = HANDLER;
    guest.ok(&[0x0f, 0x34]);
    assert_eq!((guest.cpu.rip, guest.reg(gpr::RSP), guest.selector(seg::SS)), (HANDLER, 0x8000, 0x88));
    guest.set(gpr::RCX, USER_STACK).set(gpr::RDX, USER_CODE).ok(&[0x0f, 0x35]);
    assert_eq!((guest.cpu.rip, guest.reg(gpr::RSP), guest.cpu.cpl), (USER_CODE, USER_STACK, 3));
    assert_eq!((guest.selector(seg::CS), guest.selector(seg::SS)), (0x93, 0x9b));
}

#[test]
fn swapgs_exchanges_the_bases() {
    let mut guest = Guest::kernel();
    guest.cpu.msrs.kernel_gs_base = 0x1111;
    crate::system::syscall::set_base(&mut guest.cpu, seg::GS, 0x2222);

    guest.ok(&[0x0f, 0x01, 0xf8]);

    assert_eq!((guest.cpu.segments[seg::GS].base, guest.cpu.msrs.kernel_gs_base), (0x1111, 0x2222));
    let mut guest = Guest::user();
    assert_eq!(guest.fault(&[0x0f, 0x01, 0xf8]), (vector::GP, Some(0)));
}

#[test]
fn base_instructions_check_their_operand_and_their_switch() {
    const WRGSBASE_RAX: &[u8] = &[0xf3, 0x48, 0x0f, 0xae, 0xd8];
    let mut guest = Guest::user();
    guest.set(gpr::RAX, 0x7fff_0000_1000).ok(WRGSBASE_RAX);
    guest.ok(&[0xf3, 0x48, 0x0f, 0xae, 0xc9]); // rdgsbase rcx
    assert_eq!(guest.reg(gpr::RCX), 0x7fff_0000_1000);

    guest.set(gpr::RAX, 1 << 50);
    assert_eq!(guest.fault(WRGSBASE_RAX), (vector::GP, Some(0)));
    guest.cpu.cr4 &= !bits::CR4_FSGSBASE;
    assert_eq!(guest.fault(WRGSBASE_RAX), (vector::UD, None));
}

#[test]
fn a_far_return_changes_the_code_size() {
    let mut guest = Guest::kernel();
    guest.push64(&[u64::from(CODE32), KERNEL_CODE + 0x80]).ok(&[0x48, 0xcb]); // retfq
    assert_eq!((guest.cpu.code_size, guest.cpu.rip), (CodeSize::Bits32, KERNEL_CODE + 0x80));

    // jmp CODE64:KERNEL_CODE
    guest.ok(&[0xea, 0, 0, 1, 0, CODE64 as u8, 0]);
    assert_eq!((guest.cpu.code_size, guest.cpu.rip), (CodeSize::Bits64, KERNEL_CODE));
}

#[test]
fn a_far_call_and_return_through_memory() {
    let mut guest = Guest::kernel();
    guest.poke(0x8000, &(HANDLER as u32).to_le_bytes());
    guest.poke(0x8004, &CODE64.to_le_bytes());

    guest.ok(&[0xff, 0x1c, 0x25, 0, 0x80, 0, 0]); // call far [0x8000]

    assert_eq!((guest.cpu.rip, guest.reg(gpr::RSP)), (HANDLER, KERNEL_STACK - 8));
    assert_eq!(guest.peek32(KERNEL_STACK - 8), KERNEL_CODE as u32 + 7);
    guest.ok(&[0xcb]); // retf
    assert_eq!((guest.cpu.rip, guest.reg(gpr::RSP)), (KERNEL_CODE + 7, KERNEL_STACK));
}

#[test]
fn a_call_gate_leads_inwards_and_a_far_return_out_again() {
    let mut guest = Guest::user();
    let gate = HANDLER & 0xffff | u64::from(CODE64) << 16 | 0xec << 40 | (HANDLER & 0xffff_0000) << 32;
    guest.poke(GDT + u64::from(GATE), &gate.to_le_bytes());
    guest.poke(USER_MEMORY + 4, &(GATE | 3).to_le_bytes());
    guest.set(gpr::RAX, USER_MEMORY);

    guest.ok(&[0xff, 0x18]); // call far [rax]

    assert_eq!((guest.cpu.cpl, guest.cpu.rip, guest.reg(gpr::RSP)), (0, HANDLER, RSP0 - 32));
    let stack = [8, 16, 24, 32].map(|depth| guest.peek64(RSP0 - depth));
    assert_eq!(stack, [u64::from(USER_DATA), USER_STACK, u64::from(USER_CODE64), USER_CODE + 2]);
    guest.ok(&[0x48, 0xcb]); // retfq
    assert_eq!((guest.cpu.cpl, guest.cpu.rip, guest.reg(gpr::RSP)), (3, USER_CODE + 2, USER_STACK));
}

#[test]
fn far_transfers_respect_rings() {
    let mut guest = Guest::user();
    guest.poke(USER_MEMORY + 4, &CODE64.to_le_bytes());
    guest.set(gpr::RAX, USER_MEMORY);
    assert_eq!(guest.fault(&[0xff, 0x28]), (vector::GP, Some(u32::from(CODE64)))); // jmp far [rax]
    guest.poke(USER_MEMORY + 4, &TASK.to_le_bytes());
    assert_eq!(guest.fault(&[0xff, 0x28]), (vector::GP, Some(u32::from(TASK))), "no task switches");
}

#[test]
fn stack_segment_loads_are_strict_and_cast_a_shadow() {
    const MOV_SS_AX: &[u8] = &[0x8e, 0xd0];
    let mut guest = Guest::kernel();
    guest.set(gpr::RAX, u64::from(DATA)).ok(MOV_SS_AX);
    assert!(guest.cpu.interrupt_shadow);
    guest.set(gpr::RAX, 0).ok(MOV_SS_AX).ok(&[0x90]);
    guest.set(gpr::RAX, u64::from(USER_DATA));
    assert_eq!(guest.fault(MOV_SS_AX), (vector::GP, Some(u32::from(USER_DATA & !3))));

    let mut guest = Guest::user();
    guest.set(gpr::RAX, 0);
    assert_eq!(guest.fault(MOV_SS_AX), (vector::GP, Some(0)), "ring 3 has no null stack");
    guest.set(gpr::RAX, u64::from(ABSENT));
    assert_eq!(guest.fault(&[0x8e, 0xd8]), (vector::GP, Some(u32::from(ABSENT)))); // mov ds, ax
    assert_eq!(guest.fault(&[0x8e, 0xc8]), (vector::UD, None)); // mov cs, ax
}

#[test]
fn an_absent_data_segment_is_not_present() {
    let mut guest = Guest::kernel();
    guest.set(gpr::RAX, u64::from(ABSENT));
    assert_eq!(guest.fault(&[0x8e, 0xd8]), (vector::NP, Some(u32::from(ABSENT))));
}

#[test]
fn a_null_selector_clears_the_base_of_fs() {
    let mut guest = Guest::kernel();
    crate::system::syscall::set_base(&mut guest.cpu, seg::FS, 0x1234);
    guest.set(gpr::RAX, 0).ok(&[0x8e, 0xe0]); // mov fs, ax
    assert_eq!(guest.cpu.segments[seg::FS].base, 0);
}

#[test]
fn loading_the_task_register_marks_the_task_busy() {
    let mut guest = Guest::kernel();
    guest.set(gpr::RAX, u64::from(TASK)).ok(&[0x0f, 0x00, 0xd8]); // ltr ax
    assert_eq!(guest.peek::<1>(GDT + u64::from(TASK) + 5), [0x8b]);
    assert_eq!((guest.cpu.tr.base, guest.cpu.tr.limit), (TSS, 0x6f));
    assert_eq!(guest.fault(&[0x0f, 0x00, 0xd8]), (vector::GP, Some(u32::from(TASK))), "busy already");
}

#[test]
fn local_descriptors_are_found_after_lldt() {
    let mut guest = Guest::kernel();
    guest.poke(0x8000 + 8, &descriptor(0x77_0000, 0xffff, 0x00f3).to_le_bytes());
    guest.set(gpr::RAX, u64::from(LOCAL_TABLE)).ok(&[0x0f, 0x00, 0xd0]); // lldt ax
    guest.set(gpr::RAX, 0xc).ok(&[0x8e, 0xe8]); // mov gs, ax
    assert_eq!((guest.cpu.segments[seg::GS].base, guest.cpu.segments[seg::GS].limit), (0x77_0000, 0xffff));
}

#[test]
fn lar_lsl_and_verr_report_through_zf() {
    let mut guest = Guest::user();
    guest.set(gpr::RCX, u64::from(USER_DATA)).ok(&[0x0f, 0x02, 0xc1]); // lar eax, ecx
    assert_eq!((guest.reg(gpr::RAX), guest.cpu.rflags() & rflags::ZF), (0xcf_f300, rflags::ZF));
    guest.ok(&[0x0f, 0x03, 0xc1]); // lsl eax, ecx
    assert_eq!(guest.reg(gpr::RAX), 0xffff_ffff);
    guest.set(gpr::RCX, u64::from(DATA)).ok(&[0x0f, 0x02, 0xc1]);
    assert_eq!((guest.reg(gpr::RAX), guest.cpu.rflags() & rflags::ZF), (0xffff_ffff, 0), "not visible to ring 3");
    guest.set(gpr::RCX, u64::from(USER_CODE64)).ok(&[0x0f, 0x00, 0xe1]); // verr cx
    assert_ne!(guest.cpu.rflags() & rflags::ZF, 0);
    guest.ok(&[0x0f, 0x00, 0xe9]); // verw cx
    assert_eq!(guest.cpu.rflags() & rflags::ZF, 0);
}

#[test]
fn the_way_from_real_to_long_mode() {
    let mut guest = Guest::real();
    guest.write_paging();
    guest.write_gdt();
    guest.poke(0x500, &[0xff, 0]);
    guest.poke(0x502, &(GDT as u32).to_le_bytes());

    guest.ok(&[0x66, 0x0f, 0x01, 0x16, 0x00, 0x05]); // lgdtd [0x500]
    assert_eq!(guest.cpu.gdtr, Table { base: GDT, limit: 0xff });
    guest.set(gpr::RAX, 0x11).ok(&[0x0f, 0x22, 0xc0]); // mov cr0, eax
    guest.ok(&[0x66, 0xea, 0x40, 0, 1, 0, CODE32 as u8, 0]); // jmp CODE32:KERNEL_CODE + 0x40
    assert_eq!((guest.cpu.code_size, guest.cpu.rip), (CodeSize::Bits32, KERNEL_CODE + 0x40));
    guest.set(gpr::RAX, bits::CR4_PAE).ok(&[0x0f, 0x22, 0xe0]); // mov cr4, eax
    guest.set(gpr::RAX, TABLES).ok(&[0x0f, 0x22, 0xd8]); // mov cr3, eax
    guest.set(gpr::RCX, 0xc000_0080).set(gpr::RAX, bits::EFER_LME).set(gpr::RDX, 0).ok(&[0x0f, 0x30]); // wrmsr
    guest.set(gpr::RAX, 0x8000_0011).ok(&[0x0f, 0x22, 0xc0]);
    assert_eq!(guest.cpu.efer, bits::EFER_LME | bits::EFER_LMA);
    assert_eq!(guest.cpu.code_size, CodeSize::Bits32, "compatibility mode until the far jump");
    guest.ok(&[0xea, 0x80, 0, 1, 0, CODE64 as u8, 0]);
    assert_eq!((guest.cpu.code_size, guest.cpu.rip), (CodeSize::Bits64, KERNEL_CODE + 0x80));
}

#[test]
fn tables_beyond_4_gib_are_whole_in_compatibility_mode() {
    const HIGH: u64 = 1 << 39;
    let mut guest = Guest::user();
    // The second root entry leads to the programs' memory, so that an address cut to 32 bits leads elsewhere.
    guest.poke(0x1008, &0xc007_u64.to_le_bytes());
    guest.poke(0xc000, &0xd007_u64.to_le_bytes());
    guest.poke(0xd000, &(USER_CODE | 0x87).to_le_bytes());
    guest.poke(USER_CODE + 0x5ffd, &[1, 2, 3, 4, 5, 6, 7, 8]);
    guest.cpu.set_segment(seg::CS, Segment { selector: USER_CODE32, attributes: 0xc0fb, limit: u32::MAX, base: 0 });
    guest.cpu.refresh();
    let value = guest.cpu.load_system::<u64>(HIGH + 0x5ffd).unwrap();
    assert_eq!(value.to_le_bytes(), [1, 2, 3, 4, 5, 6, 7, 8]);
}

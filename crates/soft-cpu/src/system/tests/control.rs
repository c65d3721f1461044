//! Control registers, flags, MSRs and ports: who may do what.

use super::*;
use crate::fault::vector;
use crate::state::Activity;

const GP0: (u8, Option<u32>) = (vector::GP, Some(0));
const UD: (u8, Option<u32>) = (vector::UD, None);

const PUSHFQ: &[u8] = &[0x9c];
const POPFQ: &[u8] = &[0x9d];
const RDMSR: &[u8] = &[0x0f, 0x32];
const WRMSR: &[u8] = &[0x0f, 0x30];

fn wrmsr(guest: &mut Guest, msr: u32, value: u64) -> &mut Guest {
    guest.set(gpr::RCX, u64::from(msr)).set(gpr::RAX, value & 0xffff_ffff).set(gpr::RDX, value >> 32)
}

#[test]
fn privileged_instructions_fault_in_ring_3() {
    let instructions: [&[u8]; 12] = [
        &[0xf4],             // hlt
        &[0xfa],             // cli
        &[0xfb],             // sti
        &[0x0f, 0x06],       // clts
        &[0x0f, 0x09],       // wbinvd
        &[0x0f, 0x20, 0xc0], // mov rax, cr0
        &[0x0f, 0x22, 0xd8], // mov cr3, rax
        &[0x0f, 0x21, 0xf8], // mov rax, dr7
        RDMSR,
        WRMSR,
        &[0x0f, 0x01, 0x38],       // invlpg [rax]
        &[0x0f, 0x01, 0x14, 0x24], // lgdt [rsp]
    ];
    let mut guest = Guest::user();
    for instruction in instructions {
        assert_eq!(guest.fault(instruction), GP0, "{instruction:02x?}");
    }
}

#[test]
fn what_is_not_offered_is_an_invalid_opcode() {
    let instructions: [&[u8]; 6] = [
        &[0x0f, 0x01, 0xc8],             // monitor
        &[0x0f, 0x01, 0xc1],             // vmcall
        &[0x0f, 0x01, 0xd9],             // vmmcall
        &[0x0f, 0x0b],                   // ud2
        &[0xf3, 0x0f, 0x01, 0xe8],       // setssbsy
        &[0x0f, 0xc7, 0x6c, 0x24, 0x00], // xsaves [rsp]
    ];
    let mut guest = Guest::kernel();
    for instruction in instructions {
        assert_eq!(guest.fault(instruction), UD, "{instruction:02x?}");
    }
}

#[test]
fn control_registers_refuse_contradictions() {
    let cr0 = |guest: &mut Guest, value: u64| guest.set(gpr::RAX, value).fault(&[0x0f, 0x22, 0xc0]);
    let cr3 = |guest: &mut Guest, value: u64| guest.set(gpr::RAX, value).fault(&[0x0f, 0x22, 0xd8]);
    let cr4 = |guest: &mut Guest, value: u64| guest.set(gpr::RAX, value).fault(&[0x0f, 0x22, 0xe0]);
    let mut guest = Guest::kernel();
    assert_eq!(cr0(&mut guest, bits::CR0_PG), GP0, "paging without protection");
    assert_eq!(cr0(&mut guest, bits::CR0_PE | bits::CR0_PG | bits::CR0_NW), GP0);
    assert_eq!(cr0(&mut guest, bits::CR0_PE), GP0, "paging cannot stop in 64-bit code");
    assert_eq!(cr0(&mut guest, 1 << 32 | bits::CR0_PE | bits::CR0_PG), GP0);
    assert_eq!(cr3(&mut guest, 1 << 46), GP0, "beyond the physical addresses");
    assert_eq!(cr4(&mut guest, 0), GP0, "long mode needs PAE");
    assert_eq!(cr4(&mut guest, bits::CR4_PAE | 1 << 12), GP0, "LA57 is not offered");
    assert_eq!(guest.fault(&[0x0f, 0x20, 0xc8]), UD, "there is no CR1");
}

#[test]
fn cr8_is_the_platforms() {
    let mut guest = Guest::kernel();
    guest.set(gpr::RAX, 9).ok(&[0x44, 0x0f, 0x22, 0xc0]); // mov cr8, rax
    guest.ok(&[0x44, 0x0f, 0x20, 0xc1]); // mov rcx, cr8
    assert_eq!((*guest.notes.priority.lock().unwrap(), guest.reg(gpr::RCX)), (9, 9));
    guest.set(gpr::RAX, 16);
    assert_eq!(guest.fault(&[0x44, 0x0f, 0x22, 0xc0]), GP0);
}

#[test]
fn lmsw_cannot_leave_protected_mode() {
    let mut guest = Guest::kernel();
    guest.set(gpr::RAX, 0x8).ok(&[0x0f, 0x01, 0xf0]); // lmsw ax
    assert_eq!(guest.cpu.cr0 & 0xf, bits::CR0_PE | bits::CR0_TS);
    guest.ok(&[0x0f, 0x06]); // clts
    assert_eq!(guest.cpu.cr0 & 0xf, bits::CR0_PE);
}

#[test]
fn debug_registers_hold_and_guard_themselves() {
    let mut guest = Guest::kernel();
    guest.set(gpr::RAX, 0xffff_ffff).ok(&[0x0f, 0x23, 0xf0]); // mov dr6, rax
    guest.ok(&[0x0f, 0x21, 0xf1]); // mov rcx, dr6
    assert_eq!(guest.reg(gpr::RCX), 0xffff_efff, "reserved bits are ones, bit 12 is zero");
    guest.set(gpr::RAX, 1 << 32);
    assert_eq!(guest.fault(&[0x0f, 0x23, 0xf8]), GP0);

    guest.cpu.cr4 |= bits::CR4_DE;
    assert_eq!(guest.fault(&[0x0f, 0x21, 0xe0]), UD, "DR4 under debugging extensions");

    guest.cpu.dr[7] |= 1 << 13;
    let exception = guest.run(&[0x0f, 0x21, 0xf8]).unwrap_err(); // mov rax, dr7
    assert_eq!(exception.vector, vector::DB);
    guest.deliver(exception).unwrap();
    assert_eq!((guest.cpu.dr[6] >> 13 & 1, guest.cpu.dr[7] >> 13 & 1), (1, 0));
}

#[test]
fn popf_changes_what_the_privilege_allows() {
    let everything = 0x3f_7fd5;
    let mut guest = Guest::kernel();
    guest.push64(&[everything & !rflags::TF]).ok(POPFQ);
    let ring0 = guest.cpu.rflags();
    assert_eq!(ring0, everything & !(rflags::TF | rflags::VM | rflags::RF | rflags::VIF | rflags::VIP) | 2);

    let mut guest = Guest::user();
    guest.push64(&[(everything & !(rflags::TF | rflags::IF | rflags::AC))]).ok(POPFQ);
    let flags = guest.cpu.rflags();
    assert_eq!(flags & rflags::IOPL, 0, "ring 3 cannot raise its I/O privilege");
    assert_ne!(flags & rflags::IF, 0, "nor mask interrupts");
    assert_ne!(flags & rflags::NT, 0);
}

#[test]
fn a_16_bit_popf_leaves_the_upper_flags() {
    let mut guest = Guest::kernel();
    guest.cpu.set_rflags(rflags::ID | rflags::AC);
    guest.push64(&[0x00d5]).ok(&[0x66, 0x9d]);
    assert_eq!(guest.cpu.rflags(), rflags::ID | rflags::AC | 0xd5 | 2);
    assert_eq!(guest.reg(gpr::RSP), KERNEL_STACK - 6);
}

#[test]
fn pushf_hides_rf() {
    let mut guest = Guest::kernel();
    guest.cpu.set_rflags(rflags::CF | rflags::IF | rflags::RF);
    guest.ok(PUSHFQ);
    assert_eq!(guest.peek64(KERNEL_STACK - 8), rflags::CF | rflags::IF | 2);
}

#[test]
fn sti_casts_its_shadow_only_when_interrupts_were_off() {
    let mut guest = Guest::kernel();
    guest.ok(&[0xfb]);
    assert!(guest.cpu.interrupt_shadow);
    guest.ok(&[0x90]);
    assert!(!guest.cpu.interrupt_shadow);
    guest.ok(&[0xfb]);
    assert!(!guest.cpu.interrupt_shadow);
}

#[test]
fn stac_lifts_smap_until_clac() {
    let mut guest = Guest::kernel();
    guest.set(gpr::RAX, guest.cpu.cr4 | bits::CR4_SMAP).ok(&[0x0f, 0x22, 0xe0]); // mov cr4, rax
    guest.set(gpr::RBX, USER_MEMORY);
    const LOAD: &[u8] = &[0x8a, 0x0b]; // mov cl, [rbx]
    assert_eq!(guest.fault(LOAD), (vector::PF, Some(1)));
    guest.ok(&[0x0f, 0x01, 0xcb]).ok(LOAD); // stac
    guest.ok(&[0x0f, 0x01, 0xca]); // clac
    assert_eq!(guest.fault(LOAD), (vector::PF, Some(1)));
}

#[test]
fn efer_and_pat_are_checked() {
    let mut guest = Guest::kernel();
    assert_eq!(wrmsr(&mut guest, 0xc000_0080, 1 << 12).fault(WRMSR), GP0, "no virtualization here");
    assert_eq!(wrmsr(&mut guest, 0xc000_0080, bits::EFER_SCE).fault(WRMSR), GP0, "LME under paging");
    assert_eq!(wrmsr(&mut guest, 0x277, 2).fault(WRMSR), GP0, "there is no memory type 2");
    wrmsr(&mut guest, 0x277, 0x0105_0006_0007_0406).ok(WRMSR);
    assert_eq!(guest.cpu.msrs.pat, 0x0105_0006_0007_0406);
    wrmsr(&mut guest, 0xc000_0080, bits::EFER_LME | bits::EFER_SCE).ok(WRMSR);
    assert_eq!(guest.cpu.efer, bits::EFER_LME | bits::EFER_LMA | bits::EFER_SCE);
}

#[test]
fn addresses_in_msrs_must_be_canonical() {
    let mut guest = Guest::kernel();
    for msr in [0xc000_0082_u32, 0xc000_0083, 0xc000_0100, 0xc000_0101, 0xc000_0102, 0x175] {
        assert_eq!(wrmsr(&mut guest, msr, 1 << 50).fault(WRMSR), GP0, "{msr:#x}");
    }
    wrmsr(&mut guest, 0xc000_0101, 0xffff_8000_1234_0000).ok(WRMSR);
    assert_eq!(guest.cpu.regs[crate::cpu::slot::SEGMENT_BASES + seg::GS], 0xffff_8000_1234_0000);
}

#[test]
fn unknown_msrs_are_the_platforms_or_fault() {
    let mut guest = Guest::kernel();
    guest.set(gpr::RCX, u64::from(PLATFORM_MSR)).ok(RDMSR);
    assert_eq!((guest.reg(gpr::RDX), guest.reg(gpr::RAX)), (0x1122_3344, 0x5566_7788));
    wrmsr(&mut guest, PLATFORM_MSR, 7).ok(WRMSR);
    assert_eq!(*guest.notes.msrs.lock().unwrap(), [(PLATFORM_MSR, 7)]);
    guest.set(gpr::RCX, 0xdead);
    assert_eq!(guest.fault(RDMSR), GP0);
    assert_eq!(guest.fault(WRMSR), GP0);
}

#[test]
fn kernels_touch_amd_registers_without_expecting_faults() {
    let mut guest = Guest::kernel();
    for msr in [0xc001_0010_u32, 0xc001_0015, 0xc001_0055, 0xc001_0112, 0xc001_1029, 0x8b] {
        guest.set(gpr::RCX, u64::from(msr)).ok(RDMSR);
        assert_eq!((guest.reg(gpr::RAX), guest.reg(gpr::RDX)), (0, 0), "{msr:#x}");
        wrmsr(&mut guest, msr, 0xff).ok(WRMSR);
    }
}

#[test]
fn writing_the_time_stamp_counter_adjusts_it() {
    let mut guest = Guest::kernel();
    wrmsr(&mut guest, 0x10, 1000).ok(WRMSR);
    guest.ok(&[0x0f, 0x31]); // rdtsc
    assert_eq!((guest.reg(gpr::RDX), guest.reg(gpr::RAX)), (0, 1000));
    let adjust = 1000_u64.wrapping_sub(0x12_3456_789a);
    assert_eq!(guest.cpu.msrs.tsc_adjust, adjust);
    assert_eq!(*guest.notes.tsc_adjust.lock().unwrap(), adjust, "timers follow");
}

#[test]
fn the_time_stamp_counter_can_be_kept_from_programs() {
    let mut guest = Guest::user();
    guest.cpu.msrs.tsc_aux = 5;
    guest.ok(&[0x0f, 0x01, 0xf9]); // rdtscp
    assert_eq!(guest.reg(gpr::RCX), 5);
    guest.cpu.cr4 |= bits::CR4_TSD;
    assert_eq!(guest.fault(&[0x0f, 0x31]), GP0);
}

#[test]
fn umip_hides_the_tables_from_programs() {
    const SGDT: &[u8] = &[0x0f, 0x01, 0x44, 0x24, 0xf0]; // sgdt [rsp - 16]
    let mut guest = Guest::user();
    guest.ok(SGDT);
    assert_eq!(guest.peek16(USER_STACK - 16), 0xff);
    assert_eq!(guest.peek64(USER_STACK - 14), GDT);
    guest.cpu.cr4 |= bits::CR4_UMIP;
    assert_eq!(guest.fault(SGDT), GP0);
}

#[test]
fn cpuid_follows_the_cpu_and_its_state() {
    let mut guest = Guest::kernel();
    guest.set(gpr::RAX, 1).set(gpr::RCX, 0).ok(&[0x0f, 0xa2]);
    assert_eq!(guest.reg(gpr::RBX) >> 24, 1, "the APIC id of CPU 1");
    assert_ne!(guest.reg(gpr::RCX) & 1 << 27, 0, "OSXSAVE");
    guest.cpu.cr4 &= !bits::CR4_OSXSAVE;
    guest.set(gpr::RAX, 1).ok(&[0x0f, 0xa2]);
    assert_eq!(guest.reg(gpr::RCX) & 1 << 27, 0);
    guest.set(gpr::RAX, 0xb).set(gpr::RCX, 1).ok(&[0x0f, 0xa2]);
    assert_eq!((guest.reg(gpr::RAX), guest.reg(gpr::RBX), guest.reg(gpr::RDX)), (1, 2, 1));
}

#[test]
fn ports_need_privilege_or_the_bitmap() {
    const OUT_DX_AL: &[u8] = &[0xee];
    let mut guest = Guest::user();
    guest.set(gpr::RDX, 0x3f8).set(gpr::RAX, 0x41);
    assert_eq!(guest.fault(OUT_DX_AL), GP0);

    // A bitmap at the end of the task state: ports 0x3f8 and 0x3fa closed, the others open.
    guest.cpu.tr.limit = 0x68 + 0x2000;
    guest.poke(TSS + 102, &0x68_u16.to_le_bytes());
    guest.poke(TSS + 0x68 + 0x3f8 / 8, &[0b101]);
    assert_eq!(guest.fault(OUT_DX_AL), GP0);
    guest.set(gpr::RDX, 0x3f9).ok(OUT_DX_AL);
    assert_eq!(guest.fault(&[0x66, 0xef]), GP0, "a word reaches the closed port behind");

    guest.cpu.set_rflags(rflags::IOPL);
    guest.set(gpr::RDX, 0x3f8).ok(OUT_DX_AL);
    assert_eq!(*guest.notes.written.lock().unwrap(), [(0x3f9, vec![0x41]), (0x3f8, vec![0x41])]);
}

#[test]
fn in_writes_as_much_of_rax_as_it_reads() {
    let mut guest = Guest::kernel();
    guest.set(gpr::RAX, u64::MAX).ok(&[0xe4, 0x60]); // in al, 0x60
    assert_eq!(guest.reg(gpr::RAX), 0xffff_ffff_ffff_ff01);
    guest.ok(&[0xe5, 0x60]); // in eax, 0x60
    assert_eq!(guest.reg(gpr::RAX), 0x0202_0202);
}

#[test]
fn repeated_output_crosses_pages_and_counts_down() {
    let mut guest = Guest::kernel();
    let bytes: Vec<u8> = (0..=255).cycle().take(3000).collect();
    for (address, part) in (0x1_2800_u64..).step_by(100).zip(bytes.chunks(100)) {
        guest.poke(address, part);
    }
    guest.set(gpr::RSI, 0x1_2800).set(gpr::RCX, 3000).set(gpr::RDX, 0xe9);

    while guest.reg(gpr::RCX) != 0 {
        guest.cpu.rip = KERNEL_CODE;
        guest.ok(&[0xf3, 0x6e]); // rep outsb
    }

    let written: Vec<u8> = guest.notes.written.lock().unwrap().iter().flat_map(|(_, data)| data.clone()).collect();
    assert_eq!(written, bytes);
    assert_eq!((guest.reg(gpr::RSI), guest.cpu.rip), (0x1_2800 + 3000, KERNEL_CODE + 2));
}

#[test]
fn input_to_memory_that_faults_reads_nothing() {
    let mut guest = Guest::kernel();
    guest.set(gpr::RDI, UNMAPPED).set(gpr::RCX, 4).set(gpr::RDX, 0x1f0);
    assert_eq!(guest.fault(&[0xf3, 0x66, 0x6d]), (vector::PF, Some(2))); // rep insw
    assert_eq!(*guest.notes.reads.lock().unwrap(), 0);
}

#[test]
fn input_downwards_goes_element_by_element() {
    let mut guest = Guest::kernel();
    guest.cpu.set_rflags(rflags::DF);
    guest.set(gpr::RDI, 0x8002).set(gpr::RCX, 2).set(gpr::RDX, 0x1f0);
    while guest.reg(gpr::RCX) != 0 {
        guest.cpu.rip = KERNEL_CODE;
        guest.ok(&[0xf3, 0x66, 0x6d]);
    }
    assert_eq!(guest.peek::<4>(0x8000), [2, 2, 1, 1]);
    assert_eq!(guest.reg(gpr::RDI), 0x7ffe);
}

#[test]
fn invlpg_forgets_a_page() {
    let mut guest = Guest::kernel();
    const LOAD: &[u8] = &[0x8a, 0x0b]; // mov cl, [rbx]
    guest.set(gpr::RBX, USER_MEMORY).ok(LOAD);
    guest.poke(TABLES + 0x2008, &0_u64.to_le_bytes());
    guest.ok(&[0x0f, 0x01, 0x3b]); // invlpg [rbx]
    assert_eq!(guest.fault(LOAD), (vector::PF, Some(0)));
}

const HLT: &[u8] = &[0xf4];
const VMCALL: &[u8] = &[0x0f, 0x01, 0xc1];
const VMMCALL: &[u8] = &[0x0f, 0x01, 0xd9];
const KICK_CPU: u64 = 5;

#[test]
fn a_kicked_cpu_leaves_hlt_also_if_the_kick_came_first() {
    for call in [VMCALL, VMMCALL] {
        let mut guest = Guest::with_hypercalls();
        guest.ok(HLT);
        assert_eq!(guest.cpu.state().activity, Activity::Halted);
        guest.set(gpr::RAX, KICK_CPU).set(gpr::RCX, 1).ok(call).ok(HLT);
        assert_eq!((guest.reg(gpr::RAX), guest.cpu.state().activity), (0, Activity::Running));
    }
}

#[test]
fn a_kick_for_another_cpu_or_none_leaves_this_one_halted() {
    for target in [0, 2, u64::MAX] {
        let mut guest = Guest::with_hypercalls();
        guest.set(gpr::RAX, KICK_CPU).set(gpr::RCX, target).ok(VMMCALL).ok(HLT);
        assert_eq!((guest.reg(gpr::RAX), guest.cpu.state().activity), (0, Activity::Halted));
    }
}

#[test]
fn hypercalls_are_refused_to_programs_and_unknown_ones_to_all() {
    let mut guest = Guest::with_hypercalls().into_user();
    guest.set(gpr::RAX, KICK_CPU).set(gpr::RCX, 1).ok(VMMCALL);
    assert_eq!((guest.reg(gpr::RAX) as i64, guest.cpu.control().is_kicked()), (-1, false));
    let mut guest = Guest::with_hypercalls();
    guest.set(gpr::RAX, 99).ok(VMMCALL);
    assert_eq!(guest.reg(gpr::RAX) as i64, -1000);
}

#[test]
fn a_repeated_instruction_that_is_finished_for_others_leaves_time_for_them() {
    let mut guest = Guest::kernel();
    guest.code(&[0xf3, 0xac]).set(gpr::RCX, u64::MAX).set(gpr::RSI, 0);

    let exit = guest.cpu.finish_instruction();

    let state = guest.cpu.state();
    assert_eq!((exit, state.rip), (None, KERNEL_CODE), "it is not done");
    assert_eq!((state.gpr[gpr::RSI], state.gpr[gpr::RCX]), (1 << 16, u64::MAX - (1 << 16)));
    guest.set(gpr::RCX, 5);
    assert_eq!((guest.cpu.finish_instruction(), guest.cpu.rip), (None, KERNEL_CODE + 2));
}

//! General, segment, control and debug registers between [`State`] and KVM's structures.

use kvm_bindings::{kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use queztl_soft_cpu::state::{Segment, State, Table, attribute, gpr, seg};

/// RFLAGS.VM.
const VIRTUAL_8086: u64 = 1 << 17;

/// Takes the general registers over.
pub(super) fn read_regs(state: &mut State, regs: &kvm_regs) {
    state.gpr = [
        regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8, regs.r9, regs.r10,
        regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ];
    state.rip = regs.rip;
    state.rflags = regs.rflags;
}

pub(super) fn regs(state: &State) -> kvm_regs {
    let [.., r8, r9, r10, r11, r12, r13, r14, r15] = state.gpr;
    kvm_regs {
        rax: state.gpr[gpr::RAX],
        rbx: state.gpr[gpr::RBX],
        rcx: state.gpr[gpr::RCX],
        rdx: state.gpr[gpr::RDX],
        rsi: state.gpr[gpr::RSI],
        rdi: state.gpr[gpr::RDI],
        rsp: state.gpr[gpr::RSP],
        rbp: state.gpr[gpr::RBP],
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: state.rip,
        rflags: state.rflags,
    }
}

/// Takes segments, tables and control registers over.
pub(super) fn read_sregs(state: &mut State, sregs: &kvm_sregs) {
    let mut segments = [Segment::default(); 6];
    segments[seg::ES] = segment(&sregs.es);
    segments[seg::CS] = segment(&sregs.cs);
    segments[seg::SS] = segment(&sregs.ss);
    segments[seg::DS] = segment(&sregs.ds);
    segments[seg::FS] = segment(&sregs.fs);
    segments[seg::GS] = segment(&sregs.gs);
    state.segments = segments;
    state.ldtr = segment(&sregs.ldt);
    state.tr = segment(&sregs.tr);
    state.gdtr = Table { base: sregs.gdt.base, limit: sregs.gdt.limit };
    state.idtr = Table { base: sregs.idt.base, limit: sregs.idt.limit };
    (state.cr0, state.cr2, state.cr3, state.cr4) = (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4);
    state.efer = sregs.efer;
}

/// `before` gives what [`State`] does not have: the local APIC's base, CR8, and an interrupt on its way.
pub(super) fn sregs(state: &State, before: &kvm_sregs) -> kvm_sregs {
    let segments = &state.segments;
    let mut sregs = kvm_sregs {
        es: kvm_segment_of(&segments[seg::ES]),
        cs: kvm_segment_of(&segments[seg::CS]),
        ss: kvm_segment_of(&segments[seg::SS]),
        ds: kvm_segment_of(&segments[seg::DS]),
        fs: kvm_segment_of(&segments[seg::FS]),
        gs: kvm_segment_of(&segments[seg::GS]),
        ldt: kvm_segment_of(&state.ldtr),
        tr: kvm_segment_of(&state.tr),
        gdt: kvm_dtable { base: state.gdtr.base, limit: state.gdtr.limit, ..Default::default() },
        idt: kvm_dtable { base: state.idtr.base, limit: state.idtr.limit, ..Default::default() },
        cr0: state.cr0,
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4,
        efer: state.efer,
        ..*before
    };
    // Some processors keep the privilege level in SS alone, even where SS holds no segment.
    sregs.ss.dpl = privilege(state);
    sregs
}

/// The current privilege level.
fn privilege(state: &State) -> u8 {
    const PROTECTED: u64 = 1;
    if state.cr0 & PROTECTED == 0 {
        0
    } else if state.rflags & VIRTUAL_8086 != 0 {
        3
    } else {
        state.segments[seg::CS].selector as u8 & 3
    }
}

fn segment(from: &kvm_segment) -> Segment {
    let bit = |value: u8, position: u32| u16::from(value & 1) << position;
    let attributes = u16::from(from.type_ & 0xf)
        | bit(from.s, 4)
        | u16::from(from.dpl & 3) << attribute::DPL_SHIFT
        | bit(from.present, 7)
        | bit(from.avl, 12)
        | bit(from.l, 13)
        | bit(from.db, 14)
        | bit(from.g, 15);
    let usable = from.unusable == 0 && from.present != 0;
    Segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        attributes: if usable { attributes } else { 0 },
    }
}

fn kvm_segment_of(from: &Segment) -> kvm_segment {
    let has = |attribute: u16| u8::from(from.has(attribute));
    kvm_segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        type_: from.attributes as u8 & 0xf,
        present: has(attribute::PRESENT),
        dpl: from.dpl(),
        db: has(attribute::BIG),
        s: has(attribute::NON_SYSTEM),
        l: has(attribute::LONG),
        g: has(attribute::GRANULARITY),
        avl: (from.attributes >> 12) as u8 & 1,
        unusable: u8::from(!from.has(attribute::PRESENT)),
        padding: 0,
    }
}

pub(super) fn read_debug(state: &mut State, debug: &kvm_debugregs) {
    state.dr[..4].copy_from_slice(&debug.db);
    (state.dr[6], state.dr[7]) = (debug.dr6, debug.dr7);
}

pub(super) fn debug(state: &State) -> kvm_debugregs {
    let [d0, d1, d2, d3, _, _, dr6, dr7] = state.dr;
    kvm_debugregs { db: [d0, d1, d2, d3], dr6, dr7, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long_mode() -> State {
        let mut state = State::default();
        for (index, register) in state.gpr.iter_mut().enumerate() {
            *register = 0x1000 + index as u64;
        }
        (state.rip, state.rflags) = (0xffff_ffff_8000_0000, 0x246);
        state.segments = [Segment { base: 0, limit: u32::MAX, selector: 0x2b, attributes: 0xc0f3 }; 6];
        state.segments[seg::CS] = Segment { base: 0, limit: u32::MAX, selector: 0x33, attributes: 0xa0fb };
        state.segments[seg::DS] = Segment { base: 0, limit: 0, selector: 0, attributes: 0 };
        (state.cr0, state.cr2, state.cr3, state.cr4, state.efer) = (0x8005_0033, 5, 0x9000, 0x6b0, 0xd01);
        state
    }

    #[test]
    fn registers_survive_the_way_there_and_back() {
        for state in [State::default(), long_mode()] {
            let mut back = State { dr: [9; 8], ..State::default() };
            read_regs(&mut back, &regs(&state));
            read_sregs(&mut back, &sregs(&state, &kvm_sregs::default()));
            read_debug(&mut back, &debug(&state));
            back.dr[4..6].copy_from_slice(&state.dr[4..6]);
            assert_eq!(back, state);
        }
    }

    #[test]
    fn what_state_does_not_have_stays() {
        let before = kvm_sregs { apic_base: 0xfee0_0900, cr8: 7, ..Default::default() };
        let after = sregs(&long_mode(), &before);
        assert_eq!((after.apic_base, after.cr8), (0xfee0_0900, 7));
    }

    #[test]
    fn the_stack_segment_carries_the_privilege_level() {
        let mut state = long_mode();
        state.segments[seg::SS] = Segment::default();
        assert_eq!(sregs(&state, &kvm_sregs::default()).ss.dpl, 3);
        state.segments[seg::CS].selector = 0x10;
        assert_eq!(sregs(&state, &kvm_sregs::default()).ss.dpl, 0);
    }
}

//! FXSAVE and the XSAVE family.

use super::*;
use crate::fault::vector;
use crate::state::Vector;
use crate::system::xsave::component::{AVX, SSE, X87};

const GP0: (u8, Option<u32>) = (vector::GP, Some(0));

const FXSAVE64: &[u8] = &[0x48, 0x0f, 0xae, 0x03]; // fxsave64 [rbx]
const FXRSTOR64: &[u8] = &[0x48, 0x0f, 0xae, 0x0b];
const XSAVE64: &[u8] = &[0x48, 0x0f, 0xae, 0x23];
const XRSTOR64: &[u8] = &[0x48, 0x0f, 0xae, 0x2b];
const XSAVEC64: &[u8] = &[0x48, 0x0f, 0xc7, 0x23];
const XSAVEOPT64: &[u8] = &[0x48, 0x0f, 0xae, 0x33];
const XSETBV: &[u8] = &[0x0f, 0x01, 0xd1];

const AREA: u64 = 0x1_4000;
const HEADER: u64 = AREA + 512;
const UPPER: u64 = AREA + 576;

/// A guest with recognisable registers; RBX points to the area, EDX:EAX asks for `components`.
fn guest(components: u64) -> Guest {
    let mut guest = Guest::kernel();
    for (index, vector) in guest.cpu.fpu.vectors[..16].iter_mut().enumerate() {
        *vector = Vector::default();
        vector.0[..16].fill(index as u8 + 1);
        vector.0[16..32].fill(index as u8 + 0x81);
    }
    guest.cpu.fpu.mxcsr = 0x3f80;
    guest.cpu.fpu.legacy[0..2].copy_from_slice(&0x027f_u16.to_le_bytes());
    guest.set(gpr::RBX, AREA).set(gpr::RAX, components).set(gpr::RDX, 0);
    guest
}

fn has_avx() -> bool {
    is_x86_feature_detected!("avx")
}

#[test]
fn fxsave_lays_out_the_legacy_area() {
    let mut guest = guest(0);
    guest.ok(FXSAVE64);
    assert_eq!(guest.peek16(AREA), 0x027f);
    assert_eq!((guest.peek32(AREA + 24), guest.peek32(AREA + 28)), (0x3f80, 0xffff));
    assert_eq!(guest.peek::<16>(AREA + 160), [1; 16]);
    assert_eq!(guest.peek::<16>(AREA + 160 + 15 * 16), [16; 16]);
}

#[test]
fn fxrstor_restores_what_fxsave_saved_and_keeps_the_upper_halves() {
    let mut guest = guest(0);
    guest.ok(FXSAVE64);
    let before = guest.cpu.state().fpu;
    guest.cpu.fpu.vectors[3].0[..16].fill(0);
    guest.cpu.fpu.mxcsr = 0x1f80;
    guest.cpu.fpu.legacy[0..2].copy_from_slice(&0x037f_u16.to_le_bytes());

    guest.ok(FXRSTOR64);

    assert_eq!(guest.cpu.state().fpu, before);
}

#[test]
fn areas_must_be_aligned() {
    let mut guest = guest(X87);
    guest.set(gpr::RBX, AREA + 8);
    assert_eq!(guest.fault(FXSAVE64), GP0);
    guest.set(gpr::RBX, AREA + 16);
    assert_eq!(guest.fault(XSAVE64), GP0);
    assert_eq!(guest.fault(XRSTOR64), GP0);
}

#[test]
fn mxcsr_with_bits_that_do_not_exist_is_refused() {
    let mut guest = guest(SSE);
    guest.ok(FXSAVE64);
    guest.poke(AREA + 24, &0x1_0000_u32.to_le_bytes());
    assert_eq!(guest.fault(FXRSTOR64), GP0);
    assert_eq!(guest.fault(XRSTOR64), GP0);
}

#[test]
fn state_saving_waits_for_the_task_switch_flag_and_osxsave() {
    let mut guest = guest(X87);
    guest.cpu.cr0 |= bits::CR0_TS;
    assert_eq!(guest.fault(FXSAVE64), (vector::NM, None));
    assert_eq!(guest.fault(XSAVE64), (vector::NM, None));
    guest.cpu.cr4 &= !bits::CR4_OSXSAVE;
    assert_eq!(guest.fault(XSAVE64), (vector::UD, None));
}

#[test]
fn xsave_writes_the_requested_components_only() {
    let mut guest = guest(SSE);
    guest.poke(AREA, &[0xee; 8]);
    guest.poke(HEADER, &(X87 | 1 << 60).to_le_bytes());

    guest.ok(XSAVE64);

    assert_eq!(guest.peek64(AREA), 0xeeee_eeee_eeee_eeee, "x87 was not asked for");
    assert_eq!(guest.peek64(HEADER), X87 | 1 << 60 | SSE, "other header bits stay");
    assert_eq!(guest.peek32(AREA + 24), 0x3f80);
    assert_eq!(guest.peek::<16>(AREA + 160 + 16), [2; 16]);
}

#[test]
fn the_upper_halves_lie_at_576() {
    if !has_avx() {
        return;
    }
    let mut guest = guest(X87 | SSE | AVX);
    guest.ok(XSAVE64);
    assert_eq!(guest.peek64(HEADER), 7);
    assert_eq!(guest.peek::<16>(UPPER + 16), [0x82; 16]);
    assert_eq!(guest.peek::<16>(UPPER + 15 * 16), [0x90; 16]);
}

#[test]
fn xsaveopt_leaves_out_what_is_in_its_initial_state() {
    if !has_avx() {
        return;
    }
    let mut guest = guest(X87 | SSE | AVX);
    guest.cpu.fpu.vectors.iter_mut().for_each(|vector| vector.0[16..32].fill(0));
    guest.poke(UPPER, &[0xee; 16]);
    guest.poke(HEADER, &AVX.to_le_bytes());

    guest.ok(XSAVEOPT64);

    assert_eq!(guest.peek64(HEADER), X87 | SSE);
    assert_eq!(guest.peek::<16>(UPPER), [0xee; 16]);
}

#[test]
fn xsavec_marks_its_area_compacted() {
    if !has_avx() {
        return;
    }
    let mut guest = guest(X87 | SSE | AVX);
    guest.poke(HEADER + 16, &[0xee; 48]);
    guest.ok(XSAVEC64);
    assert_eq!((guest.peek64(HEADER), guest.peek64(HEADER + 8)), (7, 7 | 1 << 63));
    assert_eq!(guest.peek::<48>(HEADER + 16), [0; 48]);

    let before = guest.cpu.state().fpu;
    guest.cpu.fpu = crate::state::Fpu::default();
    guest.ok(XRSTOR64);
    assert_eq!(guest.cpu.state().fpu, before);
}

#[test]
fn xrstor_initialises_what_the_header_lacks() {
    if !has_avx() {
        return;
    }
    let mut guest = guest(X87 | SSE | AVX);
    guest.ok(XSAVE64);
    guest.poke(HEADER, &SSE.to_le_bytes());

    guest.ok(XRSTOR64);

    let fpu = guest.cpu.state().fpu;
    assert_eq!(fpu.vectors[2].0[..16], [3; 16]);
    assert_eq!(fpu.vectors[2].0[16..32], [0; 16]);
    assert_eq!(fpu.legacy[..2], 0x037f_u16.to_le_bytes());
    assert_eq!(fpu.mxcsr, 0x3f80, "the standard form takes MXCSR from the area");
}

#[test]
fn xrstor_keeps_what_it_was_not_asked_for() {
    let mut guest = guest(X87);
    guest.ok(XSAVE64);
    let before = guest.cpu.state().fpu;
    guest.poke(AREA + 160, &[0x77; 16]);
    guest.ok(XRSTOR64);
    assert_eq!(guest.cpu.state().fpu, before);
}

#[test]
fn xrstor_refuses_headers_it_does_not_know() {
    let bad: [(u64, u64, u64); 5] =
        [(1 << 9, 0, 0), (1, 1, 0), (1, 0, 1), (2, 1 << 63 | 1, 0), (1, 1 << 63 | 1 << 9 | 1, 0)];
    for (present, layout, reserved) in bad {
        let mut guest = guest(X87 | SSE);
        guest.ok(XSAVE64);
        for (offset, value) in [(0, present), (8, layout), (16, reserved)] {
            guest.poke(HEADER + offset, &value.to_le_bytes());
        }
        assert_eq!(guest.fault(XRSTOR64), GP0, "{present:#x} {layout:#x} {reserved:#x}");
    }
}

#[test]
fn an_area_across_two_pages_is_whole() {
    let mut guest = guest(X87 | SSE | AVX);
    guest.set(gpr::RBX, 0x1_4fc0).ok(XSAVE64);
    assert_eq!(guest.peek::<16>(0x1_4fc0 + 160), [1; 16]);
    let before = guest.cpu.state().fpu;
    guest.cpu.fpu = crate::state::Fpu::default();
    guest.ok(XRSTOR64);
    assert_eq!(guest.cpu.state().fpu, before);
}

#[test]
fn xcr0_keeps_its_rules() {
    let mut guest = Guest::kernel();
    for (index, value) in [(0, 0), (0, 1 | 4), (0, 1 | 1 << 5), (1, 1)] {
        guest.set(gpr::RCX, index).set(gpr::RAX, value).set(gpr::RDX, 0);
        assert_eq!(guest.fault(XSETBV), GP0, "XCR{index} = {value:#x}");
    }
    guest.set(gpr::RCX, 0).set(gpr::RAX, 3).ok(XSETBV);
    guest.ok(&[0x0f, 0x01, 0xd0]); // xgetbv
    assert_eq!((guest.reg(gpr::RAX), guest.reg(gpr::RDX)), (3, 0));
    guest.set(gpr::RAX, 0xd).set(gpr::RCX, 0).ok(&[0x0f, 0xa2]); // cpuid
    assert_eq!(guest.reg(gpr::RBX), 576, "the size that XCR0 asks for");
}

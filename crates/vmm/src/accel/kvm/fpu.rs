//! x87, SSE and AVX state between [`Fpu`] and KVM's XSAVE area (`KVM_GET_XSAVE`: the standard, uncompacted layout of
//! SDM vol. 1 §13.4).

use kvm_bindings::kvm_xsave;
use queztl_soft_cpu::state::Fpu;

const MXCSR: usize = 24;
const REGISTERS: usize = 32;
const XMM: usize = 160;
/// XSTATE_BV: the components that are not in their initial state.
const PRESENT: usize = 512;
/// Upper halves of YMM0–YMM15.
const UPPER: usize = 576;

const X87: u64 = 1 << 0;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
/// MXCSR bits that exist.
const MXCSR_MASK: u32 = 0xffff;

/// The state that an area holds.
pub(super) fn from_xsave(area: &kvm_xsave) -> Fpu {
    let bytes = bytes(area);
    let mut fpu = Fpu::default();
    let present = u64::from_le_bytes(take(&bytes, PRESENT));
    if present & X87 != 0 {
        fpu.legacy[..MXCSR].copy_from_slice(&bytes[..MXCSR]);
        fpu.legacy[REGISTERS..XMM].copy_from_slice(&bytes[REGISTERS..XMM]);
    }
    if present & (SSE | AVX) != 0 {
        fpu.mxcsr = u32::from_le_bytes(take(&bytes, MXCSR)) & MXCSR_MASK;
    }
    for (index, vector) in fpu.vectors[..16].iter_mut().enumerate() {
        if present & SSE != 0 {
            vector.0[..16].copy_from_slice(&bytes[XMM + index * 16..][..16]);
        }
        if present & AVX != 0 {
            vector.0[16..32].copy_from_slice(&bytes[UPPER + index * 16..][..16]);
        }
    }
    fpu
}

/// Puts the state into an area. Components that [`Fpu`] does not carry stay as they are.
pub(super) fn put_into_xsave(fpu: &Fpu, area: &mut kvm_xsave) {
    let mut bytes = bytes(area);
    bytes[..MXCSR].copy_from_slice(&fpu.legacy[..MXCSR]);
    bytes[REGISTERS..XMM].copy_from_slice(&fpu.legacy[REGISTERS..XMM]);
    bytes[MXCSR..MXCSR + 4].copy_from_slice(&(fpu.mxcsr & MXCSR_MASK).to_le_bytes());
    bytes[MXCSR + 4..MXCSR + 8].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    let mut present = u64::from_le_bytes(take(&bytes, PRESENT)) | X87 | SSE;
    // A processor without AVX has no room for what is always zero there.
    if fpu.vectors[..16].iter().any(|vector| vector.0[16..32] != [0; 16]) {
        present |= AVX;
    }
    for (index, vector) in fpu.vectors[..16].iter().enumerate() {
        bytes[XMM + index * 16..][..16].copy_from_slice(&vector.0[..16]);
        if present & AVX != 0 {
            bytes[UPPER + index * 16..][..16].copy_from_slice(&vector.0[16..32]);
        }
    }
    bytes[PRESENT..PRESENT + 8].copy_from_slice(&present.to_le_bytes());
    for (word, bytes) in area.region.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_le_bytes(take(bytes, 0));
    }
}

fn bytes(area: &kvm_xsave) -> [u8; 4096] {
    let mut bytes = [0; 4096];
    for (bytes, word) in bytes.chunks_exact_mut(4).zip(area.region) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut taken = [0; N];
    taken.copy_from_slice(&bytes[at..at + N]);
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Fpu {
        let mut fpu = Fpu { mxcsr: 0x1fa0, ..Fpu::default() };
        fpu.legacy[32..42].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        for (index, vector) in fpu.vectors[..16].iter_mut().enumerate() {
            for (at, byte) in vector.0[..32].iter_mut().enumerate() {
                *byte = (index * 32 + at) as u8;
            }
        }
        fpu
    }

    fn area_of(fpu: &Fpu) -> kvm_xsave {
        let mut area = kvm_xsave::default();
        put_into_xsave(fpu, &mut area);
        area
    }

    #[test]
    fn the_state_survives_the_way_there_and_back() {
        assert_eq!(from_xsave(&area_of(&sample())), sample());
    }

    #[test]
    fn upper_halves_of_zero_need_no_avx() {
        let mut fpu = sample();
        fpu.vectors.iter_mut().for_each(|vector| vector.0[16..].fill(0));
        let area = area_of(&fpu);
        assert_eq!(area.region[PRESENT / 4], (X87 | SSE) as u32);
        assert!(area.region[UPPER / 4..].iter().all(|word| *word == 0));
    }

    #[test]
    fn components_that_are_not_carried_stay() {
        let mut area = kvm_xsave::default();
        (area.region[PRESENT / 4], area.region[0x340 / 4]) = (1 << 5, 0x1234);
        put_into_xsave(&sample(), &mut area);
        assert_eq!((area.region[PRESENT / 4], area.region[0x340 / 4]), (1 << 5 | 7, 0x1234));
    }

    #[test]
    fn absent_components_are_in_their_initial_state() {
        let mut area = area_of(&sample());
        area.region[PRESENT / 4] = 0;
        assert_eq!(from_xsave(&area), Fpu::default());
    }
}

//! x87, SSE and AVX state between [`Fpu`] and KVM's XSAVE area (`KVM_GET_XSAVE`: the standard, uncompacted layout of
//! SDM vol. 1 §13.4).

use kvm_bindings::kvm_xsave;
use queztl_soft_cpu::state::Fpu;

const MXCSR: usize = 24;
const REGISTERS: usize = 32;
const XMM: usize = 160;
const LEGACY_END: usize = 512;
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

/// An area that holds the state; `avx` says whether the guest has the upper halves at all.
pub(super) fn to_xsave(fpu: &Fpu, avx: bool) -> kvm_xsave {
    let mut bytes = [0; 4096];
    bytes[..MXCSR].copy_from_slice(&fpu.legacy[..MXCSR]);
    bytes[REGISTERS..XMM].copy_from_slice(&fpu.legacy[REGISTERS..XMM]);
    bytes[MXCSR..MXCSR + 4].copy_from_slice(&(fpu.mxcsr & MXCSR_MASK).to_le_bytes());
    bytes[MXCSR + 4..MXCSR + 8].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    debug_assert!(XMM + 16 * 16 <= LEGACY_END);
    for (index, vector) in fpu.vectors[..16].iter().enumerate() {
        bytes[XMM + index * 16..][..16].copy_from_slice(&vector.0[..16]);
        if avx {
            bytes[UPPER + index * 16..][..16].copy_from_slice(&vector.0[16..32]);
        }
    }
    let present = X87 | SSE | if avx { AVX } else { 0 };
    bytes[PRESENT..PRESENT + 8].copy_from_slice(&present.to_le_bytes());
    let mut area = kvm_xsave::default();
    for (word, bytes) in area.region.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_le_bytes(take(bytes, 0));
    }
    area
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

    #[test]
    fn the_state_survives_the_way_there_and_back() {
        assert_eq!(from_xsave(&to_xsave(&sample(), true)), sample());
    }

    #[test]
    fn without_avx_the_upper_halves_are_neither_present_nor_written() {
        let area = to_xsave(&sample(), false);
        assert_eq!(area.region[PRESENT / 4], (X87 | SSE) as u32);
        assert!(area.region[UPPER / 4..].iter().all(|word| *word == 0));
    }

    #[test]
    fn absent_components_are_in_their_initial_state() {
        let mut area = to_xsave(&sample(), true);
        area.region[PRESENT / 4] = 0;
        assert_eq!(from_xsave(&area), Fpu::default());
    }
}

//! Whether a processor can be in a state: what stands between a damaged or hostile snapshot and code that relies on the
//! architecture's rules.

use super::{State, attribute, bits, rflags, seg};
use crate::cpuid::CpuidTable;

/// No guest could have brought the processor into this state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadState(pub &'static str);

impl std::fmt::Display for BadState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a processor cannot have such {}", self.0)
    }
}

impl std::error::Error for BadState {}

/// Bits of MXCSR that exist; LDMXCSR and FXRSTOR fault on others (SDM vol. 1 §10.2.3).
const MXCSR_BITS: u32 = 0xffff;
const EFER_BITS: u64 = bits::EFER_SCE | bits::EFER_LME | bits::EFER_LMA | bits::EFER_NXE;
const CR0_BITS: u64 = bits::CR0_PE
    | bits::CR0_MP
    | bits::CR0_EM
    | bits::CR0_TS
    | bits::CR0_ET
    | bits::CR0_NE
    | bits::CR0_WP
    | bits::CR0_AM
    | bits::CR0_NW
    | bits::CR0_CD
    | bits::CR0_PG;
/// Bits of RFLAGS that exist.
const RFLAGS_BITS: u64 = 0x003f_7fd7;
/// Bits of the debug registers' upper halves must be zero (SDM vol. 3B §18.2.6).
const DEBUG_BITS: u64 = 0xffff_ffff;

impl CpuidTable {
    /// Whether a processor that is described by this table can be in `state`.
    pub fn check(&self, state: &State) -> Result<(), BadState> {
        check_modes(state)?;
        let features = self.features();
        let wide = state.xcr0 & 6 != 4;
        let rules = [
            (state.cr4 & !features.cr4 == 0, "CR4"),
            (state.xcr0 & 1 == 1 && state.xcr0 & !features.xcr0 == 0 && wide, "XCR0"),
            (state.rflags & !RFLAGS_BITS == 0 && state.rflags & rflags::RESERVED_ONE != 0, "RFLAGS"),
            (state.fpu.mxcsr & !MXCSR_BITS == 0, "MXCSR"),
            (state.dr[6] | state.dr[7] <= DEBUG_BITS, "DR6 or DR7"),
            (is_canonical(state.rip), "RIP"),
            (bases(state).all(is_canonical), "segment bases"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, what)) => Err(BadState(what)),
            None => Ok(()),
        }
    }
}

/// CR0, EFER and CS agree on a mode.
fn check_modes(state: &State) -> Result<(), BadState> {
    let (protected, paging) = (state.cr0 & bits::CR0_PE != 0, state.cr0 & bits::CR0_PG != 0);
    let caches = state.cr0 & (bits::CR0_NW | bits::CR0_CD) != bits::CR0_NW;
    let long = state.efer & bits::EFER_LMA != 0;
    let enabled = state.efer & bits::EFER_LME != 0;
    let code = state.segments[seg::CS];
    let rules = [
        (state.cr0 & !CR0_BITS == 0 && caches && (protected || !paging), "CR0"),
        (state.efer & !EFER_BITS == 0 && long == (enabled && paging), "EFER"),
        (!long || state.cr4 & bits::CR4_PAE != 0, "CR4"),
        (!long || !code.has(attribute::LONG) || !code.has(attribute::BIG), "CS"),
        (!long || state.rflags & rflags::VM == 0, "RFLAGS"),
    ];
    match rules.iter().find(|(holds, _)| !holds) {
        Some((_, what)) => Err(BadState(what)),
        None => Ok(()),
    }
}

fn bases(state: &State) -> impl Iterator<Item = u64> + '_ {
    let segments = state.segments.iter().chain([&state.ldtr, &state.tr]).map(|segment| segment.base);
    segments.chain([state.gdtr.base, state.idtr.base, state.msrs.kernel_gs_base])
}

/// Bits 48 and up repeat bit 47.
fn is_canonical(address: u64) -> bool {
    ((address << 16) as i64 >> 16) as u64 == address
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpuid::{CpuidConfig, CpuidPolicy};

    fn table() -> CpuidTable {
        CpuidPolicy::new(&CpuidConfig::one_socket(1, 1_000_000_000))
    }

    #[test]
    fn the_state_after_reset_is_possible() {
        assert_eq!(table().check(&State::default()), Ok(()));
    }

    #[test]
    fn a_64_bit_kernel_is_possible() {
        let mut state = State {
            cr0: bits::CR0_PE | bits::CR0_PG | bits::CR0_ET,
            cr4: bits::CR4_PAE,
            efer: bits::EFER_LME | bits::EFER_LMA,
            rip: 0xffff_ffff_8000_0000,
            ..State::default()
        };
        state.segments[seg::CS].attributes = attribute::LONG | attribute::PRESENT | attribute::CODE;
        assert_eq!(table().check(&state), Ok(()));
    }

    #[test]
    fn what_no_guest_could_bring_about_is_refused() {
        type Change = fn(&mut State);
        let changes: [(&str, Change); 9] = [
            ("MXCSR", |s| s.fpu.mxcsr = 1 << 20),
            ("XCR0", |s| s.xcr0 = 0x200),
            ("XCR0", |s| s.xcr0 = 5),
            ("CR4", |s| s.cr4 = 1 << 40),
            ("CR0", |s| s.cr0 |= bits::CR0_PG),
            ("EFER", |s| s.efer = bits::EFER_LMA),
            ("RFLAGS", |s| s.rflags = 0),
            ("RIP", |s| s.rip = 1 << 60),
            ("DR6 or DR7", |s| s.dr[7] = 1 << 33),
        ];
        for (what, change) in changes {
            let mut state = State::default();
            change(&mut state);
            assert_eq!(table().check(&state), Err(BadState(what)));
        }
    }
}

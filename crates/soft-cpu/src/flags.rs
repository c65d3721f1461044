//! The arithmetic flags as the host hands them out cheapest: the image of AX after `lahf; seto al`.
//!
//! Keeping them in this form makes saving them two instructions and loading them two (`add al, 0x7f; sahf`), and the
//! flags that the architecture leaves undefined become the host's own.

use crate::state::rflags;

pub const OF: u16 = 1 << 0;
pub const CF: u16 = 1 << 8;
pub const PF: u16 = 1 << 10;
pub const AF: u16 = 1 << 12;
pub const ZF: u16 = 1 << 14;
pub const SF: u16 = 1 << 15;

/// The six flags at their RFLAGS positions.
#[inline]
pub fn to_rflags(flags: u16) -> u64 {
    const LOW: u64 = rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF;
    (u64::from(flags) >> 8) & LOW | u64::from(flags & OF) << 11
}

/// The flags of an RFLAGS value.
#[inline]
pub fn from_rflags(value: u64) -> u16 {
    ((value as u16 & 0xd5) << 8) | (value >> 11) as u16 & OF
}

/// Evaluates condition `code` (the low four bits of Jcc, SETcc and CMOVcc).
#[inline(always)]
pub fn condition(code: u8, flags: u16) -> bool {
    let met = match code >> 1 {
        0 => flags & OF != 0,
        1 => flags & CF != 0,
        2 => flags & ZF != 0,
        3 => flags & (CF | ZF) != 0,
        4 => flags & SF != 0,
        5 => flags & PF != 0,
        6 => (flags >> 15) ^ (flags & OF) != 0,
        _ => (flags >> 15) ^ (flags & OF) != 0 || flags & ZF != 0,
    };
    met ^ (code & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversion_keeps_every_flag() {
        for value in (0..0x1000).filter(|v| v & !rflags::ARITHMETIC == 0) {
            assert_eq!(to_rflags(from_rflags(value)), value);
        }
    }

    #[test]
    fn less_is_sign_differs_from_overflow() {
        assert!(condition(0xc, from_rflags(rflags::SF)));
        assert!(condition(0xc, from_rflags(rflags::OF)));
        assert!(!condition(0xc, from_rflags(rflags::OF | rflags::SF)));
        assert!(condition(0xe, from_rflags(rflags::ZF)));
        assert!(condition(0xf, from_rflags(0)));
    }
}

//! Reproducible random numbers, biased towards values at which processors go wrong.

/// SplitMix64.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True in `percent` of a hundred cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// An integer, likely one at an edge.
    pub fn integer(&mut self) -> u64 {
        match self.below(8) {
            0 => self.below(4),
            1 => self.below(4).wrapping_neg(),
            2 => (1_u64 << self.below(64)).wrapping_sub(self.below(3)),
            3 => self.pick(&[
                0x7f,
                0x80,
                0xff,
                0x7fff,
                0x8000,
                0xffff,
                0x7fff_ffff,
                0x8000_0000,
                0xffff_ffff,
                i64::MAX as u64,
                1 << 63,
            ]),
            4 => self.below(256),
            5 => self.next() as u32 as u64,
            _ => self.next(),
        }
    }

    fn single(&mut self) -> u32 {
        match self.below(6) {
            0 => self.pick(&[
                0,
                0x8000_0000,
                0x3f80_0000,
                0xbf80_0000,
                0x7f80_0000,
                0xff80_0000,
                0x7fc0_0000,
                0xffc0_0001,
                0x7f80_0001,
                1,
                0x8000_0001,
                0x007f_ffff,
                0x0080_0000,
                0x7f7f_ffff,
                0x4f00_0000,
                0xcf00_0000,
                0x5f00_0000,
                0x3f00_0000,
            ]),
            1 => (self.below(2000) as f32 / 8.0 - 100.0).to_bits(),
            2 => self.below(300) as u32,
            3 => (0x3f00_0000_u32 + self.below(0x0180_0000) as u32) | (self.below(2) as u32) << 31,
            _ => self.next() as u32,
        }
    }

    fn double(&mut self) -> u64 {
        match self.below(6) {
            0 => self.pick(&[
                0,
                1 << 63,
                0x3ff0 << 48,
                0xbff0 << 48,
                0x7ff0 << 48,
                0xfff0 << 48,
                0x7ff8 << 48,
                0x7ff0 << 48 | 1,
                1,
                1 << 63 | 1,
                0x000f_ffff_ffff_ffff,
                1 << 52,
                0x7fef_ffff_ffff_ffff,
                0x41e0 << 48,
                0xc1e0 << 48,
                0x43e0 << 48,
                0xc3e0 << 48,
                0x36a0 << 48,
                0x3ff8 << 48,
            ]),
            1 => (self.below(2000) as f64 / 8.0 - 100.0).to_bits(),
            2 => self.below(300),
            3 => (0x3fe0 << 48) + self.below(0x30 << 48),
            _ => self.next(),
        }
    }

    /// Sixteen bytes that may be integers or floating-point numbers.
    pub fn lane(&mut self) -> [u8; 16] {
        let value = match self.below(4) {
            0 => (0..4).fold(0, |v, _| v << 32 | u128::from(self.single())),
            1 => u128::from(self.double()) << 64 | u128::from(self.double()),
            2 => u128::from(self.integer()) << 64 | u128::from(self.integer()),
            _ => u128::from(self.next()) << 64 | u128::from(self.next()),
        };
        value.to_le_bytes()
    }

    /// The ten bytes of an extended number, not always a valid one.
    pub fn extended(&mut self) -> [u8; 10] {
        let (mantissa, exponent) = match self.below(6) {
            0 => self.pick(&[
                (0, 0),
                (0, 0x8000),
                (1 << 63, 0x3fff),
                (1 << 63, 0xbfff),
                (1 << 63, 0x7fff),
                (1 << 63, 0xffff),
                (3 << 62, 0x7fff),
                (3 << 62 | 1, 0x7fff),
                (1 << 63 | 1, 0x7fff),
                (1, 0),
                (1 << 63, 0),
                (u64::MAX, 0x7ffe),
                (1 << 62, 0x4000),
                (0, 0x7fff),
                (1 << 63, 0x403e),
                (1 << 63, 0xc03e),
            ]),
            1 | 2 => (1 << 63 | self.next(), 0x3ff0 + self.below(32) as u16),
            3 => (1 << 63 | self.below(1 << 20) << 43, 0xbff8 + self.below(24) as u16),
            4 => (1 << 63 | self.next(), self.next() as u16),
            _ => (self.next(), self.next() as u16),
        };
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&mantissa.to_le_bytes());
        bytes[8..].copy_from_slice(&exponent.to_le_bytes());
        bytes
    }
}

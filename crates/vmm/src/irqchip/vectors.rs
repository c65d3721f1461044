//! A set of interrupt vectors, as the IRR, ISR and TMR registers are.

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct VectorSet([u64; 4]);

impl VectorSet {
    /// Adds `vector`; gives whether it was not there.
    pub(super) fn insert(&mut self, vector: u8) -> bool {
        let (word, bit) = place(vector);
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }

    pub(super) fn remove(&mut self, vector: u8) {
        let (word, bit) = place(vector);
        self.0[word] &= !bit;
    }

    pub(super) fn contains(&self, vector: u8) -> bool {
        let (word, bit) = place(vector);
        self.0[word] & bit != 0
    }

    pub(super) fn highest(&self) -> Option<u8> {
        let (word, bits) = self.0.iter().enumerate().rev().find(|(_, bits)| **bits != 0)?;
        Some((word as u32 * 64 + 63 - bits.leading_zeros()) as u8)
    }

    /// As eight registers show them.
    pub(super) fn words(&self) -> [u32; 8] {
        std::array::from_fn(|index| self.word(index as u32))
    }

    /// The set that eight registers show.
    pub(super) fn from_words(words: [u32; 8]) -> VectorSet {
        VectorSet(std::array::from_fn(|index| u64::from(words[2 * index]) | u64::from(words[2 * index + 1]) << 32))
    }

    /// The 32 vectors from `32 * index` on, as one register shows them.
    pub(super) fn word(&self, index: u32) -> u32 {
        (self.0[(index as usize / 2) % 4] >> (32 * (index % 2))) as u32
    }
}

fn place(vector: u8) -> (usize, u64) {
    (usize::from(vector / 64), 1 << (vector % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_vector_is_found_wherever_it_lies() {
        let mut set = VectorSet::default();
        assert_eq!(set.highest(), None);
        for vector in [0, 31, 32, 63, 64, 200, 255] {
            assert!(set.insert(vector) && !set.insert(vector));
            assert_eq!(set.highest(), Some(vector));
        }
        assert_eq!((set.word(0), set.word(1), set.word(7)), (1 << 31 | 1, 1 << 31 | 1, 1 << 31));
        set.remove(255);
        assert_eq!(set.highest(), Some(200));
        assert!(set.contains(64) && !set.contains(255));
    }
}

//! The digest of an epoch: the same however it was cut into chunks, and in whichever order these came.
//!
//! It is the sum, modulo 2^64, of a hash of each page with its place. Each chunk has its own checksum on the way
//! ([`queztl_parallel_transfer`]); what this finds is a chunk that is missing, came twice, or belongs to something else.

use std::sync::atomic::{AtomicU64, Ordering};

const PAGE: usize = 4096;

/// A sum that several threads add to.
#[derive(Debug, Default)]
pub(super) struct Digest(AtomicU64);

impl Digest {
    /// Data at an offset in RAM; both are multiples of a page's size, or what is left over counts as a page.
    pub fn data(&self, offset: u64, data: &[u8]) {
        let pages = (offset..).step_by(PAGE).zip(data.chunks(PAGE));
        self.add(pages.map(|(at, page)| hash(at, &[page])));
    }

    /// Zeroes.
    pub fn zero(&self, offset: u64, bytes: u64) {
        let end = offset.saturating_add(bytes);
        self.add((offset..end).step_by(PAGE).map(|at| hash(at, &[])));
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    fn add(&self, hashes: impl Iterator<Item = u64>) {
        self.0.fetch_add(hashes.fold(0, u64::wrapping_add), Ordering::AcqRel);
    }
}

fn hash(at: u64, parts: &[&[u8]]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&at.to_le_bytes());
    for part in parts {
        hasher.update(part);
    }
    let hash = hasher.finalize();
    let (first, _) = hash.as_bytes().split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
    u64::from_le_bytes(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(add: impl Fn(&Digest)) -> u64 {
        let digest = Digest::default();
        add(&digest);
        digest.value()
    }

    #[test]
    fn it_does_not_depend_on_how_data_is_cut() {
        let data: Vec<u8> = (0..4 * PAGE).map(|n| (n / 7) as u8).collect();
        let whole = digest(|d| d.data(0, &data));
        let cut = digest(|d| {
            d.data(3 * PAGE as u64, &data[3 * PAGE..]);
            d.data(0, &data[..3 * PAGE]);
        });
        assert_eq!(whole, cut);
        assert_eq!(digest(|d| d.zero(0, 8192)), digest(|d| (0..2).for_each(|n| d.zero(n * 4096, 4096))));
    }

    #[test]
    fn what_is_missing_moved_or_changed_shows() {
        let page = [7; PAGE];
        let right = digest(|d| d.data(0, &page));
        let mut other = page;
        other[100] = 8;
        assert_ne!(right, digest(|_| ()));
        assert_ne!(right, digest(|d| d.data(4096, &page)));
        assert_ne!(right, digest(|d| d.data(0, &other)));
        assert_ne!(digest(|d| d.zero(0, 4096)), digest(|_| ()));
    }
}

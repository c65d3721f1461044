//! Guest memory statistics (Virtio 1.2 §5.5.6.3).

/// What a guest tells of its memory; `None` where it does not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    pub swapped_in_bytes: Option<u64>,
    pub swapped_out_bytes: Option<u64>,
    /// Page faults that had to read a disk.
    pub major_faults: Option<u64>,
    pub minor_faults: Option<u64>,
    /// Memory that is not used for anything.
    pub free_bytes: Option<u64>,
    pub total_bytes: Option<u64>,
    /// Memory that the guest could use without swapping.
    pub available_bytes: Option<u64>,
    /// Memory that holds files, and can be had back quickly.
    pub disk_caches_bytes: Option<u64>,
}

/// Bytes of one statistic: a tag of 16 bits and a value of 64.
pub(super) const STAT_BYTES: usize = 10;
/// Most statistics read from one buffer; ten tags exist, and more come now and then.
pub(super) const MAX_STATS: usize = 64;

impl Stats {
    /// Reads a buffer of statistics; unknown tags are skipped.
    pub(super) fn parse(bytes: &[u8]) -> Stats {
        let mut stats = Stats::default();
        for stat in bytes.chunks_exact(STAT_BYTES).take(MAX_STATS) {
            let [t0, t1, value @ ..] = stat else { continue };
            let Ok(value) = <[u8; 8]>::try_from(value) else { continue };
            let value = Some(u64::from_le_bytes(value));
            match u16::from_le_bytes([*t0, *t1]) {
                0 => stats.swapped_in_bytes = value,
                1 => stats.swapped_out_bytes = value,
                2 => stats.major_faults = value,
                3 => stats.minor_faults = value,
                4 => stats.free_bytes = value,
                5 => stats.total_bytes = value,
                6 => stats.available_bytes = value,
                7 => stats.disk_caches_bytes = value,
                _ => {}
            }
        }
        stats
    }
}

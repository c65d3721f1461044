//! Whether the tables of a qcow2 image agree with each other (qcow2 specification).
//!
//! Every cluster of the file is counted as often as a table leads to it, and the counts are held against those that the file
//! keeps. A cluster counted too high is a leak: space is lost, nothing else. Anything else is damage. The file is only read;
//! it may be hostile, so every table is read once at most, and sizes are bounded before memory is taken.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::Path;

use crate::qcow2::{Header, read_up_to};
use crate::{Error, lock};

/// Most clusters of a file that is checked: twelve bytes of memory for each.
const MAX_CLUSTERS: u64 = 1 << 26;
/// Most internal snapshots, the specification's own bound.
const MAX_SNAPSHOTS: u32 = 65_536;
/// Most sentences that are kept.
const MAX_FINDINGS: usize = 20;
/// Bits of a table's entry that are an offset.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

/// What a check has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Clusters that nothing leads to, though the image counts them as used.
    pub leaked_clusters: u64,
    /// Everything that can cost data.
    pub errors: u64,
    /// The first findings, a sentence each.
    pub findings: Vec<String>,
    /// Clusters of the disk that the image itself holds, those compressed among them, and all.
    pub allocated_clusters: u64,
    pub compressed_clusters: u64,
    pub total_clusters: u64,
}

/// Checks the qcow2 image at `path` itself; its backing files are images of their own.
pub fn check(path: &Path) -> Result<Report, Error> {
    let file = File::open(path).map_err(|source| Error::Open { path: path.to_path_buf(), source })?;
    // A machine that writes to the image keeps parts of its tables in memory.
    lock::take(&file, path, true)?;
    let header = Header::read(&file).map_err(|source| Error::Qcow2 { path: path.to_path_buf(), source })?;
    let open = |source| Error::Open { path: path.to_path_buf(), source };
    let file_bytes = file.metadata().map_err(open)?.len();
    let clusters = file_bytes.div_ceil(header.cluster_bytes());
    if clusters > MAX_CLUSTERS {
        return Err(Error::CheckTooLarge { path: path.to_path_buf(), clusters });
    }
    let mut check = Check {
        file: &file,
        header: &header,
        file_bytes,
        counts: vec![0; clusters as usize],
        copied: Vec::new(),
        report: Report { total_clusters: header.disk_bytes.div_ceil(header.cluster_bytes()), ..Report::default() },
    };
    check.run().map_err(open)?;
    Ok(check.report)
}

struct Check<'a> {
    file: &'a File,
    header: &'a Header,
    file_bytes: u64,
    /// How often tables lead to each cluster.
    counts: Vec<u32>,
    /// Clusters that an entry calls the only user of.
    copied: Vec<(u64, bool)>,
    report: Report,
}

impl Check<'_> {
    fn run(&mut self) -> io::Result<()> {
        if self.header.corrupt {
            self.error("the image is marked as damaged".into());
        }
        self.count(0, 1, "the header");
        let (l1, entries) = (self.header.l1_offset, self.header.l1_entries);
        self.walk_l1(l1, entries, true)?;
        self.walk_snapshots()?;
        let stored = self.reference_counts()?;
        self.compare(&stored);
        Ok(())
    }

    fn error(&mut self, sentence: String) {
        self.report.errors += 1;
        if self.report.findings.len() < MAX_FINDINGS {
            self.report.findings.push(sentence);
        }
    }

    /// Counts `bytes` from `offset` as used by `what`; false if they do not lie in the file.
    fn count(&mut self, offset: u64, bytes: u64, what: &str) -> bool {
        let last = match offset.checked_add(bytes.max(1) - 1) {
            Some(last) if offset < self.file_bytes => last >> self.header.cluster_bits,
            _ => {
                self.error(format!("{what} at {offset:#x} lies outside the file"));
                return false;
            }
        };
        for cluster in offset >> self.header.cluster_bits..=last {
            // The file's last cluster may be short: what is missing reads as zeroes.
            if let Some(count) = self.counts.get_mut(cluster as usize) {
                *count = count.saturating_add(1);
            }
        }
        true
    }

    fn is_aligned(&mut self, offset: u64, what: &str) -> bool {
        let aligned = offset.is_multiple_of(self.header.cluster_bytes());
        if !aligned {
            self.error(format!("{what} at {offset:#x} does not begin a cluster"));
        }
        aligned
    }

    /// A table of 64-bit entries; zeroes where the file ends.
    fn table(&self, offset: u64, entries: u64) -> io::Result<Vec<u64>> {
        let mut bytes = vec![0; entries as usize * 8];
        read_up_to(self.file, &mut bytes, offset)?;
        Ok(bytes.chunks_exact(8).map(|entry| u64::from_be_bytes(entry.try_into().unwrap_or_default())).collect())
    }

    fn walk_l1(&mut self, offset: u64, entries: u32, active: bool) -> io::Result<()> {
        let bytes = u64::from(entries) * 8;
        if entries == 0 || !self.count(offset, bytes, "a level-one table") {
            return Ok(());
        }
        let mut met = HashSet::new();
        for entry in self.table(offset, u64::from(entries))? {
            let l2 = entry & OFFSET_MASK;
            if l2 == 0 || !self.is_aligned(l2, "a level-two table") {
                continue;
            }
            if !self.count(l2, self.header.cluster_bytes(), "a level-two table") {
                continue;
            }
            if active {
                self.copied.push((l2, entry & COPIED != 0));
            }
            if met.insert(l2) {
                self.walk_l2(l2, active)?;
            } else {
                self.error(format!("the level-two table at {l2:#x} is used twice"));
            }
        }
        Ok(())
    }

    fn walk_l2(&mut self, offset: u64, active: bool) -> io::Result<()> {
        for entry in self.table(offset, self.header.cluster_bytes() / 8)? {
            if entry & COMPRESSED != 0 {
                self.compressed(entry);
                self.report.compressed_clusters += u64::from(active);
                self.report.allocated_clusters += u64::from(active);
                continue;
            }
            let cluster = entry & OFFSET_MASK;
            if cluster == 0 || !self.is_aligned(cluster, "a data cluster") {
                continue;
            }
            if self.count(cluster, self.header.cluster_bytes(), "a data cluster") && active {
                self.report.allocated_clusters += 1;
                self.copied.push((cluster, entry & COPIED != 0));
            }
        }
        Ok(())
    }

    /// A compressed cluster: an offset to a byte, and sectors behind the one it lies in.
    fn compressed(&mut self, entry: u64) {
        let offset_bits = 62 - (self.header.cluster_bits - 8);
        let offset = entry & ((1 << offset_bits) - 1);
        let sectors = (entry & !(COPIED | COMPRESSED)) >> offset_bits;
        let bytes = (sectors + 1) * 512 - offset % 512;
        self.count(offset, bytes, "a compressed cluster");
        if entry & COPIED != 0 {
            self.error(format!("the compressed cluster at {offset:#x} is marked as not shared"));
        }
    }

    /// The snapshot table and the tables of each snapshot.
    fn walk_snapshots(&mut self) -> io::Result<()> {
        let mut head = [0; 8];
        read_up_to(self.file, &mut head, 64)?;
        let start = u64::from_be_bytes(head);
        if self.header.snapshots == 0 {
            return Ok(());
        }
        if self.header.snapshots > MAX_SNAPSHOTS {
            self.error("there are impossibly many snapshots".into());
            return Ok(());
        }
        let mut at = start;
        for _ in 0..self.header.snapshots {
            let mut fixed = [0; 40];
            if at >= self.file_bytes || read_up_to(self.file, &mut fixed, at)? < fixed.len() {
                self.error("the snapshot table runs out of the file".into());
                return Ok(());
            }
            let field = |range: std::ops::Range<usize>| {
                fixed[range].iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte))
            };
            let (l1, entries) = (field(0..8), field(8..12) as u32);
            let names = field(12..14) + field(14..16) + field(36..40);
            match u64::from(entries) * 8 <= self.file_bytes {
                true => self.walk_l1(l1, entries, false)?,
                false => self.error("the table of a snapshot is larger than the file".into()),
            }
            at += (40 + names).next_multiple_of(8);
        }
        self.count(start, at - start, "the snapshot table");
        Ok(())
    }

    /// The counts that the image keeps, one for each cluster of the file.
    fn reference_counts(&mut self) -> io::Result<Vec<u64>> {
        let cluster = self.header.cluster_bytes();
        let table_offset = self.header.refcount_table_offset;
        let table_bytes = u64::from(self.header.refcount_table_clusters) * cluster;
        self.count(table_offset, table_bytes, "the reference count table");
        let per_block = (cluster * 8) >> self.header.refcount_order;
        let mut stored = vec![0; self.counts.len()];
        for (index, entry) in (0u64..).zip(self.table(table_offset, table_bytes / 8)?) {
            let block = entry & !0x1ff;
            if block == 0 || !self.is_aligned(block, "a reference count block") {
                continue;
            }
            if !self.count(block, cluster, "a reference count block") {
                continue;
            }
            let first = index.saturating_mul(per_block);
            if first < stored.len() as u64 {
                let mut bytes = vec![0; cluster as usize];
                read_up_to(self.file, &mut bytes, block)?;
                let part = &mut stored[first as usize..];
                for (at, count) in part.iter_mut().enumerate().take(per_block as usize) {
                    *count = entry_of(&bytes, at, self.header.refcount_order);
                }
            }
        }
        Ok(stored)
    }

    fn compare(&mut self, stored: &[u64]) {
        let counts = std::mem::take(&mut self.counts);
        for (cluster, (stored, counted)) in stored.iter().zip(&counts).enumerate() {
            let offset = (cluster as u64) << self.header.cluster_bits;
            let counted = u64::from(*counted);
            if *stored > counted {
                self.report.leaked_clusters += 1;
            } else if *stored < counted {
                self.error(format!("the cluster at {offset:#x} is used {counted} times but counted {stored} times"));
            }
        }
        for (offset, copied) in std::mem::take(&mut self.copied) {
            let count = stored.get((offset >> self.header.cluster_bits) as usize).copied().unwrap_or(0);
            if copied != (count == 1) {
                let what = if copied { "not shared" } else { "shared" };
                self.error(format!("the cluster at {offset:#x} is marked as {what} but counted {count} times"));
            }
        }
    }
}

/// Reference count `at` of a block whose counts are 2^`order` bits wide.
fn entry_of(block: &[u8], at: usize, order: u32) -> u64 {
    let bits = 1usize << order;
    if bits < 8 {
        // Narrow counts fill their byte from the lowest bit up.
        let per_byte = 8 / bits;
        let byte = u64::from(block.get(at / per_byte).copied().unwrap_or(0));
        return byte >> (at % per_byte * bits) & ((1 << bits) - 1);
    }
    let bytes = bits / 8;
    let field = block.get(at * bytes..(at + 1) * bytes).unwrap_or(&[]);
    field.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

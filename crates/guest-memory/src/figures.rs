//! How much memory a virtual machine's process takes: guest RAM apart from what the process needs for itself.
//!
//! Source: `/proc/PID/smaps` (Linux `Documentation/filesystems/proc.rst`), which sorts a process's memory by mapping.

use std::io::{self, BufRead};

use crate::{FILE_NAME, SNAPSHOT_FILE_NAME};

/// Memory of one kind, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Resident: in the host's memory and in the page tables of the process.
    pub resident: u64,
    /// The same, with pages that n processes share counted as 1/n each.
    pub proportional: u64,
    /// Resident and used by this process alone.
    pub private: u64,
    /// Moved to swap space.
    pub swapped: u64,
}

/// What a process of a virtual machine takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryFigures {
    /// Guest RAM, as far as this process has touched it: [`crate::GuestRam::allocated_bytes`] also counts what other
    /// processes have touched.
    pub guest: Usage,
    /// All else: the price of the machine.
    pub monitor: Usage,
}

impl MemoryFigures {
    /// The figures of process `pid`, whose RAM a [`crate::GuestRam`] holds.
    ///
    /// # Errors
    /// When there is no such process, or this one may not look at it.
    pub fn of_process(pid: u32) -> io::Result<MemoryFigures> {
        MemoryFigures::read(&format!("/proc/{pid}/smaps"))
    }

    /// The figures of this process.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn of_this_process() -> io::Result<MemoryFigures> {
        MemoryFigures::read("/proc/self/smaps")
    }

    fn read(path: &str) -> io::Result<MemoryFigures> {
        MemoryFigures::parse(io::BufReader::new(std::fs::File::open(path)?))
    }

    fn parse(smaps: impl BufRead) -> io::Result<MemoryFigures> {
        let mut figures = MemoryFigures::default();
        let mut in_guest_ram = false;
        for line in smaps.split(b'\n') {
            // Names of files need not be UTF-8.
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            let mut words = line.split_ascii_whitespace();
            let Some(first) = words.next() else { continue };
            match first.strip_suffix(':') {
                Some(field) => {
                    let usage = if in_guest_ram { &mut figures.guest } else { &mut figures.monitor };
                    usage.add(field, words.next().and_then(|kib| kib.parse().ok()).unwrap_or(0));
                }
                // The header of a mapping: addresses, permissions, offset, device, inode, name.
                None => in_guest_ram = is_guest_ram(&line),
            }
        }
        Ok(figures)
    }
}

/// Whether the header of a mapping is of guest RAM: a file in memory of that name, or a snapshot's file that is mapped to be
/// written to, as nobody else maps one.
fn is_guest_ram(header: &str) -> bool {
    let mut words = header.split_ascii_whitespace().skip(1);
    let permissions = words.next().unwrap_or("");
    // The rest of the line: a name may have spaces in it.
    let name = header.find('/').map_or("", |start| &header[start..]);
    let name = name.trim_end().trim_end_matches(" (deleted)");
    name.starts_with(&format!("/memfd:{FILE_NAME}"))
        || permissions == "rw-p" && name.rsplit('/').next() == Some(SNAPSHOT_FILE_NAME)
}

impl Usage {
    fn add(&mut self, field: &str, kib: u64) {
        let bytes = kib.saturating_mul(1024);
        let sums: &mut [&mut u64] = match field {
            "Rss" => &mut [&mut self.resident],
            "Pss" => &mut [&mut self.proportional],
            "Private_Clean" | "Private_Dirty" => &mut [&mut self.private],
            "Swap" => &mut [&mut self.swapped],
            // Pages of the huge page pool are in none of the fields above.
            "Private_Hugetlb" => &mut [&mut self.resident, &mut self.proportional, &mut self.private],
            "Shared_Hugetlb" => &mut [&mut self.resident, &mut self.proportional],
            _ => &mut [],
        };
        sums.iter_mut().for_each(|sum| **sum = sum.saturating_add(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
5581a0000000-5581a0002000 r-xp 00001000 08:01 42                         /usr/bin/a program: odd
Rss:                   8 kB
Pss:                   4 kB
Private_Clean:         0 kB
Swap:                  4 kB
7f0000000000-7f0008000000 rw-s 00000000 00:01 1027                       /memfd:guest-ram-0 (deleted)
Rss:                 512 kB
Pss:                 256 kB
Private_Clean:         4 kB
Private_Dirty:       100 kB
VmFlags: rd wr sh
7f0010000000-7f0018000000 rw-s 00000000 00:0f 1028                       /memfd:guest-ram-1 (deleted)
Rss:                   0 kB
Shared_Hugetlb:     2048 kB
Private_Hugetlb:    4096 kB
7f0018000000-7f0018001000 rw-p 00000000 08:01 43                         /vms/a b/snapshots/c/memory (deleted)
Rss:                   8 kB
Pss:                   8 kB
Private_Dirty:         8 kB
7f0020000000-7f0020001000 rw-p 00000000 00:00 0
Rss:                   4 kB
Pss:                   4 kB
Private_Dirty:         4 kB
";

    #[test]
    fn guest_ram_is_told_from_the_rest() {
        let figures = MemoryFigures::parse(SMAPS.as_bytes()).unwrap();
        let guest = Usage { resident: 6664, proportional: 6408, private: 4208, swapped: 0 };
        let monitor = Usage { resident: 12, proportional: 8, private: 4, swapped: 4 };
        let kib = |u: Usage| Usage {
            resident: u.resident / 1024,
            proportional: u.proportional / 1024,
            private: u.private / 1024,
            swapped: u.swapped / 1024,
        };
        assert_eq!((kib(figures.guest), kib(figures.monitor)), (guest, monitor));
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        assert!(MemoryFigures::of_process(u32::MAX).is_err());
    }
}

//! What is asked of the host for RAM beyond having it: huge pages and a place on its NUMA nodes.

use std::io;

use rustix::mm::{Advice, madvise};

use crate::config::{Error, HUGE_PAGE_SIZE};

/// `MPOL_PREFERRED` (linux/mempolicy.h): the node named while it has memory, then others. A strict binding would have
/// the process killed where another node still has memory, and guest RAM is handed out long after it was promised.
const MPOL_PREFERRED: libc::c_long = 1;
/// Nodes the host can have at most (`CONFIG_NODES_SHIFT` of 10).
const MAX_HOST_NODES: u32 = 1024;
const WORD_BITS: u32 = u64::BITS;

const HUGE_POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
const NODES_WITH_MEMORY: &str = "/sys/devices/system/node/has_memory";

/// Wants huge pages for the mapping at `start`.
pub(crate) fn want_huge_pages(start: *mut u8, len: u64) -> io::Result<()> {
    // SAFETY: the advice changes which pages hold the mapping, not what is in it.
    unsafe { madvise(start.cast(), len as usize, Advice::LinuxHugepage) }?;
    Ok(())
}

/// Says what the pool of huge pages lacks for `bytes` of RAM.
pub(crate) fn pool_too_small(bytes: u64) -> Error {
    let count = |name| number(&std::fs::read_to_string(format!("{HUGE_POOL}/{name}")).unwrap_or_default());
    let free = count("free_hugepages").saturating_sub(count("resv_hugepages"));
    let wanted = bytes / HUGE_PAGE_SIZE;
    let mend = (count("nr_hugepages") + wanted).saturating_sub(free);
    Error::HugePool { bytes, wanted, free, mend }
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// Fails if the host has no memory on `node`.
pub(crate) fn check_host_node(node: u32) -> Result<(), Error> {
    // A kernel without NUMA has one node and no such file.
    let present = std::fs::read_to_string(NODES_WITH_MEMORY).unwrap_or_else(|_| "0".to_owned());
    let present = present.trim().to_owned();
    if node < MAX_HOST_NODES && list_contains(&present, node) {
        return Ok(());
    }
    Err(Error::NoHostNode { node, present })
}

/// Whether a list such as `0,2-3` has `number` in it.
fn list_contains(list: &str, number: u32) -> bool {
    list.split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        matches!((first.parse::<u32>(), last.parse::<u32>()), (Ok(first), Ok(last)) if (first..=last).contains(&number))
    })
}

/// Takes the pages of the file mapped at `start` from the host's `node`, whichever process touches them first.
pub(crate) fn prefer_host_node(start: *mut u8, len: u64, node: u32) -> io::Result<()> {
    let mut mask = [0_u64; (MAX_HOST_NODES / WORD_BITS) as usize];
    mask[(node / WORD_BITS) as usize] = 1 << (node % WORD_BITS);
    // The kernel takes one bit less than it is told.
    let bits = libc::c_ulong::from(MAX_HOST_NODES) + 1;
    // SAFETY: the policy changes where pages come from, not what is in them; the mask has the bits it is said to have.
    let result = unsafe { libc::syscall(libc::SYS_mbind, start, len, MPOL_PREFERRED, mask.as_ptr(), bits, 0) };
    match result {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // A kernel without NUMA has everything on its one node.
            error if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_numbers_are_read_as_the_kernel_writes_them() {
        assert!(list_contains("0", 0) && list_contains("0,2-3", 3) && list_contains("0-7", 4));
        assert!(!list_contains("0,2-3", 1) && !list_contains("", 0) && !list_contains("0-", 0));
    }

    #[test]
    fn nodes_the_host_does_not_have_are_named_with_those_it_has() {
        check_host_node(0).unwrap();
        let error = check_host_node(1023).unwrap_err().to_string();
        assert!(error.contains("node 1023") && error.contains("memory on 0"), "{error}");
    }
}

//! What RAM a guest gets, and why it cannot get it.

use serde::{Deserialize, Serialize};

use crate::PAGE_SIZE;

/// Bytes in a huge page.
pub const HUGE_PAGE_SIZE: u64 = 2 << 20;

/// The host pages that guest RAM is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pages {
    /// As the host hands them out: pages of 4 KiB, unless its administrator has decided otherwise.
    #[default]
    Host,
    /// Huge pages wherever the host can make them, pages of 4 KiB elsewhere.
    Transparent,
    /// Only pages of 2 MiB, reserved at once from the host's pool (`vm.nr_hugepages`).
    #[serde(rename = "huge-2m")]
    Huge2M,
}

/// All RAM of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamConfig {
    /// The NUMA nodes in the order of their guest-physical addresses; one for a machine without NUMA.
    pub nodes: Vec<RamNode>,
    pub pages: Pages,
}

/// The RAM of one NUMA node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamNode {
    /// May be zero, as long as another node has RAM.
    pub bytes: u64,
    /// The host's node to take it from, as long as that one has memory left.
    pub host_node: Option<u32>,
}

impl RamConfig {
    /// One node of `bytes`, in whatever pages and from whatever node the host gives.
    pub fn plain(bytes: u64) -> RamConfig {
        RamConfig { nodes: vec![RamNode { bytes, host_node: None }], pages: Pages::Host }
    }

    pub(crate) fn check(&self) -> Result<u64, Error> {
        let total = self.nodes.iter().fold(0_u64, |sum, node| sum.saturating_add(node.bytes));
        if total < 1 << 20 {
            return Err(Error::TooSmall(total));
        }
        let unit = if self.pages == Pages::Huge2M { HUGE_PAGE_SIZE } else { PAGE_SIZE };
        match self.nodes.iter().find(|node| !node.bytes.is_multiple_of(unit)) {
            Some(node) => Err(Error::Unaligned { bytes: node.bytes, unit }),
            None => Ok(total),
        }
    }
}

/// Why guest RAM could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a guest needs at least 1 MiB of RAM, not {0} bytes")]
    TooSmall(u64),
    #[error("guest RAM is made of pages of {} KiB, and {bytes} bytes are no whole number of them: round it", unit >> 10)]
    Unaligned { bytes: u64, unit: u64 },
    #[error("guest RAM of {} MiB cannot be made on this host: {source}", bytes >> 20)]
    Reserve { bytes: u64, source: std::io::Error },
    #[error(
        "this process has no room for {} MiB of guest RAM among its addresses: {source}; ask for less, or raise the \
         limit of address space (ulimit -v)",
        bytes >> 20
    )]
    AddressSpace { bytes: u64, source: std::io::Error },
    #[error("guest RAM of {} MiB cannot be mapped on this host: {source}", bytes >> 20)]
    Map { bytes: u64, source: std::io::Error },
    #[error(
        "{} MiB of RAM in huge pages need {wanted} free pages of 2 MiB, and the host's pool has {free}: as root, sysctl \
         vm.nr_hugepages={mend}, or use transparent huge pages",
        bytes >> 20
    )]
    HugePool { bytes: u64, wanted: u64, free: u64, mend: u64 },
    #[error("this host's kernel cannot use huge pages for guest RAM ({source}): leave them out")]
    NoHugePages { source: std::io::Error },
    #[error("this host has no memory on NUMA node {node}; there is memory on {present}: choose from these")]
    NoHostNode { node: u32, present: String },
    #[error(
        "guest RAM cannot be placed on the host's NUMA node {node}: {source}; the process may lack the permission for \
         mbind: leave the host's node out, or permit it"
    )]
    Place { node: u32, source: std::io::Error },
    #[error("the tables that track guest RAM cannot be made: {0}")]
    Tracker(std::io::Error),
    #[error(transparent)]
    Image(#[from] crate::image::ImageError),
    #[error("guest RAM regions cannot be put together: {0}")]
    Regions(vm_memory::GuestRegionCollectionError),
}

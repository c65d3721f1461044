//! NUMA: which vCPUs and which RAM belong together, what the guest is told of it and what the host is asked for.
//!
//! ```text
//! NumaNode (wish) ──┬─> RamConfig: one file a node, from the host's node
//!                   └─> SRAT, SLIT: the guest's kernel keeps threads and their memory together
//! ```

use queztl_guest_memory::{GuestRam, HUGE_PAGE_SIZE, Pages, RamConfig, RamNode};
use serde::{Deserialize, Serialize};

use crate::acpi;

/// Most nodes a machine can have: Linux's own limit as distributions build it (`CONFIG_NODES_SHIFT` of 6).
pub const MAX_NODES: usize = 64;

/// Distance of a node to itself (ACPI 6.5 §5.2.17).
const LOCAL: u8 = 10;
/// Distance to another node, where none is given: what hardware of two sockets says.
const REMOTE: u8 = 20;
/// Distances to others that are in order; 255 means out of reach.
const REMOTE_RANGE: std::ops::RangeInclusive<u8> = LOCAL + 1..=254;

/// One NUMA node of the guest, numbered by its place.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NumaNode {
    /// Its vCPUs; may be none.
    pub vcpus: Vec<u32>,
    /// Its RAM, in whole units of 2 MiB; may be none.
    pub ram_bytes: u64,
    /// The host's node that its RAM comes from.
    pub host_node: Option<u32>,
    /// Distances to other nodes, as (node, distance). One that only the other node gives holds in both directions.
    pub distances: Vec<(u32, u8)>,
}

/// Why the nodes cannot be as they are wished.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NumaError {
    #[error("{0} NUMA nodes are too many: a virtual machine has at most {MAX_NODES}")]
    TooMany(usize),
    #[error("vCPU {vcpu} is in {count} NUMA nodes: put each vCPU into exactly one")]
    VcpuNode { vcpu: u32, count: usize },
    #[error("NUMA node {node} has vCPU {vcpu}, but the machine's vCPUs are 0 to {last}: leave it out or add vCPUs")]
    NoVcpu { node: usize, vcpu: u32, last: u32 },
    #[error("NUMA node {node} has {bytes} bytes of RAM: give it whole units of 2 MiB")]
    Unaligned { node: usize, bytes: u64 },
    #[error("the NUMA nodes have {nodes} bytes of RAM together, and the machine has {machine}: make them the same")]
    Sum { nodes: u64, machine: u64 },
    #[error("NUMA node {from} names a distance to node {to}, which {why}")]
    Distance { from: usize, to: u32, why: &'static str },
}

/// Checks the nodes of a machine with `vcpus` vCPUs and `ram_bytes` of RAM; no nodes are fine.
pub(crate) fn check(nodes: &[NumaNode], vcpus: u32, ram_bytes: u64) -> Result<(), NumaError> {
    if nodes.is_empty() {
        return Ok(());
    }
    if nodes.len() > MAX_NODES {
        return Err(NumaError::TooMany(nodes.len()));
    }
    for (node, config) in nodes.iter().enumerate() {
        config.check(node, nodes.len(), vcpus)?;
    }
    for vcpu in 0..vcpus {
        let count = nodes.iter().flat_map(|node| &node.vcpus).filter(|id| **id == vcpu).count();
        if count != 1 {
            return Err(NumaError::VcpuNode { vcpu, count });
        }
    }
    let sum = nodes.iter().fold(0_u64, |sum, node| sum.saturating_add(node.ram_bytes));
    if sum != ram_bytes {
        return Err(NumaError::Sum { nodes: sum, machine: ram_bytes });
    }
    Ok(())
}

impl NumaNode {
    fn check(&self, node: usize, nodes: usize, vcpus: u32) -> Result<(), NumaError> {
        if let Some(vcpu) = self.vcpus.iter().copied().find(|id| *id >= vcpus) {
            return Err(NumaError::NoVcpu { node, vcpu, last: vcpus.saturating_sub(1) });
        }
        if !self.ram_bytes.is_multiple_of(HUGE_PAGE_SIZE) {
            return Err(NumaError::Unaligned { node, bytes: self.ram_bytes });
        }
        for (to, distance) in self.distances.iter().copied() {
            let itself = to as usize == node;
            let why = match () {
                () if to as usize >= nodes => "does not exist",
                () if itself && distance != LOCAL => "is itself: that distance is always 10",
                () if !itself && !REMOTE_RANGE.contains(&distance) => "must be 11 to 254",
                () => continue,
            };
            return Err(NumaError::Distance { from: node, to, why });
        }
        Ok(())
    }

    fn distance_to(&self, node: usize) -> Option<u8> {
        self.distances.iter().find(|(to, _)| *to as usize == node).map(|(_, distance)| *distance)
    }
}

/// The RAM of a machine: that of its nodes, or `ram_bytes` in one piece.
pub(crate) fn ram(nodes: &[NumaNode], ram_bytes: u64, pages: Pages) -> RamConfig {
    if nodes.is_empty() {
        return RamConfig { pages, ..RamConfig::plain(ram_bytes) };
    }
    let node = |node: &NumaNode| RamNode { bytes: node.ram_bytes, host_node: node.host_node };
    RamConfig { nodes: nodes.iter().map(node).collect(), pages }
}

/// What the ACPI tables say about checked nodes whose RAM is in `ram`; `None` without nodes.
pub(crate) fn tables(nodes: &[NumaNode], ram: &GuestRam) -> Option<Vec<acpi::NumaNode>> {
    let table = |(number, node): (usize, &NumaNode)| acpi::NumaNode {
        vcpus: node.vcpus.clone(),
        memory: ram.ranges_of(number).collect(),
        distances: (0..nodes.len()).map(|to| distance(nodes, number, to)).collect(),
    };
    (!nodes.is_empty()).then(|| nodes.iter().enumerate().map(table).collect())
}

/// How many vCPUs a socket takes so that none spans two of the checked nodes: a guest's kernel takes a cache shared by
/// processors of two nodes for a mistake. All of the vCPUs, or a power of two, since sockets are told by the upper bits of
/// APIC ids.
pub(crate) fn socket_vcpus(nodes: &[NumaNode], vcpus: u32) -> u32 {
    let node_of = |vcpu: u32| nodes.iter().position(|node| node.vcpus.contains(&vcpu));
    let fits = |size: u32| (0..vcpus).all(|vcpu| node_of(vcpu) == node_of(vcpu - vcpu % size));
    let mut size = vcpus.max(1).next_power_of_two();
    while !fits(size) {
        size /= 2;
    }
    size.min(vcpus.max(1))
}

fn distance(nodes: &[NumaNode], from: usize, to: usize) -> u8 {
    if from == to {
        return LOCAL;
    }
    nodes[from].distance_to(to).or_else(|| nodes[to].distance_to(from)).unwrap_or(REMOTE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn two_nodes() -> Vec<NumaNode> {
        let node = |vcpus: &[u32], mib| NumaNode { vcpus: vcpus.to_vec(), ram_bytes: mib * MIB, ..NumaNode::default() };
        vec![node(&[0, 2], 64), node(&[1], 32)]
    }

    #[test]
    fn nodes_that_cover_the_machine_pass() {
        assert_eq!(check(&two_nodes(), 3, 96 * MIB), Ok(()));
        assert_eq!(check(&[], 3, 96 * MIB), Ok(()));
    }

    #[test]
    fn nodes_that_do_not_fit_the_machine_are_refused() {
        let refused = |change: fn(&mut Vec<NumaNode>)| {
            let mut nodes = two_nodes();
            change(&mut nodes);
            check(&nodes, 3, 96 * MIB).unwrap_err()
        };
        assert_eq!(refused(|n| n[0].vcpus = vec![0]), NumaError::VcpuNode { vcpu: 2, count: 0 });
        assert_eq!(refused(|n| n[1].vcpus.push(0)), NumaError::VcpuNode { vcpu: 0, count: 2 });
        assert_eq!(refused(|n| n[1].vcpus.push(7)), NumaError::NoVcpu { node: 1, vcpu: 7, last: 2 });
        assert_eq!(refused(|n| n[1].ram_bytes = MIB), NumaError::Unaligned { node: 1, bytes: MIB });
        assert_eq!(refused(|n| n[1].ram_bytes = 0), NumaError::Sum { nodes: 64 * MIB, machine: 96 * MIB });
        assert!(matches!(refused(|n| n[0].ram_bytes = !(2 * MIB - 1)), NumaError::Sum { nodes: u64::MAX, .. }));
        assert!(matches!(refused(|n| n.resize(65, NumaNode::default())), NumaError::TooMany(65)));
        for distance in [(2, 20), (0, 20), (1, 10), (1, 255)] {
            let mut nodes = two_nodes();
            nodes[0].distances = vec![distance];
            assert!(matches!(check(&nodes, 3, 96 * MIB), Err(NumaError::Distance { from: 0, .. })), "{distance:?}");
        }
    }

    #[test]
    fn a_distance_given_once_holds_in_both_directions() {
        let mut nodes = two_nodes();
        nodes.push(NumaNode { distances: vec![(0, 31)], ..NumaNode::default() });
        let ram = GuestRam::with(&ram(&nodes, 96 * MIB, Pages::Host)).unwrap();
        let tables = tables(&nodes, &ram).unwrap();
        let distances: Vec<&[u8]> = tables.iter().map(|node| node.distances.as_slice()).collect();
        assert_eq!(distances, [[10, 20, 31], [20, 10, 20], [31, 20, 10]]);
        assert_eq!(tables[1].memory, [(64 * MIB, 32 * MIB)]);
        assert!(tables[2].memory.is_empty());
    }

    #[test]
    fn sockets_are_as_large_as_the_nodes_allow() {
        let sockets = |nodes: &[&[u32]], vcpus| {
            let node = |vcpus: &&[u32]| NumaNode { vcpus: vcpus.to_vec(), ..NumaNode::default() };
            socket_vcpus(&nodes.iter().map(node).collect::<Vec<_>>(), vcpus)
        };
        assert_eq!(sockets(&[], 6), 6);
        assert_eq!(sockets(&[&[0, 1, 2]], 3), 3);
        assert_eq!(sockets(&[&[0, 1], &[2, 3]], 4), 2);
        assert_eq!(sockets(&[&[0, 1, 2, 3], &[4, 5]], 6), 4);
        assert_eq!(sockets(&[&[0, 1, 2], &[3, 4, 5]], 6), 1);
        assert_eq!(sockets(&[&[0, 2], &[1, 3]], 4), 1);
    }
}

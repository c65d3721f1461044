//! The ACPI tables: how an operating system learns what the machine consists of.
//!
//! [`build`] writes them all into the BIOS area below 1 MiB, where guests that are not told the address find them:
//!
//! ```text
//! RSDP ──> XSDT ──┬─> FADT ──┬─> DSDT  devices: COM1, clock, virtio-mmio, pvpanic,
//!                 │          │         generation identifier, notices; sleep state S5
//!                 │          └─> FACS
//!                 ├─> MADT  local APICs, I/O APIC, legacy interrupt routing
//!                 ├─> SRAT, SLIT  only with NUMA nodes
//! ```
//!
//! Source: ACPI specification 6.5.

mod dsdt;
mod tables;
#[cfg(test)]
mod tests;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::rsdp::Rsdp;
use queztl_guest_memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use crate::irqchip::MAX_VCPUS;
use crate::layout::{ACPI_END, ACPI_START, VIRTIO_MAX_DEVICES};

/// Every table says who made it.
const OEM_ID: [u8; 6] = *b"QUEZTL";
const OEM_TABLE_ID: [u8; 8] = *b"QUEZTLVM";
const OEM_REVISION: u32 = 1;

/// One NUMA node, numbered by its place in [`AcpiConfig::numa`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NumaNode {
    /// The vCPUs of the node.
    pub vcpus: Vec<u32>,
    /// Its runs of RAM as (guest-physical start, length in bytes).
    pub memory: Vec<(u64, u64)>,
    /// Distance to every node, itself (10) included.
    pub distances: Vec<u8>,
}

/// What the tables describe.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AcpiConfig {
    pub vcpus: u32,
    /// How many virtio devices there are, at the addresses and interrupt lines of [`crate::layout`].
    pub virtio_devices: u32,
    /// `None` for a machine without NUMA.
    pub numa: Option<Vec<NumaNode>>,
    /// Where memory can be hot-plugged, as (guest-physical start, length in bytes). Only shown with NUMA: it belongs to the
    /// first node.
    pub hotplug: Option<(u64, u64)>,
}

/// Why the tables cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    #[error("a machine has 1 to {MAX_VCPUS} vCPUs, not {0}: give another number of vCPUs")]
    Vcpus(u32),
    #[error("a machine has at most {VIRTIO_MAX_DEVICES} virtio devices, not {0}: leave some out")]
    Devices(u32),
    #[error("NUMA node {node} names {found} distances instead of {nodes}, one for each node")]
    Distances { node: usize, found: usize, nodes: usize },
    #[error("the distance from NUMA node {from} to {to} is {value}; it must be 10 to itself and 11 to 255 to others")]
    Distance { from: usize, to: usize, value: u8 },
    #[error("vCPU {vcpu} is in {count} NUMA nodes; it must be in exactly one")]
    VcpuNode { vcpu: u32, count: usize },
    #[error(
        "the ACPI tables need {needed} bytes, but there is room for {room}: use fewer vCPUs, devices or NUMA nodes"
    )]
    TooLarge { needed: u64, room: u64 },
    #[error("the ACPI tables cannot be written to guest memory at {address:#x}: {source}")]
    Memory { address: u64, source: vm_memory::GuestMemoryError },
}

/// Writes all tables into guest memory; gives the guest-physical address of the RSDP.
pub fn build(memory: &GuestMemory, config: &AcpiConfig) -> Result<u64, AcpiError> {
    config.check()?;
    // The RSDP comes first, where a search from the start of the area finds it, but names what follows it.
    let mut area = Area { memory, next: ACPI_START + Rsdp::len() as u64 };
    let dsdt = area.place(&dsdt::build(config))?;
    let facs = area.place(&bytes(&FACS::new()))?;
    let mut entries = vec![area.place(&tables::fadt(dsdt, facs))?, area.place(&tables::madt(config.vcpus))?];
    if let Some(nodes) = &config.numa {
        entries.push(area.place(&tables::srat(nodes, config.hotplug))?);
        entries.push(area.place(&tables::slit(nodes))?);
    }
    let xsdt = area.place(&tables::xsdt(&entries))?;
    let mut first = Area { memory, next: ACPI_START };
    first.place(&bytes(&Rsdp::new(OEM_ID, xsdt)))
}

/// The part of guest memory that the tables fill, lowest address first.
struct Area<'a> {
    memory: &'a GuestMemory,
    next: u64,
}

impl Area<'_> {
    /// The FACS must lie at a multiple of 64 bytes (§5.2.10); the others do not mind.
    const ALIGNMENT: u64 = 64;

    fn place(&mut self, table: &[u8]) -> Result<u64, AcpiError> {
        let address = self.next.next_multiple_of(Area::ALIGNMENT);
        let end = address + table.len() as u64;
        if end > ACPI_END {
            return Err(AcpiError::TooLarge { needed: end - ACPI_START, room: ACPI_END - ACPI_START });
        }
        let written = self.memory.write_slice(table, GuestAddress(address));
        written.map_err(|source| AcpiError::Memory { address, source })?;
        self.next = end;
        Ok(address)
    }
}

impl AcpiConfig {
    fn check(&self) -> Result<(), AcpiError> {
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(AcpiError::Vcpus(self.vcpus));
        }
        if self.virtio_devices > VIRTIO_MAX_DEVICES {
            return Err(AcpiError::Devices(self.virtio_devices));
        }
        self.numa.as_deref().map_or(Ok(()), |nodes| check_numa(nodes, self.vcpus))
    }
}

fn check_numa(nodes: &[NumaNode], vcpus: u32) -> Result<(), AcpiError> {
    let count = nodes.len();
    for (node, NumaNode { distances, .. }) in nodes.iter().enumerate() {
        if distances.len() != count {
            return Err(AcpiError::Distances { node, found: distances.len(), nodes: count });
        }
        for (to, value) in distances.iter().copied().enumerate() {
            if (to == node) != (value == 10) || value < 10 {
                return Err(AcpiError::Distance { from: node, to, value });
            }
        }
    }
    for vcpu in 0..vcpus {
        let count = nodes.iter().filter(|node| node.vcpus.contains(&vcpu)).count();
        if count != 1 {
            return Err(AcpiError::VcpuNode { vcpu, count });
        }
    }
    Ok(())
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

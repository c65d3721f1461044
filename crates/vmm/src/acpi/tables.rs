//! The tables with a fixed layout: FADT, MADT, SRAT, SLIT, XSDT.

use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::sdt::Sdt;

use super::{NumaNode, OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::devices::legacy::report::RESET_VALUE;
use crate::devices::legacy::rtc::CENTURY;
use crate::layout::{IOAPIC_BASE, LAPIC_BASE, PM_TIMER_PORT, PM1_CONTROL_PORT, PM1_EVENT_PORT, RESET_PORT, SCI_GSI};

const HEADER_LEN: u32 = 36;

fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Sdt::new(*signature, HEADER_LEN, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(body);
    table.as_slice().to_vec()
}

/// Extended system description table (§5.2.8): the addresses of the others.
pub(super) fn xsdt(entries: &[u64]) -> Vec<u8> {
    let body: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    table(b"XSDT", 1, &body)
}

/// Has devices of the old kind, no VGA (§5.2.9.3). The bit for a keyboard controller is not set, so that nobody looks for
/// a keyboard; its reset works all the same.
const BOOT_LEGACY_DEVICES: u16 = 1 << 0;
const BOOT_NO_VGA: u16 = 1 << 2;

fn io_register(port: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, port.into())
}

/// Fixed ACPI description table (§5.2.9). Without an SMI command port, the machine is always in ACPI mode.
pub(super) fn fadt(dsdt: u64, facs: u64) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // A set bit says that this is not fixed hardware; the power button is.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    // The tables lie below 1 MiB.
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    fadt.firmware_ctrl = (facs as u32).into();
    fadt.sci_int = (SCI_GSI as u16).into();
    fadt.pm1a_evt_blk = u32::from(PM1_EVENT_PORT).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = io_register(PM1_EVENT_PORT, 32, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(PM1_CONTROL_PORT).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = io_register(PM1_CONTROL_PORT, 16, AccessSize::WordAccess);
    fadt.pm_tmr_blk = u32::from(PM_TIMER_PORT).into();
    fadt.pm_tmr_len = 4;
    fadt.x_pm_tmr_blk = io_register(PM_TIMER_PORT, 32, AccessSize::DwordAccess);
    // Latencies beyond these limits mean that the states C2 and C3 do not exist.
    fadt.p_lvl2_lat = 101.into();
    fadt.p_lvl3_lat = 1001.into();
    fadt.century = CENTURY;
    fadt.iapc_boot_arch = (BOOT_LEGACY_DEVICES | BOOT_NO_VGA).into();
    fadt.reset_reg = io_register(RESET_PORT, 8, AccessSize::ByteAccess);
    fadt.reset_value = RESET_VALUE;
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"QUEZTL\0\0").into();
    super::bytes(&fadt.finalize())
}

/// Local APIC identifiers from here on need an x2APIC entry.
const FIRST_X2APIC: u32 = 255;
const ENABLED: u32 = 1;
/// Of memory: it may come later.
const HOT_PLUGGABLE: u32 = 2;
/// The PIC pair exists beside the APICs.
const PCAT_COMPAT: u32 = 1;
/// Polarity and trigger of an interrupt source: as on the ISA bus, or level and active high.
const ISA: u16 = 0;
const LEVEL_HIGH: u16 = 0x0d;

/// Multiple APIC description table (§5.2.12).
pub(super) fn madt(vcpus: u32) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend((LAPIC_BASE as u32).to_le_bytes());
    body.extend(PCAT_COMPAT.to_le_bytes());
    for id in 0..vcpus {
        body.extend(local_apic(id));
    }
    // I/O APIC 0, its inputs from global interrupt 0 on.
    body.extend([1, 12, 0, 0]);
    body.extend((IOAPIC_BASE as u32).to_le_bytes());
    body.extend(0_u32.to_le_bytes());
    body.extend(source_override(0, 2, ISA));
    body.extend(source_override(SCI_GSI as u8, SCI_GSI, LEVEL_HIGH));
    // NMIs arrive on LINT1 of all processors.
    body.extend([4, 6, 0xff, 0, 0, 1]);
    if vcpus > FIRST_X2APIC {
        body.extend([10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    }
    table(b"APIC", 5, &body)
}

fn local_apic(id: u32) -> Vec<u8> {
    let mut entry = Vec::with_capacity(16);
    if id < FIRST_X2APIC {
        entry.extend([0, 8, id as u8, id as u8]);
        entry.extend(ENABLED.to_le_bytes());
    } else {
        entry.extend([9, 16, 0, 0]);
        [id, ENABLED, id].iter().for_each(|field| entry.extend(field.to_le_bytes()));
    }
    entry
}

fn source_override(irq: u8, gsi: u32, flags: u16) -> Vec<u8> {
    let mut entry = vec![2, 10, 0, irq];
    entry.extend(gsi.to_le_bytes());
    entry.extend(flags.to_le_bytes());
    entry
}

/// System resource affinity table (§5.2.16).
pub(super) fn srat(nodes: &[NumaNode], hotplug: Option<(u64, u64)>) -> Vec<u8> {
    // Reserved: 1 for compatibility, then 8 bytes.
    let mut body = vec![1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (domain, node) in (0_u32..).zip(nodes) {
        for vcpu in &node.vcpus {
            // Processor local x2APIC affinity: it has room for every identifier and domain.
            body.extend([2, 24, 0, 0]);
            [domain, *vcpu, ENABLED, 0, 0].iter().for_each(|field| body.extend(field.to_le_bytes()));
        }
        node.memory.iter().for_each(|range| body.extend(memory_affinity(domain, *range, ENABLED)));
    }
    if let Some(range) = hotplug {
        body.extend(memory_affinity(0, range, ENABLED | HOT_PLUGGABLE));
    }
    table(b"SRAT", 3, &body)
}

/// Memory affinity structure (§5.2.16.2).
fn memory_affinity(domain: u32, (start, len): (u64, u64), flags: u32) -> Vec<u8> {
    let mut entry = vec![1, 40];
    entry.extend(domain.to_le_bytes());
    entry.extend([0; 2]);
    entry.extend(start.to_le_bytes());
    entry.extend(len.to_le_bytes());
    entry.extend([0; 4]);
    entry.extend(flags.to_le_bytes());
    entry.extend([0; 8]);
    entry
}

/// System locality information table (§5.2.17).
pub(super) fn slit(nodes: &[NumaNode]) -> Vec<u8> {
    let mut body = (nodes.len() as u64).to_le_bytes().to_vec();
    nodes.iter().for_each(|node| body.extend(&node.distances));
    table(b"SLIT", 1, &body)
}

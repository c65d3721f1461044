use std::collections::HashMap;

use queztl_guest_memory::GuestRam;

use super::*;

fn config(vcpus: u32, virtio_devices: u32) -> AcpiConfig {
    AcpiConfig { vcpus, virtio_devices, numa: None, hotplug: None }
}

fn two_nodes() -> AcpiConfig {
    let node = |vcpus: &[u32], start, distances: &[u8]| NumaNode {
        vcpus: vcpus.to_vec(),
        memory: vec![(start, 0x4000_0000)],
        distances: distances.to_vec(),
    };
    let numa = vec![node(&[0, 2], 0, &[10, 20]), node(&[1, 3], 0x4000_0000, &[21, 10])];
    AcpiConfig { numa: Some(numa), ..config(4, 2) }
}

fn read(ram: &GuestRam, address: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    ram.memory().read_slice(&mut data, GuestAddress(address)).unwrap();
    data
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

/// Follows the pointers from the RSDP as an operating system does, checking each checksum.
fn tables(config: &AcpiConfig) -> HashMap<String, Vec<u8>> {
    let ram = GuestRam::new(4 << 20).unwrap();
    let rsdp_address = build(ram.memory(), config).unwrap();
    assert_eq!(rsdp_address, ACPI_START);
    let rsdp = read(&ram, rsdp_address, 36);
    assert_eq!((&rsdp[..8], sum(&rsdp[..20]), sum(&rsdp)), (&b"RSD PTR "[..], 0, 0));

    let table = |address: u64| {
        let len = u32_at(&read(&ram, address, 8), 4) as usize;
        read(&ram, address, len)
    };
    let xsdt = table(u64_at(&rsdp, 24));
    let mut found: Vec<Vec<u8>> = xsdt[36..].chunks(8).map(|entry| table(u64_at(entry, 0))).collect();
    let fadt = found[0].clone();
    assert_eq!(u64::from(u32_at(&fadt, 40)), u64_at(&fadt, 140), "both addresses of the DSDT");
    found.push(table(u64_at(&fadt, 140)));
    found.push(xsdt);
    let facs_address = u64::from(u32_at(&fadt, 36));
    let facs = table(facs_address);
    assert!(facs.starts_with(b"FACS") && facs_address.is_multiple_of(64));
    found
        .into_iter()
        .map(|table| {
            let name = String::from_utf8(table[..4].to_vec()).unwrap();
            assert_eq!(sum(&table), 0, "checksum of {name}");
            (name, table)
        })
        .collect()
}

/// The sub-tables after a header, as (type, bytes).
fn entries(table: &[u8], header: usize) -> Vec<(u8, Vec<u8>)> {
    let mut rest = &table[header..];
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (entry, after) = rest.split_at(usize::from(rest[1]));
        found.push((entry[0], entry.to_vec()));
        rest = after;
    }
    found
}

#[test]
fn the_tables_of_a_small_machine_are_complete() {
    let tables = tables(&config(2, 3));
    let mut names: Vec<&str> = tables.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["APIC", "DSDT", "FACP", "XSDT"]);
    let dsdt = &tables["DSDT"];
    let count = |needle: &[u8]| dsdt.windows(needle.len()).filter(|window| *window == needle).count();
    assert_eq!((count(b"LNRO0005"), count(b"QEMU0001"), count(b"_S5_"), count(b"V002")), (3, 1, 1, 1));
}

#[test]
fn the_fadt_names_the_power_management_ports() {
    let tables = tables(&config(1, 0));
    let fadt = &tables["FACP"];
    assert_eq!([u32_at(fadt, 56), u32_at(fadt, 64), u32_at(fadt, 76)], [0x600, 0x604, 0x608]);
    assert_eq!((fadt[46], fadt[108], u32_at(fadt, 48)), (9, 0x32, 0), "SCI, century, no SMI command");
    assert_eq!((fadt[116], u64_at(fadt, 120), fadt[128]), (1, 0xcf9, 6), "reset register");
}

#[test]
fn the_madt_lists_every_vcpu_and_the_legacy_routing() {
    let tables = tables(&config(256, 0));
    let entries = entries(&tables["APIC"], 44);
    let of = |kind: u8| entries.iter().filter(|(k, _)| *k == kind).map(|(_, bytes)| bytes).collect::<Vec<_>>();
    assert_eq!((of(0).len(), of(9).len(), of(10).len()), (255, 1, 1));
    assert_eq!((u32_at(of(9)[0], 4), u32_at(of(9)[0], 12)), (255, 255));
    assert_eq!(u32_at(of(1)[0], 4), 0xfec0_0000);
    let overrides: Vec<(u8, u32, u8)> = of(2).iter().map(|e| (e[3], u32_at(e, 4), e[8])).collect();
    assert_eq!(overrides, [(0, 2, 0), (9, 9, 0x0d)]);
}

#[test]
fn numa_nodes_appear_in_srat_and_slit() {
    let tables = tables(&two_nodes());
    let srat = entries(&tables["SRAT"], 48);
    let cpus: Vec<(u32, u32)> =
        srat.iter().filter(|(kind, _)| *kind == 2).map(|(_, e)| (u32_at(e, 4), u32_at(e, 8))).collect();
    assert_eq!(cpus, [(0, 0), (0, 2), (1, 1), (1, 3)]);
    let memory: Vec<(u32, u64, u64)> =
        srat.iter().filter(|(kind, _)| *kind == 1).map(|(_, e)| (u32_at(e, 2), u64_at(e, 8), u64_at(e, 16))).collect();
    assert_eq!(memory, [(0, 0, 0x4000_0000), (1, 0x4000_0000, 0x4000_0000)]);
    assert_eq!(&tables["SLIT"][36..], [2, 0, 0, 0, 0, 0, 0, 0, 10, 20, 21, 10]);
}

#[test]
fn memory_for_hot_plug_appears_in_srat_as_such() {
    let tables = tables(&AcpiConfig { hotplug: Some((0x8000_0000, 0x1000_0000)), ..two_nodes() });
    let srat = entries(&tables["SRAT"], 48);
    let memory: Vec<(u32, u64, u64, u32)> = srat
        .iter()
        .filter(|(kind, _)| *kind == 1)
        .map(|(_, e)| (u32_at(e, 2), u64_at(e, 8), u64_at(e, 16), u32_at(e, 28)))
        .collect();
    assert_eq!(memory[2..], [(0, 0x8000_0000, 0x1000_0000, 3)]);
    assert!(memory[..2].iter().all(|(_, _, _, flags)| *flags == 1));
}

#[test]
fn the_largest_machine_fits() {
    tables(&config(256, VIRTIO_MAX_DEVICES));
}

#[test]
fn impossible_machines_are_refused() {
    let ram = GuestRam::new(4 << 20).unwrap();
    let refused = |config: &AcpiConfig| build(ram.memory(), config).unwrap_err();
    assert!(matches!(refused(&config(0, 0)), AcpiError::Vcpus(0)));
    assert!(matches!(refused(&config(257, 0)), AcpiError::Vcpus(257)));
    assert!(matches!(refused(&config(1, 49)), AcpiError::Devices(49)));
    let with = |change: fn(&mut [NumaNode])| {
        let mut config = two_nodes();
        change(config.numa.as_mut().unwrap());
        refused(&config)
    };
    assert!(matches!(with(|n| n[1].vcpus.push(0)), AcpiError::VcpuNode { vcpu: 0, count: 2 }));
    assert!(matches!(with(|n| n[1].vcpus.clear()), AcpiError::VcpuNode { vcpu: 1, count: 0 }));
    assert!(matches!(with(|n| n[0].distances[1] = 10), AcpiError::Distance { from: 0, to: 1, value: 10 }));
    assert!(matches!(with(|n| n[0].distances.truncate(1)), AcpiError::Distances { node: 0, found: 1, nodes: 2 }));
}

/// Writes the tables to the folder that `ACPI_TABLES_OUT` names, to be looked at with `iasl -d`.
#[test]
fn tables_can_be_saved_for_a_disassembler() {
    let tables = tables(&two_nodes());
    if let Some(folder) = std::env::var_os("ACPI_TABLES_OUT") {
        for (name, bytes) in &tables {
            std::fs::write(std::path::Path::new(&folder).join(format!("{name}.aml")), bytes).unwrap();
        }
    }
    assert_eq!(tables.len(), 6);
}

#[test]
fn the_dsdt_tells_where_the_generation_identifier_is_and_how_its_change_is_told() {
    let dsdt = tables(&config(1, 0)).remove("DSDT").unwrap();
    let count = |needle: &[u8]| dsdt.windows(needle.len()).filter(|window| *window == needle).count();
    // A package of two: the low half as a double word, the high half zero.
    assert_eq!(count(b"ADDR\x12\x08\x02\x0c\x00\xf0\x0f\x00\x00"), 1);
    assert_eq!((count(b"VMGENCTR"), count(b"VM_Gen_Counter"), count(b"ACPI0013")), (1, 2, 1));
    // Notify (VGEN, 0x80).
    assert_eq!(count(b"\x86VGEN\x0a\x80"), 1);
}

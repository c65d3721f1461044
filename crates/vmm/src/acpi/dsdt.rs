//! The DSDT: the devices that a guest cannot find by itself.

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt,
    Local, Memory32Fixed, Method, Name, Notify, ONE, OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Scope,
    Store, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::{AcpiConfig, OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::devices::legacy::notices::Notice;
use crate::devices::legacy::pm::SLEEP_TYPE_S5;
use crate::layout::{
    GENERATION_ID, NOTICE_GSI, NOTICE_PORT, PVPANIC_PORT, RTC_GSI, RTC_PORT, SERIAL_GSI, SERIAL_PORT, VIRTIO_GSI_BASE,
    VIRTIO_MMIO_BASE, VIRTIO_MMIO_STRIDE,
};

const HEADER_LEN: u32 = 36;

/// The whole table.
pub(super) fn build(config: &AcpiConfig) -> Vec<u8> {
    let mut table = Sdt::new(*b"DSDT", HEADER_LEN, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let mut body = sleep_states();
    body.extend(in_system_bus(&[serial(), clock(), pvpanic(), generation_id(), event_device()].concat()));
    let virtio: Vec<u8> = (0..config.virtio_devices).flat_map(virtio).collect();
    if !virtio.is_empty() {
        body.extend(in_system_bus(&virtio));
    }
    table.append_slice(&body);
    table.as_slice().to_vec()
}

/// `_S5`, off: the sleep type for PM1a and PM1b control, two reserved elements.
fn sleep_states() -> Vec<u8> {
    let package = Package::new(vec![&SLEEP_TYPE_S5, &ZERO, &ZERO, &ZERO]);
    super::bytes(&Name::new("\\_S5_".into(), &package))
}

fn in_system_bus(devices: &[u8]) -> Vec<u8> {
    Scope::raw(Path::new("\\_SB_"), devices.to_vec())
}

fn port(start: u16, len: u8) -> IO {
    IO::new(start, start, 1, len)
}

/// A legacy interrupt: rising edges, not shared.
fn legacy_interrupt(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

/// A device with a name, an identifier and resources.
fn device(name: &str, id: &dyn Aml, unique: u32, resources: Vec<&dyn Aml>) -> Vec<u8> {
    super::bytes(&Device::new(
        name.into(),
        vec![
            &Name::new("_HID".into(), id),
            &Name::new("_UID".into(), &unique),
            &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
        ],
    ))
}

fn serial() -> Vec<u8> {
    let interrupt = legacy_interrupt(SERIAL_GSI);
    device("COM1", &EISAName::new("PNP0501"), 0, vec![&port(SERIAL_PORT, 8), &interrupt])
}

fn clock() -> Vec<u8> {
    device("RTC_", &EISAName::new("PNP0B00"), 0, vec![&port(RTC_PORT, 2), &legacy_interrupt(RTC_GSI)])
}

fn pvpanic() -> Vec<u8> {
    device("PEVT", &"QEMU0001", 0, vec![&port(PVPANIC_PORT, 1)])
}

/// Where the generation identifier is (Microsoft, “Virtual Machine Generation ID”, 1.0).
fn generation_id() -> Vec<u8> {
    let (low, high) = (GENERATION_ID as u32, (GENERATION_ID >> 32) as u32);
    super::bytes(&Device::new(
        GENERATION_DEVICE.into(),
        vec![
            &Name::new("_HID".into(), &"VMGENCTR"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
        ],
    ))
}

const GENERATION_DEVICE: &str = "VGEN";
/// The generation identifier is another than before.
const GENERATION_CHANGED: u8 = 0x80;

/// The generic event device (§5.6.9): tells the devices concerned what [`crate::devices::legacy::notices`] has for them.
fn event_device() -> Vec<u8> {
    let interrupt = Interrupt::new(true, false, false, false, NOTICE_GSI);
    let region = OpRegion::new("NREG".into(), OpRegionSpace::SystemIO, &NOTICE_PORT, &ONE);
    let register = Field::new(
        "NREG".into(),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![FieldEntry::Named(*b"NOTE", 8)],
    );
    let (generation, changed) = (Path::new(GENERATION_DEVICE), Notice::GenerationChanged.bit());
    let (notify, bit) = (Notify::new(&generation, &GENERATION_CHANGED), And::new(&ZERO, &Local(0), &changed));
    super::bytes(&Device::new(
        "GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt])),
            &region,
            &register,
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![&Store::new(&Local(0), &Path::new("NOTE")), &If::new(&bit, vec![&notify])],
            ),
        ],
    ))
}

/// Number `index` of the virtio devices; its interrupt is level-triggered.
fn virtio(index: u32) -> Vec<u8> {
    // All windows lie in the hole below 4 GiB.
    let address = VIRTIO_MMIO_BASE + u64::from(index) * VIRTIO_MMIO_STRIDE;
    let registers = Memory32Fixed::new(true, address as u32, VIRTIO_MMIO_STRIDE as u32);
    let interrupt = Interrupt::new(true, false, false, false, VIRTIO_GSI_BASE + index);
    super::bytes(&Device::new(
        format!("V{index:03X}").as_str().into(),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &index),
            &Name::new("_CCA".into(), &ONE),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&registers, &interrupt])),
        ],
    ))
}

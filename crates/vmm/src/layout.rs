//! The guest-physical memory map, the I/O ports and the interrupt lines of the machine, in one place.
//!
//! ```text
//! 0000_0000  RAM: zero page, command line, boot stack, ACPI tables at 000e_0000, kernel from 0010_0000
//! c000_0000  end of low RAM (or earlier); hole
//! d000_0000  virtio-mmio devices, 4 KiB each
//! fec0_0000  I/O APIC
//! fee0_0000  local APICs
//! 1_0000_0000  the RAM that does not fit below
//! ```

/// First virtio-mmio device; the others follow at [`VIRTIO_MMIO_STRIDE`].
pub const VIRTIO_MMIO_BASE: u64 = 0xd000_0000;
/// Bytes between virtio-mmio devices.
pub const VIRTIO_MMIO_STRIDE: u64 = 0x1000;
/// Interrupt of the first virtio-mmio device; the others follow.
pub const VIRTIO_GSI_BASE: u32 = 16;
/// How many virtio devices a machine can have: one for each interrupt line between the legacy ones and the last.
pub const VIRTIO_MAX_DEVICES: u32 = NOTICE_GSI - VIRTIO_GSI_BASE;

/// The I/O APIC's registers.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
/// Inputs of the I/O APIC.
pub const IOAPIC_PINS: u32 = 64;
/// Where each vCPU sees its own local APIC until it moves it.
pub const LAPIC_BASE: u64 = 0xfee0_0000;

/// Where the ACPI tables start: the BIOS area that guests search for the RSDP (ACPI 6.5 §5.2.5.1).
pub const ACPI_START: u64 = 0x000e_0000;
/// End of the ACPI tables.
pub const ACPI_END: u64 = GENERATION_ID;
/// The virtual machine's generation identifier, 16 bytes in a page that nothing else is in.
pub const GENERATION_ID: u64 = 0x000f_f000;

/// COM1.
pub const SERIAL_PORT: u16 = 0x3f8;
pub const SERIAL_GSI: u32 = 4;
/// i8042 keyboard controller (data, and command at +4).
pub const I8042_PORT: u16 = 0x60;
/// CMOS clock (index, data).
pub const RTC_PORT: u16 = 0x70;
pub const RTC_GSI: u32 = 8;
/// Programmable interval timer.
pub const PIT_PORT: u16 = 0x40;
pub const PIT_GSI: u32 = 0;
/// System control port B: PIT channel 2 gate and output.
pub const PORT_B: u16 = 0x61;
/// PM1 event block, PM1 control block, PM timer (ACPI 6.5 §4.8).
pub const PM1_EVENT_PORT: u16 = 0x600;
pub const PM1_CONTROL_PORT: u16 = 0x604;
pub const PM_TIMER_PORT: u16 = 0x608;
/// Notices to the guest (generic event device): which have come, cleared by reading.
pub const NOTICE_PORT: u16 = 0x60c;
/// Interrupt line of the notices.
pub const NOTICE_GSI: u32 = IOAPIC_PINS - 1;
/// Reset register.
pub const RESET_PORT: u16 = 0xcf9;
/// ACPI system control interrupt.
pub const SCI_GSI: u32 = 9;
/// pvpanic: the guest reports its own panic here.
pub const PVPANIC_PORT: u16 = 0x505;
/// The guest's first user process writes here; see `--boot-timer`.
pub const BOOT_MARK_PORT: u16 = 0x510;

//! Ports with a single register by which the guest tells the host something: reset, panic, debug exit, boot mark.

use std::sync::Arc;

use super::{MachineEvents, PanicKind};
use crate::bus::BusDevice;

/// The reset control register of PC chip sets (0xcf9), which ACPI names as the machine's reset register.
pub struct ResetPort(Arc<dyn MachineEvents>);

/// What a guest writes to [`ResetPort`] for a restart.
pub const RESET_VALUE: u8 = 0x06;
const RESET_CPU: u8 = 0x04;

impl ResetPort {
    pub fn new(events: Arc<dyn MachineEvents>) -> ResetPort {
        ResetPort(events)
    }
}

impl BusDevice for ResetPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data.first().is_some_and(|value| value & RESET_CPU != 0) {
            self.0.reset();
        }
    }
}

/// The pvpanic device: a paravirtual port for panics, known to Linux and to the tools of other hypervisors.
pub struct Pvpanic(Arc<dyn MachineEvents>);

const PANICKED: u8 = 1 << 0;
const CRASH_LOADED: u8 = 1 << 1;

impl Pvpanic {
    pub fn new(events: Arc<dyn MachineEvents>) -> Pvpanic {
        Pvpanic(events)
    }
}

impl BusDevice for Pvpanic {
    /// The events it understands.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let value = data.first().copied().unwrap_or(0);
        if value & PANICKED != 0 {
            self.0.guest_panicked(PanicKind::Panicked);
        } else if value & CRASH_LOADED != 0 {
            self.0.guest_panicked(PanicKind::CrashLoaded);
        }
    }
}

/// Ends the machine with a status of the guest's choice, for tests.
pub struct DebugExit(Arc<dyn MachineEvents>);

impl DebugExit {
    pub fn new(events: Arc<dyn MachineEvents>) -> DebugExit {
        DebugExit(events)
    }
}

impl BusDevice for DebugExit {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let value = data.iter().take(4).rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
        self.0.debug_exit(value);
    }
}

/// A write here says that the guest's first user process has started.
pub struct BootMark(Arc<dyn MachineEvents>);

impl BootMark {
    pub fn new(events: Arc<dyn MachineEvents>) -> BootMark {
        BootMark(events)
    }
}

impl BusDevice for BootMark {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {
        self.0.boot_mark();
    }
}

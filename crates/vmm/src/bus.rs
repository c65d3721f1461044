//! The two address spaces through which vCPUs reach devices: I/O ports and memory-mapped I/O.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A device with registers. Called from vCPU threads, so it locks what it needs itself, holds locks briefly, and never
/// waits for I/O: slow work belongs to the device's own thread.
pub trait BusDevice: Send + Sync {
    /// Reads `data.len()` bytes (1, 2, 4 or 8) at `offset` from the start of the device's range.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes `data.len()` bytes (1, 2, 4 or 8) at `offset` from the start of the device's range.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Two devices claim the same addresses.
#[derive(Debug, thiserror::Error)]
#[error("addresses {start:#x}..{end:#x} are taken by another device")]
pub struct Overlap {
    start: u64,
    end: u64,
}

/// An address space of devices; complete before the first vCPU runs.
#[derive(Default)]
pub struct Bus {
    devices: BTreeMap<u64, (u64, Arc<dyn BusDevice>)>,
}

impl Bus {
    /// Places `device` at `start..start + len`.
    pub fn insert(&mut self, start: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), Overlap> {
        let end = start + len;
        let below = self.devices.range(..end).next_back();
        if below.is_some_and(|(other, (other_len, _))| other + other_len > start) {
            return Err(Overlap { start, end });
        }
        self.devices.insert(start, (len, device));
        Ok(())
    }

    /// Reads from the device at `address`; all ones where there is none, as on a PC's bus.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((offset, device)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes to the device at `address`; nothing happens where there is none.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.write(offset, data);
        }
    }

    fn find(&self, address: u64, len: usize) -> Option<(u64, &dyn BusDevice)> {
        let (start, (device_len, device)) = self.devices.range(..=address).next_back()?;
        let offset = address - start;
        (offset + len as u64 <= *device_len).then_some((offset, device.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Constant(u8);

    impl BusDevice for Constant {
        fn read(&self, _offset: u64, data: &mut [u8]) {
            data.fill(self.0);
        }
        fn write(&self, _offset: u64, _data: &[u8]) {}
    }

    #[test]
    fn an_access_past_the_end_of_a_device_reads_all_ones() {
        let mut bus = Bus::default();
        bus.insert(0x60, 5, Arc::new(Constant(7))).unwrap();
        let mut data = [0; 4];
        bus.read(0x61, &mut data);
        assert_eq!(data, [7; 4]);
        bus.read(0x62, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn overlapping_devices_are_refused() {
        let mut bus = Bus::default();
        bus.insert(0x60, 5, Arc::new(Constant(7))).unwrap();
        assert!(bus.insert(0x64, 1, Arc::new(Constant(1))).is_err());
        assert!(bus.insert(0x5f, 2, Arc::new(Constant(1))).is_err());
        bus.insert(0x65, 1, Arc::new(Constant(1))).unwrap();
    }
}

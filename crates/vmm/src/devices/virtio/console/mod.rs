//! Console device (Virtio 1.2 §5.3) with one port: what the host types reaches the guest's `hvc0`, what the guest writes
//! reaches an [`Output`], and the guest knows the terminal's size.
//!
//! A size that is known when the driver starts is announced once more by a configuration interrupt: Linux reads it at
//! such an interrupt only.

mod handler;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::worker::{Wake, Worker};
use super::{ActivateError, Activation, DeviceState, Interrupt, VirtioDevice, device_type, lock, read_config_bytes};
use crate::devices::output::Output;
use crate::snapshot::Invalid;
use handler::{ConsoleHandler, Input, Screen};

const RECEIVE_QUEUE: u16 = 0;
const TRANSMIT_QUEUE: u16 = 1;
const QUEUE_SIZE: u16 = 128;

/// The configuration space holds the size of the console.
const F_SIZE: u64 = 1 << 0;
/// The guest can write single characters through the configuration space, before its queues work.
const F_EMERG_WRITE: u64 = 1 << 2;
/// Offset of `emerg_wr` in the configuration space.
const EMERG_WRITE: u64 = 8;

/// How a console is made.
pub struct ConsoleConfig {
    /// Where the guest's output goes.
    pub output: Arc<Output>,
    /// The guest must not notice how fast the output is.
    pub repeatable: bool,
    /// Size in characters, 0 where unknown.
    pub columns: u16,
    pub rows: u16,
}

/// The console device.
pub struct Console {
    screen: Arc<Screen>,
    input: Arc<Input>,
    /// Columns in the low half, rows in the high one, as one value so that no reader sees half a change.
    size: AtomicU32,
    generation: AtomicU32,
    running: Mutex<Option<Running>>,
}

struct Running {
    worker: Worker<ConsoleHandler>,
    interrupt: Arc<dyn Interrupt>,
}

impl ConsoleConfig {
    /// Makes the device; fails if the host is out of file descriptors.
    pub fn build(self) -> io::Result<Arc<Console>> {
        Ok(Arc::new(Console {
            screen: Screen::new(self.output, self.repeatable, Wake::new()?),
            input: Arc::new(Input::new(Wake::new()?)),
            size: AtomicU32::new(pack(self.columns, self.rows)),
            generation: AtomicU32::new(0),
            running: Mutex::new(None),
        }))
    }
}

fn pack(columns: u16, rows: u16) -> u32 {
    u32::from(columns) | u32::from(rows) << 16
}

impl Console {
    /// Types `bytes` at the console; returns how many of them were taken. The rest found the bounded queue full: the guest
    /// does not read.
    pub fn push_input(&self, bytes: &[u8]) -> usize {
        self.input.push(bytes)
    }

    /// Tells the guest of a new size in characters.
    pub fn resize(&self, columns: u16, rows: u16) {
        if self.size.swap(pack(columns, rows), Ordering::AcqRel) == pack(columns, rows) {
            return;
        }
        self.generation.fetch_add(1, Ordering::AcqRel);
        if let Some(running) = &*lock(&self.running) {
            running.interrupt.config_changed();
        }
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u32 {
        device_type::CONSOLE
    }

    fn features(&self) -> u64 {
        F_SIZE | F_EMERG_WRITE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // cols, rows, max_nr_ports (not offered, so zero).
        read_config_bytes(&self.size.load(Ordering::Acquire).to_le_bytes(), offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if let (EMERG_WRITE, Some(character)) = (offset, data.first()) {
            self.screen.push(&[*character]);
        }
    }

    fn config_generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    fn save(&self) -> DeviceState {
        let size = self.size.load(Ordering::Acquire);
        DeviceState::Console { columns: size as u16, rows: (size >> 16) as u16 }
    }

    fn restore(&self, state: DeviceState) -> Result<(), Invalid> {
        let DeviceState::Console { columns, rows } = state else {
            return Err(Invalid::new("console", "it cannot have the state of another device"));
        };
        self.size.store(pack(columns, rows), Ordering::Release);
        Ok(())
    }

    fn activate(&self, mut activation: Activation) -> Result<(), ActivateError> {
        let receive = activation.take_queue(RECEIVE_QUEUE)?;
        let transmit = activation.take_queue(TRANSMIT_QUEUE)?;
        let handler = ConsoleHandler::new(receive, transmit, self.input.clone(), self.screen.clone());
        let interrupt = activation.interrupt;
        let worker = Worker::spawn("virtio-console", handler, interrupt.clone()).map_err(ActivateError::Thread)?;
        if self.size.load(Ordering::Acquire) != 0 {
            interrupt.config_changed();
        }
        *lock(&self.running) = Some(Running { worker, interrupt });
        Ok(())
    }

    fn reset(&self) {
        let running = lock(&self.running).take();
        if let Some(running) = running {
            running.worker.stop();
        }
    }
}

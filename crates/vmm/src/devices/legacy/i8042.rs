//! The i8042 keyboard controller, with nothing plugged in: it answers enough for operating systems to find out quickly,
//! and restarts the machine on command 0xfe, the oldest way of a PC to do so.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::MachineEvents;
use crate::bus::BusDevice;
use crate::snapshot::{Invalid, Persist};

const STATUS_OUTPUT_FULL: u8 = 1 << 0;
const STATUS_SYSTEM: u8 = 1 << 2;
const STATUS_LAST_WAS_COMMAND: u8 = 1 << 3;
const STATUS_UNLOCKED: u8 = 1 << 4;
const STATUS_TIMEOUT: u8 = 1 << 6;

/// Both ports disabled and clocks off, translation as firmware leaves it.
const CONFIG_AT_START: u8 = 0x74;
/// Bytes that wait for the guest at most; a real controller has one.
const OUTPUT_LIMIT: usize = 16;

/// The controller; its two ports are [`I8042::data_port`] and [`I8042::command_port`].
pub struct I8042 {
    events: Arc<dyn MachineEvents>,
    state: Mutex<State>,
}

/// What a snapshot holds of the controller.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    config: u8,
    output: VecDeque<u8>,
    /// The command whose parameter the next data byte is.
    parameter_of: Option<u8>,
    last_was_command: bool,
    /// The last answer is "the device did not answer".
    timed_out: bool,
}

impl I8042 {
    pub fn new(events: Arc<dyn MachineEvents>) -> I8042 {
        I8042 { events, state: Mutex::new(State { config: CONFIG_AT_START, ..State::default() }) }
    }

    /// Port 0x60.
    pub fn data_port(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(DataPort(self.clone()))
    }

    /// Port 0x64: status when read, command when written.
    pub fn command_port(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(CommandPort(self.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn command(&self, command: u8) {
        let reset = self.lock().command(command);
        if reset {
            self.events.reset();
        }
    }

    fn data(&self, value: u8) {
        let reset = self.lock().data(value);
        if reset {
            self.events.reset();
        }
    }
}

impl State {
    fn status(&self) -> u8 {
        let mut status = STATUS_SYSTEM | STATUS_UNLOCKED;
        if !self.output.is_empty() {
            status |= STATUS_OUTPUT_FULL;
            if self.timed_out {
                status |= STATUS_TIMEOUT;
            }
        }
        if self.last_was_command {
            status |= STATUS_LAST_WAS_COMMAND;
        }
        status
    }

    fn answer(&mut self, value: u8) {
        if self.output.len() < OUTPUT_LIMIT {
            self.output.push_back(value);
        }
        self.timed_out = false;
    }

    /// Gives whether the machine is to restart.
    fn command(&mut self, command: u8) -> bool {
        self.last_was_command = true;
        self.parameter_of = None;
        match command {
            0x20 => self.answer(self.config),
            0x60 | 0xd1..=0xd4 => self.parameter_of = Some(command),
            0xa7 => self.config |= 1 << 5,
            0xa8 => self.config &= !(1 << 5),
            // Interface tests: no error for the keyboard, clock line stuck for the mouse.
            0xa9 => self.answer(0x01),
            0xaa => self.answer(0x55),
            0xab => self.answer(0x00),
            0xad => self.config |= 1 << 4,
            0xae => self.config &= !(1 << 4),
            // Output port: reset line high, A20 open.
            0xd0 => self.answer(0x03),
            // Pulse output lines: line 0 is the processor's reset.
            0xf0..=0xff => return command & 1 == 0,
            _ => (),
        }
        false
    }

    fn data(&mut self, value: u8) -> bool {
        self.last_was_command = false;
        match self.parameter_of.take() {
            Some(0x60) => self.config = value,
            Some(0xd1) => return value & 1 == 0,
            Some(0xd2 | 0xd3) => self.answer(value),
            // A command for the keyboard or the mouse: neither answers.
            _ => {
                self.answer(0xfe);
                self.timed_out = true;
            }
        }
        false
    }
}

impl Persist for I8042 {
    type State = State;

    fn save(&self) -> State {
        self.lock().clone()
    }

    fn restore(&self, state: State) -> Result<(), Invalid> {
        Invalid::unless(state.output.len() <= OUTPUT_LIMIT, "keyboard controller", "too many bytes wait in it")?;
        *self.lock() = state;
        Ok(())
    }
}

struct DataPort(Arc<I8042>);

impl BusDevice for DataPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(self.0.lock().output.pop_front().unwrap_or(0));
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        data.iter().for_each(|value| self.0.data(*value));
    }
}

struct CommandPort(Arc<I8042>);

impl BusDevice for CommandPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(self.0.lock().status());
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        data.iter().for_each(|value| self.0.command(*value));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Events;
    use super::*;

    struct Ports {
        data: Arc<dyn BusDevice>,
        command: Arc<dyn BusDevice>,
        events: Arc<Events>,
    }

    fn ports() -> Ports {
        let events = Arc::new(Events::default());
        let device = Arc::new(I8042::new(events.clone()));
        Ports { data: device.data_port(), command: device.command_port(), events }
    }

    fn read(port: &Arc<dyn BusDevice>) -> u8 {
        let mut data = [0];
        port.read(0, &mut data);
        data[0]
    }

    #[test]
    fn the_self_test_passes_and_the_configuration_is_kept() {
        let p = ports();
        p.command.write(0, &[0xaa]);
        assert_eq!((read(&p.command) & 1, read(&p.data), read(&p.command) & 1), (1, 0x55, 0));
        p.command.write(0, &[0x60]);
        p.data.write(0, &[0x47]);
        p.command.write(0, &[0x20]);
        assert_eq!(read(&p.data), 0x47);
    }

    #[test]
    fn commands_to_devices_time_out_at_once() {
        let p = ports();
        p.data.write(0, &[0xff]);
        assert_eq!(read(&p.command) & 0x41, 0x41);
        assert_eq!(read(&p.data), 0xfe);
    }

    #[test]
    fn pulsing_or_clearing_the_reset_line_restarts_the_machine() {
        let p = ports();
        p.command.write(0, &[0xff]);
        p.command.write(0, &[0xd1]);
        p.data.write(0, &[0x03]);
        assert!(p.events.take().is_empty());
        p.command.write(0, &[0xfe]);
        p.command.write(0, &[0xd1]);
        p.data.write(0, &[0x02]);
        assert_eq!(p.events.take(), ["reset", "reset"]);
    }
}

//! The devices of a PC that every operating system expects to find, on I/O ports: serial line, clock, timer, keyboard
//! controller, power management; and what only virtual machines have: three ports (panic report, debug exit, boot mark),
//! notices to the guest, a generation identifier.
//!
//! What ends or restarts the machine is told to [`MachineEvents`]; nothing here ends anything itself.

mod calendar;
pub mod generation;
pub mod i8042;
pub mod notices;
pub mod pit;
pub mod pm;
pub mod report;
pub mod rtc;
pub mod serial;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::i8042::I8042;
use self::notices::Notices;
use self::pit::Pit;
use self::pm::PowerManagement;
use self::report::{BootMark, DebugExit, Pvpanic, ResetPort};
use self::rtc::Rtc;
use self::serial::Serial;
use crate::bus::{Bus, Overlap};
use crate::devices::output::Output;
use crate::irq::{InterruptSink, IrqLine};
use crate::layout;
use crate::snapshot::{Invalid, Persist};
use crate::timers::Timers;

/// How badly the guest failed, as it says itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PanicKind {
    /// The guest's kernel panicked and stays down.
    Panicked,
    /// The guest's kernel panicked and its crash kernel takes over.
    CrashLoaded,
}

/// Told when the guest wants the machine as a whole to do something. Called from vCPU threads, possibly several times
/// and at once; must not wait for vCPUs.
pub trait MachineEvents: Send + Sync {
    /// The guest switched the machine off (ACPI S5).
    fn power_off(&self);
    /// The guest asked for a restart.
    fn reset(&self);
    /// The guest reported its own panic.
    fn guest_panicked(&self, kind: PanicKind);
    /// The guest wrote `value` to the debug-exit port.
    fn debug_exit(&self, value: u32);
    /// The guest's first user process started.
    fn boot_mark(&self);
}

/// What can be chosen about the legacy devices.
#[derive(Default)]
pub struct LegacyConfig {
    /// Where the serial line's output goes; `None` drops it.
    pub serial_output: Option<Arc<Output>>,
    /// I/O port of the debug-exit device; `None` leaves it out.
    pub debug_exit_port: Option<u16>,
    /// The guest must not notice how fast the host is.
    pub repeatable: bool,
}

/// All legacy devices of one machine.
pub struct LegacyDevices {
    pub serial: Arc<Serial>,
    pub rtc: Arc<Rtc>,
    pub pit: Arc<Pit>,
    pub pm: Arc<PowerManagement>,
    pub notices: Arc<Notices>,
    keyboard: Arc<I8042>,
    events: Arc<dyn MachineEvents>,
    debug_exit_port: Option<u16>,
}

impl LegacyDevices {
    /// The devices in their state at power-up.
    pub fn new(
        config: LegacyConfig,
        interrupts: &Arc<dyn InterruptSink>,
        timers: &Timers,
        events: Arc<dyn MachineEvents>,
    ) -> LegacyDevices {
        let line = |gsi| IrqLine::new(interrupts.clone(), gsi);
        let output = config.serial_output.unwrap_or_else(Output::nowhere);
        let serial = if config.repeatable { Serial::patient } else { Serial::new };
        LegacyDevices {
            serial: serial(line(layout::SERIAL_GSI), output),
            rtc: Rtc::new(line(layout::RTC_GSI), timers),
            pit: Pit::new(line(layout::PIT_GSI), timers),
            pm: PowerManagement::new(line(layout::SCI_GSI), timers, events.clone()),
            notices: Arc::new(Notices::new(line(layout::NOTICE_GSI))),
            keyboard: Arc::new(I8042::new(events.clone())),
            events,
            debug_exit_port: config.debug_exit_port,
        }
    }

    /// Places the devices at their ports; fails when the debug-exit port is another device's.
    pub fn insert_into(&self, ports: &mut Bus) -> Result<(), Overlap> {
        let port = u64::from;
        ports.insert(port(layout::PIT_PORT), 4, self.pit.clone())?;
        ports.insert(port(layout::PORT_B), 1, self.pit.port_b())?;
        ports.insert(port(layout::I8042_PORT), 1, self.keyboard.data_port())?;
        ports.insert(port(layout::I8042_PORT) + 4, 1, self.keyboard.command_port())?;
        ports.insert(port(layout::RTC_PORT), 2, self.rtc.clone())?;
        ports.insert(port(layout::SERIAL_PORT), 8, self.serial.clone())?;
        ports.insert(port(layout::PM1_EVENT_PORT), pm::PORTS, self.pm.clone())?;
        ports.insert(port(layout::NOTICE_PORT), 1, self.notices.clone())?;
        ports.insert(port(layout::RESET_PORT), 1, Arc::new(ResetPort::new(self.events.clone())))?;
        ports.insert(port(layout::PVPANIC_PORT), 1, Arc::new(Pvpanic::new(self.events.clone())))?;
        ports.insert(port(layout::BOOT_MARK_PORT), 1, Arc::new(BootMark::new(self.events.clone())))?;
        if let Some(exit) = self.debug_exit_port {
            ports.insert(port(exit), 4, Arc::new(DebugExit::new(self.events.clone())))?;
        }
        Ok(())
    }
}

/// What a snapshot holds of the legacy devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedLegacy {
    serial: serial::SavedSerial,
    clock: rtc::SavedRtc,
    timer: pit::State,
    power_management: pm::State,
    notices: notices::State,
    keyboard: i8042::State,
}

impl Persist for LegacyDevices {
    type State = SavedLegacy;

    fn save(&self) -> SavedLegacy {
        SavedLegacy {
            serial: self.serial.save(),
            clock: self.rtc.save(),
            timer: self.pit.save(),
            power_management: self.pm.save(),
            notices: self.notices.save(),
            keyboard: self.keyboard.save(),
        }
    }

    fn restore(&self, saved: SavedLegacy) -> Result<(), Invalid> {
        self.serial.restore(saved.serial)?;
        self.rtc.restore(saved.clock)?;
        self.pit.restore(saved.timer)?;
        self.pm.restore(saved.power_management)?;
        self.notices.restore(saved.notices)?;
        self.keyboard.restore(saved.keyboard)
    }
}

/// Reads consecutive 8-bit registers.
fn read_bytes(offset: u64, data: &mut [u8], mut read: impl FnMut(u64) -> u8) {
    for (register, byte) in (offset..).zip(data) {
        *byte = read(register);
    }
}

/// Writes consecutive 8-bit registers.
fn write_bytes(offset: u64, data: &[u8], mut write: impl FnMut(u64, u8)) {
    for (register, byte) in (offset..).zip(data) {
        write(register, *byte);
    }
}

#[cfg(test)]
mod testing {
    //! What the tests of these devices share.

    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use super::{MachineEvents, PanicKind};
    use crate::clock::Clock;
    use crate::irq::{InterruptSink, IrqLine};
    use crate::timers::Timers;

    /// Remembers the level of one line and counts its rising edges.
    #[derive(Default)]
    pub(super) struct Line {
        high: Mutex<bool>,
        edges: AtomicUsize,
    }

    impl InterruptSink for Line {
        fn set_level(&self, _gsi: u32, high: bool) {
            let was = std::mem::replace(&mut *self.high.lock().unwrap(), high);
            if high && !was {
                self.edges.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    impl Line {
        pub(super) fn high(&self) -> bool {
            *self.high.lock().unwrap()
        }

        /// Rising edges since the last call.
        pub(super) fn edges(&self) -> usize {
            self.edges.swap(0, Ordering::Relaxed)
        }

        pub(super) fn irq(self: &Arc<Self>) -> IrqLine {
            IrqLine::new(self.clone(), 0)
        }
    }

    /// Time that the test moves.
    pub(super) struct Time {
        pub(super) clock: Arc<Clock>,
        pub(super) timers: Arc<Timers>,
    }

    impl Time {
        pub(super) fn new() -> Time {
            let clock = Arc::new(Clock::instruction_counted(1));
            Time { timers: Timers::new(clock.clone()), clock }
        }

        pub(super) fn advance(&self, ns: u64) {
            let end = self.clock.now_ns() + ns;
            // Stop at each deadline on the way, as a machine would.
            while let Some(deadline) = self.timers.next_deadline().filter(|deadline| *deadline <= end) {
                self.clock.set_instructions(deadline);
                self.timers.run_expired(self.clock.now_ns());
            }
            self.clock.set_instructions(end);
        }
    }

    /// Remembers what the guest asked for.
    #[derive(Default)]
    pub(super) struct Events(pub(super) Mutex<Vec<String>>);

    impl Events {
        fn note(&self, what: String) {
            self.0.lock().unwrap().push(what);
        }

        pub(super) fn take(&self) -> Vec<String> {
            std::mem::take(&mut *self.0.lock().unwrap())
        }
    }

    impl MachineEvents for Events {
        fn power_off(&self) {
            self.note("power off".into());
        }
        fn reset(&self) {
            self.note("reset".into());
        }
        fn guest_panicked(&self, kind: PanicKind) {
            self.note(format!("{kind:?}"));
        }
        fn debug_exit(&self, value: u32) {
            self.note(format!("exit {value:#x}"));
        }
        fn boot_mark(&self) {
            self.note("boot mark".into());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::testing::{Events, Line, Time};
    use super::*;

    fn all(time: &Time, events: &Arc<Events>) -> Bus {
        let line: Arc<dyn InterruptSink> = Arc::new(Line::default());
        let config = LegacyConfig { debug_exit_port: Some(0xf4), ..LegacyConfig::default() };
        let mut ports = Bus::default();
        LegacyDevices::new(config, &line, &time.timers, events.clone()).insert_into(&mut ports).unwrap();
        ports
    }

    #[test]
    fn the_ways_to_end_the_machine_are_reported() {
        let (time, events) = (Time::new(), Arc::new(Events::default()));
        let ports = all(&time, &events);
        for (port, data, expected) in [
            (0x604, &[0, 0x34][..], "power off"),
            (0x64, &[0xfe], "reset"),
            (0xcf9, &[6], "reset"),
            (0x505, &[1], "Panicked"),
            (0x505, &[2], "CrashLoaded"),
            (0xf4, &[0x34, 0x12, 0, 0], "exit 0x1234"),
            (0xf4, &[7], "exit 0x7"),
            (0x510, &[0], "boot mark"),
        ] {
            ports.write(port, data);
            assert_eq!(events.take(), [expected]);
        }
    }

    #[test]
    fn a_debug_exit_port_on_another_device_is_refused() {
        let (time, events) = (Time::new(), Arc::new(Events::default()));
        let line: Arc<dyn InterruptSink> = Arc::new(Line::default());
        let config = LegacyConfig { debug_exit_port: Some(0x3f8), ..LegacyConfig::default() };
        let devices = LegacyDevices::new(config, &line, &time.timers, events);
        assert!(devices.insert_into(&mut Bus::default()).is_err());
    }

    const PORTS: [u64; 25] = [
        0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff,
        0x600, 0x602, 0x604, 0x608, 0x60c, 0xcf9, 0x505, 0x510,
    ];

    proptest! {
        #[test]
        fn no_sequence_of_port_accesses_panics(
            accesses in prop::collection::vec((0..PORTS.len(), any::<[u8; 4]>(), 0..3_u32, any::<bool>(), 0..3_000_000_000_u64), 1..200)
        ) {
            let (time, events) = (Time::new(), Arc::new(Events::default()));
            let ports = all(&time, &events);
            for (port, mut data, size, write, pause) in accesses {
                let len = 1 << size;
                if write {
                    ports.write(PORTS[port], &data[..len]);
                } else {
                    ports.read(PORTS[port], &mut data[..len]);
                }
                time.advance(pause % [1_000, 1_000_000, 3_000_000_000][len % 3]);
            }
        }
    }
}

//! ACPI fixed hardware: PM1a event and control blocks, the power management timer, the power button (ACPI 6.5 §4.8).
//!
//! ACPI mode is always on. The machine has one sleeping state, S5 (off).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};

use super::MachineEvents;
use crate::bus::BusDevice;
use crate::irq::IrqLine;
use crate::layout::{PM_TIMER_PORT, PM1_CONTROL_PORT, PM1_EVENT_PORT};
use crate::snapshot::{Invalid, Persist};
use crate::timers::{Timer, Timers};

/// I/O ports from [`PM1_EVENT_PORT`] on: event block, control block, timer.
pub const PORTS: u64 = 12;
/// Sleep type of S5, as `_S5` in the DSDT names it.
pub const SLEEP_TYPE_S5: u8 = 5;
/// Frequency of the power management timer in Hz.
pub const PM_TIMER_HZ: u64 = 3_579_545;

const CONTROL: u64 = (PM1_CONTROL_PORT - PM1_EVENT_PORT) as u64;
const TIMER: u64 = (PM_TIMER_PORT - PM1_EVENT_PORT) as u64;

/// Bits of PM1 status and enable.
const TIMER_CARRY: u16 = 1 << 0;
const GLOBAL: u16 = 1 << 5;
const POWER_BUTTON: u16 = 1 << 8;
const RTC: u16 = 1 << 10;
const ENABLES: u16 = TIMER_CARRY | GLOBAL | POWER_BUTTON | RTC;

/// Bits of PM1 control.
const SCI_ENABLED: u16 = 1 << 0;
const SLEEP_ENABLE: u16 = 1 << 13;
/// What of it can be written and read back: bus master reload and sleep type.
const CONTROL_KEPT: u16 = 1 << 1 | 7 << 10;

/// The power management block.
pub struct PowerManagement {
    line: IrqLine,
    timer: Timer,
    timers_clock: Arc<crate::clock::Clock>,
    events: Arc<dyn MachineEvents>,
    state: Mutex<State>,
}

/// What a snapshot holds of the block.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    status: u16,
    enable: u16,
    control: u16,
    /// How often the timer's highest bit had changed when that was last noted in `status`.
    carries: u64,
}

impl PowerManagement {
    pub fn new(line: IrqLine, timers: &Timers, events: Arc<dyn MachineEvents>) -> Arc<PowerManagement> {
        Arc::new_cyclic(|this: &Weak<PowerManagement>| {
            let this = this.clone();
            let timer = timers.create(move || {
                if let Some(this) = this.upgrade() {
                    this.update(&mut this.lock());
                }
            });
            PowerManagement { line, timer, timers_clock: timers.clock().clone(), events, state: Mutex::default() }
        })
    }

    /// Presses the power button: the guest is asked to switch itself off.
    pub fn press_power_button(&self) {
        let mut state = self.lock();
        state.status |= POWER_BUTTON;
        self.update(&mut state);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The timer's value since the start, not cut to 32 bits.
    fn ticks(&self) -> u64 {
        let ticks = u128::from(self.timers_clock.now_ns()) * u128::from(PM_TIMER_HZ) / 1_000_000_000;
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    /// Notes a carry, sets the interrupt line, and arms the host timer for the next carry if anybody waits for it.
    fn update(&self, state: &mut State) {
        let carries = self.ticks() >> 31;
        if carries != state.carries {
            state.carries = carries;
            state.status |= TIMER_CARRY;
        }
        self.line.set(state.status & state.enable != 0);
        if state.enable & TIMER_CARRY != 0 && state.status & TIMER_CARRY == 0 {
            let next = u128::from(carries + 1) << 31;
            let ns = (next * 1_000_000_000).div_ceil(u128::from(PM_TIMER_HZ));
            self.timer.arm_ns(u64::try_from(ns).unwrap_or(u64::MAX));
        } else {
            self.timer.disarm();
        }
    }

    fn read_block(&self) -> [u8; PORTS as usize] {
        let ticks = self.ticks() as u32;
        let mut state = self.lock();
        self.update(&mut state);
        let mut block = [0; PORTS as usize];
        block[..2].copy_from_slice(&state.status.to_le_bytes());
        block[2..4].copy_from_slice(&state.enable.to_le_bytes());
        block[CONTROL as usize..][..2].copy_from_slice(&(state.control | SCI_ENABLED).to_le_bytes());
        block[TIMER as usize..].copy_from_slice(&ticks.to_le_bytes());
        block
    }

    fn write_byte(&self, register: u64, value: u8) {
        let mut state = self.lock();
        // Where the byte lies in its 16-bit register.
        let shift = 8 * (register & 1);
        let wide = u16::from(value) << shift;
        let keep = !(0xff << shift);
        match register & !1 {
            0 => state.status &= !wide,
            2 => state.enable = (state.enable & keep | wide) & ENABLES,
            CONTROL => state.control = (state.control & keep | wide) & CONTROL_KEPT,
            _ => return,
        }
        let sleeps = register & !1 == CONTROL && wide & SLEEP_ENABLE != 0;
        let off = sleeps && (state.control >> 10) & 7 == u16::from(SLEEP_TYPE_S5);
        self.update(&mut state);
        drop(state);
        if off {
            self.events.power_off();
        }
    }
}

impl Persist for PowerManagement {
    type State = State;

    fn save(&self) -> State {
        let mut state = self.lock();
        self.update(&mut state);
        state.clone()
    }

    fn restore(&self, state: State) -> Result<(), Invalid> {
        let possible = state.enable & !ENABLES == 0 && state.control & !CONTROL_KEPT == 0;
        Invalid::unless(possible, "power management", "bits are set that do not exist")?;
        let mut own = self.lock();
        *own = state;
        self.update(&mut own);
        Ok(())
    }
}

impl BusDevice for PowerManagement {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let block = self.read_block();
        super::read_bytes(offset, data, |register| block.get(register as usize).copied().unwrap_or(0xff));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        super::write_bytes(offset, data, |register, value| self.write_byte(register, value));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Events, Line, Time};
    use super::*;

    struct Machine {
        pm: Arc<PowerManagement>,
        line: Arc<Line>,
        events: Arc<Events>,
        time: Time,
    }

    fn machine() -> Machine {
        let (time, line, events) = (Time::new(), Arc::new(Line::default()), Arc::new(Events::default()));
        Machine { pm: PowerManagement::new(line.irq(), &time.timers, events.clone()), line, events, time }
    }

    fn read16(pm: &PowerManagement, offset: u64) -> u16 {
        let mut data = [0; 2];
        pm.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    #[test]
    fn the_power_button_interrupts_until_its_status_is_cleared() {
        let m = machine();
        m.pm.press_power_button();
        assert!(!m.line.high(), "not enabled yet");
        m.pm.write(2, &POWER_BUTTON.to_le_bytes());
        assert!(m.line.high());
        assert_eq!(read16(&m.pm, 0), POWER_BUTTON);
        m.pm.write(0, &POWER_BUTTON.to_le_bytes());
        assert_eq!((read16(&m.pm, 0), m.line.high()), (0, false));
    }

    #[test]
    fn only_sleep_type_5_switches_the_machine_off() {
        let m = machine();
        m.pm.write(CONTROL, &(SLEEP_ENABLE | 1 << 10).to_le_bytes());
        m.pm.write(CONTROL, &(5_u16 << 10).to_le_bytes());
        assert!(m.events.take().is_empty());
        assert_eq!(read16(&m.pm, CONTROL), 5 << 10 | SCI_ENABLED);
        m.pm.write(CONTROL, &(SLEEP_ENABLE | 5 << 10).to_le_bytes());
        assert_eq!(m.events.take(), ["power off"]);
    }

    #[test]
    fn the_timer_counts_at_its_frequency_and_its_carry_interrupts() {
        let m = machine();
        let mut data = [0; 4];
        m.time.advance(1_000_000_000);
        m.pm.read(TIMER, &mut data);
        assert_eq!(u64::from(u32::from_le_bytes(data)), PM_TIMER_HZ);
        m.pm.write(2, &TIMER_CARRY.to_le_bytes());
        m.time.advance(598_000_000_000);
        assert!(!m.line.high());
        m.time.advance(1_500_000_000);
        assert!(m.line.high());
        m.pm.write(0, &TIMER_CARRY.to_le_bytes());
        assert!(!m.line.high());
    }
}

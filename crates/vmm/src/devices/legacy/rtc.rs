//! The MC146818 clock with its CMOS memory: date and time, alarm, periodic and update-ended interrupts.
//!
//! Time is the machine's wall clock plus what the guest has set it off by. Source: Motorola MC146818A data sheet; the
//! century byte is where the FADT says.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};

use super::calendar::DateTime;
use crate::bus::BusDevice;
use crate::clock::Clock;
use crate::irq::IrqLine;
use crate::snapshot::{Invalid, Persist};
use crate::timers::{Timer, Timers};

/// CMOS index of the century.
pub const CENTURY: u8 = 0x32;

const SECONDS: u8 = 0;
const SECONDS_ALARM: u8 = 1;
const MINUTES: u8 = 2;
const MINUTES_ALARM: u8 = 3;
const HOURS: u8 = 4;
const HOURS_ALARM: u8 = 5;
const WEEKDAY: u8 = 6;
const DAY: u8 = 7;
const MONTH: u8 = 8;
const YEAR: u8 = 9;
const REGISTER_A: u8 = 10;
const REGISTER_B: u8 = 11;
const REGISTER_C: u8 = 12;
const REGISTER_D: u8 = 13;

const A_UPDATE_IN_PROGRESS: u8 = 1 << 7;
const B_SET: u8 = 1 << 7;
const B_BINARY: u8 = 1 << 2;
const B_24_HOURS: u8 = 1 << 1;
/// Interrupt enables in B, flags in C.
const PERIODIC: u8 = 1 << 6;
const ALARM: u8 = 1 << 5;
const UPDATE: u8 = 1 << 4;
const C_REQUEST: u8 = 1 << 7;
const D_VALID: u8 = 1 << 7;
/// Alarm values from here on match every time.
const ALARM_ANY: u8 = 0xc0;
const AFTERNOON: u8 = 1 << 7;

const NS_PER_SECOND: u64 = 1_000_000_000;
/// The registers must not be read this long before each update.
const UPDATE_WARNING_NS: u64 = 244_000;
/// Seconds that passed unobserved beyond this many are not compared with the alarm.
const ALARM_CATCH_UP: i64 = 60;

/// The clock, on an index and a data port.
pub struct Rtc {
    line: IrqLine,
    timer: Timer,
    clock: Arc<Clock>,
    state: Mutex<State>,
}

struct State {
    index: u8,
    /// Memory, alarm, registers A and B; date and time are made on reading.
    cmos: [u8; 128],
    flags: u8,
    /// Guest's time minus the machine's wall clock, in seconds.
    offset: i64,
    /// Date and time while the guest sets them.
    setting: Option<DateTime>,
    /// The last second for which flags were raised.
    seen: i64,
    /// Multiple of the periodic interrupt's period that was last signalled.
    periods: u64,
}

impl Rtc {
    pub fn new(line: IrqLine, timers: &Timers) -> Arc<Rtc> {
        let mut cmos = [0; 128];
        cmos[usize::from(REGISTER_A)] = 0x26;
        cmos[usize::from(REGISTER_B)] = B_24_HOURS;
        let clock = timers.clock().clone();
        let seen = (clock.wall_clock_ns() / NS_PER_SECOND) as i64;
        let state = State { index: 0, cmos, flags: 0, offset: 0, setting: None, seen, periods: 0 };
        Arc::new_cyclic(|this: &Weak<Rtc>| {
            let this = this.clone();
            let timer = timers.create(move || {
                if let Some(this) = this.upgrade() {
                    this.update(&mut this.lock());
                }
            });
            Rtc { line, timer, clock, state: Mutex::new(state) }
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Raises the flags that are due, sets the line, and arms the timer for what comes next.
    fn update(&self, state: &mut State) {
        let wall = self.clock.wall_clock_ns();
        let now = self.clock.now_ns();
        state.raise_second((wall / NS_PER_SECOND) as i64);
        let period = state.period_ns();
        if let Some(period) = period.filter(|period| now / period != state.periods) {
            state.periods = now / period;
            state.flags |= PERIODIC;
        }
        self.line.set(state.requested());

        let enables = state.register(REGISTER_B);
        let second = (enables & (ALARM | UPDATE) != 0 && state.setting.is_none())
            .then(|| now + NS_PER_SECOND - wall % NS_PER_SECOND);
        let periodic = period.filter(|_| enables & PERIODIC != 0).map(|period| (now / period + 1) * period);
        match second.into_iter().chain(periodic).min() {
            Some(deadline) => self.timer.arm_ns(deadline),
            None => self.timer.disarm(),
        }
    }

    fn read_data(&self) -> u8 {
        let wall = self.clock.wall_clock_ns();
        let mut state = self.lock();
        let index = state.index;
        match index {
            REGISTER_A => {
                let updating = wall % NS_PER_SECOND >= NS_PER_SECOND - UPDATE_WARNING_NS && state.setting.is_none();
                state.register(REGISTER_A) | if updating { A_UPDATE_IN_PROGRESS } else { 0 }
            }
            REGISTER_C => {
                self.update(&mut state);
                let request = if state.requested() { C_REQUEST } else { 0 };
                let flags = std::mem::take(&mut state.flags);
                self.line.set(false);
                flags | request
            }
            REGISTER_D => D_VALID,
            _ if is_time(index) => {
                let date = state.date((wall / NS_PER_SECOND) as i64);
                state.encode(index, &date)
            }
            _ => state.register(index),
        }
    }

    fn write_data(&self, value: u8) {
        let seconds = (self.clock.wall_clock_ns() / NS_PER_SECOND) as i64;
        let mut state = self.lock();
        let index = state.index;
        match index {
            REGISTER_A => state.cmos[usize::from(REGISTER_A)] = value & !A_UPDATE_IN_PROGRESS,
            REGISTER_B => state.write_b(value, seconds),
            REGISTER_C | REGISTER_D => return,
            _ if is_time(index) => state.set_field(index, value, seconds),
            _ => state.cmos[usize::from(index)] = value,
        }
        if matches!(index, REGISTER_A | REGISTER_B) {
            // A new rate, or new interest: what has passed does not count.
            state.periods = state.period_ns().map_or(0, |period| self.clock.now_ns() / period);
        }
        self.update(&mut state);
    }
}

fn is_time(index: u8) -> bool {
    matches!(index, SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY)
}

impl State {
    fn register(&self, index: u8) -> u8 {
        self.cmos[usize::from(index & 0x7f)]
    }

    fn requested(&self) -> bool {
        self.flags & self.register(REGISTER_B) & (PERIODIC | ALARM | UPDATE) != 0
    }

    /// Period of the periodic interrupt; `None` when it is off or the divider is not that of a 32,768 Hz crystal.
    fn period_ns(&self) -> Option<u64> {
        let a = self.register(REGISTER_A);
        let rate = match a & 0x0f {
            0 => return None,
            // The two lowest rates repeat 256 Hz and 128 Hz.
            rate @ (1 | 2) => rate + 7,
            rate => rate,
        };
        (a & 0x70 == 0x20).then(|| (NS_PER_SECOND << (rate - 1)) / 32_768)
    }

    /// Notes that the machine's wall clock shows `seconds`.
    fn raise_second(&mut self, seconds: i64) {
        if seconds == self.seen || self.setting.is_some() {
            self.seen = seconds;
            return;
        }
        self.flags |= UPDATE;
        let first = self.seen.max(seconds - ALARM_CATCH_UP) + 1;
        if (first..=seconds).any(|second| self.is_alarm(&self.date(second))) {
            self.flags |= ALARM;
        }
        self.seen = seconds;
    }

    fn is_alarm(&self, date: &DateTime) -> bool {
        [(SECONDS_ALARM, SECONDS), (MINUTES_ALARM, MINUTES), (HOURS_ALARM, HOURS)].into_iter().all(|(alarm, field)| {
            let wanted = self.register(alarm);
            wanted >= ALARM_ANY || wanted == self.encode(field, date)
        })
    }

    /// The guest's date when the machine's wall clock shows `seconds`.
    fn date(&self, seconds: i64) -> DateTime {
        self.setting.unwrap_or_else(|| DateTime::from_seconds(seconds.saturating_add(self.offset)))
    }

    fn write_b(&mut self, value: u8, seconds: i64) {
        self.cmos[usize::from(REGISTER_B)] = value;
        if value & B_SET == 0 {
            if let Some(date) = self.setting.take() {
                self.offset = date.to_seconds() - seconds;
            }
        } else if self.setting.is_none() {
            self.setting = Some(self.date(seconds));
            self.cmos[usize::from(REGISTER_B)] &= !UPDATE;
        }
    }

    fn set_field(&mut self, index: u8, value: u8, seconds: i64) {
        let mut date = self.date(seconds);
        let number = self.decode(value);
        match index {
            SECONDS => date.second = number,
            MINUTES => date.minute = number,
            HOURS => date.hour = self.decode_hour(value),
            DAY => date.day = number,
            MONTH => date.month = number,
            YEAR => date.year = date.year.div_euclid(100) * 100 + i64::from(number),
            CENTURY => date.year = i64::from(number) * 100 + date.year.rem_euclid(100),
            // The weekday follows from the date.
            _ => (),
        }
        match &mut self.setting {
            Some(setting) => *setting = date,
            None => self.offset = date.to_seconds() - seconds,
        }
    }

    fn encode(&self, index: u8, date: &DateTime) -> u8 {
        let number = match index {
            SECONDS => date.second,
            MINUTES => date.minute,
            HOURS => return self.encode_hour(date.hour),
            WEEKDAY => date.weekday,
            DAY => date.day,
            MONTH => date.month,
            YEAR => date.year.rem_euclid(100) as u8,
            _ => date.year.div_euclid(100).clamp(0, 99) as u8,
        };
        self.encode_number(number)
    }

    fn encode_number(&self, number: u8) -> u8 {
        if self.register(REGISTER_B) & B_BINARY != 0 { number } else { ((number / 10 % 10) << 4) | (number % 10) }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.register(REGISTER_B) & B_BINARY != 0 { value } else { (value >> 4) * 10 + (value & 0xf) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.register(REGISTER_B) & B_24_HOURS != 0 {
            return self.encode_number(hour);
        }
        let twelve = (hour + 11) % 12 + 1;
        self.encode_number(twelve) | if hour >= 12 { AFTERNOON } else { 0 }
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.register(REGISTER_B) & B_24_HOURS != 0 {
            return self.decode(value);
        }
        self.decode(value & !AFTERNOON) % 12 + if value & AFTERNOON != 0 { 12 } else { 0 }
    }
}

/// What a snapshot holds of the clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedRtc {
    index: u8,
    #[serde(with = "hex::serde")]
    cmos: [u8; 128],
    flags: u8,
    offset_s: i64,
    setting: Option<DateTime>,
    periods: u64,
}

/// Offsets of more than this make no date: 300,000 years, in seconds.
const MAX_OFFSET_S: i64 = 1 << 43;

impl Persist for Rtc {
    type State = SavedRtc;

    fn save(&self) -> SavedRtc {
        let mut state = self.lock();
        self.update(&mut state);
        SavedRtc {
            index: state.index,
            cmos: state.cmos,
            flags: state.flags,
            offset_s: state.offset,
            setting: state.setting,
            periods: state.periods,
        }
    }

    /// The seconds that passed since the snapshot are not made up for.
    fn restore(&self, saved: SavedRtc) -> Result<(), Invalid> {
        let possible = saved.offset_s.abs() <= MAX_OFFSET_S && saved.setting.is_none_or(|date| date.is_possible());
        Invalid::unless(possible && saved.index < 0x80, "clock", "its date is impossible")?;
        let seen = (self.clock.wall_clock_ns() / NS_PER_SECOND) as i64;
        let mut state = self.lock();
        *state = State {
            index: saved.index,
            cmos: saved.cmos,
            flags: saved.flags,
            offset: saved.offset_s,
            setting: saved.setting,
            seen,
            periods: saved.periods,
        };
        self.update(&mut state);
        Ok(())
    }
}

impl BusDevice for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // The index port cannot be read back.
        super::read_bytes(offset, data, |register| if register == 1 { self.read_data() } else { 0xff });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        super::write_bytes(offset, data, |register, value| match register {
            // Bit 7 of the index port masks NMIs, of which this machine has none by itself.
            0 => self.lock().index = value & 0x7f,
            1 => self.write_data(value),
            _ => (),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Line, Time};
    use super::*;

    struct Machine {
        rtc: Arc<Rtc>,
        line: Arc<Line>,
        time: Time,
    }

    /// Starts at 2025-01-01 00:00:00, a Wednesday.
    fn machine() -> Machine {
        let (time, line) = (Time::new(), Arc::new(Line::default()));
        Machine { rtc: Rtc::new(line.irq(), &time.timers), line, time }
    }

    impl Machine {
        fn get(&self, index: u8) -> u8 {
            let mut data = [0];
            self.rtc.write(0, &[index | 0x80]);
            self.rtc.read(1, &mut data);
            data[0]
        }

        fn set(&self, index: u8, value: u8) {
            self.rtc.write(0, &[index]);
            self.rtc.write(1, &[value]);
        }

        fn date(&self) -> [u8; 8] {
            [CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS, WEEKDAY].map(|index| self.get(index))
        }
    }

    const SECOND: u64 = NS_PER_SECOND;

    #[test]
    fn date_and_time_follow_the_wall_clock_in_bcd() {
        let m = machine();
        m.time.advance((13 * 3600 + 59 * 60 + 58) * SECOND);
        assert_eq!(m.date(), [0x20, 0x25, 0x01, 0x01, 0x13, 0x59, 0x58, 4]);
        m.set(REGISTER_B, B_BINARY);
        assert_eq!(m.date(), [20, 25, 1, 1, 1 | AFTERNOON, 59, 58, 4]);
    }

    #[test]
    fn the_guest_sets_the_time_between_set_and_clear() {
        let m = machine();
        m.set(REGISTER_B, B_SET | B_24_HOURS);
        let wanted = [
            (YEAR, 0x30),
            (MONTH, 0x12),
            (DAY, 0x31),
            (HOURS, 0x23),
            (MINUTES, 0x59),
            (SECONDS, 0x59),
            (CENTURY, 0x20),
        ];
        for (index, value) in wanted {
            m.set(index, value);
        }
        m.time.advance(5 * SECOND);
        assert_eq!(m.get(SECONDS), 0x59, "the clock stands while it is set");
        m.set(REGISTER_B, B_24_HOURS);
        m.time.advance(SECOND);
        assert_eq!(m.date(), [0x20, 0x31, 0x01, 0x01, 0x00, 0x00, 0x00, 4]);
    }

    #[test]
    fn an_update_in_progress_is_announced() {
        let m = machine();
        m.time.advance(SECOND - UPDATE_WARNING_NS - 1);
        assert_eq!(m.get(REGISTER_A), 0x26);
        m.time.advance(1);
        assert_eq!(m.get(REGISTER_A), 0xa6);
        m.time.advance(UPDATE_WARNING_NS);
        assert_eq!(m.get(REGISTER_A), 0x26);
    }

    #[test]
    fn the_update_interrupt_comes_each_second_until_acknowledged() {
        let m = machine();
        m.set(REGISTER_B, B_24_HOURS | UPDATE);
        m.time.advance(SECOND - 1);
        assert!(!m.line.high());
        m.time.advance(1);
        assert!(m.line.high());
        assert_eq!(m.get(REGISTER_C) & (C_REQUEST | UPDATE), C_REQUEST | UPDATE);
        assert!(!m.line.high());
        m.time.advance(SECOND);
        assert!(m.line.high());
    }

    #[test]
    fn the_alarm_interrupts_at_its_time_or_every_time_it_matches() {
        let m = machine();
        m.set(SECONDS_ALARM, 0x05);
        m.set(MINUTES_ALARM, 0x01);
        m.set(HOURS_ALARM, 0xff);
        m.set(REGISTER_B, B_24_HOURS | ALARM);
        m.time.advance(64 * SECOND);
        assert!(!m.line.high());
        m.time.advance(SECOND);
        assert!(m.line.high());
        assert_eq!(m.get(REGISTER_C) & ALARM, ALARM);
        m.time.advance(3600 * SECOND);
        assert!(m.line.high());
    }

    #[test]
    fn the_periodic_interrupt_has_the_chosen_rate() {
        let m = machine();
        m.set(REGISTER_A, 0x26);
        m.set(REGISTER_B, B_24_HOURS | PERIODIC);
        let mut count = 0;
        for _ in 0..2000 {
            m.time.advance(SECOND / 2000);
            count += usize::from(m.get(REGISTER_C) & PERIODIC != 0);
        }
        assert!((1023..=1024).contains(&count), "{count}");
        m.set(REGISTER_B, B_24_HOURS);
        assert_eq!(m.time.timers.next_deadline(), None);
    }

    #[test]
    fn cmos_memory_is_kept() {
        let m = machine();
        m.set(0x40, 0x5a);
        assert_eq!((m.get(0x40), m.get(REGISTER_D)), (0x5a, D_VALID));
    }
}

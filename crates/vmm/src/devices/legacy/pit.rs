//! The 8254 programmable interval timer and system control port B, through which channel 2 is gated and seen.
//!
//! Channel 0 drives IRQ 0, channel 2 the speaker; channel 1 (memory refresh) counts and does nothing. Counters are
//! computed from the guest's clock when they are looked at. Source: Intel 8254 data sheet (order number 231164).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::clock::Clock;
use crate::irq::IrqLine;
use crate::snapshot::{Invalid, Persist};
use crate::timers::{Timer, Timers};

/// Frequency of the counters in Hz.
pub const PIT_HZ: u64 = 1_193_182;

const NS_PER_SECOND: u64 = 1_000_000_000;
/// Interrupts come no faster than this: a shorter period would keep a host processor busy with nothing else.
const MIN_PERIOD_NS: u64 = 50_000;
/// Half the period of the memory refresh that port B shows.
const REFRESH_NS: u64 = 15_085;

/// What a stopped counter can have counted: more than a thousand years.
const MAX_STOPPED_TICKS: u64 = 1 << 56;

const PORT_B_GATE: u8 = 1 << 0;
const PORT_B_SPEAKER: u8 = 1 << 1;
const PORT_B_REFRESH: u8 = 1 << 4;
const PORT_B_OUTPUT: u8 = 1 << 5;

/// The timer with its three channels.
pub struct Pit {
    line: IrqLine,
    timer: Timer,
    clock: Arc<Clock>,
    state: Mutex<State>,
}

/// What a snapshot holds of the timer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    channels: [Channel; 3],
    speaker: u8,
    /// When channel 0 has something to do next.
    deadline_ns: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Mode {
    TerminalCount,
    OneShot,
    RateGenerator,
    SquareWave,
    SoftwareStrobe,
    HardwareStrobe,
}

impl Mode {
    fn from_bits(bits: u8) -> Mode {
        match bits & 7 {
            0 => Mode::TerminalCount,
            1 => Mode::OneShot,
            2 | 6 => Mode::RateGenerator,
            3 | 7 => Mode::SquareWave,
            4 => Mode::SoftwareStrobe,
            _ => Mode::HardwareStrobe,
        }
    }
}

/// Which bytes of the counter an access means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Access {
    Low = 1,
    High = 2,
    Both = 3,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Channel {
    mode: Mode,
    access: Access,
    bcd: bool,
    /// Length of the count in ticks, 1..=65536 (10000 in BCD); `None` until one was written.
    reload: Option<u64>,
    /// First byte of a two-byte write.
    low_written: Option<u8>,
    /// The next read gives the high byte.
    high_next: bool,
    latched: Option<u16>,
    status_latched: Option<u8>,
    gate: bool,
    /// When counting began; while it stands still, how many ticks had passed.
    started: Counting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Counting {
    /// Since this moment (ns).
    Since(u64),
    /// Stopped by the gate after so many ticks.
    Stopped(u64),
    /// Waiting for a rising gate.
    Waiting,
}

fn ticks(ns: u64) -> u64 {
    u64::try_from(u128::from(ns) * u128::from(PIT_HZ) / u128::from(NS_PER_SECOND)).unwrap_or(u64::MAX)
}

/// The first nanosecond at which `ticks` have passed.
fn ticks_to_ns(ticks: u64) -> u64 {
    let ns = (u128::from(ticks) * u128::from(NS_PER_SECOND)).div_ceil(u128::from(PIT_HZ));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

impl Channel {
    fn new(gate: bool) -> Channel {
        Channel {
            mode: Mode::SquareWave,
            access: Access::Both,
            bcd: false,
            reload: None,
            low_written: None,
            high_next: false,
            latched: None,
            status_latched: None,
            gate,
            started: Counting::Waiting,
        }
    }

    /// Whether the numbers are such that calculating with them is safe.
    fn is_possible(&self) -> bool {
        // In BCD, digits above nine make more than the modulus.
        let reload = self.reload.is_none_or(|reload| (1..=0x1_0000).contains(&reload));
        reload && !matches!(self.started, Counting::Stopped(ticks) if ticks > MAX_STOPPED_TICKS)
    }

    fn modulus(&self) -> u64 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    fn elapsed(&self, now: u64) -> Option<u64> {
        match self.started {
            Counting::Since(start) => Some(ticks(now.saturating_sub(start))),
            Counting::Stopped(ticks) => Some(ticks),
            Counting::Waiting => None,
        }
    }

    fn count(&self, now: u64) -> u16 {
        let (Some(reload), Some(elapsed)) = (self.reload, self.elapsed(now)) else {
            return self.encode(self.reload.unwrap_or(0));
        };
        let count = match self.mode {
            Mode::RateGenerator => reload - elapsed % reload,
            // Counts down by two, twice for each period.
            Mode::SquareWave => reload - (elapsed * 2) % reload,
            _ => {
                let modulus = self.modulus();
                (reload + modulus - elapsed % modulus) % modulus
            }
        };
        self.encode(count)
    }

    fn encode(&self, count: u64) -> u16 {
        let count = count % self.modulus();
        if !self.bcd {
            return count as u16;
        }
        (0..4).fold(0, |bcd, digit| bcd | ((count / 10_u64.pow(digit) % 10) as u16) << (4 * digit))
    }

    fn decode(&self, written: u16) -> u64 {
        let value = if self.bcd {
            (0..4).rev().fold(0, |value, digit| value * 10 + u64::from(written >> (4 * digit) & 0xf))
        } else {
            u64::from(written)
        };
        if value == 0 { self.modulus() } else { value }
    }

    fn output(&self, now: u64) -> bool {
        let (Some(reload), Some(elapsed)) = (self.reload, self.elapsed(now)) else {
            return self.mode != Mode::TerminalCount;
        };
        match self.mode {
            Mode::TerminalCount | Mode::OneShot => elapsed >= reload,
            Mode::RateGenerator => !self.gate || elapsed % reload != reload - 1,
            Mode::SquareWave => !self.gate || elapsed % reload < reload.div_ceil(2),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => elapsed != reload,
        }
    }

    fn control(&mut self, value: u8, now: u64) {
        let access = match (value >> 4) & 3 {
            0 => return self.latch_count(now),
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Both,
        };
        *self = Channel { mode: Mode::from_bits(value >> 1), access, bcd: value & 1 != 0, ..Channel::new(self.gate) };
    }

    fn latch_count(&mut self, now: u64) {
        if self.latched.is_none() {
            self.latched = Some(self.count(now));
            self.high_next = self.access == Access::High;
        }
    }

    fn latch_status(&mut self, now: u64) {
        if self.status_latched.is_none() {
            let mode = match self.mode {
                Mode::TerminalCount => 0,
                Mode::OneShot => 1,
                Mode::RateGenerator => 2,
                Mode::SquareWave => 3,
                Mode::SoftwareStrobe => 4,
                Mode::HardwareStrobe => 5,
            };
            let flags = u8::from(self.output(now)) << 7 | u8::from(self.reload.is_none()) << 6;
            self.status_latched = Some(flags | (self.access as u8) << 4 | mode << 1 | u8::from(self.bcd));
        }
    }

    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.status_latched.take() {
            return status;
        }
        let count = self.latched.unwrap_or_else(|| self.count(now));
        let high = match self.access {
            Access::Low => false,
            Access::High => true,
            Access::Both => {
                let high = self.high_next;
                self.high_next = !high;
                high
            }
        };
        if high || self.access != Access::Both {
            self.latched = None;
        }
        if high { (count >> 8) as u8 } else { count as u8 }
    }

    /// Gives whether a complete count was written, which starts the channel.
    fn write(&mut self, value: u8, now: u64) -> bool {
        let count = match (self.access, self.low_written.take()) {
            (Access::Low, _) => u16::from(value),
            (Access::High, _) => u16::from(value) << 8,
            (Access::Both, Some(low)) => u16::from(value) << 8 | u16::from(low),
            (Access::Both, None) => {
                self.low_written = Some(value);
                if self.mode == Mode::TerminalCount {
                    // The first byte stops the count (data sheet, mode 0).
                    self.started = Counting::Waiting;
                }
                return false;
            }
        };
        self.reload = Some(self.decode(count));
        self.started = match self.mode {
            Mode::OneShot | Mode::HardwareStrobe => Counting::Waiting,
            _ if self.gate => Counting::Since(now),
            _ => Counting::Stopped(0),
        };
        true
    }

    fn set_gate(&mut self, gate: bool, now: u64) {
        let rising = gate && !self.gate;
        let falling = !gate && self.gate;
        self.gate = gate;
        if self.reload.is_none() {
            return;
        }
        match self.mode {
            Mode::TerminalCount | Mode::SoftwareStrobe => match (self.started, self.elapsed(now)) {
                (Counting::Since(_), Some(elapsed)) if falling => self.started = Counting::Stopped(elapsed),
                (Counting::Stopped(elapsed), _) if rising => {
                    self.started = Counting::Since(now.saturating_sub(ticks_to_ns(elapsed)));
                }
                _ => (),
            },
            Mode::RateGenerator | Mode::SquareWave if falling => self.started = Counting::Stopped(0),
            _ if rising => self.started = Counting::Since(now),
            _ => (),
        }
    }

    /// The next moment after `now` at which the output rises.
    fn next_rise(&self, now: u64) -> Option<u64> {
        let (Some(reload), Counting::Since(start)) = (self.reload, self.started) else { return None };
        let elapsed = ticks(now.saturating_sub(start));
        let at = match self.mode {
            Mode::RateGenerator | Mode::SquareWave => (elapsed / reload + 1) * reload,
            // The strobe is low for one tick after the count.
            Mode::SoftwareStrobe | Mode::HardwareStrobe => reload + 1,
            Mode::TerminalCount | Mode::OneShot => reload,
        };
        (at > elapsed).then(|| start.saturating_add(ticks_to_ns(at)))
    }
}

impl Pit {
    pub fn new(line: IrqLine, timers: &Timers) -> Arc<Pit> {
        let channels = [Channel::new(true), Channel::new(true), Channel::new(false)];
        let state = State { channels, speaker: 0, deadline_ns: None };
        Arc::new_cyclic(|this: &Weak<Pit>| {
            let this = this.clone();
            let timer = timers.create(move || {
                if let Some(this) = this.upgrade() {
                    this.expire();
                }
            });
            Pit { line, timer, clock: timers.clock().clone(), state: Mutex::new(state) }
        })
    }

    /// System control port B (0x61).
    pub fn port_b(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(PortB(self.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Channel 0's output rises.
    fn expire(&self) {
        let now = self.clock.now_ns();
        let mut state = self.lock();
        if state.deadline_ns.is_none_or(|deadline| deadline > now) {
            return;
        }
        match state.channels[0].mode {
            Mode::TerminalCount | Mode::OneShot => self.line.set(true),
            _ => self.line.pulse(),
        }
        let next = state.channels[0].next_rise(now).map(|next| next.max(now.saturating_add(MIN_PERIOD_NS)));
        self.arm(&mut state, next);
    }

    /// Channel 0 was programmed anew.
    fn restart(&self, state: &mut State, now: u64) {
        self.line.set(false);
        let next = state.channels[0].next_rise(now);
        self.arm(state, next);
    }

    fn arm(&self, state: &mut State, deadline: Option<u64>) {
        state.deadline_ns = deadline;
        match deadline {
            Some(at) => self.timer.arm_ns(at),
            None => self.timer.disarm(),
        }
    }

    fn write_control(&self, value: u8) {
        let now = self.clock.now_ns();
        let mut state = self.lock();
        let selected = usize::from(value >> 6);
        if selected == 3 {
            return read_back(&mut state, value, now);
        }
        state.channels[selected].control(value, now);
        if selected == 0 && value & 0x30 != 0 {
            self.restart(&mut state, now);
        }
    }

    fn write_count(&self, channel: usize, value: u8) {
        let now = self.clock.now_ns();
        let mut state = self.lock();
        let started = state.channels[channel].write(value, now);
        let stopped = state.channels[channel].started == Counting::Waiting;
        if channel == 0 && (started || stopped) {
            self.restart(&mut state, now);
        }
    }
}

impl Persist for Pit {
    type State = State;

    fn save(&self) -> State {
        self.lock().clone()
    }

    fn restore(&self, state: State) -> Result<(), Invalid> {
        Invalid::unless(state.channels.iter().all(Channel::is_possible), "timer", "a counter counts what it cannot")?;
        let deadline = state.deadline_ns;
        let mut own = self.lock();
        *own = state;
        self.arm(&mut own, deadline);
        Ok(())
    }
}

/// The 8254's read-back command: latches counts and states of several channels at once.
fn read_back(state: &mut State, value: u8, now: u64) {
    for (index, channel) in state.channels.iter_mut().enumerate() {
        if value & (2 << index) == 0 {
            continue;
        }
        if value & 0x20 == 0 {
            channel.latch_count(now);
        }
        if value & 0x10 == 0 {
            channel.latch_status(now);
        }
    }
}

impl BusDevice for Pit {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let now = self.clock.now_ns();
        let mut state = self.lock();
        super::read_bytes(offset, data, |register| match state.channels.get_mut(register as usize) {
            Some(channel) => channel.read(now),
            // The control word cannot be read.
            None => 0xff,
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        super::write_bytes(offset, data, |register, value| match register {
            0..3 => self.write_count(register as usize, value),
            _ => self.write_control(value),
        });
    }
}

struct PortB(Arc<Pit>);

impl BusDevice for PortB {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        let now = self.0.clock.now_ns();
        let state = self.0.lock();
        let channel = &state.channels[2];
        let mut value = state.speaker | if channel.gate { PORT_B_GATE } else { 0 };
        if channel.output(now) {
            value |= PORT_B_OUTPUT;
        }
        if (now / REFRESH_NS) & 1 != 0 {
            value |= PORT_B_REFRESH;
        }
        data.fill(value);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let Some(value) = data.first() else { return };
        let now = self.0.clock.now_ns();
        let mut state = self.0.lock();
        state.speaker = value & PORT_B_SPEAKER;
        state.channels[2].set_gate(value & PORT_B_GATE != 0, now);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Line, Time};
    use super::*;

    struct Machine {
        pit: Arc<Pit>,
        port_b: Arc<dyn BusDevice>,
        line: Arc<Line>,
        time: Time,
    }

    fn machine() -> Machine {
        let (time, line) = (Time::new(), Arc::new(Line::default()));
        let pit = Pit::new(line.irq(), &time.timers);
        Machine { port_b: pit.port_b(), pit, line, time }
    }

    impl Machine {
        fn write(&self, register: u64, values: &[u8]) {
            values.iter().for_each(|value| self.pit.write(register, &[*value]));
        }

        fn read(&self, register: u64) -> u8 {
            let mut data = [0];
            self.pit.read(register, &mut data);
            data[0]
        }

        fn read16(&self, register: u64) -> u16 {
            u16::from_le_bytes([self.read(register), self.read(register)])
        }

        fn port_b(&self) -> u8 {
            let mut data = [0];
            self.port_b.read(0, &mut data);
            data[0]
        }

        fn advance_ticks(&self, count: u64) {
            self.time.advance(ticks_to_ns(count));
        }
    }

    #[test]
    fn the_rate_generator_interrupts_at_its_rate() {
        let m = machine();
        m.write(3, &[0x34]);
        m.write(0, &[0xa9, 0x04]);
        let seconds = 2;
        m.time.advance(seconds * NS_PER_SECOND);
        let expected = (seconds * PIT_HZ / 0x04a9) as usize;
        assert!(m.line.edges().abs_diff(expected) <= 1);
        m.write(3, &[0x30]);
        assert_eq!(m.time.timers.next_deadline(), None, "a control word stops the channel");
    }

    #[test]
    fn the_one_shot_modes_interrupt_once() {
        let m = machine();
        for control in [0x38, 0x30] {
            m.write(3, &[control]);
            m.write(0, &[0x00, 0x10]);
            m.advance_ticks(0x0fff);
            assert_eq!(m.line.edges(), 0);
            m.advance_ticks(3);
            assert_eq!(m.line.edges(), 1);
            m.advance_ticks(0x40000);
            assert_eq!(m.line.edges(), 0);
        }
    }

    #[test]
    fn channel_2_is_gated_and_seen_through_port_b() {
        let m = machine();
        m.port_b.write(0, &[0x01]);
        m.write(3, &[0xb0]);
        m.write(2, &[0xff, 0xff]);
        assert_eq!(m.port_b() & 0x21, 0x01);
        m.advance_ticks(0x8000);
        m.port_b.write(0, &[0x00]);
        m.advance_ticks(0x10_0000);
        assert_eq!(m.port_b() & 0x21, 0, "stopped by its gate");
        m.port_b.write(0, &[0x03]);
        assert_eq!(m.port_b() & 0x23, 0x03);
        m.advance_ticks(0x8001);
        assert_eq!(m.port_b() & 0x20, 0x20);
        assert_eq!(m.line.edges(), 0);
    }

    #[test]
    fn latched_counts_stand_still_until_read() {
        let m = machine();
        m.write(3, &[0x34]);
        m.write(0, &[0x00, 0x80]);
        m.advance_ticks(0x100);
        m.write(3, &[0x00]);
        m.advance_ticks(0x100);
        assert_eq!(m.read16(0), 0x7f00);
        assert!(m.read16(0).abs_diff(0x7e00) <= 1);
    }

    #[test]
    fn read_back_latches_status_and_count() {
        let m = machine();
        m.write(3, &[0x74, 0xe4]);
        assert_eq!(m.read(1), 0xf4, "output high, no count yet, both bytes, mode 2");
        m.write(1, &[0x10, 0x27]);
        m.write(3, &[0xc4]);
        assert_eq!((m.read(1), m.read16(1)), (0xb4, 10_000));
    }

    #[test]
    fn the_square_wave_is_high_for_half_its_period_and_counts_by_two() {
        let m = machine();
        m.port_b.write(0, &[1]);
        m.write(3, &[0xb6]);
        m.write(2, &[0xe8, 0x03]);
        m.advance_ticks(499);
        assert_eq!((m.port_b() & 0x20, m.read16(2)), (0x20, 2));
        m.advance_ticks(1);
        assert_eq!((m.port_b() & 0x20, m.read16(2)), (0, 1000));
    }

    #[test]
    fn bcd_counts_are_decimal() {
        let m = machine();
        m.write(3, &[0x35]);
        m.write(0, &[0x00, 0x10]);
        m.advance_ticks(1);
        assert_eq!(m.read16(0), 0x0999);
        m.write(3, &[0x11]);
        m.write(0, &[0x00]);
        m.advance_ticks(1);
        assert_eq!(m.read(0), 0x99);
    }

    #[test]
    fn the_one_shot_of_channel_2_starts_with_its_gate() {
        let m = machine();
        m.write(3, &[0xb2]);
        m.write(2, &[0x64, 0x00]);
        m.advance_ticks(1000);
        assert_eq!(m.port_b() & 0x20, 0x20);
        m.port_b.write(0, &[1]);
        assert_eq!(m.port_b() & 0x20, 0);
        m.advance_ticks(101);
        assert_eq!(m.port_b() & 0x20, 0x20);
    }

    #[test]
    fn tiny_periods_cannot_spin_the_host() {
        let m = machine();
        m.write(3, &[0x14]);
        m.write(0, &[1]);
        m.time.advance(NS_PER_SECOND / 100);
        assert!(m.line.edges() as u64 <= NS_PER_SECOND / 100 / MIN_PERIOD_NS + 1);
    }
}

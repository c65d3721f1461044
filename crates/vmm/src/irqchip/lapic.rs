//! One local APIC: registers, priorities, timer. Source: SDM vol. 3A chapter 11 ("Advanced Programmable Interrupt
//! Controller").
//!
//! A plain state machine: [`super::cell`] holds the lock, arms the host timer for [`Lapic::deadline_ns`] and calls
//! [`Lapic::expire`]; what a register write asks of others comes back as an [`Effect`].

use queztl_soft_cpu::platform::{Accepts, Event};

use super::message::{Destination, Message, Mode};
use super::state::LapicState;
use super::vectors::VectorSet;
use crate::clock::Clock;
use crate::layout::LAPIC_BASE;

/// Frequency of the timer before its divider, in Hz.
pub const APIC_TIMER_HZ: u64 = 1_000_000_000;
/// The shortest period of the timer: shorter ones would keep a host processor busy with nothing else.
pub(super) const MIN_PERIOD_NS: u64 = 20_000;

const NS_PER_SECOND: u64 = 1_000_000_000;

/// Register numbers: offset in the memory-mapped page / 16, and MSR - 0x800.
pub(super) mod reg {
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TPR: u32 = 0x08;
    pub const APR: u32 = 0x09;
    pub const PPR: u32 = 0x0a;
    pub const EOI: u32 = 0x0b;
    pub const LDR: u32 = 0x0d;
    pub const DFR: u32 = 0x0e;
    pub const SVR: u32 = 0x0f;
    pub const ISR: u32 = 0x10;
    pub const TMR: u32 = 0x18;
    pub const IRR: u32 = 0x20;
    pub const ESR: u32 = 0x28;
    pub const ICR: u32 = 0x30;
    pub const ICR_HIGH: u32 = 0x31;
    pub const LVT_TIMER: u32 = 0x32;
    pub const LVT_LINT0: u32 = 0x35;
    pub const LVT_LINT1: u32 = 0x36;
    pub const LVT_ERROR: u32 = 0x37;
    pub const TIMER_INITIAL: u32 = 0x38;
    pub const TIMER_CURRENT: u32 = 0x39;
    pub const TIMER_DIVIDE: u32 = 0x3e;
    pub const SELF_IPI: u32 = 0x3f;
}
use reg::*;

/// Version 0x14 (integrated APIC), highest LVT entry 5.
const VERSION_VALUE: u32 = 0x14 | 5 << 16;
pub(super) const LVT_COUNT: usize = 6;
const LVT_MASKED: u32 = 1 << 16;
/// Writable bits of timer, thermal, performance, LINT0, LINT1 and error entries.
const LVT_WRITABLE: [u32; LVT_COUNT] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];

const SVR_ENABLED: u32 = 1 << 8;
const SVR_WRITABLE: u32 = 0x3ff;
const ICR_WRITABLE: u32 = 0xc_cfff;
const ICR_LEVEL_ASSERT: u32 = 1 << 14;
const ICR_LEVEL_TRIGGERED: u32 = 1 << 15;

/// IA32_APIC_BASE.
pub(super) const BASE_BSP: u64 = 1 << 8;
/// Of IA32_APIC_BASE: x2APIC mode.
pub const BASE_X2APIC: u64 = 1 << 10;
pub(super) const BASE_ENABLED: u64 = 1 << 11;
pub(super) const BASE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const ERROR_SEND_ILLEGAL: u32 = 1 << 5;
const ERROR_RECEIVE_ILLEGAL: u32 = 1 << 6;
const ERROR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// How the processor reaches its local APIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Disabled,
    /// Memory-mapped at the given guest-physical address.
    XApic(u64),
    X2Apic,
}

/// What a register write asks of the rest of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    /// A level-triggered interrupt ended: tell the I/O APIC.
    EndOfInterrupt(u8),
    Send(Message),
}

/// The write is not allowed: #GP in x2APIC mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
}

#[derive(Debug, Clone, Default)]
struct Timer {
    initial: u32,
    divide: u32,
    /// The counter's next zero, on the guest's clock.
    deadline_ns: Option<u64>,
    /// IA32_TSC_DEADLINE; 0 when disarmed.
    tsc_deadline: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Lapic {
    id: u32,
    base: u64,
    tpr: u8,
    ldr: u32,
    dfr: u32,
    svr: u32,
    esr: u32,
    /// Errors since the last write to ESR.
    errors: u32,
    icr: u64,
    lvt: [u32; LVT_COUNT],
    irr: VectorSet,
    isr: VectorSet,
    tmr: VectorSet,
    timer: Timer,
    /// What the guest added to its time-stamp counter (IA32_TSC_ADJUST).
    tsc_adjust: u64,
    nmi: bool,
    init: bool,
    startup: Option<u8>,
}

impl Lapic {
    /// The state after power-up as firmware leaves it: the first processor takes the PIC pair's interrupts over LINT0,
    /// all take NMIs over LINT1.
    pub(super) fn new(id: u32) -> Lapic {
        let bsp = if id == 0 { BASE_BSP } else { 0 };
        let mut lapic = Lapic {
            id,
            base: LAPIC_BASE | BASE_ENABLED | bsp,
            tpr: 0,
            ldr: 0,
            dfr: 0,
            svr: 0,
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [0; LVT_COUNT],
            irr: VectorSet::default(),
            isr: VectorSet::default(),
            tmr: VectorSet::default(),
            timer: Timer::default(),
            tsc_adjust: 0,
            nmi: false,
            init: false,
            startup: None,
        };
        lapic.reset();
        lapic
    }

    /// INIT: everything but the identifier and IA32_APIC_BASE (SDM vol. 3A §11.4.7.3).
    fn reset(&mut self) {
        self.tpr = 0;
        self.ldr = 0;
        self.dfr = u32::MAX;
        self.svr = 0xff;
        (self.esr, self.errors, self.icr) = (0, 0, 0);
        self.lvt = [LVT_MASKED; LVT_COUNT];
        if self.base & BASE_BSP != 0 {
            self.lvt[lvt_index(LVT_LINT0)] = 7 << 8;
        }
        self.lvt[lvt_index(LVT_LINT1)] = 4 << 8;
        (self.irr, self.isr, self.tmr) = Default::default();
        self.timer = Timer::default();
        self.nmi = false;
    }

    pub(super) fn access(&self) -> Access {
        match self.base & (BASE_ENABLED | BASE_X2APIC) {
            BASE_ENABLED => Access::XApic(self.base & BASE_ADDRESS),
            0 => Access::Disabled,
            _ => Access::X2Apic,
        }
    }

    fn x2apic(&self) -> bool {
        self.access() == Access::X2Apic
    }

    /// Enabled in IA32_APIC_BASE and in the spurious-interrupt register.
    pub(super) fn enabled(&self) -> bool {
        self.access() != Access::Disabled && self.svr & SVR_ENABLED != 0
    }

    /// Logical identifier: 8 bits, or the 32 derived ones of x2APIC mode (§11.12.10.2).
    pub(super) fn logical_id(&self) -> u32 {
        if self.x2apic() { (self.id >> 4) << 16 | 1 << (self.id & 0xf) } else { self.ldr >> 24 }
    }

    /// Whether logical destinations of xAPIC are bit masks (flat) rather than cluster and mask.
    pub(super) fn flat(&self) -> bool {
        self.dfr >> 28 == 0xf
    }

    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// Writes IA32_APIC_BASE; only the transitions of SDM vol. 3A figure 11-27 are allowed.
    pub(super) fn set_base(&mut self, value: u64) -> Result<(), Refused> {
        let changed = self.base ^ value;
        if value & !(BASE_ADDRESS | BASE_ENABLED | BASE_X2APIC | BASE_BSP) != 0 {
            return Err(Refused);
        }
        let (enabled, x2apic) = (value & BASE_ENABLED != 0, value & BASE_X2APIC != 0);
        let leaves_x2apic_for_xapic = changed & BASE_X2APIC != 0 && !x2apic && enabled;
        let enters_x2apic_from_disabled = x2apic && changed & BASE_ENABLED != 0;
        if (x2apic && !enabled) || leaves_x2apic_for_xapic || enters_x2apic_from_disabled {
            return Err(Refused);
        }
        self.base = value;
        if changed & BASE_ENABLED != 0 && !enabled {
            let pending = (self.nmi, self.init, self.startup);
            self.reset();
            (self.nmi, self.init, self.startup) = pending;
        }
        Ok(())
    }

    pub(super) fn tpr(&self) -> u8 {
        self.tpr
    }

    pub(super) fn set_tpr(&mut self, value: u8) {
        self.tpr = value;
    }

    /// Processor priority: the higher of task priority and highest interrupt in service (§11.8.3.1).
    pub(super) fn ppr(&self) -> u8 {
        let in_service = self.isr.highest().unwrap_or(0) & 0xf0;
        if self.tpr & 0xf0 >= in_service { self.tpr } else { in_service }
    }

    /// The vector that the processor would take now if it accepted interrupts.
    fn deliverable(&self) -> Option<u8> {
        self.irr.highest().filter(|vector| vector & 0xf0 > self.ppr() & 0xf0)
    }

    /// Whether [`Lapic::take`] would give something to a processor that accepts everything.
    pub(super) fn has_event(&self) -> bool {
        self.init || self.startup.is_some() || self.nmi || self.deliverable().is_some()
    }

    pub(super) fn take(&mut self, accepts: Accepts) -> Option<Event> {
        if std::mem::take(&mut self.init) {
            self.reset();
            return Some(Event::Init);
        }
        if let Some(page) = self.startup.take() {
            return Some(Event::Startup(page));
        }
        if accepts.nmi && std::mem::take(&mut self.nmi) {
            return Some(Event::Nmi);
        }
        let vector = self.deliverable().filter(|_| accepts.interrupts)?;
        self.irr.remove(vector);
        self.isr.insert(vector);
        Some(Event::Interrupt(vector))
    }

    /// Receives a message; gives whether the processor may have something new to take.
    pub(super) fn receive(&mut self, mode: Mode, vector: u8, level: bool) -> bool {
        match mode {
            Mode::Fixed | Mode::LowestPriority => return self.post(vector, level),
            Mode::Nmi => self.nmi = true,
            Mode::Init => (self.init, self.startup) = (true, None),
            Mode::Startup => self.startup = self.startup.or(Some(vector)),
        }
        true
    }

    fn post(&mut self, vector: u8, level: bool) -> bool {
        if !self.enabled() {
            return false;
        }
        if vector < 16 {
            return self.error(ERROR_RECEIVE_ILLEGAL);
        }
        let new = self.irr.insert(vector);
        if level {
            self.tmr.insert(vector);
        } else {
            self.tmr.remove(vector);
        }
        new && self.deliverable().is_some()
    }

    fn error(&mut self, bit: u32) -> bool {
        let new = self.errors & bit == 0;
        self.errors |= bit;
        // An illegal vector in the error entry itself must not recurse.
        let entry = self.lvt[lvt_index(LVT_ERROR)];
        new && entry & LVT_MASKED == 0 && entry as u8 >= 16 && self.post(entry as u8, false)
    }

    /// How LINT0, to which the PIC pair is wired, is programmed.
    pub(super) fn lint0(&self) -> Lint0 {
        let entry = self.lvt[lvt_index(LVT_LINT0)];
        if self.access() == Access::Disabled {
            return if self.base & BASE_BSP != 0 { Lint0::ExtInt } else { Lint0::Masked };
        }
        match (entry & LVT_MASKED != 0, (entry >> 8) & 7) {
            (true, _) => Lint0::Masked,
            (false, 7) => Lint0::ExtInt,
            (false, _) => Lint0::Message,
        }
    }

    /// A rising edge of a local interrupt pin (LINT0 or LINT1).
    pub(super) fn local_pin(&mut self, register: u32) -> bool {
        let entry = self.lvt[lvt_index(register)];
        match Mode::from_bits(entry >> 8) {
            Some(mode @ (Mode::Fixed | Mode::Nmi)) if entry & LVT_MASKED == 0 => self.receive(mode, entry as u8, false),
            _ => false,
        }
    }

    fn end_of_interrupt(&mut self) -> Effect {
        match self.isr.highest() {
            Some(vector) => {
                self.isr.remove(vector);
                if self.tmr.contains(vector) { Effect::EndOfInterrupt(vector) } else { Effect::None }
            }
            None => Effect::None,
        }
    }

    /// Reads a register; `None` where there is none.
    pub(super) fn read(&self, register: u32, clock: &Clock) -> Option<u32> {
        Some(match register {
            ID if self.x2apic() => self.id,
            ID => self.id << 24,
            VERSION => VERSION_VALUE,
            TPR => self.tpr.into(),
            APR if !self.x2apic() => 0,
            PPR => self.ppr().into(),
            LDR if self.x2apic() => self.logical_id(),
            LDR => self.ldr,
            DFR if !self.x2apic() => self.dfr,
            SVR => self.svr,
            ISR..TMR => self.isr.word(register - ISR),
            TMR..IRR => self.tmr.word(register - TMR),
            IRR..ESR => self.irr.word(register - IRR),
            ESR => self.esr,
            ICR => self.icr as u32,
            ICR_HIGH if !self.x2apic() => (self.icr >> 32) as u32,
            LVT_TIMER..=LVT_ERROR => self.lvt[lvt_index(register)],
            TIMER_INITIAL => self.timer.initial,
            TIMER_CURRENT => self.current_count(clock),
            TIMER_DIVIDE => self.timer.divide,
            _ => return None,
        })
    }

    /// Reads IA32_X2APIC_* number `register`.
    pub(super) fn read_msr(&self, register: u32, clock: &Clock) -> Option<u64> {
        match register {
            _ if !self.x2apic() => None,
            ICR => Some(self.icr),
            _ => self.read(register, clock).map(u64::from),
        }
    }

    /// Writes IA32_X2APIC_* number `register`. Reserved bits are refused.
    pub(super) fn write_msr(&mut self, register: u32, value: u64, clock: &Clock) -> Result<Effect, Refused> {
        if !self.x2apic() {
            return Err(Refused);
        }
        let allowed = match register {
            ICR => {
                self.icr = value & (0xffff_ffff_0000_0000 | u64::from(ICR_WRITABLE));
                return Ok(self.send());
            }
            TPR | SELF_IPI => 0xff,
            EOI | ESR => 0,
            SVR => SVR_WRITABLE,
            LVT_TIMER..=LVT_ERROR => LVT_WRITABLE[lvt_index(register)] | READ_ONLY_LVT,
            TIMER_INITIAL => u32::MAX,
            TIMER_DIVIDE => 0xb,
            _ => return Err(Refused),
        };
        if value & !u64::from(allowed) != 0 {
            return Err(Refused);
        }
        Ok(self.write(register, value as u32, clock))
    }

    /// Writes a register; reserved bits are dropped, registers that cannot be written note an error.
    pub(super) fn write(&mut self, register: u32, value: u32, clock: &Clock) -> Effect {
        match register {
            TPR => self.tpr = value as u8,
            EOI => return self.end_of_interrupt(),
            LDR if !self.x2apic() => self.ldr = value & 0xff00_0000,
            DFR if !self.x2apic() => self.dfr = value | 0x0fff_ffff,
            SVR => self.write_svr(value),
            ESR => self.esr = std::mem::take(&mut self.errors),
            ICR => {
                self.icr = (self.icr & !0xffff_ffff) | u64::from(value & ICR_WRITABLE);
                return self.send();
            }
            ICR_HIGH => self.icr = (self.icr & 0xffff_ffff) | u64::from(value & 0xff00_0000) << 32,
            LVT_TIMER..=LVT_ERROR => self.write_lvt(register, value),
            TIMER_INITIAL => self.write_initial_count(value, clock),
            TIMER_DIVIDE => self.write_divide(value, clock),
            SELF_IPI if self.x2apic() => {
                let message =
                    Message { mode: Mode::Fixed, vector: value as u8, level: false, destination: Destination::Itself };
                return Effect::Send(message);
            }
            ID | VERSION | APR | PPR | ISR..ESR | TIMER_CURRENT => (),
            _ => {
                self.error(ERROR_ILLEGAL_REGISTER);
            }
        }
        Effect::None
    }

    fn write_svr(&mut self, value: u32) {
        self.svr = value & SVR_WRITABLE;
        if self.svr & SVR_ENABLED == 0 {
            for entry in &mut self.lvt {
                *entry |= LVT_MASKED;
            }
        }
    }

    fn write_lvt(&mut self, register: u32, value: u32) {
        let index = lvt_index(register);
        let before = self.timer_mode();
        let mut entry = value & LVT_WRITABLE[index];
        if self.svr & SVR_ENABLED == 0 {
            entry |= LVT_MASKED;
        }
        self.lvt[index] = entry;
        let deadline_modes = [before, self.timer_mode()].map(|mode| mode == TimerMode::TscDeadline);
        if deadline_modes[0] != deadline_modes[1] {
            self.timer = Timer { divide: self.timer.divide, ..Timer::default() };
        }
    }

    /// The message that a write to ICR sends.
    fn send(&mut self) -> Effect {
        let low = self.icr as u32;
        let Some(mode) = Mode::from_bits(low >> 8) else { return Effect::None };
        if mode == Mode::Init && low & ICR_LEVEL_TRIGGERED != 0 && low & ICR_LEVEL_ASSERT == 0 {
            // INIT level de-assert: only for processors older than the Pentium 4.
            return Effect::None;
        }
        if mode.has_vector() && (low as u8) < 16 {
            self.error(ERROR_SEND_ILLEGAL);
            return Effect::None;
        }
        let wide = self.x2apic();
        let id = if wide { (self.icr >> 32) as u32 } else { (self.icr >> 56) as u32 };
        let destination = match (low >> 18) & 3 {
            1 => Destination::Itself,
            2 => Destination::All,
            3 => Destination::Others,
            _ if low & (1 << 11) != 0 => Destination::Logical { mask: id, wide },
            _ => Destination::Physical { id, wide },
        };
        // Inter-processor interrupts are edges whatever the trigger bit says (§11.6.1).
        Effect::Send(Message { mode, vector: low as u8, level: false, destination })
    }
}

/// Moving it.
impl Lapic {
    pub(super) fn state(&self, clock: &Clock) -> LapicState {
        let runs = self.timer.deadline_ns.is_some() && self.timer_mode() != TimerMode::TscDeadline;
        LapicState {
            base: self.base,
            tpr: self.tpr,
            ldr: self.ldr,
            dfr: self.dfr,
            svr: self.svr,
            esr: self.esr,
            errors: self.errors,
            icr: self.icr,
            lvt: self.lvt,
            irr: self.irr.words(),
            isr: self.isr.words(),
            tmr: self.tmr.words(),
            timer_initial: self.timer.initial,
            timer_divide: self.timer.divide,
            timer_current: if runs { self.current_count(clock).max(1) } else { 0 },
            tsc_deadline: self.timer.tsc_deadline,
            nmi: self.nmi,
            init: self.init,
            startup: self.startup,
        }
    }

    /// Takes over a state that [`LapicState::check`] has let pass.
    pub(super) fn set_state(&mut self, state: &LapicState, clock: &Clock) {
        self.base = state.base;
        self.tpr = state.tpr;
        self.ldr = state.ldr & 0xff00_0000;
        self.dfr = state.dfr | 0x0fff_ffff;
        self.svr = state.svr & SVR_WRITABLE;
        (self.esr, self.errors) = (state.esr & 0xff, state.errors & 0xff);
        self.icr = state.icr & (0xffff_ffff_0000_0000 | u64::from(ICR_WRITABLE));
        for (index, entry) in self.lvt.iter_mut().enumerate() {
            *entry = state.lvt[index] & LVT_WRITABLE[index];
        }
        self.irr = VectorSet::from_words(state.irr);
        self.isr = VectorSet::from_words(state.isr);
        self.tmr = VectorSet::from_words(state.tmr);
        (self.nmi, self.init, self.startup) = (state.nmi, state.init, state.startup);
        self.timer = Timer { initial: state.timer_initial, divide: state.timer_divide & 0xb, ..Timer::default() };
        if self.timer_mode() == TimerMode::TscDeadline {
            self.set_tsc_deadline(state.tsc_deadline, clock);
        } else if state.timer_current != 0 {
            let left_ns = u64::from(state.timer_current) * self.count_ns();
            self.timer.deadline_ns = Some(clock.now_ns().saturating_add(left_ns));
        }
    }
}

/// Delivery status and remote IRR: may be written, keep their value.
const READ_ONLY_LVT: u32 = 1 << 12 | 1 << 14;

/// What a rise of the PIC pair's output does to one processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lint0 {
    Masked,
    /// The processor acknowledges at the pair.
    ExtInt,
    /// The local APIC makes a message of it.
    Message,
}

fn lvt_index(register: u32) -> usize {
    (register.saturating_sub(LVT_TIMER) as usize).min(LVT_COUNT - 1)
}

/// The timer (§11.5.4).
impl Lapic {
    /// When [`Lapic::expire`] wants to be called.
    pub(super) fn deadline_ns(&self) -> Option<u64> {
        self.timer.deadline_ns
    }

    fn timer_mode(&self) -> TimerMode {
        match (self.lvt[0] >> 17) & 3 {
            1 => TimerMode::Periodic,
            2 => TimerMode::TscDeadline,
            _ => TimerMode::OneShot,
        }
    }

    /// Nanoseconds per count.
    fn count_ns(&self) -> u64 {
        let divide = self.timer.divide;
        let exponent = ((divide & 3) | (divide >> 1 & 4)).wrapping_add(1) & 7;
        (NS_PER_SECOND / APIC_TIMER_HZ) << exponent
    }

    fn period_ns(&self) -> u64 {
        u64::from(self.timer.initial) * self.count_ns()
    }

    fn write_initial_count(&mut self, value: u32, clock: &Clock) {
        if self.timer_mode() == TimerMode::TscDeadline {
            return;
        }
        self.timer.initial = value;
        self.timer.deadline_ns = (value != 0).then(|| clock.now_ns().saturating_add(self.period_ns()));
    }

    fn write_divide(&mut self, value: u32, clock: &Clock) {
        let left = self.current_count(clock);
        self.timer.divide = value & 0xb;
        if self.timer_mode() != TimerMode::TscDeadline && self.timer.deadline_ns.is_some() {
            let left_ns = u64::from(left) * self.count_ns();
            self.timer.deadline_ns = Some(clock.now_ns().saturating_add(left_ns));
        }
    }

    fn current_count(&self, clock: &Clock) -> u32 {
        match self.timer.deadline_ns {
            Some(deadline) if self.timer_mode() != TimerMode::TscDeadline => {
                let left = deadline.saturating_sub(clock.now_ns()).div_ceil(self.count_ns());
                u32::try_from(left).unwrap_or(u32::MAX).min(self.timer.initial)
            }
            _ => 0,
        }
    }

    /// IA32_TSC_DEADLINE.
    pub(super) fn tsc_deadline(&self) -> u64 {
        self.timer.tsc_deadline
    }

    /// Writes IA32_TSC_DEADLINE; ignored in the other timer modes.
    pub(super) fn set_tsc_deadline(&mut self, value: u64, clock: &Clock) {
        if self.timer_mode() == TimerMode::TscDeadline {
            self.timer.tsc_deadline = value;
            self.timer.deadline_ns = (value != 0).then(|| self.tsc_deadline_ns(clock));
        }
    }

    fn tsc_deadline_ns(&self, clock: &Clock) -> u64 {
        let deadline = i128::from(self.timer.tsc_deadline) - i128::from(self.tsc_adjust as i64);
        clock.tsc_deadline_ns(u64::try_from(deadline.max(0)).unwrap_or(u64::MAX))
    }

    /// The guest's IA32_TSC_ADJUST changed: deadlines are in the adjusted counter.
    pub(super) fn set_tsc_adjust(&mut self, adjust: u64, clock: &Clock) {
        self.tsc_adjust = adjust;
        if self.timer.tsc_deadline != 0 {
            self.timer.deadline_ns = Some(self.tsc_deadline_ns(clock));
        }
    }

    /// The clock may have reached the deadline; gives whether the processor may have something new to take.
    pub(super) fn expire(&mut self, clock: &Clock) -> bool {
        let now = clock.now_ns();
        let Some(deadline) = self.timer.deadline_ns.filter(|deadline| *deadline <= now) else { return false };
        self.timer.deadline_ns = match self.timer_mode() {
            TimerMode::Periodic => Some(self.next_period(deadline, now)),
            TimerMode::OneShot => None,
            TimerMode::TscDeadline => {
                self.timer.tsc_deadline = 0;
                None
            }
        };
        let entry = self.lvt[0];
        entry & LVT_MASKED == 0 && self.post(entry as u8, false)
    }

    /// The next zero of a periodic timer that was due at `deadline`: in phase, past `now`, not too soon.
    fn next_period(&self, deadline: u64, now: u64) -> u64 {
        let period = self.period_ns();
        if period < MIN_PERIOD_NS {
            return now.saturating_add(MIN_PERIOD_NS);
        }
        let missed = (now - deadline) / period;
        deadline.saturating_add((missed + 1).saturating_mul(period))
    }
}

//! The interrupt controllers in user space: one local APIC per vCPU, an I/O APIC with 64 inputs, and the PIC pair.
//!
//! Promises:
//! - a device's line change reaches the vCPUs it is routed to before `set_level` returns, and their wakers have been
//!   called;
//! - an interrupt is delivered exactly once for an edge, and again after each EOI while a level stays high;
//! - no lock is held while another is taken, nor while a waker runs: each controller's lock is released before the
//!   messages it produced are delivered.
//!
//! ```text
//! device ── IrqLine ──> set_level ─┬─> PIC pair ── output ──> LINT0 of the local APICs
//!                                  └─> I/O APIC ── message ─┐
//! vCPU ── ICR, self IPI ────────────────────────── message ─┼─> local APIC ── waker ──> vCPU ── take_event
//! timers ── APIC timer ─────────────────────────────────────┘        │
//!                                  I/O APIC <── end of interrupt ────┘
//! ```
//!
//! x2APIC identifiers are vCPU numbers. Interrupt lines: 0..=15 are the legacy IRQs (the PIC pair and the I/O APIC input
//! of the same number, but IRQ 0 on input 2), 16..=63 are I/O APIC inputs only.

mod cell;
mod external;
mod ioapic;
mod lapic;
mod message;
mod pic;
mod state;
#[cfg(test)]
mod tests;
mod vectors;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use queztl_soft_cpu::platform::{Accepts, Event};
use serde::{Deserialize, Serialize};

use self::cell::LapicCell;
use self::ioapic::{IoApic, SavedIoApic};
use self::lapic::{Effect, Refused, reg};
use self::message::{Destination, Message, Mode};
use self::pic::{PicPair, Which};
use crate::bus::{Bus, BusDevice, Overlap};
use crate::clock::Clock;
use crate::irq::InterruptSink;
use crate::layout::IOAPIC_BASE;
use crate::snapshot::{Invalid, Persist};
use crate::timers::Timers;

pub use self::cell::Waker;
pub use self::external::{LocalApics, Msi};
pub use self::lapic::{APIC_TIMER_HZ, BASE_X2APIC};
pub use self::state::{BadLapicState, LapicState};

/// The most vCPUs the controllers serve: physical destinations of the I/O APIC have eight bits, of which all ones mean
/// everybody to local APICs in xAPIC mode and number 255 to those in x2APIC mode.
pub const MAX_VCPUS: u32 = 256;

/// IA32_APIC_BASE.
pub const MSR_APIC_BASE: u32 = 0x1b;
/// IA32_TSC_DEADLINE.
pub const MSR_TSC_DEADLINE: u32 = 0x6e0;
const MSR_X2APIC: u32 = 0x800;
const MSR_X2APIC_END: u32 = 0x900;

/// Legacy interrupt lines.
const LEGACY_LINES: u32 = 16;
/// I/O APIC input of the timer, legacy IRQ 0.
const TIMER_PIN: u32 = 2;

/// All interrupt controllers of one machine.
pub struct IrqChip {
    clock: Arc<Clock>,
    lapics: Box<[LapicCell]>,
    ioapic: Mutex<IoApic>,
    pics: Mutex<PicPair>,
    /// [`PicPair::output`], for readers without the lock.
    pic_output: AtomicBool,
    /// Where the search for the lowest priority starts, so that equals take turns.
    turn: AtomicU32,
    /// Local APICs that take the place of `lapics`.
    external: OnceLock<Arc<dyn LocalApics>>,
    /// Held while `external` is told about inputs.
    announcing: Mutex<()>,
}

impl IrqChip {
    /// The controllers of a machine with `vcpus` vCPUs, in their state at power-up; no waker is set yet.
    ///
    /// # Panics
    /// When `vcpus` is not within 1..=[`MAX_VCPUS`].
    pub fn new(vcpus: u32, clock: Arc<Clock>, timers: &Timers) -> Arc<IrqChip> {
        assert!((1..=MAX_VCPUS).contains(&vcpus), "a machine has 1 to {MAX_VCPUS} vCPUs, not {vcpus}");
        Arc::new_cyclic(|chip: &Weak<IrqChip>| {
            let lapics: Box<[LapicCell]> = (0..vcpus).map(LapicCell::new).collect();
            for (index, lapic) in lapics.iter().enumerate() {
                let chip = chip.clone();
                lapic.set_timer(timers.create(move || {
                    if let Some(chip) = chip.upgrade() {
                        chip.lapics[index].expire(&chip.clock);
                    }
                }));
            }
            IrqChip {
                clock,
                lapics,
                ioapic: Mutex::new(IoApic::new()),
                pics: Mutex::new(PicPair::new()),
                pic_output: AtomicBool::new(false),
                turn: AtomicU32::new(0),
                external: OnceLock::new(),
                announcing: Mutex::new(()),
            }
        })
    }

    /// Number of vCPUs.
    pub fn vcpus(&self) -> u32 {
        self.lapics.len() as u32
    }

    /// `waker` is called, from any thread, whenever vCPU `cpu` may have something new to take. It must be quick.
    pub fn set_waker(&self, cpu: u32, waker: Waker) {
        if let Some(lapic) = self.lapic(cpu) {
            lapic.set_waker(waker);
        }
    }

    /// Takes the most urgent event that is pending for `cpu` and that it accepts. Without anything pending this is two
    /// atomic loads.
    pub fn take_event(&self, cpu: u32, accepts: Accepts) -> Option<Event> {
        let lapic = self.lapic(cpu)?;
        let ext_int = accepts.interrupts && self.has_ext_int(lapic);
        if lapic.ready() {
            // The PIC pair's interrupts come before the local APIC's, but after everything else.
            let accepts = Accepts { interrupts: accepts.interrupts && !ext_int, ..accepts };
            let event = lapic.with(|lapic| lapic.take(accepts));
            if event.is_some() {
                return event;
            }
        }
        if !ext_int {
            return None;
        }
        match self.acknowledge_pic() {
            Some(vector) => Some(Event::Interrupt(vector)),
            None => lapic.with(|lapic| lapic.take(accepts)),
        }
    }

    /// Whether [`IrqChip::take_event`] would give a vCPU something if it accepted everything.
    pub fn has_event(&self, cpu: u32) -> bool {
        self.lapic(cpu).is_some_and(|lapic| lapic.ready() || self.has_ext_int(lapic))
    }

    /// CR8: the upper half of the task priority register.
    pub fn task_priority(&self, cpu: u32) -> u8 {
        self.lapic(cpu).map_or(0, |lapic| lapic.routing().task_priority())
    }

    /// Sets CR8; `class` is 0..=15.
    pub fn set_task_priority(&self, cpu: u32, class: u8) {
        if let Some(lapic) = self.lapic(cpu) {
            lapic.with(|lapic| lapic.set_tpr(class << 4));
            self.wake_if_ready(lapic);
        }
    }

    /// Whether [`IrqChip::msr_read`] and [`IrqChip::msr_write`] are responsible for `msr`.
    pub fn owns_msr(msr: u32) -> bool {
        matches!(msr, MSR_APIC_BASE | MSR_TSC_DEADLINE | MSR_X2APIC..MSR_X2APIC_END)
    }

    /// Reads one of the local APIC's MSRs; `None` means #GP.
    pub fn msr_read(&self, cpu: u32, msr: u32) -> Option<u64> {
        let lapic = self.lapic(cpu)?;
        match msr {
            MSR_APIC_BASE => Some(lapic.with(|lapic| lapic.base())),
            MSR_TSC_DEADLINE => Some(lapic.with(|lapic| lapic.tsc_deadline())),
            MSR_X2APIC..MSR_X2APIC_END => lapic.with(|lapic| lapic.read_msr(msr - MSR_X2APIC, &self.clock)),
            _ => None,
        }
    }

    /// Writes one of the local APIC's MSRs; false means #GP.
    pub fn msr_write(&self, cpu: u32, msr: u32, value: u64) -> bool {
        let Some(lapic) = self.lapic(cpu) else { return false };
        let effect = match msr {
            MSR_APIC_BASE => lapic.with(|lapic| lapic.set_base(value)).map(|()| Effect::None),
            MSR_TSC_DEADLINE => {
                self.write_tsc_deadline(lapic, value);
                return true;
            }
            MSR_X2APIC..MSR_X2APIC_END => lapic.with(|lapic| lapic.write_msr(msr - MSR_X2APIC, value, &self.clock)),
            _ => Err(Refused),
        };
        let Ok(effect) = effect else { return false };
        self.carry_out(cpu, effect);
        self.wake_if_ready(lapic);
        true
    }

    fn write_tsc_deadline(&self, lapic: &LapicCell, value: u64) {
        let due = lapic.with(|lapic| {
            lapic.set_tsc_deadline(value, &self.clock);
            // A deadline in the past fires at once, without a detour over the timer thread.
            lapic.expire(&self.clock)
        });
        if due {
            lapic.wake();
        }
    }

    /// Reads `cpu`'s memory-mapped local APIC; false when `address` does not lie in it (which every vCPU may place
    /// differently, or not have at all).
    pub fn mmio_read(&self, cpu: u32, address: u64, data: &mut [u8]) -> bool {
        let Some(lapic) = self.lapic(cpu) else { return false };
        let Some(offset) = lapic.offset_in_page(address) else { return false };
        let value = lapic.with(|lapic| lapic.read((offset >> 4) as u32, &self.clock)).unwrap_or(0);
        // Each register is 4 bytes in a slot of 16.
        let mut slot = [0; 16];
        slot[..4].copy_from_slice(&value.to_le_bytes());
        let start = (offset & 0xf) as usize;
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = slot.get(start + i).copied().unwrap_or(0);
        }
        true
    }

    /// Writes `cpu`'s memory-mapped local APIC; false when `address` does not lie in it. Only aligned accesses of 4 bytes
    /// (or the first 4 of 8) have an effect.
    pub fn mmio_write(&self, cpu: u32, address: u64, data: &[u8]) -> bool {
        let Some(lapic) = self.lapic(cpu) else { return false };
        let Some(offset) = lapic.offset_in_page(address) else { return false };
        if let (0, Some(value)) = (offset & 0xf, data.first_chunk()) {
            let value = u32::from_le_bytes(*value);
            let effect = lapic.with(|lapic| lapic.write((offset >> 4) as u32, value, &self.clock));
            self.carry_out(cpu, effect);
            self.wake_if_ready(lapic);
        }
        true
    }

    /// The guest changed `cpu`'s IA32_TSC_ADJUST (or wrote its time-stamp counter): its TSC deadlines refer to
    /// `Clock::tsc() + adjust` from now on.
    pub fn set_tsc_adjust(&self, cpu: u32, adjust: u64) {
        if let Some(lapic) = self.lapic(cpu) {
            lapic.with(|lapic| lapic.set_tsc_adjust(adjust, &self.clock));
        }
    }

    /// A non-maskable interrupt on LINT1, as the button on a server's front panel makes it; `cpu` must not have masked
    /// that pin.
    pub fn nmi(&self, cpu: u32) {
        match self.lapic(cpu) {
            Some(lapic) if lapic.with(|lapic| lapic.local_pin(reg::LVT_LINT1)) => lapic.wake(),
            _ => (),
        }
    }

    /// Delivers a message-signalled interrupt.
    pub fn send_msi(&self, address: u64, data: u32) {
        if let Some(message) = Message::from_msi(address, data) {
            self.deliver(message, None);
        }
    }

    /// Places the PIC pair and the I/O APIC on the machine's buses. The local APICs are not on a bus, since each vCPU
    /// reaches its own: see [`IrqChip::mmio_read`].
    pub fn insert_into(self: &Arc<Self>, ports: &mut Bus, mmio: &mut Bus) -> Result<(), Overlap> {
        let pic = |which| Arc::new(PicPorts { chip: self.clone(), which });
        ports.insert(0x20, 2, pic(Which::First))?;
        ports.insert(0xa0, 2, pic(Which::Second))?;
        ports.insert(0x4d0, 2, Arc::new(ElcrPorts(self.clone())))?;
        mmio.insert(IOAPIC_BASE, 0x1000, Arc::new(IoApicPage(self.clone())))
    }

    fn lapic(&self, cpu: u32) -> Option<&LapicCell> {
        self.lapics.get(cpu as usize)
    }

    fn has_ext_int(&self, lapic: &LapicCell) -> bool {
        self.pic_output.load(Ordering::SeqCst) && lapic.takes_ext_int()
    }

    fn wake_if_ready(&self, lapic: &LapicCell) {
        if lapic.ready() || self.has_ext_int(lapic) {
            lapic.wake();
        }
    }
}

/// The PIC pair.
impl IrqChip {
    fn lock_pics(&self) -> MutexGuard<'_, PicPair> {
        self.pics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_pics<R>(&self, work: impl FnOnce(&mut PicPair) -> R) -> R {
        let mut pics = self.lock_pics();
        let result = work(&mut pics);
        let output = pics.output();
        let before = self.pic_output.swap(output, Ordering::SeqCst);
        drop(pics);
        if output {
            self.raise_lint0(!before);
        }
        result
    }

    fn acknowledge_pic(&self) -> Option<u8> {
        let mut pics = self.lock_pics();
        let vector = pics.acknowledge();
        self.pic_output.store(pics.output(), Ordering::SeqCst);
        vector
    }

    fn raise_lint0(&self, rising: bool) {
        if self.external.get().is_some() {
            // Only the first processor is wired to the pair.
            return self.lapics[0].wake();
        }
        for lapic in &self.lapics {
            let new = lapic.takes_ext_int()
                || (rising && lapic.lint0_makes_messages() && lapic.with(|lapic| lapic.local_pin(reg::LVT_LINT0)));
            if new {
                lapic.wake();
            }
        }
    }
}

/// The ways of messages.
impl IrqChip {
    fn lock_ioapic(&self) -> MutexGuard<'_, IoApic> {
        self.ioapic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn carry_out(&self, cpu: u32, effect: Effect) {
        match effect {
            Effect::None => (),
            Effect::Send(message) => self.deliver(message, Some(cpu)),
            Effect::EndOfInterrupt(vector) => {
                let messages = self.lock_ioapic().end_of_interrupt(vector);
                self.deliver_all(messages);
            }
        }
    }

    fn deliver_all(&self, messages: Vec<Message>) {
        for message in messages {
            self.deliver(message, None);
        }
    }

    fn deliver(&self, message: Message, sender: Option<u32>) {
        if let Some(apics) = self.external.get() {
            return message.to_msi().into_iter().for_each(|msi| apics.send(msi));
        }
        if message.mode == Mode::LowestPriority {
            if let Some(index) = self.lowest_priority(message.destination, sender) {
                self.receive(index, message);
            }
            return;
        }
        self.for_each_target(message.destination, sender, |index| self.receive(index, message));
    }

    fn receive(&self, index: usize, message: Message) {
        let lapic = &self.lapics[index];
        if lapic.with(|lapic| lapic.receive(message.mode, message.vector, message.level)) {
            lapic.wake();
        }
    }

    /// Among the addressed local APICs that accept vectors, the one with the lowest task priority; equals take turns.
    fn lowest_priority(&self, destination: Destination, sender: Option<u32>) -> Option<usize> {
        let count = self.lapics.len();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize % count;
        let mut best: Option<(u8, usize)> = None;
        self.for_each_target(destination, sender, |index| {
            let routing = self.lapics[index].routing();
            let distance = (index + count - turn) % count;
            let candidate = (routing.task_priority(), distance);
            if routing.enabled() && best.is_none_or(|best| candidate < best) {
                best = Some(candidate);
            }
        });
        best.map(|(_, distance)| (distance + turn) % count)
    }

    fn for_each_target(&self, destination: Destination, sender: Option<u32>, mut target: impl FnMut(usize)) {
        let count = self.lapics.len();
        let sender = sender.map(|cpu| cpu as usize);
        match destination {
            Destination::Itself => sender.into_iter().for_each(target),
            Destination::All => (0..count).filter(|i| self.reachable(*i)).for_each(target),
            Destination::Others => {
                (0..count).filter(|i| Some(*i) != sender && self.reachable(*i)).for_each(target);
            }
            Destination::Physical { id, wide } if id != if wide { u32::MAX } else { 0xff } => {
                if (id as usize) < count && self.reachable(id as usize) {
                    target(id as usize);
                }
            }
            Destination::Physical { id, wide } => {
                // To a local APIC in x2APIC mode, an 8-bit 0xff is just its identifier.
                let meant = |i: &usize| wide || !self.lapics[*i].routing().x2apic() || *i as u32 == id;
                (0..count).filter(|i| self.reachable(*i)).filter(meant).for_each(target);
            }
            Destination::Logical { mask, wide } => {
                let meant = |i: &usize| self.lapics[*i].routing().matches_logical(mask, wide);
                // The identifiers of an x2APIC cluster are 16 neighbours.
                let start = if wide && mask != u32::MAX { (mask >> 16) as usize * 16 } else { 0 };
                let end = if wide && mask != u32::MAX { start + 16 } else { count };
                (start..end.min(count)).filter(|i| self.reachable(*i)).filter(meant).for_each(target);
            }
        }
    }

    fn reachable(&self, index: usize) -> bool {
        self.lapics[index].routing().reachable()
    }
}

/// What a snapshot holds of the controllers that no vCPU has for itself; a vCPU's own is [`LapicState`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedIrqChip {
    ioapic: SavedIoApic,
    pics: PicPair,
}

impl Persist for IrqChip {
    type State = SavedIrqChip;

    fn save(&self) -> SavedIrqChip {
        SavedIrqChip { ioapic: self.lock_ioapic().save(), pics: self.lock_pics().clone() }
    }

    fn restore(&self, saved: SavedIrqChip) -> Result<(), Invalid> {
        Invalid::unless(saved.pics.is_possible(), "interrupt controller pair", "its state is impossible")?;
        let ioapic = IoApic::restored(saved.ioapic);
        *self.lock_ioapic() = ioapic.ok_or(Invalid::new("I/O APIC", "the number of inputs differs"))?;
        self.with_pics(|pics| *pics = saved.pics);
        self.announce_level_inputs();
        Ok(())
    }
}

impl InterruptSink for IrqChip {
    fn set_level(&self, gsi: u32, high: bool) {
        // IRQ 2 is the wire between the two PICs.
        if gsi < LEGACY_LINES && gsi != 2 {
            self.with_pics(|pics| pics.set_line(gsi as u8, high));
        }
        let pin = match gsi {
            0 => TIMER_PIN,
            2 => return,
            _ => gsi,
        };
        let message = self.lock_ioapic().set_line(pin, high);
        if let Some(message) = message {
            self.deliver(message, None);
        }
    }
}

/// Command and data port of one PIC.
struct PicPorts {
    chip: Arc<IrqChip>,
    which: Which,
}

impl BusDevice for PicPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self.chip.with_pics(|pics| pics.read(self.which, offset + i as u64 == 1));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (i, byte) in data.iter().enumerate() {
            self.chip.with_pics(|pics| pics.write(self.which, offset + i as u64 == 1, *byte));
        }
    }
}

/// The edge/level control registers.
struct ElcrPorts(Arc<IrqChip>);

impl ElcrPorts {
    fn which(offset: u64) -> Which {
        if offset == 0 { Which::First } else { Which::Second }
    }
}

impl BusDevice for ElcrPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self.0.with_pics(|pics| pics.read_elcr(ElcrPorts::which(offset + i as u64)));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (i, byte) in data.iter().enumerate() {
            self.0.with_pics(|pics| pics.write_elcr(ElcrPorts::which(offset + i as u64), *byte));
        }
    }
}

/// The I/O APIC's memory-mapped registers.
struct IoApicPage(Arc<IrqChip>);

impl BusDevice for IoApicPage {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = self.0.lock_ioapic().read(offset & !3).to_le_bytes();
        let start = (offset & 3) as usize;
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = value.get(start + i).copied().unwrap_or(0);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut value = [0; 4];
        let len = data.len().min(4);
        value[..len].copy_from_slice(&data[..len]);
        let messages = self.0.lock_ioapic().write(offset, u32::from_le_bytes(value));
        self.0.announce_level_inputs();
        self.0.deliver_all(messages);
    }
}

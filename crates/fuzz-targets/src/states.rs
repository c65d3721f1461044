//! Saved states of interrupt controllers and legacy devices with anything in them: refused, or lived with.

use std::sync::Arc;

use queztl_soft_cpu::platform::Accepts;
use queztl_vmm::bus::Bus;
use queztl_vmm::clock::Clock;
use queztl_vmm::devices::legacy::{LegacyConfig, LegacyDevices, MachineEvents, PanicKind};
use queztl_vmm::irq::InterruptSink;
use queztl_vmm::irqchip::{IrqChip, LapicState};
use queztl_vmm::layout;
use queztl_vmm::snapshot::Persist;
use queztl_vmm::timers::Timers;
use serde_json::Value;

use crate::bytes::Bytes;

const VCPUS: u32 = 2;
/// Changes of the state, and what the guest does afterwards, at most.
const CHANGES: u8 = 8;
const ACTIONS: usize = 64;
/// Time passes in steps of at most so much, in ns: a periodic timer may be due at every one of them.
const STEP_NS: u64 = 2_000_000;

struct Nobody;

impl MachineEvents for Nobody {
    fn power_off(&self) {}
    fn reset(&self) {}
    fn guest_panicked(&self, _: PanicKind) {}
    fn debug_exit(&self, _: u32) {}
    fn boot_mark(&self) {}
}

struct Machine {
    clock: Arc<Clock>,
    timers: Arc<Timers>,
    chip: Arc<IrqChip>,
    legacy: LegacyDevices,
    ports: Bus,
    mmio: Bus,
}

impl Machine {
    fn new() -> Machine {
        let clock = Arc::new(Clock::instruction_counted(1));
        let timers = Timers::new(clock.clone());
        let chip = IrqChip::new(VCPUS, clock.clone(), &timers);
        let sink: Arc<dyn InterruptSink> = chip.clone();
        let legacy = LegacyDevices::new(LegacyConfig::default(), &sink, &timers, Arc::new(Nobody));
        let (mut ports, mut mmio) = (Bus::default(), Bus::default());
        chip.insert_into(&mut ports, &mut mmio).expect("places for the controllers");
        legacy.insert_into(&mut ports).expect("places for the devices");
        Machine { clock, timers, chip, legacy, ports, mmio }
    }

    fn save(&self) -> Value {
        let lapics: Vec<LapicState> = (0..VCPUS).filter_map(|cpu| self.chip.lapic_state(cpu)).collect();
        serde_json::json!({ "chip": self.chip.save(), "legacy": self.legacy.save(), "lapics": lapics })
    }

    /// Takes over `state`; false if a part refuses it.
    fn restore(&self, mut state: Value) -> bool {
        let mut part = |name: &str| state[name].take();
        let Ok(chip) = serde_json::from_value(part("chip")) else { return false };
        let Ok(legacy) = serde_json::from_value(part("legacy")) else { return false };
        let Ok(lapics) = serde_json::from_value::<Vec<LapicState>>(part("lapics")) else { return false };
        self.chip.restore(chip).is_ok()
            && self.legacy.restore(legacy).is_ok()
            && (0..).zip(&lapics).all(|(cpu, lapic)| self.chip.set_lapic_state(cpu, lapic).is_ok())
    }

    /// One thing that a guest may do, or that happens to it.
    fn act(&self, bytes: &mut Bytes) {
        let action = bytes.u8();
        let cpu = u32::from(action >> 7);
        match action % 8 {
            0 | 1 => {
                let port = u64::from(bytes.u16() % 0x700);
                self.ports.write(port, &[bytes.u8()]);
                self.ports.read(port, &mut [0]);
            }
            2 => {
                self.mmio.write(layout::IOAPIC_BASE, &u32::from(bytes.u8()).to_le_bytes());
                self.mmio.write(layout::IOAPIC_BASE + 0x10, &bytes.u32().to_le_bytes());
            }
            3 => {
                let address = layout::LAPIC_BASE + u64::from(bytes.u8()) * 16;
                self.chip.mmio_write(cpu, address, &bytes.u32().to_le_bytes());
                self.chip.mmio_read(cpu, address, &mut [0; 4]);
            }
            4 => self.chip.set_level(u32::from(bytes.u8() % 64), action & 0x40 != 0),
            5 => drop(self.legacy.serial.push_input(&[bytes.u8()])),
            6 => drop(self.chip.take_event(cpu, Accepts { interrupts: true, nmi: true })),
            _ => {
                self.clock.set_instructions(self.clock.now_ns().saturating_add(u64::from(bytes.u32()) % STEP_NS));
                self.timers.run_expired(self.clock.now_ns());
            }
        }
    }
}

fn numbers<'a>(value: &'a mut Value, found: &mut Vec<&'a mut Value>) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| numbers(item, found)),
        Value::Object(fields) => fields.values_mut().for_each(|field| numbers(field, found)),
        Value::Number(_) | Value::Bool(_) => found.push(value),
        _ => (),
    }
}

/// The first byte tells how many numbers of a fresh machine's state are changed, then come these, then what the guest does.
/// A restored machine must be one that can be saved and restored again.
pub fn restore(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut state = Machine::new().save();
    let mut found = Vec::new();
    numbers(&mut state, &mut found);
    for _ in 0..bytes.u8() % (CHANGES + 1) {
        let (place, value) = (usize::from(bytes.u16()) % found.len(), bytes.u64());
        *found[place] = if found[place].is_boolean() { (value & 1 == 1).into() } else { value.into() };
    }
    let machine = Machine::new();
    if !machine.restore(state) {
        return;
    }
    for _ in 0..ACTIONS {
        if bytes.is_empty() {
            break;
        }
        machine.act(&mut bytes);
    }
    assert!(Machine::new().restore(machine.save()), "a state that was saved is refused");
}

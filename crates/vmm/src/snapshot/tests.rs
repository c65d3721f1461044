//! The states of the machine's parts: nothing is lost on the way through a file, and nothing hostile does harm.

use std::sync::Arc;

use proptest::prelude::*;
use queztl_soft_cpu::platform::Accepts;
use serde_json::Value;

use super::Persist;
use crate::bus::Bus;
use crate::clock::Clock;
use crate::devices::legacy::{LegacyConfig, LegacyDevices, MachineEvents, PanicKind};
use crate::irq::InterruptSink;
use crate::irqchip::{IrqChip, LapicState};
use crate::layout;
use crate::timers::Timers;

const VCPUS: u32 = 2;

struct Nobody;

impl MachineEvents for Nobody {
    fn power_off(&self) {}
    fn reset(&self) {}
    fn guest_panicked(&self, _kind: PanicKind) {}
    fn debug_exit(&self, _value: u32) {}
    fn boot_mark(&self) {}
}

/// Interrupt controllers and legacy devices, on a clock that the test moves.
struct Parts {
    clock: Arc<Clock>,
    timers: Arc<Timers>,
    chip: Arc<IrqChip>,
    legacy: LegacyDevices,
    ports: Bus,
    mmio: Bus,
}

impl Parts {
    fn new() -> Parts {
        let clock = Arc::new(Clock::instruction_counted(1));
        let timers = Timers::new(clock.clone());
        let chip = IrqChip::new(VCPUS, clock.clone(), &timers);
        let sink: Arc<dyn InterruptSink> = chip.clone();
        let legacy = LegacyDevices::new(LegacyConfig::default(), &sink, &timers, Arc::new(Nobody));
        let (mut ports, mut mmio) = (Bus::default(), Bus::default());
        chip.insert_into(&mut ports, &mut mmio).unwrap();
        legacy.insert_into(&mut ports).unwrap();
        Parts { clock, timers, chip, legacy, ports, mmio }
    }

    fn step(&self, step: &Step) {
        match *step {
            Step::Port(port, value) => self.ports.write(u64::from(port), &[value]),
            Step::IoApic(register, value) => {
                self.mmio.write(layout::IOAPIC_BASE, &u32::from(register).to_le_bytes());
                self.mmio.write(layout::IOAPIC_BASE + 0x10, &value.to_le_bytes());
            }
            Step::Apic(cpu, register, value) => {
                let address = layout::LAPIC_BASE + u64::from(register) * 16;
                self.chip.mmio_write(u32::from(cpu % 2), address, &value.to_le_bytes());
            }
            Step::Line(gsi, high) => self.chip.set_level(u32::from(gsi), high),
            Step::Input(byte) => {
                self.legacy.serial.push_input(&[byte]);
            }
            Step::Take(cpu) => {
                self.chip.take_event(u32::from(cpu % 2), Accepts { interrupts: true, nmi: true });
            }
            Step::Time(ns) => {
                self.clock.set_instructions(self.clock.now_ns() + u64::from(ns));
                // A periodic timer may be due many times: each is one call, and the test need not see them all.
                self.timers.run_expired(self.clock.now_ns());
            }
        }
    }

    fn save(&self) -> (Value, Value, Vec<LapicState>) {
        let legacy = serde_json::to_value(self.legacy.save()).unwrap();
        let lapics = (0..VCPUS).filter_map(|cpu| self.chip.lapic_state(cpu)).collect();
        (serde_json::to_value(self.chip.save()).unwrap(), legacy, lapics)
    }

    /// Takes over a state, if all parts accept it.
    fn restore(&self, (chip, legacy, lapics): &(Value, Value, Vec<LapicState>)) -> Result<(), String> {
        let wrong = |error: serde_json::Error| error.to_string();
        let chip = serde_json::from_value(chip.clone()).map_err(wrong)?;
        let legacy = serde_json::from_value(legacy.clone()).map_err(wrong)?;
        self.chip.restore(chip).map_err(|error| error.to_string())?;
        self.legacy.restore(legacy).map_err(|error| error.to_string())?;
        (0..).zip(lapics).try_for_each(|(cpu, lapic)| self.chip.set_lapic_state(cpu, lapic)).map_err(|e| e.to_string())
    }
}

#[derive(Debug, Clone)]
enum Step {
    Port(u16, u8),
    IoApic(u8, u32),
    Apic(u8, u8, u32),
    Line(u8, bool),
    Input(u8),
    Take(u8),
    Time(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let ports = prop_oneof![
        0x20u16..0x22,
        0xa0u16..0xa2,
        0x40u16..0x44,
        Just(0x61),
        Just(0x60),
        Just(0x64),
        0x70u16..0x72,
        0x3f8u16..0x400,
        Just(layout::PM1_EVENT_PORT + 2),
        0x4d0u16..0x4d2,
    ];
    prop_oneof![
        4 => (ports, any::<u8>()).prop_map(|(port, value)| Step::Port(port, value)),
        2 => (0x10u8..0x90, any::<u32>()).prop_map(|(register, value)| Step::IoApic(register, value)),
        // Not the timer's registers: what is left of a count is rounded to a tick.
        3 => (any::<u8>(), 0x08u8..0x32, any::<u32>()).prop_map(|(cpu, register, value)| Step::Apic(cpu, register, value)),
        // The lines of the devices at hand are theirs.
        2 => (prop_oneof![Just(5), Just(11), 16u8..63], any::<bool>()).prop_map(|(gsi, high)| Step::Line(gsi, high)),
        1 => any::<u8>().prop_map(Step::Input),
        1 => any::<u8>().prop_map(Step::Take),
        1 => (0u32..2_000_000).prop_map(Step::Time),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// What a machine does after it was restored is what it would have done anyway.
    #[test]
    fn a_restored_machine_goes_on_as_the_saved_one(
        before in prop::collection::vec(step(), 0..80),
        after in prop::collection::vec(step(), 0..40),
    ) {
        let first = Parts::new();
        before.iter().for_each(|step| first.step(step));
        let saved = first.save();
        let second = Parts::new();
        second.clock.set_instructions(first.clock.now_ns());

        prop_assert_eq!(second.restore(&saved), Ok(()));

        prop_assert_eq!(second.save(), saved);
        for step in &after {
            first.step(step);
            second.step(step);
        }
        prop_assert_eq!(second.save(), first.save());
    }

    /// A state with wrong numbers is refused, or the machine lives with it.
    #[test]
    fn no_state_makes_the_program_fall(
        before in prop::collection::vec(step(), 0..40),
        damage in prop::collection::vec((any::<prop::sample::Index>(), number()), 1..6),
        after in prop::collection::vec(step(), 0..60),
    ) {
        let first = Parts::new();
        before.iter().for_each(|step| first.step(step));
        let (mut chip, mut legacy, lapics) = first.save();
        for (place, value) in damage {
            let mut numbers = Vec::new();
            collect_numbers(&mut chip, &mut numbers);
            collect_numbers(&mut legacy, &mut numbers);
            *numbers.swap_remove(place.index(numbers.len())) = value.into();
        }
        let second = Parts::new();
        if second.restore(&(chip, legacy, lapics)).is_ok() {
            after.iter().for_each(|step| second.step(step));
            second.save();
        }
    }
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(1), Just(u64::MAX), Just(u64::from(u32::MAX)), 0u64..256, any::<u64>()]
}

fn collect_numbers<'a>(value: &'a mut Value, numbers: &mut Vec<&'a mut Value>) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| collect_numbers(item, numbers)),
        Value::Object(fields) => fields.values_mut().for_each(|field| collect_numbers(field, numbers)),
        Value::Number(_) => numbers.push(value),
        _ => (),
    }
}

#[test]
fn a_state_with_unknown_or_missing_fields_is_refused() {
    let parts = Parts::new();
    let (chip, legacy, lapics) = parts.save();
    let mut more = chip.clone();
    more["pics"]["first"]["colour"] = 1.into();
    let mut less = legacy.clone();
    less["timer"].as_object_mut().unwrap().remove("speaker");

    assert!(parts.restore(&(more, legacy, lapics.clone())).is_err());
    assert!(parts.restore(&(chip, less, lapics)).is_err());
}

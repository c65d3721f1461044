//! The controllers together, as vCPUs and devices see them.

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;
use crate::layout::LAPIC_BASE;

const ALL: Accepts = Accepts { interrupts: true, nmi: true };
const NOTHING: Accepts = Accepts { interrupts: false, nmi: false };

struct Machine {
    chip: Arc<IrqChip>,
    clock: Arc<Clock>,
    timers: Arc<Timers>,
    wakes: Vec<Arc<AtomicUsize>>,
    ports: Bus,
    mmio: Bus,
}

impl Machine {
    fn new(vcpus: u32) -> Machine {
        let clock = Arc::new(Clock::instruction_counted(1));
        let timers = Timers::new(clock.clone());
        let chip = IrqChip::new(vcpus, clock.clone(), &timers);
        let wakes: Vec<Arc<AtomicUsize>> = (0..vcpus).map(|_| Arc::default()).collect();
        for (cpu, count) in (0..).zip(wakes.iter().cloned()) {
            chip.set_waker(cpu, Arc::new(move || _ = count.fetch_add(1, Ordering::Relaxed)));
        }
        let (mut ports, mut mmio) = (Bus::default(), Bus::default());
        chip.insert_into(&mut ports, &mut mmio).unwrap();
        Machine { chip, clock, timers, wakes, ports, mmio }
    }

    /// A machine whose local APICs are in x2APIC mode and enabled.
    fn x2apic(vcpus: u32) -> Machine {
        let machine = Machine::new(vcpus);
        for cpu in 0..vcpus {
            let base = machine.chip.msr_read(cpu, MSR_APIC_BASE).unwrap();
            assert!(machine.chip.msr_write(cpu, MSR_APIC_BASE, base | 0x400));
            machine.wrmsr(cpu, reg::SVR, 0x1ff);
        }
        machine
    }

    /// A machine whose local APICs are memory-mapped and enabled.
    fn xapic(vcpus: u32) -> Machine {
        let machine = Machine::new(vcpus);
        (0..vcpus).for_each(|cpu| machine.write(cpu, reg::SVR, 0x1ff));
        machine
    }

    fn read(&self, cpu: u32, register: u32) -> u32 {
        let mut data = [0; 4];
        assert!(self.chip.mmio_read(cpu, LAPIC_BASE + u64::from(register) * 16, &mut data));
        u32::from_le_bytes(data)
    }

    fn write(&self, cpu: u32, register: u32, value: u32) {
        assert!(self.chip.mmio_write(cpu, LAPIC_BASE + u64::from(register) * 16, &value.to_le_bytes()));
    }

    fn rdmsr(&self, cpu: u32, register: u32) -> u64 {
        self.chip.msr_read(cpu, 0x800 + register).unwrap()
    }

    fn wrmsr(&self, cpu: u32, register: u32, value: u64) {
        assert!(self.chip.msr_write(cpu, 0x800 + register, value), "register {register:#x} value {value:#x}");
    }

    fn route(&self, pin: u32, entry: u64) {
        for (half, value) in [(1, entry >> 32), (0, entry & 0xffff_ffff)] {
            self.mmio.write(IOAPIC_BASE, &(0x10 + 2 * pin + half).to_le_bytes());
            self.mmio.write(IOAPIC_BASE + 0x10, &(value as u32).to_le_bytes());
        }
    }

    fn advance(&self, ns: u64) {
        self.clock.set_instructions(self.clock.now_ns() + ns);
        self.timers.run_expired(self.clock.now_ns());
    }

    fn take(&self, cpu: u32) -> Option<Event> {
        self.chip.take_event(cpu, ALL)
    }

    fn taken_by(&self) -> Vec<(u32, Event)> {
        (0..self.chip.vcpus()).filter_map(|cpu| Some((cpu, self.take(cpu)?))).collect()
    }

    fn wakes(&self, cpu: usize) -> usize {
        self.wakes[cpu].swap(0, Ordering::Relaxed)
    }
}

const LEVEL: u64 = 1 << 15;

#[test]
fn interrupts_are_taken_by_priority_and_nest() {
    let m = Machine::x2apic(1);
    m.wrmsr(0, reg::SELF_IPI, 0x41);
    m.wrmsr(0, reg::SELF_IPI, 0x35);
    assert_eq!(m.take(0), Some(Event::Interrupt(0x41)));
    assert_eq!(m.take(0), None, "0x35 is below the one in service");
    m.wrmsr(0, reg::SELF_IPI, 0x4f);
    assert_eq!(m.take(0), None, "same class");
    m.wrmsr(0, reg::SELF_IPI, 0x50);
    assert_eq!(m.take(0), Some(Event::Interrupt(0x50)));
    m.wrmsr(0, reg::EOI, 0);
    assert_eq!(m.take(0), None);
    m.wrmsr(0, reg::EOI, 0);
    assert_eq!(m.take(0), Some(Event::Interrupt(0x4f)));
    m.wrmsr(0, reg::EOI, 0);
    assert_eq!(m.take(0), Some(Event::Interrupt(0x35)));
}

#[test]
fn task_priority_holds_interrupts_back_and_lowering_it_wakes() {
    let m = Machine::x2apic(1);
    m.chip.set_task_priority(0, 5);
    assert_eq!((m.chip.task_priority(0), m.rdmsr(0, reg::TPR)), (5, 0x50));
    m.wakes(0);
    m.wrmsr(0, reg::SELF_IPI, 0x5f);
    assert_eq!((m.take(0), m.wakes(0)), (None, 0));
    m.chip.set_task_priority(0, 4);
    assert_eq!((m.wakes(0), m.take(0)), (1, Some(Event::Interrupt(0x5f))));
}

#[test]
fn nothing_is_taken_while_interrupts_are_off() {
    let m = Machine::x2apic(1);
    m.wrmsr(0, reg::SELF_IPI, 0x41);
    m.chip.nmi(0);
    assert_eq!(m.chip.take_event(0, NOTHING), None);
    assert_eq!(m.chip.take_event(0, Accepts { interrupts: false, nmi: true }), Some(Event::Nmi));
    assert!(m.chip.has_event(0));
    assert_eq!(m.take(0), Some(Event::Interrupt(0x41)));
    assert!(!m.chip.has_event(0));
}

#[test]
fn a_level_interrupt_comes_again_after_eoi_while_its_line_is_high() {
    let m = Machine::x2apic(2);
    m.route(20, 1 << 56 | LEVEL | 0x61);
    m.chip.set_level(20, true);
    assert_eq!(m.taken_by(), [(1, Event::Interrupt(0x61))]);
    assert_eq!(m.rdmsr(1, reg::TMR + 3), 1 << 1);
    m.wrmsr(1, reg::EOI, 0);
    assert_eq!(m.taken_by(), [(1, Event::Interrupt(0x61))]);
    m.chip.set_level(20, false);
    m.wrmsr(1, reg::EOI, 0);
    assert_eq!(m.taken_by(), []);
    m.chip.set_level(20, true);
    assert_eq!(m.taken_by(), [(1, Event::Interrupt(0x61))]);
}

#[test]
fn the_legacy_timer_reaches_input_2() {
    let m = Machine::xapic(1);
    m.route(2, 0x30);
    m.chip.set_level(0, true);
    m.chip.set_level(0, false);
    assert_eq!(m.take(0), Some(Event::Interrupt(0x30)));
}

#[test]
fn the_pic_pair_interrupts_the_first_processor_over_lint0() {
    let m = Machine::new(2);
    for (port, values) in [(0x20, [0x11, 0x30, 0x04, 0x01]), (0xa0, [0x11, 0x38, 0x02, 0x01])] {
        m.ports.write(port, &values[..1]);
        values[1..].iter().for_each(|value| m.ports.write(port + 1, &[*value]));
    }
    m.ports.write(0x21, &[0]);
    m.chip.set_level(4, true);
    assert!(m.wakes(0) > 0 && m.wakes(1) == 0);
    assert_eq!(m.chip.take_event(0, NOTHING), None);
    assert_eq!(m.taken_by(), [(0, Event::Interrupt(0x34))]);
    m.chip.set_level(4, false);
    m.ports.write(0x20, &[0x20]);

    m.write(0, reg::SVR, 0x1ff);
    m.write(0, reg::LVT_LINT0, 1 << 16);
    m.chip.set_level(4, true);
    assert_eq!(m.taken_by(), [], "masked at LINT0");
    m.wakes(0);
    m.write(0, reg::LVT_LINT0, 7 << 8);
    assert!(m.wakes(0) > 0, "unmasking uncovers it");
    assert_eq!(m.taken_by(), [(0, Event::Interrupt(0x34))]);
}

#[test]
fn lint0_in_fixed_mode_makes_its_vector_of_the_pic_output() {
    let m = Machine::xapic(1);
    m.write(0, reg::LVT_LINT0, 0x77);
    m.ports.write(0x20, &[0x11]);
    [0x30, 0x04, 0x01, 0x00].iter().for_each(|value| m.ports.write(0x21, &[*value]));
    m.chip.set_level(1, true);
    assert_eq!(m.take(0), Some(Event::Interrupt(0x77)));
}

#[test]
fn x2apic_ipis_reach_whom_they_name() {
    let m = Machine::x2apic(40);
    let ipi = |destination: u64, low: u64| {
        m.wrmsr(3, reg::ICR, destination << 32 | low);
        let taken: Vec<u32> = m.taken_by().into_iter().map(|(cpu, _)| cpu).collect();
        taken.iter().for_each(|cpu| m.wrmsr(*cpu, reg::EOI, 0));
        taken
    };
    assert_eq!(ipi(17, 0x41), [17]);
    assert_eq!(ipi(99, 0x42), [] as [u32; 0]);
    assert_eq!(ipi(0xffff_ffff, 0x43).len(), 40);
    assert_eq!(ipi(1 << 16 | 0b101, 1 << 11 | 0x44), [16, 18]);
    assert_eq!(ipi(0, 1 << 18 | 0x45), [3]);
    assert_eq!(ipi(0, 2 << 18 | 0x46).len(), 40);
    let others = ipi(0, 3 << 18 | 0x66);
    assert!(others.len() == 39 && !others.contains(&3));
}

#[test]
fn xapic_logical_destinations_are_flat_or_clustered() {
    let m = Machine::xapic(4);
    for cpu in 0..4 {
        m.write(cpu, reg::LDR, 1 << (24 + cpu));
    }
    let ipi = |destination: u32, low: u32| {
        m.write(0, reg::ICR_HIGH, destination << 24);
        m.write(0, reg::ICR, low);
        m.taken_by().into_iter().map(|(cpu, _)| cpu).collect::<Vec<_>>()
    };
    assert_eq!(ipi(0b1010, 1 << 11 | 0x41), [1, 3]);
    assert_eq!(ipi(2, 0x51), [2]);
    assert_eq!(ipi(0xff, 0x61), [0, 1, 2, 3]);
    for cpu in 0..4 {
        m.write(cpu, reg::DFR, 0x0fff_ffff);
        m.write(cpu, reg::LDR, (cpu / 2) << 28 | 1 << (24 + cpu % 2));
    }
    assert_eq!(ipi(0x13, 1 << 11 | 0x71), [2, 3]);
    assert_eq!(ipi(0xf1, 1 << 11 | 0x81), [0, 2]);
}

#[test]
fn lowest_priority_picks_the_least_busy_and_takes_turns() {
    let m = Machine::x2apic(4);
    m.chip.set_task_priority(0, 3);
    m.chip.set_task_priority(1, 3);
    let mut seen = Vec::new();
    for _ in 0..8 {
        m.wrmsr(0, reg::ICR, 0xf << 32 | 1 << 11 | 1 << 8 | 0x41);
        let taken = m.taken_by();
        assert_eq!(taken.len(), 1);
        m.wrmsr(taken[0].0, reg::EOI, 0);
        seen.push(taken[0].0);
    }
    assert!(seen.contains(&2) && seen.contains(&3) && !seen.contains(&0) && !seen.contains(&1), "{seen:?}");
}

#[test]
fn init_and_startup_bring_up_a_processor() {
    let m = Machine::x2apic(2);
    m.wrmsr(1, reg::SELF_IPI, 0x41);
    m.wrmsr(0, reg::ICR, 1 << 32 | 0xc500);
    m.wrmsr(0, reg::ICR, 1 << 32 | 0x8500);
    m.wrmsr(0, reg::ICR, 1 << 32 | 0x69a);
    m.wrmsr(0, reg::ICR, 1 << 32 | 0x69b);
    assert_eq!(m.chip.take_event(1, NOTHING), Some(Event::Init));
    assert_eq!(m.chip.take_event(1, NOTHING), Some(Event::Startup(0x9a)));
    assert_eq!(m.take(1), None, "INIT dropped what was pending");
    assert_eq!(m.rdmsr(1, reg::SVR), 0xff);
    assert!(m.wakes(1) > 0);
}

#[test]
fn nmi_ipis_pass_even_a_disabled_apic() {
    let m = Machine::xapic(2);
    m.write(1, reg::SVR, 0xff);
    m.write(0, reg::ICR_HIGH, 1 << 24);
    m.write(0, reg::ICR, 0x41);
    m.write(0, reg::ICR, 0x400);
    assert_eq!((m.take(1), m.take(1)), (Some(Event::Nmi), None));
}

#[test]
fn the_one_shot_timer_counts_down_and_fires_once() {
    let m = Machine::xapic(1);
    m.write(0, reg::LVT_TIMER, 0xec);
    m.write(0, reg::TIMER_DIVIDE, 0x3);
    m.write(0, reg::TIMER_INITIAL, 1000);
    m.advance(8_000);
    assert_eq!(m.read(0, reg::TIMER_CURRENT), 500);
    m.advance(7_999);
    assert_eq!(m.take(0), None);
    m.advance(1);
    assert_eq!(m.take(0), Some(Event::Interrupt(0xec)));
    assert_eq!((m.read(0, reg::TIMER_CURRENT), m.timers.next_deadline()), (0, None));
}

#[test]
fn the_periodic_timer_keeps_its_phase() {
    let m = Machine::xapic(1);
    m.write(0, reg::LVT_TIMER, 1 << 17 | 0xec);
    m.write(0, reg::TIMER_DIVIDE, 0xb);
    m.write(0, reg::TIMER_INITIAL, 1_000_000);
    m.advance(1_000_000);
    assert_eq!(m.take(0), Some(Event::Interrupt(0xec)));
    m.write(0, reg::EOI, 0);
    m.advance(2_500_000);
    assert_eq!(m.take(0), Some(Event::Interrupt(0xec)));
    assert_eq!(m.timers.next_deadline(), Some(4_000_000), "missed periods merge, the phase stays");
    m.write(0, reg::TIMER_INITIAL, 0);
    assert_eq!(m.timers.next_deadline(), None);
}

#[test]
fn a_tiny_period_cannot_spin_the_host() {
    let m = Machine::xapic(1);
    m.write(0, reg::LVT_TIMER, 1 << 17 | 0xec);
    m.write(0, reg::TIMER_INITIAL, 1);
    m.advance(1_000);
    assert_eq!(m.timers.next_deadline(), Some(1_000 + lapic::MIN_PERIOD_NS));
}

#[test]
fn the_tsc_deadline_timer_fires_at_its_tick_and_disarms() {
    let m = Machine::x2apic(1);
    assert!(m.chip.msr_write(0, MSR_TSC_DEADLINE, 500));
    assert_eq!(m.chip.msr_read(0, MSR_TSC_DEADLINE), Some(0), "ignored in another mode");
    m.wrmsr(0, reg::LVT_TIMER, 2 << 17 | 0xec);
    assert!(m.chip.msr_write(0, MSR_TSC_DEADLINE, 500));
    m.advance(499);
    assert_eq!(m.take(0), None);
    m.advance(1);
    assert_eq!((m.take(0), m.chip.msr_read(0, MSR_TSC_DEADLINE)), (Some(Event::Interrupt(0xec)), Some(0)));
    m.wrmsr(0, reg::EOI, 0);

    m.chip.msr_write(0, MSR_TSC_DEADLINE, 100);
    assert_eq!(m.take(0), Some(Event::Interrupt(0xec)), "a deadline in the past fires at once");
    m.wrmsr(0, reg::EOI, 0);

    m.chip.set_tsc_adjust(0, 1000_u64.wrapping_neg());
    m.chip.msr_write(0, MSR_TSC_DEADLINE, 200);
    assert_eq!(m.timers.next_deadline(), Some(1200), "deadlines are in the adjusted counter");
    m.chip.msr_write(0, MSR_TSC_DEADLINE, 0);
    assert_eq!(m.timers.next_deadline(), None);
}

#[test]
fn apic_base_allows_only_the_architected_transitions() {
    let m = Machine::new(2);
    let base = m.chip.msr_read(0, MSR_APIC_BASE).unwrap();
    assert_eq!((base, m.chip.msr_read(1, MSR_APIC_BASE)), (LAPIC_BASE | 0x900, Some(LAPIC_BASE | 0x800)));
    assert_eq!(m.chip.msr_read(0, 0x802), None, "no x2APIC MSRs in xAPIC mode");
    for (value, allowed) in [
        (LAPIC_BASE | 0x500, false),
        (base | 1 << 60, false),
        (base | 0x400, true),
        (base, false),
        (LAPIC_BASE | 0x100, true),
        (base | 0x400, false),
        (base, true),
    ] {
        assert_eq!(m.chip.msr_write(0, MSR_APIC_BASE, value), allowed, "{value:#x}");
    }
    assert!(m.chip.msr_write(0, MSR_APIC_BASE, 0x1234_5000 | 0x900));
    let mut data = [0; 4];
    assert!(!m.chip.mmio_read(0, LAPIC_BASE + 0x30, &mut data));
    assert!(m.chip.mmio_read(0, 0x1234_5030, &mut data) && data[0] == 0x14);
    assert!(m.chip.mmio_read(1, LAPIC_BASE + 0x20, &mut data) && data[3] == 1);
}

#[test]
fn x2apic_refuses_reserved_bits_and_missing_registers() {
    let m = Machine::x2apic(1);
    for (msr, value) in [(0x802, 0), (0x80e, 0), (0x831, 0), (0x80b, 1), (0x828, 1), (0x808, 0x100), (0x83f, 1 << 32)] {
        assert!(!m.chip.msr_write(0, msr, value), "{msr:#x}");
    }
    for msr in [0x80b, 0x80e, 0x831, 0x83f, 0x8ff] {
        assert_eq!(m.chip.msr_read(0, msr), None, "{msr:#x}");
    }
    assert_eq!(m.rdmsr(0, reg::LDR), 1);
}

#[test]
fn illegal_vectors_are_noted_and_reported() {
    let m = Machine::xapic(1);
    m.write(0, reg::LVT_ERROR, 0xfe);
    m.write(0, reg::ICR, 1 << 18 | 0x0f);
    assert_eq!(m.take(0), Some(Event::Interrupt(0xfe)));
    assert_eq!(m.read(0, reg::ESR), 0);
    m.write(0, reg::ESR, 0);
    assert_eq!(m.read(0, reg::ESR), 1 << 5);
    m.write(0, reg::ESR, 0);
    assert_eq!(m.read(0, reg::ESR), 0);
}

#[test]
fn message_signalled_interrupts_are_edges() {
    let m = Machine::xapic(2);
    m.chip.send_msi(0xfee0_0000 | 1 << 12, 0x8041);
    assert_eq!(m.taken_by(), [(1, Event::Interrupt(0x41))]);
    assert_eq!(m.read(1, reg::TMR + 2), 0);
}

#[test]
fn concurrent_senders_lose_no_interrupt() {
    let m = Machine::x2apic(3);
    let rounds = 2000;
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(300);
    let taken = [AtomicUsize::new(0), AtomicUsize::new(0)];
    std::thread::scope(|scope| {
        for (sender, taken) in (1..).zip(&taken) {
            let chip = &m.chip;
            // Each sender waits until its interrupt was taken, so every single one must arrive.
            scope.spawn(move || {
                for round in 0..rounds {
                    assert!(chip.msr_write(sender, 0x830, u64::from(0x40 + 0x10 * sender)));
                    while taken.load(Ordering::Acquire) == round && std::time::Instant::now() < limit {
                        std::thread::yield_now();
                    }
                }
            });
        }
        while taken.iter().any(|t| t.load(Ordering::Relaxed) < rounds) && std::time::Instant::now() < limit {
            match m.take(0) {
                Some(Event::Interrupt(vector)) => {
                    m.wrmsr(0, reg::EOI, 0);
                    taken[usize::from(vector / 0x10 - 5)].fetch_add(1, Ordering::Release);
                }
                _ => std::thread::yield_now(),
            }
        }
    });
    assert_eq!(taken.map(AtomicUsize::into_inner), [rounds, rounds]);
}

proptest! {
    #[test]
    fn no_sequence_of_register_accesses_panics(accesses in prop::collection::vec((0..6_u8, any::<u16>(), any::<u64>()), 1..200)) {
        let m = Machine::new(3);
        for (kind, place, value) in accesses {
            let cpu = u32::from(place) % 4;
            match kind {
                0 => _ = m.chip.mmio_write(cpu, LAPIC_BASE + u64::from(place & 0xff0), &value.to_le_bytes()),
                1 => {
                    m.chip.msr_write(cpu, 0x800 + u32::from(place >> 4) % 0x40, value & 0xffff_ffff);
                    let base = if value & 1 == 0 { LAPIC_BASE | 0x800 } else { value };
                    m.chip.msr_write(cpu, MSR_APIC_BASE, base);
                    m.chip.msr_write(cpu, MSR_TSC_DEADLINE, value >> 32);
                }
                2 => m.mmio.write(IOAPIC_BASE + u64::from(place & 0x50), &(value as u32).to_le_bytes()),
                3 => m.ports.write([0x20, 0x21, 0xa0, 0xa1, 0x4d0][usize::from(place % 5)], &[value as u8]),
                4 => m.chip.set_level(u32::from(place % 70), value & 1 != 0),
                _ => m.advance(value % 100_000),
            }
            for cpu in 0..3 {
                m.chip.take_event(cpu, Accepts { interrupts: value & 2 != 0, nmi: true });
                let mut data = [0; 8];
                m.chip.mmio_read(cpu, LAPIC_BASE + u64::from(place & 0xfff), &mut data[..4]);
            }
            m.mmio.read(IOAPIC_BASE + u64::from(place & 0x13), &mut [0; 4]);
            m.ports.read(u64::from(0x20 + place % 2), &mut [0]);
        }
    }
}

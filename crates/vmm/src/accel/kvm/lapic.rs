//! A local APIC that the kernel keeps, to and from [`LapicState`] (`KVM_GET_LAPIC`: the registers of SDM vol. 3A table 11-1
//! at their places, the counter's present value among them).

use kvm_bindings::kvm_lapic_state;

use crate::irqchip::LapicState;

const ID: usize = 0x20;
const TPR: usize = 0x80;
const LDR: usize = 0xd0;
const DFR: usize = 0xe0;
const SVR: usize = 0xf0;
const ISR: usize = 0x100;
const TMR: usize = 0x180;
const IRR: usize = 0x200;
const ESR: usize = 0x280;
const ICR: usize = 0x300;
const ICR_HIGH: usize = 0x310;
/// Timer, thermal sensor, performance counters, LINT0, LINT1, error.
const LVT: [usize; 6] = [0x320, 0x330, 0x340, 0x350, 0x360, 0x370];
const TIMER_INITIAL: usize = 0x380;
const TIMER_CURRENT: usize = 0x390;
const TIMER_DIVIDE: usize = 0x3e0;
/// Timer mode: 0 is one-shot.
const TIMER_MODE: u32 = 3 << 17;
const BASE_X2APIC: u64 = 1 << 10;

fn get(page: &kvm_lapic_state, at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|byte| page.regs[at + byte] as u8))
}

fn put(page: &mut kvm_lapic_state, at: usize, value: u32) {
    for (place, byte) in page.regs[at..at + 4].iter_mut().zip(value.to_le_bytes()) {
        *place = byte as _;
    }
}

fn vectors(page: &kvm_lapic_state, at: usize) -> [u32; 8] {
    std::array::from_fn(|word| get(page, at + 16 * word))
}

fn put_vectors(page: &mut kvm_lapic_state, at: usize, words: &[u32; 8]) {
    for (word, value) in words.iter().enumerate() {
        put(page, at + 16 * word, *value);
    }
}

/// What the page holds; base, TSC deadline and events on their way are elsewhere.
pub(super) fn from_page(page: &kvm_lapic_state) -> LapicState {
    LapicState {
        tpr: get(page, TPR) as u8,
        ldr: get(page, LDR),
        dfr: get(page, DFR),
        svr: get(page, SVR),
        esr: get(page, ESR),
        icr: u64::from(get(page, ICR)) | u64::from(get(page, ICR_HIGH)) << 32,
        lvt: LVT.map(|at| get(page, at)),
        irr: vectors(page, IRR),
        isr: vectors(page, ISR),
        tmr: vectors(page, TMR),
        timer_initial: get(page, TIMER_INITIAL),
        timer_divide: get(page, TIMER_DIVIDE),
        timer_current: get(page, TIMER_CURRENT),
        ..LapicState::default()
    }
}

/// Puts the state of vCPU `id` into a page whose other registers stay.
pub(super) fn put_into_page(state: &LapicState, id: u32, page: &mut kvm_lapic_state) {
    let x2apic = state.base & BASE_X2APIC != 0;
    put(page, ID, if x2apic { id } else { id << 24 });
    put(page, TPR, state.tpr.into());
    // In x2APIC mode the kernel derives the logical identifier, and refuses another.
    put(page, LDR, if x2apic { (id >> 4) << 16 | 1 << (id & 0xf) } else { state.ldr });
    put(page, DFR, state.dfr);
    put(page, SVR, state.svr);
    put(page, ESR, state.esr);
    put(page, ICR, state.icr as u32);
    put(page, ICR_HIGH, (state.icr >> 32) as u32);
    LVT.iter().zip(&state.lvt).for_each(|(at, entry)| put(page, *at, *entry));
    put_vectors(page, IRR, &state.irr);
    put_vectors(page, ISR, &state.isr);
    put_vectors(page, TMR, &state.tmr);
    // The kernel starts the counter with what is left of it. One that has run out once it would start for another
    // interrupt, unless it has never been given a count.
    let done = state.lvt[0] & TIMER_MODE == 0 && state.timer_current == 0;
    put(page, TIMER_INITIAL, if done { 0 } else { state.timer_initial });
    put(page, TIMER_CURRENT, state.timer_current);
    put(page, TIMER_DIVIDE, state.timer_divide);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_survives_the_way_there_and_back() {
        let state = LapicState {
            tpr: 0x20,
            ldr: 0x0200_0000,
            dfr: u32::MAX,
            svr: 0x1ff,
            esr: 0x40,
            icr: 0x0300_0000_0000_4041,
            lvt: [0x2_0051, 0x1_0000, 0x1_0000, 0x700, 0x400, 0x1_0000],
            irr: [0, 2, 0, 0, 0, 0, 0, 1 << 31],
            isr: [0, 0, 4, 0, 0, 0, 0, 0],
            tmr: [0, 0, 0, 8, 0, 0, 0, 0],
            timer_initial: 100_000,
            timer_divide: 0xb,
            timer_current: 777,
            ..LapicState::default()
        };
        let mut page = kvm_lapic_state::default();
        put_into_page(&state, 1, &mut page);
        assert_eq!(from_page(&page), state);
        assert_eq!(get(&page, ID), 1 << 24);
    }

    #[test]
    fn a_timer_that_has_run_out_is_not_started_again() {
        let mut page = kvm_lapic_state::default();
        let state = LapicState { timer_initial: 5, ..LapicState::default() };
        put_into_page(&state, 0, &mut page);
        assert_eq!(get(&page, TIMER_INITIAL), 0);
    }
}

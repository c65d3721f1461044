//! Stopping vCPUs in the middle of everything.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::accel::testing::{Bench, DATA, IRETQ, accelerators, apic_write, code, say, wait_for, with_idt};
use crate::accel::{Vcpu, VcpuExit};
use crate::layout::LAPIC_BASE;

const TIMER: u8 = 0x41;
const PING: u8 = 0x42;
const PINGS: u64 = DATA;
const TICKS: u64 = DATA + 0x100;

/// `inc qword [rbx * 8 + address]`
fn count(address: u64) -> Vec<u8> {
    code(&[&[0x48, 0xff, 0x04, 0xdd], &(address as u32).to_le_bytes()])
}

/// Two vCPUs hand one interrupt to and fro, under timers of their own. One that is lost never comes back.
#[test]
fn a_thousand_stops_lose_neither_timers_nor_interrupts_between_vcpus() {
    const STOPS: u64 = 1000;
    let program = code(&[
        &apic_write(0xf0, 0x1ff),
        &apic_write(0x3e0, 0xb),
        &apic_write(0x320, 0x2_0000 | u32::from(TIMER)),
        &apic_write(0x380, 1_000_000),
        &say(b'r'),
        // sti; again: hlt; jmp again
        &[0xfb, 0xf4, 0xeb, 0xfd],
    ]);
    // The other vCPU's place in the interrupt command register is in R14: mov edi, register; mov [rdi], r14d
    let high = (LAPIC_BASE as u32 + 0x310).to_le_bytes();
    let reply = code(&[&[0xbf], &high, &[0x44, 0x89, 0x37], &apic_write(0x300, 0x4000 | u32::from(PING))]);
    for (name, accelerator) in accelerators() {
        let bench = Bench::on(&*accelerator, &program, 2);
        bench.handle(TIMER, &code(&[&count(TICKS), &apic_write(0xb0, 0), &IRETQ]));
        bench.handle(PING, &code(&[&count(PINGS), &apic_write(0xb0, 0), &reply, &IRETQ]));
        let mut vcpus: Vec<_> = (0..2).map(|id| bench.start_vcpu(id)).collect();
        for (id, vcpu) in (0..).zip(&mut vcpus) {
            with_idt(vcpu);
            let mut state = vcpu.state();
            state.gpr[14] = (1 - id) << 24;
            vcpu.set_state(&state);
        }
        let handles: Vec<_> = vcpus.iter().map(|vcpu| vcpu.handle()).collect();
        let (stops, done) = ([AtomicU64::new(0), AtomicU64::new(0)], AtomicBool::new(false));
        let run = |mut vcpu: Box<dyn Vcpu>, stops: &AtomicU64| {
            while !done.load(Ordering::SeqCst) {
                assert_eq!(vcpu.run(), VcpuExit::Stopped);
                stops.fetch_add(1, Ordering::SeqCst);
            }
        };
        std::thread::scope(|scope| {
            for (vcpu, stops) in vcpus.into_iter().zip(&stops) {
                scope.spawn(move || run(vcpu, stops));
            }
            wait_for(|| bench.said().len() == 2);
            bench.board.irqchip().send_msi(LAPIC_BASE, PING.into());
            let start = Instant::now();
            for _ in 0..STOPS {
                for (handle, stops) in handles.iter().zip(&stops) {
                    let before = stops.load(Ordering::SeqCst);
                    handle.stop();
                    while stops.load(Ordering::SeqCst) == before {
                        std::thread::yield_now();
                    }
                }
            }
            println!("{name}: {:?} a stop", start.elapsed() / (2 * STOPS as u32));
            let places = [PINGS, PINGS + 8, TICKS, TICKS + 8];
            let before = places.map(|place| bench.get(place));
            wait_for(|| places.iter().zip(before).all(|(place, before)| bench.get(*place) > before + 3));
            done.store(true, Ordering::SeqCst);
            handles.iter().for_each(|handle| handle.stop());
        });
        let pings = [bench.get(PINGS), bench.get(PINGS + 8)];
        assert!(pings[0].abs_diff(pings[1]) <= 1, "{name}: {pings:?}");
    }
}

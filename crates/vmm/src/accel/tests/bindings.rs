//! Notifications and interrupts that do not pass through this process's threads.

use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::accel::testing::{Bench, DEVICE, IRETQ, UD2, accelerators, apic_write, code, say, wait_for, with_idt};
use crate::accel::{Accelerator, Vcpu, VcpuExit, Vm};
use crate::irqchip::Msi;
use crate::layout::LAPIC_BASE;

fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

/// `mov dword [DEVICE], value`
fn device_write(value: u32) -> Vec<u8> {
    code(&[&[0xc7, 0x04, 0x25], &(DEVICE as u32).to_le_bytes(), &value.to_le_bytes()])
}

#[test]
fn a_bound_notification_signals_its_event_and_no_other_write_does() {
    // Value 1 twice, value 2, value 1 in two bytes.
    let narrow = code(&[&[0x66, 0xc7, 0x04, 0x25], &(DEVICE as u32).to_le_bytes(), &[1, 0]]);
    let program = code(&[&device_write(1), &device_write(1), &device_write(2), &narrow, &UD2]);
    for (name, accelerator) in accelerators() {
        let bench = Bench::on(&*accelerator, &program, 1);
        let event = event();
        let bound = bench.vm.bind_notification(DEVICE, 1, &event).unwrap();
        assert_eq!(bench.start().run(), VcpuExit::Shutdown, "{name}");
        let signals = event.read().unwrap_or(0);
        let expected = if bound {
            (2, [2, 0, 0, 0, 1, 0].to_vec())
        } else {
            (0, [1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 0].to_vec())
        };
        assert_eq!((signals, bench.said()), expected, "{name}, bound: {bound}");
    }
}

/// Software-enables the local APIC, opens interrupts and sleeps for ever; `a` and `b` are said for two vectors.
const FIRST: u8 = 0x41;
const SECOND: u8 = 0x42;

fn sleeper(accelerator: &dyn Accelerator) -> (Bench<Box<dyn Vm>>, Box<dyn Vcpu>) {
    // sti; again: hlt; jmp again
    let program = code(&[&apic_write(0xf0, 0x1ff), &say(b'0'), &[0xfb, 0xf4, 0xeb, 0xfd]]);
    let bench = Bench::on(accelerator, &program, 1);
    for (vector, byte) in [(FIRST, b'a'), (SECOND, b'b')] {
        bench.handle(vector, &code(&[&say(byte), &apic_write(0xb0, 0), &IRETQ]));
    }
    let mut vcpu = bench.start();
    with_idt(&mut vcpu);
    (bench, vcpu)
}

#[test]
fn a_bound_event_is_an_interrupt_until_it_is_unbound() {
    let msi = |vector: u8| Msi { address: LAPIC_BASE, data: vector.into() };
    for (name, accelerator) in accelerators() {
        let (bench, mut vcpu) = sleeper(&*accelerator);
        let event = event();
        let Some(binding) = bench.vm.bind_message(msi(FIRST), &event).unwrap() else {
            println!("{name}: somebody must listen");
            continue;
        };
        let handle = vcpu.handle();
        let runner = std::thread::spawn(move || vcpu.run());
        wait_for(|| bench.said() == b"0");
        event.write(1).unwrap();
        wait_for(|| bench.said() == b"0a");
        bench.vm.change_message(binding, msi(SECOND)).unwrap();
        event.write(1).unwrap();
        wait_for(|| bench.said() == b"0ab");
        bench.vm.unbind_message(binding, &event).unwrap();
        event.write(1).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(bench.said(), b"0ab", "{name}");
        assert_eq!(event.read().unwrap(), 1, "{name}: the signal is left to whoever listens");
        handle.stop();
        assert_eq!(runner.join().unwrap(), VcpuExit::Stopped, "{name}");
    }
}

/// Figures, not promises: what a notification costs with and without a return to this process.
#[test]
#[ignore = "a measurement"]
fn the_cost_of_a_notification() {
    const COUNT: u64 = 20_000;
    // again: mov dword [DEVICE], 1; dec rcx; jnz again
    let program = code(&[&device_write(1), &[0x48, 0xff, 0xc9, 0x75, 0xf0], &UD2]);
    for (name, accelerator) in accelerators() {
        for bind in [false, true] {
            let bench = Bench::on(&*accelerator, &program, 1);
            let event = event();
            if bind && !bench.vm.bind_notification(DEVICE, 1, &event).unwrap() {
                continue;
            }
            let mut vcpu = bench.start();
            let mut state = vcpu.state();
            state.gpr[1] = COUNT;
            vcpu.set_state(&state);
            let start = Instant::now();
            assert_eq!(vcpu.run(), VcpuExit::Shutdown);
            let each = start.elapsed() / COUNT as u32;
            println!("{name}, {}: {each:?} a notification", if bind { "bound" } else { "through the board" });
        }
    }
}

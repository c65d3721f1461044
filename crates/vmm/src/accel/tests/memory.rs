//! Memory that comes and goes under the vCPUs.

use std::time::Duration;

use queztl_guest_memory::{PAGE_SIZE, PLUG_UNIT, discard, plug, unplug};
use queztl_soft_cpu::state::gpr;
use vm_memory::GuestAddress;

use crate::accel::testing::{Bench, DATA, HOTPLUG, HOTPLUG_LINEAR, UD2, accelerators, code, long_mode, wait_for};
use crate::accel::{Vcpu, VcpuExit};

/// `mov edi, address; mov ebx, 0x7777; mov rax, [rdi]; mov [rdi], rbx; mov rcx, [rdi]; ud2`
fn read_write_read(address: u64) -> Vec<u8> {
    let address = (address as u32).to_le_bytes();
    code(&[&[0xbf], &address, &[0xbb, 0x77, 0x77, 0, 0, 0x48, 0x8b, 0x07, 0x48, 0x89, 0x1f, 0x48, 0x8b, 0x0f], &UD2])
}

/// What a guest with that program reads before and after it writes.
fn reads(vcpu: &mut Box<dyn Vcpu>) -> [u64; 2] {
    let state = long_mode(vcpu.state());
    vcpu.set_state(&state);
    assert_eq!(vcpu.run(), VcpuExit::Shutdown);
    let state = vcpu.state();
    [state.gpr[gpr::RAX], state.gpr[gpr::RCX]]
}

#[test]
fn memory_that_is_given_back_reads_as_zeroes() {
    for (name, accelerator) in accelerators() {
        let bench = Bench::on(&*accelerator, &read_write_read(DATA), 1);
        let mut vcpu = bench.start();
        assert_eq!(reads(&mut vcpu), [0, 0x7777], "{name}");
        assert_eq!(reads(&mut vcpu), [0x7777, 0x7777], "{name}");
        discard(bench.ram.memory(), GuestAddress(DATA), PAGE_SIZE).unwrap();
        assert_eq!(reads(&mut vcpu), [0, 0x7777], "{name}");
    }
}

#[test]
fn memory_is_there_while_it_is_plugged_and_takes_nothing_of_the_host_otherwise() {
    for (name, accelerator) in accelerators() {
        let bench = Bench::with_hotplug(&*accelerator, &read_write_read(HOTPLUG_LINEAR + PLUG_UNIT));
        let (memory, block) = (bench.ram.memory(), GuestAddress(HOTPLUG + PLUG_UNIT));
        let mut vcpu = bench.start();
        let ones = [u64::MAX; 2];
        assert_eq!(reads(&mut vcpu), ones, "{name}: nothing is plugged");
        plug(memory, GuestAddress(HOTPLUG), PLUG_UNIT).unwrap();
        assert_eq!(reads(&mut vcpu), ones, "{name}: another block is plugged");
        plug(memory, block, PLUG_UNIT).unwrap();
        assert_eq!(reads(&mut vcpu), [0, 0x7777], "{name}");
        unplug(memory, block, PLUG_UNIT).unwrap();
        discard(memory, block, PLUG_UNIT).unwrap();
        let before = bench.ram.allocated_bytes().unwrap();
        assert_eq!(reads(&mut vcpu), ones, "{name}: it is unplugged again");
        assert_eq!(bench.ram.allocated_bytes().unwrap(), before, "{name}");
        plug(memory, block, PLUG_UNIT).unwrap();
        assert_eq!(reads(&mut vcpu), [0, 0x7777], "{name}: it comes back empty");
    }
}

#[test]
fn a_vcpu_that_goes_on_writing_to_unplugged_memory_takes_nothing_of_the_host() {
    // mov edi, address; again: mov [rdi], rdi; jmp again
    let program = code(&[&[0xbf], &(HOTPLUG_LINEAR as u32).to_le_bytes(), &[0x48, 0x89, 0x3f, 0xeb, 0xfb]]);
    for (name, accelerator) in accelerators() {
        let bench = Bench::with_hotplug(&*accelerator, &program);
        let (memory, block) = (bench.ram.memory(), GuestAddress(HOTPLUG));
        plug(memory, block, PLUG_UNIT).unwrap();
        let mut vcpu = bench.start();
        let handle = vcpu.handle();
        std::thread::scope(|scope| {
            let runner = scope.spawn(move || vcpu.run());
            for _ in 0..3 {
                wait_for(|| bench.get(HOTPLUG) == HOTPLUG_LINEAR);
                unplug(memory, block, PLUG_UNIT).unwrap();
                discard(memory, block, PLUG_UNIT).unwrap();
                let after = bench.ram.allocated_bytes().unwrap();
                std::thread::sleep(Duration::from_millis(5));
                assert_eq!(bench.ram.allocated_bytes().unwrap(), after, "{name}");
                plug(memory, block, PLUG_UNIT).unwrap();
            }
            handle.stop();
            assert_eq!(runner.join().unwrap(), VcpuExit::Stopped, "{name}");
        });
    }
}

#[test]
fn the_dirty_log_has_the_writes_to_plugged_memory() {
    for (name, accelerator) in accelerators() {
        let bench = Bench::with_hotplug(&*accelerator, &read_write_read(HOTPLUG_LINEAR + PLUG_UNIT + PAGE_SIZE));
        let mut vcpu = bench.start();
        plug(bench.ram.memory(), GuestAddress(HOTPLUG + PLUG_UNIT), PLUG_UNIT).unwrap();
        bench.vm.start_dirty_log().unwrap();
        assert_eq!(reads(&mut vcpu), [0, 0x7777], "{name}");
        let log = bench.vm.take_dirty_log().unwrap();
        let written: Vec<u64> =
            log.iter().flat_map(|run| run.pages().collect::<Vec<_>>()).filter(|p| *p >= HOTPLUG).collect();
        assert_eq!(written, [HOTPLUG + PLUG_UNIT + PAGE_SIZE], "{name}");
        assert!(log.iter().filter(|run| run.start == HOTPLUG).count() == 1, "{name}: one entry for the region");
    }
}

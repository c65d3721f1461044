//! The dirty log.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use queztl_guest_memory::PAGE_SIZE;

use crate::accel::testing::{Bench, DATA, RAM_BYTES, UD2, accelerators, code};
use crate::accel::{DirtyPages, VcpuExit};

fn pages(log: &[DirtyPages]) -> BTreeSet<u64> {
    log.iter().flat_map(|run| run.pages().collect::<Vec<_>>()).collect()
}

#[test]
fn the_log_has_the_pages_that_vcpus_and_devices_write_and_no_others() {
    // mov [0x12000], eax; mov [0x15000], eax
    let program = code(&[&[0x89, 0x04, 0x25, 0, 0x20, 1, 0], &[0x89, 0x04, 0x25, 0, 0x50, 1, 0], &UD2]);
    for (name, accelerator) in accelerators() {
        let bench = Bench::on(&*accelerator, &program, 1);
        let mut vcpu = bench.start();
        bench.put(0x1_9000, &[1]);
        assert_eq!(bench.vm.take_dirty_log().unwrap(), [], "{name}: there is no log yet");

        bench.vm.start_dirty_log().unwrap();
        bench.put(0x1_7000, &[1]);
        assert_eq!(vcpu.run(), VcpuExit::Shutdown);
        let log = bench.vm.take_dirty_log().unwrap();
        let written: BTreeSet<u64> = pages(&log).into_iter().filter(|page| *page >= DATA).collect();
        assert_eq!(written, BTreeSet::from([0x1_2000, 0x1_5000, 0x1_7000]), "{name}");
        assert_eq!(log[0].start, 0);

        assert_eq!(pages(&bench.vm.take_dirty_log().unwrap()), BTreeSet::new(), "{name}: taking empties the log");
        bench.put(0x1_7000, &[2]);
        assert_eq!(pages(&bench.vm.take_dirty_log().unwrap()), BTreeSet::from([0x1_7000]), "{name}");
        bench.put(0x1_7000, &[3]);
        bench.vm.start_dirty_log().unwrap();
        assert_eq!(pages(&bench.vm.take_dirty_log().unwrap()), BTreeSet::new(), "{name}: a new log is empty");
        bench.vm.stop_dirty_log().unwrap();
        bench.put(0x1_7000, &[4]);
        assert_eq!(bench.vm.take_dirty_log().unwrap(), [], "{name}: the log has ended");
    }
}

/// A copy is made the way a migration makes it, while vCPUs and a device write: log, then pages. Whatever is lost on the
/// way makes the copy differ at the end.
#[test]
fn no_write_is_lost_while_the_log_is_taken() {
    const VCPUS: u32 = 2;
    const ROUNDS: u64 = 200;
    // Each vCPU counts in every eighth byte of its pages, on and on:
    // again: mov rdi, r12; next: inc qword [rdi]; add rdi, 0x208; cmp rdi, r13; jb next; jmp again
    let program = [
        0x4c, 0x89, 0xe7, 0x48, 0xff, 0x07, 0x48, 0x81, 0xc7, 0x08, 0x02, 0, 0, 0x4c, 0x39, 0xef, 0x72, 0xf1, 0xeb,
        0xec,
    ];
    const FIRST: u64 = 0x10_0000;
    const SHARE: u64 = 32 * PAGE_SIZE;
    for (name, accelerator) in accelerators() {
        let bench = Bench::on(&*accelerator, &program, VCPUS);
        let mut vcpus: Vec<_> = (0..VCPUS).map(|id| bench.start_vcpu(id)).collect();
        for (id, vcpu) in (0_u64..).zip(&mut vcpus) {
            let mut state = vcpu.state();
            (state.gpr[12], state.gpr[13]) = (FIRST + id * SHARE, FIRST + (id + 1) * SHARE - 0x208);
            vcpu.set_state(&state);
        }
        let handles: Vec<_> = vcpus.iter().map(|vcpu| vcpu.handle()).collect();
        bench.vm.start_dirty_log().unwrap();
        let mut copy = vec![0; RAM_BYTES as usize];
        read(&bench, 0, &mut copy);
        let mut seen = BTreeSet::new();
        std::thread::scope(|scope| {
            let runners: Vec<_> = vcpus
                .into_iter()
                .map(|mut vcpu| {
                    scope.spawn(move || {
                        let exit = vcpu.run();
                        (vcpu, exit)
                    })
                })
                .collect();
            let start = Instant::now();
            let both_wrote = |seen: &BTreeSet<u64>| seen.contains(&FIRST) && seen.contains(&(FIRST + SHARE));
            for round in 0_u64.. {
                bench.put(FIRST + 3 * SHARE + round % 16 * PAGE_SIZE, &round.to_le_bytes());
                seen.extend(take_and_copy(&bench, &mut copy));
                let late = start.elapsed() > Duration::from_secs(20);
                let long = round >= ROUNDS && start.elapsed() > Duration::from_millis(200);
                if late || (long && both_wrote(&seen)) {
                    println!("{name}: {round} rounds in {:?}", start.elapsed());
                    break;
                }
            }
            handles.iter().for_each(|handle| handle.stop());
            let vcpus: Vec<_> = runners.into_iter().map(|runner| runner.join().unwrap()).collect();
            assert!(vcpus.iter().all(|(_, exit)| *exit == VcpuExit::Stopped), "{name}");
        });
        take_and_copy(&bench, &mut copy);
        let mut ram = vec![0; RAM_BYTES as usize];
        read(&bench, 0, &mut ram);
        let differ: Vec<_> = (0..ram.len()).step_by(8).filter(|at| ram[*at..at + 8] != copy[*at..at + 8]).collect();
        assert_eq!(differ, [] as [usize; 0], "{name}: writes were lost");
        assert!(seen.contains(&FIRST) && seen.contains(&(FIRST + SHARE)), "{name}: both vCPUs have written");
        assert!(!seen.contains(&(FIRST + 2 * SHARE)), "{name}: nobody wrote there");
    }
}

fn take_and_copy<V: crate::accel::Vm>(bench: &Bench<V>, copy: &mut [u8]) -> BTreeSet<u64> {
    let pages = pages(&bench.vm.take_dirty_log().unwrap());
    for page in &pages {
        let at = *page as usize;
        read(bench, *page, &mut copy[at..at + PAGE_SIZE as usize]);
    }
    pages
}

fn read<V: crate::accel::Vm>(bench: &Bench<V>, at: u64, to: &mut [u8]) {
    use vm_memory::{Bytes, GuestAddress};
    bench.ram.memory().read_slice(to, GuestAddress(at)).unwrap();
}

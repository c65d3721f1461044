//! As many vCPUs as a machine can have.

use crate::accel::VcpuExit;
use crate::accel::testing::{Bench, DATA, accelerators, code, wait_for};
use crate::irqchip::MAX_VCPUS;

#[test]
fn each_of_256_vcpus_runs_under_its_own_x2apic_identifier() {
    // mov ecx, 0x1b; rdmsr; or eax, 0xc00; wrmsr; mov ecx, 0x802; rdmsr; lock bts [DATA], eax; cli; hlt
    let program = code(&[
        &[0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32, 0x0d, 0, 0x0c, 0, 0, 0x0f, 0x30],
        &[0xb9, 0x02, 0x08, 0, 0, 0x0f, 0x32, 0xf0, 0x0f, 0xab, 0x04, 0x25],
        &(DATA as u32).to_le_bytes(),
        &[0xfa, 0xf4],
    ]);
    for (name, accelerator) in accelerators() {
        let bench = Bench::on(&*accelerator, &program, MAX_VCPUS);
        let vcpus: Vec<_> = (0..MAX_VCPUS).map(|id| bench.start_vcpu(id)).collect();
        let handles: Vec<_> = vcpus.iter().map(|vcpu| vcpu.handle()).collect();
        std::thread::scope(|scope| {
            let runners: Vec<_> = vcpus.into_iter().map(|mut vcpu| scope.spawn(move || vcpu.run())).collect();
            wait_for(|| (0..4).all(|word| bench.get(DATA + word * 8) == u64::MAX));
            handles.iter().for_each(|handle| handle.stop());
            assert!(runners.into_iter().all(|runner| runner.join().unwrap() == VcpuExit::Stopped), "{name}");
        });
    }
}

//! On which of the host's CPUs a vCPU's thread may run.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};

/// A vCPU and the CPUs of the host that its thread stays on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    pub vcpu: u32,
    /// At least one, and only such as this process may use.
    pub cpus: Vec<u32>,
}

/// Why vCPUs cannot be pinned as it is wished.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    #[error("vCPU {vcpu} is to be pinned, but the machine's vCPUs are 0 to {last}")]
    NoVcpu { vcpu: u32, last: u32 },
    #[error("vCPU {vcpu} is pinned twice: give all of its CPUs at once")]
    Twice { vcpu: u32 },
    #[error("vCPU {vcpu} is pinned to no CPU: name one at least")]
    Nowhere { vcpu: u32 },
    #[error("vCPU {vcpu} cannot be pinned to CPU {cpu} of the host: this process may use {allowed}; choose from these")]
    NotAllowed { vcpu: u32, cpu: u32, allowed: String },
}

/// Checks the pins of a machine with `vcpus` vCPUs against what this process may use.
pub(crate) fn check(pins: &[Pin], vcpus: u32) -> Result<(), PinError> {
    if pins.is_empty() {
        return Ok(());
    }
    // A host that does not tell has no say; the thread itself will find out.
    let allowed = sched_getaffinity(None).ok();
    for (index, pin) in pins.iter().enumerate() {
        let vcpu = pin.vcpu;
        if vcpu >= vcpus {
            return Err(PinError::NoVcpu { vcpu, last: vcpus.saturating_sub(1) });
        }
        if pins[..index].iter().any(|earlier| earlier.vcpu == vcpu) {
            return Err(PinError::Twice { vcpu });
        }
        if pin.cpus.is_empty() {
            return Err(PinError::Nowhere { vcpu });
        }
        let Some(allowed) = &allowed else { continue };
        if let Some(cpu) = pin.cpus.iter().copied().find(|cpu| !contains(allowed, *cpu)) {
            return Err(PinError::NotAllowed { vcpu, cpu, allowed: describe(allowed) });
        }
    }
    Ok(())
}

/// Keeps the calling thread on the CPUs of vCPU `vcpu`, if it is pinned.
pub(crate) fn apply(pins: &[Pin], vcpu: u32) -> io::Result<()> {
    let Some(pin) = pins.iter().find(|pin| pin.vcpu == vcpu) else { return Ok(()) };
    let mut set = CpuSet::new();
    pin.cpus.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU as u32).for_each(|cpu| set.set(*cpu as usize));
    Ok(sched_setaffinity(None, &set)?)
}

fn contains(set: &CpuSet, cpu: u32) -> bool {
    cpu < CpuSet::MAX_CPU as u32 && set.is_set(cpu as usize)
}

/// The CPUs of a set as people write them: `0-3,8`.
fn describe(set: &CpuSet) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for cpu in (0..CpuSet::MAX_CPU as u32).filter(|cpu| contains(set, *cpu)) {
        match runs.last_mut().filter(|(_, last)| *last + 1 == cpu) {
            Some((_, last)) => *last = cpu,
            None => runs.push((cpu, cpu)),
        }
    }
    let run = |(first, last): &(u32, u32)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    runs.iter().map(run).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(vcpu: u32, cpus: &[u32]) -> Pin {
        Pin { vcpu, cpus: cpus.to_vec() }
    }

    /// A CPU that this process may use.
    fn a_cpu() -> u32 {
        let allowed = sched_getaffinity(None).unwrap();
        (0..CpuSet::MAX_CPU as u32).find(|cpu| contains(&allowed, *cpu)).unwrap()
    }

    #[test]
    fn pins_to_cpus_of_this_process_pass() {
        assert_eq!(check(&[pin(0, &[a_cpu()]), pin(1, &[a_cpu()])], 2), Ok(()));
    }

    #[test]
    fn pins_that_cannot_be_are_refused() {
        let cpu = a_cpu();
        assert_eq!(check(&[pin(2, &[cpu])], 2), Err(PinError::NoVcpu { vcpu: 2, last: 1 }));
        assert_eq!(check(&[pin(0, &[cpu]), pin(0, &[cpu])], 2), Err(PinError::Twice { vcpu: 0 }));
        assert_eq!(check(&[pin(0, &[])], 2), Err(PinError::Nowhere { vcpu: 0 }));
        for absent in [1023, 1024, u32::MAX] {
            let refused = check(&[pin(1, &[cpu, absent])], 2).unwrap_err();
            assert!(matches!(refused, PinError::NotAllowed { vcpu: 1, cpu, .. } if cpu == absent), "{refused}");
        }
    }

    #[test]
    fn a_pinned_thread_stays_on_its_cpus_and_others_are_left_alone() {
        let cpu = a_cpu();
        let affinity_after = |vcpu| {
            let pins = [pin(3, &[cpu])];
            let thread = std::thread::spawn(move || {
                apply(&pins, vcpu).unwrap();
                describe(&sched_getaffinity(None).unwrap())
            });
            thread.join().unwrap()
        };
        assert_eq!(affinity_after(3), cpu.to_string());
        assert_eq!(affinity_after(0), describe(&sched_getaffinity(None).unwrap()));
    }

    #[test]
    fn sets_are_described_by_runs() {
        let mut set = CpuSet::new();
        [0, 1, 2, 5, 1023].iter().for_each(|cpu| set.set(*cpu));
        assert_eq!(describe(&set), "0-2,5,1023");
    }
}

//! KVM's paravirtual clock: the guest reads a page with a scale instead of asking a device for the time.
//!
//! Both of its clocks are linear functions of the guest's time-stamp counter here, so each structure is written once,
//! when the guest names its place, and never changes: the "stable" flag is always true. Source: Linux
//! `Documentation/virt/kvm/x86/msr.rst`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use queztl_guest_memory::GuestMemory;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

use crate::clock::Clock;
use crate::snapshot::{Invalid, Persist};

/// Wall clock at boot, and its older number.
pub const MSR_WALL_CLOCK: u32 = 0x4b56_4d00;
pub const MSR_WALL_CLOCK_OLD: u32 = 0x11;
/// Time since boot, one structure per vCPU, and its older number.
pub const MSR_SYSTEM_TIME: u32 = 0x4b56_4d01;
pub const MSR_SYSTEM_TIME_OLD: u32 = 0x12;

/// What the guest finds in CPUID leaf 0x40000001 EAX for this clock: both sets of MSRs, and a stable counter.
pub const CPUID_FEATURES: u32 = 1 << 0 | 1 << 3 | 1 << 24;

const ENABLED: u64 = 1;
/// The counters of all vCPUs are synchronous, so the guest needs no correction between them.
const FLAG_STABLE: u8 = 1;
const NS_PER_SECOND: u64 = 1_000_000_000;

/// The paravirtual clock of one machine.
pub struct KvmClock {
    memory: Arc<GuestMemory>,
    clock: Arc<Clock>,
    state: Mutex<State>,
}

/// What a snapshot holds of the clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    wall_clock: u64,
    vcpus: Vec<Vcpu>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Vcpu {
    system_time: u64,
    tsc_adjust: u64,
}

impl KvmClock {
    /// A clock for `vcpus` vCPUs, enabled on none yet.
    pub fn new(memory: Arc<GuestMemory>, clock: Arc<Clock>, vcpus: u32) -> KvmClock {
        let state = State { wall_clock: 0, vcpus: vec![Vcpu::default(); vcpus as usize] };
        KvmClock { memory, clock, state: Mutex::new(state) }
    }

    /// Whether [`KvmClock::msr_read`] and [`KvmClock::msr_write`] are responsible for `msr`.
    pub fn owns_msr(msr: u32) -> bool {
        matches!(msr, MSR_WALL_CLOCK | MSR_WALL_CLOCK_OLD | MSR_SYSTEM_TIME | MSR_SYSTEM_TIME_OLD)
    }

    /// Reads one of the clock's MSRs; `None` means #GP.
    pub fn msr_read(&self, cpu: u32, msr: u32) -> Option<u64> {
        let state = self.lock();
        match msr {
            MSR_WALL_CLOCK | MSR_WALL_CLOCK_OLD => Some(state.wall_clock),
            MSR_SYSTEM_TIME | MSR_SYSTEM_TIME_OLD => Some(state.vcpus.get(cpu as usize)?.system_time),
            _ => None,
        }
    }

    /// Writes one of the clock's MSRs; false means #GP. A place that is not RAM is remembered and not written to.
    pub fn msr_write(&self, cpu: u32, msr: u32, value: u64) -> bool {
        let mut state = self.lock();
        match msr {
            MSR_WALL_CLOCK | MSR_WALL_CLOCK_OLD => {
                state.wall_clock = value;
                self.write_wall_clock(value);
                true
            }
            MSR_SYSTEM_TIME | MSR_SYSTEM_TIME_OLD => {
                let Some(vcpu) = state.vcpus.get_mut(cpu as usize) else { return false };
                vcpu.system_time = value;
                self.write_system_time(*vcpu);
                true
            }
            _ => false,
        }
    }

    /// The guest changed `cpu`'s IA32_TSC_ADJUST (or wrote its time-stamp counter): the counter it reads is
    /// `Clock::tsc() + adjust` from now on.
    pub fn set_tsc_adjust(&self, cpu: u32, adjust: u64) {
        let mut state = self.lock();
        if let Some(vcpu) = state.vcpus.get_mut(cpu as usize) {
            vcpu.tsc_adjust = adjust;
            self.write_system_time(*vcpu);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// struct pvclock_wall_clock: version, seconds, nanoseconds at the moment the guest's clock was zero.
    fn write_wall_clock(&self, address: u64) {
        if address == 0 {
            return;
        }
        let boot_ns = self.clock.wall_clock_ns().saturating_sub(self.clock.now_ns());
        let mut body = [0; 8];
        body[..4].copy_from_slice(&((boot_ns / NS_PER_SECOND) as u32).to_le_bytes());
        body[4..].copy_from_slice(&((boot_ns % NS_PER_SECOND) as u32).to_le_bytes());
        self.publish(address, 4, &body);
    }

    /// struct pvclock_vcpu_time_info.
    fn write_system_time(&self, vcpu: Vcpu) {
        if vcpu.system_time & ENABLED == 0 {
            return;
        }
        let (multiplier, shift) = scale(self.clock.tsc_hz());
        // After the version and four bytes of padding: counter and time of the reference point, scale, flags. The
        // clock is zero when the unadjusted counter is.
        let mut body = [0; 24];
        body[..8].copy_from_slice(&vcpu.tsc_adjust.to_le_bytes());
        body[16..20].copy_from_slice(&multiplier.to_le_bytes());
        body[20] = shift as u8;
        body[21] = FLAG_STABLE;
        self.publish(vcpu.system_time & !ENABLED, 8, &body);
    }

    /// Writes `body` at `address + offset`; the version at `address` is odd meanwhile and even, and new, afterwards.
    fn publish(&self, address: u64, offset: u64, body: &[u8]) {
        let version: u32 = self.memory.read_obj(GuestAddress(address)).unwrap_or(0);
        let odd = (version | 1).wrapping_add(if version & 1 == 1 { 2 } else { 0 });
        let write = |at: u64, bytes: &[u8]| match address.checked_add(at) {
            Some(place) => self.memory.write_slice(bytes, GuestAddress(place)).is_ok(),
            None => false,
        };
        if !(write(0, &odd.to_le_bytes()) && write(offset, body) && write(0, &odd.wrapping_add(1).to_le_bytes())) {
            tracing::debug!("the guest placed its paravirtual clock outside RAM, at {address:#x}");
        }
    }
}

impl Persist for KvmClock {
    type State = State;

    fn save(&self) -> State {
        self.lock().clone()
    }

    /// Writes the system time's pages anew: the counter may have another distance from the guest's time than before. The
    /// wall clock page stays as the guest read it, since the guest's own time went on from there.
    fn restore(&self, state: State) -> Result<(), Invalid> {
        let mut own = self.lock();
        Invalid::unless(own.vcpus.len() == state.vcpus.len(), "paravirtual clock", "the number of processors differs")?;
        *own = state;
        own.vcpus.iter().for_each(|vcpu| self.write_system_time(*vcpu));
        Ok(())
    }
}

/// Multiplier and shift such that `ns = ((ticks << shift) * multiplier) >> 32`, a negative shift meaning right.
fn scale(tsc_hz: u64) -> (u32, i8) {
    let mut shift = 0_i8;
    // The multiplier shall lie in 2^31..2^32, for the highest precision.
    let multiplier = |shift: i8| -> u128 {
        let numerator = u128::from(NS_PER_SECOND) << 32;
        let hz = u128::from(tsc_hz.max(1));
        if shift < 0 { (numerator << shift.unsigned_abs()) / hz } else { (numerator >> shift) / hz }
    };
    while multiplier(shift) > u128::from(u32::MAX) && shift < 31 {
        shift += 1;
    }
    while multiplier(shift) <= u128::from(u32::MAX) / 2 && shift > -31 {
        shift -= 1;
    }
    (u32::try_from(multiplier(shift)).unwrap_or(u32::MAX), shift)
}

#[cfg(test)]
mod tests {
    use queztl_guest_memory::GuestRam;

    use super::*;

    struct Machine {
        ram: GuestRam,
        clock: Arc<Clock>,
        kvmclock: KvmClock,
    }

    fn machine() -> Machine {
        let ram = GuestRam::new(1 << 20).unwrap();
        let clock = Arc::new(Clock::instruction_counted(1));
        Machine { kvmclock: KvmClock::new(ram.memory().clone(), clock.clone(), 2), ram, clock }
    }

    fn read<const N: usize>(m: &Machine, address: u64) -> [u8; N] {
        let mut data = [0; N];
        m.ram.memory().read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }

    /// The time as a guest computes it.
    fn guest_ns(multiplier: u32, shift: i8, ticks: u64) -> u64 {
        let shifted = if shift < 0 { ticks >> -shift } else { ticks << shift };
        ((u128::from(shifted) * u128::from(multiplier)) >> 32) as u64
    }

    #[test]
    fn the_scale_is_exact_for_every_frequency() {
        for hz in [1_000_000, 999_999_999, 1_000_000_000, 1_000_000_001, 2_893_202_000, 4_300_000_000, 9_999_999_999] {
            let (multiplier, shift) = scale(hz);
            assert!(multiplier >= 1 << 31, "{hz}: {multiplier:#x} {shift}");
            let hour = guest_ns(multiplier, shift, hz * 3600);
            assert!(hour.abs_diff(3600 * NS_PER_SECOND) < 2_000, "{hz}: {hour}");
        }
    }

    #[test]
    fn the_system_time_page_gives_the_machines_time() {
        let m = machine();
        m.clock.set_instructions(5_000_000);
        assert!(m.kvmclock.msr_write(1, MSR_SYSTEM_TIME, 0x2001));
        let page: [u8; 32] = read(&m, 0x2000);
        let version = u32::from_le_bytes(page[..4].try_into().unwrap());
        let multiplier = u32::from_le_bytes(page[24..28].try_into().unwrap());
        assert!(version != 0 && version & 1 == 0);
        assert!(guest_ns(multiplier, page[28] as i8, m.clock.tsc()).abs_diff(m.clock.now_ns()) <= 1);
        assert_eq!((page[29], m.kvmclock.msr_read(1, MSR_SYSTEM_TIME_OLD)), (FLAG_STABLE, Some(0x2001)));

        m.kvmclock.set_tsc_adjust(1, 77);
        let page: [u8; 32] = read(&m, 0x2000);
        assert_eq!(u64::from_le_bytes(page[8..16].try_into().unwrap()), 77);
        assert!(u32::from_le_bytes(page[..4].try_into().unwrap()) > version);
    }

    #[test]
    fn the_wall_clock_is_that_of_the_start() {
        let m = machine();
        m.clock.set_instructions(7 * NS_PER_SECOND);
        assert!(m.kvmclock.msr_write(0, MSR_WALL_CLOCK, 0x3000));
        let page: [u8; 12] = read(&m, 0x3000);
        let seconds = u32::from_le_bytes(page[4..8].try_into().unwrap());
        assert_eq!(u64::from(seconds), crate::clock::COUNTED_EPOCH_NS / NS_PER_SECOND);
    }

    #[test]
    fn places_outside_ram_do_no_harm_and_disabling_stops_writing() {
        let m = machine();
        for address in [0xf_ffff, u64::MAX, 0x1_0000_0001] {
            assert!(m.kvmclock.msr_write(0, MSR_SYSTEM_TIME, address));
            assert!(m.kvmclock.msr_write(0, MSR_WALL_CLOCK, address));
        }
        assert!(m.kvmclock.msr_write(0, MSR_SYSTEM_TIME, 0x2000));
        assert_eq!(read::<32>(&m, 0x2000), [0; 32]);
        assert!(!m.kvmclock.msr_write(9, MSR_SYSTEM_TIME, 1));
        assert_eq!(m.kvmclock.msr_read(0, 0x10), None);
    }
}

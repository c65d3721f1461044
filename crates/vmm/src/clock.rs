//! The guest's time: one clock from which the time-stamp counter, every timer and every clock device are derived, so
//! that they can never disagree.
//!
//! Two kinds, with the same interface:
//! - **real time**: the host's time-stamp counter, counted from the start of the machine. Where the host's counter is
//!   not invariant, the host's monotonic clock takes its place as a counter of 1 GHz.
//! - **instruction-counted**: every retired instruction takes a fixed number of nanoseconds. Nothing depends on the
//!   host, so a run can be repeated exactly; the wall clock starts at a fixed date.

use std::arch::x86_64::{__cpuid, _rdtsc};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const NS_PER_SECOND: u64 = 1_000_000_000;
/// Fraction bits of the factors between counter ticks and nanoseconds.
const SCALE_BITS: u32 = 40;
/// Wall-clock time at which an instruction-counted machine starts: 2025-01-01 00:00:00 UTC, in nanoseconds since 1970.
pub const COUNTED_EPOCH_NS: u64 = 1_735_689_600 * NS_PER_SECOND;
/// Frequencies that a guest's counter can go on with.
pub const RESUMABLE_HZ: std::ops::RangeInclusive<u64> = 1_000_000..=1_000_000_000_000;
/// How far the host's counter may be (in parts per thousand) from the frequency that a resumed guest knows and yet be its
/// counter: two measurements of the same host differ by less.
const SAME_PER_MILLE: u64 = 1;
/// How long the host's counter is compared with its monotonic clock where nobody knows its frequency.
const CALIBRATION: Duration = Duration::from_millis(5);
/// How long they are compared to tell whether a frequency is the counter's: a pair of readings is good to 0.1 us.
const CONFIRMATION: Duration = Duration::from_millis(1);
/// A frequency that the host reports is believed when it is this close (in parts per thousand) to the measured one.
const BELIEVED_PER_MILLE: u64 = 5;

/// One guest's time, in nanoseconds and in time-stamp counter ticks since the machine started.
#[derive(Debug)]
pub struct Clock {
    source: Source,
    tsc_hz: u64,
    /// Nanoseconds per tick, with `SCALE_BITS` of fraction.
    ns_per_tick: u128,
    /// Ticks per nanosecond, with `SCALE_BITS` of fraction.
    ticks_per_ns: u128,
}

#[derive(Debug)]
enum Source {
    HostTsc {
        start: u64,
    },
    /// `before` ticks had passed at `start`.
    Monotonic {
        start: Instant,
        before: u64,
    },
    Counted {
        instructions: AtomicU64,
        ns_per_instruction: u64,
    },
}

impl Clock {
    /// A clock that follows the host's, starting at zero now. Takes a few milliseconds the first time in a process, less
    /// what has passed since [`start_measuring`].
    pub fn real_time() -> Clock {
        match host_tsc_hz() {
            Some(hz) => Clock::with(Source::HostTsc { start: host_tsc() }, hz),
            None => Clock::with(Source::Monotonic { start: Instant::now(), before: 0 }, NS_PER_SECOND),
        }
    }

    /// A clock that only moves with [`Clock::set_instructions`]: `ns_per_instruction` nanoseconds each (at least 1). Its
    /// time-stamp counter runs at 1 GHz.
    pub fn instruction_counted(ns_per_instruction: u64) -> Clock {
        let source = Source::Counted {
            instructions: AtomicU64::new(0),
            ns_per_instruction: ns_per_instruction.clamp(1, 1 << 20),
        };
        Clock::with(source, NS_PER_SECOND)
    }

    fn with(source: Source, tsc_hz: u64) -> Clock {
        let ns_per_tick = (u128::from(NS_PER_SECOND) << SCALE_BITS) / u128::from(tsc_hz);
        let ticks_per_ns = (u128::from(tsc_hz) << SCALE_BITS) / u128::from(NS_PER_SECOND);
        Clock { source, tsc_hz, ns_per_tick, ticks_per_ns }
    }

    /// A clock in real time that goes on from `ticks`, at the frequency that its guest knows, one of [`RESUMABLE_HZ`]. It
    /// follows the host's counter where that runs at the same frequency, else the host's monotonic clock.
    pub fn resumed(ticks: u64, tsc_hz: u64) -> Clock {
        let source = match host_tsc_runs_at(tsc_hz) {
            true => Source::HostTsc { start: host_tsc() },
            false => Source::Monotonic { start: Instant::now(), before: 0 },
        };
        Clock::with(source, tsc_hz).resumed_at(ticks)
    }

    /// Goes on from `ticks` instead of from zero, in real time. Before anything has looked at the clock.
    pub fn resumed_at(self, ticks: u64) -> Clock {
        let source = match self.source {
            // The host's counter may be younger than the guest's: the start then lies before its zero.
            Source::HostTsc { start } => Source::HostTsc { start: start.wrapping_sub(ticks) },
            Source::Monotonic { start, before } => Source::Monotonic { start, before: before.saturating_add(ticks) },
            counted @ Source::Counted { .. } => counted,
        };
        Clock { source, ..self }
    }

    /// Nanoseconds since the machine started.
    pub fn now_ns(&self) -> u64 {
        self.tsc_to_ns(self.tsc())
    }

    /// The guest's time-stamp counter: starts near zero, never goes back.
    #[inline]
    pub fn tsc(&self) -> u64 {
        match &self.source {
            Source::HostTsc { start } => {
                let ticks = host_tsc().wrapping_sub(*start);
                // Another processor's counter may lag by some ticks: never wrap below zero.
                if ticks as i64 >= 0 { ticks } else { 0 }
            }
            Source::Monotonic { start, before } => {
                let ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                before.saturating_add(self.ns_to_tsc(ns))
            }
            Source::Counted { instructions, ns_per_instruction } => {
                instructions.load(Ordering::Relaxed).saturating_mul(*ns_per_instruction)
            }
        }
    }

    /// What the host's time-stamp counter showed when [`Clock::tsc`] was zero, where the latter follows it.
    pub fn host_tsc_start(&self) -> Option<u64> {
        match &self.source {
            Source::HostTsc { start } => Some(*start),
            _ => None,
        }
    }

    /// Frequency of the guest's time-stamp counter in Hz.
    pub fn tsc_hz(&self) -> u64 {
        self.tsc_hz
    }

    /// The moment (ns) at which the counter shows `ticks`; saturates far in the future.
    pub fn tsc_to_ns(&self, ticks: u64) -> u64 {
        scale(ticks, self.ns_per_tick)
    }

    /// What the counter shows at `ns`; saturates far in the future.
    pub fn ns_to_tsc(&self, ns: u64) -> u64 {
        scale(ns, self.ticks_per_ns)
    }

    /// The first moment (ns) at which the counter shows `ticks` or more.
    pub fn tsc_deadline_ns(&self, ticks: u64) -> u64 {
        let mut ns = self.tsc_to_ns(ticks);
        while ns < u64::MAX && self.ns_to_tsc(ns) < ticks && ticks < u64::MAX {
            ns += 1;
        }
        ns
    }

    /// Wall-clock time in nanoseconds since 1970-01-01 UTC; a fixed date plus [`Clock::now_ns`] when instructions are
    /// counted.
    pub fn wall_clock_ns(&self) -> u64 {
        if self.is_instruction_counted() {
            return COUNTED_EPOCH_NS.saturating_add(self.now_ns());
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Whether time is made of retired instructions.
    pub fn is_instruction_counted(&self) -> bool {
        matches!(self.source, Source::Counted { .. })
    }

    /// Moves instruction-counted time forward to `count` retired instructions; an earlier count changes nothing, nor
    /// does any count in real time.
    pub fn set_instructions(&self, count: u64) {
        if let Source::Counted { instructions, .. } = &self.source {
            instructions.fetch_max(count, Ordering::Relaxed);
        }
    }

    /// The instruction count at which instruction-counted time reaches `deadline_ns`; `None` in real time.
    pub fn instructions_at(&self, deadline_ns: u64) -> Option<u64> {
        match &self.source {
            Source::Counted { ns_per_instruction, .. } => Some(deadline_ns.div_ceil(*ns_per_instruction)),
            _ => None,
        }
    }
}

fn scale(value: u64, factor: u128) -> u64 {
    // Factors stay below 2^64 for counters from 1 MHz (2^10 ns a tick) to 2^24 GHz, so the product fits.
    u64::try_from((u128::from(value) * factor) >> SCALE_BITS).unwrap_or(u64::MAX)
}

#[inline]
fn host_tsc() -> u64 {
    // SAFETY: RDTSC exists on every x86-64 processor and has no effect but its result.
    unsafe { _rdtsc() }
}

#[allow(unused_unsafe, reason = "CPUID became a safe function after our oldest supported compiler")]
fn cpuid(leaf: u32) -> [u32; 4] {
    // SAFETY: CPUID exists on every x86-64 processor; unknown leaves only give meaningless numbers.
    let r = unsafe { __cpuid(leaf) };
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// Frequency of the host's time-stamp counter, once somebody had to know it; `None` when it is not invariant.
static HOST_TSC_HZ: OnceLock<Option<u64>> = OnceLock::new();

/// Frequency of the host's time-stamp counter, or `None` when it is not invariant.
fn host_tsc_hz() -> Option<u64> {
    *HOST_TSC_HZ.get_or_init(|| {
        host_tsc_is_invariant().then(|| {
            let believed = reported_tsc_hz().filter(|hz| agrees(*hz, measure_tsc_hz(CONFIRMATION)));
            believed.unwrap_or_else(|| measure_tsc_hz(CALIBRATION))
        })
    })
}

/// Whether the host's counter is invariant and runs at the frequency that a resumed guest knows.
fn host_tsc_runs_at(tsc_hz: u64) -> bool {
    let measure = || host_tsc_is_invariant().then(|| measure_tsc_hz(CONFIRMATION));
    let host = HOST_TSC_HZ.get().copied().unwrap_or_else(measure);
    host.is_some_and(|hz| hz.abs_diff(tsc_hz) <= hz / 1000 * SAME_PER_MILLE)
}

/// SDM vol. 3B §18.17.1.
fn host_tsc_is_invariant() -> bool {
    cpuid(0x8000_0000)[0] >= 0x8000_0007 && cpuid(0x8000_0007)[3] & (1 << 8) != 0
}

fn agrees(reported: u64, measured: u64) -> bool {
    reported.abs_diff(measured) <= measured / 1000 * BELIEVED_PER_MILLE
}

/// What CPUID says: the hypervisor's timing leaf if there is a hypervisor, else leaf 0x15.
fn reported_tsc_hz() -> Option<u64> {
    let hypervisor = cpuid(1)[2] & (1 << 31) != 0;
    if hypervisor && cpuid(0x4000_0000)[0] >= 0x4000_0010 {
        let khz = cpuid(0x4000_0010)[0];
        if khz != 0 {
            return Some(u64::from(khz) * 1000);
        }
    }
    if cpuid(0)[0] < 0x15 {
        return None;
    }
    let [denominator, numerator, crystal_hz, _] = cpuid(0x15);
    let known = denominator != 0 && numerator != 0 && crystal_hz != 0;
    known.then(|| u64::from(crystal_hz) * u64::from(numerator) / u64::from(denominator))
}

/// Both clocks at the start of measuring.
static MEASURED_FROM: OnceLock<(u64, Instant)> = OnceLock::new();

/// Begins to compare the host's clocks, so that whoever wants to know the counter's frequency later in the process need
/// not wait for it.
pub fn start_measuring() {
    MEASURED_FROM.get_or_init(tightest_pair);
}

/// Compares the counter with the monotonic clock, from the start of measuring for `least` or longer.
fn measure_tsc_hz(least: Duration) -> u64 {
    let (start_tsc, start) = *MEASURED_FROM.get_or_init(tightest_pair);
    let left = least.saturating_sub(start.elapsed());
    if !left.is_zero() {
        std::thread::sleep(left);
    }
    let (end_tsc, end) = tightest_pair();
    let ns = (end - start).as_nanos().max(1);
    let hz = u128::from(end_tsc.wrapping_sub(start_tsc)) * u128::from(NS_PER_SECOND) / ns;
    u64::try_from(hz).unwrap_or(u64::MAX).max(1_000_000)
}

/// Both clocks read as close together as a few attempts allow.
fn tightest_pair() -> (u64, Instant) {
    (0..8)
        .map(|_| {
            let before = host_tsc();
            let instant = Instant::now();
            let after = host_tsc();
            (after.wrapping_sub(before), before.wrapping_add(after.wrapping_sub(before) / 2), instant)
        })
        .min_by_key(|(width, ..)| *width)
        .map(|(_, tsc, instant)| (tsc, instant))
        .unwrap_or_else(|| (host_tsc(), Instant::now()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_time_follows_the_monotonic_clock() {
        let clock = Clock::real_time();
        let (start, start_ns) = (Instant::now(), clock.now_ns());
        std::thread::sleep(Duration::from_millis(50));
        let (elapsed, guest) = (start.elapsed().as_nanos() as u64, clock.now_ns() - start_ns);
        assert!(elapsed.abs_diff(guest) < elapsed / 50, "host {elapsed} ns, guest {guest} ns");
        assert!(clock.tsc() < clock.tsc_hz() * 60, "the guest's counter starts near zero");
    }

    #[test]
    fn a_resumed_clock_goes_on_where_it_stopped_even_beyond_the_hosts_counter() {
        for ticks in [0, 5_000_000_000, 1 << 60] {
            let clock = Clock::real_time().resumed_at(ticks);
            let passed = clock.tsc() - ticks;
            assert!(passed < clock.tsc_hz() * 60, "{ticks}: {passed} ticks passed");
        }
    }

    #[test]
    fn a_resumed_clock_keeps_the_frequency_that_its_guest_knows() {
        let own = Clock::real_time().tsc_hz();
        for hz in [own, own + own / 2000, 1_000_000, 2_345_678_901] {
            let clock = Clock::resumed(1 << 40, hz);
            let (start, ticks) = (Instant::now(), clock.tsc());
            std::thread::sleep(Duration::from_millis(50));
            let (elapsed, passed) = (start.elapsed().as_nanos() as u64, clock.tsc_to_ns(clock.tsc() - ticks));
            assert_eq!(clock.tsc_hz(), hz);
            assert!(ticks >= 1 << 40 && elapsed.abs_diff(passed) < elapsed / 20, "{hz}: {elapsed} ns, {passed} ns");
        }
    }

    #[test]
    fn a_short_measurement_tells_the_hosts_frequency_from_others() {
        let Some(own) = host_tsc_hz() else { return println!("skipped: the host's counter is not invariant") };
        let (short, long) = (measure_tsc_hz(CONFIRMATION), measure_tsc_hz(Duration::from_millis(100)));
        assert!(short.abs_diff(long) <= long / 1000 * SAME_PER_MILLE, "{short} and {long} Hz");
        assert!(host_tsc_runs_at(own) && !host_tsc_runs_at(own - own / 100));
    }

    #[test]
    fn counted_time_moves_only_with_instructions_and_never_back() {
        let clock = Clock::instruction_counted(10);
        clock.set_instructions(100);
        clock.set_instructions(50);
        assert_eq!((clock.now_ns(), clock.tsc()), (1000, 1000));
        assert_eq!(clock.instructions_at(1001), Some(101));
        assert_eq!(clock.wall_clock_ns(), COUNTED_EPOCH_NS + 1000);
    }

    #[test]
    fn conversions_are_exact_enough_for_years_and_saturate() {
        for hz in [1_000_000_000, 2_100_000_000, 2_893_202_000, 5_700_000_123] {
            let clock = Clock::with(Source::HostTsc { start: 0 }, hz);
            let year = 365 * 86_400 * hz;
            let expected = 365 * 86_400 * NS_PER_SECOND;
            assert!(clock.tsc_to_ns(year).abs_diff(expected) < 100_000_000, "{hz}: {}", clock.tsc_to_ns(year));
            for ticks in [0, 1, 12_345, hz * 3600 + 17] {
                let ns = clock.tsc_deadline_ns(ticks);
                assert!(clock.ns_to_tsc(ns) >= ticks && (ns == 0 || clock.ns_to_tsc(ns - 1) < ticks));
            }
        }
        assert_eq!(scale(u64::MAX, 2 << SCALE_BITS), u64::MAX);
    }
}

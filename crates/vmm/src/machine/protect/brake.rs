//! Slows the guest down before too much of it waits for acknowledgements.
//!
//! What is watched is the fuller of two: the buffer for output, and the time that the newest epoch may wait for its
//! acknowledgement. From the threshold on, the vCPUs rest for a part of each period; devices go on. The law is
//! [`queztl_adaptive_throttling::Throttle`]'s.

use std::time::{Duration, Instant};

use queztl_adaptive_throttling::{Curve, Settings, Slice, Slices, Throttle};

use super::super::snapshot::nanoseconds;
use super::super::{MachineHandle, lock};
use super::Protecting;
use crate::control::{Reason, Refusal, ThrottleOrder};

/// One run and one rest.
const PERIOD: Duration = Duration::from_millis(20);
/// What a full buffer counts as.
const FULL: u64 = 1 << 20;
/// How long the vCPUs may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(1);

/// The law that is wished.
pub(super) fn throttle(order: &ThrottleOrder) -> Result<Throttle, Refusal> {
    let invalid = |error: &dyn std::fmt::Display| Refusal::new(Reason::Invalid, error.to_string());
    let curve: Curve = match order.curve.strip_prefix("custom:") {
        Some(points) => Curve::parse_points(points).map_err(|error| invalid(&error))?,
        None => order.curve.parse().map_err(|error| invalid(&error))?,
    };
    let part = |percent: u32| f64::from(percent) / 100.0;
    let (threshold, max_intensity) = (part(order.threshold_percent), part(order.max_percent));
    let settings = Settings { buffer_bytes: FULL, threshold, max_intensity, curve, ..Settings::default() };
    Throttle::new(settings).map_err(|error| invalid(&error))
}

/// Brakes until the protection ends.
pub(super) fn run(handle: &MachineHandle, protecting: &Protecting, mut throttle: Throttle) {
    let mut slices = Slices::new(nanoseconds(PERIOD));
    while !protecting.has_ended() {
        let fill = (protecting.fill() * FULL as f64) as u64;
        let intensity = throttle.observe(fill, now_ns()).intensity;
        protecting.note_throttle((intensity * 100.0).round() as u32);
        if let (Slice::Run(run), Slice::Rest(rest)) = slices.next(intensity) {
            std::thread::sleep(Duration::from_nanos(run));
            if rest > 0 {
                slices.overslept(handle.rest(Duration::from_nanos(rest)));
            }
        }
    }
}

impl MachineHandle {
    /// Lets the vCPUs stand still for a moment, unless they do already; gives by how many nanoseconds it was too long.
    fn rest(&self, rest: Duration) -> u64 {
        let _transition = lock(&self.shared.transition);
        let started = Instant::now();
        if self.shared.vcpus.is_paused() {
            std::thread::sleep(rest);
        } else {
            self.shared.vcpus.pause(STOP_LIMIT);
            std::thread::sleep(rest.saturating_sub(started.elapsed()));
            self.shared.vcpus.resume();
        }
        nanoseconds(started.elapsed().saturating_sub(rest))
    }
}

/// The host's monotonic clock, in nanoseconds: the same for all processes of the host.
fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to `now` and nothing else; with this clock and a valid place it does not fail. (rustix would
    // ask the kernel for its clock's code first, by a system call that threads of a machine may not make.)
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

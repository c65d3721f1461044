//! Interval and buffer for a connection as it is measured to be.

/// A connection, as measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// From sending to the answer, in nanoseconds.
    pub round_trip_ns: u64,
    pub bytes_per_second: f64,
}

/// What is wished, and the bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wishes {
    /// The shortest interval between two cuts, in nanoseconds: each costs a pause.
    pub min_interval_ns: u64,
    /// The longest: output waits so long, and so much is done again after a failure.
    pub max_interval_ns: u64,
    pub min_buffer_bytes: u64,
    pub max_buffer_bytes: u64,
    /// How long a producer at its present speed may go on into the buffer when the connection stalls, in nanoseconds.
    pub stall_ns: u64,
}

impl Default for Wishes {
    fn default() -> Wishes {
        Wishes {
            min_interval_ns: 10_000_000,
            max_interval_ns: 500_000_000,
            min_buffer_bytes: 16 << 20,
            max_buffer_bytes: 1 << 30,
            stall_ns: 1_000_000_000,
        }
    }
}

/// What to do on this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    pub interval_ns: u64,
    pub buffer_bytes: u64,
    /// How many cuts are under way at a time on a connection of this length.
    pub in_flight: u32,
}

impl Plan {
    /// The plan for a producer of `dirty_bytes_per_second` and a pause of `pause_ns` at each cut.
    ///
    /// - The interval is a round trip, since output waits for one anyway: a shorter one gains nothing. It is longer where
    ///   pauses would take more than a twentieth of the time.
    /// - The buffer holds what is under way (bandwidth · round trip), one interval's worth, and a stall's.
    pub fn for_link(link: Link, dirty_bytes_per_second: f64, pause_ns: u64, wishes: Wishes) -> Plan {
        let shortest = wishes.min_interval_ns.max(1);
        let wanted = link.round_trip_ns.max(pause_ns.saturating_mul(20));
        let interval_ns = wanted.clamp(shortest, wishes.max_interval_ns.max(shortest));
        let seconds = |ns: u64| ns as f64 / 1e9;
        let rate = positive(dirty_bytes_per_second);
        let under_way = rate.min(positive(link.bytes_per_second)) * seconds(link.round_trip_ns);
        let wanted = under_way + rate * (seconds(interval_ns) + seconds(wishes.stall_ns));
        let least = wishes.min_buffer_bytes.max(1);
        // Float to integer saturates; the bounds hold for whatever comes in.
        let buffer_bytes = (wanted as u64).clamp(least, wishes.max_buffer_bytes.max(least));
        let in_flight = link.round_trip_ns.div_ceil(interval_ns).clamp(1, 64) as u32 + 1;
        Plan { interval_ns, buffer_bytes, in_flight }
    }
}

fn positive(rate: f64) -> f64 {
    if rate.is_finite() { rate.max(0.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;
    const WISHES: Wishes = Wishes {
        min_interval_ns: 10 * MS,
        max_interval_ns: 500 * MS,
        min_buffer_bytes: 1 << 20,
        max_buffer_bytes: 1 << 30,
        stall_ns: 1000 * MS,
    };

    #[test]
    fn a_near_backup_gets_short_intervals_and_a_far_one_a_round_trip() {
        let plan = |round_trip_ns| Plan::for_link(Link { round_trip_ns, bytes_per_second: 1e9 }, 50e6, 0, WISHES);
        assert_eq!((plan(MS / 5).interval_ns, plan(MS / 5).in_flight), (10 * MS, 2));
        assert_eq!(plan(80 * MS).interval_ns, 80 * MS);
        assert_eq!((plan(5000 * MS).interval_ns, plan(5000 * MS).in_flight), (500 * MS, 11));
        assert!(plan(80 * MS).buffer_bytes > plan(MS).buffer_bytes);
    }

    #[test]
    fn long_pauses_make_long_intervals() {
        let link = Link { round_trip_ns: MS, bytes_per_second: 1e9 };
        assert_eq!(Plan::for_link(link, 0.0, 3 * MS, WISHES).interval_ns, 60 * MS);
    }

    proptest! {
        #[test]
        fn every_plan_is_within_the_bounds(rtt: u64, bandwidth: f64, dirty: f64, pause: u64) {
            let plan = Plan::for_link(Link { round_trip_ns: rtt, bytes_per_second: bandwidth }, dirty, pause, WISHES);
            prop_assert!((10 * MS..=500 * MS).contains(&plan.interval_ns));
            prop_assert!((1 << 20..=1 << 30).contains(&plan.buffer_bytes));
            prop_assert!((2..=65).contains(&plan.in_flight));
        }
    }
}

//! How long an owner may let out without hearing from the coordinator.
//!
//! An owner that cannot know whether it still is one must not let anything out. It renews its lease with the coordinator; a
//! lease lasts from the moment the renewal was *asked* for. A candidate waits, from the moment the coordinator *answered* the
//! last renewal, a margin longer. So the owner has stopped before the candidate starts, whatever the delays, as long as
//! their clocks run at rates that differ by less than the margin allows. Clocks are monotonic and never compared.

/// The owner's end of a lease. Times are nanoseconds of its own monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    length_ns: u64,
    until_ns: Option<u64>,
}

impl Lease {
    /// A lease of a length that both sides know, not yet granted.
    pub fn new(length_ns: u64) -> Lease {
        Lease { length_ns, until_ns: None }
    }

    /// A renewal was granted that had been asked for at `asked_ns`.
    pub fn granted(&mut self, asked_ns: u64) {
        let until = asked_ns.saturating_add(self.length_ns);
        self.until_ns = Some(self.until_ns.map_or(until, |before| before.max(until)));
    }

    /// Whether something may be let out now.
    pub fn holds(&self, now_ns: u64) -> bool {
        self.until_ns.is_some_and(|until| now_ns < until)
    }

    /// When to ask for the next renewal: a third of the length before the end, so that two may fail.
    pub fn renew_at_ns(&self) -> u64 {
        self.until_ns.map_or(0, |until| until.saturating_sub(self.length_ns / 3 * 2))
    }

    /// How long a candidate waits after the last renewal was granted, by its own clock, where clocks differ by at most
    /// `drift_ppm` millionths.
    pub fn wait_ns(length_ns: u64, drift_ppm: u32) -> u64 {
        let margin = u128::from(length_ns) * 2 * u128::from(drift_ppm) / 1_000_000 + 1_000_000;
        length_ns.saturating_add(u64::try_from(margin).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_lasts_from_the_question() {
        let mut lease = Lease::new(300);
        assert!(!lease.holds(0));
        lease.granted(1000);
        assert!(lease.holds(1299) && !lease.holds(1300));
        assert_eq!(lease.renew_at_ns(), 1100);
        lease.granted(900);
        assert!(lease.holds(1299), "an answer that came late takes nothing away");
    }

    #[test]
    fn a_candidate_waits_longer_than_the_lease() {
        assert_eq!(Lease::wait_ns(1_000_000_000, 500), 1_002_000_000);
    }
}

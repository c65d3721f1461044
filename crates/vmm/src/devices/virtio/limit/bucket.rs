//! A token bucket on a clock that the caller brings.

use super::Rate;

const NS_PER_SECOND: i128 = 1_000_000_000;

/// Tokens that come back at a rate, up to a burst. One bucket limits one quantity.
///
/// A cost is paid when the bucket holds it, or is full: a cost above the burst empties the bucket below zero, and what
/// follows waits until the debt is paid. So everything passes, and over any time `t` at most `rate * t + burst` and one
/// request more.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    rate: Rate,
    /// Billionths of a token, so that nothing is lost to rounding however often the bucket is looked at.
    balance: i128,
    filled_at_ns: u64,
}

impl TokenBucket {
    /// A full bucket. A rate of zero counts as one a second, since nothing may wait for ever.
    pub fn new(rate: Rate, now_ns: u64) -> TokenBucket {
        let rate = Rate { per_second: rate.per_second.max(1), burst: rate.burst.max(1) };
        TokenBucket { rate, balance: i128::from(rate.burst) * NS_PER_SECOND, filled_at_ns: now_ns }
    }

    /// How long until `cost` can be paid, in nanoseconds; zero if it can be now.
    pub fn wait_ns(&mut self, cost: u64, now_ns: u64) -> u64 {
        self.fill(now_ns);
        let needed = i128::from(cost.min(self.rate.burst)) * NS_PER_SECOND;
        let missing = needed.saturating_sub(self.balance);
        if missing <= 0 {
            return 0;
        }
        let per_ns = i128::from(self.rate.per_second);
        u64::try_from(missing.saturating_add(per_ns - 1) / per_ns).unwrap_or(u64::MAX)
    }

    /// Pays `cost`, whether the bucket holds it or not.
    pub fn pay(&mut self, cost: u64, now_ns: u64) {
        self.fill(now_ns);
        self.balance = self.balance.saturating_sub(i128::from(cost) * NS_PER_SECOND);
    }

    fn fill(&mut self, now_ns: u64) {
        // A clock that steps back gives nothing.
        let elapsed = now_ns.saturating_sub(self.filled_at_ns);
        self.filled_at_ns = self.filled_at_ns.max(now_ns);
        let full = i128::from(self.rate.burst) * NS_PER_SECOND;
        let earned = i128::from(elapsed).saturating_mul(i128::from(self.rate.per_second));
        self.balance = self.balance.saturating_add(earned).min(full);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn bucket(per_second: u64, burst: u64) -> TokenBucket {
        TokenBucket::new(Rate { per_second, burst }, 0)
    }

    #[test]
    fn a_full_bucket_pays_its_burst_at_once_and_then_the_rate() {
        let mut bucket = bucket(100, 50);
        assert_eq!(bucket.wait_ns(50, 0), 0);
        bucket.pay(50, 0);
        assert_eq!(bucket.wait_ns(10, 0), SECOND / 10);
        assert_eq!(bucket.wait_ns(10, SECOND / 10 - 1), 1);
        assert_eq!(bucket.wait_ns(10, SECOND / 10), 0);
    }

    #[test]
    fn an_idle_bucket_holds_no_more_than_its_burst() {
        let mut bucket = bucket(100, 50);
        bucket.pay(50, 3600 * SECOND);
        assert_eq!(bucket.wait_ns(1, 3600 * SECOND), SECOND / 100);
    }

    #[test]
    fn a_cost_above_the_burst_passes_when_full_and_leaves_a_debt() {
        let mut bucket = bucket(100, 50);
        assert_eq!(bucket.wait_ns(250, 0), 0);
        bucket.pay(250, 0);
        assert_eq!(bucket.wait_ns(1, 0), 2 * SECOND + SECOND / 100);
        assert_eq!(bucket.wait_ns(250, 0), 2 * SECOND + SECOND / 2);
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing() {
        let mut bucket = bucket(100, 50);
        bucket.pay(50, SECOND);
        assert_eq!(bucket.wait_ns(50, 0), SECOND / 2);
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let mut bucket = bucket(u64::MAX, u64::MAX);
        bucket.pay(u64::MAX, u64::MAX);
        bucket.pay(u64::MAX, u64::MAX);
        assert!(bucket.wait_ns(u64::MAX, u64::MAX) > 0);
        let mut slow = self::bucket(0, 0);
        slow.pay(u64::MAX, 0);
        assert_eq!(slow.wait_ns(1, 0), u64::MAX);
    }

    proptest! {
        /// Whoever waits as told never gets more than the rate and the burst allow, and always gets on.
        #[test]
        fn the_rate_holds_over_any_time(per_second in 1u64..1 << 40, burst in 1u64..1 << 30,
                                        costs in proptest::collection::vec(0u64..1 << 31, 1..50)) {
            let mut bucket = bucket(per_second, burst);
            let (mut now, mut paid, mut largest) = (0u64, 0u128, 0u128);
            for cost in costs {
                now += bucket.wait_ns(cost, now);
                prop_assert_eq!(bucket.wait_ns(cost, now), 0);
                bucket.pay(cost, now);
                paid += u128::from(cost);
                largest = largest.max(u128::from(cost));
                let allowed = u128::from(per_second) * u128::from(now) / u128::from(SECOND) + u128::from(burst) + largest;
                prop_assert!(paid <= allowed + 1);
            }
        }
    }
}

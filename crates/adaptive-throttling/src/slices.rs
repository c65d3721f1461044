//! From an intensity to times to run and to rest.

/// What a producer does next, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slice {
    /// Run for so many nanoseconds.
    Run(u64),
    /// Rest for so many nanoseconds.
    Rest(u64),
}

/// Shares each period out between running and resting.
///
/// What rounding or a late wake-up took from one side is given back in the next period: over time the producer loses the
/// part it should, neither more nor less.
#[derive(Debug, Clone)]
pub struct Slices {
    period_ns: u64,
    /// Rest that is owed, in nanoseconds; negative if there was too much.
    owed_ns: f64,
}

impl Slices {
    /// `period_ns` is the time of one run and one rest: short enough that nobody notices the rest, long enough that stopping
    /// costs little. 10 ms is usual.
    pub fn new(period_ns: u64) -> Slices {
        Slices { period_ns: period_ns.max(1), owed_ns: 0.0 }
    }

    /// How the next period is shared at this intensity: first the run, then the rest. At intensity 1 there is no run.
    pub fn next(&mut self, intensity: f64) -> (Slice, Slice) {
        let intensity = if intensity.is_nan() { 1.0 } else { intensity.clamp(0.0, 1.0) };
        let wanted = self.period_ns as f64 * intensity + self.owed_ns;
        let rest = wanted.clamp(0.0, self.period_ns as f64).round();
        // A debt of more than a period would stop the producer when it is not to be stopped any more.
        self.owed_ns =
            if intensity == 0.0 { 0.0 } else { (wanted - rest).clamp(-(self.period_ns as f64), self.period_ns as f64) };
        let rest = rest as u64;
        (Slice::Run(self.period_ns - rest), Slice::Rest(rest))
    }

    /// Tells that a rest took longer than it should have, as rests do.
    pub fn overslept(&mut self, ns: u64) {
        self.owed_ns = (self.owed_ns - ns as f64).max(-(self.period_ns as f64));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rested(slices: &mut Slices, intensity: f64, periods: u64) -> u64 {
        let rest = |_| match slices.next(intensity) {
            (Slice::Run(_), Slice::Rest(rest)) => rest,
            other => panic!("{other:?}"),
        };
        (0..periods).map(rest).sum()
    }

    #[test]
    fn extremes_run_or_rest_all_the_time() {
        let mut slices = Slices::new(10);
        assert_eq!(slices.next(0.0), (Slice::Run(10), Slice::Rest(0)));
        assert_eq!(slices.next(1.0), (Slice::Run(0), Slice::Rest(10)));
    }

    #[test]
    fn a_late_wake_up_is_given_back() {
        let mut slices = Slices::new(1000);
        assert_eq!(slices.next(0.5).1, Slice::Rest(500));
        slices.overslept(200);
        assert_eq!(slices.next(0.5).1, Slice::Rest(300));
    }

    proptest! {
        #[test]
        fn over_time_the_share_is_exact(intensity in 0.001..=1.0, period in 3..1_000_000_u64) {
            let mut slices = Slices::new(period);
            let rest = rested(&mut slices, intensity, 1000) as f64;
            let wanted = intensity * period as f64 * 1000.0;
            prop_assert!((rest - wanted).abs() <= 1.0, "{rest} {wanted}");
        }
    }
}

//! When a member takes its owner for dead.
//!
//! A suspicion is no proof, and need not be one: whoever acts on it takes the next term first, and an owner that lives after
//! all finds nobody who acknowledges for it any more. A wrong suspicion costs a pause, so it is confirmed:
//! - connections that break are a sign at once; it counts if the owner has not been heard of again within
//!   [`Patience::confirm_ns`];
//! - silence on connections that are there is a sign after [`Detector::bound_ns`], which follows the gaps that are usual;
//! - connections that the other side has closed in an orderly way are no sign at all.
//!
//! Time in which nobody looked (a host that stood still itself) counts for nothing.

/// What a detector waits for, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Silence up to this is never a sign.
    pub floor_ns: u64,
    /// Silence of this length always is.
    pub ceiling_ns: u64,
    /// After connections broke, the owner may take this long to be heard of again.
    pub confirm_ns: u64,
    /// Somebody who looks less often than this was held up himself.
    pub look_ns: u64,
}

/// One owner, as one member sees it. Times are nanoseconds of the member's own monotonic clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detector {
    patience: Patience,
    connections: u32,
    heard_ns: u64,
    looked_ns: u64,
    broke_ns: Option<u64>,
    /// Between two signs of life: smoothed, and how far from that they are.
    gap_ns: u64,
    deviation_ns: u64,
}

impl Detector {
    /// Of an owner that has not been heard of.
    pub fn new(patience: Patience) -> Detector {
        Detector { patience, connections: 0, heard_ns: 0, looked_ns: 0, broke_ns: None, gap_ns: 0, deviation_ns: 0 }
    }

    /// The owner has connected, once more.
    pub fn opened(&mut self, now_ns: u64) {
        self.connections += 1;
        self.lives(now_ns);
    }

    /// A sign of life.
    pub fn heard(&mut self, now_ns: u64) {
        let gap = now_ns.saturating_sub(self.heard_ns);
        self.deviation_ns = (self.deviation_ns * 3 + gap.abs_diff(self.gap_ns)) / 4;
        self.gap_ns = (self.gap_ns * 7 + gap) / 8;
        self.lives(now_ns);
    }

    /// This side was at something until now, and could not have heard of it.
    pub fn passed(&mut self, now_ns: u64) {
        self.heard_ns = self.heard_ns.max(now_ns);
    }

    /// A connection ended, by a goodbye or because this side wanted it.
    pub fn closed(&mut self) {
        self.connections = self.connections.saturating_sub(1);
    }

    /// A connection ended without a goodbye.
    pub fn broke(&mut self, now_ns: u64) {
        self.closed();
        self.broke_ns.get_or_insert(now_ns);
    }

    /// Whether the owner is taken for dead. To be asked again and again.
    pub fn suspects(&mut self, now_ns: u64) -> bool {
        let away = now_ns.saturating_sub(self.looked_ns.max(self.heard_ns));
        self.looked_ns = now_ns;
        if away > self.patience.look_ns {
            self.heard_ns = self.heard_ns.saturating_add(away);
            self.broke_ns = self.broke_ns.map(|at| at.saturating_add(away));
        }
        match self.broke_ns {
            Some(at) => now_ns.saturating_sub(at) >= self.patience.confirm_ns,
            None => self.connections > 0 && now_ns.saturating_sub(self.heard_ns) >= self.bound_ns(),
        }
    }

    /// Whether a connection broke, and nothing has been heard since.
    pub fn is_broken(&self) -> bool {
        self.broke_ns.is_some()
    }

    /// The silence that is a sign: the usual gap and eight times its deviation, within the patience.
    pub fn bound_ns(&self) -> u64 {
        let usual = self.gap_ns.saturating_add(self.deviation_ns.saturating_mul(8));
        usual.min(self.patience.ceiling_ns).max(self.patience.floor_ns)
    }

    fn lives(&mut self, now_ns: u64) {
        self.heard_ns = self.heard_ns.max(now_ns);
        self.broke_ns = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { floor_ns: 100, ceiling_ns: 1000, confirm_ns: 30, look_ns: 50 };

    /// One that has heard of its owner each 10 ns up to 1000, and looked as often.
    fn watching() -> Detector {
        let mut detector = Detector::new(PATIENCE);
        detector.opened(0);
        for now in (10..=1000).step_by(10) {
            detector.heard(now);
            assert!(!detector.suspects(now));
        }
        detector
    }

    /// The first look, of one each 5 ns, that suspects; none until `limit`.
    fn suspected(detector: &mut Detector, from: u64, limit: u64) -> Option<u64> {
        (from..limit).step_by(5).find(|now| detector.suspects(*now))
    }

    #[test]
    fn silence_is_a_sign_after_the_floor_where_signs_are_regular() {
        assert_eq!(suspected(&mut watching(), 1005, 2000), Some(1100));
    }

    #[test]
    fn gaps_that_were_longer_make_it_more_patient_up_to_the_ceiling() {
        let mut detector = watching();
        detector.heard(1090);
        assert!(detector.bound_ns() > 150, "{}", detector.bound_ns());
        detector.heard(9000);
        assert_eq!(detector.bound_ns(), 1000);
        (9010..10000).step_by(10).for_each(|now| detector.heard(now));
        assert_eq!(detector.bound_ns(), 100, "and it forgets them");
    }

    #[test]
    fn a_broken_connection_is_a_sign_unless_the_owner_is_heard_of_again() {
        let mut detector = watching();
        detector.broke(1000);
        assert_eq!(suspected(&mut detector, 1005, 2000), Some(1030));
        detector.opened(1031);
        assert_eq!(suspected(&mut detector, 1035, 1130), None);
    }

    #[test]
    fn an_owner_that_has_said_goodbye_is_not_suspected() {
        let mut detector = watching();
        detector.closed();
        assert_eq!(suspected(&mut detector, 1005, 9000), None);
        assert_eq!(suspected(&mut Detector::new(PATIENCE), 0, 9000), None, "nor one that never came");
    }

    #[test]
    fn time_in_which_nobody_looked_counts_for_nothing() {
        let mut detector = watching();
        assert!(!detector.suspects(5000));
        assert_eq!(suspected(&mut detector, 5005, 9000), Some(5100));
        let mut detector = watching();
        detector.broke(1001);
        assert!(!detector.suspects(5000), "it may have come back meanwhile");
    }
}

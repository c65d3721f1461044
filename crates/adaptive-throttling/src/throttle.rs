//! The law: from the fill of the buffer to the intensity of the throttle.

use crate::Curve;

/// How a throttle behaves.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// What the buffer holds.
    pub buffer_bytes: u64,
    /// The fill, `0.0..1.0`, up to which nothing is throttled.
    pub threshold: f64,
    /// The most that is taken of the producer's speed, `0.0..=1.0`; 1 stops it.
    pub max_intensity: f64,
    pub curve: Curve,
    /// In which time a throttle that is not needed any more falls by its whole range, in nanoseconds. Letting go at once
    /// would fill the buffer again at once.
    pub release_ns: u64,
    /// How far ahead to look, in nanoseconds: the buffer counts as filled by what it would be then at its present growth.
    /// About the time that a change of the throttle takes to show. Zero looks at the present only.
    pub look_ahead_ns: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            buffer_bytes: 256 << 20,
            threshold: 0.6,
            max_intensity: 0.9,
            curve: Curve::Linear,
            release_ns: 1_000_000_000,
            look_ahead_ns: 50_000_000,
        }
    }
}

/// Why settings cannot be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SettingsError {
    #[error("the buffer must hold something")]
    Buffer,
    #[error("the threshold is a fill of at least 0 and below 1, not {0}")]
    Threshold(f64),
    #[error("the most that is throttled lies from 0 to 1, not at {0}")]
    Intensity(f64),
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decision {
    /// The part of its speed that the producer loses, `0.0..=max_intensity`.
    pub intensity: f64,
    /// How full the buffer is; above 1 if more was put in than it holds.
    pub fill: f64,
    /// The buffer is full: throttling was not enough, and the emergency mode must act.
    pub overflow: bool,
}

/// The law with what it remembers. Times are nanoseconds on any clock that does not go back.
#[derive(Debug, Clone)]
pub struct Throttle {
    settings: Settings,
    intensity: f64,
    last: Option<(u64, u64)>,
}

impl Throttle {
    /// # Errors
    /// Settings outside their ranges.
    pub fn new(settings: Settings) -> Result<Throttle, SettingsError> {
        if settings.buffer_bytes == 0 {
            return Err(SettingsError::Buffer);
        }
        if !(0.0..1.0).contains(&settings.threshold) {
            return Err(SettingsError::Threshold(settings.threshold));
        }
        if !(0.0..=1.0).contains(&settings.max_intensity) {
            return Err(SettingsError::Intensity(settings.max_intensity));
        }
        Ok(Throttle { settings, intensity: 0.0, last: None })
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Goes on with another buffer size, as a [`crate::Plan`] may wish.
    pub fn set_buffer_bytes(&mut self, bytes: u64) {
        self.settings.buffer_bytes = bytes.max(1);
    }

    /// Tells that the buffer held `buffered_bytes` at `now_ns`, and what to do.
    pub fn observe(&mut self, buffered_bytes: u64, now_ns: u64) -> Decision {
        let capacity = self.settings.buffer_bytes as f64;
        let fill = buffered_bytes as f64 / capacity;
        let expected = (buffered_bytes as f64 + self.growth(buffered_bytes, now_ns)) / capacity;
        let wanted = self.wanted(fill.max(expected));
        let elapsed = self.last.map_or(0, |(_, before)| now_ns.saturating_sub(before));
        self.intensity = if wanted >= self.intensity { wanted } else { self.released(elapsed).max(wanted) };
        self.last = Some((buffered_bytes, now_ns));
        Decision { intensity: self.intensity, fill, overflow: buffered_bytes >= self.settings.buffer_bytes }
    }

    /// What the buffer gains until the time looked ahead to, if it grows.
    fn growth(&self, buffered_bytes: u64, now_ns: u64) -> f64 {
        let Some((before_bytes, before_ns)) = self.last else { return 0.0 };
        let elapsed = now_ns.saturating_sub(before_ns);
        if elapsed == 0 {
            return 0.0;
        }
        let gained = buffered_bytes.saturating_sub(before_bytes) as f64;
        gained / elapsed as f64 * self.settings.look_ahead_ns as f64
    }

    fn wanted(&self, fill: f64) -> f64 {
        let Settings { threshold, max_intensity, curve, .. } = &self.settings;
        if fill <= *threshold { 0.0 } else { max_intensity * curve.at((fill - threshold) / (1.0 - threshold)) }
    }

    /// The intensity after letting go for so long.
    fn released(&self, elapsed_ns: u64) -> f64 {
        let Settings { max_intensity, release_ns, .. } = self.settings;
        if release_ns == 0 { 0.0 } else { self.intensity - max_intensity * elapsed_ns as f64 / release_ns as f64 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;

    fn throttle(settings: Settings) -> Throttle {
        Throttle::new(settings).unwrap()
    }

    fn plain() -> Settings {
        Settings { buffer_bytes: 1000, threshold: 0.5, max_intensity: 0.8, look_ahead_ns: 0, ..Settings::default() }
    }

    #[test]
    fn below_the_threshold_nothing_happens_and_above_it_the_curve_does() {
        let mut t = throttle(plain());
        assert_eq!(t.observe(500, 0).intensity, 0.0);
        assert_eq!(t.observe(750, 1).intensity, 0.4);
        let full = t.observe(1000, 2);
        assert_eq!((full.intensity, full.fill, full.overflow), (0.8, 1.0, true));
    }

    #[test]
    fn it_lets_go_slowly() {
        let mut t = throttle(plain());
        t.observe(1000, 0);
        assert_eq!(t.observe(0, 500 * MS).intensity, 0.4);
        assert_eq!(t.observe(0, 1000 * MS).intensity, 0.0);
    }

    #[test]
    fn a_buffer_that_grows_fast_is_met_before_it_is_full() {
        let mut t = throttle(Settings { look_ahead_ns: 100 * MS, ..plain() });
        t.observe(0, 0);
        // 400 in 100 ms: 800 after another 100 ms.
        let decision = t.observe(400, 100 * MS);
        assert!((decision.intensity - 0.48).abs() < 1e-9, "{decision:?}");
    }

    #[test]
    fn impossible_settings_are_refused() {
        let refused = |change: fn(&mut Settings)| {
            let mut settings = plain();
            change(&mut settings);
            Throttle::new(settings).is_err()
        };
        assert!(refused(|s| s.buffer_bytes = 0));
        assert!(refused(|s| s.threshold = 1.0));
        assert!(refused(|s| s.threshold = f64::NAN));
        assert!(refused(|s| s.max_intensity = 1.1));
    }

    proptest! {
        #[test]
        fn the_intensity_stays_in_its_range(
            observations in proptest::collection::vec((0..u64::MAX, 0..u64::MAX), 1..50),
            max in 0.0..=1.0,
        ) {
            let mut t = throttle(Settings { max_intensity: max, ..Settings::default() });
            for (bytes, now) in observations {
                let decision = t.observe(bytes, now);
                prop_assert!((0.0..=max).contains(&decision.intensity));
                prop_assert_eq!(decision.overflow, bytes >= t.settings().buffer_bytes);
            }
        }
    }
}

//! How strongly to throttle between the threshold and a full buffer.

use std::fmt;
use std::str::FromStr;

/// Most points of a custom curve.
pub const MAX_POINTS: usize = 256;

/// The largest steepness: beyond, the curve is a step for all purposes, and `exp` would leave its range.
const MAX_STEEPNESS: f64 = 50.0;

/// A rising function from `0..=1` to `0..=1`.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Curve {
    /// The value itself.
    #[default]
    Linear,
    /// `(e^(k·x) − 1) / (e^k − 1)`: gentle first, then hard. The larger the steepness `k`, the later.
    Exponential(f64),
    /// Straight lines between points.
    Custom(Points),
}

/// The points of a custom curve: at least two, from x = 0 to x = 1, x rising, y not falling, all within `0..=1`.
#[derive(Debug, Clone, PartialEq)]
pub struct Points(Vec<(f64, f64)>);

/// Why a curve cannot be.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CurveError {
    #[error("{0:?} is no curve: take linear, exponential or exponential:STEEPNESS")]
    Unknown(String),
    #[error("a steepness lies above 0 and at most at {MAX_STEEPNESS}, not at {0}")]
    Steepness(f64),
    #[error("a curve has 2 to {MAX_POINTS} points, not {0}")]
    Count(usize),
    #[error("line {line} of the curve is no point: write two numbers from 0 to 1, fill and intensity")]
    Line { line: usize },
    #[error("point {0} of the curve lies outside 0 to 1")]
    Range(usize),
    #[error("a curve begins at fill 0 and ends at fill 1")]
    Ends,
    #[error("point {0} of the curve falls: fill must rise and intensity must not fall from point to point")]
    Falls(usize),
}

impl Curve {
    /// An exponential curve.
    pub fn exponential(steepness: f64) -> Result<Curve, CurveError> {
        let possible = steepness > 0.0 && steepness <= MAX_STEEPNESS;
        if possible { Ok(Curve::Exponential(steepness)) } else { Err(CurveError::Steepness(steepness)) }
    }

    /// A curve through points.
    pub fn custom(points: Vec<(f64, f64)>) -> Result<Curve, CurveError> {
        if !(2..=MAX_POINTS).contains(&points.len()) {
            return Err(CurveError::Count(points.len()));
        }
        let unit = 0.0..=1.0;
        if let Some(odd) = points.iter().position(|(x, y)| !unit.contains(x) || !unit.contains(y)) {
            return Err(CurveError::Range(odd));
        }
        if points.first().is_none_or(|first| first.0 != 0.0) || points.last().is_none_or(|last| last.0 != 1.0) {
            return Err(CurveError::Ends);
        }
        match points.windows(2).position(|pair| pair[1].0 <= pair[0].0 || pair[1].1 < pair[0].1) {
            Some(before) => Err(CurveError::Falls(before + 1)),
            None => Ok(Curve::Custom(Points(points))),
        }
    }

    /// Reads a custom curve: a point a line, fill and intensity between spaces; `#` begins a comment.
    pub fn parse_points(text: &str) -> Result<Curve, CurveError> {
        let mut points = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or("").trim();
            if line.is_empty() {
                continue;
            }
            if points.len() == MAX_POINTS {
                return Err(CurveError::Count(MAX_POINTS + 1));
            }
            let mut words = line.split_whitespace().map(str::parse);
            match (words.next(), words.next(), words.next()) {
                (Some(Ok(fill)), Some(Ok(intensity)), None) => points.push((fill, intensity)),
                _ => return Err(CurveError::Line { line: number + 1 }),
            }
        }
        Curve::custom(points)
    }

    /// The value at `x`; what lies outside `0..=1` counts as its end.
    pub fn at(&self, x: f64) -> f64 {
        // NaN counts as full: better too slow than lost.
        let x = if x.is_nan() { 1.0 } else { x.clamp(0.0, 1.0) };
        match self {
            Curve::Linear => x,
            Curve::Exponential(steepness) => (steepness * x).exp_m1() / steepness.exp_m1(),
            Curve::Custom(points) => points.at(x),
        }
    }
}

impl Points {
    fn at(&self, x: f64) -> f64 {
        let after = self.0.partition_point(|point| point.0 < x);
        let Some(&(x1, y1)) = self.0.get(after) else { return 1.0 };
        match after.checked_sub(1).and_then(|before| self.0.get(before)) {
            Some(&(x0, y0)) => y0 + (y1 - y0) * (x - x0) / (x1 - x0),
            None => y1,
        }
    }
}

impl FromStr for Curve {
    type Err = CurveError;

    fn from_str(text: &str) -> Result<Curve, CurveError> {
        match text.split_once(':') {
            None if text == "linear" => Ok(Curve::Linear),
            None if text == "exponential" => Curve::exponential(2.0),
            Some(("exponential", steepness)) => {
                let steepness = steepness.parse().map_err(|_| CurveError::Unknown(text.to_owned()))?;
                Curve::exponential(steepness)
            }
            _ => Err(CurveError::Unknown(text.to_owned())),
        }
    }
}

impl fmt::Display for Curve {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Curve::Linear => formatter.write_str("linear"),
            Curve::Exponential(steepness) => write!(formatter, "exponential:{steepness}"),
            Curve::Custom(points) => write!(formatter, "custom, {} points", points.0.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn curves_are_read_as_they_are_written() {
        for text in ["linear", "exponential:2", "exponential:0.5"] {
            assert_eq!(text.parse::<Curve>().unwrap().to_string(), text);
        }
        for bad in ["", "linear:1", "exponential:", "exponential:0", "exponential:-1", "exponential:NaN", "custom:f"] {
            assert!(bad.parse::<Curve>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_custom_curve_goes_through_its_points() {
        let curve = Curve::parse_points("# fill intensity\n0 0\n0.5 0.2\n1 1 # full\n").unwrap();
        assert_eq!([0.0, 0.25, 0.5, 0.75, 1.0].map(|x| (curve.at(x) * 100.0).round()), [0.0, 10.0, 20.0, 60.0, 100.0]);
    }

    #[test]
    fn impossible_points_are_refused_with_their_place() {
        let refused = |text| Curve::parse_points(text).unwrap_err();
        assert_eq!(refused("0 0"), CurveError::Count(1));
        assert_eq!(refused("0 0\nx 1"), CurveError::Line { line: 2 });
        assert_eq!(refused("0 0\n1 2"), CurveError::Range(1));
        assert_eq!(refused("0 NaN\n1 1"), CurveError::Range(0));
        assert_eq!(refused("0.1 0\n1 1"), CurveError::Ends);
        assert_eq!(refused("0 0.5\n0.5 0.4\n1 1"), CurveError::Falls(1));
        assert_eq!(refused("0 0\n0 0.4\n1 1"), CurveError::Falls(1));
    }

    fn curves() -> impl Strategy<Value = Curve> {
        let inner = proptest::collection::btree_map(1..99_u32, 0..=100_u32, 0..20);
        let custom = inner.prop_map(|inner| {
            let mut intensities: Vec<u32> = inner.values().copied().collect();
            intensities.sort_unstable();
            let points = inner.keys().zip(intensities).map(|(x, y)| (f64::from(*x) / 100.0, f64::from(y) / 100.0));
            Curve::custom([(0.0, 0.0)].into_iter().chain(points).chain([(1.0, 1.0)]).collect()).unwrap()
        });
        prop_oneof![Just(Curve::Linear), (0.01..50.0).prop_map(|k| Curve::exponential(k).unwrap()), custom]
    }

    proptest! {
        #[test]
        fn every_curve_rises_within_its_bounds(curve in curves(), a in -1.0..2.0, b in -1.0..2.0) {
            let (low, high) = if a <= b { (a, b) } else { (b, a) };
            prop_assert!(curve.at(low) <= curve.at(high) + 1e-12);
            prop_assert!((0.0..=1.0).contains(&curve.at(a)));
        }

        #[test]
        fn any_text_is_a_curve_or_an_error(text in "[0-9. #\nNa-]{0,200}") {
            if let Ok(curve) = Curve::parse_points(&text) {
                prop_assert!((0.0..=1.0).contains(&curve.at(0.5)));
            }
        }
    }
}

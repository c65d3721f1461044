//! How unusual a figure is, against its own past.
//!
//! The robust z-score (Iglewicz and Hoaglin, 1993): how many deviations the figure is away from the median, where the
//! deviation is the median of the distances from the median (MAD), scaled so that it is the standard deviation where the
//! figures are normally distributed. Outliers in the past move neither median nor MAD, so that one peak does not hide the
//! next.

/// Fewer figures of the past say nothing about what is usual.
pub const MIN_BASELINE: usize = 60;

/// The MAD of a normal distribution is this part of its standard deviation.
const MAD_OF_DEVIATION: f64 = 0.6745;

/// How many deviations `value` is away from what was usual, always positive; `None` where the past is too short. A deviation
/// is at least `floor`: what hardly ever changes would find the smallest change remarkable.
pub fn robust_z_score(past: impl Iterator<Item = f64>, value: f64, floor: f64) -> Option<f64> {
    let mut past: Vec<f64> = past.filter(|value| value.is_finite()).collect();
    if past.len() < MIN_BASELINE || !value.is_finite() {
        return None;
    }
    let usual = median(&mut past)?;
    past.iter_mut().for_each(|value| *value = (*value - usual).abs());
    let deviation = (median(&mut past)? / MAD_OF_DEVIATION).max(floor);
    let score = (value - usual).abs() / deviation;
    score.is_finite().then_some(score)
}

/// The value in the middle; of an even number, the upper one of the two.
fn median(values: &mut [f64]) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    let middle = values.len() / 2;
    Some(*values.select_nth_unstable_by(middle, f64::total_cmp).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Figures that swing between 9 and 11: their median is 10, their MAD 1.
    fn swinging() -> impl Iterator<Item = f64> {
        [9.0, 10.0, 11.0].into_iter().cycle().take(300)
    }

    #[test]
    fn what_is_as_ever_is_not_unusual_and_what_is_not_is() {
        assert_eq!(robust_z_score(swinging(), 10.0, 0.1), Some(0.0));
        assert!(robust_z_score(swinging(), 11.0, 0.1).unwrap() < 1.0);
        assert!(robust_z_score(swinging(), 40.0, 0.1).unwrap() > 20.0);
        assert!(robust_z_score(swinging(), -20.0, 0.1).unwrap() > 20.0);
    }

    #[test]
    fn peaks_of_the_past_do_not_hide_the_next() {
        let past = swinging().chain(std::iter::repeat_n(1000.0, 100));
        assert!(robust_z_score(past, 100.0, 0.1).unwrap() > 20.0);
    }

    #[test]
    fn a_figure_that_never_changed_may_change_a_little() {
        let flat = || std::iter::repeat_n(0.0, 100);
        assert_eq!(robust_z_score(flat(), 2.0, 5.0), Some(0.4));
        assert_eq!(robust_z_score(flat(), 50.0, 5.0), Some(10.0));
    }

    #[test]
    fn a_short_past_and_figures_that_are_none_say_nothing() {
        assert_eq!(robust_z_score(swinging().take(MIN_BASELINE - 1), 40.0, 1.0), None);
        assert_eq!(robust_z_score(std::iter::repeat_n(f64::NAN, 100), 1.0, 1.0), None);
        assert_eq!(robust_z_score(swinging(), f64::INFINITY, 1.0), None);
    }
}

//! Sizes, times and words for people.

use queztl_api::Timestamp;
use serde::Serialize;

/// The text on one line and without control characters.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A size: the largest unit that keeps it at 1 or more.
pub fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let unit = ((63 - bytes.max(1).leading_zeros()) / 10).min(units.len() as u32);
    match unit {
        0 => format!("{bytes} bytes"),
        unit => {
            let value = bytes as f64 / (1u64 << (unit * 10)) as f64;
            let text = format!("{value:.1}");
            format!("{} {}", text.trim_end_matches(".0"), units[unit as usize - 1])
        }
    }
}

/// A time span, in the largest unit that fits it: `45s`, `12m`, `3h`, `9d`.
pub fn span(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..120 => format!("{s}s"),
        s @ 120..7200 => format!("{}m", s / 60),
        s @ 7200..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

/// How long ago.
pub fn age(at: Timestamp) -> String {
    span(Timestamp::now().as_second() - at.as_second())
}

/// A time, to the second.
pub fn time(at: Timestamp) -> String {
    let whole = Timestamp::from_second(at.as_second()).unwrap_or(at);
    whole.to_string()
}

/// Nanoseconds as a person reads them.
pub fn duration_ns(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} us", ns as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.1} s", ns as f64 / 1e9),
    }
}

/// The word of a value that is a word in JSON.
pub fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let texts = [0, 512, 1024, 1 << 20, 3 << 29, 8 << 30, 3 << 50].map(size);
        assert_eq!(texts, ["0 bytes", "512 bytes", "1 KiB", "1 MiB", "1.5 GiB", "8 GiB", "3072 TiB"]);
    }

    #[test]
    fn spans_take_the_unit_that_fits() {
        let texts = [-5, 0, 119, 120, 7199, 7200, 172_799, 172_800].map(span);
        assert_eq!(texts, ["0s", "0s", "119s", "2m", "119m", "2h", "47h", "2d"]);
    }

    #[test]
    fn nothing_printed_speaks_to_the_terminal() {
        assert_eq!(plain("a\x1b]0;b\x07\n\u{9b}c"), "a ]0;b   c");
    }
}

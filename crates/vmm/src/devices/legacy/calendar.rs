//! Dates of the Gregorian calendar, for the clock device.

use serde::{Deserialize, Serialize};

/// A moment with a resolution of one second, as the clock's registers show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DateTime {
    pub(super) year: i64,
    /// 1..=12
    pub(super) month: u8,
    /// 1..=31
    pub(super) day: u8,
    /// 1 is Sunday.
    pub(super) weekday: u8,
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
}

const SECONDS_PER_DAY: i64 = 86_400;
/// Days in the 400 years after which the calendar repeats itself.
const DAYS_PER_ERA: i64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01.
const DAYS_TO_1970: i64 = 719_468;

impl DateTime {
    /// Whether the year is one that calculating with is safe; the other fields may have any value.
    pub(super) fn is_possible(&self) -> bool {
        self.year.abs() < 1_000_000
    }

    /// From seconds since 1970-01-01 UTC.
    pub(super) fn from_seconds(seconds: i64) -> DateTime {
        let (days, rest) = (seconds.div_euclid(SECONDS_PER_DAY), seconds.rem_euclid(SECONDS_PER_DAY));
        // Years that start in March have their leap day at the end.
        let shifted = days + DAYS_TO_1970;
        let (era, day_of_era) = (shifted.div_euclid(DAYS_PER_ERA), shifted.rem_euclid(DAYS_PER_ERA));
        let leap_days = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / (DAYS_PER_ERA - 1);
        let year_of_era = (day_of_era - leap_days) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // Months from March on have 153 days in every five.
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = (month_from_march + 2) % 12 + 1;
        DateTime {
            year: era * 400 + year_of_era + i64::from(month <= 2),
            month: month as u8,
            day: day as u8,
            weekday: ((days + 4).rem_euclid(7) + 1) as u8,
            hour: (rest / 3600) as u8,
            minute: (rest / 60 % 60) as u8,
            second: (rest % 60) as u8,
        }
    }

    /// Seconds since 1970-01-01 UTC. Fields out of range count on (the 32nd of January is the 1st of February).
    pub(super) fn to_seconds(self) -> i64 {
        let month = i64::from(self.month.clamp(1, 12));
        let year = self.year - i64::from(month <= 2);
        let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + i64::from(self.day) - 1;
        let year_of_era = year.rem_euclid(400);
        let day_of_era = 365 * year_of_era + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = year.div_euclid(400) * DAYS_PER_ERA + day_of_era - DAYS_TO_1970;
        let time = i64::from(self.hour) * 3600 + i64::from(self.minute) * 60 + i64::from(self.second);
        days * SECONDS_PER_DAY + time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates_convert_both_ways() {
        for (seconds, year, month, day, weekday) in [
            (0, 1970, 1, 1, 5),
            (951_782_400, 2000, 2, 29, 3),
            (1_735_689_600, 2025, 1, 1, 4),
            (4_107_542_400, 2100, 3, 1, 2),
            (-86_400, 1969, 12, 31, 4),
        ] {
            let date = DateTime::from_seconds(seconds + 3_723);
            assert_eq!((date.year, date.month, date.day, date.weekday), (year, month, day, weekday), "{seconds}");
            assert_eq!((date.hour, date.minute, date.second), (1, 2, 3));
            assert_eq!(date.to_seconds(), seconds + 3_723);
        }
    }

    #[test]
    fn every_day_of_four_centuries_converts_both_ways() {
        for day in -10_000..DAYS_PER_ERA {
            let seconds = day * SECONDS_PER_DAY + 86_399;
            assert_eq!(DateTime::from_seconds(seconds).to_seconds(), seconds);
        }
    }
}

//! Calendar times: croner reads the expression, jiff knows the zones.

use crate::clock::Timestamp;
use jiff::Zoned;
use jiff::tz::TimeZone;
use std::str::FromStr;

/// A cron expression in a time zone.
#[derive(Debug)]
pub(crate) struct Cron {
    expression: croner::Cron,
    zone: TimeZone,
}

impl Cron {
    /// Or everything that is wrong with it.
    pub(crate) fn parse(expression: &str, zone: &str) -> Result<Self, Vec<String>> {
        let parsed = croner::Cron::from_str(expression)
            .map_err(|error| format!("malformed cron expression {expression:?}: {error}"));
        let found = TimeZone::get(zone).map_err(|error| format!("unknown time zone {zone:?}: {error}"));
        match (parsed, found) {
            (Ok(expression), Ok(zone)) => Ok(Self { expression, zone }),
            (parsed, found) => Err(parsed.err().into_iter().chain(found.err()).collect()),
        }
    }

    /// The first time strictly after `time`; `None` if there is none.
    pub(crate) fn next_after(&self, time: Timestamp) -> Option<Timestamp> {
        let zoned = jiff::Timestamp::from_nanosecond(i128::from(time.0)).ok()?.to_zoned(self.zone.clone());
        let next: Zoned = self.expression.find_next_occurrence(&zoned, false).ok()?;
        let next = u64::try_from(next.timestamp().as_nanosecond()).ok().map(Timestamp)?;
        // A rule that stood still would fire for ever at one moment.
        (next > time).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        let time: jiff::Timestamp = text.parse().unwrap();
        Timestamp(u64::try_from(time.as_nanosecond()).unwrap())
    }

    /// The firings in `[from, to]`.
    fn between(expression: &str, zone: &str, from: &str, to: &str) -> Vec<String> {
        let cron = Cron::parse(expression, zone).unwrap();
        let times = std::iter::successors(Some(Timestamp(at(from).0 - 1)), |&last| cron.next_after(last));
        times
            .skip(1)
            .take_while(|&time| time <= at(to))
            .map(|time| jiff::Timestamp::from_nanosecond(i128::from(time.0)).unwrap().to_string())
            .collect()
    }

    /// A day of Berlin's in UTC, `expression` -> the hours and minutes it fires at.
    fn assert_fires(from: &str, to: &str, table: &[(&str, &[&str])]) {
        for (expression, expected) in table {
            let fired = between(expression, "Europe/Berlin", from, to);
            let fired: Vec<_> = fired.iter().map(|time| &time[11..16]).collect();
            assert_eq!(&fired, expected, "{expression}");
        }
    }

    #[test]
    fn the_spring_gap_delays_a_single_time_to_its_end_and_swallows_others() {
        // On 30 March 2025 the clock goes from 02:00 to 03:00 at 01:00 UTC.
        assert_fires(
            "2025-03-29T23:00:00Z",
            "2025-03-30T21:59:59Z",
            &[
                ("0 1 * * *", &["00:00"]),
                ("0 2 * * *", &["01:00"]),
                ("30 2 * * *", &["01:00"]),
                ("0 3 * * *", &["01:00"]),
                ("30 3 * * *", &["01:30"]),
                ("0 1-3 * * *", &["00:00", "01:00"]),
                ("*/20 1-3 * * *", &["00:00", "00:20", "00:40", "01:00", "01:20", "01:40"]),
            ],
        );
    }

    #[test]
    fn the_repeated_hour_in_autumn_has_a_single_time_once_and_others_twice() {
        // On 26 October 2025 the clock goes from 03:00 back to 02:00 at 01:00 UTC.
        assert_fires(
            "2025-10-25T22:00:00Z",
            "2025-10-26T22:59:59Z",
            &[
                ("59 1 * * *", &["23:59"]),
                ("0 2 * * *", &["00:00"]),
                ("30 2 * * *", &["00:30"]),
                ("0 3 * * *", &["02:00"]),
                ("0 1-3 * * *", &["23:00", "00:00", "01:00", "02:00"]),
                ("*/30 2 * * *", &["00:00", "00:30", "01:00", "01:30"]),
            ],
        );
    }

    #[test]
    fn an_hourly_rhythm_is_not_disturbed_by_either_change() {
        for day in ["2025-03-30", "2025-10-26"] {
            let fired = between("0 * * * *", "Europe/Berlin", &format!("{day}T00:00:00Z"), &format!("{day}T05:00:00Z"));
            assert_eq!(fired.len(), 6, "{fired:?}");
        }
    }

    #[test]
    fn expressions_and_zones_mean_what_they_say() {
        // (expression, zone, from) -> next
        let table = [
            ("0 3 * * *", "UTC", "2025-01-01T03:00:00Z", "2025-01-02T03:00:00Z"),
            ("0 3 * * *", "UTC", "2025-01-01T02:59:59.999999999Z", "2025-01-01T03:00:00Z"),
            ("0 3 * * *", "Europe/Berlin", "2025-07-01T00:00:00Z", "2025-07-01T01:00:00Z"),
            ("0 3 * * *", "Asia/Kolkata", "2025-07-01T00:00:00Z", "2025-07-01T21:30:00Z"),
            ("*/10 * * * * *", "UTC", "2025-01-01T00:00:01.5Z", "2025-01-01T00:00:10Z"),
            ("@monthly", "UTC", "2025-01-01T00:00:00Z", "2025-02-01T00:00:00Z"),
            ("0 9 * * MON-FRI", "UTC", "2025-01-03T09:00:00Z", "2025-01-06T09:00:00Z"),
            ("0 0 29 2 *", "UTC", "2025-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("0 0 L * *", "UTC", "2025-02-01T00:00:00Z", "2025-02-28T00:00:00Z"),
            // The first of the month and every Monday.
            ("0 0 1 * MON", "UTC", "2025-01-02T00:00:00Z", "2025-01-06T00:00:00Z"),
        ];
        for (expression, zone, from, next) in table {
            let cron = Cron::parse(expression, zone).unwrap();
            assert_eq!(cron.next_after(at(from)), Some(at(next)), "{expression} in {zone} after {from}");
        }
    }

    #[test]
    fn what_never_comes_is_found_out() {
        for expression in ["0 0 30 2 *", "0 0 0 1 1 * 2020"] {
            let cron = Cron::parse(expression, "Europe/Berlin").unwrap();
            assert_eq!(cron.next_after(at("2025-01-01T00:00:00Z")), None, "{expression}");
        }
    }

    #[test]
    fn the_next_time_is_always_ahead_and_none_is_jumped_over() {
        for zone in ["Europe/Berlin", "Australia/Lord_Howe", "America/New_York", "UTC"] {
            let cron = Cron::parse("*/7 * * * *", zone).unwrap();
            for start in
                ["2025-03-08T00:00:00Z", "2025-03-29T12:00:00Z", "2025-04-05T00:00:00Z", "2025-10-25T12:00:00Z"]
            {
                let start = at(start).0;
                // Every starting point has either the next time of the one before it, or has reached it.
                let mut expected = cron.next_after(Timestamp(start)).unwrap();
                for step in 1..4_000 {
                    let time = Timestamp(start + step * 31_500_000_000);
                    let next = cron.next_after(time).unwrap();
                    assert!(next > time && (next == expected || expected <= time), "{zone}: {time:?}");
                    expected = next;
                }
            }
        }
    }

    #[test]
    fn both_mistakes_are_told_at_once_with_the_words_of_who_found_them() {
        let problems = Cron::parse("61 * * * *", "Europe/Atlantis").unwrap_err();
        assert_eq!(problems.len(), 2);
        assert!(problems[0].contains("\"61 * * * *\"") && problems[0].len() > 45, "{}", problems[0]);
        assert!(problems[1].contains("\"Europe/Atlantis\""), "{}", problems[1]);
    }
}

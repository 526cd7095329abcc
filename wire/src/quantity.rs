//! Times and sizes as people write them into files and commands: exact, so that what is written reads back as the same.

use std::time::Duration;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// A time of so many milliseconds, for instance `1m 30s`. Days are the largest unit: months and years would be of a length
/// that nobody knows by heart.
#[must_use]
pub fn time(milliseconds: u64) -> String {
    let human = |milliseconds| humantime::format_duration(Duration::from_millis(milliseconds)).to_string();
    match (milliseconds / DAY_MS, milliseconds % DAY_MS) {
        (..30, _) => human(milliseconds),
        (days, 0) => format!("{days}days"),
        (days, rest) => format!("{days}days {}", human(rest)),
    }
}

/// The units of sizes, those that are written first.
const UNITS: [(&str, u64); 6] =
    [("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1), ("MB", 1_000_000), ("kB", 1000), ("KB", 1000)];

/// A size of so many bytes, for instance `64KiB`: in the largest unit of which it is a whole number.
#[must_use]
pub fn size(bytes: u64) -> String {
    let fits = |unit: u64| bytes >= unit && bytes.is_multiple_of(unit);
    let (name, unit) = UNITS.iter().take(3).find(|(_, unit)| fits(*unit)).unwrap_or(&("B", 1));
    format!("{}{name}", bytes / unit)
}

/// The bytes of a size such as `64KiB`, `1 MB` or `512`; nothing when the text is none, or has more than a number holds.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim_start_matches(' ') {
        "" if unit.is_empty() => 1,
        name => UNITS.iter().find(|(other, _)| *other == name)?.1,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_back_as_they_were() {
        for (milliseconds, text) in [
            (0, "0s"),
            (90_000, "1m 30s"),
            (29 * DAY_MS + 1, "29days 1ms"),
            (30 * DAY_MS, "30days"),
            (365 * DAY_MS, "365days"),
            (400 * DAY_MS + 3_600_500, "400days 1h 500ms"),
        ] {
            assert_eq!(time(milliseconds), text);
            assert_eq!(humantime::parse_duration(text), Ok(Duration::from_millis(milliseconds)));
        }
    }

    #[test]
    fn sizes_read_back_as_they_were() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1KiB"),
            (1025, "1025B"),
            (65_536, "64KiB"),
            (1_000_000, "1000000B"),
            (3 << 20, "3MiB"),
            (u64::MAX, "18446744073709551615B"),
        ] {
            assert_eq!(size(bytes), text);
            assert_eq!(parse_size(text), Some(bytes));
        }
    }

    #[test]
    fn sizes_have_a_number_and_a_unit_that_people_know() {
        for (text, bytes) in [
            ("512", 512),
            ("1KB", 1000),
            ("2kB", 2000),
            ("3MB", 3_000_000),
            ("4 KiB", 4096),
            ("5MiB", 5 << 20),
            ("6B", 6),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in [
            "",
            "KiB",
            " 1",
            "1 ",
            "-1",
            "+1",
            "1.5KiB",
            "1kib",
            "1K",
            "1GiB",
            "1KiB ",
            "18446744073709551616",
            "18014398509481985KiB",
        ] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }
}

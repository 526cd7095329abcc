//! Sizes, shares and times as people read them. Programs get the numbers themselves.

use std::time::Duration;

/// A size in bytes: at most three digits and a unit of 1024, or one decimal below ten units.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.5 would be written as 1024: that is 1.0 of the next unit.
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 9.95 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

/// A fraction of 1 in percent. What is not nothing is not written as nothing, and what is not all not as all.
pub(crate) fn share(fraction: f64) -> String {
    if fraction <= 0.0 {
        // Not through the formatter: the sum of no floats is -0.0.
        "0.00%".to_owned()
    } else if fraction < 0.000_05 {
        "<0.01%".to_owned()
    } else if (0.999_95..1.0).contains(&fraction) {
        ">99.99%".to_owned()
    } else {
        format!("{:.2}%", fraction * 100.0)
    }
}

/// A time in its two largest units.
pub(crate) fn time(milliseconds: u64) -> String {
    if milliseconds < 1000 {
        return format!("{milliseconds} ms");
    }
    let seconds = Duration::from_millis(milliseconds).as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    let parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds % 60, "s")];
    let from = parts.iter().position(|part| part.0 > 0).unwrap_or(parts.len() - 1);
    let shown: Vec<String> =
        parts[from..].iter().take(2).filter(|part| part.0 > 0).map(|(count, unit)| format!("{count} {unit}")).collect();
    shown.join(" ")
}

/// A short time: below a millisecond in microseconds, below ten with one decimal.
pub(crate) fn short_time(microseconds: u64) -> String {
    match microseconds {
        0..1000 => format!("{microseconds} us"),
        1000..10_000 => format!("{:.1} ms", microseconds as f64 / 1000.0),
        _ => time(microseconds / 1000),
    }
}

/// A number and its noun: `1 session`, `2 sessions`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (10 * 1024 - 52, "9.9 KiB"),
            (10 * 1024 - 1, "10 KiB"),
            (1023 * 1024 + 511, "1023 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (1 << 30, "1.0 GiB"),
            (250 << 40, "250 TiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn shares_are_never_rounded_to_nothing_or_all() {
        for (fraction, text) in [
            (0.0, "0.00%"),
            (-0.0, "0.00%"),
            (0.000_01, "<0.01%"),
            (0.000_05, "0.01%"),
            (1.0 / 3.0, "33.33%"),
            (0.999_9, "99.99%"),
            (0.999_99, ">99.99%"),
            (1.0, "100.00%"),
        ] {
            assert_eq!(share(fraction), text, "{fraction}");
        }
    }

    #[test]
    fn times_have_two_units_at_most() {
        for (milliseconds, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1000, "1 s"),
            (61_000, "1 min 1 s"),
            (3_600_000, "1 h"),
            (3_605_000, "1 h"),
            (90_061_000, "1 d 1 h"),
        ] {
            assert_eq!(time(milliseconds), text, "{milliseconds}");
        }
    }

    #[test]
    fn short_times_have_a_unit_that_fits() {
        for (microseconds, text) in [
            (0, "0 us"),
            (999, "999 us"),
            (1000, "1.0 ms"),
            (1449, "1.4 ms"),
            (10_999, "10 ms"),
            (61_000_000, "1 min 1 s"),
        ] {
            assert_eq!(short_time(microseconds), text, "{microseconds}");
        }
    }

    #[test]
    fn one_is_singular() {
        assert_eq!((count(0, "session"), count(1, "session")), ("0 sessions".into(), "1 session".into()));
    }
}

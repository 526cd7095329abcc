//! How fast a server answers: distributions over the last minutes, not over all time, for what it was last week tells
//! nobody how it is now.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use wire::report::{QuantilesReport, TimingReport};

/// How long one half of a window is filled. Both are reported: two to four minutes.
const HALF: Duration = Duration::from_secs(120);

/// The longest time that is told from longer ones.
const LONGEST: Duration = Duration::from_secs(600);

/// The precision: one digit, which the histogram has to 1 in 16.
const DIGITS: u8 = 1;

/// The times of one server.
#[derive(Debug, Default)]
pub(super) struct Timing {
    connect: Window,
    first_byte: Window,
    round_trip: Window,
    segments: u64,
    retransmitted: u64,
}

/// What the kernel knows of a connection at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Line {
    /// The smoothed round trip.
    pub(crate) round_trip: Duration,
    /// Segments that were sent.
    pub(crate) segments: u64,
    /// Those that were sent again.
    pub(crate) retransmitted: u64,
}

impl Timing {
    /// A connect was answered.
    pub(super) fn connected(&mut self, after: Duration, now: Instant) {
        self.connect.record(after, now);
    }

    /// The first byte came.
    pub(super) fn answered(&mut self, after: Duration, now: Instant) {
        self.first_byte.record(after, now);
    }

    /// A session ended, and this was its line to the server.
    pub(super) fn sampled(&mut self, line: Line, now: Instant) {
        self.round_trip.record(line.round_trip, now);
        self.segments += line.segments;
        self.retransmitted += line.retransmitted;
    }

    pub(super) fn report(&self, now: Instant) -> TimingReport {
        TimingReport {
            connect: self.connect.report(now),
            first_byte: self.first_byte.report(now),
            round_trip: self.round_trip.report(now),
            segments: self.segments,
            retransmitted: self.retransmitted,
        }
    }
}

/// A distribution that forgets. No memory until there is something to remember.
#[derive(Debug, Default)]
struct Window(Option<Box<Halves>>);

#[derive(Debug)]
struct Halves {
    since: Instant,
    now: Histogram<u32>,
    before: Histogram<u32>,
}

impl Window {
    fn record(&mut self, time: Duration, now: Instant) {
        let halves = self.0.get_or_insert_with(|| Box::new(Halves::new(now)));
        halves.turn(now);
        let microseconds = time.min(LONGEST).as_micros() as u64;
        // 0 is none of its values.
        halves.now.saturating_record(microseconds.max(1));
    }

    fn report(&self, now: Instant) -> Option<QuantilesReport> {
        let halves = self.0.as_ref()?;
        let age = now.saturating_duration_since(halves.since);
        let mut all = match age {
            age if age < HALF => halves.before.clone(),
            age if age < 2 * HALF => empty(),
            _ => return None,
        };
        // Both have the same bounds.
        all.add(&halves.now).ok()?;
        let at = |quantile| all.value_at_quantile(quantile);
        (!all.is_empty()).then(|| QuantilesReport {
            count: all.len(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
        })
    }
}

impl Halves {
    fn new(now: Instant) -> Self {
        Self { since: now, now: empty(), before: empty() }
    }

    /// Forgets what is too old.
    fn turn(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.since);
        if age < HALF {
            return;
        }
        std::mem::swap(&mut self.now, &mut self.before);
        self.now.reset();
        if age >= 2 * HALF {
            self.before.reset();
        }
        self.since = now;
    }
}

fn empty() -> Histogram<u32> {
    Histogram::new_with_bounds(1, LONGEST.as_micros() as u64, DIGITS).expect("sound bounds")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event;

    #[test]
    fn quantiles_are_near_and_old_ones_are_forgotten() {
        let start = event::now();
        let mut window = Window::default();
        assert_eq!(window.report(start), None);
        for count in 1..=1000 {
            window.record(Duration::from_micros(count), start);
        }
        let near = |value: u64, wanted: u64| value.abs_diff(wanted) * 16 <= wanted;
        let report = window.report(start).expect("some");
        assert_eq!(report.count, 1000);
        assert!(near(report.p50_us, 500) && near(report.p90_us, 900) && near(report.p99_us, 990), "{report:?}");

        let later = start + HALF + Duration::from_secs(1);
        window.record(Duration::from_millis(50), later);
        assert_eq!(window.report(later).expect("some").count, 1001);
        window.record(Duration::ZERO, later + HALF);
        assert_eq!(window.report(later + HALF).expect("some").count, 2);
        assert_eq!(window.report(later + 2 * HALF).expect("some").count, 1, "no news, and yet it forgets");
        assert_eq!(window.report(later + 3 * HALF), None);
        window.record(Duration::from_secs(1_000_000), later + 9 * HALF);
        let report = window.report(later + 9 * HALF).expect("some");
        assert_eq!(report.count, 1);
        assert!(near(report.p50_us, LONGEST.as_micros() as u64), "{report:?}");
    }

    #[test]
    fn a_server_that_nobody_uses_costs_nothing() {
        assert!(size_of::<Timing>() <= 40);
    }
}

//! Who got what: which datagrams of a flow have arrived, and what went wrong with any.

use std::fmt;
use std::ops::AddAssign;

/// The datagrams of one flow that have arrived at one end.
#[derive(Default)]
pub(crate) struct Arrivals {
    /// A bit for each sequence number.
    seen: Vec<u64>,
    /// The number after the greatest that was seen.
    next: u32,
}

/// What is wrong with how a datagram arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Nothing.
    Good,
    /// It comes after a later one of its flow.
    Reordered,
    /// It was there before.
    Doubled,
}

impl Arrivals {
    pub(crate) fn take(&mut self, sequence: u32) -> Arrival {
        let (place, bit) = ((sequence / u64::BITS) as usize, 1 << (sequence % u64::BITS));
        if place >= self.seen.len() {
            self.seen.resize(place + 1, 0);
        }
        if self.seen[place] & bit != 0 {
            return Arrival::Doubled;
        }
        self.seen[place] |= bit;
        if sequence < self.next {
            return Arrival::Reordered;
        }
        self.next = sequence + 1;
        Arrival::Good
    }
}

/// Datagrams that did not come where, when and as they should have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    /// Sent and never seen.
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) reordered: u64,
    /// Seen by a client that had not asked, by a second server of one flow, or from an address nobody had asked.
    pub(crate) strayed: u64,
    /// Seen with other bytes, or another length, than were sent.
    pub(crate) altered: u64,
    /// The kernel refused to send it.
    pub(crate) unsent: u64,
}

impl Faults {
    /// Counts how one datagram arrived; whether it had not been there before.
    pub(crate) fn count(&mut self, arrival: Arrival) -> bool {
        match arrival {
            Arrival::Good => {}
            Arrival::Reordered => self.reordered += 1,
            Arrival::Doubled => self.doubled += 1,
        }
        arrival != Arrival::Doubled
    }
}

impl AddAssign for Faults {
    fn add_assign(&mut self, other: Self) {
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.reordered += other.reordered;
        self.strayed += other.strayed;
        self.altered += other.altered;
        self.unsent += other.unsent;
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            (self.lost, "lost"),
            (self.doubled, "doubled"),
            (self.reordered, "reordered"),
            (self.strayed, "strayed"),
            (self.altered, "altered"),
            (self.unsent, "unsent"),
        ];
        let some: Vec<_> = all.iter().filter(|(count, _)| *count > 0).collect();
        if some.is_empty() {
            return f.write_str("none");
        }
        let words: Vec<_> = some.iter().map(|(count, name)| format!("{count} {name}")).collect();
        f.write_str(&words.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_filled_once_and_late() {
        let mut arrivals = Arrivals::default();
        let taken = [0, 1, 200, 70, 70, 200, 201, 2].map(|sequence| arrivals.take(sequence));
        let (good, late, again) = (Arrival::Good, Arrival::Reordered, Arrival::Doubled);
        assert_eq!(taken, [good, good, good, late, again, again, good, late]);
    }

    #[test]
    fn only_what_went_wrong_is_told() {
        assert_eq!(Faults::default().to_string(), "none");
        assert_eq!(Faults { lost: 3, altered: 1, ..Faults::default() }.to_string(), "3 lost, 1 altered");
    }
}

//! Lazy deadlines: one early guess per entry.
//!
//! An entry's own deadline may move later as often as it likes without a word here: when the guess comes due, its owner
//! compares with the true deadline and pushes again. An entry that ends, or needs an earlier guess, leaves a stale one
//! behind; the owner knows which guess is the entry's own, and drops the stale ones when there are more of them than of
//! the others, so their number stays bounded.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// Stale guesses that are not worth a clean-up.
const SLACK: usize = 1024;

/// When to look at which entry.
#[derive(Debug)]
pub(crate) struct Deadlines<K: Ord>(BinaryHeap<Reverse<(Instant, K)>>);

impl<K: Ord + Copy> Deadlines<K> {
    /// None.
    pub(crate) fn new() -> Self {
        Self(BinaryHeap::new())
    }

    /// Look at `key` at `at`, or as soon after it as there is a turn.
    pub(crate) fn push(&mut self, at: Instant, key: K) {
        self.0.push(Reverse((at, key)));
    }

    /// The earliest guess.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes a guess and its entry, if one is due.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<(Instant, K)> {
        if self.next()? > now {
            return None;
        }
        self.0.pop().map(|Reverse(guess)| guess)
    }

    /// Drops the stale guesses when they outnumber the entries that are `living`, of which each has one guess: linear,
    /// and paid for by the pushes before it.
    pub(crate) fn tidy(&mut self, living: usize, is_current: impl Fn(Instant, K) -> bool) {
        if self.0.len() > 2 * living + SLACK {
            self.0.retain(|Reverse((at, key))| is_current(*at, *key));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::event::now;

    #[test]
    fn entries_come_in_the_order_of_their_time_and_only_when_due() {
        let start = now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut deadlines = Deadlines::new();
        for (ms, key) in [(30, 'c'), (10, 'a'), (20, 'b')] {
            deadlines.push(at(ms), key);
        }
        assert_eq!(deadlines.next(), Some(at(10)));
        assert_eq!(deadlines.pop_due(at(9)), None);
        assert_eq!(deadlines.pop_due(at(25)), Some((at(10), 'a')));
        assert_eq!(deadlines.pop_due(at(25)), Some((at(20), 'b')));
        assert_eq!(deadlines.pop_due(at(25)), None);
        assert_eq!(deadlines.next(), Some(at(30)));
    }

    #[test]
    fn stale_guesses_never_outnumber_the_others_by_much() {
        let start = now();
        let mut deadlines = Deadlines::new();
        for key in 0..100_000u32 {
            deadlines.push(start + Duration::from_secs(3600), key);
            deadlines.tidy(1, |_, alive| alive == key);
            assert!(deadlines.0.len() <= 2 + SLACK);
        }
        assert!(deadlines.0.iter().any(|Reverse((_, key))| *key == 99_999), "the living stay");
    }
}

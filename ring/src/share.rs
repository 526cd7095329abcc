//! An exact part of the hash space: a count of its 2^64 values, never a sample.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};

/// A count of hash values, from 0 to 2^64 (all of them). Exact: shares add up without rounding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Share(u128);

impl Share {
    /// Nothing of the space.
    pub const NONE: Share = Share(0);
    /// The whole space: 2^64 values.
    pub const ALL: Share = Share(1 << 64);

    /// The share of so many hash values.
    pub(crate) fn of_values(count: u128) -> Self {
        debug_assert!(count <= Self::ALL.0, "a share is no more than the whole space");
        Self(count)
    }

    /// How many of the 2^64 hash values.
    #[must_use]
    pub fn count(self) -> u128 {
        self.0
    }

    /// As a fraction from 0 to 1, rounded to what an `f64` can hold.
    #[must_use]
    pub fn fraction(self) -> f64 {
        self.0 as f64 / Self::ALL.0 as f64
    }
}

impl Add for Share {
    type Output = Share;

    fn add(self, other: Share) -> Share {
        Share(self.0 + other.0)
    }
}

impl AddAssign for Share {
    fn add_assign(&mut self, other: Share) {
        *self = *self + other;
    }
}

impl Sum for Share {
    fn sum<I: Iterator<Item = Share>>(shares: I) -> Share {
        shares.fold(Share::NONE, Add::add)
    }
}

/// In percent, with two decimals unless the format asks for another number of them: `12.50%`.
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.*}%", f.precision().unwrap_or(2), self.fraction() * 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_and_print_as_percent() {
        let eighth = Share::of_values(1 << 61);
        assert_eq!(eighth.to_string(), "12.50%");
        assert_eq!(format!("{eighth:.4}"), "12.5000%");
        assert_eq!([eighth; 8].into_iter().sum::<Share>(), Share::ALL);
        assert_eq!(Share::ALL.fraction(), 1.0);
        assert_eq!(Share::NONE.to_string(), "0.00%");
    }
}

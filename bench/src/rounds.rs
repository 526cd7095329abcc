//! Rounds of figures: every balancer in each of them, medians over them, and ratios formed within one, in which a slow
//! moment of the machine meets all balancers alike.

use std::fmt;

use anyhow::Result;

use crate::tables::median;

/// Figures `F` of every balancer `K`, round by round.
pub struct Rounds<K, F> {
    rounds: Vec<Vec<(K, F)>>,
}

/// The median of a figure over the rounds, with the least and the greatest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The smallest one.
    pub least: f64,
    /// The largest one.
    pub greatest: f64,
}

impl Spread {
    /// None of no values.
    #[must_use]
    pub fn of(values: Vec<f64>) -> Option<Self> {
        Some(Self {
            least: values.iter().copied().reduce(f64::min)?,
            greatest: values.iter().copied().reduce(f64::max)?,
            median: median(values)?,
        })
    }
}

impl<K: Copy + PartialEq, F> Rounds<K, F> {
    /// No rounds yet.
    #[must_use]
    pub fn new() -> Self {
        Self { rounds: Vec::new() }
    }

    /// So many rounds, in each of which every balancer is measured. Each begins with another one: nobody always comes after
    /// the same one.
    ///
    /// # Errors
    /// The first measurement that fails.
    pub fn in_turn<B>(count: usize, balancers: &[B], measure: impl Fn(&B) -> Result<(K, F)>) -> Result<Self> {
        let mut rounds = Self::new();
        for round in 0..count {
            let (later, first) = balancers.split_at(round % balancers.len().max(1));
            rounds.push(first.iter().chain(later).map(&measure).collect::<Result<_>>()?);
        }
        Ok(rounds)
    }

    /// Adds a round: the figures of every balancer, taken one after the other.
    pub fn push(&mut self, round: Vec<(K, F)>) {
        self.rounds.push(round);
    }

    /// The balancers, as they were in the first round.
    #[must_use]
    pub fn kinds(&self) -> Vec<K> {
        self.rounds.first().map(|round| round.iter().map(|(kind, _)| *kind).collect()).unwrap_or_default()
    }

    /// The figures of `kind`, round by round.
    pub fn of(&self, kind: K) -> impl Iterator<Item = &F> {
        self.rounds.iter().filter_map(move |round| find(round, kind))
    }

    /// What `figure` takes from the figures of `kind`, over the rounds.
    pub fn spread(&self, kind: K, figure: impl Fn(&F) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.of(kind).filter_map(figure).collect())
    }

    /// The median of [`Rounds::spread`].
    pub fn median(&self, kind: K, figure: impl Fn(&F) -> Option<f64>) -> Option<f64> {
        self.spread(kind, figure).map(|spread| spread.median)
    }

    /// The figure of `kind` as a multiple of that of `base` in the same round, over the rounds. None where `base` has 0.
    pub fn ratio(&self, kind: K, base: K, figure: impl Fn(&F) -> Option<f64>) -> Option<Spread> {
        let ratio = |round: &Vec<_>| Some(figure(find(round, kind)?)? / figure(find(round, base)?)?);
        Spread::of(self.rounds.iter().filter_map(ratio).filter(|ratio| ratio.is_finite()).collect())
    }
}

impl<K: Copy + PartialEq, F> Default for Rounds<K, F> {
    fn default() -> Self {
        Self::new()
    }
}

/// As a ratio is shown.
impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ({:.2}-{:.2})", self.median, self.least, self.greatest)
    }
}

/// A ratio with its range, or a dash.
#[must_use]
pub fn quotient(ratio: Option<Spread>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |ratio| ratio.to_string())
}

fn find<K: Copy + PartialEq, F>(round: &[(K, F)], kind: K) -> Option<&F> {
    round.iter().find(|(other, _)| *other == kind).map(|(_, figures)| figures)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn a_ratio_is_formed_within_each_round() {
        let mut rounds = Rounds::new();
        for (ours, theirs) in [(1.0, 2.0), (30.0, 40.0), (5.0, 5.0)] {
            rounds.push(vec![("theirs", theirs), ("ours", ours)]);
        }
        let ratio = rounds.ratio("ours", "theirs", |value| Some(*value));
        assert_eq!(ratio, Some(Spread { least: 0.5, median: 0.75, greatest: 1.0 }));
        assert_eq!((quotient(ratio), quotient(None)), ("0.75 (0.50-1.00)".to_owned(), "-".to_owned()));
        assert!(rounds.ratio("ours", "nobody", |value| Some(*value)).is_none());
    }

    #[test]
    fn each_round_begins_with_another_balancer() {
        let asked = RefCell::new(Vec::new());
        let rounds = Rounds::in_turn(3, &["a", "b"], |name| {
            asked.borrow_mut().push(*name);
            Ok((*name, asked.borrow().len() as f64))
        })
        .unwrap();
        assert_eq!(*asked.borrow(), ["a", "b", "b", "a", "a", "b"]);
        assert_eq!(rounds.of("b").copied().collect::<Vec<_>>(), [2.0, 3.0, 6.0]);
    }

    #[test]
    fn nothing_is_a_multiple_of_zero() {
        let mut rounds = Rounds::new();
        rounds.push(vec![("theirs", 0.0), ("ours", 0.0)]);
        assert!(rounds.ratio("ours", "theirs", |value| Some(*value)).is_none());
    }
}

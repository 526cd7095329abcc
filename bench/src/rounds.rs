//! Rounds of figures: the median of each, and ratios formed within a round, in which a slow moment of the machine meets
//! all balancers alike.

use std::fmt;

use crate::tables::median;

/// Figures `F` of every balancer `K`, round by round.
pub struct Rounds<K, F> {
    rounds: Vec<Vec<(K, F)>>,
}

/// A median of per-round ratios with the least and the greatest of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// The middle one.
    pub median: f64,
    /// The smallest one.
    pub least: f64,
    /// The largest one.
    pub greatest: f64,
}

impl<K: Copy + PartialEq, F> Rounds<K, F> {
    /// No rounds yet.
    #[must_use]
    pub fn new() -> Self {
        Self { rounds: Vec::new() }
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

    /// The figures of `kind`, a round after the other.
    pub fn of(&self, kind: K) -> impl Iterator<Item = &F> {
        self.rounds.iter().filter_map(move |round| find(round, kind))
    }

    /// The median over the rounds of what `figure` takes from the figures of `kind`.
    pub fn median(&self, kind: K, figure: impl Fn(&F) -> Option<f64>) -> Option<f64> {
        median(self.of(kind).filter_map(figure).collect())
    }

    /// The figure of `kind` as a multiple of that of `base` in the same round, over the rounds.
    pub fn ratio(&self, kind: K, base: K, figure: impl Fn(&F) -> Option<f64>) -> Option<Ratio> {
        let ratios: Vec<f64> = self
            .rounds
            .iter()
            .filter_map(|round| Some(figure(find(round, kind)?)? / figure(find(round, base)?)?))
            .collect();
        Some(Ratio {
            least: ratios.iter().copied().reduce(f64::min)?,
            greatest: ratios.iter().copied().reduce(f64::max)?,
            median: median(ratios)?,
        })
    }
}

impl<K: Copy + PartialEq, F> Default for Rounds<K, F> {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ({:.2}-{:.2})", self.median, self.least, self.greatest)
    }
}

fn find<K: Copy + PartialEq, F>(round: &[(K, F)], kind: K) -> Option<&F> {
    round.iter().find(|(other, _)| *other == kind).map(|(_, figures)| figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_formed_within_each_round() {
        let mut rounds = Rounds::new();
        for (ours, theirs) in [(1.0, 2.0), (30.0, 40.0), (5.0, 5.0)] {
            rounds.push(vec![("theirs", theirs), ("ours", ours)]);
        }
        let ratio = rounds.ratio("ours", "theirs", |value| Some(*value)).unwrap();
        assert_eq!(ratio, Ratio { least: 0.5, median: 0.75, greatest: 1.0 });
        assert_eq!(ratio.to_string(), "0.75 (0.50-1.00)");
        assert!(rounds.ratio("ours", "nobody", |value| Some(*value)).is_none());
    }
}

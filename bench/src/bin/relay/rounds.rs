//! Rounds of figures: every balancer in each of them, medians over them, and ratios formed within one.

use bench::tables::median;

use crate::balancer::Kind;

/// Figures of every balancer, round by round.
pub(crate) struct Rounds<F> {
    rounds: Vec<Vec<(Kind, F)>>,
}

/// The median of a figure over the rounds, with the least and the greatest.
#[derive(Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) greatest: f64,
}

impl Spread {
    /// None of no values.
    pub(crate) fn of(values: Vec<f64>) -> Option<Self> {
        Some(Self {
            least: values.iter().copied().reduce(f64::min)?,
            greatest: values.iter().copied().reduce(f64::max)?,
            median: median(values)?,
        })
    }
}

impl<F> Rounds<F> {
    pub(crate) fn new() -> Self {
        Self { rounds: Vec::new() }
    }

    /// Adds a round: the figures of every balancer, taken one after the other.
    pub(crate) fn push(&mut self, round: Vec<(Kind, F)>) {
        self.rounds.push(round);
    }

    /// The balancers that were measured.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        self.rounds.first().map(|round| round.iter().map(|(kind, _)| *kind).collect()).unwrap_or_default()
    }

    /// The figures of `kind`, round by round.
    pub(crate) fn of(&self, kind: Kind) -> impl Iterator<Item = &F> {
        self.rounds.iter().filter_map(move |round| find(round, kind))
    }

    /// What `figure` takes from the figures of `kind`, over the rounds.
    pub(crate) fn spread(&self, kind: Kind, figure: impl Fn(&F) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.of(kind).filter_map(figure).collect())
    }

    /// The median of [`Rounds::spread`].
    pub(crate) fn median(&self, kind: Kind, figure: impl Fn(&F) -> Option<f64>) -> Option<f64> {
        self.spread(kind, figure).map(|spread| spread.median)
    }

    /// The figure of `kind` as a multiple of that of `base` in the same round, over the rounds. None where `base` has 0.
    pub(crate) fn ratio(&self, kind: Kind, base: Kind, figure: impl Fn(&F) -> Option<f64>) -> Option<Spread> {
        let ratio = |round: &Vec<_>| Some(figure(find(round, kind)?)? / figure(find(round, base)?)?);
        Spread::of(self.rounds.iter().filter_map(ratio).filter(|ratio| ratio.is_finite()).collect())
    }
}

fn find<F>(round: &[(Kind, F)], kind: Kind) -> Option<&F> {
    round.iter().find(|(other, _)| *other == kind).map(|(_, figures)| figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_formed_within_each_round() {
        let mut rounds = Rounds::new();
        for (ours, theirs) in [(1.0, 2.0), (30.0, 40.0), (5.0, 5.0)] {
            rounds.push(vec![(Kind::Haproxy, theirs), (Kind::Balancerd, ours)]);
        }
        let ratio = rounds.ratio(Kind::Balancerd, Kind::Haproxy, |value| Some(*value)).unwrap();
        assert_eq!((ratio.least, ratio.median, ratio.greatest), (0.5, 0.75, 1.0));
        assert!(rounds.ratio(Kind::Balancerd, Kind::Nginx, |value| Some(*value)).is_none());
    }

    #[test]
    fn nothing_is_a_multiple_of_zero() {
        let mut rounds = Rounds::new();
        rounds.push(vec![(Kind::Haproxy, 0.0), (Kind::Balancerd, 0.0)]);
        assert!(rounds.ratio(Kind::Balancerd, Kind::Haproxy, |value| Some(*value)).is_none());
    }
}

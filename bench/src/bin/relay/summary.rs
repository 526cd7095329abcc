//! What a workload comes to: its table, and for each figure that matters a line of medians, ratios and verdicts.

use bench::rounds::{Rounds, Spread, quotient};
use bench::tables::{align, number, table};
use comfy_table::{Table, presets};

use crate::balancer::Kind;

/// Which way a figure is to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    Less,
    More,
}

/// How a figure is called and shown.
#[derive(Clone)]
pub(crate) struct Figure {
    pub(crate) what: String,
    /// Behind the numbers; nothing for a mere count.
    pub(crate) unit: &'static str,
    pub(crate) decimals: usize,
    pub(crate) better: Better,
    /// Whether it has to do with bulk, so that it matters how HAProxy splices.
    pub(crate) bulk: bool,
}

/// What balancerd's figure is to be: at most so much, or at least where more is better.
#[derive(Clone, Copy)]
pub(crate) struct Goal {
    /// Whose figure it is a multiple of; of nobody's when it is a figure itself.
    pub(crate) of: Option<Kind>,
    pub(crate) limit: f64,
}

/// A figure of every balancer.
pub(crate) struct Line {
    pub(crate) figure: Figure,
    /// The medians.
    values: Vec<(Kind, Option<f64>)>,
    /// balancerd's figure as a multiple of that of others.
    ratios: Vec<(Kind, Spread)>,
    goals: Vec<Goal>,
}

/// A latency of every balancer, for a plot.
pub(crate) struct Course {
    pub(crate) what: String,
    /// In seconds.
    pub(crate) values: Vec<(Kind, Spread)>,
}

/// All of one workload.
pub(crate) struct Section {
    pub(crate) title: String,
    table: Table,
    pub(crate) lines: Vec<Line>,
    pub(crate) latencies: Vec<Course>,
}

impl Figure {
    /// One of which less is better.
    pub(crate) fn less(what: impl Into<String>, unit: &'static str, decimals: usize) -> Self {
        Self { what: what.into(), unit, decimals, better: Better::Less, bulk: false }
    }

    /// One of which more is better.
    pub(crate) fn more(what: impl Into<String>, unit: &'static str, decimals: usize) -> Self {
        Self { better: Better::More, ..Self::less(what, unit, decimals) }
    }

    /// The same, of something that has to do with bulk.
    pub(crate) fn of_bulk(self) -> Self {
        Self { bulk: true, ..self }
    }
}

impl Line {
    /// A line of what `take` reads off each round.
    pub(crate) fn new<F>(
        figure: Figure,
        goals: &[Goal],
        rounds: &Rounds<Kind, F>,
        take: impl Copy + Fn(&F) -> Option<f64>,
    ) -> Self {
        let kinds = rounds.kinds();
        let others = kinds.iter().filter(|kind| **kind != Kind::Balancerd);
        let ratio = |kind: &Kind| Some((*kind, rounds.ratio(Kind::Balancerd, *kind, take)?));
        Self {
            figure,
            values: kinds.iter().map(|kind| (*kind, rounds.median(*kind, take))).collect(),
            ratios: others.filter_map(ratio).collect(),
            goals: goals.to_vec(),
        }
    }

    /// The median of `kind`.
    fn value(&self, kind: Kind) -> Option<f64> {
        self.values.iter().find(|(other, _)| *other == kind)?.1
    }

    /// balancerd's figure as a multiple of that of `base`.
    pub(crate) fn ratio(&self, base: Kind) -> Option<Spread> {
        self.ratios.iter().find(|(other, _)| *other == base).map(|(_, ratio)| *ratio)
    }

    /// The median that `goal` is about; nothing when it was not measured.
    fn reached(&self, goal: Goal) -> Option<f64> {
        match goal.of {
            Some(base) => self.ratio(base).map(|ratio| ratio.median),
            None => self.value(Kind::Balancerd),
        }
    }

    /// Whether `value` is as `goal` wants it.
    fn is_within(&self, goal: Goal, value: f64) -> bool {
        match self.figure.better {
            Better::Less => value <= goal.limit,
            Better::More => value >= goal.limit,
        }
    }

    fn bound(&self) -> &'static str {
        match self.figure.better {
            Better::Less => "at most",
            Better::More => "at least",
        }
    }

    /// A sentence for each goal that was measured.
    pub(crate) fn verdicts(&self) -> Vec<String> {
        let verdict = |goal: &Goal| {
            let value = self.reached(*goal)?;
            let of = goal.of.map_or_else(|| self.unit(), |base| format!(" of {}'s", base.name()));
            let reached = if self.is_within(*goal, value) { "reached" } else { "NOT reached" };
            Some(format!(
                "balancerd, {}: {value:.2}{of}, {} {:.2} wanted: {reached}",
                self.figure.what,
                self.bound(),
                goal.limit
            ))
        };
        self.goals.iter().filter_map(verdict).collect()
    }

    /// What is wanted, and whether it is so: `at most 0.88 of haproxy: no`.
    fn wanted(&self) -> String {
        let one = |goal: &Goal| {
            let value = self.reached(*goal)?;
            let of = goal.of.map_or_else(|| self.unit(), |base| format!(" of {}", base.name()));
            let reached = if self.is_within(*goal, value) { "yes" } else { "**no**" };
            Some(format!("{} {}{of}: {reached}", self.bound(), goal.limit))
        };
        self.goals.iter().filter_map(one).collect::<Vec<_>>().join(", ")
    }

    fn shown(&self, kind: Kind) -> String {
        let value = self.value(kind);
        let unit = value.map(|_| self.unit()).unwrap_or_default();
        number(value, self.figure.decimals) + &unit
    }

    /// The unit as it stands behind a number.
    fn unit(&self) -> String {
        if self.figure.unit.is_empty() { String::new() } else { format!(" {}", self.figure.unit) }
    }
}

impl Course {
    /// A course of what `take` reads off each round, in seconds.
    pub(crate) fn new<F>(what: &str, rounds: &Rounds<Kind, F>, take: impl Copy + Fn(&F) -> Option<f64>) -> Self {
        let value = |kind: Kind| Some((kind, rounds.spread(kind, take)?));
        Self { what: what.to_owned(), values: rounds.kinds().into_iter().filter_map(value).collect() }
    }
}

impl Section {
    pub(crate) fn new(title: String, table: Table, lines: Vec<Line>) -> Self {
        Self { title, table, lines, latencies: Vec::new() }
    }

    /// The same with latencies for the plot.
    pub(crate) fn with_latencies(self, latencies: Vec<Course>) -> Self {
        Self { latencies, ..self }
    }

    /// The table for a terminal.
    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// The table as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut table = self.table.clone();
        table.load_style(presets::ASCII_MARKDOWN);
        table.to_string()
    }
}

/// The lines as a Markdown table: the figures of all balancers, and the ratio to HAProxy with its range; in `full` also those to
/// the others, and what is wanted.
pub(crate) fn summary(lines: &[&Line], full: bool) -> String {
    let mut table = table(true);
    let kinds = [Kind::Balancerd, Kind::Haproxy, Kind::HaproxySplice, Kind::Nginx];
    let bases = if full { &kinds[1..] } else { &kinds[1..2] };
    let mut header = vec!["work".to_owned()];
    header.extend(kinds.map(|kind| kind.name().to_owned()));
    header.extend(bases.iter().map(|base| format!("balancerd / {}", base.name())));
    header.extend(full.then(|| "wanted".to_owned()));
    table.set_header(header);
    for line in lines {
        let mut row = vec![line.figure.what.clone()];
        row.extend(kinds.map(|kind| line.shown(kind)));
        row.extend(bases.iter().map(|base| quotient(line.ratio(*base))));
        row.extend(full.then(|| line.wanted()));
        table.add_row(row);
    }
    align(&mut table, 1);
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds() -> Rounds<Kind, f64> {
        let mut rounds = Rounds::new();
        rounds.push(vec![(Kind::Haproxy, 10.0), (Kind::Balancerd, 9.0)]);
        rounds
    }

    fn line(figure: Figure, goals: &[Goal]) -> Line {
        Line::new(figure, goals, &rounds(), |value| Some(*value))
    }

    #[test]
    fn a_goal_is_a_ceiling_or_a_floor() {
        let of = |limit| [Goal { of: Some(Kind::Haproxy), limit }];
        let cost = |limit| line(Figure::less("cost", "us", 1), &of(limit)).verdicts().remove(0);
        assert_eq!(cost(0.9), "balancerd, cost: 0.90 of haproxy's, at most 0.90 wanted: reached");
        assert!(cost(0.89).ends_with("NOT reached"));
        let rate = |limit| line(Figure::more("rate", "", 1), &of(limit)).verdicts().remove(0);
        assert!(rate(0.9).ends_with("at least 0.90 wanted: reached"));
        assert!(rate(0.91).ends_with("NOT reached"));
    }

    #[test]
    fn a_goal_against_nobody_is_about_the_figure_itself() {
        let line = line(Figure::less("memory", "B", 0), &[Goal { of: None, limit: 8.0 }]);
        assert_eq!(line.verdicts(), ["balancerd, memory: 9.00 B, at most 8.00 wanted: NOT reached"]);
    }

    #[test]
    fn a_goal_against_somebody_who_was_not_measured_is_not_judged() {
        assert!(
            line(Figure::less("cost", "us", 1), &[Goal { of: Some(Kind::Nginx), limit: 1.0 }]).verdicts().is_empty()
        );
    }

    #[test]
    fn the_summary_has_figures_ratios_and_goals() {
        let line = line(Figure::less("cost", "us", 1), &[Goal { of: Some(Kind::Haproxy), limit: 0.88 }]);
        let text = summary(&[&line], true);
        let row = text.lines().last().unwrap();
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let wanted =
            ["cost", "9.0 us", "10.0 us", "-", "-", "0.90 (0.90-0.90)", "-", "-", "at most 0.88 of haproxy: **no**"];
        assert_eq!(cells[1..10], wanted);
    }
}

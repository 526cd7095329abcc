//! What is read off each balancer in a round, and the tables of it: medians, and ratios formed within a round.

use std::time::Duration;

use bench::process::Footprint;
use bench::rounds::{Rounds, Spread, quotient};
use bench::tables::{align, number, percentile, table};
use comfy_table::Table;

use crate::account::Faults;
use crate::balancer::Kind;
use crate::ceiling::Ceiling;
use crate::outcome::Outcome;

/// What one balancer did in one run.
pub(crate) struct Figures {
    /// Datagrams that were answered, or arrived, per second.
    rate: f64,
    /// Processor time of the balancer for each of them, in seconds.
    cost: Option<f64>,
    /// The share of the run that the balancer was on a processor.
    busy: Option<f64>,
    /// The share of the run that the balancer waited for a processor.
    waited: Option<f64>,
    /// Latencies in seconds, where there are answers.
    median_latency: Option<f64>,
    tail_latency: Option<f64>,
    faults: Faults,
    /// Of the lost ones, those that were lost at our own sockets.
    overflow: u64,
}

/// Questions with answers.
pub(crate) struct Exchange {
    /// As many as are answered.
    pub(crate) closed: Figures,
    /// At a fixed rate.
    pub(crate) paced: Figures,
}

/// Datagrams one way.
pub(crate) struct Stream {
    /// At a fixed rate.
    pub(crate) paced: Figures,
    /// The highest rate without loss.
    pub(crate) ceiling: Ceiling,
}

impl Figures {
    pub(crate) fn new(outcome: Outcome) -> Self {
        let Outcome { mut tally, done, faults, overflow, spent, waited } = outcome;
        tally.latencies.sort_unstable();
        let latency = |of_1000| percentile(&tally.latencies, of_1000).map(|latency| latency.as_secs_f64());
        let elapsed = tally.elapsed.as_secs_f64();
        let cost = |spent: Duration| (done > 0).then(|| spent.as_secs_f64() / done as f64);
        Self {
            rate: done as f64 / elapsed,
            cost: spent.and_then(cost),
            busy: spent.map(|spent| spent.as_secs_f64() / elapsed),
            waited: waited.map(|waited| waited.as_secs_f64() / elapsed),
            median_latency: latency(500),
            tail_latency: latency(990),
            faults,
            overflow,
        }
    }
}

/// A table of questions with answers; `what` names one of them.
pub(crate) fn exchange_table(rounds: &Rounds<Kind, Exchange>, what: &str, markdown: bool) -> Table {
    let mut table = table(markdown);
    table.set_header([
        "balancer".to_owned(),
        format!("{what}s/s"),
        format!("CPU us/{what}"),
        "core %".to_owned(),
        "p50 us".to_owned(),
        "p99 us".to_owned(),
        "CPU us paced".to_owned(),
        "core % paced".to_owned(),
        "waited % paced".to_owned(),
        "p50 us paced".to_owned(),
        "p99 us paced".to_owned(),
        "faults".to_owned(),
        format!("{what}s/s / nginx"),
        "CPU / nginx".to_owned(),
        "CPU paced / nginx".to_owned(),
    ]);
    for kind in rounds.kinds() {
        let median = |figure: &dyn Fn(&Exchange) -> Option<f64>| rounds.median(kind, figure);
        let micro = |seconds: Option<f64>| number(seconds.map(|seconds| seconds * 1e6), 2);
        let wait = |seconds: Option<f64>| number(seconds.map(|seconds| seconds * 1e6), 0);
        let share = |share: Option<f64>| number(share.map(|share| share * 100.0), 0);
        table.add_row([
            kind.name().to_owned(),
            number(median(&|figures| Some(figures.closed.rate)), 0),
            micro(median(&|figures| figures.closed.cost)),
            share(median(&|figures| figures.closed.busy)),
            wait(median(&|figures| figures.closed.median_latency)),
            wait(median(&|figures| figures.closed.tail_latency)),
            micro(median(&|figures| figures.paced.cost)),
            share(median(&|figures| figures.paced.busy)),
            share(median(&|figures| figures.paced.waited)),
            wait(median(&|figures| figures.paced.median_latency)),
            wait(median(&|figures| figures.paced.tail_latency)),
            faults(rounds.of(kind).flat_map(|figures| [&figures.closed, &figures.paced])),
            quotient(rate_ratio(rounds, kind)),
            quotient(rounds.ratio(kind, Kind::Nginx, |figures| figures.closed.cost)),
            quotient(rounds.ratio(kind, Kind::Nginx, |figures| figures.paced.cost)),
        ]);
    }
    align(&mut table, 1);
    table
}

/// How many `kind` did as a multiple of what nginx did.
pub(crate) fn rate_ratio(rounds: &Rounds<Kind, Exchange>, kind: Kind) -> Option<Spread> {
    rounds.ratio(kind, Kind::Nginx, |figures| Some(figures.closed.rate))
}

/// What each cost balancerd as a part of what it cost `base`: in the closed loop, and at the fixed rate.
pub(crate) fn exchange_cost_ratios(rounds: &Rounds<Kind, Exchange>, base: Kind) -> [Option<Spread>; 2] {
    [
        rounds.ratio(Kind::Balancerd, base, |figures| figures.closed.cost),
        rounds.ratio(Kind::Balancerd, base, |figures| figures.paced.cost),
    ]
}

/// A table of datagrams one way.
pub(crate) fn stream_table(rounds: &Rounds<Kind, Stream>, markdown: bool) -> Table {
    let mut table = table(markdown);
    table.set_header([
        "balancer",
        "CPU us/datagram",
        "core %",
        "waited %",
        "faults",
        "highest/s without loss",
        "CPU / nginx",
        "highest / nginx",
    ]);
    for kind in rounds.kinds() {
        let open = rounds.of(kind).any(|figures| figures.ceiling.open);
        let highest = number(rounds.median(kind, |figures| Some(figures.ceiling.rate)), 0);
        table.add_row([
            kind.name().to_owned(),
            number(rounds.median(kind, |figures| Some(figures.paced.cost? * 1e6)), 2),
            number(rounds.median(kind, |figures| Some(figures.paced.busy? * 100.0)), 0),
            number(rounds.median(kind, |figures| Some(figures.paced.waited? * 100.0)), 0),
            faults(rounds.of(kind).map(|figures| &figures.paced)),
            if open { format!("{highest} or more") } else { highest },
            quotient(stream_cost_ratio(rounds, kind, Kind::Nginx)),
            quotient(ceiling_ratio(rounds, kind, Kind::Nginx)),
        ]);
    }
    align(&mut table, 1);
    table
}

/// What a datagram cost `kind` as a part of what it cost `base`.
pub(crate) fn stream_cost_ratio(rounds: &Rounds<Kind, Stream>, kind: Kind, base: Kind) -> Option<Spread> {
    rounds.ratio(kind, base, |figures| figures.paced.cost)
}

/// The highest rate of `kind` without loss as a multiple of that of `base`.
pub(crate) fn ceiling_ratio(rounds: &Rounds<Kind, Stream>, kind: Kind, base: Kind) -> Option<Spread> {
    rounds.ratio(kind, base, |figures| (figures.ceiling.rate > 0.0).then_some(figures.ceiling.rate))
}

/// A table of the memory per idle flow.
pub(crate) fn memory_table(rounds: &Rounds<Kind, Footprint>, markdown: bool) -> Table {
    let mut table = table(markdown);
    table.set_header(["balancer", "own bytes/flow", "resident bytes/flow", "own kB before", "own / nginx"]);
    for kind in rounds.kinds() {
        table.add_row([
            kind.name().to_owned(),
            number(rounds.median(kind, |footprint| Some(footprint.own)), 0),
            number(rounds.median(kind, |footprint| Some(footprint.resident)), 0),
            number(rounds.median(kind, |footprint| Some(footprint.before / 1024.0)), 0),
            quotient(rounds.ratio(kind, Kind::Nginx, |footprint| Some(footprint.own))),
        ]);
    }
    align(&mut table, 1);
    table
}

/// What went wrong in all rounds together.
fn faults<'a>(all: impl Iterator<Item = &'a Figures>) -> String {
    let (mut faults, mut overflow) = (Faults::default(), 0);
    for figures in all {
        faults += figures.faults;
        overflow += figures.overflow;
    }
    match overflow {
        0 => faults.to_string(),
        some => format!("{faults} ({some} of them by the load)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Tally;

    #[test]
    fn figures_are_for_each_datagram_that_came_through() {
        let tally = Tally {
            sent: 250,
            answered: 200,
            elapsed: Duration::from_secs(2),
            latencies: (1..=200).rev().map(Duration::from_secs).collect(),
            ..Tally::default()
        };
        let spent = Some(Duration::from_secs(1));
        let figures =
            Figures::new(Outcome { tally, done: 200, faults: Faults::default(), overflow: 0, spent, waited: None });
        assert_eq!((figures.rate, figures.cost, figures.busy), (100.0, Some(0.005), Some(0.5)));
        assert_eq!((figures.median_latency, figures.tail_latency), (Some(100.0), Some(198.0)));
    }

    #[test]
    fn nothing_that_came_through_costs_nothing_that_can_be_told() {
        let tally = Tally { elapsed: Duration::from_secs(1), ..Tally::default() };
        let spent = Some(Duration::from_secs(1));
        let figures =
            Figures::new(Outcome { tally, done: 0, faults: Faults::default(), overflow: 0, spent, waited: None });
        assert_eq!((figures.cost, figures.median_latency), (None, None));
    }
}

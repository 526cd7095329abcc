//! Rounds of figures, and the tables made of them: medians, and ratios formed within a round.

use std::collections::BTreeSet;
use std::iter::once;
use std::time::Duration;

use bench::load::Tally;
use bench::tables::{align, median, number, percentile, table};
use comfy_table::Table;

use crate::balancer::Kind;
use crate::trace::Traced;

/// What one balancer did in one round under load.
pub(crate) struct Figures {
    /// Requests answered per second.
    rate: f64,
    /// Bytes received by the clients per second.
    byte_rate: f64,
    /// Processor time of the balancer per request, in seconds.
    cost: Option<f64>,
    /// The share of the round that the balancer was on a processor.
    busy: Option<f64>,
    /// Latencies in seconds.
    median_latency: f64,
    tail_latency: f64,
    errors: u64,
}

/// What one balancer did in one round with small requests, alone and beside bulk.
pub(crate) struct Fairness {
    /// The small requests without bulk.
    pub(crate) alone: Figures,
    /// The small requests, with the processor time of both loads.
    pub(crate) beside: Figures,
    /// The bulk beside them, which may be no whole answer in a short round.
    pub(crate) bulk: Tally,
}

impl Fairness {
    fn errors(&self) -> u64 {
        self.alone.errors + self.beside.errors + self.bulk.errors
    }
}

/// Memory per idle session in one round, in bytes.
pub(crate) struct Footprint {
    pub(crate) own: f64,
    pub(crate) resident: f64,
    /// The program's own memory before the sessions came.
    pub(crate) before: f64,
}

/// Figures of every balancer, round by round.
pub(crate) struct Rounds<F> {
    rounds: Vec<Vec<(Kind, F)>>,
}

/// A median of per-round ratios with the least and the greatest of them.
#[derive(Clone, Copy)]
struct Ratio {
    median: f64,
    least: f64,
    greatest: f64,
}

/// How the load tables of a workload show time.
#[derive(Clone, Copy)]
pub(crate) struct Unit {
    pub(crate) name: &'static str,
    pub(crate) seconds: f64,
}

impl Figures {
    /// The figures of a run that cost the balancer `spent`. None when no request was answered.
    pub(crate) fn new(mut tally: Tally, spent: Option<Duration>) -> Option<Self> {
        tally.latencies.sort_unstable();
        let elapsed = tally.elapsed.as_secs_f64();
        let requests = tally.requests as f64;
        Some(Self {
            rate: requests / elapsed,
            byte_rate: tally.bytes as f64 / elapsed,
            cost: spent.map(|spent| spent.as_secs_f64() / requests),
            busy: spent.map(|spent| spent.as_secs_f64() / elapsed),
            median_latency: percentile(&tally.latencies, 50)?.as_secs_f64(),
            tail_latency: percentile(&tally.latencies, 99)?.as_secs_f64(),
            errors: tally.errors,
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

    fn kinds(&self) -> Vec<Kind> {
        self.rounds.first().map(|round| round.iter().map(|(kind, _)| *kind).collect()).unwrap_or_default()
    }

    /// The median over the rounds of what `figure` takes from the figures of `kind`.
    fn median(&self, kind: Kind, figure: impl Fn(&F) -> Option<f64>) -> Option<f64> {
        median(self.rounds.iter().filter_map(|round| figure(find(round, kind)?)).collect())
    }

    /// The figure of `kind` as a multiple of that of `base` in the same round, over the rounds.
    fn ratio(&self, kind: Kind, base: Kind, figure: impl Fn(&F) -> Option<f64>) -> Option<Ratio> {
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

impl Rounds<Figures> {
    /// A table of the load's figures; `bytes` shows throughput in bytes rather than in requests.
    pub(crate) fn load_table(&self, unit: Unit, bytes: bool, markdown: bool) -> Table {
        let mut table = table(markdown);
        table.set_header([
            "balancer".to_owned(),
            if bytes { "MB/s" } else { "requests/s" }.to_owned(),
            format!("CPU {}/request", unit.name),
            "core %".to_owned(),
            format!("p50 {}", unit.name),
            format!("p99 {}", unit.name),
            "errors".to_owned(),
            "throughput / haproxy".to_owned(),
            "p99 / haproxy".to_owned(),
            "CPU / haproxy".to_owned(),
            "CPU / nginx".to_owned(),
        ]);
        let time = |seconds: Option<f64>| number(seconds.map(|seconds| seconds / unit.seconds), 1);
        for kind in self.kinds() {
            let rate = |figures: &Figures| Some(if bytes { figures.byte_rate / 1e6 } else { figures.rate });
            let cost = |figures: &Figures| figures.cost;
            let tail = |figures: &Figures| Some(figures.tail_latency);
            let errors: u64 =
                self.rounds.iter().filter_map(|round| find(round, kind)).map(|figures| figures.errors).sum();
            table.add_row([
                kind.name().to_owned(),
                number(self.median(kind, rate), 0),
                time(self.median(kind, cost)),
                number(self.median(kind, |figures| Some(figures.busy? * 100.0)), 0),
                time(self.median(kind, |figures| Some(figures.median_latency))),
                time(self.median(kind, tail)),
                errors.to_string(),
                quotient(self.ratio(kind, Kind::Haproxy, rate)),
                quotient(self.ratio(kind, Kind::Haproxy, tail)),
                quotient(self.ratio(kind, Kind::Haproxy, cost)),
                quotient(self.ratio(kind, Kind::Nginx, cost)),
            ]);
        }
        align(&mut table, 1);
        table
    }

    /// balancerd's processor time per request as a part of that of `base`.
    pub(crate) fn cost_ratio(&self, base: Kind) -> Option<f64> {
        self.ratio(Kind::Balancerd, base, |figures| figures.cost).map(|ratio| ratio.median)
    }

    /// balancerd's throughput as a multiple of that of `base`.
    pub(crate) fn rate_ratio(&self, base: Kind) -> Option<f64> {
        self.ratio(Kind::Balancerd, base, |figures| Some(figures.rate)).map(|ratio| ratio.median)
    }
}

impl Rounds<Fairness> {
    /// A table of the latency of small requests, alone and beside bulk.
    pub(crate) fn fairness_table(&self, markdown: bool) -> Table {
        let mut table = table(markdown);
        table.set_header([
            "balancer",
            "p50 us alone",
            "p99 us alone",
            "p50 us beside",
            "p99 us beside",
            "requests/s beside",
            "bulk MB/s",
            "core % beside",
            "errors",
            "p99 beside / haproxy",
        ]);
        let time = |seconds: Option<f64>| number(seconds.map(|seconds| seconds * 1e6), 0);
        for kind in self.kinds() {
            let errors: u64 = self.rounds.iter().filter_map(|round| find(round, kind)).map(Fairness::errors).sum();
            table.add_row([
                kind.name().to_owned(),
                time(self.median(kind, |fairness| Some(fairness.alone.median_latency))),
                time(self.median(kind, |fairness| Some(fairness.alone.tail_latency))),
                time(self.median(kind, |fairness| Some(fairness.beside.median_latency))),
                time(self.median(kind, |fairness| Some(fairness.beside.tail_latency))),
                number(self.median(kind, |fairness| Some(fairness.beside.rate)), 0),
                number(
                    self.median(kind, |fairness| {
                        Some(fairness.bulk.bytes as f64 / fairness.bulk.elapsed.as_secs_f64() / 1e6)
                    }),
                    0,
                ),
                number(self.median(kind, |fairness| Some(fairness.beside.busy? * 100.0)), 0),
                errors.to_string(),
                quotient(self.ratio(kind, Kind::Haproxy, |fairness| Some(fairness.beside.tail_latency))),
            ]);
        }
        align(&mut table, 1);
        table
    }

    /// balancerd's p99 beside bulk as a multiple of that of `base`.
    pub(crate) fn tail_ratio(&self, base: Kind) -> Option<f64> {
        let ratio = self.ratio(Kind::Balancerd, base, |fairness| Some(fairness.beside.tail_latency));
        ratio.map(|ratio| ratio.median)
    }
}

impl Rounds<Footprint> {
    /// A table of the memory per idle session.
    pub(crate) fn memory_table(&self, markdown: bool) -> Table {
        let mut table = table(markdown);
        table.set_header([
            "balancer",
            "own bytes/session",
            "resident bytes/session",
            "own kB before",
            "own / haproxy",
            "own / nginx",
        ]);
        let own = |footprint: &Footprint| Some(footprint.own);
        for kind in self.kinds() {
            table.add_row([
                kind.name().to_owned(),
                number(self.median(kind, own), 0),
                number(self.median(kind, |footprint| Some(footprint.resident)), 0),
                number(self.median(kind, |footprint| Some(footprint.before / 1024.0)), 0),
                quotient(self.ratio(kind, Kind::Haproxy, own)),
                quotient(self.ratio(kind, Kind::Nginx, own)),
            ]);
        }
        align(&mut table, 1);
        table
    }

    /// balancerd's own memory per idle session, in bytes.
    pub(crate) fn own_bytes(&self) -> Option<f64> {
        self.median(Kind::Balancerd, |footprint| Some(footprint.own))
    }
}

/// A table of system calls per request: a row for each call, a column for each balancer.
pub(crate) fn calls_table(all: &[Traced], markdown: bool) -> Table {
    let names: BTreeSet<&str> = all.iter().flat_map(|traced| &traced.calls).map(|calls| calls.name.as_str()).collect();
    let mut table = table(markdown);
    table.set_header(once("call".to_owned()).chain(all.iter().map(|traced| traced.kind.name().to_owned())));
    for name in names {
        let per_request = |traced: &Traced| match traced.count(name) {
            0 => "0".to_owned(),
            count => format!("{:.3}", count as f64 / traced.requests as f64),
        };
        table.add_row(once(name.to_owned()).chain(all.iter().map(per_request)));
    }
    table.add_row(once("(requests)".to_owned()).chain(all.iter().map(|traced| traced.requests.to_string())));
    align(&mut table, 1);
    table
}

/// A ratio with its range, or a dash.
fn quotient(ratio: Option<Ratio>) -> String {
    ratio.map_or_else(
        || "-".to_owned(),
        |ratio| format!("{:.2} ({:.2}-{:.2})", ratio.median, ratio.least, ratio.greatest),
    )
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
}

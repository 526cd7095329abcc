//! What is read off each balancer in a round, and the tables of it: medians, and ratios formed within a round.

use std::collections::BTreeSet;
use std::iter::once;
use std::time::Duration;

use bench::load::Tally;
use bench::process::Footprint;
use bench::rounds::{Rounds, quotient};
use bench::tables::{align, number, percentile, table};
use comfy_table::Table;

use crate::balancer::Kind;
use crate::trace::Traced;

/// What one balancer did in one round under load.
pub(crate) struct Figures {
    /// Requests answered per second.
    pub(crate) rate: f64,
    /// Bytes received by the clients per second.
    pub(crate) byte_rate: f64,
    /// Processor time of the balancer per request, in seconds.
    pub(crate) cost: Option<f64>,
    /// The share of the round that the balancer was on a processor.
    busy: Option<f64>,
    /// Latencies in seconds: p50, p99 and p99.9.
    pub(crate) median_latency: f64,
    pub(crate) tail_latency: f64,
    pub(crate) far_tail_latency: f64,
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

/// Memory per session of a client that reads slowly, in one round: the most that was seen of each, in bytes. The first ones
/// are none without a balancer.
#[derive(Clone, Copy, Default)]
pub(crate) struct Pressure {
    /// The program's own memory.
    pub(crate) own: Option<f64>,
    /// What the kernel holds in the balancer's sockets.
    pub(crate) sockets: Option<f64>,
    /// What is in the balancer's pipes.
    pub(crate) in_pipes: Option<f64>,
    /// How many pipes it has, of all sessions together.
    pub(crate) pipes: Option<f64>,
    /// What the kernel holds in all sockets: also in those of clients and servers.
    pub(crate) all_sockets: f64,
}

impl Pressure {
    /// All memory that is there for the balancer's sake.
    pub(crate) fn of_balancer(&self) -> Option<f64> {
        Some(self.own? + self.sockets? + self.in_pipes?)
    }

    /// The most of two looks, each figure for itself.
    pub(crate) fn most(self, other: Self) -> Self {
        let most = |one: Option<f64>, other: Option<f64>| one.zip(other).map(|(one, other)| one.max(other)).or(other);
        Self {
            own: most(self.own, other.own),
            sockets: most(self.sockets, other.sockets),
            in_pipes: most(self.in_pipes, other.in_pipes),
            pipes: most(self.pipes, other.pipes),
            all_sockets: self.all_sockets.max(other.all_sockets),
        }
    }
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
            median_latency: percentile(&tally.latencies, 500)?.as_secs_f64(),
            tail_latency: percentile(&tally.latencies, 990)?.as_secs_f64(),
            far_tail_latency: percentile(&tally.latencies, 999)?.as_secs_f64(),
            errors: tally.errors,
        })
    }
}

/// A table of the load's figures; `bytes` shows throughput in bytes rather than in requests.
pub(crate) fn load_table(rounds: &Rounds<Kind, Figures>, unit: Unit, bytes: bool) -> Table {
    let mut table = table(false);
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
    for kind in rounds.kinds() {
        let rate = |figures: &Figures| Some(if bytes { figures.byte_rate / 1e6 } else { figures.rate });
        let cost = |figures: &Figures| figures.cost;
        let tail = |figures: &Figures| Some(figures.tail_latency);
        let errors: u64 = rounds.of(kind).map(|figures| figures.errors).sum();
        table.add_row([
            kind.name().to_owned(),
            number(rounds.median(kind, rate), 0),
            time(rounds.median(kind, cost)),
            number(rounds.median(kind, |figures| Some(figures.busy? * 100.0)), 0),
            time(rounds.median(kind, |figures| Some(figures.median_latency))),
            time(rounds.median(kind, tail)),
            errors.to_string(),
            quotient(rounds.ratio(kind, Kind::Haproxy, rate)),
            quotient(rounds.ratio(kind, Kind::Haproxy, tail)),
            quotient(rounds.ratio(kind, Kind::Haproxy, cost)),
            quotient(rounds.ratio(kind, Kind::Nginx, cost)),
        ]);
    }
    align(&mut table, 1);
    table
}

/// A table of the latencies at a fixed rate.
pub(crate) fn half_load_table(rounds: &Rounds<Kind, Figures>) -> Table {
    let mut table = table(false);
    table.set_header([
        "balancer",
        "requests/s",
        "core %",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "errors",
        "p50 / haproxy",
        "p99 / haproxy",
        "p99.9 / haproxy",
    ]);
    let percentiles: [fn(&Figures) -> Option<f64>; 3] = [
        |figures| Some(figures.median_latency),
        |figures| Some(figures.tail_latency),
        |figures| Some(figures.far_tail_latency),
    ];
    for kind in rounds.kinds() {
        let errors: u64 = rounds.of(kind).map(|figures| figures.errors).sum();
        let mut row = vec![
            kind.name().to_owned(),
            number(rounds.median(kind, |figures| Some(figures.rate)), 0),
            number(rounds.median(kind, |figures| Some(figures.busy? * 100.0)), 0),
        ];
        row.extend(percentiles.map(|latency| number(rounds.median(kind, |figures| Some(latency(figures)? * 1e6)), 0)));
        row.push(errors.to_string());
        row.extend(percentiles.map(|latency| quotient(rounds.ratio(kind, Kind::Haproxy, latency))));
        table.add_row(row);
    }
    align(&mut table, 1);
    table
}

/// A table of the latency of small requests, alone and beside bulk.
pub(crate) fn fairness_table(rounds: &Rounds<Kind, Fairness>) -> Table {
    let mut table = table(false);
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
    for kind in rounds.kinds() {
        let errors: u64 = rounds.of(kind).map(Fairness::errors).sum();
        table.add_row([
            kind.name().to_owned(),
            time(rounds.median(kind, |fairness| Some(fairness.alone.median_latency))),
            time(rounds.median(kind, |fairness| Some(fairness.alone.tail_latency))),
            time(rounds.median(kind, |fairness| Some(fairness.beside.median_latency))),
            time(rounds.median(kind, |fairness| Some(fairness.beside.tail_latency))),
            number(rounds.median(kind, |fairness| Some(fairness.beside.rate)), 0),
            number(
                rounds.median(kind, |fairness| {
                    Some(fairness.bulk.bytes as f64 / fairness.bulk.elapsed.as_secs_f64() / 1e6)
                }),
                0,
            ),
            number(rounds.median(kind, |fairness| Some(fairness.beside.busy? * 100.0)), 0),
            errors.to_string(),
            quotient(rounds.ratio(kind, Kind::Haproxy, |fairness| Some(fairness.beside.tail_latency))),
        ]);
    }
    align(&mut table, 1);
    table
}

/// A table of the memory per idle session.
pub(crate) fn memory_table(rounds: &Rounds<Kind, Footprint>) -> Table {
    let mut table = table(false);
    table.set_header([
        "balancer",
        "own bytes/session",
        "resident bytes/session",
        "own kB before",
        "own / haproxy",
        "own / nginx",
    ]);
    let own = |footprint: &Footprint| Some(footprint.own);
    for kind in rounds.kinds() {
        table.add_row([
            kind.name().to_owned(),
            number(rounds.median(kind, own), 0),
            number(rounds.median(kind, |footprint| Some(footprint.resident)), 0),
            number(rounds.median(kind, |footprint| Some(footprint.before / 1024.0)), 0),
            quotient(rounds.ratio(kind, Kind::Haproxy, own)),
            quotient(rounds.ratio(kind, Kind::Nginx, own)),
        ]);
    }
    align(&mut table, 1);
    table
}

/// A table of the memory per session of a client that reads slowly.
pub(crate) fn pressure_table(rounds: &Rounds<Kind, Pressure>) -> Table {
    let mut table = table(false);
    table.set_header([
        "balancer",
        "own kB/session",
        "in its sockets kB/session",
        "in its pipes kB/session",
        "pipes",
        "in all sockets kB/session",
        "own / haproxy",
        "own / nginx",
        "all / haproxy",
    ]);
    let own = |pressure: &Pressure| pressure.own;
    let kilo = |figure: fn(&Pressure) -> Option<f64>| move |pressure: &Pressure| Some(figure(pressure)? / 1e3);
    for kind in rounds.kinds() {
        table.add_row([
            kind.name().to_owned(),
            number(rounds.median(kind, kilo(|pressure| pressure.own)), 1),
            number(rounds.median(kind, kilo(|pressure| pressure.sockets)), 0),
            number(rounds.median(kind, kilo(|pressure| pressure.in_pipes)), 1),
            number(rounds.median(kind, |pressure| pressure.pipes), 0),
            number(rounds.median(kind, kilo(|pressure| Some(pressure.all_sockets))), 0),
            quotient(rounds.ratio(kind, Kind::Haproxy, own)),
            quotient(rounds.ratio(kind, Kind::Nginx, own)),
            quotient(rounds.ratio(kind, Kind::Haproxy, Pressure::of_balancer)),
        ]);
    }
    align(&mut table, 1);
    table
}

/// A table of system calls per request: a row for each call, a column for each balancer.
pub(crate) fn calls_table(rounds: &Rounds<Kind, Traced>) -> Table {
    let kinds = rounds.kinds();
    let all = || kinds.iter().flat_map(|kind| rounds.of(*kind));
    let names: BTreeSet<&str> = all().flat_map(|traced| &traced.calls).map(|calls| calls.name.as_str()).collect();
    let mut table = table(false);
    table.set_header(once("call").chain(kinds.iter().map(|kind| kind.name())));
    for name in names {
        let per_request = |traced: &Traced| match traced.count(name) {
            0 => "0".to_owned(),
            count => format!("{:.3}", count as f64 / traced.requests as f64),
        };
        table.add_row(once(name.to_owned()).chain(all().map(per_request)));
    }
    table.add_row(once("(all)".to_owned()).chain(all().map(|traced| format!("{:.3}", traced.per_request()))));
    table.add_row(once("(requests)".to_owned()).chain(all().map(|traced| traced.requests.to_string())));
    align(&mut table, 1);
    table
}

//! Tables of the measurements, and whether the limits are kept. Everything is in milliseconds and megabytes.

use std::time::Duration;

use bench::load::Tally;
use bench::tables::{align, median, number, percentile, table};
use comfy_table::Table;

use crate::Traffic;
use crate::change::{Kind, Reload};
use crate::measure::{Changed, Loop, Reloaded, Who};

/// What a figure may be.
#[derive(Clone, Copy)]
pub(crate) struct Limit {
    pub(crate) what: &'static str,
    pub(crate) milliseconds: f64,
}

/// The middle and the worst of some rounds, in milliseconds.
#[derive(Clone, Copy)]
struct Spread {
    median: f64,
    worst: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = Duration>) -> Option<Self> {
        let values: Vec<f64> = values.map(milliseconds).collect();
        Some(Self { worst: values.iter().copied().reduce(f64::max)?, median: median(values)? })
    }
}

/// A table of the changes: a row for each kind and traffic.
pub(crate) fn changes_table(all: &[Changed], markdown: bool) -> Table {
    let mut table = table(markdown);
    table.set_header([
        "traffic",
        "change",
        "changes",
        "turn ms",
        "turn worst",
        "turn before",
        "loop CPU ms each",
        "waited ms",
        "answer p50 ms",
        "answer p99",
        "request p99 ms",
        "slowest request",
        "failed",
    ]);
    for traffic in [Traffic::Load, Traffic::Idle] {
        for kind in Kind::ALL {
            let rounds = changes_of(all, traffic, kind);
            if rounds.is_empty() {
                continue;
            }
            let mut answers: Vec<Duration> = rounds.iter().flat_map(|changed| &changed.answers).copied().collect();
            answers.sort_unstable();
            let own: Vec<Loop> = rounds.iter().map(|changed| changed.own).collect();
            let mut row = vec![traffic_name(traffic).to_owned(), kind.name().to_owned(), answers.len().to_string()];
            row.extend(turns(&own));
            row.push(number(cost_of_change(all, traffic, kind), 2));
            row.push(number(waited(&own), 0));
            row.push(number(percentile(&answers, 500).map(milliseconds), 1));
            row.push(number(percentile(&answers, 990).map(milliseconds), 1));
            row.extend(load(&rounds.iter().map(|changed| &changed.load).collect::<Vec<_>>()));
            table.add_row(row);
        }
    }
    align(&mut table, 2);
    table
}

/// A table of the reloads: a row for each balancer, kind and traffic.
pub(crate) fn reloads_table(all: &[Reloaded], markdown: bool) -> Table {
    let mut table = table(markdown);
    table.set_header([
        "balancer",
        "traffic",
        "reload",
        "answer ms",
        "answer worst",
        "turn ms",
        "turn worst",
        "turn before",
        "loop CPU ms",
        "all CPU ms",
        "waited ms",
        "request p99 ms",
        "slowest request",
        "failed",
        "MB before",
        "MB at most",
    ]);
    for who in [Who::Balancerd, Who::Haproxy] {
        for traffic in [Traffic::Load, Traffic::Idle] {
            for reload in Reload::ALL {
                let rounds = reloads_of(all, who, traffic, reload);
                if rounds.is_empty() {
                    continue;
                }
                let own: Vec<Loop> = rounds.iter().filter_map(|reloaded| reloaded.own).collect();
                let megabytes = |take: fn((u64, u64)) -> u64| {
                    median(rounds.iter().map(|reloaded| take(reloaded.memory) as f64 / 1e6).collect())
                };
                let mut row = [who.name(), traffic_name(traffic), reload.name()].map(str::to_owned).to_vec();
                row.extend(spread(Spread::of(rounds.iter().filter_map(|reloaded| reloaded.answer))));
                row.extend(turns(&own));
                for ran in [|own: Loop| own.ran, |own: Loop| own.all_ran] {
                    let cost = cost_of_reload(all, traffic, reload, ran);
                    row.push(number(cost.filter(|_| who == Who::Balancerd && traffic == Traffic::Idle), 1));
                }
                row.push(number(waited(&own), 0));
                row.extend(load(&rounds.iter().map(|reloaded| &reloaded.load).collect::<Vec<_>>()));
                row.push(number(megabytes(|(before, _)| before), 0));
                row.push(number(megabytes(|(_, peak)| peak), 0));
                table.add_row(row);
            }
        }
    }
    align(&mut table, 3);
    table
}

/// Says whether the longest turn with changes of `kind` is within its limit.
pub(crate) fn judge_change(all: &[Changed], kind: Kind, limit: Limit) {
    for traffic in [Traffic::Load, Traffic::Idle] {
        let of = |kind| Spread::of(changes_of(all, traffic, kind).iter().map(|changed| changed.own.turn));
        judge(&format!("{}, {}", kind.name(), traffic_name(traffic)), of(kind), of(Kind::None), limit);
    }
}

/// Says whether balancerd's reloads are within their limits, and that no request failed.
pub(crate) fn judge_reloads(all: &[Reloaded], time: Limit, turn: Limit) {
    for traffic in [Traffic::Load, Traffic::Idle] {
        let turns = |reload| {
            let rounds = reloads_of(all, Who::Balancerd, traffic, reload);
            Spread::of(rounds.iter().filter_map(|reloaded| reloaded.own).map(|own| own.turn))
        };
        for reload in Reload::ALL.into_iter().filter(|reload| *reload != Reload::None) {
            let what = format!("reload: {}, {}", reload.name(), traffic_name(traffic));
            let rounds = reloads_of(all, Who::Balancerd, traffic, reload);
            judge(&what, Spread::of(rounds.iter().filter_map(|reloaded| reloaded.answer)), None, time);
            judge(&what, turns(reload), turns(Reload::None), turn);
        }
    }
    for who in [Who::Balancerd, Who::Haproxy] {
        let loads = || all.iter().filter(|reloaded| reloaded.who == who).map(|reloaded| &reloaded.load);
        let (failed, requests) = (errors(loads()), loads().map(|load| load.requests).sum::<u64>());
        if requests > 0 {
            let verdict = if failed == 0 { "reached" } else { "NOT reached" };
            println!("{}: {failed} of {requests} requests failed, 0 wanted: {verdict}", who.name());
        }
    }
}

/// Judges by the median: on a machine that does other work too, the worst round is the scheduler's as likely as not, and the
/// worst one without the change beside it says how likely.
fn judge(what: &str, measured: Option<Spread>, baseline: Option<Spread>, limit: Limit) {
    let Some(measured) = measured else { return };
    let verdict = |value| if value < limit.milliseconds { "reached" } else { "NOT reached" };
    let without = baseline.map_or_else(String::new, |baseline| {
        format!(" (without it {:.2}, at worst {:.2})", baseline.median, baseline.worst)
    });
    println!(
        "balancerd, {what}: {} {:.2} ms, at worst {:.2}{without}, less than {:.0} wanted: {}, in the worst round {}",
        limit.what,
        measured.median,
        measured.worst,
        limit.milliseconds,
        verdict(measured.median),
        verdict(measured.worst),
    );
}

fn changes_of(all: &[Changed], traffic: Traffic, kind: Kind) -> Vec<&Changed> {
    all.iter().filter(|changed| changed.traffic == traffic && changed.kind == kind).collect()
}

fn reloads_of(all: &[Reloaded], who: Who, traffic: Traffic, reload: Reload) -> Vec<&Reloaded> {
    all.iter()
        .filter(|reloaded| reloaded.who == who && reloaded.traffic == traffic && reloaded.reload == reload)
        .collect()
}

/// The loop's processor time for one change, in milliseconds: what the measurement took more than one without changes.
fn cost_of_change(all: &[Changed], traffic: Traffic, kind: Kind) -> Option<f64> {
    let ran = |kind| median(changes_of(all, traffic, kind).iter().map(|it| milliseconds(it.own.ran)).collect());
    let changes = changes_of(all, traffic, kind).iter().map(|changed| changed.answers.len() as f64).collect();
    let changes = median(changes).filter(|changes| *changes > 0.0)?;
    Some((ran(kind)? - ran(Kind::None)?) / changes)
}

/// balancerd's processor time for a reload, in milliseconds: what the measurement took more than one without it.
/// Under load the difference of two loads would be larger.
fn cost_of_reload(all: &[Reloaded], traffic: Traffic, reload: Reload, ran: fn(Loop) -> Duration) -> Option<f64> {
    let ran = |reload| {
        let rounds = reloads_of(all, Who::Balancerd, traffic, reload);
        median(rounds.iter().filter_map(|reloaded| reloaded.own).map(|own| milliseconds(ran(own))).collect())
    };
    (reload != Reload::None).then_some(())?;
    Some(ran(reload)? - ran(Reload::None)?)
}

/// The cells of the longest turns: median and worst, and the median of those before the measurement.
fn turns(all: &[Loop]) -> [String; 3] {
    let before = Spread::of(all.iter().map(|own| own.turn_before));
    let [median, worst] = spread(Spread::of(all.iter().map(|own| own.turn)));
    [median, worst, number(before.map(|before| before.median), 1)]
}

/// How long the loop waited for a processor in one measurement, in milliseconds.
fn waited(all: &[Loop]) -> Option<f64> {
    median(all.iter().map(|own| milliseconds(own.waited)).collect())
}

fn errors<'a>(loads: impl Iterator<Item = &'a Tally>) -> u64 {
    loads.map(|load| load.errors).sum()
}

/// The cells of a spread: median and worst.
fn spread(spread: Option<Spread>) -> [String; 2] {
    [number(spread.map(|spread| spread.median), 1), number(spread.map(|spread| spread.worst), 1)]
}

/// The cells of the load over all rounds: the latency's 99th percentile and its maximum, and failed requests.
fn load(rounds: &[&Tally]) -> [String; 3] {
    let mut latencies: Vec<Duration> = rounds.iter().flat_map(|tally| &tally.latencies).copied().collect();
    latencies.sort_unstable();
    let failed = errors(rounds.iter().copied());
    [
        number(percentile(&latencies, 990).map(milliseconds), 1),
        number(latencies.last().copied().map(milliseconds), 1),
        if latencies.is_empty() { "-".to_owned() } else { failed.to_string() },
    ]
}

fn traffic_name(traffic: Traffic) -> &'static str {
    match traffic {
        Traffic::Load => "load",
        Traffic::Idle => "idle",
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

//! Measures balancerd side by side with nginx `stream` and no balancer at all, with datagrams over loopback, each of which
//! is looked at where it arrives. What is measured how, and what to mind, is in bench/README.md.

mod account;
mod balancer;
mod ceiling;
mod clients;
mod datagram;
mod drops;
mod load;
mod outcome;
mod report;
mod servers;
mod workload;

use std::cell::Cell;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bench::interrupt::Interrupt;
use bench::placement::Placement;
use bench::rounds::{Rounds, Spread};
use clap::{Parser, ValueEnum};
use comfy_table::Table;
use nix::sys::resource::{Resource, getrlimit};
use tempfile::TempDir;

use crate::balancer::{Ending, Kind, Programs};
use crate::load::{Flows, Shape};
use crate::report::Stream;
use crate::servers::Servers;
use crate::workload::{Bench, WARM_UP_FLOWS};

/// What balancerd is to reach: its processor time as a part of nginx's, how much it takes as a multiple of what nginx does,
/// and its own memory per idle flow.
const SMALL_COST_LIMIT: f64 = 0.75;
const TRAIN_COST_LIMIT: f64 = 0.30;
const LEAST_THROUGHPUT: f64 = 1.0;
const IDLE_BYTES_LIMIT: f64 = 400.0;

/// The length of the datagrams that are answered, and of those that go one way.
const SMALL_BYTES: usize = 64;
const LARGE_BYTES: usize = 1200;
/// A flow takes one, but balancerd lets flows have half the places of sessions, each of which counts with two. What else it
/// has is not for flows.
const DESCRIPTORS_PER_FLOW: u64 = 4;
const SPARE_DESCRIPTORS: u64 = 2000;
/// What the verdicts compare with.
const BASES: [Kind; 2] = [Kind::Nginx, Kind::NginxMulti];

/// Measures balancerd side by side with nginx stream and no balancer, with datagrams.
#[derive(Parser)]
struct Arguments {
    /// How often every balancer is measured; the tables show medians.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long one measurement under load lasts; a step of the search for the highest rate takes a quarter of it.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "all")]
    workload: Vec<Workload>,
    /// Which balancers to measure.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "direct,nginx,nginx-multi,balancerd,balancerd-one-way"
    )]
    only: Vec<Kind>,
    /// Flows of the workloads small and one-way.
    #[arg(long, default_value_t = 64)]
    flows: u32,
    /// Questions under way in each flow of the workload small.
    #[arg(long, default_value_t = 4)]
    window: u32,
    /// Datagrams in a train.
    #[arg(long, default_value_t = 32)]
    train: u32,
    /// Flows under way at a time in the workload new-flows.
    #[arg(long, default_value_t = 64)]
    new: u32,
    /// Round trips per second of the workload small where its processor time is measured at a fixed rate.
    #[arg(long, default_value_t = 30_000.0)]
    small_rate: f64,
    /// The same for the datagrams of one-way.
    #[arg(long, default_value_t = 60_000.0)]
    one_way_rate: f64,
    /// The same for the datagrams of trains.
    #[arg(long, default_value_t = 60_000.0)]
    train_rate: f64,
    /// The same for the flows of new-flows.
    #[arg(long, default_value_t = 10_000.0)]
    new_rate: f64,
    /// Flows of the workload idle, if there are descriptors for so many.
    #[arg(long, default_value_t = 10_000)]
    idle: u64,
    /// Lets the scheduler place everything, instead of the balancer on one processor and the rest on the others.
    #[arg(long)]
    unpinned: bool,
    /// The daemon; by default the one beside this program.
    #[arg(long)]
    balancerd: Option<PathBuf>,
    /// Another build of it, which is measured beside it as "before".
    #[arg(long)]
    before: Option<PathBuf>,
    /// Prints Markdown tables.
    #[arg(long)]
    markdown: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// Small datagrams over kept flows, an answer for each.
    Small,
    /// Datagrams of 1200 bytes, one way.
    OneWay,
    /// The same in trains, of one flow and of eight.
    Trains,
    /// A new flow for each small datagram, which ends with its answer.
    NewFlows,
    /// Memory per idle flow.
    Idle,
    /// All of these.
    All,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let bench = prepare(&arguments)?;
    let wants = |workload| arguments.workload.iter().any(|wanted| [workload, Workload::All].contains(wanted));
    let markdown = arguments.markdown;
    let small = Shape { flows: Flows::Kept(arguments.flows), bytes: SMALL_BYTES, train: 1, answered: true };
    let large = Shape { bytes: LARGE_BYTES, answered: false, ..small };

    if wants(Workload::Small) {
        let window = arguments.flows * arguments.window;
        let rounds = bench.exchange(small, window, arguments.small_rate, Ending::Idle)?;
        print(
            &format!(
                "Datagrams of {SMALL_BYTES} bytes and their answers over {} flows: {window} at a time, and {} a second",
                arguments.flows, arguments.small_rate
            ),
            &report::exchange_table(&rounds, "trip", markdown),
        );
        for base in BASES {
            let [closed, paced] = report::exchange_cost_ratios(&rounds, base);
            at_most(&format!("CPU per round trip / {}", base.name()), closed, SMALL_COST_LIMIT);
            at_most(&format!("CPU per round trip at a fixed rate / {}", base.name()), paced, SMALL_COST_LIMIT);
        }
        at_least("round trips / nginx", report::rate_ratio(&rounds, Kind::Balancerd));
    }
    if wants(Workload::OneWay) {
        let rounds = bench.stream(large, arguments.one_way_rate)?;
        print(
            &format!(
                "Datagrams of {LARGE_BYTES} bytes one way over {} flows: {} a second, and as many as none is lost of",
                arguments.flows, arguments.one_way_rate
            ),
            &report::stream_table(&rounds, markdown),
        );
        judge_ceiling("one way", &rounds);
    }
    if wants(Workload::Trains) {
        for flows in [1, 8] {
            let shape = Shape { flows: Flows::Kept(flows), train: arguments.train, ..large };
            let rounds = bench.stream(shape, arguments.train_rate)?;
            print(
                &format!(
                    "Trains of {} datagrams of {LARGE_BYTES} bytes over {flows} flows: {} datagrams a second, and as \
                     many as none is lost of",
                    arguments.train, arguments.train_rate
                ),
                &report::stream_table(&rounds, markdown),
            );
            for base in BASES {
                let ratio = report::stream_cost_ratio(&rounds, Kind::Balancerd, base);
                at_most(&format!("CPU per datagram in trains / {}", base.name()), ratio, TRAIN_COST_LIMIT);
            }
            judge_ceiling("in trains", &rounds);
        }
    }
    if wants(Workload::NewFlows) {
        let shape = Shape { flows: Flows::New, ..small };
        let rounds = bench.exchange(shape, arguments.new, arguments.new_rate, Ending::Answered)?;
        print(
            &format!(
                "New flows, one datagram of {SMALL_BYTES} bytes and its answer each: {} at a time, and {} a second",
                arguments.new, arguments.new_rate
            ),
            &report::exchange_table(&rounds, "flow", markdown),
        );
        at_least("new flows / nginx", report::rate_ratio(&rounds, Kind::Balancerd));
    }
    if wants(Workload::Idle) {
        let flows = idle_flows(arguments.idle)?;
        let rounds = bench.idle(SMALL_BYTES, flows)?;
        print(&format!("Memory of {flows} idle flows"), &report::memory_table(&rounds, markdown));
        if let Some(own) = rounds.median(Kind::Balancerd, |footprint| Some(footprint.own)) {
            verdict(&format!("own bytes per idle flow: {own:.0}, at most {IDLE_BYTES_LIMIT}"), own <= IDLE_BYTES_LIMIT);
        }
    }
    Ok(())
}

/// Opens the servers, and says what will be measured and how.
fn prepare(arguments: &Arguments) -> Result<Bench> {
    ensure!(arguments.rounds > 0, "--rounds must be at least 1");
    ensure!([arguments.flows, arguments.window, arguments.new].iter().all(|count| *count > 0), "nothing to send");
    ensure!(arguments.train > 0 && arguments.train as usize * LARGE_BYTES < servers::LARGEST, "--train: 1 to 54");
    let rates = [arguments.small_rate, arguments.one_way_rate, arguments.train_rate, arguments.new_rate];
    ensure!(rates.iter().all(|rate| *rate >= 1.0), "a rate must be at least 1");
    let duration = Duration::try_from_secs_f64(arguments.seconds).context("--seconds")?;

    let interrupt = Interrupt::watch()?;

    let own = std::env::current_exe().context("find this program")?;
    let balancerd = arguments.balancerd.clone().unwrap_or_else(|| own.with_file_name("balancerd"));
    let programs = Programs { balancerd, before: arguments.before.clone() };
    let mut kinds = Vec::new();
    let before = arguments.before.as_ref().map(|_| &Kind::Before);
    for kind in arguments.only.iter().chain(before) {
        match programs.missing(*kind) {
            Some(program) => println!("{} is left out: there is no {}", kind.name(), program.display()),
            None if !kinds.contains(kind) => kinds.push(*kind),
            None => {}
        }
    }
    ensure!(!kinds.is_empty(), "no balancer to measure");

    let placement = if arguments.unpinned { Placement::free()? } else { Placement::apart()? };
    println!("{} rounds of {} s each, {}", arguments.rounds, arguments.seconds, placement.describe());
    placement.enter_rest()?;
    Ok(Bench {
        servers: Servers::start()?,
        kinds,
        programs,
        placement,
        interrupt,
        rounds: arguments.rounds,
        duration,
        runs: Cell::new(0),
        directory: TempDir::with_prefix("datagrams-bench-").context("create a temporary directory")?,
    })
}

/// How many idle flows there can be, at most as many as are wanted: a balancer that refuses some ends the measurement.
fn idle_flows(wanted: u64) -> Result<u64> {
    let (_, limit) = getrlimit(Resource::RLIMIT_NOFILE).context("read the limit of descriptors")?;
    let most = (limit.saturating_sub(SPARE_DESCRIPTORS) / DESCRIPTORS_PER_FLOW).saturating_sub(WARM_UP_FLOWS);
    if wanted > most {
        println!("\n{wanted} idle flows are too many for a limit of {limit} descriptors: {most} take their place");
    }
    let flows = wanted.min(most);
    ensure!(flows > 0, "no idle flows");
    Ok(flows)
}

fn print(title: &str, table: &Table) {
    println!("\n## {title}\n\n{table}");
}

fn judge_ceiling(what: &str, rounds: &Rounds<Kind, Stream>) {
    for base in BASES {
        let ratio = report::ceiling_ratio(rounds, Kind::Balancerd, base);
        at_least(&format!("highest rate without loss {what} / {}", base.name()), ratio);
    }
}

/// Says whether balancerd's ratio is within its limit; nothing when it was not measured.
fn at_most(what: &str, ratio: Option<Spread>, limit: f64) {
    if let Some(ratio) = ratio {
        verdict(&format!("{what}: {ratio}, at most {limit:.2}"), ratio.median <= limit);
    }
}

/// Says whether balancerd takes as much as nginx does; nothing when it was not measured.
fn at_least(what: &str, ratio: Option<Spread>) {
    if let Some(ratio) = ratio {
        verdict(&format!("{what}: {ratio}, at least {LEAST_THROUGHPUT:.2}"), ratio.median >= LEAST_THROUGHPUT);
    }
}

fn verdict(what: &str, reached: bool) {
    println!("\nbalancerd, {what} wanted: {}", if reached { "reached" } else { "NOT reached" });
}

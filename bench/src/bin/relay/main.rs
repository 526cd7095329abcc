//! Measures balancerd side by side with HAProxy, nginx `stream` and no balancer at all, on the same servers and the
//! same load, over loopback. What is measured how, and what to mind, is in bench/README.md.

mod balancer;
mod chart;
mod document;
mod machine;
mod report;
mod servers;
mod slow;
mod sockets;
mod summary;
mod trace;
mod workload;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bench::client;
use bench::interrupt::Interrupt;
use bench::load::Shape;
use bench::placement::Placement;
use bench::rounds::Rounds;
use clap::{Parser, ValueEnum};
use comfy_table::Table;
use tempfile::TempDir;

use crate::balancer::{Kind, Programs};
use crate::document::{Documents, Run};
use crate::machine::Machine;
use crate::report::{Fairness, Figures, Unit};
use crate::servers::{BULK_BYTES, MEDIUM_BYTES, Servers};
use crate::summary::{Course, Figure, Goal, Line, Section};
use crate::trace::Traced;
use crate::workload::Bench;

/// What balancerd is to reach: its processor time as a part of HAProxy's and of nginx's, the throughput and the latencies as
/// a multiple of HAProxy's, and its own memory per session.
const KEPT_COST: [Goal; 2] = [of(Kind::Haproxy, 0.88), of(Kind::Nginx, 1.0)];
const MEDIUM_COST: [Goal; 2] = [of(Kind::Haproxy, 0.85), of(Kind::Nginx, 0.95)];
const CONNECT_COST: [Goal; 2] = [of(Kind::Haproxy, 0.85), of(Kind::Nginx, 0.95)];
const BULK_COST: [Goal; 3] = [of(Kind::Haproxy, 0.75), of(Kind::HaproxySplice, 0.75), of(Kind::Nginx, 0.25)];
const LEAST_THROUGHPUT: [Goal; 1] = [of(Kind::Haproxy, 1.0)];
const MOST_LATENCY: [Goal; 1] = [of(Kind::Haproxy, 1.0)];
const IDLE_BYTES: [Goal; 1] = [Goal { of: None, limit: 600.0 }];
/// What it keeps at most for a side that does not read: 512 KiB.
const SLOW_KILOBYTES: [Goal; 1] = [Goal { of: None, limit: 524.0 }];
const NO_CALLS: [Goal; 1] = [Goal { of: None, limit: 0.0 }];

const fn of(base: Kind, limit: f64) -> Goal {
    Goal { of: Some(base), limit }
}

/// How long a client of the workload fairness waits between two small requests: 64 of them ask 6400 times a second, a
/// fraction of what any of the balancers can do.
const SMALL_PAUSE: Duration = Duration::from_millis(10);

const MICROSECONDS: Unit = Unit { name: "us", seconds: 1e-6 };
const MILLISECONDS: Unit = Unit { name: "ms", seconds: 1e-3 };

/// Rounds and seconds of a measurement, if nothing else is said, and of a quick one.
const ROUNDS: usize = 5;
const SECONDS: f64 = 1.5;
const QUICK_ROUNDS: usize = 2;
const QUICK_SECONDS: f64 = 0.5;

/// Measures balancerd side by side with HAProxy, nginx stream and no balancer.
#[derive(Parser)]
struct Arguments {
    /// How often every balancer is measured; the tables show medians. Memory is measured half as often.
    #[arg(long, default_value_t = ROUNDS)]
    rounds: usize,
    /// How long one measurement under load lasts.
    #[arg(long, default_value_t = SECONDS)]
    seconds: f64,
    /// Two rounds of half a second, to try it: the figures are rough.
    #[arg(long, conflicts_with_all = ["rounds", "seconds"])]
    quick: bool,
    /// Writes the figures and plots of everything into README.md, docs/benchmarks.md and docs/benchmarks/ of this checkout,
    /// in the place of those that are there.
    #[arg(long, value_name = "CHECKOUT", conflicts_with_all = ["workload", "only", "before"])]
    report: Option<PathBuf>,
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "all")]
    workload: Vec<Workload>,
    /// Which balancers to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "direct,haproxy,haproxy-splice,nginx,balancerd")]
    only: Vec<Kind>,
    /// Connections of the workloads kept, medium, connect, half-load, syscalls and fairness.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Connections of bulk in the workloads bulk and fairness.
    #[arg(long, default_value_t = 8)]
    bulk_connections: usize,
    /// How long each connection of bulk waits between two answers in the workload fairness, in milliseconds.
    #[arg(long, default_value_t = 100)]
    bulk_pause: u64,
    /// Sessions of the workload idle; each takes two descriptors of the balancer.
    #[arg(long, default_value_t = 4000)]
    idle: usize,
    /// Clients of the workload slow; each takes two descriptors of the balancer.
    #[arg(long, default_value_t = 1000)]
    slow: usize,
    /// How long the clients of the workload slow read.
    #[arg(long, default_value_t = 4.0)]
    slow_seconds: f64,
    /// Lets the scheduler place everything, instead of the balancer on one processor and the rest on the others.
    #[arg(long)]
    unpinned: bool,
    /// The daemon; by default the one beside this program.
    #[arg(long)]
    balancerd: Option<PathBuf>,
    /// The control program; by default the one beside this program.
    #[arg(long)]
    balancerctl: Option<PathBuf>,
    /// A folder with another build of both, which is measured beside them as "before".
    #[arg(long)]
    before: Option<PathBuf>,
    /// Prints Markdown tables.
    #[arg(long)]
    markdown: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// Small requests on kept connections.
    Kept,
    /// A new connection for every small request.
    Connect,
    /// Answers of 16 kB on kept connections.
    Medium,
    /// Answers of 10 MB on kept connections.
    Bulk,
    /// Latency of small requests at half of the rate that the slowest balancer reaches.
    HalfLoad,
    /// Small requests beside answers of 10 MB.
    Fairness,
    /// Memory per idle session.
    Idle,
    /// Memory per session of a client that asks for much and reads slowly.
    Slow,
    /// System calls per small request, on kept connections and on new ones.
    Syscalls,
    /// All of these.
    All,
}

/// All but [`Workload::All`], in the order of the tables.
const EACH: [Workload; 9] = [
    Workload::Kept,
    Workload::Medium,
    Workload::Connect,
    Workload::Bulk,
    Workload::HalfLoad,
    Workload::Fairness,
    Workload::Idle,
    Workload::Slow,
    Workload::Syscalls,
];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let documents = arguments.report.as_deref().map(Documents::open).transpose()?;
    let (bench, run) = prepare(&arguments)?;
    let mut sections = Vec::new();
    for workload in EACH {
        if arguments.workload.iter().any(|wanted| [workload, Workload::All].contains(wanted)) {
            for section in measure(&bench, &arguments, workload)? {
                print(&section, arguments.markdown);
                sections.push(section);
            }
        }
    }
    if let Some((documents, run)) = documents.zip(run) {
        documents.write(&run, &sections)?;
    }
    Ok(())
}

/// What comes of one workload.
fn measure(bench: &Bench, arguments: &Arguments, workload: Workload) -> Result<Vec<Section>> {
    let kept = Shape { clients: arguments.connections, request: client::KEPT, kept: true, pause: Duration::ZERO };
    let connect = Shape { request: client::CLOSING, kept: false, ..kept };
    let medium = Shape { request: client::MEDIUM, ..kept };
    let bulk = Shape { clients: arguments.bulk_connections, request: client::BULK, ..kept };
    let rate = Figure::more;
    Ok(match workload {
        Workload::Kept => {
            let rounds = bench.under_load(kept)?;
            let title = format!("Small requests on {} kept connections", kept.clients);
            let table = report::load_table(&rounds, MICROSECONDS, false);
            let cost = Figure::less("CPU per small request", "us", 1);
            vec![load(title, table, &rounds, (cost, &KEPT_COST), rate("small requests", "/s", 0))]
        }
        Workload::Medium => {
            let rounds = bench.under_load(medium)?;
            let title = format!("Answers of {} kB on {} kept connections", MEDIUM_BYTES / 1000, medium.clients);
            let table = report::load_table(&rounds, MICROSECONDS, true);
            let cost = Figure::less("CPU per answer of 16 kB", "us", 1);
            vec![load(title, table, &rounds, (cost, &MEDIUM_COST), rate("answers of 16 kB", "/s", 0))]
        }
        Workload::Connect => {
            let rounds = bench.under_load(connect)?;
            let title = format!("New connections, one request each, {} at a time", connect.clients);
            let table = report::load_table(&rounds, MICROSECONDS, false);
            let cost = Figure::less("CPU per new connection with a request", "us", 1);
            vec![load(title, table, &rounds, (cost, &CONNECT_COST), rate("new connections with a request", "/s", 0))]
        }
        Workload::Bulk => {
            let rounds = bench.under_load(bulk)?;
            let title = format!("Answers of {} MB on {} kept connections", BULK_BYTES / 1_000_000, bulk.clients);
            let table = report::load_table(&rounds, MILLISECONDS, true);
            let cost = Figure::less("CPU per answer of 10 MB", "us", 0).of_bulk();
            vec![load(title, table, &rounds, (cost, &BULK_COST), rate("answers of 10 MB", "/s", 0).of_bulk())]
        }
        Workload::HalfLoad => vec![half_load(bench, kept)?],
        Workload::Fairness => {
            let small = Shape { pause: SMALL_PAUSE, ..kept };
            vec![fairness(bench, small, Shape { pause: Duration::from_millis(arguments.bulk_pause), ..bulk })?]
        }
        Workload::Idle => {
            let rounds = bench.idle()?;
            let title = format!("Memory of {} idle sessions", arguments.idle);
            let own = Figure::less("own memory per idle session", "B", 0);
            let line = Line::new(own, &IDLE_BYTES, &rounds, |footprint| Some(footprint.own));
            vec![Section::new(title, report::memory_table(&rounds), vec![line])]
        }
        Workload::Slow => vec![slow_readers(bench, arguments.slow)?],
        Workload::Syscalls => vec![
            {
                let rounds = bench.system_calls(kept)?;
                let title = format!("System calls per request on {} kept connections, under strace", kept.clients);
                let polls = Figure::less("epoll_ctl calls of a relay under load", "", 0);
                let polls = Line::new(polls, &NO_CALLS, &rounds, |traced| Some(traced.count("epoll_ctl") as f64));
                Section::new(title, report::calls_table(&rounds), vec![calls("small request", &rounds), polls])
            },
            {
                let rounds = bench.system_calls(connect)?;
                let title = format!("System calls per new connection, {} at a time, under strace", connect.clients);
                Section::new(title, report::calls_table(&rounds), vec![calls("new connection", &rounds)])
            },
        ],
        Workload::All => Vec::new(),
    })
}

/// Costs and throughput under a load.
fn load(
    title: String,
    table: Table,
    rounds: &Rounds<Kind, Figures>,
    (cost, goals): (Figure, &[Goal]),
    rate: Figure,
) -> Section {
    let lines = vec![
        Line::new(cost, goals, rounds, |figures| Some(figures.cost? * 1e6)),
        Line::new(rate, &LEAST_THROUGHPUT, rounds, |figures| Some(figures.rate)),
    ];
    Section::new(title, table, lines)
}

fn half_load(bench: &Bench, full: Shape) -> Result<Section> {
    let (rate, rounds) = bench.half_load(full)?;
    let title = format!(
        "Latency of {rate:.0} small requests a second on {} kept connections, half of what the slowest balancer can do",
        full.clients
    );
    let tail = |figures: &Figures| Some(figures.tail_latency);
    let lines = vec![Line::new(Figure::less("p99 at half load", "us", 0), &MOST_LATENCY, &rounds, |figures| {
        Some(tail(figures)? * 1e6)
    })];
    let latencies = vec![
        Course::new("half load, p50", &rounds, |figures| Some(figures.median_latency)),
        Course::new("half load, p99", &rounds, tail),
        Course::new("half load, p99.9", &rounds, |figures| Some(figures.far_tail_latency)),
    ];
    Ok(Section::new(title, report::half_load_table(&rounds), lines).with_latencies(latencies))
}

fn fairness(bench: &Bench, small: Shape, bulk: Shape) -> Result<Section> {
    let rounds = bench.fairness(small, bulk)?;
    let title = format!(
        "Small requests of {} clients that pause {} ms, alone and beside {} of {} MB that pause {} ms",
        small.clients,
        SMALL_PAUSE.as_millis(),
        bulk.clients,
        BULK_BYTES / 1_000_000,
        bulk.pause.as_millis()
    );
    let tail = |fairness: &Fairness| Some(fairness.beside.tail_latency);
    let line = Line::new(
        Figure::less("p99 of small requests beside bulk", "us", 0).of_bulk(),
        &MOST_LATENCY,
        &rounds,
        |fairness| Some(tail(fairness)? * 1e6),
    );
    let latencies = vec![
        Course::new("64 clients with pauses, p99", &rounds, |fairness| Some(fairness.alone.tail_latency)),
        Course::new("the same beside bulk, p99", &rounds, tail),
    ];
    Ok(Section::new(title, report::fairness_table(&rounds), vec![line]).with_latencies(latencies))
}

fn slow_readers(bench: &Bench, clients: usize) -> Result<Section> {
    let rounds = bench.back_pressure()?;
    let title = format!(
        "Memory of {clients} sessions whose clients ask for {} MB and read 40 kB a second at most",
        BULK_BYTES / 1_000_000
    );
    let own = Figure::less("own memory per slow session", "kB", 1);
    let all = Figure::less("own, socket and pipe memory of it", "kB", 0);
    let lines = vec![
        Line::new(own, &SLOW_KILOBYTES, &rounds, |pressure| Some(pressure.own? / 1e3)),
        Line::new(all, &[], &rounds, |pressure| Some(pressure.of_balancer()? / 1e3)),
    ];
    Ok(Section::new(title, report::pressure_table(&rounds), lines))
}

fn calls(what: &str, rounds: &Rounds<Kind, Traced>) -> Line {
    Line::new(Figure::less(format!("system calls per {what}"), "", 2), &[], rounds, |traced| Some(traced.per_request()))
}

/// Starts the servers, and says what will be measured and how. What a report says of the run goes with it.
fn prepare(arguments: &Arguments) -> Result<(Bench, Option<Run>)> {
    let clients = [arguments.connections, arguments.bulk_connections, arguments.idle, arguments.slow];
    ensure!(clients.iter().all(|count| *count > 0), "nothing to connect");
    let (rounds, seconds) =
        if arguments.quick { (QUICK_ROUNDS, QUICK_SECONDS) } else { (arguments.rounds, arguments.seconds) };
    ensure!(rounds > 0, "--rounds must be at least 1");
    let duration = Duration::try_from_secs_f64(seconds).context("--seconds")?;

    let interrupt = Interrupt::watch()?;

    let own = std::env::current_exe().context("find this program")?;
    let beside = |given: &Option<PathBuf>, name| given.clone().unwrap_or_else(|| own.with_file_name(name));
    let programs = Programs {
        balancerd: beside(&arguments.balancerd, "balancerd"),
        balancerctl: beside(&arguments.balancerctl, "balancerctl"),
        floor: own.with_file_name("floor"),
        before: arguments.before.clone(),
    };
    let mut kinds = Vec::new();
    let before = arguments.before.as_ref().map(|_| &Kind::Before);
    for kind in arguments.only.iter().chain(before) {
        match programs.missing(*kind) {
            Some(program) if arguments.report.is_some() => {
                bail!("a report is of all balancers, and there is no {}", program.display())
            }
            Some(program) => println!("{} is left out: there is no {}", kind.name(), program.display()),
            None if !kinds.contains(kind) => kinds.push(*kind),
            None => {}
        }
    }
    ensure!(!kinds.is_empty(), "no balancer to measure");

    let placement = if arguments.unpinned { Placement::free()? } else { Placement::apart()? };
    let how = format!("{rounds} rounds of {seconds} s each, {}", placement.describe());
    println!("{how}");
    let run = match &arguments.report {
        Some(checkout) => Some(Run { machine: Machine::ask(&programs, checkout)?, how, quick: arguments.quick }),
        None => None,
    };
    let directory = TempDir::with_prefix("relay-bench-").context("create a temporary directory")?;
    placement.enter_rest()?;
    let servers = Servers::start(directory.path())?;
    let bench = Bench {
        servers,
        kinds,
        programs,
        placement,
        interrupt,
        rounds,
        memory_rounds: (rounds / 2).max(1),
        duration,
        sessions: arguments.idle,
        slow_clients: arguments.slow,
        slow_time: Duration::try_from_secs_f64(arguments.slow_seconds).context("--slow-seconds")?,
        directory,
    };
    Ok((bench, run))
}

fn print(section: &Section, markdown: bool) {
    let table = if markdown { section.markdown() } else { section.table().to_string() };
    println!("\n## {}\n\n{table}", section.title);
    for verdict in section.lines.iter().flat_map(Line::verdicts) {
        println!("\n{verdict}");
    }
}

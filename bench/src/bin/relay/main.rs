//! Measures balancerd side by side with HAProxy, nginx `stream` and no balancer at all, on the same servers and the
//! same load, over loopback. What is measured how, and what to mind, is in bench/README.md.

mod balancer;
mod report;
mod servers;
mod trace;
mod workload;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bench::client;
use bench::load::Shape;
use bench::placement::Placement;
use clap::{Parser, ValueEnum};
use comfy_table::Table;
use signal_hook::consts::{SIGINT, SIGTERM};
use tempfile::TempDir;

use crate::balancer::{Kind, Programs};
use crate::report::{Figures, Rounds, Unit};
use crate::servers::{BULK_BYTES, MEDIUM_BYTES, Servers};
use crate::workload::Bench;

/// What balancerd is to reach: its processor time as a part of HAProxy's and of nginx's, the throughput and the p99 of
/// small requests beside bulk as a multiple of HAProxy's, and its own memory per idle session.
const KEPT_COST_LIMITS: [(Kind, f64); 2] = [(Kind::Haproxy, 0.88), (Kind::Nginx, 1.0)];
const MEDIUM_COST_LIMITS: [(Kind, f64); 2] = [(Kind::Haproxy, 0.85), (Kind::Nginx, 0.95)];
const CONNECT_COST_LIMITS: [(Kind, f64); 2] = [(Kind::Haproxy, 0.85), (Kind::Nginx, 0.95)];
const BULK_COST_LIMITS: [(Kind, f64); 3] = [(Kind::Haproxy, 0.75), (Kind::HaproxySplice, 0.75), (Kind::Nginx, 0.25)];
const LEAST_THROUGHPUT: f64 = 1.0;
const BESIDE_TAIL_LIMIT: f64 = 1.0;
const IDLE_BYTES_LIMIT: f64 = 600.0;

/// How long a client of the workload fairness waits between two small requests: 64 of them ask 6400 times a second, a
/// fraction of what any of the balancers can do.
const SMALL_PAUSE: Duration = Duration::from_millis(10);

const MICROSECONDS: Unit = Unit { name: "us", seconds: 1e-6 };
const MILLISECONDS: Unit = Unit { name: "ms", seconds: 1e-3 };

/// Measures balancerd side by side with HAProxy, nginx stream and no balancer.
#[derive(Parser)]
struct Arguments {
    /// How often every balancer is measured; the tables show medians.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long one measurement under load lasts.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "all")]
    workload: Vec<Workload>,
    /// Which balancers to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "direct,haproxy,haproxy-splice,nginx,balancerd")]
    only: Vec<Kind>,
    /// Connections of the workloads kept, medium, connect, syscalls and fairness.
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
    /// Small requests beside answers of 10 MB.
    Fairness,
    /// Memory per idle session.
    Idle,
    /// System calls per small request, on kept connections and on new ones.
    Syscalls,
    /// All of these.
    All,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let bench = prepare(&arguments)?;
    let wants = |workload| arguments.workload.iter().any(|wanted| [workload, Workload::All].contains(wanted));
    let markdown = arguments.markdown;
    let kept = Shape { clients: arguments.connections, request: client::KEPT, kept: true, pause: Duration::ZERO };
    let connect = Shape { request: client::CLOSING, kept: false, ..kept };
    let medium = Shape { request: client::MEDIUM, ..kept };
    let bulk = Shape { clients: arguments.bulk_connections, request: client::BULK, ..kept };

    if wants(Workload::Kept) {
        let rounds = bench.under_load(kept)?;
        print(
            &format!("Requests on {} kept connections", kept.clients),
            &rounds.load_table(MICROSECONDS, false, markdown),
        );
        judge_load("on kept connections", &rounds, &KEPT_COST_LIMITS);
    }
    if wants(Workload::Medium) {
        let rounds = bench.under_load(medium)?;
        print(
            &format!("Answers of {} kB on {} kept connections", MEDIUM_BYTES / 1000, medium.clients),
            &rounds.load_table(MICROSECONDS, true, markdown),
        );
        judge_load("of answers of 16 kB", &rounds, &MEDIUM_COST_LIMITS);
    }
    if wants(Workload::Connect) {
        let rounds = bench.under_load(connect)?;
        print(
            &format!("New connections, one request each, {} at a time", connect.clients),
            &rounds.load_table(MICROSECONDS, false, markdown),
        );
        judge_load("of new connections", &rounds, &CONNECT_COST_LIMITS);
    }
    if wants(Workload::Bulk) {
        let rounds = bench.under_load(bulk)?;
        print(
            &format!("Answers of {} MB on {} kept connections", BULK_BYTES / 1_000_000, bulk.clients),
            &rounds.load_table(MILLISECONDS, true, markdown),
        );
        judge_load("of bulk", &rounds, &BULK_COST_LIMITS);
    }
    if wants(Workload::Fairness) {
        let small = Shape { pause: SMALL_PAUSE, ..kept };
        let beside = Shape { pause: Duration::from_millis(arguments.bulk_pause), ..bulk };
        let rounds = bench.fairness(small, beside)?;
        print(
            &format!(
                "Small requests of {} clients that pause {} ms, alone and beside {} of {} MB that pause {} ms",
                small.clients,
                SMALL_PAUSE.as_millis(),
                beside.clients,
                BULK_BYTES / 1_000_000,
                arguments.bulk_pause
            ),
            &rounds.fairness_table(markdown),
        );
        judge("p99 of small requests beside bulk / haproxy", rounds.tail_ratio(Kind::Haproxy), BESIDE_TAIL_LIMIT);
    }
    if wants(Workload::Idle) {
        let rounds = bench.idle()?;
        print(&format!("Memory of {} idle sessions", arguments.idle), &rounds.memory_table(markdown));
        judge("own bytes per idle session", rounds.own_bytes(), IDLE_BYTES_LIMIT);
    }
    if wants(Workload::Syscalls) {
        let traced = bench.system_calls(kept)?;
        print(
            &format!("System calls per request on {} kept connections, under strace", kept.clients),
            &report::calls_table(&traced, markdown),
        );
        let balancerd = traced.iter().find(|traced| traced.kind == Kind::Balancerd);
        judge("epoll_ctl calls of a healthy relay", balancerd.map(|traced| traced.count("epoll_ctl") as f64), 0.0);
        print(
            &format!("System calls per new connection, {} at a time, under strace", connect.clients),
            &report::calls_table(&bench.system_calls(connect)?, markdown),
        );
    }
    Ok(())
}

/// Starts the servers, and says what will be measured and how.
fn prepare(arguments: &Arguments) -> Result<Bench> {
    ensure!(arguments.rounds > 0, "--rounds must be at least 1");
    ensure!(arguments.connections > 0 && arguments.bulk_connections > 0 && arguments.idle > 0, "nothing to connect");
    let duration = Duration::try_from_secs_f64(arguments.seconds).context("--seconds")?;

    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted)).context("watch for an interrupt")?;
    }

    let own = std::env::current_exe().context("find this program")?;
    let beside = |given: &Option<PathBuf>, name| given.clone().unwrap_or_else(|| own.with_file_name(name));
    let programs = Programs {
        balancerd: beside(&arguments.balancerd, "balancerd"),
        balancerctl: beside(&arguments.balancerctl, "balancerctl"),
        before: arguments.before.clone(),
    };
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
    let directory = TempDir::with_prefix("relay-bench-").context("create a temporary directory")?;
    placement.enter_rest()?;
    let servers = Servers::start(directory.path())?;
    Ok(Bench {
        servers,
        kinds,
        programs,
        placement,
        interrupted,
        rounds: arguments.rounds,
        duration,
        sessions: arguments.idle,
        directory,
    })
}

fn print(title: &str, table: &Table) {
    println!("\n## {title}\n\n{table}");
}

/// Says whether balancerd's `value` is within its limit; nothing when it was not measured.
fn judge(what: &str, value: Option<f64>, limit: f64) {
    if let Some(value) = value {
        let verdict = if value <= limit { "reached" } else { "NOT reached" };
        println!("\nbalancerd, {what}: {value:.2}, at most {limit:.2} wanted: {verdict}");
    }
}

/// Says whether balancerd's processor time per request and its throughput are within their limits.
fn judge_load(what: &str, rounds: &Rounds<Figures>, limits: &[(Kind, f64)]) {
    for (base, limit) in limits {
        judge(&format!("CPU {what} / {}", base.name()), rounds.cost_ratio(*base), *limit);
    }
    if let Some(ratio) = rounds.rate_ratio(Kind::Haproxy) {
        let verdict = if ratio >= LEAST_THROUGHPUT { "reached" } else { "NOT reached" };
        println!(
            "\nbalancerd, throughput {what} / haproxy: {ratio:.2}, at least {LEAST_THROUGHPUT:.2} wanted: {verdict}"
        );
    }
}

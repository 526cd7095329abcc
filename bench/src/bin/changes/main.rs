//! Measures what a change of pools costs while traffic flows: how long the loop of balancerd stands still, how long the
//! answer takes, and what clients notice; and the same of a reload, beside HAProxy's. How, and what to mind, is in
//! bench/README.md.

mod change;
mod daemon;
mod haproxy;
mod layout;
mod measure;
mod report;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bench::client;
use bench::interrupt::Interrupt;
use bench::load::Shape;
use bench::placement::Placement;
use bench::servers::Servers;
use clap::{Parser, ValueEnum};
use tempfile::TempDir;
use wire::settings::Policy;

use crate::change::Kind;
use crate::haproxy::HAPROXY;
use crate::layout::{Layout, Ports};
use crate::measure::{Bench, Who};
use crate::report::Limit;

/// What balancerd is to reach: no turn of the loop longer than this, for a change of a pool and for a reload; and the time in
/// which a reload is to be answered.
const CHANGE_TURN: Limit = Limit { what: "longest turn", milliseconds: 5.0 };
const RELOAD_TURN: Limit = Limit { what: "longest turn", milliseconds: 20.0 };
const RELOAD_TIME: Limit = Limit { what: "answer", milliseconds: 1000.0 };

/// Measures what changes and reloads cost while traffic flows.
#[derive(Parser)]
struct Arguments {
    /// How often each measurement is made, each time with a fresh balancer.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long one measurement lasts.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Changes in one measurement, evenly spread.
    #[arg(long, default_value_t = 100)]
    changes: u32,
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "changes,reloads")]
    part: Vec<Part>,
    /// With which traffic.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "load,idle")]
    traffic: Vec<Traffic>,
    /// New connections per second, one request each.
    #[arg(long, default_value_t = 2000)]
    rate: u32,
    /// Clients that make them.
    #[arg(long, default_value_t = 100)]
    clients: u32,
    /// The policy of balancerd's pools, as its file calls it.
    #[arg(long, default_value = "consistent-hash")]
    policy: String,
    /// The balancer alone on one processor and the rest on the others, instead of what the scheduler decides. Its threads
    /// beside the loop are then on that processor too.
    #[arg(long)]
    pinned: bool,
    /// The daemon; by default the one beside this program.
    #[arg(long)]
    balancerd: Option<PathBuf>,
    /// Prints Markdown tables.
    #[arg(long)]
    markdown: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Changes of one pool of 1000 servers.
    Changes,
    /// Reloads of that pool, and of 100 services on 100 pools of 100 servers.
    Reloads,
}

/// What the clients do meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Traffic {
    /// New connections all the time.
    Load,
    /// Nothing.
    Idle,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let bench = prepare(&arguments)?;
    let large = Layout::new(bench.ports, 1, 1000);
    if arguments.part.contains(&Part::Changes) {
        let rounds = bench.changes(&large)?;
        println!(
            "\n## Changes of one pool of 1000 servers\n\n{}\n",
            report::changes_table(&rounds, arguments.markdown)
        );
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::None) {
            report::judge_change(&rounds, kind, CHANGE_TURN);
        }
    }
    if arguments.part.contains(&Part::Reloads) {
        for layout in [large, Layout::new(bench.ports, 100, 100)] {
            let rounds = bench.reloads(&layout)?;
            let table = report::reloads_table(&rounds, arguments.markdown);
            println!("\n## Reloads of {}\n\n{table}\n", layout.describe());
            report::judge_reloads(&rounds, RELOAD_TIME, RELOAD_TURN);
        }
    }
    Ok(())
}

/// Starts the servers, and says what will be measured and how.
fn prepare(arguments: &Arguments) -> Result<Bench> {
    ensure!(arguments.rounds > 0, "--rounds must be at least 1");
    ensure!(arguments.changes > 0, "--changes must be at least 1");
    ensure!(arguments.rate > 0 && arguments.clients > 0, "--rate and --clients must be at least 1");
    ensure!(Policy::ALL.iter().any(|policy| policy.name() == arguments.policy), "no policy {}", arguments.policy);
    let duration = Duration::try_from_secs_f64(arguments.seconds).context("--seconds")?;

    let interrupt = Interrupt::watch()?;

    let own = std::env::current_exe().context("find this program")?;
    let balancerd = arguments.balancerd.clone().unwrap_or_else(|| own.with_file_name("balancerd"));
    ensure!(balancerd.exists(), "there is no {}: build it, or name it with --balancerd", balancerd.display());
    let mut who = vec![Who::Balancerd];
    if Path::new(HAPROXY).exists() {
        who.push(Who::Haproxy);
    } else {
        println!("haproxy is left out: there is no {HAPROXY}");
    }

    let placement = if arguments.pinned { Placement::apart()? } else { Placement::free()? };
    println!(
        "{} rounds of {} s each, {} new connections per second under load, {}, {}",
        arguments.rounds,
        arguments.seconds,
        arguments.rate,
        arguments.policy,
        placement.describe()
    );
    let directory = TempDir::with_prefix("changes-bench-").context("create a temporary directory")?;
    placement.enter_rest()?;
    let ports = Ports::free()?;
    let servers = Servers::start(directory.path(), &[ports.all_servers()], "")?;
    Ok(Bench {
        _servers: servers,
        who,
        balancerd,
        placement,
        interrupt,
        rounds: arguments.rounds,
        duration,
        changes: arguments.changes,
        traffic: arguments.traffic.clone(),
        shape: Shape {
            clients: arguments.clients as usize,
            request: client::CLOSING,
            kept: false,
            pause: Duration::from_secs(1) * arguments.clients / arguments.rate,
        },
        policy: arguments.policy.clone(),
        ports,
        directory,
    })
}

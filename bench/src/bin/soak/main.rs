//! Runs balancerd for as long as one likes, with servers that do all that servers do wrong, clients that check every byte,
//! and an administrator who changes everything at random. It fails on a wrong byte, a session that is not counted, a
//! client that was not served though it could have been, a line in the log that tells of a fault, and on memory or
//! descriptors that grow. How, and what to mind, is in bench/README.md.

mod admin;
mod client;
mod conduct;
mod content;
mod findings;
mod layout;
mod order;
mod server;
mod watch;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bench::client::START_LIMIT;
use bench::clock;
use bench::interrupt::Interrupt;
use bench::process::Process;
use clap::Parser;
use fastrand::Rng;
use tempfile::TempDir;
use wire::Client;
use wire::control::{Request, Response};
use wire::report::{EndReason, StatusReport};

use crate::admin::Admin;
use crate::findings::Findings;
use crate::layout::Pool;
use crate::watch::{Sample, Watch};

/// Growth in a minute, by the line through the second half, that is a leak: bytes of memory, and descriptors beyond two for
/// each session.
const MOST_MEMORY_GROWTH: f64 = 2.0 * 1024.0 * 1024.0;
const MOST_DESCRIPTOR_GROWTH: f64 = 60.0;

/// How long it may take after the last client until every session has ended and every descriptor is given back: longer
/// than the idle timeout, which ends those whose server says nothing.
const END_LIMIT: Duration = Duration::from_secs(40);
const IDLE_TIMEOUT: &str = "10s";

/// Parts of the run of which the summary tells the memory.
const COURSE_PARTS: usize = 12;

/// The only reasons for which a session of a client that has to be served may end.
const IN_ORDER: [EndReason; 4] =
    [EndReason::ClientClosed, EndReason::ServerClosed, EndReason::ClientReset, EndReason::ServerReset];
const BY_COMMAND: [EndReason; 2] = [EndReason::Killed, EndReason::Removed];

/// Runs balancerd under faults, load and random administration, and fails on anything that is not right.
#[derive(Parser)]
struct Arguments {
    /// For how long.
    minutes: f64,
    /// The seed of everything that is drawn: a run that failed tells it. Clients, servers and the administrator run at the
    /// same time, so that the same seed gives the same requests, but not in the same order.
    #[arg(long)]
    seed: Option<u64>,
    /// Clients at a time of each of the three services whose clients have to be served.
    #[arg(long, default_value_t = 12)]
    clients: u64,
    /// Clients at a time that come and leave as they like.
    #[arg(long, default_value_t = 16)]
    rough: u64,
    /// The daemon; by default the one beside this program.
    #[arg(long)]
    balancerd: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let duration = Duration::try_from_secs_f64(arguments.minutes * 60.0).context("MINUTES")?;
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}, {} minutes", arguments.minutes);
    let findings = Arc::new(Findings::default());
    let interrupt = Interrupt::watch()?;
    raise_descriptors()?;
    soak(&arguments, duration, seed, &interrupt, &findings)?;
    let (faults, further) = findings.faults();
    if faults.is_empty() {
        println!("\npassed");
        return Ok(ExitCode::SUCCESS);
    }
    println!("\nFAILED with --seed {seed}:");
    faults.iter().for_each(|fault| println!("  {fault}"));
    if further > 0 {
        println!("  and {further} more");
    }
    Ok(ExitCode::FAILURE)
}

fn soak(
    arguments: &Arguments,
    duration: Duration,
    seed: u64,
    interrupt: &Interrupt,
    findings: &Arc<Findings>,
) -> Result<()> {
    let directory = TempDir::with_prefix("soak-").context("create a temporary directory")?;
    let pools = layout::pools(seed, findings)?;
    let (file, socket) = (directory.path().join("balancer.toml"), directory.path().join("control.sock"));
    fs::write(&file, layout::file(&pools, None)).context("write the configuration file")?;
    let program = match &arguments.balancerd {
        Some(program) => program.clone(),
        None => std::env::current_exe().context("find this program")?.with_file_name("balancerd"),
    };
    ensure!(program.is_file(), "there is no {}: build it, or name it with --balancerd", program.display());
    let [file_text, socket_text] = [&file, &socket].map(|path| path.display().to_string());
    let options = ["--config", &file_text, "--socket", &socket_text, "--idle-timeout", IDLE_TIMEOUT];
    let mut process = Process::start(directory.path(), "balancerd", &program, options)?;
    let connect = || Client::connect(&socket).context("connect to balancerd");
    let watching = clock::retry(START_LIMIT, || process.check().and_then(|()| connect()))?;
    let mut watch = Watch::new(watching);
    watch.status(findings)?;
    let (descriptors, memory) = (process.descriptors()?, process.resident()?.0);

    let places = Mutex::new(pools.iter().filter(|pool| !pool.is_strict).map(|pool| pool.listen).collect::<Vec<_>>());
    let mut rng = Rng::with_seed(seed);
    let mut admin =
        Admin { client: connect()?, pools: &pools, file, places: &places, findings, rng: Rng::with_seed(rng.u64(..)) };
    let watched = thread::scope(|scope| {
        let mut number = 0;
        for pool in pools.iter().filter(|pool| pool.is_strict) {
            for _ in 0..arguments.clients {
                let (seed, address) = (rng.u64(..), pool.listen);
                number += 1;
                scope.spawn(move || client::strict(pool.name, address, number, seed, findings));
            }
        }
        for _ in 0..arguments.rough {
            let (seed, places) = (rng.u64(..), &places);
            number += 1;
            scope.spawn(move || client::rough(places, number, seed, findings));
        }
        scope.spawn(|| {
            if let Err(error) = admin.work() {
                findings.fault(format!("the administrator: {error:#}"));
            }
        });
        let watched = until_the_end(duration, interrupt, &mut process, &mut watch, findings);
        findings.over.store(true, Ordering::Relaxed);
        watched
    });
    watched?;
    process.check()?;
    admin.tidy()?;
    drop(admin);
    let status = after_the_end(&pools, &process, &mut watch, descriptors, findings)?;
    let growth = [
        watch.growth(|sample| sample.memory as f64),
        watch.growth(|sample| sample.descriptors as f64 - 2.0 * sample.sessions as f64),
    ];
    for (what, growth, most) in [
        ("bytes of memory", growth[0], MOST_MEMORY_GROWTH),
        ("descriptors beyond those of sessions", growth[1], MOST_DESCRIPTOR_GROWTH),
    ] {
        if let Some(growth) = growth.filter(|growth| *growth > most) {
            findings.fault(format!("{growth:.0} {what} more in each minute; {most:.0} are too many"));
        }
    }
    let log = process.printed();
    for line in log.lines().filter(|line| line.contains("ERROR") || line.contains("panicked")) {
        findings.fault(format!("in the log: {line}"));
    }
    report(&pools, findings, &watch, &status, [memory, descriptors], growth);
    end(process, &mut watch, findings)
}

/// Looks each second, until the time is over or somebody interrupts or the first fault is there.
fn until_the_end(
    duration: Duration,
    interrupt: &Interrupt,
    process: &mut Process,
    watch: &mut Watch,
    findings: &Findings,
) -> Result<()> {
    let begin = clock::now();
    let mut next = begin;
    while clock::now() < begin + duration && !interrupt.came() && findings.faults().0.is_empty() {
        next += Duration::from_secs(1);
        clock::wait_until(next);
        process.check()?;
        watch.look(process, findings)?;
    }
    Ok(())
}

/// When all clients have gone: everything is counted, and given back.
fn after_the_end(
    pools: &[Pool],
    process: &Process,
    watch: &mut Watch,
    descriptors: u64,
    findings: &Findings,
) -> Result<StatusReport> {
    let settled = clock::retry(END_LIMIT, || {
        let status = watch.status(findings)?;
        let (sessions, open) =
            (status.services.iter().map(|service| service.active).sum::<u64>(), process.descriptors()?);
        ensure!(sessions == 0, "{sessions} sessions are left when all clients have gone");
        // Checks come and go; at some moment none is there.
        ensure!(
            open <= descriptors,
            "{open} descriptors are open when all clients have gone, {descriptors} were at the start"
        );
        Ok(())
    });
    if let Err(error) = settled {
        findings.fault(format!("{error:#}"));
    }
    let status = watch.status(findings)?;
    for Pool { name, .. } in pools {
        let Response::List(list) = watch.client().call(&Request::List { pool: (*name).to_owned() })? else { continue };
        for row in list.servers.iter().filter(|row| row.active > 0) {
            findings.fault(format!("{name}: {} has {} sessions when there are none", row.server, row.active));
        }
    }
    let mut commands = 0;
    for pool in pools.iter().filter(|pool| pool.is_strict) {
        let Some(service) = status.services.iter().find(|service| service.name == pool.name) else {
            findings.fault(format!("service {} is gone", pool.name));
            continue;
        };
        let began = findings.counted(&format!("began {}", pool.name));
        if service.accept_failures == 0 && service.total != began {
            findings.fault(format!("{}: {began} clients came, {} sessions were counted", pool.name, service.total));
        }
        for (reason, count) in &service.ended {
            if !IN_ORDER.contains(reason) && !BY_COMMAND.contains(reason) {
                findings.fault(format!("{}: {count} clients that could be served were closed: {reason}", pool.name));
            }
        }
        let killed: u64 = BY_COMMAND.iter().filter_map(|reason| service.ended.get(reason)).sum();
        let cut = findings.counted(&format!("cut {}", pool.name));
        if cut > killed {
            findings.fault(format!("{}: {cut} sessions were cut short, and commands ended {killed}", pool.name));
        }
        commands += killed;
    }
    let cut = findings.cut_at_servers.load(Ordering::Relaxed);
    if cut > commands {
        findings.fault(format!("{cut} sessions were cut short for servers, and commands ended {commands}"));
    }
    if let Some(faults) = status.services.iter().find_map(|service| service.ended.get(&EndReason::Fault)) {
        findings.fault(format!("{faults} sessions ended by faults of the balancer"));
    }
    Ok(status)
}

fn report(
    pools: &[Pool],
    findings: &Findings,
    watch: &Watch,
    status: &StatusReport,
    start: [u64; 2],
    growth: [Option<f64>; 2],
) {
    let sum = |counts: &[(String, u64)]| counts.iter().map(|(_, count)| count).sum::<u64>();
    let listed = |counts: &[(String, u64)]| {
        counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
    };
    println!("\nclients that had to be served, by service:");
    for Pool { name, .. } in pools.iter().filter(|pool| pool.is_strict) {
        let counted = |what: &str| findings.counted(&format!("{what} {name}"));
        println!("  {name}: {} came, {} whole, {} cut by commands", counted("began"), counted("whole"), counted("cut"));
    }
    println!("others: {} came", findings.counted("rough"));
    println!("bytes found right: {:.1} GB", findings.bytes.load(Ordering::Relaxed) as f64 / 1e9);
    for service in &status.services {
        let ended: Vec<_> = service.ended.iter().map(|(reason, count)| (reason.to_string(), *count)).collect();
        println!("ended at {}: {}", service.name, listed(&ended));
    }
    let (done, refused) = (findings.counts("done "), findings.counts("refused "));
    println!("requests carried out: {} ({})", sum(&done), listed(&done));
    println!("requests refused: {} ({})", sum(&refused), listed(&refused));
    let most = |value: fn(&Sample) -> u64| watch.samples.iter().map(value).max().unwrap_or_default();
    let growth = growth.map(|growth| growth.map_or("too short to say".to_owned(), |growth| format!("{growth:+.0}")));
    let mebibytes = |bytes: u64| bytes as f64 / 1024.0 / 1024.0;
    println!(
        "memory: {:.1} MiB at the start, {:.1} at most, {:.1} at last; {} bytes a minute",
        mebibytes(start[0]),
        mebibytes(most(|sample| sample.memory)),
        mebibytes(watch.samples.last().map_or(0, |sample| sample.memory)),
        growth[0]
    );
    let course = watch.course(COURSE_PARTS, |sample| sample.memory);
    let course: Vec<_> = course.into_iter().map(|bytes| format!("{:.1}", mebibytes(bytes))).collect();
    println!("memory in equal parts of the run: {} MiB", course.join(", "));
    println!(
        "descriptors: {} at the start, {} at most with {} sessions at most; beyond those of sessions {} a minute",
        start[1],
        most(|sample| sample.descriptors),
        most(|sample| sample.sessions),
        growth[1]
    );
    println!("longest turn: {:.1} ms", status.longest_turn_us as f64 / 1e3);
}

/// Has it end by itself.
fn end(mut process: Process, watch: &mut Watch, findings: &Findings) -> Result<()> {
    watch.client().call(&Request::Stop { now: false, drain_ms: Some(5_000) }).context("stop balancerd")?;
    let status = process.end(END_LIMIT)?;
    if !status.success() {
        findings
            .fault(format!("balancerd ends with {status}: {}", process.printed().lines().last().unwrap_or_default()));
    }
    Ok(())
}

/// Each client and each server has a descriptor here.
fn raise_descriptors() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("the descriptor limit")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raise the descriptor limit")
}

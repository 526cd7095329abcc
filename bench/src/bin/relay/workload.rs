//! The workloads: what each balancer is put through, and what is read off it.
//!
//! Every workload goes round by round, and within a round from balancer to balancer, so that a slow moment of the
//! machine meets all of them.

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use bench::interrupt::Interrupt;
use bench::load::{Load, Shape};
use bench::paced::Paced;
use bench::placement::Placement;
use bench::process::{Footprint, Process};
use bench::rounds::Rounds;
use bench::{client, clock};
use tempfile::TempDir;

use crate::balancer::{Balancer, Kind, Programs};
use crate::report::{Fairness, Figures, Pressure};
use crate::servers::Servers;
use crate::slow::{self, SlowReaders};
use crate::sockets;
use crate::trace::{Trace, Traced};

/// How long a load runs before anything is counted.
const WARM_UP: Duration = Duration::from_millis(300);
/// Idle sessions that are there before the memory of the others is measured: the first ones fill pools and touch pages.
const WARM_UP_SESSIONS: usize = 200;
/// The step in which strace is asked whether it has attached, and how long that may take.
const ATTACH_STEP: Duration = Duration::from_millis(10);
const ATTACH_LIMIT: Duration = Duration::from_secs(5);
/// How long strace counts.
const TRACE_TIME: Duration = Duration::from_secs(2);
/// How often the rate of every balancer is measured of which the slowest one's is halved.
const RATE_ROUNDS: usize = 3;
/// How often slow clients read between two looks at the memory.
const READS_A_LOOK: usize = 5;

/// What all workloads share. The servers end, and the directory goes, with it.
pub(crate) struct Bench {
    pub(crate) servers: Servers,
    pub(crate) kinds: Vec<Kind>,
    pub(crate) programs: Programs,
    pub(crate) placement: Placement,
    /// Set when the benchmark is to stop.
    pub(crate) interrupt: Interrupt,
    pub(crate) rounds: usize,
    /// Of one measurement under load.
    pub(crate) duration: Duration,
    /// How often memory is measured, which hardly differs.
    pub(crate) memory_rounds: usize,
    /// The number of idle sessions.
    pub(crate) sessions: usize,
    /// The number of clients that read slowly.
    pub(crate) slow_clients: usize,
    /// How long they read.
    pub(crate) slow_time: Duration,
    /// Configurations, sockets and logs of everything that is started.
    pub(crate) directory: TempDir,
}

impl Bench {
    /// Throughput, processor time and latency under a load of `shape`.
    ///
    /// The balancers run throughout all rounds; the ones that have no load wait without cost.
    pub(crate) fn under_load(&self, shape: Shape) -> Result<Rounds<Kind, Figures>> {
        self.rounds_of(self.rounds, |balancer| self.measure(balancer, shape))
    }

    /// Latency of small requests of `clients` at half of the rate that the slowest balancer reaches, and that rate.
    pub(crate) fn half_load(&self, full: Shape) -> Result<(f64, Rounds<Kind, Figures>)> {
        let at_full = self.rounds_of(RATE_ROUNDS.min(self.rounds), |balancer| self.measure(balancer, full))?;
        let balancers = at_full.kinds().into_iter().filter(|kind| *kind != Kind::Direct);
        let slowest = balancers.filter_map(|kind| at_full.median(kind, |figures| Some(figures.rate))).reduce(f64::min);
        let rate = slowest.context("no balancer whose rate could be halved")? / 2.0;
        let rounds = self.rounds_of(self.rounds, |balancer| self.measure_paced(balancer, full.clients, rate))?;
        Ok((rate, rounds))
    }

    /// Latency of the load `small`, alone and beside the load `bulk`, which has a thread of its own.
    pub(crate) fn fairness(&self, small: Shape, bulk: Shape) -> Result<Rounds<Kind, Fairness>> {
        self.rounds_of(self.rounds, |balancer| self.measure_beside(balancer, small, bulk))
    }

    fn rounds_of<F>(&self, count: usize, measure: impl Fn(&Balancer) -> Result<F>) -> Result<Rounds<Kind, F>> {
        let balancers = self.kinds.iter().map(|kind| self.start(*kind)).collect::<Result<Vec<_>>>()?;
        Rounds::in_turn(count, &balancers, |balancer| Ok((balancer.kind, measure(balancer)?)))
    }

    /// Memory per idle session that has relayed one request. Each measurement has a fresh balancer: what a former
    /// one has given back to its allocator would make the next one look smaller.
    pub(crate) fn idle(&self) -> Result<Rounds<Kind, Footprint>> {
        self.fresh_rounds(self.memory_rounds, |balancer| {
            let Some(process) = &balancer.process else { return Ok(None) };
            self.footprint(balancer, process).map(Some)
        })
    }

    /// Memory while clients read slowly, from a fresh balancer each time, as with idle ones.
    pub(crate) fn back_pressure(&self) -> Result<Rounds<Kind, Pressure>> {
        self.fresh_rounds(self.memory_rounds, |balancer| self.pressure(balancer).map(Some))
    }

    /// System calls of every balancer under a load of `shape`, from some time after its start to some time before its end:
    /// of kept connections neither the opening nor the closing is seen.
    pub(crate) fn system_calls(&self, shape: Shape) -> Result<Rounds<Kind, Traced>> {
        self.fresh_rounds(1, |balancer| {
            let Some(process) = &balancer.process else { return Ok(None) };
            self.trace(balancer, process, shape).map(Some)
        })
    }

    /// Rounds in which every balancer is started anew; one for which `measure` has nothing to say is left out.
    fn fresh_rounds<F>(
        &self,
        count: usize,
        measure: impl Fn(&Balancer) -> Result<Option<F>>,
    ) -> Result<Rounds<Kind, F>> {
        let mut rounds = Rounds::new();
        for _ in 0..count {
            let mut round = Vec::new();
            for kind in &self.kinds {
                let balancer = self.start(*kind)?;
                let figures = measure(&balancer).with_context(|| kind.name())?;
                round.extend(figures.map(|figures| (*kind, figures)));
            }
            rounds.push(round);
        }
        Ok(rounds)
    }

    fn start(&self, kind: Kind) -> Result<Balancer> {
        self.placement.with_balancer(|| Balancer::start(kind, self.directory.path(), &self.servers, &self.programs))
    }

    fn measure(&self, balancer: &Balancer, shape: Shape) -> Result<Figures> {
        let name = balancer.kind.name();
        let mut load = Load::open(&[balancer.addr], shape, &self.interrupt)?;
        load.run(WARM_UP).with_context(|| format!("warm up {name}"))?;
        let (tally, spent) = balancer.spend(|| load.run(self.duration)).with_context(|| format!("load {name}"))?;
        Figures::new(tally, spent).with_context(|| format!("{name} answered no request"))
    }

    fn measure_paced(&self, balancer: &Balancer, clients: usize, rate: f64) -> Result<Figures> {
        let name = balancer.kind.name();
        let mut load = Paced::open(balancer.addr, clients, &self.interrupt)?;
        load.run(rate, WARM_UP).with_context(|| format!("warm up {name}"))?;
        let (tally, spent) =
            balancer.spend(|| load.run(rate, self.duration)).with_context(|| format!("load {name}"))?;
        Figures::new(tally, spent).with_context(|| format!("{name} answered no request"))
    }

    fn measure_beside(&self, balancer: &Balancer, small: Shape, bulk: Shape) -> Result<Fairness> {
        let alone = self.measure(balancer, small)?;
        let name = balancer.kind.name();
        let mut load = Load::open(&[balancer.addr], small, &self.interrupt)?;
        let mut heavy = Load::open(&[balancer.addr], bulk, &self.interrupt)?;
        let (over, counted) = (AtomicBool::new(false), AtomicBool::new(false));
        let (tally, spent, bulk) = thread::scope(|scope| {
            let heavy = scope.spawn(|| {
                heavy.run_while(|_| !counted.load(Ordering::Relaxed))?;
                heavy.run_while(|_| !over.load(Ordering::Relaxed))
            });
            let mut run = || {
                load.run(WARM_UP).with_context(|| format!("warm up {name}"))?;
                counted.store(true, Ordering::Relaxed);
                balancer.spend(|| load.run(self.duration)).with_context(|| format!("load {name}"))
            };
            let result: Result<_> = run();
            counted.store(true, Ordering::Relaxed);
            over.store(true, Ordering::Relaxed);
            let bulk = heavy.join().map_err(|_| anyhow!("the thread of the bulk load failed"))?;
            let (tally, spent) = result?;
            Ok::<_, anyhow::Error>((tally, spent, bulk.with_context(|| format!("bulk of {name}"))?))
        })?;
        let beside = Figures::new(tally, spent).with_context(|| format!("{name} answered no request"))?;
        Ok(Fairness { alone, beside, bulk })
    }

    fn footprint(&self, balancer: &Balancer, process: &Process) -> Result<Footprint> {
        // They stay: sessions that take over their memory would look like sessions without any.
        let warm_up = self.hold(balancer, WARM_UP_SESSIONS)?;
        let before = process.settled_memory()?;
        let sessions = self.hold(balancer, self.sessions)?;
        let after = process.settled_memory()?;
        drop((warm_up, sessions));
        Ok(Footprint::between(before, after, self.sessions as u64))
    }

    fn pressure(&self, balancer: &Balancer) -> Result<Pressure> {
        let before = balancer.process.as_ref().map(Process::settled_memory).transpose()?;
        let before_all = sockets::of_all()?;
        let mut readers = SlowReaders::open(balancer.addr, self.slow_clients)?;
        let each = |bytes: u64| bytes as f64 / self.slow_clients as f64;
        let look = || -> Result<Pressure> {
            let all_sockets = each(sockets::of_all()?.saturating_sub(before_all));
            let Some((process, before)) = balancer.process.as_ref().zip(before) else {
                return Ok(Pressure { all_sockets, ..Pressure::default() });
            };
            let (pipes, in_pipes) = process.kernel_pipes()?;
            Ok(Pressure {
                own: Some(each(process.memory()?.own.saturating_sub(before.own))),
                sockets: Some(each(sockets::of_balancer(balancer.addr, &self.servers.addrs)?)),
                in_pipes: Some(each(in_pipes)),
                pipes: Some(pipes as f64),
                all_sockets,
            })
        };
        let end = clock::now() + self.slow_time;
        let mut most = Pressure::default();
        while clock::now() < end {
            self.interrupt.check()?;
            for _ in 0..READS_A_LOOK {
                readers.read()?;
                clock::pause(slow::PAUSE);
            }
            most = most.most(look()?);
        }
        readers.check()?;
        Ok(most)
    }

    /// Opens sessions that have made one request each and are idle now.
    fn hold(&self, balancer: &Balancer, count: usize) -> Result<Vec<TcpStream>> {
        let open = |index| {
            self.interrupt.check()?;
            client::exchange(index, balancer.addr).with_context(|| format!("session {index}"))
        };
        (0..count).map(open).collect()
    }

    fn trace(&self, balancer: &Balancer, process: &Process, shape: Shape) -> Result<Traced> {
        let mut load = Load::open(&[balancer.addr], shape, &self.interrupt)?;
        load.run(WARM_UP)?;
        let mut trace = Trace::start(self.directory.path(), process)?;
        let deadline = clock::now() + ATTACH_LIMIT;
        while !trace.attached(process)? {
            ensure!(clock::now() < deadline, "strace does not attach");
            load.run(ATTACH_STEP)?;
        }
        let tally = load.run(TRACE_TIME)?;
        let calls = trace.finish()?;
        ensure!(tally.errors == 0, "{} failed requests: the relay was not healthy", tally.errors);
        ensure!(tally.requests > 0, "no request was answered");
        Ok(Traced { requests: tally.requests, calls })
    }
}

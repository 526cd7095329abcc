//! The workloads: what each balancer is put through, and what is read off it.
//!
//! Every workload goes round by round, and within a round from balancer to balancer, so that a slow moment of the
//! machine meets all of them.

use std::cell::Cell;
use std::net::SocketAddrV4;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use bench::clock;
use bench::interrupt::Interrupt;
use bench::placement::Placement;
use bench::process::{Footprint, Process};
use bench::rounds::Rounds;
use tempfile::TempDir;

use crate::balancer::{Balancer, Ending, Kind, Programs};
use crate::ceiling::Ceiling;
use crate::clients::Clients;
use crate::drops;
use crate::load::{Drive, Flows, Load, Shape, Until};
use crate::outcome::Outcome;
use crate::report::{Exchange, Figures, Stream};
use crate::servers::{Conduct, Servers, Watch};

/// How long a load runs before anything is counted.
const WARM_UP: Duration = Duration::from_millis(300);
/// How long a balancer may take from its start until a datagram comes through it.
const START_LIMIT: Duration = Duration::from_secs(20);
/// Idle flows that are there before the memory of the others is measured: the first ones fill pools and touch pages.
pub(crate) const WARM_UP_FLOWS: u64 = 500;
/// Questions under way while idle flows are made.
const IDLE_WINDOW: u32 = 32;
/// One rate of the search for the highest is tried for this part of the time of a measurement.
const PROBE: f64 = 0.25;

/// What all workloads share. The directory goes with it.
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
    /// The number of the last run.
    pub(crate) runs: Cell<u32>,
    /// Configurations and logs of everything that is started.
    pub(crate) directory: TempDir,
}

impl Bench {
    /// Questions with answers: in a closed loop, and at a fixed `rate`.
    pub(crate) fn exchange(
        &self,
        shape: Shape,
        window: u32,
        rate: f64,
        ending: Ending,
    ) -> Result<Rounds<Kind, Exchange>> {
        self.rounds_of(true, ending, |balancer| {
            self.run(balancer, shape, Drive::Window(window), WARM_UP)?;
            let closed = self.run(balancer, shape, Drive::Window(window), self.duration)?;
            let paced = self.run(balancer, shape, Drive::Rate(rate), self.duration)?;
            Ok(Exchange { closed: Figures::new(closed), paced: Figures::new(paced) })
        })
    }

    /// Datagrams one way: at a fixed `rate`, and at the highest without loss.
    pub(crate) fn stream(&self, shape: Shape, rate: f64) -> Result<Rounds<Kind, Stream>> {
        self.rounds_of(false, Ending::Idle, |balancer| {
            let mut clients = shape.clients(balancer.addr)?;
            let mut run = |rate, duration| {
                self.run_with(balancer, shape, Drive::Rate(rate), Until::Elapsed(duration), &mut clients)
            };
            run(rate, WARM_UP)?;
            let paced = run(rate, self.duration)?;
            let ceiling = Ceiling::find(|rate| Ok(run(rate, self.duration.mul_f64(PROBE))?.probe(rate)))?;
            Ok(Stream { paced: Figures::new(paced), ceiling })
        })
    }

    /// Memory per idle flow that has had one answer. Each measurement has a fresh balancer: what a former one has given
    /// back to its allocator would make the next one look smaller.
    pub(crate) fn idle(&self, bytes: usize, flows: u64) -> Result<Rounds<Kind, Footprint>> {
        let shape = Shape { flows: Flows::New, bytes, train: 1, answered: true };
        let mut rounds = Rounds::new();
        for _ in 0..self.rounds {
            let mut round = Vec::new();
            for kind in self.kinds.iter().filter(|kind| kind.answers()) {
                let balancer = self.start(*kind, Ending::Late)?;
                if let Some(process) = &balancer.process {
                    let footprint = self.footprint(&balancer, process, shape, flows);
                    round.push((*kind, footprint.with_context(|| format!("idle flows of {}", kind.name()))?));
                }
            }
            rounds.push(round);
        }
        Ok(rounds)
    }

    /// The balancers run throughout all rounds; the ones that have no load wait without cost.
    fn rounds_of<F>(
        &self,
        answered: bool,
        ending: Ending,
        measure: impl Fn(&Balancer) -> Result<F>,
    ) -> Result<Rounds<Kind, F>> {
        let kinds = self.kinds.iter().filter(|kind| kind.answers() || !answered);
        let balancers = kinds.map(|kind| self.start(*kind, ending)).collect::<Result<Vec<_>>>()?;
        Rounds::in_turn(self.rounds, &balancers, |balancer| {
            let figures = measure(balancer).with_context(|| format!("load {}", balancer.kind.name()))?;
            Ok((balancer.kind, figures))
        })
    }

    /// Starts a balancer, and waits until a datagram comes through it.
    fn start(&self, kind: Kind, ending: Ending) -> Result<Balancer> {
        let directory = self.directory.path();
        let mut balancer =
            self.placement.with_balancer(|| Balancer::start(kind, directory, &self.servers, &self.programs, ending))?;
        let shape = Shape { flows: Flows::New, bytes: 64, train: 1, answered: false };
        clock::retry(START_LIMIT, || {
            if let Some(process) = &mut balancer.process {
                process.check()?;
            }
            let mut clients = shape.clients(balancer.addr)?;
            let outcome = self.run_with(&balancer, shape, Drive::Window(1), Until::Sent(1), &mut clients)?;
            let printed = balancer.process.as_ref().map(Process::printed).unwrap_or_default();
            ensure!(outcome.done == 1, "nothing comes through: {}", printed.trim());
            Ok(())
        })
        .with_context(|| format!("start {}", kind.name()))?;
        Ok(balancer)
    }

    /// A load of its own clients.
    fn run(&self, balancer: &Balancer, shape: Shape, drive: Drive, duration: Duration) -> Result<Outcome> {
        let mut clients = shape.clients(balancer.addr)?;
        self.run_with(balancer, shape, drive, Until::Elapsed(duration), &mut clients)
    }

    fn run_with(
        &self,
        balancer: &Balancer,
        shape: Shape,
        drive: Drive,
        until: Until,
        clients: &mut Clients,
    ) -> Result<Outcome> {
        self.runs.set(self.runs.get() + 1);
        let run = self.runs.get();
        let conduct = Conduct { run, answer: shape.answered, trains: shape.train > 1 };
        let load = Load { shape, drive, until, run, interrupt: &self.interrupt };
        let mut ports = clients.ports()?;
        ports.extend(self.servers.addrs.iter().map(SocketAddrV4::port));
        let (servers, watch) = (&self.servers, Watch::default());
        thread::scope(|scope| {
            let serving = scope.spawn(|| servers.serve(conduct, &watch));
            let mut measure = || {
                let (drops_before, before) = (drops::at(&ports)?, balancer.scheduled()?);
                let tally = load.run(clients)?;
                watch.settle(tally.sent);
                let (after, dropped) = (balancer.scheduled()?, drops::at(&ports)?.saturating_sub(drops_before));
                let between = |(after, before): ((Duration, Duration), (Duration, Duration))| {
                    (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1))
                };
                Ok((tally, after.zip(before).map(between).unzip(), dropped))
            };
            let measured: Result<_> = measure();
            watch.end();
            let served = serving.join().map_err(|_| anyhow!("the thread of the servers failed"))?;
            let ((tally, (spent, waited), dropped), served) = (measured?, served.context("serve")?);
            let done = if shape.answered { tally.answered } else { served.arrived };
            let mut faults = tally.faults;
            faults += served.faults;
            faults.lost = tally.sent.saturating_sub(done + faults.unsent);
            // A train that is dropped whole counts once.
            let overflow = faults.lost.min(dropped * u64::from(shape.train));
            Ok(Outcome { tally, done, faults, overflow, spent, waited })
        })
    }

    fn footprint(&self, balancer: &Balancer, process: &Process, shape: Shape, flows: u64) -> Result<Footprint> {
        let hold = |count| {
            let mut clients = shape.clients(balancer.addr)?;
            let outcome =
                self.run_with(balancer, shape, Drive::Window(IDLE_WINDOW), Until::Sent(count), &mut clients)?;
            ensure!(outcome.done == count, "of {count} flows {} had their answer", outcome.done);
            // The sockets stay open: nobody else gets their ports.
            Ok(clients)
        };
        let warm_up = hold(WARM_UP_FLOWS)?;
        let before = process.settled_memory()?;
        let held = hold(flows)?;
        let after = process.settled_memory()?;
        drop((warm_up, held));
        Ok(Footprint::between(before, after, flows))
    }
}

//! The measurements. Each has a fresh balancer, since the longest turn that it tells only grows; and all of one part take
//! the same time, since the longest of more turns is longer.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bench::clock;
use bench::interrupt::Interrupt;
use bench::load::{Load, Shape, Tally};
use bench::placement::Placement;
use bench::process::Process;
use bench::servers::Servers;
use tempfile::TempDir;

use crate::Traffic;
use crate::change::{Kind, Reload};
use crate::daemon::Daemon;
use crate::haproxy::Haproxy;
use crate::layout::{Layout, Ports};

/// How long a load runs before anything is measured.
const WARM_UP: Duration = Duration::from_millis(300);
/// The part of a measurement before its reload.
const BEFORE_RELOAD: Duration = Duration::from_millis(300);
/// The time between two looks at the memory.
const LOOK: Duration = Duration::from_millis(10);

/// What all measurements share. The servers end, and the directory goes, with it.
pub(crate) struct Bench {
    /// Kept for their end.
    pub(crate) _servers: Servers,
    /// Who takes part in reloads; changes are balancerd's alone.
    pub(crate) who: Vec<Who>,
    pub(crate) balancerd: PathBuf,
    pub(crate) placement: Placement,
    /// Set when the benchmark is to stop.
    pub(crate) interrupt: Interrupt,
    pub(crate) rounds: usize,
    /// Of one measurement.
    pub(crate) duration: Duration,
    /// In one measurement.
    pub(crate) changes: u32,
    pub(crate) traffic: Vec<Traffic>,
    /// Of the load.
    pub(crate) shape: Shape,
    pub(crate) policy: String,
    pub(crate) ports: Ports,
    /// Configurations, sockets and logs of everything that is started.
    pub(crate) directory: TempDir,
}

/// A balancer that reloads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Balancerd,
    Haproxy,
}

impl Who {
    /// The name in the tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Balancerd => "balancerd",
            Self::Haproxy => "haproxy",
        }
    }
}

/// What balancerd's loop did during a measurement.
#[derive(Clone, Copy)]
pub(crate) struct Loop {
    /// Its longest turn in the start and the warm-up.
    pub(crate) turn_before: Duration,
    /// Its longest turn in those and the measurement.
    pub(crate) turn: Duration,
    /// How long it was on a processor.
    pub(crate) ran: Duration,
    /// How long it had something to do and no processor.
    pub(crate) waited: Duration,
    /// How long it and the threads beside it were on processors together.
    pub(crate) all_ran: Duration,
}

/// What changes of one kind came to in one round.
pub(crate) struct Changed {
    pub(crate) traffic: Traffic,
    pub(crate) kind: Kind,
    pub(crate) own: Loop,
    /// How long each answer took.
    pub(crate) answers: Vec<Duration>,
    pub(crate) load: Tally,
}

/// What a reload came to in one round.
pub(crate) struct Reloaded {
    pub(crate) who: Who,
    pub(crate) traffic: Traffic,
    pub(crate) reload: Reload,
    /// How long it took.
    pub(crate) answer: Option<Duration>,
    /// Of balancerd.
    pub(crate) own: Option<Loop>,
    pub(crate) load: Tally,
    /// Bytes of memory before it, and at most during it.
    pub(crate) memory: (u64, u64),
}

impl Bench {
    /// Changes of every kind with every traffic, round by round.
    pub(crate) fn changes(&self, layout: &Layout) -> Result<Vec<Changed>> {
        let mut all = Vec::new();
        for _ in 0..self.rounds {
            for traffic in &self.traffic {
                for kind in Kind::ALL {
                    let changed = self.change(layout, *traffic, kind);
                    all.push(changed.with_context(|| format!("changes: {}", kind.name()))?);
                }
            }
        }
        Ok(all)
    }

    /// Reloads of every kind with every traffic, round by round.
    pub(crate) fn reloads(&self, layout: &Layout) -> Result<Vec<Reloaded>> {
        let mut all = Vec::new();
        for _ in 0..self.rounds {
            for traffic in &self.traffic {
                for who in &self.who {
                    for reload in Reload::ALL {
                        // Without load there is nothing to see of HAProxy that was not seen with it.
                        if *who == Who::Haproxy && *traffic == Traffic::Idle {
                            continue;
                        }
                        let reloaded = match who {
                            Who::Balancerd => self.reload_balancerd(layout, *traffic, reload),
                            Who::Haproxy => self.reload_haproxy(layout, *traffic, reload),
                        };
                        all.push(reloaded.with_context(|| format!("{} reloads: {}", who.name(), reload.name()))?);
                    }
                }
            }
        }
        Ok(all)
    }

    fn change(&self, layout: &Layout, traffic: Traffic, kind: Kind) -> Result<Changed> {
        let (_files, mut daemon) = self.start(|files| Daemon::start(&self.balancerd, files, layout, &self.policy))?;
        let mut answers = Vec::new();
        let (own, load) = self.under(traffic, layout, || {
            let before = Before::of(&mut daemon)?;
            let begin = clock::now();
            let end = begin + self.duration;
            for number in 0..self.changes {
                let Some(request) = kind.request(number as usize, layout, self.ports) else { break };
                clock::wait_until(begin + self.duration * number / self.changes);
                if clock::now() >= end {
                    break;
                }
                self.interrupt.check()?;
                answers.push(daemon.ask(&request)?.1);
            }
            self.wait_until(end)?;
            before.until_now(&mut daemon)
        })?;
        let (servers, wanted) = (daemon.status()?.servers, kind.servers_after(answers.len(), layout.servers()));
        ensure!(servers == wanted as u64, "{servers} servers instead of {wanted}");
        Ok(Changed { traffic, kind, own, answers, load })
    }

    fn reload_balancerd(&self, layout: &Layout, traffic: Traffic, reload: Reload) -> Result<Reloaded> {
        let (_files, mut daemon) = self.start(|files| Daemon::start(&self.balancerd, files, layout, &self.policy))?;
        daemon.prepare(&reload.of(layout))?;
        daemon.process.forget_peak()?;
        let (memory, _) = daemon.process.resident()?;
        let ((own, answer), load) = self.under(traffic, layout, || {
            let before = Before::of(&mut daemon)?;
            let begin = clock::now();
            self.wait_until(begin + BEFORE_RELOAD)?;
            let answer = if reload == Reload::None { None } else { Some(daemon.reload(reload)?) };
            self.wait_until(begin + self.duration)?;
            Ok((before.until_now(&mut daemon)?, answer))
        })?;
        let (_, peak) = daemon.process.resident()?;
        Ok(Reloaded { who: Who::Balancerd, traffic, reload, answer, own: Some(own), load, memory: (memory, peak) })
    }

    fn reload_haproxy(&self, layout: &Layout, traffic: Traffic, reload: Reload) -> Result<Reloaded> {
        let (_files, haproxy) = self.start(|files| Haproxy::start(files, layout))?;
        haproxy.prepare(&reload.of(layout))?;
        let memory = haproxy.process.memory()?.shared_out;
        let ((answer, peak), load) = self.under(traffic, layout, || {
            let begin = clock::now();
            self.wait_until(begin + BEFORE_RELOAD)?;
            let end = begin + self.duration;
            let (answer, peak) = thread::scope(|scope| {
                let peak = scope.spawn(|| peak_of(&haproxy.process, end));
                let answer = if reload == Reload::None { None } else { Some(haproxy.reload()) };
                (answer.transpose(), peak.join().expect("looking at memory does not panic"))
            });
            self.wait_until(end)?;
            Ok((answer?, peak))
        })?;
        Ok(Reloaded { who: Who::Haproxy, traffic, reload, answer, own: None, load, memory: (memory, peak.max(memory)) })
    }

    /// Starts a balancer with a directory of its own, which goes after it.
    fn start<T>(&self, start: impl FnOnce(&Path) -> Result<T>) -> Result<(TempDir, T)> {
        let files = TempDir::new_in(self.directory.path()).context("create a directory")?;
        let started = self.placement.with_balancer(|| start(files.path()))?;
        Ok((files, started))
    }

    /// Does `work` while there is traffic, after its warm-up; and what the traffic counted meanwhile.
    fn under<T>(&self, traffic: Traffic, layout: &Layout, work: impl FnOnce() -> Result<T>) -> Result<(T, Tally)> {
        if traffic == Traffic::Idle {
            return Ok((work()?, Tally::default()));
        }
        let mut load = Load::open(&layout.listens, self.shape, &self.interrupt)?;
        load.run(WARM_UP).context("warm up")?;
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let load = scope.spawn(|| load.run_while(|_| !done.load(Ordering::Relaxed)));
            let result = work();
            done.store(true, Ordering::Relaxed);
            let tally = load.join().expect("the load does not panic").context("the load")?;
            ensure!(tally.requests > 0, "no request was answered");
            Ok((result?, tally))
        })
    }

    /// Waits, and fails when it is interrupted.
    fn wait_until(&self, at: Instant) -> Result<()> {
        while clock::now() < at {
            self.interrupt.check()?;
            clock::wait_until(at.min(clock::now() + LOOK));
        }
        Ok(())
    }
}

/// The loop at the begin of a measurement.
struct Before {
    turn: Duration,
    ran: Duration,
    waited: Duration,
    all_ran: Duration,
}

impl Before {
    fn of(daemon: &mut Daemon) -> Result<Self> {
        let turn = longest_turn(daemon)?;
        let (ran, waited) = daemon.process.first_thread()?;
        Ok(Self { turn, ran, waited, all_ran: daemon.process.processor_time()? })
    }

    fn until_now(self, daemon: &mut Daemon) -> Result<Loop> {
        let (ran, waited) = daemon.process.first_thread()?;
        let all_ran = daemon.process.processor_time()?.saturating_sub(self.all_ran);
        let turn = longest_turn(daemon)?;
        let (ran, waited) = (ran.saturating_sub(self.ran), waited.saturating_sub(self.waited));
        Ok(Loop { turn_before: self.turn, turn, ran, waited, all_ran })
    }
}

fn longest_turn(daemon: &mut Daemon) -> Result<Duration> {
    Ok(Duration::from_micros(daemon.status()?.longest_turn_us))
}

/// The most memory of `process` and its children until `end`, in bytes: looked at again and again. A look that a child's end
/// comes between does not count.
fn peak_of(process: &Process, end: Instant) -> u64 {
    let mut peak = 0;
    while clock::now() < end {
        peak = peak.max(process.memory().map_or(0, |memory| memory.shared_out));
        clock::wait_until(clock::now() + LOOK);
    }
    peak
}

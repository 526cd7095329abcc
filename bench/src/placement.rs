//! Which processors the programs run on.
//!
//! With the balancer alone on one processor, and the clients and servers on the others, the figures vary less: nothing
//! migrates, and nobody takes the balancer's caches or its turn. A child inherits the processors of this program, so
//! this program changes its own before it starts one.

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The processors of the balancers, and those of clients and servers.
pub struct Placement {
    balancer: CpuSet,
    rest: CpuSet,
    apart: bool,
}

impl Placement {
    /// Everything runs everywhere.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn free() -> Result<Self> {
        let all = sched_getaffinity(SELF).context("read the allowed processors")?;
        Ok(Self { balancer: all, rest: all, apart: false })
    }

    /// Balancers run on the first allowed processor, the rest on the others; on a single one, everything runs there.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn apart() -> Result<Self> {
        let Self { balancer: all, .. } = Self::free()?;
        let allowed: Vec<usize> = (0..CpuSet::count()).filter(|cpu| all.is_set(*cpu).unwrap_or(false)).collect();
        let [first, others @ ..] = allowed.as_slice() else { return Self::free() };
        if others.is_empty() {
            return Self::free();
        }
        let mut balancer = CpuSet::new();
        balancer.set(*first).context("choose a processor")?;
        let mut rest = all;
        rest.unset(*first).context("choose processors")?;
        Ok(Self { balancer, rest, apart: true })
    }

    /// What the reader of the tables should know.
    #[must_use]
    pub fn describe(&self) -> &'static str {
        if self.apart { "the balancer alone on one processor" } else { "all programs on any processor" }
    }

    /// Runs `start` on the balancers' processors, where what it starts then stays.
    ///
    /// # Errors
    /// When `start` fails, or the processors cannot be chosen.
    pub fn with_balancer<T>(&self, start: impl FnOnce() -> Result<T>) -> Result<T> {
        enter(&self.balancer)?;
        let result = start();
        self.enter_rest()?;
        result
    }

    /// Moves this program to the processors of clients and servers.
    ///
    /// # Errors
    /// When the processors cannot be chosen.
    pub fn enter_rest(&self) -> Result<()> {
        enter(&self.rest)
    }
}

const SELF: Pid = Pid::from_raw(0);

fn enter(processors: &CpuSet) -> Result<()> {
    sched_setaffinity(SELF, processors).context("choose processors")
}

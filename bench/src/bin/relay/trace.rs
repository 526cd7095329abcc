//! System calls of a running balancer, counted by strace.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bench::process::Process;
use nix::sys::signal::Signal;

/// How long strace may take to write its summary and end.
const END_LIMIT: Duration = Duration::from_secs(5);

/// A strace at work.
pub(crate) struct Trace {
    strace: Process,
    summary: PathBuf,
}

/// How often one system call was made.
pub(crate) struct Calls {
    pub(crate) name: String,
    pub(crate) count: u64,
}

/// The calls a balancer made while it relayed.
pub(crate) struct Traced {
    /// The requests answered meanwhile.
    pub(crate) requests: u64,
    pub(crate) calls: Vec<Calls>,
}

impl Traced {
    /// How often the call `name` was made.
    pub(crate) fn count(&self, name: &str) -> u64 {
        self.calls.iter().filter(|calls| calls.name == name).map(|calls| calls.count).sum()
    }

    /// All calls, for each request.
    pub(crate) fn per_request(&self) -> f64 {
        self.calls.iter().map(|calls| calls.count).sum::<u64>() as f64 / self.requests as f64
    }
}

impl Trace {
    /// Starts strace on all processes of `traced`, with its files in `directory`. Counting begins a moment later.
    pub(crate) fn start(directory: &Path, traced: &Process) -> Result<Self> {
        let summary = directory.join("strace.summary");
        let mut arguments = ["-f", "-c", "-U", "name,calls", "-o"].map(str::to_owned).to_vec();
        arguments.push(summary.display().to_string());
        for id in traced.ids()? {
            arguments.extend(["-p".to_owned(), id.to_string()]);
        }
        Ok(Self { strace: Process::start(directory, "strace", "strace", arguments)?, summary })
    }

    /// Whether strace has attached to every process and counts.
    pub(crate) fn attached(&mut self, traced: &Process) -> Result<bool> {
        self.strace.check()?;
        Ok(self.strace.printed().matches(" attached").count() >= traced.ids()?.len())
    }

    /// Detaches, and gives the calls by name.
    pub(crate) fn finish(mut self) -> Result<Vec<Calls>> {
        self.strace.signal(Signal::SIGINT)?;
        self.strace.wait(END_LIMIT).context("end strace")?;
        Ok(calls(&fs::read_to_string(&self.summary).context("read strace's summary")?))
    }
}

/// The rows of strace's summary: a name and a number each; rules, the heading and the total are left out.
fn calls(summary: &str) -> Vec<Calls> {
    let row = |line: &str| {
        let (name, count) = line.trim().split_once(char::is_whitespace)?;
        Some(Calls { name: name.to_owned(), count: count.trim().parse().ok()? })
    };
    summary.lines().filter_map(row).filter(|row| row.name != "total").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_read_without_rules_and_total() {
        let text = "syscall              calls\n---------------- ---------\nrecvfrom                 2\n\
                    sendto                   1\n---------------- ---------\ntotal                    3\n";
        let rows: Vec<_> = calls(text).into_iter().map(|row| (row.name, row.count)).collect();
        assert_eq!(rows, [("recvfrom".to_owned(), 2), ("sendto".to_owned(), 1)]);
    }
}

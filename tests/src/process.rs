//! A child process that does not outlive its value, and what the kernel knows of a process.

use std::fs;
use std::process::{Child, Command, ExitStatus};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;

/// A child. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Runs it.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn spawn(command: &mut Command) -> Self {
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?} cannot be run: {error}")))
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it is gone.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).expect("it is there");
    }

    /// How it ended, if it has.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().expect("a child can be waited for")
    }

    /// Waits until it has ended by itself.
    ///
    /// # Panics
    /// When it does not end.
    pub fn wait(&mut self) -> ExitStatus {
        wait::for_some("a process ends", || self.ended())
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Processor time that the process used so far, in ticks of 10 ms.
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    // proc(5): the name is in parentheses and may hold anything; utime and stime are the 12th and 13th field behind it.
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    fields[11..13].iter().map(|field| field.parse::<u64>().expect("ticks")).sum()
}

/// Descriptors that the process has open.
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("a process").count()
}

/// Descriptors of the process that are ends of pipes.
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn pipes(pid: u32) -> usize {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("a process");
    let targets = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("pipe:")).count()
}

/// Sets the limit of a process that runs: a number at or above which it gets no new descriptor, [`MOST_DESCRIPTORS`] at most.
///
/// # Panics
/// When there is no `prlimit`, or it may not.
pub fn limit_descriptors(pid: u32, count: usize) {
    let (pid, limit) = (format!("--pid={pid}"), format!("--nofile={count}:{MOST_DESCRIPTORS}"));
    let status = Command::new("prlimit").args([pid, limit]).status();
    assert!(status.expect("prlimit runs").success());
}

/// Lets a process that runs get so many more descriptors, and no further one. It is one that opens and closes nothing.
///
/// # Panics
/// When there is no `prlimit`, it may not, or the process does not come to rest.
pub fn leave_descriptors(pid: u32, count: usize) {
    wait::until("nothing has a descriptor for a moment only", || {
        let free = first_free_descriptor(pid);
        limit_descriptors(pid, free + count);
        first_free_descriptor(pid) == free
    });
}

/// The number that the next descriptor of the process gets.
fn first_free_descriptor(pid: u32) -> usize {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("a process");
    let taken: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a number")).collect();
    (0..).find(|number: &usize| !taken.contains(&number.to_string())).expect("there is always a next number")
}

/// The hard limit that [`limit_descriptors`] sets, and so what there may be again.
pub const MOST_DESCRIPTORS: usize = 20_000;

/// A line of `/proc/PID/status`.
///
/// # Panics
/// When there is no such process or line.
#[must_use]
pub fn status(pid: u32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.expect("a line of that name").trim().to_owned()
}

/// Memory that the process has in use, in KiB: the most so far, not that of this moment.
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn most_memory_kib(pid: u32) -> u64 {
    let text = status(pid, "VmHWM");
    text.strip_suffix(" kB").and_then(|number| number.trim().parse().ok()).expect("a size")
}

/// Times that the first thread of the process went to sleep.
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn sleeps(pid: u32) -> u64 {
    status(pid, "voluntary_ctxt_switches").parse().expect("a number")
}

//! A program under measurement: started in the foreground, its cost read from /proc, ended with its owner.
//!
//! Three things see to its end: `Drop` on every return and error, an [interrupt](crate::interrupt) that turns into one,
//! and the kernel's parent-death signal (set by setpriv) when this program is killed outright.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::io::ioctl_fionread;

use crate::clock;

/// How long a program may take to end after SIGTERM before it gets SIGKILL.
const END_LIMIT: Duration = Duration::from_secs(2);
/// How long memory has to stay the same to be taken as settled, and how long that may take to come.
const SETTLED: Duration = Duration::from_millis(300);
const SETTLE_LIMIT: Duration = Duration::from_secs(10);

/// A running program with the processes it started itself, all in one process group.
pub struct Process {
    child: Child,
    log: PathBuf,
}

/// Memory of a program, in bytes, summed over its processes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Pages that belong to the program alone and were written to: heap, stacks, changed data.
    pub own: u64,
    /// All resident pages, shared ones and the program's text included.
    pub resident: u64,
    /// All resident pages, of each the part that is left when all programs that have it share it evenly.
    pub shared_out: u64,
}

/// Memory for each of some that came, in bytes.
pub struct Footprint {
    /// As in [`Memory`].
    pub own: f64,
    /// As in [`Memory`].
    pub resident: f64,
    /// The program's own memory before they came.
    pub before: f64,
}

impl Footprint {
    /// What each of so many takes that came between two looks.
    #[must_use]
    pub fn between(before: Memory, after: Memory, count: u64) -> Self {
        let each = |before: u64, after: u64| after.saturating_sub(before) as f64 / count as f64;
        Self {
            own: each(before.own, after.own),
            resident: each(before.resident, after.resident),
            before: before.own as f64,
        }
    }
}

impl Process {
    /// Starts `program` with `arguments`; what it prints goes to `directory`/`name`.log.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start<A: AsRef<OsStr>>(
        directory: &Path,
        name: &str,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let output = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "--"])
            .arg(program)
            .args(arguments)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("share the log")?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {name} with setpriv"))?;
        Ok(Self { child, log })
    }

    /// Fails, with what the program printed, when it has ended.
    ///
    /// # Errors
    /// When it has ended.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().context("wait for a program")? {
            bail!("ended with {status}: {}", self.printed().trim());
        }
        Ok(())
    }

    /// What the program has printed so far.
    #[must_use]
    pub fn printed(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The program's own process and its direct children: nginx works in a child of its master.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn ids(&self) -> Result<Vec<u32>> {
        let mut ids = vec![self.child.id()];
        for entry in fs::read_dir("/proc").context("list /proc")? {
            let name = entry.context("list /proc")?.file_name();
            let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            if parent(id) == Some(self.child.id()) {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    /// The processor time spent so far, user and system together, over all threads.
    ///
    /// From `schedstat`, which counts nanoseconds; utime and stime of `stat` are the same sum in ticks of 10 ms.
    ///
    /// # Errors
    /// When a process is gone, or the kernel does not count.
    pub fn processor_time(&self) -> Result<Duration> {
        Ok(self.scheduled()?.0)
    }

    /// The processor time spent so far, and how long threads were ready and waited for a processor, over all threads.
    ///
    /// # Errors
    /// As [`Process::processor_time`].
    pub fn scheduled(&self) -> Result<(Duration, Duration)> {
        let (mut ran, mut waited) = (Duration::ZERO, Duration::ZERO);
        for id in self.ids()? {
            for task in fs::read_dir(format!("/proc/{id}/task")).context("list the threads")? {
                let (thread_ran, thread_waited) = schedstat(&task.context("list the threads")?.path())?;
                ran += thread_ran;
                waited += thread_waited;
            }
        }
        ensure!(!ran.is_zero(), "the kernel counts no time in schedstat");
        Ok((ran, waited))
    }

    /// How long the program's first thread has been on a processor, and how long it was ready and waited for one.
    ///
    /// # Errors
    /// When the process is gone, or the kernel does not count.
    pub fn first_thread(&self) -> Result<(Duration, Duration)> {
        let (ran, waited) = schedstat(&PathBuf::from(format!("/proc/{0}/task/{0}", self.child.id())))?;
        ensure!(!ran.is_zero(), "the kernel counts no time in schedstat");
        Ok((ran, waited))
    }

    /// The memory in use now.
    ///
    /// # Errors
    /// When a process is gone.
    pub fn memory(&self) -> Result<Memory> {
        let mut memory = Memory { own: 0, resident: 0, shared_out: 0 };
        for id in self.ids()? {
            let path = format!("/proc/{id}/smaps_rollup");
            let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
            memory.own += field(&text, "Private_Dirty:").with_context(|| format!("no Private_Dirty in {path}"))?;
            memory.resident += field(&text, "Rss:").with_context(|| format!("no Rss in {path}"))?;
            memory.shared_out += field(&text, "Pss:").with_context(|| format!("no Pss in {path}"))?;
        }
        Ok(memory)
    }

    /// The memory in use once it has stayed the same for a while.
    ///
    /// # Errors
    /// When a process is gone, or the memory in use keeps changing.
    pub fn settled_memory(&self) -> Result<Memory> {
        let mut last = self.memory()?;
        let mut since = clock::now();
        clock::retry(SETTLE_LIMIT, || {
            let memory = self.memory()?;
            if memory != last {
                last = memory;
                since = clock::now();
            }
            ensure!(clock::now() - since >= SETTLED, "the memory in use keeps changing");
            Ok(memory)
        })
    }

    /// Forgets how much memory the program had at most.
    ///
    /// # Errors
    /// When the kernel does not let it be forgotten.
    pub fn forget_peak(&self) -> Result<()> {
        fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5").context("forget the peak of memory")
    }

    /// The resident memory of the program's own process, in bytes: now, and at most since [`Process::forget_peak`].
    ///
    /// It costs the program nothing; [`Process::memory`] holds up a program that asks for memory at that moment.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn resident(&self) -> Result<(u64, u64)> {
        let path = format!("/proc/{}/status", self.child.id());
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        field(&text, "VmRSS:").zip(field(&text, "VmHWM:")).with_context(|| format!("no memory in {path}"))
    }

    /// Descriptors that the program's own process has open.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn descriptors(&self) -> Result<u64> {
        let path = format!("/proc/{}/fd", self.child.id());
        Ok(fs::read_dir(&path).with_context(|| format!("list {path}"))?.count() as u64)
    }

    /// The pipes of the kernel that the program's processes have open, and the bytes that are in them.
    ///
    /// # Errors
    /// When a process is gone.
    pub fn kernel_pipes(&self) -> Result<(u64, u64)> {
        let (mut seen, mut bytes) = (BTreeSet::new(), 0);
        for id in self.ids()? {
            let path = format!("/proc/{id}/fd");
            for entry in fs::read_dir(&path).with_context(|| format!("list {path}"))? {
                let path = entry.context("list descriptors")?.path();
                let Ok(target) = fs::read_link(&path) else { continue };
                if !target.as_os_str().as_encoded_bytes().starts_with(b"pipe:") || !seen.insert(target) {
                    continue;
                }
                // One that has been closed since holds nothing.
                let open = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path);
                bytes += open.ok().and_then(|pipe| ioctl_fionread(&pipe).ok()).unwrap_or(0);
            }
        }
        Ok((seen.len() as u64, bytes))
    }

    /// Sends `signal` to the program's process group.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let group = Pid::from_raw(self.child.id().try_into().context("a process id out of range")?);
        killpg(group, signal).with_context(|| format!("send {signal}"))
    }

    /// Waits until the program has ended, for at most `limit`.
    ///
    /// # Errors
    /// When it has not ended by then.
    pub fn wait(&mut self, limit: Duration) -> Result<()> {
        self.end(limit).map(drop)
    }

    /// Waits until the program has ended, for at most `limit`, and tells how.
    ///
    /// # Errors
    /// When it has not ended by then.
    pub fn end(&mut self, limit: Duration) -> Result<ExitStatus> {
        clock::retry(limit, || self.child.try_wait().context("wait for a program")?.context("it did not end"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The child is not reaped yet or has left its group empty: the signal reaches nobody else.
        if self.child.try_wait().ok().flatten().is_some() {
            return;
        }
        let ended = self.signal(Signal::SIGTERM).and_then(|()| self.wait(END_LIMIT));
        if ended.is_err() {
            let _ = self.signal(Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

/// The parent of process `id`: the second field after the name in parentheses of /proc/ID/stat.
fn parent(id: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split_whitespace().nth(1)?.parse().ok()
}

/// How long a thread, with this folder in /proc, has been on a processor, and was ready and waited for one.
fn schedstat(task: &Path) -> Result<(Duration, Duration)> {
    let path = task.join("schedstat");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let mut fields = text.split_whitespace().map(|field| field.parse().map(Duration::from_nanos));
    match (fields.next(), fields.next()) {
        (Some(Ok(ran)), Some(Ok(waited))) => Ok((ran, waited)),
        _ => bail!("no time in {}", path.display()),
    }
}

/// The value of a line `name   N kB`, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_field_is_read_in_bytes() {
        let text = "Rss:                4916 kB\nPrivate_Dirty:       432 kB\n";
        assert_eq!(field(text, "Private_Dirty:"), Some(432 * 1024));
        assert_eq!(field(text, "Swap:"), None);
    }

    #[test]
    fn bytes_in_a_pipe_are_seen_from_outside() {
        let directory = tempfile::tempdir().unwrap();
        let script = "{ printf abcde; sleep 60; } | sleep 60";
        let process = Process::start(directory.path(), "pipe", "bash", ["-c", script]).unwrap();
        clock::retry(Duration::from_secs(10), || match process.kernel_pipes() {
            Ok((pipes, 5)) if pipes > 0 => Ok(()),
            other => Err(other),
        })
        .unwrap();
    }
}

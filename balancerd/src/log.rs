//! The log: `tracing` to standard error, a file or journald, by a thread of its own. A blocked disk or terminal never
//! stalls the loop: lines that find no room are dropped and counted.

mod file;
mod logfmt;

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result};
use tracing::{Level, Metadata};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, time};

use file::LogFile;
use logfmt::Logfmt;

/// Lines that wait for the log's thread.
const MOST_WAITING_LINES: usize = 8192;

/// Where the log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// Standard error, with the time.
    Stderr,
    /// Standard error as journald reads it: each line with its level, without the time.
    Journald,
    /// A file. It is opened anew when it was renamed or removed, so that it can be rotated.
    File(PathBuf),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stderr => f.write_str("stderr"),
            Self::Journald => f.write_str("journald"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

impl FromStr for Target {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "stderr" => Self::Stderr,
            "journald" => Self::Journald,
            path => Self::File(path.into()),
        })
    }
}

/// The log of this process. What it was given is written before it is dropped, if that is a matter of a moment.
pub(crate) struct Log {
    thread: Option<WorkerGuard>,
    dropped: ErrorCounter,
    lost: Arc<AtomicU64>,
    /// The file is to be opened again before the next line.
    again: Arc<AtomicBool>,
    target: Target,
}

impl Log {
    /// Starts the thread and takes what `tracing` gives from now on. `filter` is a level, or a list of directives.
    pub(crate) fn start(target: &Target, filter: &str) -> Result<Self> {
        let filter = EnvFilter::try_new(filter).with_context(|| format!("the log level {filter:?} makes no sense"))?;
        let (lost, again) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (writer, thread) = match target {
            Target::Stderr | Target::Journald => in_background(io::stderr(), &lost),
            Target::File(path) => {
                let file =
                    LogFile::open(path, Arc::clone(&again)).with_context(|| format!("the log {}", path.display()))?;
                in_background(file, &lost)
            }
        };
        let dropped = writer.error_counter();
        let format = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).fmt_fields(Logfmt);
        // What cannot be written is counted. Nothing is told at standard error, which may be a pipe that nobody reads.
        let format = format.log_internal_errors(false);
        let begun = match target {
            Target::Journald => {
                format.without_time().with_level(false).with_ansi(false).with_writer(Journal(writer)).try_init()
            }
            Target::Stderr => format.with_ansi(io::stderr().is_terminal()).with_writer(writer).try_init(),
            Target::File(_) => format.with_ansi(false).with_writer(writer).try_init(),
        };
        begun.map_err(|error| anyhow::anyhow!("the log cannot begin: {error}"))?;
        Ok(Self { thread: Some(thread), dropped, lost, again, target: target.clone() })
    }

    /// Where it goes.
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// Has the file opened again before the next line. Whether it goes to a file.
    pub(crate) fn open_again(&self) -> bool {
        self.again.store(true, Ordering::Relaxed);
        matches!(self.target, Target::File(_))
    }

    /// Lines that found no room so far, or could not be written.
    pub(crate) fn dropped_lines(&self) -> u64 {
        self.dropped.dropped_lines() as u64 + self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Log {
    /// The guard gives its thread a moment, and complains on standard output when that was not enough: which may be the
    /// very pipe that nobody reads. So it is given another one.
    fn drop(&mut self) {
        if let Ok(nowhere) = OpenOptions::new().write(true).open("/dev/null") {
            let _ = nix::unistd::dup2_stdout(nowhere);
        }
        drop(self.thread.take());
    }
}

/// The time of day as the log writes it. It is text, since nobody is to count with it: it jumps when somebody sets the
/// clock.
pub(crate) fn time_of_day() -> String {
    let mut text = String::new();
    // A text takes all that is written.
    let _ = time().format_time(&mut Writer::new(&mut text));
    text
}

fn in_background(writer: impl Write + Send + 'static, lost: &Arc<AtomicU64>) -> (NonBlocking, WorkerGuard) {
    let writer = Counted { writer, lost: Arc::clone(lost) };
    NonBlockingBuilder::default().lossy(true).buffered_lines_limit(MOST_WAITING_LINES).finish(writer)
}

/// Counts the lines that could not be written.
struct Counted<W> {
    writer: W,
    lost: Arc<AtomicU64>,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // The thread gives whole lines, and goes on after an error.
        self.writer.write_all(line).inspect_err(|_| {
            self.lost.fetch_add(1, Ordering::Relaxed);
        })?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Puts the level in front of each line, as sd-daemon(3) has it.
struct Journal(NonBlocking);

struct JournalLine {
    writer: NonBlocking,
    prefix: &'static str,
}

impl<'a> MakeWriter<'a> for Journal {
    type Writer = JournalLine;

    fn make_writer(&'a self) -> JournalLine {
        JournalLine { writer: self.0.clone(), prefix: "<6>" }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> JournalLine {
        let prefix = match *metadata.level() {
            Level::ERROR => "<3>",
            Level::WARN => "<4>",
            Level::INFO => "<6>",
            _ => "<7>",
        };
        JournalLine { writer: self.0.clone(), prefix }
    }
}

impl Write for JournalLine {
    /// One call is one line: the formatter writes whole lines, and the thread must not see halves.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.writer.write_all(&[self.prefix.as_bytes(), line].concat())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_a_full_disk_does_not_take_are_counted() {
        let lost = Arc::new(AtomicU64::new(0));
        let writer = LogFile::open("/dev/full".as_ref(), Arc::default()).expect("opened");
        let mut counted = Counted { writer, lost: Arc::clone(&lost) };
        for _ in 0..3 {
            assert!(counted.write_all(b"line\n").is_err());
        }
        assert_eq!(lost.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn targets_are_told_apart() {
        assert_eq!("stderr".parse(), Ok(Target::Stderr));
        assert_eq!("journald".parse(), Ok(Target::Journald));
        assert_eq!("/var/log/x".parse(), Ok(Target::File("/var/log/x".into())));
    }
}

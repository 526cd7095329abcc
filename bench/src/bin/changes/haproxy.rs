//! HAProxy with a master process, which reloads by starting a new worker beside the old one.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bench::process::Process;
use bench::{client, clock};

use crate::layout::Layout;

/// Where Debian's haproxy puts the program, which is not on everybody's search path.
pub(crate) const HAPROXY: &str = "/usr/sbin/haproxy";
/// How long a reload may take.
const RELOAD_LIMIT: Duration = Duration::from_secs(30);
/// How long one of its answers may take; a question that is lost when it starts anew is asked again.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// A running HAProxy.
pub(crate) struct Haproxy {
    pub(crate) process: Process,
    master: PathBuf,
    file: PathBuf,
}

impl Haproxy {
    /// Starts it with its files in `directory`, and waits until it answers.
    pub(crate) fn start(directory: &Path, layout: &Layout) -> Result<Self> {
        let (file, master) = (directory.join("haproxy.cfg"), directory.join("master.sock"));
        fs::write(&file, layout.haproxy_file()).context("write HAProxy's file")?;
        let arguments = ["-W", "-S", &master.display().to_string(), "-f", &file.display().to_string()];
        let mut process = Process::start(directory, "haproxy", HAPROXY, arguments)?;
        client::await_answer(layout.listens[0], &mut process).context("start HAProxy")?;
        Ok(Self { process, master, file })
    }

    /// Writes the file for a reload, so that only the reload is left to do.
    pub(crate) fn prepare(&self, layout: &Layout) -> Result<()> {
        fs::write(&self.file, layout.haproxy_file()).context("write HAProxy's file")
    }

    /// Lets it read its file again, and how long it takes until a new worker has the listeners.
    pub(crate) fn reload(&self) -> Result<Duration> {
        let old = clock::retry(RELOAD_LIMIT, || self.worker())?;
        let begin = clock::now();
        // The master ends the connection when it starts anew, in this version without an answer.
        let _ = self.ask("reload");
        clock::retry(RELOAD_LIMIT, || {
            ensure!(self.worker()? != old, "HAProxy did not start a new worker: {}", self.process.printed().trim());
            Ok(())
        })?;
        Ok(clock::now() - begin)
    }

    /// The process that serves new sessions.
    fn worker(&self) -> Result<u32> {
        worker(&self.ask("show proc")?).context("HAProxy has no worker")
    }

    fn ask(&self, question: &str) -> Result<String> {
        let mut stream = UnixStream::connect(&self.master).context("connect to HAProxy's master")?;
        stream.set_read_timeout(Some(ANSWER_LIMIT)).context("set a time limit")?;
        writeln!(stream, "{question}").context("ask HAProxy's master")?;
        // It answers, or at least ends the answer, when there are no more questions.
        stream.shutdown(Shutdown::Write).context("ask HAProxy's master")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("read the answer of HAProxy's master")?;
        Ok(answer)
    }
}

/// The worker in the answer to `show proc`: the first process of its section.
fn worker(answer: &str) -> Option<u32> {
    let line = answer.lines().skip_while(|line| !line.starts_with("# workers")).nth(1)?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worker_is_the_first_of_its_section() {
        let answer = "#<PID>  <type>  <reloads>  <uptime>  <version>\n1162  master  1  0d00h00m07s  2.6.12\n\
                      # workers\n1271  worker  0  0d00h00m00s  2.6.12\n# old workers\n1163  worker  1  0d00h00m07s  2.6.12\n\
                      # programs\n";
        assert_eq!(worker(answer), Some(1271));
        assert_eq!(worker("# workers\n# old workers\n"), None);
    }
}

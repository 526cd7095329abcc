//! What a report was measured on and with: the date, the machine, the versions of all programs.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use bench::{clock, servers};

use crate::balancer::{HAPROXY, Programs};

/// What is said below every plot and above every table.
pub(crate) struct Machine {
    date: String,
    kernel: String,
    processors: String,
    versions: Vec<String>,
    load_before: String,
}

impl Machine {
    /// Asks the kernel and the programs; `checkout` is what the programs of this project were built from.
    pub(crate) fn ask(programs: &Programs, checkout: &Path) -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
        let balancerd = said(&programs.balancerd, &["--version"])?;
        let commit = said("git", &["-C", &checkout.display().to_string(), "describe", "--always", "--dirty"]);
        Ok(Self {
            date: clock::today(),
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            processors: processors(&read("/proc/cpuinfo")?),
            versions: vec![
                format!("balancerd {}{}", version(&balancerd), commit.map(|id| format!(" ({id})")).unwrap_or_default()),
                format!("HAProxy {}", version(&said(HAPROXY, &["-v"])?)),
                format!("nginx {}", version(&said(servers::NGINX, &["-v"])?)),
            ],
            load_before: load()?,
        })
    }

    /// The date, the kernel and the processors.
    pub(crate) fn place(&self) -> String {
        format!("{}, Linux {}, {}", self.date, self.kernel, self.processors)
    }

    /// The versions of all programs.
    pub(crate) fn versions(&self) -> String {
        self.versions.join(", ")
    }

    /// The load average before the run, and now: a quiet machine has next to nothing before, and two to three then.
    pub(crate) fn load(&self) -> Result<String> {
        Ok(format!("load average {} before and {} at the end", self.load_before, load()?))
    }
}

/// The load average of the last minute.
fn load() -> Result<String> {
    let text = fs::read_to_string("/proc/loadavg").context("read /proc/loadavg")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

/// The first line that a program says on either stream.
fn said(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Result<String> {
    let name = program.as_ref().to_string_lossy().into_owned();
    let output = Command::new(program).args(arguments).output().with_context(|| format!("run {name}"))?;
    let text = [output.stdout, output.stderr].concat();
    let line = String::from_utf8_lossy(&text).lines().next().map(|line| line.trim().to_owned());
    line.filter(|_| output.status.success()).with_context(|| format!("{name} does not say what it is"))
}

/// The first word, or part of a word behind a slash, that begins with a digit; without what Debian adds to it.
fn version(text: &str) -> &str {
    let begins = |word: &&str| word.starts_with(|letter: char| letter.is_ascii_digit());
    let word = text.split([' ', '/']).find(begins).unwrap_or("?");
    word.split('-').next().unwrap_or(word)
}

/// How many processors of which model.
fn processors(cpuinfo: &str) -> String {
    let values = |name: &'static str| {
        cpuinfo.lines().filter_map(move |line| line.split_once(':').filter(|(key, _)| key.trim() == name))
    };
    let count = values("processor").count();
    let model = values("model name").next().map_or("", |(_, value)| value.trim());
    format!("{count} processors {model}").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        assert_eq!(version("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/"), "2.6.12");
        assert_eq!(version("nginx version: nginx/1.22.1"), "1.22.1");
        assert_eq!(version("balancerd 0.1.0"), "0.1.0");
        assert_eq!(version("nothing"), "?");
    }

    #[test]
    fn processors_are_counted() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\nmodel name\t: AMD EPYC\n";
        assert_eq!(processors(text), "2 processors AMD EPYC");
    }
}

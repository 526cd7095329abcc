//! Starting a balancer: finds balancerd, runs it and waits until it answers.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use serde::Serialize;
use wire::report::StatusReport;
use wire::{Environment, Places, Request, Response};

use crate::command::ask;
use crate::failure::Failure;
use crate::reach::Reach;

/// The program that is looked for.
pub(crate) const DAEMON: &str = "balancerd";

/// Options of balancerd that `start` gives itself.
const OWN_OPTIONS: [&str; 5] = ["--listen", "--config", "--socket", "--state", "--background"];

/// What a balancer is to be.
#[derive(Debug)]
pub(crate) enum Origin {
    /// One that listens there, with the pool `default`.
    Listen(SocketAddr),
    /// What this file says; an absolute path, since the daemon has another working directory.
    File(PathBuf),
}

/// A balancer that is to be started.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    /// What it is to be.
    pub(crate) origin: Origin,
    /// Its control socket, where it is not the usual one.
    pub(crate) socket: Option<PathBuf>,
    /// The directory for its state, where it is not the usual one.
    pub(crate) state: Option<PathBuf>,
    /// Further options for balancerd.
    pub(crate) options: &'a [OsString],
}

/// A balancer that was started, and what is printed for `start --json`.
#[derive(Debug, Serialize)]
pub(crate) struct Started {
    /// The program that runs.
    pub(crate) balancerd: PathBuf,
    /// Its control socket.
    pub(crate) socket: PathBuf,
    /// How it is.
    pub(crate) status: StatusReport,
    /// What it said on its standard error, although it started.
    #[serde(skip)]
    pub(crate) warnings: String,
}

/// Why no balancer was started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The program is not installed, or not completely.
    #[error("{DAEMON} is neither {} nor in PATH; install it beside balancerctl, or add its directory to PATH", .beside.display())]
    NotFound {
        /// Where it would be beside this program.
        beside: PathBuf,
    },
    /// An option behind `--` that has its own place before it.
    #[error("{0} does not go behind `--`: `balancerctl start` gives it itself, from what stands before")]
    OwnOption(&'static str),
    /// The program cannot be run.
    #[error("{} cannot be run: {source}", .program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It ran, and did not become a balancer.
    #[error("the balancer did not start: {said}")]
    Failed {
        /// Its own words.
        said: String,
    },
}

impl StartError {
    /// Whether the balancer itself said no.
    pub(crate) fn refused(&self) -> bool {
        matches!(self, Self::Failed { .. })
    }

    /// The name that programs know it by.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "no-balancerd",
            Self::OwnOption(_) => "options",
            Self::Run { .. } => "io",
            Self::Failed { .. } => "start-failed",
        }
    }
}

impl Start<'_> {
    /// Starts it. It answers when this returns.
    ///
    /// # Errors
    /// When it cannot be found or run, or says why it does not start.
    pub(crate) fn run(&self) -> Result<Started, Failure> {
        if let Some(own) = OWN_OPTIONS.into_iter().find(|own| has_option(self.options, own)) {
            return Err(StartError::OwnOption(own).into());
        }
        let places = Places::find(self.socket.as_deref(), self.state.as_deref(), &Environment::current())?;
        let balancerd = find_daemon()?;
        let warnings = self.spawn(&balancerd, &places.log)?;
        match ask(Reach { socket: Some(&places.socket), timeout: None }, &Request::Status)? {
            Response::Status(status) => Ok(Started { balancerd, socket: places.socket, status, warnings }),
            _ => Err(Failure::Unexpected),
        }
    }

    /// Runs balancerd and waits for the process that was started: it ends when the daemon is ready or has failed.
    fn spawn(&self, program: &Path, log: &Path) -> Result<String, StartError> {
        let failed = |source| StartError::Run { program: program.to_path_buf(), source };
        // A file and not a pipe: what the daemon keeps open of it keeps nobody waiting.
        let mut errors = tempfile::tempfile().map_err(failed)?;
        let mut command = Command::new(program);
        command.arg("--background");
        match &self.origin {
            Origin::Listen(listen) => command.arg("--listen").arg(listen.to_string()),
            Origin::File(file) => command.arg("--config").arg(file),
        };
        if let Some(socket) = &self.socket {
            command.arg("--socket").arg(socket);
        }
        if let Some(state) = &self.state {
            command.arg("--state").arg(state);
        }
        let status = command
            .args(self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors.try_clone().map_err(failed)?)
            .status()
            .map_err(failed)?;
        let said = read_back(&mut errors).map_err(failed)?;
        if status.success() { Ok(said) } else { Err(StartError::Failed { said: complaint(&said, status, Some(log)) }) }
    }
}

fn read_back(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// What a daemon that did not start said: the first paragraph of it, without its name. Behind that comes at most the
/// usage of a program that nobody has called by its name.
pub(crate) fn complaint(said: &str, status: ExitStatus, log: Option<&Path>) -> String {
    let said = ["balancerd: ", "error: "].iter().fold(said, |said, prefix| said.strip_prefix(prefix).unwrap_or(said));
    let lines: Vec<&str> = said.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        let hint = log.map_or_else(String::new, |log| format!("; {} may say why", log.display()));
        format!("{DAEMON} ended with {status} and said nothing{hint}")
    } else {
        // Mistakes of a file have a line each, for editors; clap goes on in the next line.
        let file = lines[0].split_inclusive(':').next().filter(|name| name.ends_with(':'));
        let of_one_file = file.is_some_and(|name| lines.iter().all(|line| line.starts_with(name)));
        lines.join(if of_one_file { "\n" } else { "; " })
    }
}

fn has_option(options: &[OsString], name: &str) -> bool {
    options
        .iter()
        .filter_map(|option| option.to_str())
        .any(|option| option.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('=')))
}

/// Beside this program, then in PATH: what was installed together runs together.
///
/// # Errors
/// When it is in neither.
pub(crate) fn find_daemon() -> Result<PathBuf, StartError> {
    let beside = std::env::current_exe().unwrap_or_default().with_file_name(DAEMON);
    let path = std::env::var_os("PATH").unwrap_or_default();
    find_program(&beside, &path).ok_or(StartError::NotFound { beside })
}

fn find_program(beside: &Path, path: &OsStr) -> Option<PathBuf> {
    let in_path = std::env::split_paths(path).map(|directory| directory.join(DAEMON));
    std::iter::once(beside.to_path_buf()).chain(in_path).find(|program| is_program(program))
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn balancerd_is_looked_for_beside_and_then_in_path() {
        let directory = tempfile::tempdir().expect("a directory");
        let [beside, first, second] = ["beside", "first", "second"].map(|name| {
            let place = directory.path().join(name);
            fs::create_dir(&place).expect("a directory");
            place.join(DAEMON)
        });
        let path = std::env::join_paths([&first, &second].map(|program| program.parent().expect("a parent")));
        let found = || find_program(&beside, path.as_ref().expect("a path"));
        assert_eq!(found(), None);
        fs::write(&second, "").expect("written");
        assert_eq!(found(), None, "it cannot be executed");
        for program in [&second, &first, &beside] {
            fs::write(program, "").expect("written");
            fs::set_permissions(program, fs::Permissions::from_mode(0o755)).expect("changed");
            assert_eq!(found().as_ref(), Some(program));
        }
    }

    #[test]
    fn the_daemons_words_are_passed_on() {
        let (status, log) = (ExitStatus::from_raw(0x100), Some(Path::new("/tmp/b.log")));
        assert_eq!(complaint("balancerd: no such thing", status, log), "no such thing");
        assert_eq!(complaint("error: one\n  two\n\nUsage: x", status, log), "one; two");
        assert_eq!(complaint("f.toml:1:2: a\nf.toml:3:4: b\n", status, log), "f.toml:1:2: a\nf.toml:3:4: b");
        let silent = complaint("", status, log);
        assert_eq!(silent, "balancerd ended with exit status: 1 and said nothing; /tmp/b.log may say why");
    }

    #[test]
    fn options_are_found_in_both_spellings() {
        let options: Vec<OsString> = ["--log=journald", "x"].map(OsString::from).into();
        assert!(has_option(&options, "--log"));
        assert!(!has_option(&options, "--lo"));
        assert!(!has_option(&["--log-level".into()], "--log"));
    }
}

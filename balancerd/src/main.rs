//! balancerd: arguments, logging, going to the background, exit code. What it does is in `daemon`.

mod arguments;
mod background;
mod config;
mod daemon;
mod descriptors;
mod event;
mod loader;
mod lock;
mod log;
mod model;
mod net;
mod notifier;
mod pages;
mod planted;
mod reader;
mod source;
mod state;
mod teller;

use std::fmt::Display;
use std::io::{self, Write};
use std::panic;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use wire::printable;

use arguments::Arguments;
use background::{Half, Starter};
use config::Config;
use daemon::Daemon;
use event::Signals;
use lock::Locks;
use log::{Log, Target};
use notifier::Notifier;

/// How long the end waits for whoever reads standard error.
const READER_PATIENCE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    if let Some(path) = &arguments.check {
        return check(path, arguments.json);
    }
    let result = match arguments.generate {
        Some(page) => pages::page(page).and_then(|page| print(&page)),
        None => start(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format!("balancerd: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Says why the command line makes no sense, or what was asked for of it. The program ends with that.
fn usage(error: &clap::Error) -> ExitCode {
    // clap's own colours stay where there is nothing else that is none of ours.
    if error.use_stderr() && std::env::args_os().any(|word| word.to_string_lossy().contains(char::is_control)) {
        complain(error.render().to_string().trim_end().to_owned());
    } else {
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Says something at standard error, which may be closed, or a pipe that nobody reads: no end hangs for that.
fn complain(text: impl Display + Send + 'static) {
    let (done, written) = mpsc::channel();
    let write = move || {
        // Not eprintln: it panics where standard error is closed.
        let _ = writeln!(io::stderr(), "{}", printable(&text.to_string()));
        let _ = done.send(());
    };
    if thread::Builder::new().spawn(write).is_ok() {
        let _ = written.recv_timeout(READER_PATIENCE);
    }
}

/// Prints what was asked for. A reader that has had enough and goes, as `head` does, is no fault.
///
/// # Errors
/// When it cannot be printed otherwise, as on a full disk.
fn print(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("standard output"),
        _ => Ok(()),
    }
}

/// Says whether a configuration file is valid. The line of an error begins with the file's name, for editors.
fn check(path: &Path, json: bool) -> ExitCode {
    let read = config::file::read(path).and_then(|file| {
        let services = file.settings.services.values();
        let lists = services.flat_map(|service| [&service.allow_file, &service.deny_file]).flatten();
        lists
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .try_for_each(|list| config::list::read(Path::new(list)).map(drop))?;
        Ok(file)
    });
    let file = match read {
        Ok(file) => file,
        Err(error) => {
            complain(error);
            return ExitCode::FAILURE;
        }
    };
    let text = if json {
        serde_json::to_string(&file.settings).expect("texts and numbers")
    } else {
        printable(&format!("{} is valid: {}", path.display(), file.summary())).into_owned()
    };
    match print(format!("{text}\n").as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format!("balancerd: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> Result<()> {
    let config = arguments.config()?;
    let target = arguments.log_target(&config)?;
    if !arguments.background {
        return run(&config, &target, &arguments.log_level, None);
    }
    match background::enter()? {
        Half::Parent => Ok(()),
        Half::Daemon(starter) => run(&config, &target, &arguments.log_level, Some(starter)),
    }
}

/// Serves until the end. An error before it serves goes to whoever started it.
fn run(config: &Config, target: &Target, level: &str, starter: Option<Starter>) -> Result<()> {
    let (locks, daemon) = match prepare(config, target, level) {
        Ok(ready) => ready,
        Err(error) => {
            if let Some(starter) = starter {
                starter.failed(&error);
            }
            return Err(error);
        }
    };
    if let Some(starter) = starter {
        starter.ready();
    }
    let result = daemon.run();
    drop(locks);
    result
}

fn prepare(config: &Config, target: &Target, level: &str) -> Result<(Locks, Daemon)> {
    // The order matters: signals are blocked before any thread exists, and the log's is the first.
    let signals = Signals::take().context("signals")?;
    let locks = Locks::take(&config.places)?;
    let log = Log::start(target, level)?;
    panic::set_hook(Box::new(|fault| tracing::error!(%fault, "a fault in the balancer")));
    let notifier = Notifier::start().context("the thread that tells the service manager")?;
    Ok((locks, Daemon::new(config, signals, log, notifier)?))
}

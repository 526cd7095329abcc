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
mod pages;
mod source;
mod state;
mod teller;

use std::io::{self, Write};
use std::panic;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use sd_notify::NotifyState;

use arguments::Arguments;
use background::{Half, Starter};
use config::Config;
use daemon::Daemon;
use event::Signals;
use lock::Locks;
use log::{Log, Target};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(path) = &arguments.check {
        return check(path, arguments.json);
    }
    let result = match arguments.generate {
        Some(page) => pages::print(page),
        None => start(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not eprintln: it panics where standard error is closed.
            let _ = writeln!(io::stderr(), "balancerd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Says whether a configuration file is valid. The line of an error begins with the file's name, for editors.
fn check(path: &Path, json: bool) -> ExitCode {
    let file = match config::file::read(path) {
        Ok(file) => file,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            return ExitCode::FAILURE;
        }
    };
    let text = if json {
        serde_json::to_string(&file.settings).expect("texts and numbers")
    } else {
        format!("{} is valid: {}", path.display(), file.summary())
    };
    match writeln!(io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "balancerd: standard output: {error}");
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
    daemon::notify(&[NotifyState::Ready]);
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
    Ok((locks, Daemon::new(config, signals, log)?))
}

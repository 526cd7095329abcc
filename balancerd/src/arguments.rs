//! The command line of balancerd. The doc comments are the help, the man page and the completions.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{ArgGroup, Parser, ValueEnum};
use tracing::level_filters::LevelFilter;
use wire::{Environment, Places};

use crate::config::Config;
use crate::log::Target;
use crate::net::tcp::Timeouts;

/// The balancer: relays TCP connections to the servers of a pool, each client to the same server.
///
/// It runs in the foreground, for a service manager or a terminal, unless --background is given. Servers are added and
/// removed with balancerctl while it runs, and are there again after a restart.
#[derive(Debug, Parser)]
#[command(name = "balancerd", version, override_usage = USAGE, after_help = EXAMPLES)]
#[command(group = ArgGroup::new("task").args(["listen", "config", "config_if_exists", "check", "generate"]).required(true).multiple(true))]
pub(crate) struct Arguments {
    /// Where clients connect: an IP address and a port. Port 0 lets the kernel choose; the IPv6
    /// address :: takes IPv4 clients too.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,

    /// The configuration file, which names services, pools and servers. With --listen there is the service "default"
    /// as well.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The configuration file if it is there when the balancer starts; --listen then has no effect. Without the file
    /// --listen says what is served, until a reload finds the file.
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    config_if_exists: Option<PathBuf>,

    /// Read a configuration file, say whether it is valid, and end.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["listen", "config", "config_if_exists", "background"])]
    pub(crate) check: Option<PathBuf>,

    /// With --check: print what the file says as one line of JSON.
    #[arg(long, requires = "check", conflicts_with_all = ["listen", "config", "config_if_exists", "background"])]
    pub(crate) json: bool,

    /// The control socket. By default /run/balancer/control.sock for root, $XDG_RUNTIME_DIR/balancer/control.sock for
    /// others. With this option and no --state, the state, pid and log file lie beside it.
    #[arg(long, value_name = "PATH", env = "BALANCER_SOCKET")]
    socket: Option<PathBuf>,

    /// The directory of the state and log file. By default /var/lib/balancer for root, $XDG_STATE_HOME/balancer for
    /// others.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,

    /// Go to the background once everything is ready; the log then goes to a file beside the state file.
    #[arg(long)]
    pub(crate) background: bool,

    /// Where the log goes: stderr, journald (standard error as journald reads it) or a file's path.
    #[arg(long, value_name = "TARGET")]
    log: Option<Target>,

    /// How much is logged: error, warn, info, debug (every session) or trace.
    #[arg(long, value_name = "LEVEL", env = "BALANCER_LOG", default_value = "info", value_parser = log_level)]
    pub(crate) log_level: String,

    /// How long a server may take to answer a connect before the next one is tried.
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = duration)]
    connect_timeout: Duration,

    /// How long a session may be idle before it is closed.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    idle_timeout: Duration,

    /// How long sessions may go on when the balancer stops.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    drain_timeout: Duration,

    /// Points that a server of weight 1 has on the ring. Balancers that are to agree need the same number, and another
    /// number gives most clients another server.
    #[arg(long, value_name = "N", default_value_t = ring::POINTS_PER_WEIGHT)]
    points_per_weight: NonZeroU32,

    /// Print the man page or the completions of a shell, and end.
    #[arg(long, value_name = "WHAT", hide = true)]
    pub(crate) generate: Option<Page>,
}

/// What can be made from the definitions above.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Page {
    /// The man page.
    Man,
    /// Completions for bash.
    Bash,
    /// Completions for zsh.
    Zsh,
    /// Completions for fish.
    Fish,
}

const USAGE: &str = "\
balancerd [OPTIONS] --listen <ADDR:PORT>
       balancerd [OPTIONS] --config <FILE>
       balancerd --check <FILE> [--json]";

const EXAMPLES: &str = "\
Examples:
  balancerd --listen 0.0.0.0:80
      In the foreground, on every IPv4 address.
  balancerd --listen '[::]:80' --background
      For IPv4 and IPv6 clients, in the background. `balancerctl start :: 80` does the same.
  balancerd --config /etc/balancer/balancer.toml
      Services, pools and servers as a file has them.
  balancerd --check /etc/balancer/balancer.toml
      Whether that file is valid, and if not, where it is wrong.
  balancerd --listen 127.0.0.1:8080 --socket /tmp/mine/control.sock
      A second balancer, with all of its files in /tmp/mine.

SIGTERM, SIGINT and SIGQUIT stop it: no new sessions, the others may go on for the drain time. A second SIGTERM or SIGINT
ends it at once. SIGHUP reads the configuration file again, SIGUSR1 opens the log again.";

impl Arguments {
    /// The settings that they mean.
    pub(crate) fn config(&self) -> Result<Config> {
        let absolute = |path: &PathBuf| {
            anyhow::ensure!(
                !path.as_os_str().is_empty(),
                "--config, --config-if-exists, --socket, BALANCER_SOCKET or --state is an empty path"
            );
            // A daemon in the background leaves this directory.
            std::path::absolute(path).with_context(|| format!("the path {}", path.display()))
        };
        let (socket, state) = (self.socket.as_ref().map(absolute), self.state.as_ref().map(absolute));
        let (socket, state) = (socket.transpose()?, state.transpose()?);
        Ok(Config {
            listen: self.listen,
            file: self.config.as_ref().or(self.config_if_exists.as_ref()).map(absolute).transpose()?,
            file_may_be_missing: self.config_if_exists.is_some(),
            places: Places::find(socket.as_deref(), state.as_deref(), &Environment::current())?,
            timeouts: Timeouts::new(self.connect_timeout, self.idle_timeout),
            drain: self.drain_timeout,
            points_per_weight: self.points_per_weight,
        })
    }

    /// Where the log goes. Called before the process goes to the background, which changes its directory.
    pub(crate) fn log_target(&self, config: &Config) -> Result<Target> {
        match &self.log {
            Some(Target::File(path)) => {
                Ok(Target::File(std::path::absolute(path).with_context(|| format!("the log {}", path.display()))?))
            }
            Some(target) if self.background => {
                anyhow::bail!(
                    "--log {target} leads nowhere in the background, where standard error is closed; give a file"
                )
            }
            Some(target) => Ok(target.clone()),
            None if self.background => Ok(Target::File(config.places.log.clone())),
            None => Ok(Target::Stderr),
        }
    }
}

/// A level, or `target=level` for a part of the program, several with commas between.
fn log_level(text: &str) -> Result<String, String> {
    for directive in text.split(',') {
        let level = directive.rsplit_once('=').map_or(directive, |(_, level)| level);
        if level.is_empty() || level.parse::<LevelFilter>().is_err() {
            return Err(format!("{level:?} is no level; give error, warn, info, debug, trace or off"));
        }
    }
    Ok(text.to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("it must be more than nothing".to_owned()),
        Ok(duration) if duration > MOST_WAITING => Err("it must be less than a hundred years".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; write it like 3s, 500ms or 1h 30m")),
    }
}

/// Added to the time now, this is still a time.
const MOST_WAITING: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn an_address_or_a_file_has_to_be_there() {
        let parse = |words: &str| Arguments::try_parse_from(words.split(' '));
        for right in [
            "balancerd --listen [::]:80",
            "balancerd --config a",
            "balancerd --listen [::]:80 --config a",
            "balancerd --listen [::]:80 --config-if-exists a",
            "balancerd --config-if-exists a",
            "balancerd --check a",
            "balancerd --check a --json",
            "balancerd --generate man",
        ] {
            assert!(parse(right).is_ok(), "{right}");
        }
        for wrong in [
            "balancerd",
            "balancerd --background",
            "balancerd --check a --config a",
            "balancerd --check a --config-if-exists a",
            "balancerd --config a --config-if-exists a",
            "balancerd --listen [::]:80 --check a",
            "balancerd --config a --json",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_path_of_the_file_is_absolute() {
        let arguments =
            Arguments::try_parse_from(["balancerd", "--socket", "/tmp/x/s", "--config", "a.toml"]).expect("right");
        let config = arguments.config().expect("right");
        assert_eq!(config.file, Some(std::env::current_dir().expect("a directory").join("a.toml")));
        assert_eq!(config.listen, None);
    }

    #[test]
    fn a_word_that_is_no_level_is_refused() {
        for right in ["info", "WARN", "balancerd::net=debug,info", "off"] {
            assert_eq!(log_level(right), Ok(right.to_owned()));
        }
        for wrong in ["inof", "", "info,", "net=loud"] {
            assert!(log_level(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_written_as_people_write_them() {
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5400)));
        for wrong in ["", "3", "0s", "-1s", "3 parsecs", "9999999999999y"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}

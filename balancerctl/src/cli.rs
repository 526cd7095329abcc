//! The command line: what may be typed, and the help for it. The doc comments are the help, and the man pages and
//! completions are made from the same definitions (see `pages.rs`). The commands about servers, sessions and events are
//! in `server`, those about pools and services in `pool` and `service`, those about configuration files in `file`. What
//! a pool may be told of the health of its servers is in `health`, what pools and services may be told of connections
//! in `connection`, and of datagrams in `flow`.

pub(crate) mod connection;
pub(crate) mod file;
pub(crate) mod flow;
pub(crate) mod health;
pub(crate) mod pool;
pub(crate) mod server;
pub(crate) mod service;

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{OsStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use wire::settings::DEFAULT_POOL;

use crate::reach::Reach;
use file::{CheckArgs, CompareArgs, DiffArgs, ImportArgs, ReloadArgs, SaveArgs};
use pool::PoolCommand;
use server::{AddArgs, EventsArgs, KillArgs, RemoveArgs, SessionsArgs, SetArgs};
use service::ServiceCommand;

/// Start, stop and steer a Layer-4 load balancer.
///
/// A balancer, the program balancerd, listens for clients and relays each connection to one of the servers in a pool.
/// The client's address decides which, unless the pool is set otherwise: a client comes to the same server every time,
/// and a change of the pool moves only the clients that it has to.
#[derive(Debug, Parser)]
#[command(name = "balancerctl", version, max_term_width = 100, after_help = MAIN_EXAMPLES)]
pub(crate) struct Cli {
    /// What is to be done.
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Control socket of the balancer that is meant. Without it: /run/balancer/control.sock for root,
    /// $XDG_RUNTIME_DIR/balancer/control.sock for others
    #[arg(long, value_name = "PATH", global = true, env = "BALANCER_SOCKET", value_parser = socket_parser())]
    pub(crate) socket: Option<PathBuf>,

    /// Answer in one line of JSON, for programs; docs/json.md has its shape
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// How long one answer of the balancer may take, such as 500ms or 1m. Without it: 5s, and 30s for what waits for a
    /// file, a ring or a disk, which are changes and reloads
    #[arg(long, value_name = "TIME", global = true, value_parser = timeout)]
    pub(crate) timeout: Option<Duration>,
}

fn timeout(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("a balancer needs some time to answer; write it like 500ms or 5s".to_owned()),
        Ok(time) => Ok(time),
        Err(error) => Err(format!("{error}; write it like 500ms or 5s")),
    }
}

impl Cli {
    /// Which balancer is meant.
    pub(crate) fn reach(&self) -> Reach<'_> {
        Reach { socket: self.socket.as_deref(), timeout: self.timeout }
    }
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Say only whether every service accepts clients. Exit code 0: yes; 1: no, or it is stopping; 2: it cannot be reached
    #[arg(long)]
    pub(crate) ready: bool,
}

const MAIN_EXAMPLES: &str = "\
Examples:
  balancerctl demo                          See it at work, with nothing set up
  balancerctl start 0.0.0.0 8080            Start a balancer that listens on port 8080
  balancerctl add 10.0.0.1 80               Give it a server, and a second one with
  balancerctl add 10.0.0.2 80 --weight 2      twice the share of the clients
  balancerctl list                          Who serves how much
  balancerctl explain 192.0.2.7             Which server that client gets, and why
  balancerctl remove 10.0.0.1 80 --dry-run  Who would move if that server went
  balancerctl diff /etc/balancer.toml       What would a file change?
  balancerctl stop                          Let the sessions end, then stop

Exit codes: 0 done, 1 refused, 2 the balancer cannot be reached or the command not understood.";

/// What balancerctl can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a balancer in the background
    ///
    /// Runs balancerd, which lies beside balancerctl or in PATH, and returns when it answers. When it cannot start,
    /// its own error is shown, such as a port in use. What commands changed before it last ended is there again.
    #[command(after_help = START_EXAMPLES)]
    Start(StartArgs),

    /// Stop the balancer
    ///
    /// It takes no new clients from then on, lets the sessions that it has go on for the drain time, and ends when
    /// the last one has ended. The command returns when the balancer has ended.
    #[command(after_help = STOP_EXAMPLES)]
    Stop(StopArgs),

    /// Add a server to a pool
    ///
    /// New clients get to it at once; the sessions that are alive stay where they are.
    #[command(after_help = server::ADD_EXAMPLES)]
    Add(AddArgs),

    /// Remove a server from a pool
    ///
    /// Its clients get to the others from then on; those of the other servers stay where they are. The sessions that
    /// it has live on until they end by themselves, unless --now, --over or --limit is given.
    #[command(after_help = server::REMOVE_EXAMPLES)]
    Remove(RemoveArgs),

    /// Change the weight, the state, the session limit or the like of a server
    ///
    /// The sessions that are alive stay where they are. In the state "drain" a server gets no new sessions, and so it
    /// does with weight 0; in "maintenance" nothing checks it either.
    #[command(after_help = server::SET_EXAMPLES)]
    Set(SetArgs),

    /// Show the servers of a pool
    ///
    /// SHARE is the part of all possible clients that a server gets. IN are the bytes that clients sent to it, OUT
    /// those that it sent to clients. FAILED counts the connects that it refused or did not answer. A server that was
    /// removed is "leaving" until its last session has ended; one of weight 0 is in "drain": it gets no new sessions.
    /// ACTIVE is followed by the session limit, if there is one; OVERFLOWS counts the clients that went to another
    /// server because of it, or of the pool's --max-load. RAMP is the part of its weight that a server has that starts
    /// slowly. HEALTH is there where servers are checked, or one is not up: it is "up", "down" when its checks say so, or
    /// "ejected" when its clients failed and it is left out for a while; why, is below. A backup serves only while no
    /// other server is up. --wide tells how fast a server was in the last minutes, too: half of the connects, of the times
    /// from there to its first byte, and of the round trips were not longer than P50, 99 in 100 not longer than P99; RESENT
    /// is the share of segments that were sent again. What differs from the configuration file has a star, and the file's
    /// own words are below.
    #[command(after_help = LIST_EXAMPLES)]
    List(ListArgs),

    /// Add, remove and show services: where clients connect
    #[command(subcommand, after_help = service::EXAMPLES)]
    Service(ServiceCommand),

    /// Add, remove, change and show pools: servers, and how one of them is picked
    #[command(subcommand, after_help = pool::EXAMPLES)]
    Pool(Box<PoolCommand>),

    /// Show live sessions, the longest idle first
    #[command(after_help = server::SESSIONS_EXAMPLES)]
    Sessions(SessionsArgs),

    /// End a session, or all sessions of a server
    ///
    /// The server stays in its pool: a client that connects again gets it again.
    #[command(after_help = server::KILL_EXAMPLES)]
    Kill(KillArgs),

    /// Show what has happened to the health of servers
    ///
    /// Every time that a server goes down or up, is ejected or let in again is an event, and a line, as in balancerd's
    /// log. The balancer keeps the last 1024; where older ones are asked for, the first line says how many are
    /// missing. Numbers begin again at 1 when a balancer is started. --json prints one line for each event, too.
    #[command(after_help = server::EVENTS_EXAMPLES)]
    Events(EventsArgs),

    /// Show how the balancer is
    ///
    /// IN are the bytes that clients sent to a service, OUT those that they got. FAILED counts the times that accepting
    /// a connection failed. The longest turn is the longest time that the balancer had no eye for anything else.
    #[command(after_help = STATUS_EXAMPLES)]
    Status(StatusArgs),

    /// Tell which server a client gets, why, and which would be next
    ///
    /// The client's address is hashed. The first point of the ring at or after that hash decides: the server that it
    /// belongs to gets the client. When that server does not answer, the next ones are tried in the order shown. In a
    /// pool whose policy does not hash, the answer says who may get the client.
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain(ExplainArgs),

    /// Print a number that is the same for balancers that agree
    ///
    /// Two balancers with the same digest send every client to the same server, as far as the pool's policy hashes.
    #[command(after_help = DIGEST_EXAMPLES)]
    Digest(PoolArgs),

    /// Check a configuration file, without a balancer
    ///
    /// It is read by the balancerd that `start` would run. Exit code 1 when it cannot be used; the first mistake is
    /// named with its line and column.
    #[command(after_help = file::CHECK_EXAMPLES)]
    Check(CheckArgs),

    /// Have the balancer read its configuration file again
    ///
    /// Either everything changes that the file changes, or nothing. Sessions live on. What commands changed stays,
    /// where the file says the same as before.
    #[command(after_help = file::RELOAD_EXAMPLES)]
    Reload(ReloadArgs),

    /// Tell what a reload would change if the configuration file were this one
    ///
    /// Every value that would change, and for each pool the exact share of clients that would move. Nothing is changed.
    #[command(after_help = file::DIFF_EXAMPLES)]
    Diff(DiffArgs),

    /// Write what commands changed into the configuration file
    ///
    /// Only what differs is touched: comments, order and format of the rest stay. A file that was changed since the
    /// balancer read it is left alone.
    #[command(after_help = file::SAVE_EXAMPLES)]
    Save(SaveArgs),

    /// Tell whether two balancers agree, and who would get another server
    ///
    /// Pool by pool: the policy, what is hashed, the digest, and the exact share of clients that the two send to
    /// different servers. What they are set to counts, so only servers that are ready and have a weight above 0 do.
    /// Exit code 0 when they agree, 1 when they differ.
    #[command(after_help = file::COMPARE_EXAMPLES)]
    Compare(CompareArgs),

    /// Convert an older balancer's file: that with a section frontend and bind_on, or Convey's
    ///
    /// Prints a file for this one. What has no counterpart is named on standard error.
    #[command(after_help = file::IMPORT_EXAMPLES)]
    Import(ImportArgs),

    /// Show a balancer at work, with nothing set up before
    ///
    /// Starts a private balancer in a temporary directory and three small servers, sends real connections through it,
    /// kills a server, shows where its clients went and checks that nobody else moved. Then it cleans up after itself.
    /// No other balancer is touched.
    #[command(after_help = DEMO_EXAMPLES)]
    Demo,

    /// Print a completion script for a shell
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions {
        /// The shell
        shell: Shell,
    },

    /// Write the man pages
    #[command(hide = true)]
    Man {
        /// Directory that they go to
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// Arguments of `start`.
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// Address to listen on: IPv4, IPv6 with or without brackets, or a host name; 0.0.0.0 and :: are all addresses
    #[arg(required_unless_present = "config")]
    pub(crate) addr: Option<String>,

    /// Port to listen on; 0 lets the system choose one
    #[arg(required_unless_present = "config")]
    pub(crate) port: Option<u16>,

    /// Configuration file, which names services, pools and servers; address and port are not given then
    #[arg(long, value_name = "FILE", conflicts_with_all = ["addr", "port"])]
    pub(crate) config: Option<PathBuf>,

    /// Directory for the state and log file. Without it: beside the socket if --socket is given, otherwise
    /// /var/lib/balancer for root and $XDG_STATE_HOME/balancer for others
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,

    /// Further options for balancerd, behind `--`; `balancerd --help` has them
    #[arg(last = true, value_name = "BALANCERD-OPTIONS")]
    pub(crate) options: Vec<OsString>,
}

const START_EXAMPLES: &str = "\
Examples:
  balancerctl start 127.0.0.1 8080        For programs on this machine only
  balancerctl start :: 8080               On all addresses, IPv6 and IPv4
  balancerctl start 127.0.0.1 0           On a free port; the answer says which
  balancerctl start --config /etc/balancer.toml
                                          What a file says
  balancerctl start 0.0.0.0 80 -- --idle-timeout 10m
                                          With an option of balancerd
  balancerctl --socket /tmp/b/control.sock start 127.0.0.1 8081
                                          A second balancer on the same machine";

/// Arguments of `stop`.
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Close every session now
    #[arg(long, conflicts_with = "drain")]
    pub(crate) now: bool,

    /// How long the sessions may go on, such as 10s or 5m; without it as long as balancerd's --drain-timeout says
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) drain: Option<Duration>,

    /// Return at once, do not wait until the balancer has ended
    #[arg(long)]
    pub(crate) no_wait: bool,
}

const STOP_EXAMPLES: &str = "\
Examples:
  balancerctl stop                        Let the sessions end first
  balancerctl stop --drain 5m             Give them five minutes for it
  balancerctl stop --now                  Close them";

/// A pool on the command line.
#[derive(Debug, Args)]
pub(crate) struct PoolArgs {
    /// The pool
    #[arg(long, value_name = "NAME", default_value = DEFAULT_POOL)]
    pub(crate) pool: String,
}

/// Arguments of `list`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// The pool; without it "default", or all if there is no such pool
    #[arg(long, value_name = "NAME")]
    pub(crate) pool: Option<String>,

    /// Further columns: since when a server is up or not, its last check, counts of checks and ejections, how fast it
    /// was in the last minutes, and its datagrams if it had any
    #[arg(long)]
    pub(crate) wide: bool,
}

const LIST_EXAMPLES: &str = "\
Examples:
  balancerctl list                        The pool \"default\"; all if there is none
  balancerctl list --wide                 How healthy and how fast are its servers?
  balancerctl list --pool web             Another one; `balancerctl pool list` has their names
  balancerctl list --json                 The same for programs";

const STATUS_EXAMPLES: &str = "\
Examples:
  balancerctl status                      Where it listens, how long it has run, what it carries
  balancerctl status --ready --timeout 1s
                                          Whether clients are served, for a health script
  balancerctl --socket /tmp/b/control.sock status
                                          The same of another balancer";

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The client's address, or a host name. A port behind it, as in 192.0.2.7:51234, matters to a pool that hashes it
    #[arg(value_name = "CLIENT[:PORT]")]
    pub(crate) client: String,

    /// The service that it comes to; without it the pool "default" is meant, or all services if there is no such pool
    #[arg(long, value_name = "NAME")]
    pub(crate) service: Option<String>,
}

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  balancerctl explain 192.0.2.7           An IPv4 client
  balancerctl explain 2001:db8::7         An IPv6 client
  balancerctl explain 192.0.2.7 --service web
                                          Is it let in there, and who serves it?";

const DIGEST_EXAMPLES: &str = "\
Examples:
  balancerctl digest                      The number, and what it depends on
  balancerctl digest --pool web           Of another pool than \"default\"
  [ \"$(ssh one balancerctl digest)\" = \"$(ssh two balancerctl digest)\" ]
                                          Do two balancers agree?";

const DEMO_EXAMPLES: &str = "\
Examples:
  balancerctl demo                        Takes a second or two
  balancerctl demo --json                 Only what came of it";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  balancerctl completions bash > /etc/bash_completion.d/balancerctl
  balancerctl completions zsh > /usr/local/share/zsh/site-functions/_balancerctl
  balancerctl completions fish > ~/.config/fish/completions/balancerctl.fish";

/// A shell that completions can be made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    /// GNU Bash
    Bash,
    /// Z shell
    Zsh,
    /// fish
    Fish,
}

/// An empty path is most often a variable that was never set. To take it for "the usual one" would steer a balancer that
/// was not meant.
fn socket_parser() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(|text| {
        if text.is_empty() {
            Err("it is empty; name a socket, or unset BALANCER_SOCKET")
        } else {
            Ok(PathBuf::from(text))
        }
    })
}

/// A value that may be taken away: the value, or the word `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OrNone<T>(pub(crate) Option<T>);

impl<T> OrNone<T> {
    /// What is typed, where `read` reads the value.
    fn of<E>(text: &str, read: impl FnOnce(&str) -> Result<T, E>) -> Result<Self, E> {
        if text == "none" { Ok(Self(None)) } else { read(text).map(|value| Self(Some(value))) }
    }
}

impl<T: FromStr> FromStr for OrNone<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::of(text, str::parse)
    }
}

/// Takes one of these, by name.
fn one_of<T: Copy + Send + Sync + 'static>(
    all: &'static [T],
    name: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(all.iter().map(|one| name(*one)))
        .map(move |text| *all.iter().find(|one| name(**one) == text).expect("one of them was typed"))
}

/// A time in milliseconds; one that has more of them than a number holds is the longest.
pub(crate) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_may_stand_behind_the_command() {
        let cli = Cli::try_parse_from(["balancerctl", "list", "--json", "--socket", "/tmp/s"]).expect("understood");
        assert!(cli.json);
        assert_eq!(cli.socket, Some(PathBuf::from("/tmp/s")));
    }

    #[test]
    fn start_passes_on_what_follows_the_dashes() {
        let cli = Cli::try_parse_from(["balancerctl", "start", "::", "0", "--", "--idle-timeout", "10m"]);
        let Command::Start(start) = cli.expect("understood").command else { panic!("not start") };
        assert_eq!(start.options, ["--idle-timeout", "10m"]);
    }

    #[test]
    fn wrong_input_is_a_usage_error() {
        for line in [
            "add 10.0.0.1",
            "add 10.0.0.1 http",
            "add 10.0.0.1 65536",
            "add 10.0.0.1 80 --weight x",
            "add 10.0.0.1 80 --state up",
            "add 10.0.0.1 80 --max-sessions 0",
            "add 10.0.0.1 80 --max-sessions none",
            "remove 10.0.0.1 80 --now --over 1m",
            "remove 10.0.0.1 80 --over 1m --limit 1m",
            "remove 10.0.0.1 80 --wait --dry-run",
            "set 10.0.0.1 80",
            "set 10.0.0.1 80 --dry-run",
            "stop --now --drain 5s",
            "stop --drain 5",
            "start",
            "start ::",
            "start :: 80 --config x",
            "start :: 80 --idle-timeout 10m",
            "service",
            "service add web 0.0.0.0",
            "service add web 0.0.0.0 80 --allow ten",
            "pool set web",
            "pool add web --policy fair",
            "pool add web --max-load 0.5",
            "pool add web --key client-ip --subnet-ipv4 33",
            "pool add web --check ping",
            "pool add web --check-send x",
            "pool set web --check-path /",
            "pool set web --check http --check-path health",
            "pool set web --check http --check-method get",
            "pool set web --check http --check-status 600",
            "pool set web --check send --check-send x --check-send-hex 00",
            "pool set web --check send --check-expect-hex 0",
            "pool set web --check dns --check-dns-name a..b",
            "pool set web --check dns --check-dns-type ANY",
            "pool set web --check-dns-type A",
            "pool set web --check-interval 2",
            "pool set web --check-timeout none",
            "pool set web --check-rise 0",
            "pool set web --check-fall 101",
            "pool set web --check-port 0",
            "pool set web --check-initial ready",
            "pool set web --eject-max-percent 101",
            "pool set web --when-all-down use_all",
            "pool set web --on-down wait",
            "pool set web --connect-timeout 9ms",
            "pool set web --tries 0",
            "pool set web --replay 2MiB",
            "pool set web --source 224.0.0.1",
            "service add web 0.0.0.0 80 --idle-timeout 0s",
            "service add web 0.0.0.0 80 --keepalive 2days",
            "set 10.0.0.1 80 --backup",
            "set 10.0.0.1 80 --backup no",
            "set 10.0.0.1 80 --check-address 10.0.0.2",
            "add 10.0.0.1 80 --check-address none",
            "kill",
            "kill 1 --server 10.0.0.1:80",
            "kill 1 --pool web",
            "sessions --server 10.0.0.1",
            "sessions --limit 100001",
            "events --since -1",
            "events --since yesterday",
            "diff",
            "nothing",
            "list --socket=",
        ] {
            let words = line.split(' ');
            let error = Cli::try_parse_from(std::iter::once("balancerctl").chain(words)).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn a_limit_is_a_number_or_none() {
        assert_eq!("7".parse(), Ok(OrNone(Some(7))));
        assert_eq!("none".parse(), Ok(OrNone::<u32>(None)));
        assert!("no".parse::<OrNone<u32>>().is_err());
    }

    fn check_examples(command: &clap::Command, path: &str) {
        for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
            let path = format!("{path} {}", command.get_name());
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.starts_with(&format!("Examples:\n  {path}")), "{path}: {help}");
            assert!(help.lines().all(|line| line.len() <= 100), "{path}");
            check_examples(command, &path);
        }
    }

    #[test]
    fn every_command_teaches_by_examples() {
        check_examples(&Cli::command(), "balancerctl");
    }

    /// The lines of examples that need no shell to be understood, with those of all commands below.
    fn examples(command: &clap::Command) -> Vec<String> {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let lines =
            help.lines().filter_map(|line| line.strip_prefix("  ").filter(|line| line.starts_with("balancerctl ")));
        let lines = lines.filter(|line| !line.contains(['$', '>', '|']));
        // What it does stands behind two blanks.
        let lines = lines.map(|line| line.split("  ").next().unwrap_or_default().to_owned());
        lines.chain(command.get_subcommands().flat_map(examples)).collect()
    }

    #[test]
    fn every_example_is_understood() {
        let examples = examples(&Cli::command());
        assert!(examples.len() > 60, "{examples:?}");
        for line in examples {
            if let Err(error) = Cli::try_parse_from(line.split(' ')) {
                panic!("{line}: {error}");
            }
        }
    }
}

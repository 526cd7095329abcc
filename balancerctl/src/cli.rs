//! The command line: what may be typed, and the help for it. The doc comments are the help, and the man pages and
//! completions are made from the same definitions (see `pages.rs`).

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Start, stop and steer a Layer-4 load balancer.
///
/// A balancer, the program balancerd, listens on one address and relays each connection to one of the servers in its
/// pool. The client's address decides which: a client comes to the same server every time, and a change of the pool
/// moves only the clients that it has to.
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
  balancerctl stop                          Let the sessions end, then stop

Exit codes: 0 done, 1 refused, 2 the balancer cannot be reached or the command not understood.";

/// What balancerctl can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a balancer in the background
    ///
    /// Runs balancerd, which lies beside balancerctl or in PATH, and returns when it answers. When it cannot start,
    /// its own error is shown, such as a port in use. The pool that the balancer had when it last ran is there again.
    #[command(after_help = START_EXAMPLES)]
    Start(StartArgs),

    /// Stop the balancer
    ///
    /// It takes no new clients from then on, lets the sessions that it has go on for the drain time, and ends when
    /// the last one has ended. The command returns when the balancer has ended.
    #[command(after_help = STOP_EXAMPLES)]
    Stop(StopArgs),

    /// Add a server to the pool
    ///
    /// New clients get to it at once; the sessions that are alive stay where they are.
    #[command(after_help = ADD_EXAMPLES)]
    Add(AddArgs),

    /// Remove a server from the pool
    ///
    /// Its clients get to the others from then on; those of the other servers stay where they are. The sessions that
    /// it has live on until they end by themselves, unless --now is given.
    #[command(after_help = REMOVE_EXAMPLES)]
    Remove(RemoveArgs),

    /// Show the servers of the pool
    ///
    /// SHARE is the part of all possible clients that a server gets. IN are the bytes that clients sent to it, OUT
    /// those that it sent to clients. FAILED counts the connects that it refused or did not answer. A server that was
    /// removed is "leaving" until its last session has ended; one of weight 0 is in "drain": it gets no new sessions.
    #[command(after_help = LIST_EXAMPLES)]
    List,

    /// Show how the balancer is
    ///
    /// IN are the bytes that clients sent to a service, OUT those that they got. FAILED counts the times that accepting
    /// a connection failed. The longest turn is the longest time that the balancer had no eye for anything else.
    #[command(after_help = STATUS_EXAMPLES)]
    Status,

    /// Tell which server a client gets, why, and which would be next
    ///
    /// The client's address is hashed. The first point of the ring at or after that hash decides: the server that it
    /// belongs to gets the client. When that server does not answer, the next ones are tried in the order shown.
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain(ExplainArgs),

    /// Print a number that is the same for balancers that agree
    ///
    /// Two balancers with the same digest send every client to the same server.
    #[command(after_help = DIGEST_EXAMPLES)]
    Digest,

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
    pub(crate) addr: String,

    /// Port to listen on; 0 lets the system choose one
    pub(crate) port: u16,

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

/// A server on the command line.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// The server's address: IPv4, IPv6 with or without brackets, or a host name, which is looked up once, now
    pub(crate) addr: String,

    /// The server's port
    pub(crate) port: u16,
}

/// Arguments of `add`.
#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,

    /// Its share of the clients in proportion to the others, 0 to 256; 0 gives it no clients yet
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) weight: u32,

    /// Change nothing, only tell which clients would move
    #[arg(long)]
    pub(crate) dry_run: bool,
}

const ADD_EXAMPLES: &str = "\
Examples:
  balancerctl add 10.0.0.1 80             A server of weight 1
  balancerctl add 10.0.0.2 80 --weight 3  One that gets three times as many clients
  balancerctl add 2001:db8::1 80          An IPv6 address; [2001:db8::1] is the same
  balancerctl add web3.example.com 80     A host name: its address today is added
  balancerctl add 10.0.0.3 80 --dry-run   What would it move?";

/// Arguments of `remove`.
#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,

    /// Close its sessions too
    #[arg(long)]
    pub(crate) now: bool,

    /// Change nothing, only tell which clients would move
    #[arg(long)]
    pub(crate) dry_run: bool,
}

const REMOVE_EXAMPLES: &str = "\
Examples:
  balancerctl remove 10.0.0.1 80 --dry-run  Who would move, and how many sessions does it have?
  balancerctl remove 10.0.0.1 80            No new sessions; the existing ones live on
  balancerctl remove 10.0.0.1 80 --now      Close those as well";

const LIST_EXAMPLES: &str = "\
Examples:
  balancerctl list                        The table
  balancerctl list --json                 The same for programs";

const STATUS_EXAMPLES: &str = "\
Examples:
  balancerctl status                      Where it listens, how long it has run, what it carries
  balancerctl --socket /tmp/b/control.sock status
                                          The same of another balancer";

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The client's address, or a host name; its port does not matter
    #[arg(value_name = "CLIENT-ADDRESS")]
    pub(crate) client: String,
}

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  balancerctl explain 192.0.2.7           An IPv4 client
  balancerctl explain 2001:db8::7         An IPv6 client";

const DIGEST_EXAMPLES: &str = "\
Examples:
  balancerctl digest                      The number, and what it depends on
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
            "stop --now --drain 5s",
            "stop --drain 5",
            "start :: 80 --idle-timeout 10m",
            "nothing",
            "list --socket=",
        ] {
            let words = line.split(' ');
            let error = Cli::try_parse_from(std::iter::once("balancerctl").chain(words)).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn every_command_teaches_by_examples() {
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.starts_with("Examples:\n  balancerctl "), "{}", command.get_name());
            assert!(help.lines().all(|line| line.len() <= 100), "{}", command.get_name());
        }
    }
}

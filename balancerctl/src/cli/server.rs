//! The command line of what is done to servers and sessions, and of what happens to servers.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::time::Duration;

use clap::Args;
use wire::address::canonical;
use wire::control::{MAX_LISTED_SESSIONS, Removal, ServerValues};
use wire::settings::{AdminState, ServerSettings};

use super::{OrNone, PoolArgs, milliseconds, one_of};

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

    #[command(flatten)]
    pub(crate) pool: PoolArgs,

    /// Its share of the clients in proportion to the others, 0 to 256; 0 gives it no clients yet
    #[arg(long, value_name = "N", default_value_t = 1)]
    weight: u32,

    /// Whether it takes new sessions
    #[arg(long, default_value = "ready", value_parser = one_of(&AdminState::ALL, AdminState::name))]
    state: AdminState,

    /// Sessions that it may have at a time; further clients go to another server
    #[arg(long, value_name = "N")]
    max_sessions: Option<NonZeroU64>,

    /// It serves only while every other server of the pool is down or full
    #[arg(long)]
    backup: bool,

    /// Where it is checked, when that is elsewhere than where it serves
    #[arg(long, value_name = "ADDR:PORT", value_parser = server)]
    check_address: Option<SocketAddr>,

    /// Change nothing, only tell which clients would move
    #[arg(long)]
    pub(crate) dry_run: bool,
}

impl AddArgs {
    /// How the server is to be.
    pub(crate) fn settings(&self) -> ServerSettings {
        ServerSettings {
            weight: self.weight,
            state: self.state,
            max_sessions: self.max_sessions,
            backup: self.backup,
            check_address: self.check_address,
        }
    }
}

pub(super) const ADD_EXAMPLES: &str = "\
Examples:
  balancerctl add 10.0.0.1 80             A server of weight 1
  balancerctl add 10.0.0.2 80 --weight 3  One that gets three times as many clients
  balancerctl add 2001:db8::1 80          An IPv6 address; [2001:db8::1] is the same
  balancerctl add web3.example.com 80     A host name: its address today is added
  balancerctl add 10.0.0.3 80 --dry-run   What would it move?
  balancerctl add 10.0.0.4 80 --pool web  To another pool than \"default\"
  balancerctl add 10.0.9.1 80 --backup    One for when all others are down or full
  balancerctl add 10.0.0.5 80 --check-address 10.0.0.5:8081
                                          Its health is told elsewhere";

/// Arguments of `remove`.
#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,

    #[command(flatten)]
    pub(crate) pool: PoolArgs,

    /// Close its sessions now
    #[arg(long, group = "how")]
    now: bool,

    /// Close its sessions evenly over this time, such as 10m, the longest idle first
    #[arg(long, value_name = "TIME", group = "how", value_parser = humantime::parse_duration)]
    over: Option<Duration>,

    /// Close the sessions that it still has after this time
    #[arg(long, value_name = "TIME", group = "how", value_parser = humantime::parse_duration)]
    limit: Option<Duration>,

    /// Return when its last session has ended
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) wait: bool,

    /// Change nothing, only tell which clients would move
    #[arg(long)]
    pub(crate) dry_run: bool,
}

impl RemoveArgs {
    /// What becomes of the sessions.
    pub(crate) fn how(&self) -> Removal {
        match (self.now, self.over) {
            (true, _) => Removal::Now,
            (false, Some(time)) => Removal::Over { time_ms: milliseconds(time) },
            (false, None) => Removal::Wait { limit_ms: self.limit.map(milliseconds) },
        }
    }
}

pub(super) const REMOVE_EXAMPLES: &str = "\
Examples:
  balancerctl remove 10.0.0.1 80 --dry-run   Who would move, and how many sessions does it have?
  balancerctl remove 10.0.0.1 80             No new sessions; the existing ones live on
  balancerctl remove 10.0.0.1 80 --wait      The same, and return when the last one has ended
  balancerctl remove 10.0.0.1 80 --limit 1h  End those that are left after an hour
  balancerctl remove 10.0.0.1 80 --over 10m  End them little by little: not all come back at once
  balancerctl remove 10.0.0.1 80 --now       End them now";

/// Arguments of `set`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("values").required(true).multiple(true))]
pub(crate) struct SetArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,

    #[command(flatten)]
    pub(crate) pool: PoolArgs,

    /// Its share of the clients in proportion to the others, 0 to 256; 0 gives it no new sessions
    #[arg(long, value_name = "N", group = "values")]
    weight: Option<u32>,

    /// Whether it takes new sessions
    #[arg(long, group = "values", value_parser = one_of(&AdminState::ALL, AdminState::name))]
    state: Option<AdminState>,

    /// Sessions that it may have at a time, or none for no limit
    #[arg(long, value_name = "N|none", group = "values")]
    max_sessions: Option<OrNone<NonZeroU64>>,

    /// Whether it serves only while every other server of the pool is down or full
    #[arg(long, value_name = "true|false", group = "values", value_parser = clap::value_parser!(bool))]
    backup: Option<bool>,

    /// Where it is checked, or none for where it serves
    #[arg(long, value_name = "ADDR:PORT|none", group = "values", value_parser = server_or_none)]
    check_address: Option<OrNone<SocketAddr>>,

    /// Change nothing, only tell which clients would move
    #[arg(long)]
    pub(crate) dry_run: bool,
}

impl SetArgs {
    /// The values that are to change.
    pub(crate) fn values(&self) -> ServerValues {
        ServerValues {
            weight: self.weight,
            state: self.state,
            max_sessions: self.max_sessions.map(|OrNone(limit)| limit),
            backup: self.backup,
            check_address: self.check_address.map(|OrNone(address)| address),
        }
    }
}

pub(super) const SET_EXAMPLES: &str = "\
Examples:
  balancerctl set 10.0.0.1 80 --weight 3  Three times the share of a server of weight 1
  balancerctl set 10.0.0.1 80 --state drain
                                          No new sessions; the existing ones live on
  balancerctl set 10.0.0.1 80 --state ready
                                          Clients again
  balancerctl set 10.0.0.1 80 --max-sessions none
                                          No session limit
  balancerctl set 10.0.9.1 80 --backup false
                                          A server like the others
  balancerctl set 10.0.0.1 80 --weight 9 --dry-run
                                          Who would move?";

/// Arguments of `sessions`.
#[derive(Debug, Args)]
pub(crate) struct SessionsArgs {
    /// Only those of this service
    #[arg(long, value_name = "NAME")]
    pub(crate) service: Option<String>,

    /// Only those of this pool
    #[arg(long, value_name = "NAME")]
    pub(crate) pool: Option<String>,

    /// Only those of this server
    #[arg(long, value_name = "ADDR:PORT", value_parser = server)]
    pub(crate) server: Option<SocketAddr>,

    /// So many at most, up to 100000
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_LISTED_SESSIONS)))]
    pub(crate) limit: u32,
}

pub(super) const SESSIONS_EXAMPLES: &str = "\
Examples:
  balancerctl sessions                    The hundred that have been idle for longest
  balancerctl sessions --server 10.0.0.1:80
                                          Of one server
  balancerctl sessions --service web --limit 100000
                                          All of a service";

/// Arguments of `events`.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Only those that come after the event of this number
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) since: u64,

    /// Go on with those that are still to come, until the balancer ends
    #[arg(long)]
    pub(crate) follow: bool,
}

pub(super) const EVENTS_EXAMPLES: &str = "\
Examples:
  balancerctl events                      All that the balancer keeps
  balancerctl events --since 41           Only what came after the event of number 41
  balancerctl events --follow --json      For programs: an object in a line for each, as they come";

/// Arguments of `kill`.
#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// The number of the session; `balancerctl sessions` has it
    #[arg(value_name = "SESSION", required_unless_present = "server")]
    pub(crate) session: Option<u64>,

    /// All sessions of this server
    #[arg(long, value_name = "ADDR:PORT", value_parser = server, conflicts_with = "session")]
    pub(crate) server: Option<SocketAddr>,

    /// The server's pool, where it is not the pool "default"
    #[arg(long, value_name = "NAME", conflicts_with = "session")]
    pub(crate) pool: Option<String>,

    /// End nothing, only tell how many sessions would be
    #[arg(long)]
    pub(crate) dry_run: bool,
}

pub(super) const KILL_EXAMPLES: &str = "\
Examples:
  balancerctl kill 4711                   The session of that number
  balancerctl kill --server 10.0.0.1:80   Every session of a server
  balancerctl kill --server 10.0.0.1:80 --dry-run
                                          How many are there?";

/// An address with its port, an IPv4 address inside IPv6 as IPv4.
fn server(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(server) => Ok(canonical(server)),
        Err(_) => Err("write 192.0.2.1:80 or [2001:db8::1]:80".to_owned()),
    }
}

fn server_or_none(text: &str) -> Result<OrNone<SocketAddr>, String> {
    if text == "none" { Ok(OrNone(None)) } else { server(text).map(|server| OrNone(Some(server))) }
}

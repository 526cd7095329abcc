//! The command line of `pool`.

use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use wire::control::PoolValues;
use wire::settings::{HashKey, LoadFactor, Policy, PoolSettings, SendProxy};

use super::connection::{NoneAndSome, ServerSideArgs};
use super::flow::{FlowPolicyArgs, NoFlows};
use super::health::{HealthArgs, NoHealth};
use super::{OrNone, milliseconds, one_of};

/// What can be done with pools.
#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// Make a pool
    ///
    /// It has no servers yet, and serves no service.
    #[command(after_help = ADD_EXAMPLES)]
    Add(PoolAddArgs),

    /// Take a pool away that serves no service
    ///
    /// Its sessions live on.
    #[command(after_help = REMOVE_EXAMPLES)]
    Remove(PoolRemoveArgs),

    /// Change how a pool picks a server, how it finds out which are up, how it connects, and what the server is told
    ///
    /// The sessions that are alive stay where they are.
    #[command(after_help = SET_EXAMPLES)]
    Set(PoolSetArgs),

    /// Show all pools
    #[command(after_help = LIST_EXAMPLES)]
    List,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  balancerctl pool add web                A pool; then give it servers:
  balancerctl add 10.0.0.1 80 --pool web
  balancerctl service add web 0.0.0.0 80 --pool web
                                          And clients
  balancerctl pool list                   Which pools are there?";

/// How a pool picks a server.
#[derive(Debug, Args)]
pub(crate) struct PickArgs {
    /// How a server is picked
    #[arg(long, group = "values", value_parser = one_of(&Policy::ALL, Policy::name))]
    policy: Option<Policy>,

    /// What of a client is hashed: its address, its address and port, or its network
    #[arg(long, group = "values", value_parser = ["client-ip", "client-ip-port", "client-subnet"])]
    key: Option<String>,

    /// Bits of an IPv4 address that count, with --key client-subnet; 24 without this
    #[arg(long, value_name = "N", requires = "key", value_parser = clap::value_parser!(u8).range(0..=32))]
    subnet_ipv4: Option<u8>,

    /// Bits of an IPv6 address that count, with --key client-subnet; 56 without this
    #[arg(long, value_name = "N", requires = "key", value_parser = clap::value_parser!(u8).range(0..=128))]
    subnet_ipv6: Option<u8>,

    /// Points that a server of weight 1 has on the ring; 1024 without this
    #[arg(long, value_name = "N", group = "values")]
    points_per_weight: Option<NonZeroU32>,

    /// How long the weight of a server that comes up grows, such as 30s; 0s is not at all
    #[arg(long, value_name = "TIME", group = "values", value_parser = humantime::parse_duration)]
    slow_start: Option<Duration>,

    /// With the header of version 2: a checksum of it
    #[arg(long, requires = "send_proxy")]
    send_proxy_crc32c: bool,

    /// With the header of version 2: an id of the session
    #[arg(long, requires = "send_proxy")]
    send_proxy_unique_id: bool,
}

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProxyVersion {
    /// A line of text.
    V1,
    /// Bytes.
    V2,
}

impl FromStr for ProxyVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        <Self as ValueEnum>::from_str(text, false).map_err(|_| "write v1 or v2".to_owned())
    }
}

/// Options that do not go together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PoolError {
    /// Lengths of networks were given, and networks are not what is hashed.
    #[error("--subnet-ipv4 and --subnet-ipv6 go with --key client-subnet alone")]
    NoSubnet,
    /// What a header of version 2 has, and it is not that.
    #[error("--send-proxy-crc32c and --send-proxy-unique-id go with --send-proxy v2 alone")]
    NoVersion2,
    /// Which datagrams have a header of version 2, and none has.
    #[error("--send-proxy-in goes with --send-proxy v2 alone: there is no other header of datagrams")]
    NoHeader,
    /// Those of datagrams do not.
    #[error(transparent)]
    Flows(#[from] NoFlows),
    /// Those of health do not.
    #[error(transparent)]
    Health(#[from] NoHealth),
    /// Those of connections do not.
    #[error(transparent)]
    Connections(#[from] NoneAndSome),
}

impl PickArgs {
    /// What is hashed, if that was said.
    fn key(&self) -> Result<Option<HashKey>, PoolError> {
        let has_lengths = self.subnet_ipv4.is_some() || self.subnet_ipv6.is_some();
        match self.key.as_deref() {
            Some("client-subnet") => Ok(Some(HashKey::ClientSubnet {
                ipv4: self.subnet_ipv4.unwrap_or(HashKey::DEFAULT_IPV4),
                ipv6: self.subnet_ipv6.unwrap_or(HashKey::DEFAULT_IPV6),
            })),
            _ if has_lengths => Err(PoolError::NoSubnet),
            Some("client-ip-port") => Ok(Some(HashKey::ClientIpPort)),
            Some(_) => Ok(Some(HashKey::ClientIp)),
            None => Ok(None),
        }
    }

    /// The header of this version.
    fn send_proxy(&self, version: Option<ProxyVersion>) -> Result<Option<SendProxy>, PoolError> {
        let (crc32c, unique_id) = (self.send_proxy_crc32c, self.send_proxy_unique_id);
        match version {
            Some(ProxyVersion::V2) => Ok(Some(SendProxy::V2 { crc32c, unique_id })),
            _ if crc32c || unique_id => Err(PoolError::NoVersion2),
            version => Ok(version.map(|_| SendProxy::V1)),
        }
    }
}

/// Arguments of `pool add`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("values").multiple(true))]
pub(crate) struct PoolAddArgs {
    /// Its name: letters, digits, dots, dashes and underscores
    pub(crate) name: String,

    #[command(flatten)]
    pick: PickArgs,

    /// How much more than its part of all sessions a server may have, such as 1.25; further clients go to the next one
    #[arg(long, value_name = "FACTOR")]
    max_load: Option<LoadFactor>,

    /// Give its servers the PROXY protocol header of this version first, v1 or v2: it says who the client is
    #[arg(long, value_name = "VERSION")]
    send_proxy: Option<ProxyVersion>,

    /// Change nothing, only tell whether it could be
    #[arg(long)]
    pub(crate) dry_run: bool,

    // The last, since their headings hold for what follows.
    #[command(flatten)]
    health: HealthArgs,

    #[command(flatten)]
    connections: ServerSideArgs,

    #[command(flatten)]
    flows: FlowPolicyArgs,
}

impl PoolAddArgs {
    /// How the pool is to be.
    ///
    /// # Errors
    /// When options do not go together.
    pub(crate) fn settings(&self) -> Result<PoolSettings, PoolError> {
        let max_load = self.max_load.map(Some);
        let send_proxy = self.pick.send_proxy(self.send_proxy)?.map(Some);
        let values = PoolValues { max_load, send_proxy, ..self.values()? };
        let settings = values.over(&PoolSettings::default());
        match values.send_proxy_in {
            Some(_) if !settings.uses("send_proxy_in") => Err(PoolError::NoHeader),
            _ => Ok(settings),
        }
    }

    fn values(&self) -> Result<PoolValues, PoolError> {
        values(&self.pick, &self.health, &self.connections, &self.flows)
    }
}

const ADD_EXAMPLES: &str = "\
Examples:
  balancerctl pool add web                Each client gets its own server
  balancerctl pool add web --max-load 1.25
                                          The same, but no server gets much more than its part
  balancerctl pool add web --key client-subnet --subnet-ipv4 16
                                          Neighbours get the same server
  balancerctl pool add api --policy least-connections --slow-start 30s
  balancerctl pool add mail --send-proxy v2 --send-proxy-crc32c
                                          Its servers are told who the client is
  balancerctl pool add web --check http --check-path /health --check-status 2xx
                                          Only servers that say so get clients
  balancerctl pool add api --replay 16KiB
                                          What a server got that then resets goes to another one
  balancerctl pool add syslog --one-way --policy round-robin
                                          For datagrams that nobody answers
  balancerctl pool add redis --check send --check-send $'PING\\r\\n' --check-expect +PONG
  balancerctl pool add dns --check dns --check-dns-name www.example.com --check-dns-type A
                                          Only servers that answer the question get clients";

/// Arguments of `pool remove`.
#[derive(Debug, Args)]
pub(crate) struct PoolRemoveArgs {
    /// Its name
    pub(crate) name: String,

    /// Change nothing, only tell whether it could go
    #[arg(long)]
    pub(crate) dry_run: bool,
}

const REMOVE_EXAMPLES: &str = "\
Examples:
  balancerctl pool remove web             With its servers; their sessions live on
  balancerctl pool remove web --dry-run   How many sessions has it?";

/// Arguments of `pool set`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("values").required(true).multiple(true))]
pub(crate) struct PoolSetArgs {
    /// Its name
    pub(crate) name: String,

    #[command(flatten)]
    pick: PickArgs,

    /// How much more than its part of all sessions a server may have, such as 1.25, or none for no bound
    #[arg(long, value_name = "FACTOR|none", group = "values")]
    max_load: Option<OrNone<LoadFactor>>,

    /// Give its servers the PROXY protocol header of this version first, v1 or v2, or none
    #[arg(long, value_name = "VERSION|none", group = "values")]
    send_proxy: Option<OrNone<ProxyVersion>>,

    /// Change nothing, only tell which clients would move
    #[arg(long)]
    pub(crate) dry_run: bool,

    // The last, since their headings hold for what follows.
    #[command(flatten)]
    health: HealthArgs,

    #[command(flatten)]
    connections: ServerSideArgs,

    #[command(flatten)]
    flows: FlowPolicyArgs,
}

impl PoolSetArgs {
    /// The values that are to change.
    ///
    /// # Errors
    /// When options do not go together.
    pub(crate) fn values(&self) -> Result<PoolValues, PoolError> {
        let max_load = self.max_load.map(|OrNone(factor)| factor);
        let version = self.send_proxy.and_then(|OrNone(version)| version);
        let header = self.pick.send_proxy(version)?;
        let send_proxy = self.send_proxy.map(|_| header);
        let others = values(&self.pick, &self.health, &self.connections, &self.flows)?;
        // Without a word of the header it may be there already.
        if others.send_proxy_in.is_some() && send_proxy.is_some() && !matches!(header, Some(SendProxy::V2 { .. })) {
            return Err(PoolError::NoHeader);
        }
        Ok(PoolValues { max_load, send_proxy, ..others })
    }
}

/// What `pool add` and `pool set` have in common.
fn values(
    pick: &PickArgs,
    health: &HealthArgs,
    connections: &ServerSideArgs,
    flows: &FlowPolicyArgs,
) -> Result<PoolValues, PoolError> {
    let others = flows.values(connections.values(health.values()?)?)?;
    Ok(PoolValues {
        policy: pick.policy,
        key: pick.key()?,
        points_per_weight: pick.points_per_weight,
        slow_start_ms: pick.slow_start.map(milliseconds),
        ..others
    })
}

const SET_EXAMPLES: &str = "\
Examples:
  balancerctl pool set default --policy round-robin
                                          The servers in turn
  balancerctl pool set default --max-load none
                                          Let servers have what the ring gives them
  balancerctl pool set web --key client-ip-port --dry-run
                                          Who would move?
  balancerctl pool set web --send-proxy none
                                          Its servers are told no more who the client is
  balancerctl pool set web --check tcp --check-interval 5s
                                          Does each server take connections?
  balancerctl pool set web --check none --eject-failures 0
                                          Leave nobody out, whatever happens
  balancerctl pool set web --when-all-down use-all
                                          Rather a server that is down than none
  balancerctl pool set web --connect-timeout 500ms --tries 5
                                          Go on to the next server sooner, and further
  balancerctl pool set web --source 10.0.0.8 --source 10.0.0.9
                                          Twice the source ports
  balancerctl pool set dns --flows-on-return move
                                          Flows go back to their server as soon as it is back";

const LIST_EXAMPLES: &str = "\
Examples:
  balancerctl pool list                   Their policies, and who they serve
  balancerctl list --pool web             The servers of one";

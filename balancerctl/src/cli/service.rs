//! The command line of `service`.

use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use clap::{Args, Subcommand};
use ipnet::IpNet;
use wire::connection::OF_TCP;
use wire::settings::{DEFAULT_CLIENT_SUBNET_IPV6, DEFAULT_PROXY_TIMEOUT_MS, Protocol, ServiceSettings};

use super::connection::ClientSideArgs;
use super::flow::FlowArgs;
use super::{PoolArgs, milliseconds, one_of};

/// What can be done with services.
#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Listen for a further service
    ///
    /// Clients are served by a pool, which several services may share.
    #[command(after_help = ADD_EXAMPLES)]
    Add(Box<ServiceAddArgs>),

    /// Listen no more for a service
    ///
    /// Its sessions live on.
    #[command(after_help = REMOVE_EXAMPLES)]
    Remove(ServiceRemoveArgs),

    /// Show all services
    ///
    /// WAITS FOR says why clients wait in the kernel's queue, if they do. REFUSED counts the clients that were not let
    /// in: their network is denied, they had as many sessions as one client may have, or the PROXY header that they had
    /// to begin with was none or did not come. Datagrams that were not let through are counted by themselves: --wide
    /// tells how many, and why.
    #[command(after_help = LIST_EXAMPLES)]
    List(ServiceListArgs),
}

pub(super) const EXAMPLES: &str = "\
Examples:
  balancerctl service add web 0.0.0.0 8080
                                          Another port for the servers of the pool \"default\"
  balancerctl service add mail :: 25 --pool mail
                                          With servers of its own
  balancerctl service list                Which services are there?
  balancerctl service remove web          Listen there no more";

/// Arguments of `service add`.
#[derive(Debug, Args)]
pub(crate) struct ServiceAddArgs {
    /// Its name: letters, digits, dots, dashes and underscores
    pub(crate) name: String,

    /// Address to listen on: IPv4, IPv6 with or without brackets, or a host name; 0.0.0.0 and :: are all addresses
    pub(crate) addr: String,

    /// Port to listen on; 0 lets the system choose one
    pub(crate) port: u16,

    #[command(flatten)]
    pool: PoolArgs,

    /// What it speaks; with udp a flow of datagrams is a session, and who would have to wait is dropped
    #[arg(long, default_value_t = Protocol::Tcp, value_parser = one_of(&Protocol::ALL, Protocol::name))]
    protocol: Protocol,

    /// Sessions at a time; further clients wait
    #[arg(long, value_name = "N")]
    max_sessions: Option<NonZeroU64>,

    /// New sessions in a second; further clients wait
    #[arg(long, value_name = "N")]
    sessions_per_second: Option<NonZeroU32>,

    /// Sessions at a time of one client, an IPv4 address or an IPv6 network; further ones are closed
    #[arg(long, value_name = "N")]
    sessions_per_client: Option<NonZeroU32>,

    /// Bits of an IPv6 address that say which client it is, for --sessions-per-client; 64 without this
    #[arg(long, value_name = "BITS", requires = "sessions_per_client", value_parser = clap::value_parser!(u8).range(..=128))]
    client_subnet_ipv6: Option<u8>,

    /// Listen also where this machine does not have the address yet
    #[arg(long)]
    freebind: bool,

    /// Serve only clients of this network; may be given several times
    #[arg(long, value_name = "NET", value_parser = network)]
    allow: Vec<IpNet>,

    /// Do not serve clients of this network, even if it is within one that is allowed; may be given several times
    #[arg(long, value_name = "NET", value_parser = network)]
    deny: Vec<IpNet>,

    /// Connections from this network begin with a PROXY protocol header, which says who the client is; may be given
    /// several times
    #[arg(long, value_name = "NET", value_parser = network)]
    accept_proxy: Vec<IpNet>,

    /// How long such a header may take, such as 500ms; 5s without this
    #[arg(long, value_name = "TIME", requires = "accept_proxy", value_parser = humantime::parse_duration)]
    proxy_timeout: Option<Duration>,

    /// Copy all data through the balancer, instead of having the kernel move large amounts (splice)
    #[arg(long)]
    no_splice: bool,

    /// Change nothing, only tell whether it could be
    #[arg(long)]
    pub(crate) dry_run: bool,

    // The last, since their headings hold for what follows.
    #[command(flatten)]
    connections: ClientSideArgs,

    #[command(flatten)]
    flows: FlowArgs,
}

/// Options that do not go together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ServiceError {
    /// One of TCP, for a service that does not speak it.
    #[error("--{0} is about TCP, and this is --protocol udp")]
    NoTcp(String),
    /// One of UDP, for a service that does not speak it.
    #[error("--{0} is about UDP; it goes with --protocol udp or --protocol tcp+udp")]
    NoUdp(String),
}

impl ServiceAddArgs {
    /// How the service is to be that listens there.
    ///
    /// # Errors
    /// When options do not go together.
    pub(crate) fn settings(&self, listen: SocketAddr) -> Result<ServiceSettings, ServiceError> {
        let settings = ServiceSettings {
            protocol: self.protocol,
            max_sessions: self.max_sessions,
            sessions_per_second: self.sessions_per_second,
            sessions_per_client: self.sessions_per_client,
            client_subnet_ipv6: self.client_subnet_ipv6.unwrap_or(DEFAULT_CLIENT_SUBNET_IPV6),
            freebind: self.freebind,
            allow: self.allow.clone(),
            deny: self.deny.clone(),
            accept_proxy: self.accept_proxy.clone(),
            proxy_timeout_ms: self.proxy_timeout.map_or(DEFAULT_PROXY_TIMEOUT_MS, milliseconds),
            splice: !self.no_splice,
            client_side: self.connections.settings(),
            flows: self.flows.settings(),
            ..ServiceSettings::new(vec![listen], &self.pool.pool)
        };
        let proxy_timeout = [("proxy_timeout", self.proxy_timeout.is_some())];
        let said = proxy_timeout.into_iter().chain(self.connections.said()).chain(self.flows.said());
        let splice = [("splice", self.no_splice)];
        match said.chain(splice).find(|(key, is_said)| *is_said && !settings.uses(key)) {
            None => Ok(settings),
            Some(("splice", _)) => Err(ServiceError::NoTcp("no-splice".to_owned())),
            Some((key, _)) if OF_TCP.contains(&key) => Err(ServiceError::NoTcp(key.replace('_', "-"))),
            Some((key, _)) => Err(ServiceError::NoUdp(key.replace('_', "-"))),
        }
    }
}

/// Arguments of `service list`.
#[derive(Debug, Args)]
pub(crate) struct ServiceListArgs {
    /// Further columns: sessions since the start, bytes, and datagrams if there were any
    #[arg(long)]
    pub(crate) wide: bool,
}

const ADD_EXAMPLES: &str = "\
Examples:
  balancerctl service add web 0.0.0.0 8080
                                          For the servers of the pool \"default\"
  balancerctl service add mail :: 25 --pool mail --sessions-per-client 20
                                          No client has more than 20 sessions
  balancerctl service add admin 0.0.0.0 9000 --allow 10.0.0.0/8 --deny 10.66.0.0/16
                                          For some networks only
  balancerctl service add web 0.0.0.0 8080 --accept-proxy 10.0.0.5
                                          Behind a balancer that says who the client is
  balancerctl service add web 0.0.0.0 8080 --idle-timeout 10m --max-age 1day
                                          No session is idle for longer, or lives for longer
  balancerctl service add dns :: 53 --protocol tcp+udp --pool dns --answers 1 --flow-timeout 5s
                                          Questions over both; a flow ends with its answer";

/// Arguments of `service remove`.
#[derive(Debug, Args)]
pub(crate) struct ServiceRemoveArgs {
    /// Its name
    pub(crate) name: String,

    /// Change nothing, only tell how many sessions it has
    #[arg(long)]
    pub(crate) dry_run: bool,
}

const REMOVE_EXAMPLES: &str = "\
Examples:
  balancerctl service remove web          No new clients; the sessions live on
  balancerctl service remove web --dry-run
                                          How many sessions has it?";

const LIST_EXAMPLES: &str = "\
Examples:
  balancerctl service list                Where they listen, and what limits them
  balancerctl service list --wide         How much have they carried, and what was dropped?
  balancerctl service list --json         The same for programs, with every counter";

/// A network, or an address, which is a network of its own.
fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network
        .map(|network| network.trunc())
        .map_err(|_| "write 10.0.0.0/8, 2001:db8::/32, or a single address".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        add: ServiceAddArgs,
    }

    fn settings(options: &str) -> Result<ServiceSettings, String> {
        let words = ["x", "dns", "::", "53"].into_iter().chain(options.split_whitespace());
        let line = <Line as clap::Parser>::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"));
        line.add.settings("[::]:53".parse().expect("an address")).map_err(|error| error.to_string())
    }

    #[test]
    fn options_go_with_what_the_service_speaks() {
        assert_eq!(settings("").map(|service| service.protocol), Ok(Protocol::Tcp));
        for protocol in Protocol::ALL {
            assert_eq!(settings(&format!("--protocol {protocol}")).map(|service| service.protocol), Ok(protocol));
        }
        for option in [
            "no-splice",
            "idle-timeout 1h",
            "half-closed-timeout 1m",
            "max-age 1day",
            "keepalive 0s",
            "proxy-timeout 5s --accept-proxy ::1",
        ] {
            let name = option.split(' ').next().expect("a word");
            let words = format!("--{name} is about TCP, and this is --protocol udp");
            assert_eq!(settings(&format!("--{option} --protocol udp")), Err(words));
            assert!(
                settings(&format!("--{option}")).is_ok() && settings(&format!("--{option} --protocol tcp+udp")).is_ok()
            );
        }
        for option in
            ["flow-timeout 1s", "requests 1", "answers 1", "accept-proxy-in first-datagram --accept-proxy ::1"]
        {
            let name = option.split(' ').next().expect("a word");
            let words = format!("--{name} is about UDP; it goes with --protocol udp or --protocol tcp+udp");
            assert_eq!(settings(&format!("--{option}")), Err(words));
            assert!(settings(&format!("--{option} --protocol udp")).is_ok());
        }
    }

    #[test]
    fn an_address_is_a_network_and_a_network_has_no_host() {
        for (text, shown) in [("10.1.2.3/8", "10.0.0.0/8"), ("192.0.2.7", "192.0.2.7/32"), ("::1", "::1/128")] {
            assert_eq!(network(text).expect(text).to_string(), shown);
        }
        assert!(network("10.0.0.0/33").is_err());
    }
}

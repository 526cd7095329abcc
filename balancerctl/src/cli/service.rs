//! The command line of `service`.

use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use clap::{Args, Subcommand};
use ipnet::IpNet;
use wire::settings::{DEFAULT_PROXY_TIMEOUT_MS, ServiceSettings};

use super::connection::ClientSideArgs;
use super::{PoolArgs, milliseconds};

/// What can be done with services.
#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Listen for a further service
    ///
    /// Clients are served by a pool, which several services may share.
    #[command(after_help = ADD_EXAMPLES)]
    Add(ServiceAddArgs),

    /// Listen no more for a service
    ///
    /// Its sessions live on.
    #[command(after_help = REMOVE_EXAMPLES)]
    Remove(ServiceRemoveArgs),

    /// Show all services
    ///
    /// WAITS FOR says why clients wait in the kernel's queue, if they do. REFUSED counts the clients that were not let
    /// in: their network is denied, they had as many sessions as one client may have, or the PROXY header that they had
    /// to begin with was none or did not come.
    #[command(after_help = LIST_EXAMPLES)]
    List,
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

    /// Sessions at a time; further clients wait
    #[arg(long, value_name = "N")]
    max_sessions: Option<NonZeroU64>,

    /// New sessions in a second; further clients wait
    #[arg(long, value_name = "N")]
    sessions_per_second: Option<NonZeroU32>,

    /// Sessions at a time of one client address; further ones are closed
    #[arg(long, value_name = "N")]
    sessions_per_client: Option<NonZeroU32>,

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

    // The last, since its heading holds for what follows.
    #[command(flatten)]
    connections: ClientSideArgs,
}

impl ServiceAddArgs {
    /// How the service is to be that listens there.
    pub(crate) fn settings(&self, listen: SocketAddr) -> ServiceSettings {
        ServiceSettings {
            max_sessions: self.max_sessions,
            sessions_per_second: self.sessions_per_second,
            sessions_per_client: self.sessions_per_client,
            allow: self.allow.clone(),
            deny: self.deny.clone(),
            accept_proxy: self.accept_proxy.clone(),
            proxy_timeout_ms: self.proxy_timeout.map_or(DEFAULT_PROXY_TIMEOUT_MS, milliseconds),
            splice: !self.no_splice,
            client_side: self.connections.settings(),
            ..ServiceSettings::new(vec![listen], &self.pool.pool)
        }
    }
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
                                          No session is idle for longer, or lives for longer";

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

    #[test]
    fn an_address_is_a_network_and_a_network_has_no_host() {
        for (text, shown) in [("10.1.2.3/8", "10.0.0.0/8"), ("192.0.2.7", "192.0.2.7/32"), ("::1", "::1/128")] {
            assert_eq!(network(text).expect(text).to_string(), shown);
        }
        assert!(network("10.0.0.0/33").is_err());
    }
}

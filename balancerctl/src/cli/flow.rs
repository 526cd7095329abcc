//! The options of `pool add`, `pool set` and `service add` about datagrams.

use std::num::{NonZeroU32, NonZeroU64};

use clap::Args;
use wire::control::PoolValues;
use wire::flow::{FLOW_TIMEOUT_MS, FlowSettings, HeaderScope, OnLoss, OnReturn, PathMtu};

use super::connection::within;
use super::one_of;

/// The datagrams to the servers of a pool.
#[derive(Debug, Args)]
#[command(next_help_heading = "Datagrams to servers")]
pub(crate) struct FlowPolicyArgs {
    /// Whether servers never answer (syslog, statsd): datagrams share a socket for each server, and there are no flows
    #[arg(long, value_name = "true|false", group = "values", num_args = 0..=1, default_missing_value = "true", value_parser = clap::value_parser!(bool))]
    one_way: Option<bool>,

    /// Whether a server is picked for each datagram in place of each flow
    #[arg(long, value_name = "true|false", group = "values", num_args = 0..=1, default_missing_value = "true", value_parser = clap::value_parser!(bool))]
    per_datagram: Option<bool>,

    /// Whether the flows of a server that goes move to the next one at once, or keep it until they are idle
    #[arg(long, group = "values", value_parser = one_of(&OnLoss::ALL, OnLoss::name))]
    flows_on_loss: Option<OnLoss>,

    /// Whether flows stay where they are until they are idle, or move with their clients' next datagrams, when a server
    /// comes (back) that is the one for them
    #[arg(long, group = "values", value_parser = one_of(&OnReturn::ALL, OnReturn::name))]
    flows_on_return: Option<OnReturn>,

    /// Which datagrams the PROXY header of version 2 stands before
    #[arg(long, group = "values", value_parser = one_of(&HeaderScope::ALL, HeaderScope::name))]
    send_proxy_in: Option<HeaderScope>,

    /// Whether datagrams that are longer than the way to their server takes go in fragments, or are dropped and reported
    /// to who sent them, which takes CAP_NET_RAW
    #[arg(long, group = "values", value_parser = one_of(&PathMtu::ALL, PathMtu::name))]
    path_mtu: Option<PathMtu>,
}

/// What becomes of flows that there are not.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("--flows-on-loss and --flows-on-return do not go with --one-way: it has no flows")]
pub(crate) struct NoFlows;

impl FlowPolicyArgs {
    /// These values with those that are said.
    ///
    /// # Errors
    /// When options do not go together.
    pub(super) fn values(&self, others: PoolValues) -> Result<PoolValues, NoFlows> {
        if self.one_way == Some(true) && (self.flows_on_loss.is_some() || self.flows_on_return.is_some()) {
            return Err(NoFlows);
        }
        Ok(PoolValues {
            one_way: self.one_way,
            per_datagram: self.per_datagram,
            flows_on_loss: self.flows_on_loss,
            flows_on_return: self.flows_on_return,
            send_proxy_in: self.send_proxy_in,
            path_mtu: self.path_mtu,
            ..others
        })
    }
}

/// The flows of the clients of a service.
#[derive(Debug, Args)]
#[command(next_help_heading = "Flows of clients, with --protocol udp or tcp+udp")]
pub(crate) struct FlowArgs {
    /// With nothing moving either way a flow ends after this, from 100ms to 1day; 1m without this
    #[arg(long, value_name = "TIME", value_parser = flow_timeout)]
    flow_timeout: Option<NonZeroU64>,

    /// A flow is complete, and ends, when its client has sent so many datagrams
    #[arg(long, value_name = "N")]
    requests: Option<NonZeroU32>,

    /// A flow is complete, and ends, when its server has sent so many datagrams; 1 does for DNS
    #[arg(long, value_name = "N")]
    answers: Option<NonZeroU32>,

    /// Which datagrams from the networks of --accept-proxy begin with a header
    #[arg(long, requires = "accept_proxy", value_parser = one_of(&HeaderScope::ALL, HeaderScope::name))]
    accept_proxy_in: Option<HeaderScope>,
}

impl FlowArgs {
    /// How they are to be.
    pub(super) fn settings(&self) -> FlowSettings {
        let usual = FlowSettings::default();
        FlowSettings {
            timeout_ms: self.flow_timeout.unwrap_or(usual.timeout_ms),
            requests: self.requests,
            answers: self.answers,
            accept_proxy_in: self.accept_proxy_in.unwrap_or(usual.accept_proxy_in),
        }
    }

    /// The keys of a file that are said.
    pub(super) fn said(&self) -> [(&'static str, bool); 4] {
        [
            ("flow_timeout", self.flow_timeout.is_some()),
            ("requests", self.requests.is_some()),
            ("answers", self.answers.is_some()),
            ("accept_proxy_in", self.accept_proxy_in.is_some()),
        ]
    }
}

fn flow_timeout(text: &str) -> Result<NonZeroU64, String> {
    within(text, FLOW_TIMEOUT_MS)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    #[command(group = clap::ArgGroup::new("values").multiple(true))]
    struct OfPool {
        #[command(flatten)]
        flows: FlowPolicyArgs,
    }

    #[derive(Debug, Parser)]
    struct OfService {
        #[arg(long)]
        accept_proxy: bool,

        #[command(flatten)]
        flows: FlowArgs,
    }

    fn words(line: &str) -> impl Iterator<Item = &str> {
        std::iter::once("x").chain(line.split_whitespace())
    }

    #[test]
    fn every_option_of_a_pool_is_its_value() {
        let none = PoolValues::default();
        let values = |line: &str| {
            let pool = OfPool::try_parse_from(words(line)).unwrap_or_else(|error| panic!("{error}"));
            pool.flows.values(PoolValues::default())
        };
        for (line, expected) in [
            ("", none.clone()),
            ("--one-way", PoolValues { one_way: Some(true), ..none.clone() }),
            ("--one-way true", PoolValues { one_way: Some(true), ..none.clone() }),
            ("--one-way false", PoolValues { one_way: Some(false), ..none.clone() }),
            ("--per-datagram", PoolValues { per_datagram: Some(true), ..none.clone() }),
            ("--flows-on-loss keep", PoolValues { flows_on_loss: Some(OnLoss::Keep), ..none.clone() }),
            ("--flows-on-return move", PoolValues { flows_on_return: Some(OnReturn::Move), ..none.clone() }),
            (
                "--send-proxy-in first-datagram",
                PoolValues { send_proxy_in: Some(HeaderScope::FirstDatagram), ..none.clone() },
            ),
            (
                "--one-way --path-mtu report",
                PoolValues { one_way: Some(true), path_mtu: Some(PathMtu::Report), ..none.clone() },
            ),
        ] {
            assert_eq!(values(line), Ok(expected), "{line}");
        }
        assert_eq!(values("--one-way --flows-on-loss keep"), Err(NoFlows));
        assert_eq!(values("--one-way --flows-on-return stay"), Err(NoFlows));
        assert!(values("--one-way false --flows-on-loss keep").is_ok());
        for wrong in [
            "--one-way 1",
            "--flows-on-loss stay",
            "--flows-on-return keep",
            "--send-proxy-in first",
            "--path-mtu drop",
        ] {
            assert!(OfPool::try_parse_from(words(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_option_of_a_service_is_its_value() {
        let service =
            |line: &str| OfService::try_parse_from(words(line)).unwrap_or_else(|error| panic!("{error}")).flows;
        let usual = FlowSettings::default();
        assert_eq!(service("").settings(), usual);
        assert!(service("").said().iter().all(|(_, is_said)| !is_said));
        for (line, expected) in [
            ("--flow-timeout 1500ms", FlowSettings { timeout_ms: NonZeroU64::new(1500).expect("not 0"), ..usual }),
            ("--requests 2", FlowSettings { requests: NonZeroU32::new(2), ..usual }),
            ("--answers 1", FlowSettings { answers: NonZeroU32::new(1), ..usual }),
            (
                "--accept-proxy-in first-datagram --accept-proxy",
                FlowSettings { accept_proxy_in: HeaderScope::FirstDatagram, ..usual },
            ),
        ] {
            assert_eq!(service(line).settings(), expected, "{line}");
            assert_eq!(service(line).said().iter().filter(|(_, is_said)| *is_said).count(), 1, "{line}");
        }
        for wrong in [
            "--flow-timeout 99ms",
            "--flow-timeout 2days",
            "--requests 0",
            "--answers -1",
            "--accept-proxy-in each-datagram",
        ] {
            assert!(OfService::try_parse_from(words(wrong)).is_err(), "{wrong}");
        }
    }
}

//! What a service and a pool are set to as far as datagrams are concerned: how long a flow lasts, and which server gets its
//! datagrams. A part of [`settings`](crate::settings). Times are milliseconds.

use std::num::{NonZeroU32, NonZeroU64};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::named::named;

/// Keys of a service, as a file calls them, that mean something where it speaks UDP alone.
pub const OF_FLOWS: [&str; 4] = ["flow_timeout", "requests", "answers", "accept_proxy_in"];

/// Keys of a pool that mean something where there are flows alone, and not where it is one-way.
pub const OF_MOVES: [&str; 2] = ["flows_on_loss", "flows_on_return"];

/// How long a flow may be given to be idle.
pub const FLOW_TIMEOUT_MS: RangeInclusive<u64> = 100..=24 * 60 * 60 * 1000;

/// How long a flow is kept with nothing moving when nothing else is said. Answers to most questions take far less, and
/// those who speak seldom (SIP, tunnels) say something twice a minute to hold their places at address translators.
pub const DEFAULT_FLOW_TIMEOUT_MS: NonZeroU64 = NonZeroU64::new(60_000).expect("it is not 0");

/// The flows of a service's clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[serde(deny_unknown_fields)]
pub struct FlowSettings {
    /// With nothing moving either way a flow ends after this.
    pub timeout_ms: NonZeroU64,
    /// A flow is complete when its client has sent so many datagrams.
    pub requests: Option<NonZeroU32>,
    /// A flow is complete when its server has sent so many datagrams for each of its client's.
    pub answers: Option<NonZeroU32>,
    /// Which datagrams of a network of `accept_proxy` begin with a header.
    pub accept_proxy_in: HeaderScope,
}

impl Default for FlowSettings {
    fn default() -> Self {
        Self {
            timeout_ms: DEFAULT_FLOW_TIMEOUT_MS,
            requests: None,
            answers: None,
            accept_proxy_in: HeaderScope::EachDatagram,
        }
    }
}

/// The flows to a pool's servers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[serde(deny_unknown_fields)]
pub struct FlowPolicy {
    /// Servers do not answer: datagrams share one socket per server, and there are no flows.
    pub one_way: bool,
    /// A server is picked for each datagram, not for each flow.
    pub per_datagram: bool,
    /// What becomes of the flows of a server that goes down or is removed.
    pub on_loss: OnLoss,
    /// What becomes of the flows whose server is another one when a server comes (back).
    pub on_return: OnReturn,
    /// Which datagrams to its servers begin with a header, where they get one.
    pub send_proxy_in: HeaderScope,
    /// What becomes of datagrams that are longer than the way to their server takes.
    pub path_mtu: PathMtu,
}

/// What becomes of the flows of a server that is lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnLoss {
    /// They go on with the next server at once.
    #[default]
    Move,
    /// They stay until they are idle.
    Keep,
}

/// What becomes of flows for which the policy has another server when one comes (back).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnReturn {
    /// They stay where they are until they are idle.
    #[default]
    Stay,
    /// They go on with that server, each when its client sends something.
    Move,
}

/// Which datagrams of a flow have a PROXY protocol header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeaderScope {
    /// All of them.
    #[default]
    EachDatagram,
    /// The first one alone.
    FirstDatagram,
}

/// What becomes of datagrams that are longer than the way to their server takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathMtu {
    /// They go in fragments.
    #[default]
    Fragment,
    /// They do not go, and who sent them is told what would.
    Report,
}

named!(OnLoss, Move = "move", Keep = "keep");
named!(OnReturn, Stay = "stay", Move = "move");
named!(HeaderScope, EachDatagram = "each-datagram", FirstDatagram = "first-datagram");
named!(PathMtu, Fragment = "fragment", Report = "report");

//! What services and pools of a configuration file say of datagrams, and what of it does not go together. `settings` calls
//! it.

use wire::flow::{FlowPolicy, FlowSettings, HeaderScope, OF_FLOWS, OF_MOVES};
use wire::settings::{PoolSettings, Protocol, SendProxy, Transport};

use super::section::{Faults, Section, line};
use super::value;

/// Keys of a service that end a flow.
const ENDS: [&str; 2] = ["requests", "answers"];

/// A service, as far as its pool has to suit it.
#[derive(Debug, Clone)]
pub(super) struct User<'d> {
    pub(super) service: &'d str,
    pub(super) pool: String,
    pub(super) protocol: Protocol,
    /// Where it says what it speaks, or begins.
    at: usize,
    /// Those of [`ENDS`] that it has, and where.
    ends: Vec<(&'static str, usize)>,
}

impl<'d> User<'d> {
    pub(super) fn of(service: &Section<'d, '_>, name: &'d str, protocol: Protocol, pool: &str) -> Self {
        let at = service.place("protocol").unwrap_or(service.at);
        let ends = ENDS.into_iter().filter_map(|key| Some((key, service.place(key)?))).collect();
        Self { service: name, pool: pool.to_owned(), protocol, at, ends }
    }
}

/// Reads what a service says of the flows of its clients.
pub(super) fn read_flows(service: &Section<'_, '_>, faults: &mut Faults<'_>) -> FlowSettings {
    let default = FlowSettings::default();
    FlowSettings {
        timeout_ms: service.take("flow_timeout", value::flow_timeout, faults).unwrap_or(default.timeout_ms),
        requests: service.take("requests", value::limit_32, faults),
        answers: service.take("answers", value::limit_32, faults),
        accept_proxy_in: service
            .take("accept_proxy_in", value::header_scope, faults)
            .unwrap_or(default.accept_proxy_in),
    }
}

/// Whether the keys of a service go with what it speaks.
pub(super) fn check_protocol(service: &Section<'_, '_>, protocol: Protocol, faults: &mut Faults<'_>) {
    let is = format!("the protocol of this service is \"{protocol}\"");
    if !protocol.has(Transport::Udp) {
        service.refuse(&OF_FLOWS, &format!("protocol = \"udp\" or \"tcp+udp\", and {is}"), faults);
    }
    if !protocol.has(Transport::Tcp) {
        let with = format!("protocol = \"tcp\" or \"tcp+udp\", and {is}");
        service.refuse(&["idle_timeout"], &format!("{with}; for flows give flow_timeout"), faults);
        service.refuse(&wire::connection::OF_TCP, &with, faults);
    }
}

/// Reads what a pool says of datagrams.
pub(super) fn read_flow_policy(pool: &Section<'_, '_>, faults: &mut Faults<'_>) -> FlowPolicy {
    let default = FlowPolicy::default();
    let flows = FlowPolicy {
        one_way: pool.take("one_way", value::flag, faults).unwrap_or(default.one_way),
        per_datagram: pool.take("per_datagram", value::flag, faults).unwrap_or(default.per_datagram),
        on_loss: pool.take("flows_on_loss", value::on_loss, faults).unwrap_or(default.on_loss),
        on_return: pool.take("flows_on_return", value::on_return, faults).unwrap_or(default.on_return),
        send_proxy_in: pool.take("send_proxy_in", value::header_scope, faults).unwrap_or(default.send_proxy_in),
        path_mtu: pool.take("path_mtu", value::path_mtu, faults).unwrap_or(default.path_mtu),
    };
    if flows.one_way {
        pool.refuse(&OF_MOVES, "flows, and a pool with one_way has none", faults);
    }
    if let Some(at) = pool.place("send_proxy_in").filter(|_| flows.one_way)
        && flows.send_proxy_in == HeaderScope::FirstDatagram
    {
        faults.note(at, || {
            let key = pool.path.key("send_proxy_in");
            format!("{key}: a pool with one_way has no flows, and so no first datagrams; give \"each-datagram\"")
        });
    }
    flows
}

/// Whether a pool suits the services that it serves.
pub(super) fn check_users<'u, 'd: 'u>(
    section: &Section<'_, '_>,
    pool: &PoolSettings,
    users: impl Iterator<Item = &'u User<'d>>,
    faults: &mut Faults<'_>,
) {
    let text = faults.text();
    for user in users {
        let (service, protocol, its_line) = (value::shown(user.service), user.protocol, line(text, user.at));
        let mut note = |key: &str, why: String| {
            faults.note(section.place(key).unwrap_or(section.at), || format!("{}: {why}", section.path.key(key)));
        };
        if pool.flows.one_way && protocol.has(Transport::Tcp) {
            note(
                "one_way",
                format!(
                    "this pool serves service {service}, which speaks TCP, in line {its_line}; one_way is for \
                     protocol = \"udp\" alone"
                ),
            );
        }
        if pool.send_proxy == Some(SendProxy::V1) && protocol.has(Transport::Udp) {
            note(
                "send_proxy",
                format!(
                    "this pool serves service {service}, which speaks UDP, in line {its_line}; in datagrams there is \
                     \"v2\" alone"
                ),
            );
        }
        if let Some((key, at)) = user.ends.first().filter(|_| pool.flows.one_way) {
            note(
                "one_way",
                format!(
                    "this pool serves service {service}, which has {key} in line {}; with one_way there are no flows \
                     that could be complete",
                    line(text, *at)
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests;

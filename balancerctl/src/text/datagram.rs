//! What is told of datagrams: how a service and a pool are set to treat them, and what became of them.

use std::collections::BTreeMap;

use wire::control::PoolValues;
use wire::flow::{FlowPolicy, FlowSettings};
use wire::quantity::time as exact;
use wire::report::{DatagramReport, DropReason, ServerReport, ServiceReport};
use wire::settings::{PoolSettings, ServiceSettings, Transport};

use super::{Align, Cell, listed, other};
use crate::quantity::count;

/// What of the flows of its clients is not the usual, where a service has any.
pub(super) fn of_flows(service: &ServiceSettings) -> Vec<String> {
    let (flows, usual) = (service.flows, FlowSettings::default());
    let mut all = Vec::new();
    if !service.protocol.has(Transport::Udp) {
        return all;
    }
    if flows.timeout_ms != usual.timeout_ms {
        all.push(format!("flow timeout {}", exact(flows.timeout_ms.get())));
    }
    all.extend(flows.requests.map(|number| format!("flows of {}", count(number.get().into(), "request"))));
    all.extend(flows.answers.map(|number| format!("flows of {}", count(number.get().into(), "answer"))));
    if flows.accept_proxy_in != usual.accept_proxy_in && service.uses("accept_proxy_in") {
        all.push(format!("PROXY header in {}", flows.accept_proxy_in));
    }
    all
}

/// What is said of the flows to a pool's servers.
pub(super) fn of_flow_policy(values: &PoolValues) -> Vec<String> {
    let mut all = Vec::new();
    all.extend(values.one_way.map(|is| if is { "one-way" } else { "not one-way" }.to_owned()));
    all.extend(values.per_datagram.map(|is| if is { "a server per datagram" } else { "a server per flow" }.to_owned()));
    all.extend(values.flows_on_loss.map(|what| format!("{what} the flows of a server that is lost")));
    all.extend(values.flows_on_return.map(|what| format!("flows {what} when a server returns")));
    all.extend(values.send_proxy_in.map(|scope| format!("PROXY header in {scope}")));
    all.extend(values.path_mtu.map(|what| format!("{what} what is too long for the way")));
    all
}

/// What of the flows to its servers is not the usual.
pub(super) fn unusual_flow_policy(pool: &PoolSettings) -> PoolValues {
    let (flows, usual) = (pool.flows, FlowPolicy::default());
    let has_place = |key| pool.uses(key);
    PoolValues {
        one_way: other(flows.one_way, &usual.one_way),
        per_datagram: other(flows.per_datagram, &usual.per_datagram),
        flows_on_loss: other(flows.on_loss, &usual.on_loss).filter(|_| has_place("flows_on_loss")),
        flows_on_return: other(flows.on_return, &usual.on_return).filter(|_| has_place("flows_on_return")),
        send_proxy_in: other(flows.send_proxy_in, &usual.send_proxy_in).filter(|_| has_place("send_proxy_in")),
        path_mtu: other(flows.path_mtu, &usual.path_mtu),
        ..PoolValues::default()
    }
}

fn dropped(counts: &BTreeMap<DropReason, u64>) -> u64 {
    counts.values().sum()
}

fn reasons(counts: &BTreeMap<DropReason, u64>) -> String {
    listed(counts.iter().map(|(reason, datagrams)| format!("{datagrams} {reason}")))
}

/// Which were dropped, and why.
fn drops(datagrams: &DatagramReport) -> Vec<String> {
    [("in", &datagrams.dropped_in), ("out", &datagrams.dropped_out)]
        .into_iter()
        .filter(|(_, counts)| !counts.is_empty())
        .map(|(way, counts)| format!("dropped on the way {way}: {}", reasons(counts)))
        .collect()
}

/// What became of the datagrams of a service, if there were any.
pub(super) fn of_service(service: &ServiceReport) -> Vec<String> {
    let (datagrams, lost) = (&service.datagrams, service.receive_overflows);
    if *datagrams == DatagramReport::default() && lost == 0 {
        return Vec::new();
    }
    let DatagramReport { datagrams_in, datagrams_out, .. } = datagrams;
    let mut lines = vec![format!("datagrams of {}: {datagrams_in} in, {datagrams_out} out", service.name)];
    lines.extend(drops(datagrams));
    if lost > 0 {
        lines.push(format!("dropped by the kernel before they were read: {lost}"));
    }
    lines
}

/// Why datagrams from and to a server were dropped, if some were.
pub(super) fn of_server(server: &ServerReport) -> Option<String> {
    let lines = drops(&server.datagrams);
    (!lines.is_empty()).then(|| format!("datagrams of {} {}", server.server, lines.join("; ")))
}

/// Whether a server had anything to do with datagrams.
pub(super) fn has_any(server: &ServerReport) -> bool {
    server.datagrams != DatagramReport::default() || server.flows_moved > 0
}

/// The columns of counters of datagrams.
pub(super) fn cells<T>(of: fn(&T) -> &DatagramReport) -> [Cell<'static, T>; 4]
where
    T: 'static,
{
    [
        (("DATAGRAMS IN", Align::Right), Box::new(move |it| of(it).datagrams_in.to_string())),
        (("OUT", Align::Right), Box::new(move |it| of(it).datagrams_out.to_string())),
        (("DROPPED IN", Align::Right), Box::new(move |it| dropped(&of(it).dropped_in).to_string())),
        (("OUT", Align::Right), Box::new(move |it| dropped(&of(it).dropped_out).to_string())),
    ]
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU32, NonZeroU64};

    use wire::flow::{HeaderScope, OnLoss, OnReturn, PathMtu};
    use wire::settings::{Protocol, SendProxy};

    use super::*;

    #[test]
    fn what_is_set_of_flows_is_said_where_there_are_any() {
        let listen = vec!["[::]:53".parse().expect("an address")];
        let mut service = ServiceSettings::new(listen, "dns");
        service.flows = FlowSettings {
            timeout_ms: NonZeroU64::new(5000).expect("not 0"),
            requests: NonZeroU32::new(2),
            answers: NonZeroU32::new(1),
            accept_proxy_in: HeaderScope::FirstDatagram,
        };
        assert_eq!(of_flows(&service), Vec::<String>::new(), "it speaks TCP");
        service.protocol = Protocol::TcpAndUdp;
        let words = ["flow timeout 5s", "flows of 2 requests", "flows of 1 answer"];
        assert_eq!(of_flows(&service), words, "nobody sends headers");
        service.accept_proxy.push("::1/128".parse().expect("a network"));
        assert_eq!(of_flows(&service)[3], "PROXY header in first-datagram");
        service.flows = FlowSettings::default();
        assert_eq!(of_flows(&service), Vec::<String>::new(), "what is usual is not said");
    }

    #[test]
    fn every_value_of_a_pool_has_its_words() {
        let values = PoolValues {
            one_way: Some(false),
            per_datagram: Some(true),
            flows_on_loss: Some(OnLoss::Keep),
            flows_on_return: Some(OnReturn::Move),
            send_proxy_in: Some(HeaderScope::FirstDatagram),
            path_mtu: Some(PathMtu::Report),
            ..PoolValues::default()
        };
        let words = [
            "not one-way",
            "a server per datagram",
            "keep the flows of a server that is lost",
            "flows move when a server returns",
            "PROXY header in first-datagram",
            "report what is too long for the way",
        ];
        assert_eq!(of_flow_policy(&values), words);
        let mut pool = values.over(&PoolSettings::default());
        let unusual = |pool: &PoolSettings| of_flow_policy(&unusual_flow_policy(pool));
        assert_eq!(unusual(&pool), [words[1], words[2], words[3], words[5]], "it sends no header");
        pool.send_proxy = Some(SendProxy::V2 { crc32c: false, unique_id: false });
        assert_eq!(unusual(&pool), words[1..]);
        pool.flows.one_way = true;
        assert_eq!(unusual(&pool), ["one-way", words[1], words[4], words[5]], "it has no flows");
        assert_eq!(unusual(&PoolSettings::default()), Vec::<String>::new());
    }
}

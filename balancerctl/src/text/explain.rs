//! Which server a client gets, and why.

use wire::report::{ExplainReport, Skip};
use wire::settings::{DEFAULT_POOL, Policy};

use super::rows;

/// Servers that are named before they are only counted.
const NEXT_SHOWN: usize = 4;

/// The answer to `explain`.
pub(crate) fn explain(report: &ExplainReport) -> String {
    let hashes = report.policy == Policy::ConsistentHash;
    let mut lines = Vec::new();
    if let Some(service) = &report.service {
        lines.push(("service", format!("{service}, which pool {} serves", report.pool)));
    } else if report.pool != DEFAULT_POOL {
        lines.push(("pool", report.pool.clone()));
    }
    if !hashes {
        lines.push(("policy", format!("{}, which picks for each connection", report.policy)));
    }
    lines.extend(report.key.as_ref().filter(|key| **key != report.client.to_string()).map(|key| ("key", key.clone())));
    lines.extend(report.hash.map(|hash| ("hash", hash.to_string())));
    if hashes {
        lines.push(("point", point(report)));
    }
    if hashes || report.server.is_some() {
        lines.push(("next", next(report)));
    }
    for skipped in &report.skipped {
        let reason = match skipped.reason {
            Skip::Drain => "drain: it gets no new sessions",
            Skip::Leaving => "leaving: it was removed",
            Skip::Maintenance => "maintenance: it gets no new sessions",
            Skip::Full => "full: it has as many sessions as it may have",
            Skip::Loaded => "loaded: it has more than its part of the sessions",
            Skip::Down => "down: its checks say so",
            Skip::Ejected => "ejected: its clients failed, and it is left out for a while",
            Skip::Backup => "backup: it serves when every other server is down or full",
        };
        lines.push(("skipped", format!("{}, {reason}", skipped.server)));
    }
    format!("{}\n\n{}", first(report), rows(&lines))
}

fn first(report: &ExplainReport) -> String {
    let client = report.client;
    let gets = match report.server {
        Some(server) => format!("gets {server}"),
        None if report.policy != Policy::ConsistentHash && !report.next.is_empty() => {
            format!("gets one of {}", some(report, ", "))
        }
        None => "gets no server".to_owned(),
    };
    match report.refused {
        Some(reason) => format!("{client} is not let in: {reason}; otherwise it {gets}"),
        None => format!("{client} {gets}"),
    }
}

/// The point that decides. It is of the server that the client gets, unless that one only stands in for its owner.
fn point(report: &ExplainReport) -> String {
    let stands_in = report.skipped.iter().any(|skipped| matches!(skipped.reason, Skip::Full | Skip::Loaded));
    match (report.server, report.point) {
        (Some(server), Some(point)) if !stands_in => {
            format!("{point}, the first at or after the hash, is of {server}")
        }
        (_, Some(point)) => format!("{point}, the first at or after the hash"),
        (_, None) => "none: no server of the pool takes clients".to_owned(),
    }
}

fn next(report: &ExplainReport) -> String {
    if report.next.is_empty() {
        "nobody".to_owned()
    } else {
        format!("{}, if it does not answer", some(report, ", then "))
    }
}

/// The first of the next.
fn some(report: &ExplainReport, between: &str) -> String {
    let mut names: Vec<String> = report.next.iter().take(NEXT_SHOWN).map(ToString::to_string).collect();
    if report.next.len() > NEXT_SHOWN {
        names.push(format!("{} more", report.next.len() - NEXT_SHOWN));
    }
    names.join(between)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use wire::report::{EndReason, Hex, SkippedReport};

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn report() -> ExplainReport {
        ExplainReport {
            client: "192.0.2.7".parse().expect("an address"),
            service: None,
            refused: None,
            pool: "default".into(),
            policy: Policy::ConsistentHash,
            key: Some("192.0.2.7".into()),
            hash: Some(Hex(1)),
            point: Some(Hex(2)),
            server: Some(address("10.0.0.1:80")),
            next: vec![address("10.0.0.2:80"), address("10.0.0.3:80")],
            skipped: vec![SkippedReport { server: address("10.0.0.4:80"), reason: Skip::Drain }],
        }
    }

    #[test]
    fn an_explanation_names_everybody() {
        let mut report = report();
        let expected = "\
192.0.2.7 gets 10.0.0.1:80

hash     0000000000000001
point    0000000000000002, the first at or after the hash, is of 10.0.0.1:80
next     10.0.0.2:80, then 10.0.0.3:80, if it does not answer
skipped  10.0.0.4:80, drain: it gets no new sessions";
        assert_eq!(explain(&report), expected);
        report.server = None;
        report.point = None;
        report.next.clear();
        assert!(explain(&report).starts_with("192.0.2.7 gets no server\n"));
    }

    #[test]
    fn an_explanation_goes_through_service_key_and_load() {
        let report = ExplainReport {
            service: Some("web".into()),
            refused: Some(EndReason::Denied),
            pool: "web".into(),
            key: Some("192.0.2.0/24".into()),
            skipped: vec![SkippedReport { server: address("10.0.0.4:80"), reason: Skip::Loaded }],
            ..report()
        };
        let expected = "\
192.0.2.7 is not let in: denied; otherwise it gets 10.0.0.1:80

service  web, which pool web serves
key      192.0.2.0/24
hash     0000000000000001
point    0000000000000002, the first at or after the hash
next     10.0.0.2:80, then 10.0.0.3:80, if it does not answer
skipped  10.0.0.4:80, loaded: it has more than its part of the sessions";
        assert_eq!(explain(&report), expected);
    }

    #[test]
    fn a_policy_that_draws_names_all_who_may() {
        let drawn = |server| ExplainReport {
            pool: "api".into(),
            policy: Policy::WeightedRandom,
            key: None,
            hash: None,
            point: None,
            server,
            skipped: Vec::new(),
            ..report()
        };
        let expected = "\
192.0.2.7 gets one of 10.0.0.2:80, 10.0.0.3:80

pool    api
policy  weighted-random, which picks for each connection";
        assert_eq!(explain(&drawn(None)), expected);
        assert!(explain(&drawn(Some(address("10.0.0.1:80")))).starts_with("192.0.2.7 gets 10.0.0.1:80\n"));
        assert!(explain(&ExplainReport { next: Vec::new(), ..drawn(None) }).starts_with("192.0.2.7 gets no server\n"));
    }
}

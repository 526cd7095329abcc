//! What a change did or would do: the answer to every command that changes something, and who moves.

use std::fmt::Write as _;

use wire::control::{Change, PoolValues, Removal, ServerValues};
use wire::report::{ChangeReport, MoveReport};
use wire::settings::{AdminState, DEFAULT_POOL, PoolSettings, SendProxy};

use super::{Align, listed, table};
use crate::quantity::{count, share, time};

/// The answer to a change.
pub(crate) fn change(report: &ChangeReport) -> String {
    let mut text = first(report);
    if report.dry_run && !report.moves.is_empty() {
        let _ = write!(text, "\n\n{}\n", moves(&report.moves));
    }
    let _ = write!(text, "\n{}", sessions(report));
    text
}

/// Who moves to whom.
pub(super) fn moves(moves: &[MoveReport]) -> String {
    let name = |server: Option<_>| server.map_or_else(|| "no server".to_owned(), |server| format!("{server}"));
    let columns = [("FROM", Align::Left), ("TO", Align::Left), ("SHARE", Align::Right)];
    table(columns, moves.iter().map(|one| [name(one.from), name(one.to), share(one.share)]))
}

/// The change itself.
fn first(report: &ChangeReport) -> String {
    let moved = moved(report);
    let to = |pool: &str| if pool == DEFAULT_POOL { String::new() } else { format!(" to pool {pool}") };
    let from = |pool: &str| if pool == DEFAULT_POOL { String::new() } else { format!(" from pool {pool}") };
    match (&report.change, report.dry_run) {
        (Change::Add { pool, server, settings }, dry_run) => {
            let state =
                if settings.state == AdminState::Ready { String::new() } else { format!(", in {}", settings.state) };
            let what = format!("{server}{} with weight {}{state}", to(pool), settings.weight);
            if dry_run { format!("adding {what}: {moved}") } else { format!("added {what}; {moved}") }
        }
        (Change::Remove { pool, server, .. }, true) => format!("removing {server}{}: {moved}", from(pool)),
        (Change::Remove { pool, server, .. }, false) => format!("removed {server}{}; {moved}", from(pool)),
        (Change::Set { server, values, .. }, true) => format!("setting {server} to {}: {moved}", of_server(values)),
        (Change::Set { server, values, .. }, false) => format!("set {server} to {}; {moved}", of_server(values)),
        (Change::AddPool { pool, settings }, true) => format!("adding pool {pool}: {}", of_pool(settings)),
        (Change::AddPool { pool, settings }, false) => format!("added pool {pool}: {}", of_pool(settings)),
        (Change::RemovePool { pool }, true) => format!("removing pool {pool}"),
        (Change::RemovePool { pool }, false) => format!("removed pool {pool}"),
        (Change::SetPool { pool, values }, true) => format!("setting pool {pool} to {}: {moved}", of_values(values)),
        (Change::SetPool { pool, values }, false) => format!("set pool {pool} to {}; {moved}", of_values(values)),
        (Change::AddService { service, settings }, dry_run) => {
            let adding = if dry_run { "adding" } else { "added" };
            format!("{adding} service {service}: {} to pool {}", listed(&settings.listen), settings.pool)
        }
        (Change::RemoveService { service }, true) => format!("removing service {service}"),
        (Change::RemoveService { service }, false) => format!("removed service {service}"),
        (Change::Kill { session }, true) => format!("ending session {session}"),
        (Change::Kill { session }, false) => format!("ended session {session}"),
        (Change::KillAll { server, .. }, true) => format!("ending the sessions of {server}"),
        (Change::KillAll { server, .. }, false) => format!("ended the sessions of {server}"),
    }
}

fn of_server(values: &ServerValues) -> String {
    let mut all = Vec::new();
    all.extend(values.weight.map(|weight| format!("weight {weight}")));
    all.extend(values.state.map(|state| format!("state {state}")));
    all.extend(values.max_sessions.map(|limit| match limit {
        Some(limit) => format!("max sessions {limit}"),
        None => "no session limit".to_owned(),
    }));
    listed(all)
}

fn of_values(values: &PoolValues) -> String {
    let mut all = Vec::new();
    all.extend(values.policy.map(|policy| format!("policy {policy}")));
    all.extend(values.key.map(|key| format!("key {key}")));
    all.extend(values.max_load.map(|factor| match factor {
        Some(factor) => format!("max load {factor}"),
        None => "no max load".to_owned(),
    }));
    all.extend(values.points_per_weight.map(|points| format!("{points} points per weight")));
    all.extend(values.slow_start_ms.map(slow_start));
    all.extend(values.send_proxy.map(send_proxy));
    listed(all)
}

fn slow_start(milliseconds: u64) -> String {
    if milliseconds == 0 { "no slow start".to_owned() } else { format!("slow start {}", time(milliseconds)) }
}

fn send_proxy(how: Option<SendProxy>) -> String {
    how.map_or_else(|| "no PROXY header".to_owned(), |how| format!("PROXY header {how}"))
}

/// A pool in a few words: its policy, and what of it is not the usual.
pub(super) fn of_pool(settings: &PoolSettings) -> String {
    use wire::settings::{DEFAULT_POINTS_PER_WEIGHT, HashKey, Policy};
    let mut all = vec![settings.policy.to_string()];
    if settings.policy == Policy::ConsistentHash {
        if settings.key != HashKey::ClientIp {
            all.push(format!("key {}", settings.key));
        }
        all.extend(settings.max_load.map(|factor| format!("max load {factor}")));
        if settings.points_per_weight != DEFAULT_POINTS_PER_WEIGHT {
            all.push(format!("{} points per weight", settings.points_per_weight));
        }
    }
    if settings.slow_start_ms > 0 {
        all.push(slow_start(settings.slow_start_ms));
    }
    if settings.send_proxy.is_some() {
        all.push(send_proxy(settings.send_proxy));
    }
    listed(all)
}

/// What a change does to new clients.
fn moved(report: &ChangeReport) -> String {
    let moved = share(report.moved);
    match (report.moves.first(), report.dry_run) {
        // The ring is empty before or after: that is all clients at once.
        (Some(MoveReport { from: None, .. }), true) => "it would get every client, as the only server".to_owned(),
        (Some(MoveReport { from: None, .. }), false) => "it gets every client, as the only server".to_owned(),
        (Some(MoveReport { to: None, .. }), true) => "no server would be left to take clients".to_owned(),
        (Some(MoveReport { to: None, .. }), false) => "no server is left to take clients".to_owned(),
        (_, true) => format!("{moved} of the clients would move"),
        (_, false) => format!("{moved} of the clients moved"),
    }
}

/// What a change does to sessions that are alive.
fn sessions(report: &ChangeReport) -> String {
    let text = match &report.change {
        Change::Kill { .. } | Change::KillAll { .. } => ended(report.sessions, report.dry_run),
        Change::Remove { how, .. } => leaving(*how, report.sessions, report.dry_run),
        Change::RemovePool { .. } | Change::RemoveService { .. } => {
            leaving(Removal::Wait { limit_ms: None }, report.sessions, report.dry_run)
        }
        _ if report.dry_run => "no live session would be touched".to_owned(),
        _ => "live sessions stay where they are".to_owned(),
    };
    if report.dry_run { format!("{text}; nothing was changed") } else { text }
}

fn ended(sessions: u64, dry_run: bool) -> String {
    let sessions = count(sessions, "session");
    if dry_run { format!("{sessions} would be closed") } else { format!("{sessions} closed") }
}

/// What becomes of the sessions of somebody who goes.
fn leaving(how: Removal, alive: u64, dry_run: bool) -> String {
    match (how, dry_run) {
        (_, true) if alive == 0 => "it has no live sessions".to_owned(),
        (_, false) if alive == 0 => "it had no live sessions".to_owned(),
        (Removal::Wait { limit_ms: None }, true) => format!("its sessions would go on until they end: {alive} alive"),
        (Removal::Wait { limit_ms: None }, false) => format!("its sessions go on until they end: {alive} alive"),
        (Removal::Wait { limit_ms: Some(limit) }, true) => {
            format!("its sessions would go on until they end, at most {}: {alive} alive", time(limit))
        }
        (Removal::Wait { limit_ms: Some(limit) }, false) => {
            format!("its sessions go on until they end, at most {}: {alive} alive", time(limit))
        }
        (Removal::Now, true) => format!("its sessions would be closed: {alive} alive"),
        (Removal::Now, false) => format!("its sessions were closed: {alive}"),
        (Removal::Over { time_ms }, true) => {
            format!("its sessions would be closed evenly over {}: {alive} alive", time(time_ms))
        }
        (Removal::Over { time_ms }, false) => {
            format!("its sessions are closed evenly over {}: {alive} alive", time(time_ms))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use wire::report::Hex;
    use wire::settings::{HashKey, LoadFactor, Policy, ServerSettings, ServiceSettings};

    use super::*;

    fn report(change: Change, dry_run: bool, moves: Vec<MoveReport>, sessions: u64) -> ChangeReport {
        let moved = moves.iter().map(|one| one.share).sum();
        ChangeReport { change, dry_run, moved, moves, sessions, digest: Some(Hex(7)), unsaved: None }
    }

    fn server() -> SocketAddr {
        "10.0.0.1:80".parse().expect("an address")
    }

    fn add(pool: &str, weight: u32) -> Change {
        let settings = ServerSettings { weight, ..ServerSettings::default() };
        Change::Add { pool: pool.into(), server: server(), settings }
    }

    fn remove(how: Removal) -> Change {
        Change::Remove { pool: "default".into(), server: server(), how }
    }

    const WAIT: Removal = Removal::Wait { limit_ms: None };

    #[test]
    fn a_dry_run_shows_who_would_move() {
        let [b, c] = ["10.0.0.2:80", "10.0.0.3:80"].map(|address| address.parse().expect("an address"));
        let moves = vec![
            MoveReport { from: Some(server()), to: Some(b), share: 0.3 },
            MoveReport { from: Some(server()), to: Some(c), share: 0.0333 },
        ];
        let expected = "\
removing 10.0.0.1:80: 33.33% of the clients would move

FROM         TO            SHARE
10.0.0.1:80  10.0.0.2:80  30.00%
10.0.0.1:80  10.0.0.3:80   3.33%

its sessions would go on until they end: 1 alive; nothing was changed";
        assert_eq!(change(&report(remove(WAIT), true, moves, 1)), expected);
    }

    #[test]
    fn the_first_and_the_last_server_are_said_to_be() {
        let come = vec![MoveReport { from: None, to: Some(server()), share: 1.0 }];
        let gone = vec![MoveReport { from: Some(server()), to: None, share: 1.0 }];
        let add = change(&report(add("default", 1), false, come, 0));
        assert!(add.contains("it gets every client, as the only server"), "{add}");
        let remove = change(&report(remove(Removal::Now), true, gone, 0));
        assert!(remove.contains("no server would be left to take clients"), "{remove}");
        assert!(remove.contains("10.0.0.1:80  no server  100.00%"), "{remove}");
    }

    #[test]
    fn a_change_says_what_it_did() {
        assert_eq!(
            change(&report(add("default", 2), false, Vec::new(), 0)),
            "added 10.0.0.1:80 with weight 2; 0.00% of the clients moved\nlive sessions stay where they are"
        );
        let last = |how, sessions| {
            let text = change(&report(remove(how), false, Vec::new(), sessions));
            text.lines().last().map(str::to_owned).unwrap_or_default()
        };
        assert_eq!(last(WAIT, 0), "it had no live sessions");
        assert_eq!(last(WAIT, 2), "its sessions go on until they end: 2 alive");
        assert_eq!(last(Removal::Now, 2), "its sessions were closed: 2");
        assert_eq!(last(Removal::Over { time_ms: 600_000 }, 2), "its sessions are closed evenly over 10 min: 2 alive");
        let limit = Removal::Wait { limit_ms: Some(60_000) };
        assert_eq!(last(limit, 2), "its sessions go on until they end, at most 1 min: 2 alive");
    }

    #[test]
    fn every_change_has_its_words() {
        let (pool, service) = ("web".to_owned(), "mail".to_owned());
        let values = ServerValues { weight: Some(3), state: Some(AdminState::Drain), max_sessions: Some(None) };
        let settings = PoolSettings {
            key: HashKey::ClientSubnet { ipv4: 24, ipv6: 56 },
            max_load: LoadFactor::from_thousandths(1250),
            slow_start_ms: 30_000,
            send_proxy: Some(SendProxy::V2 { crc32c: true, unique_id: true }),
            ..PoolSettings::default()
        };
        let pool_values = PoolValues {
            policy: Some(Policy::RoundRobin),
            slow_start_ms: Some(0),
            send_proxy: Some(None),
            ..PoolValues::default()
        };
        let listen = vec!["0.0.0.0:25".parse().expect("an address")];
        for (one, done, dry) in [
            (
                Change::Set { pool: pool.clone(), server: server(), values },
                "set 10.0.0.1:80 to weight 3, state drain, no session limit; 0.00% of the clients moved\n\
                 live sessions stay where they are",
                "setting 10.0.0.1:80 to weight 3, state drain, no session limit: 0.00% of the clients would move\n\
                 no live session would be touched; nothing was changed",
            ),
            (
                Change::AddPool { pool: pool.clone(), settings },
                "added pool web: consistent-hash, key client-subnet /24 /56, max load 1.25, slow start 30 s, \
                 PROXY header v2 crc32c unique-id\n\
                 live sessions stay where they are",
                "adding pool web: consistent-hash, key client-subnet /24 /56, max load 1.25, slow start 30 s, \
                 PROXY header v2 crc32c unique-id\n\
                 no live session would be touched; nothing was changed",
            ),
            (
                Change::SetPool { pool: pool.clone(), values: pool_values },
                "set pool web to policy round-robin, no slow start, no PROXY header; 0.00% of the clients moved\n\
                 live sessions stay where they are",
                "setting pool web to policy round-robin, no slow start, no PROXY header: 0.00% of the clients would move\n\
                 no live session would be touched; nothing was changed",
            ),
            (
                Change::RemovePool { pool: pool.clone() },
                "removed pool web\nits sessions go on until they end: 2 alive",
                "removing pool web\nits sessions would go on until they end: 2 alive; nothing was changed",
            ),
            (
                Change::AddService { service: service.clone(), settings: ServiceSettings::new(listen, "web") },
                "added service mail: 0.0.0.0:25 to pool web\nlive sessions stay where they are",
                "adding service mail: 0.0.0.0:25 to pool web\n\
                 no live session would be touched; nothing was changed",
            ),
            (
                Change::RemoveService { service },
                "removed service mail\nits sessions go on until they end: 2 alive",
                "removing service mail\nits sessions would go on until they end: 2 alive; nothing was changed",
            ),
            (
                Change::Kill { session: 7 },
                "ended session 7\n2 sessions closed",
                "ending session 7\n2 sessions would be closed; nothing was changed",
            ),
            (
                Change::KillAll { pool, server: server() },
                "ended the sessions of 10.0.0.1:80\n2 sessions closed",
                "ending the sessions of 10.0.0.1:80\n2 sessions would be closed; nothing was changed",
            ),
        ] {
            assert_eq!(change(&report(one.clone(), false, Vec::new(), 2)), done);
            assert_eq!(change(&report(one, true, Vec::new(), 2)), dry);
        }
        let elsewhere = change(&report(add("web", 1), false, Vec::new(), 0));
        assert!(elsewhere.starts_with("added 10.0.0.1:80 to pool web with weight 1; "), "{elsewhere}");
    }
}

//! What a change did or would do: the answer to every command that changes something, and who moves.

use std::fmt::Write as _;

use wire::connection::{ClientSide, ServerSide, SocketSettings};
use wire::control::{Change, PoolValues, Removal, ServerValues};
use wire::health::{CheckKind, HealthSettings};
use wire::quantity::{size, time as exact};
use wire::report::{ChangeReport, MoveReport};
use wire::settings::{AdminState, DEFAULT_POOL, PoolSettings, Protocol, SendProxy};

use super::datagram::{of_flow_policy, of_flows, unusual_flow_policy};
use super::{Align, listed, other, table};
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
            let backup = if settings.backup { ", as a backup" } else { "" };
            let checked = settings.check_address.map(|address| format!(", checked at {address}")).unwrap_or_default();
            let what = format!("{server}{} with weight {}{state}{backup}{checked}", to(pool), settings.weight);
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
            let protocol =
                if settings.protocol == Protocol::Tcp { String::new() } else { format!("{} ", settings.protocol) };
            let to = format!("{protocol}{} to pool {}", listed(&settings.listen), settings.pool);
            let unusual = of_client_side(&settings.client_side).into_iter().chain(of_flows(settings));
            format!("{adding} service {service}: {}", listed([to].into_iter().chain(unusual)))
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
    all.extend(values.backup.map(|backup| if backup { "backup" } else { "no backup" }.to_owned()));
    all.extend(values.check_address.map(|address| match address {
        Some(address) => format!("checked at {address}"),
        None => "checked where it serves".to_owned(),
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
    all.extend(of_health(values));
    all.extend(of_connects(values));
    all.extend(of_flow_policy(values));
    listed(all)
}

/// What is said of the health of servers.
fn of_health(values: &PoolValues) -> Vec<String> {
    let mut all = Vec::new();
    all.extend(values.check.as_ref().map(of_check));
    all.extend(values.check_interval_ms.map(|time| format!("check every {}", exact(time))));
    let while_so = |state: &'static str| {
        move |time: Option<u64>| match time {
            Some(time) => format!("every {} while {state}", exact(time)),
            None => format!("no other interval while {state}"),
        }
    };
    all.extend(values.check_undecided_interval_ms.map(while_so("undecided")));
    all.extend(values.check_down_interval_ms.map(while_so("down")));
    all.extend(values.check_timeout_ms.map(|time| format!("check timeout {}", exact(time))));
    all.extend(values.check_rise.map(|rise| format!("rise {rise}")));
    all.extend(values.check_fall.map(|fall| format!("fall {fall}")));
    all.extend(values.check_port.map(|port| match port {
        Some(port) => format!("check port {port}"),
        None => "no check port".to_owned(),
    }));
    all.extend(values.check_initial.map(|initial| format!("initially {}", initial.name())));
    all.extend(values.eject_failures.map(|failures| match failures {
        0 => "no ejection".to_owned(),
        failures => format!("ejection after {}", count(failures.into(), "failure")),
    }));
    all.extend(values.eject_time_ms.map(|time| format!("ejection for {}", exact(time))));
    all.extend(values.eject_max_time_ms.map(|time| format!("ejection for at most {}", exact(time))));
    all.extend(values.eject_max_percent.map(|percent| format!("ejection of at most {percent}%")));
    all.extend(values.when_all_down.map(|when| format!("{} when all are down", when.name())));
    all.extend(values.on_down.map(|what| format!("{} the sessions of who goes down", what.name())));
    all
}

/// What is said of the connections to servers.
fn of_connects(values: &PoolValues) -> Vec<String> {
    let mut all = Vec::new();
    all.extend(values.connect_timeout_ms.map(|limit| match limit {
        Some(limit) => format!("connect timeout {}", exact(limit.get())),
        None => "the usual connect timeout".to_owned(),
    }));
    all.extend(values.tries.map(|tries| if tries.get() == 1 { "1 try".to_owned() } else { format!("{tries} tries") }));
    all.extend(values.replay.map(|bytes| match bytes {
        0 => "no replay".to_owned(),
        bytes => format!("replay of {}", size(bytes.into())),
    }));
    all.extend(values.source.as_ref().map(|source| match source.is_empty() {
        true => "no source of its own".to_owned(),
        false => {
            let addresses: Vec<String> = source.iter().map(ToString::to_string).collect();
            format!("source {}", addresses.join(" "))
        }
    }));
    all
}

/// What of the connections to servers is not the usual.
fn of_server_side(side: &ServerSide) -> Vec<String> {
    let usual = ServerSide::default();
    let mut all = of_connects(&PoolValues {
        connect_timeout_ms: side.connect_timeout_ms.map(Some),
        tries: other(side.tries, &usual.tries),
        replay: other(side.replay, &usual.replay),
        source: other(side.source.clone(), &usual.source),
        ..PoolValues::default()
    });
    all.extend(side.transparent.then(|| "transparent".to_owned()));
    all.extend(side.fast_open.then(|| "fast open".to_owned()));
    all.extend(side.mark.map(|mark| format!("mark {mark}")));
    all.extend(side.device.as_ref().map(|device| format!("device {device}")));
    all.extend(of_socket(&side.socket));
    all
}

/// What of the connections of clients is not the usual.
pub(super) fn of_client_side(side: &ClientSide) -> Vec<String> {
    let usual = ClientSide::default();
    let mut all = Vec::new();
    all.extend(side.idle_timeout_ms.map(|limit| format!("idle timeout {}", exact(limit.get()))));
    all.extend(
        other(side.half_closed_timeout_ms, &usual.half_closed_timeout_ms)
            .map(|limit| format!("half-closed timeout {}", exact(limit.get()))),
    );
    all.extend(side.max_age_ms.map(|limit| format!("max age {}", exact(limit.get()))));
    all.extend(other(side.backlog, &usual.backlog).map(|backlog| format!("backlog {backlog}")));
    all.extend(side.defer_accept_ms.map(|time| format!("accept deferred by {}", exact(time.get()))));
    all.extend(other(side.fast_open, &usual.fast_open).map(|pending| format!("fast open for {pending}")));
    all.extend(of_socket(&side.socket));
    all
}

fn of_socket(socket: &SocketSettings) -> Vec<String> {
    let usual = SocketSettings::default();
    let mut all = Vec::new();
    all.extend(other(socket.keepalive_ms, &usual.keepalive_ms).map(|time| match time {
        0 => "no keepalive".to_owned(),
        time => format!("keepalive {}", exact(time)),
    }));
    all.extend(socket.user_timeout_ms.map(|limit| format!("user timeout {}", exact(limit.get().into()))));
    all.extend(socket.congestion.as_ref().map(|name| format!("congestion {name}")));
    all.extend(socket.send_buffer.map(|bytes| format!("send buffer {}", size(bytes.get().into()))));
    all.extend(socket.receive_buffer.map(|bytes| format!("receive buffer {}", size(bytes.get().into()))));
    all
}

/// What a check does.
fn of_check(kind: &CheckKind) -> String {
    match kind {
        CheckKind::None => "no checks".to_owned(),
        CheckKind::Http(http) => format!("check http {} {}", http.method, http.path),
        CheckKind::Dns(dns) => format!("check dns {} {}", dns.records, dns.name),
        CheckKind::Tcp | CheckKind::Send { .. } | CheckKind::Udp { .. } => format!("check {}", kind.name()),
    }
}

/// What of the health of servers is not the usual.
fn unusual_health(health: &HealthSettings) -> PoolValues {
    let (usual, health) = (HealthSettings::default(), health.clone());
    let mut values = PoolValues {
        eject_failures: other(health.ejection.failures, &usual.ejection.failures),
        when_all_down: other(health.when_all_down, &usual.when_all_down),
        on_down: other(health.on_down, &usual.on_down),
        ..PoolValues::default()
    };
    if health.ejection.failures > 0 {
        values.eject_time_ms = other(health.ejection.time_ms, &usual.ejection.time_ms);
        values.eject_max_time_ms = other(health.ejection.max_time_ms, &usual.ejection.max_time_ms);
        values.eject_max_percent = other(health.ejection.max_percent, &usual.ejection.max_percent);
    }
    if health.check.kind != CheckKind::None {
        values.check = Some(health.check.kind);
        values.check_interval_ms = Some(health.check.interval_ms);
        values.check_undecided_interval_ms = other(health.check.undecided_interval_ms, &None);
        values.check_down_interval_ms = other(health.check.down_interval_ms, &None);
        values.check_timeout_ms = other(health.check.timeout_ms, &usual.check.timeout_ms);
        values.check_rise = other(health.check.rise, &usual.check.rise);
        values.check_fall = other(health.check.fall, &usual.check.fall);
        values.check_port = other(health.check.port, &None);
        values.check_initial = other(health.check.initial, &usual.check.initial);
    }
    values
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
    all.extend(of_health(&unusual_health(&settings.health)));
    all.extend(of_server_side(&settings.server_side));
    all.extend(of_flow_policy(&unusual_flow_policy(settings)));
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
        (Removal::Now, true) => format!("its sessions would be closed, flows of UDP go on with others: {alive} alive"),
        (Removal::Now, false) => format!("its sessions were closed, flows of UDP go on with others: {alive}"),
        (Removal::Over { time_ms }, true) => {
            format!(
                "its sessions would be closed evenly over {}, flows of UDP go on with others: {alive} alive",
                time(time_ms)
            )
        }
        (Removal::Over { time_ms }, false) => {
            format!(
                "its sessions are closed evenly over {}, flows of UDP go on with others: {alive} alive",
                time(time_ms)
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::num::{NonZeroU8, NonZeroU32, NonZeroU64};

    use wire::dns::DnsCheck;
    use wire::health::{HttpCheck, InitialHealth, OnDown, WhenAllDown};
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
        assert_eq!(last(Removal::Now, 2), "its sessions were closed, flows of UDP go on with others: 2");
        let over = "its sessions are closed evenly over 10 min, flows of UDP go on with others: 2 alive";
        assert_eq!(last(Removal::Over { time_ms: 600_000 }, 2), over);
        let limit = Removal::Wait { limit_ms: Some(60_000) };
        assert_eq!(last(limit, 2), "its sessions go on until they end, at most 1 min: 2 alive");
    }

    #[test]
    fn every_value_of_health_has_its_words() {
        let number = std::num::NonZeroU32::new;
        let values = PoolValues {
            check: Some(CheckKind::Tcp),
            check_interval_ms: Some(1500),
            check_undecided_interval_ms: Some(Some(500)),
            check_down_interval_ms: Some(None),
            check_timeout_ms: Some(2000),
            check_rise: number(1),
            check_fall: number(4),
            check_port: Some(None),
            check_initial: Some(InitialHealth::Down),
            eject_failures: Some(1),
            eject_time_ms: Some(20_000),
            eject_max_time_ms: Some(90_000),
            eject_max_percent: Some(10),
            when_all_down: Some(WhenAllDown::UseAll),
            on_down: Some(OnDown::Close),
            ..PoolValues::default()
        };
        assert_eq!(
            of_values(&values),
            "check tcp, check every 1s 500ms, every 500ms while undecided, no other interval while down, check timeout 2s, \
             rise 1, fall 4, no check port, initially down, ejection after 1 failure, ejection for 20s, ejection for at \
             most 1m 30s, ejection of at most 10%, use-all when all are down, close the sessions of who goes down"
        );
        let pool = values.over(&PoolSettings::default());
        let words = "consistent-hash, check tcp, check every 1s 500ms, every 500ms while undecided, check timeout 2s, \
                     rise 1, fall 4, initially down, ejection after 1 failure, ejection for 20s, ejection for at most 1m 30s, \
                     ejection of at most 10%, use-all when all are down, close the sessions of who goes down";
        assert_eq!(of_pool(&pool), words);
        let none = PoolValues { check: Some(CheckKind::None), eject_failures: Some(0), ..values };
        let words = "consistent-hash, no ejection, use-all when all are down, close the sessions of who goes down";
        assert_eq!(of_pool(&none.over(&pool)), words, "what does not count is not said");
        let http = HttpCheck { path: "/health".into(), ..HttpCheck::default() };
        assert_eq!(of_check(&CheckKind::Http(http)), "check http GET /health");
        assert_eq!(of_check(&CheckKind::Dns(DnsCheck::default())), "check dns NS .");
        let address = Some(server());
        let values = ServerValues { backup: Some(true), check_address: Some(address), ..ServerValues::default() };
        assert_eq!(of_server(&values), "backup, checked at 10.0.0.1:80");
        let values = ServerValues { backup: Some(false), check_address: Some(None), ..ServerValues::default() };
        assert_eq!(of_server(&values), "no backup, checked where it serves");
        let settings = ServerSettings { backup: true, check_address: address, ..ServerSettings::default() };
        let add = Change::Add { pool: "default".into(), server: server(), settings };
        let text = change(&report(add, false, Vec::new(), 0));
        let words = "added 10.0.0.1:80 with weight 1, as a backup, checked at 10.0.0.1:80; ";
        assert!(text.starts_with(words), "{text}");
    }

    #[test]
    fn every_value_of_connections_has_its_words() {
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("an address")).collect();
        let values = PoolValues {
            connect_timeout_ms: Some(NonZeroU64::new(500)),
            tries: NonZeroU8::new(5),
            replay: Some(65_536),
            source: Some(addresses(&["10.0.0.8", "::1"])),
            ..PoolValues::default()
        };
        let words = "connect timeout 500ms, 5 tries, replay of 64KiB, source 10.0.0.8 ::1";
        assert_eq!(of_values(&values), words);
        let mut pool = values.over(&PoolSettings::default());
        assert_eq!(of_pool(&pool), format!("consistent-hash, {words}"));
        let back = PoolValues {
            connect_timeout_ms: Some(None),
            tries: NonZeroU8::new(1),
            replay: Some(0),
            source: Some(Vec::new()),
            ..PoolValues::default()
        };
        assert_eq!(of_values(&back), "the usual connect timeout, 1 try, no replay, no source of its own");
        assert_eq!(of_pool(&back.over(&pool)), "consistent-hash, 1 try", "what is usual is not said");
        let socket = SocketSettings {
            keepalive_ms: 10_000,
            user_timeout_ms: NonZeroU32::new(30_000),
            congestion: Some("bbr".into()),
            send_buffer: NonZeroU32::new(65_536),
            receive_buffer: NonZeroU32::new(1 << 20),
        };
        let of_socket = "keepalive 10s, user timeout 30s, congestion bbr, send buffer 64KiB, receive buffer 1MiB";
        pool.server_side = ServerSide {
            transparent: true,
            fast_open: true,
            mark: NonZeroU32::new(7),
            device: Some("eth1".into()),
            socket: socket.clone(),
            ..ServerSide::default()
        };
        let words = format!("consistent-hash, transparent, fast open, mark 7, device eth1, {of_socket}");
        assert_eq!(of_pool(&pool), words);
        let mut settings = ServiceSettings::new(vec!["0.0.0.0:25".parse().expect("an address")], "web");
        settings.client_side = ClientSide {
            idle_timeout_ms: NonZeroU64::new(600_000),
            half_closed_timeout_ms: NonZeroU64::new(5000).expect("not 0"),
            max_age_ms: NonZeroU64::new(90 * 86_400_000),
            backlog: NonZeroU32::new(64).expect("not 0"),
            defer_accept_ms: NonZeroU64::new(2000),
            fast_open: 100,
            socket: SocketSettings { keepalive_ms: 0, ..SocketSettings::default() },
        };
        let add = Change::AddService { service: "mail".into(), settings };
        let text = change(&report(add, false, Vec::new(), 0));
        let words = "added service mail: 0.0.0.0:25 to pool web, idle timeout 10m, half-closed timeout 5s, max age 90days, \
                     backlog 64, accept deferred by 2s, fast open for 100, no keepalive\n";
        assert!(text.starts_with(words), "{text}");
    }

    #[test]
    fn every_change_has_its_words() {
        let (pool, service) = ("web".to_owned(), "mail".to_owned());
        let values = ServerValues {
            weight: Some(3),
            state: Some(AdminState::Drain),
            max_sessions: Some(None),
            ..ServerValues::default()
        };
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
        let mut dns = ServiceSettings { protocol: Protocol::TcpAndUdp, ..ServiceSettings::new(listen.clone(), "web") };
        dns.flows.answers = NonZeroU32::new(1);
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
                Change::AddService { service: service.clone(), settings: dns },
                "added service mail: tcp+udp 0.0.0.0:25 to pool web, flows of 1 answer\n\
                 live sessions stay where they are",
                "adding service mail: tcp+udp 0.0.0.0:25 to pool web, flows of 1 answer\n\
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

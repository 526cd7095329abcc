//! The tables of servers, pools, services and sessions.

use ipnet::IpNet;
use wire::control::Removal;
use wire::difference::Subject;
use wire::health::CheckKind;
use wire::report::{
    CheckReport, EndReason, HealthState, ListReport, PoolReport, QuantilesReport, ServerReport, ServiceReport,
    SessionReport, TimingReport, Waiting,
};
use wire::settings::{DEFAULT_CLIENT_SUBNET_IPV6, DEFAULT_POOL, PoolSettings, ServiceSettings, Transport};

use super::change::{of_client_side, of_pool};
use super::datagram::{self, of_flows};
use super::difference::deviations;
use super::{Align, Cell, listed, table, table_of_cells};
use crate::quantity::{share, short_time, size, time};

/// The answer to `list`.
pub(crate) fn list(report: &ListReport) -> String {
    let not_up = report.servers.iter().filter_map(not_up).collect();
    list_of(report, &cells(report), not_up)
}

/// The answer to `list --wide`: what is wrong is said in a column.
pub(crate) fn wide_list(report: &ListReport) -> String {
    let mut cells = cells(report);
    cells.extend(wide_cells());
    if report.servers.iter().any(datagram::has_any) {
        cells.extend(datagram::cells(|server: &ServerReport| &server.datagrams));
        cells.push((("FLOWS MOVED", Align::Right), Box::new(|server| server.flows_moved.to_string())));
    }
    list_of(report, &cells, report.servers.iter().filter_map(datagram::of_server).collect())
}

/// A table of these columns, and lines below it.
fn list_of(report: &ListReport, cells: &[Cell<'_, ServerReport>], below: Vec<String>) -> String {
    let mut paragraphs = Vec::new();
    // The pool that everybody begins with needs no introduction.
    if report.pool != DEFAULT_POOL || report.settings != PoolSettings::default() {
        paragraphs.push(format!("pool {}: {}", report.pool, of_pool(&report.settings)));
    }
    if report.servers.is_empty() {
        let pool = if report.pool == DEFAULT_POOL { String::new() } else { format!(" --pool {}", report.pool) };
        let hint = format!("pool {} has no servers; add one with `balancerctl add ADDR PORT{pool}`", report.pool);
        paragraphs.push(hint);
    } else {
        paragraphs.push(table_of_cells(cells, &report.servers));
    }
    let leaving: Vec<String> = report.servers.iter().filter_map(leaving).collect();
    let lines = [below, leaving].concat();
    if !lines.is_empty() {
        paragraphs.push(lines.join("\n"));
    }
    paragraphs.extend(deviations(&report.deviations));
    paragraphs.join("\n\n")
}

/// The columns; those that would say the same of every server of a plain pool are left out.
fn cells(report: &ListReport) -> Vec<Cell<'_, ServerReport>> {
    let deviates = |address| {
        report.deviations.iter().any(|one| matches!(&one.subject, Subject::Server { server, .. } if *server == address))
    };
    let name =
        move |server: &ServerReport| format!("{}{}", server.server, if deviates(server.server) { "*" } else { "" });
    let mut cells: Vec<Cell<'_, ServerReport>> = vec![
        (("SERVER", Align::Left), Box::new(name)),
        (("WEIGHT", Align::Right), Box::new(|server| server.weight.to_string())),
    ];
    if report.servers.iter().any(|server| server.ramp < 1.0) {
        cells.push((("RAMP", Align::Right), Box::new(|server| format!("{:.0}%", server.ramp * 100.0))));
    }
    let state = |server: &ServerReport| format!("{}{}", server.state, if server.backup { " (backup)" } else { "" });
    cells.push((("STATE", Align::Left), Box::new(state)));
    let is_not_up = |server: &ServerReport| server.health.state != HealthState::Up;
    if report.settings.health.check.kind != CheckKind::None || report.servers.iter().any(is_not_up) {
        cells.push((("HEALTH", Align::Left), Box::new(|server| server.health.state.to_string())));
    }
    cells.push((("SHARE", Align::Right), Box::new(|server| share(server.share))));
    cells.push((("ACTIVE", Align::Right), Box::new(|server| of_limit(server.active, server.max_sessions))));
    cells.push((("TOTAL", Align::Right), Box::new(|server| server.total.to_string())));
    cells.push((("IN", Align::Right), Box::new(|server| size(server.bytes_in))));
    cells.push((("OUT", Align::Right), Box::new(|server| size(server.bytes_out))));
    let failed = |server: &ServerReport| server.connect_failures.saturating_add(server.connect_timeouts).to_string();
    cells.push((("FAILED", Align::Right), Box::new(failed)));
    let can_overflow = |server: &ServerReport| server.overflows > 0 || server.max_sessions.is_some();
    if report.settings.max_load.is_some() || report.servers.iter().any(can_overflow) {
        cells.push((("OVERFLOWS", Align::Right), Box::new(|server| server.overflows.to_string())));
    }
    cells
}

/// The columns that `--wide` adds: all about health, and how fast a server was.
fn wide_cells() -> Vec<Cell<'static, ServerReport>> {
    let last = |text: fn(&CheckReport) -> String| {
        move |server: &ServerReport| server.health.last_check.as_ref().map_or_else(|| "-".to_owned(), text)
    };
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let result = |check: &CheckReport| format!("{}: {}", if check.passed { "passed" } else { "failed" }, check.result);
    vec![
        (("SINCE", Align::Right), Box::new(|server| time(server.health.since_ms))),
        (("LAST CHECK", Align::Left), Box::new(last(result))),
        (("TOOK", Align::Right), Box::new(last(|check| short_time(check.duration_us)))),
        (("AGO", Align::Right), Box::new(last(|check| time(check.ago_ms)))),
        (("CHECKS PASSED", Align::Right), Box::new(|server| server.health.passed.to_string())),
        (("CHECKS FAILED", Align::Right), Box::new(|server| server.health.failed.to_string())),
        (("EJECTIONS", Align::Right), Box::new(|server| server.health.ejections.to_string())),
        (("REPLAYS", Align::Right), Box::new(|server| server.replays.to_string())),
        (("BACK IN", Align::Right), Box::new(move |server| or_none(server.health.ejected_ms.map(time)))),
        (("REASON", Align::Left), Box::new(move |server| or_none(server.health.reason.clone()))),
        (("CONNECT P50", Align::Right), Box::new(p50(|timing| timing.connect))),
        (("P99", Align::Right), Box::new(p99(|timing| timing.connect))),
        (("FIRST BYTE P50", Align::Right), Box::new(p50(|timing| timing.first_byte))),
        (("P99", Align::Right), Box::new(p99(|timing| timing.first_byte))),
        (("ROUND TRIP P50", Align::Right), Box::new(p50(|timing| timing.round_trip))),
        (("P99", Align::Right), Box::new(p99(|timing| timing.round_trip))),
        (("RESENT", Align::Right), Box::new(|server| resent(&server.timing))),
    ]
}

/// Which of the times of a server.
type Measured = fn(&TimingReport) -> Option<QuantilesReport>;

/// The time that half of all were not above.
fn p50(of: Measured) -> impl Fn(&ServerReport) -> String {
    move |server| of(&server.timing).map_or_else(|| "-".to_owned(), |times| short_time(times.p50_us))
}

/// The time that 99 in 100 were not above.
fn p99(of: Measured) -> impl Fn(&ServerReport) -> String {
    move |server| of(&server.timing).map_or_else(|| "-".to_owned(), |times| short_time(times.p99_us))
}

/// The share of segments that were sent again.
fn resent(timing: &TimingReport) -> String {
    match timing.segments {
        0 => "-".to_owned(),
        segments => share(timing.retransmitted as f64 / segments as f64),
    }
}

/// Why a server is not up.
fn not_up(server: &ServerReport) -> Option<String> {
    let health = &server.health;
    if health.state == HealthState::Up {
        return None;
    }
    let reason = health.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let back = health.ejected_ms.map(|left| format!("; back in {}", time(left))).unwrap_or_default();
    Some(format!("{} has been {} for {}{reason}{back}", server.server, health.state, time(health.since_ms)))
}

fn of_limit(number: u64, limit: Option<u64>) -> String {
    limit.map_or_else(|| number.to_string(), |limit| format!("{number}/{limit}"))
}

/// How a server leaves that does not only wait.
fn leaving(server: &ServerReport) -> Option<String> {
    let removal = server.removal?;
    let left = time(removal.left_ms.unwrap_or(0));
    let how = match removal.how {
        Removal::Wait { limit_ms: None } | Removal::Now => return None,
        Removal::Wait { limit_ms: Some(_) } => format!("its sessions are closed in {left}"),
        Removal::Over { .. } => {
            format!("its sessions are closed evenly, {} of {} are left for {left}", server.active, removal.sessions)
        }
    };
    Some(format!("{} is leaving: {how}", server.server))
}

/// Whether a service accepts, and why not.
pub(super) fn accepting(service: &ServiceReport) -> String {
    match (service.accepting, service.waiting) {
        (true, _) => "yes".to_owned(),
        (false, None) => "no".to_owned(),
        (false, Some(waiting)) => format!("no: {}", waits_for(waiting)),
    }
}

fn waits_for(waiting: Waiting) -> &'static str {
    match waiting {
        Waiting::ServiceFull => "its session limit",
        Waiting::BalancerFull => "the balancer's session limit",
        Waiting::Rate => "the next second",
        Waiting::Stopping => "the end",
    }
}

/// How those end who are not let in.
const REFUSED: [EndReason; 4] =
    [EndReason::Denied, EndReason::ClientLimit, EndReason::BadHeader, EndReason::HeaderTimeout];

/// The answer to `service list`.
pub(crate) fn services(services: &[ServiceReport]) -> String {
    services_of(services, Vec::new(), Vec::new())
}

/// The answer to `service list --wide`.
pub(crate) fn wide_services(services: &[ServiceReport]) -> String {
    let mut cells: Vec<Cell<'_, ServiceReport>> = vec![
        (("TOTAL", Align::Right), Box::new(|service| service.total.to_string())),
        (("IN", Align::Right), Box::new(|service| size(service.bytes_in))),
        (("OUT", Align::Right), Box::new(|service| size(service.bytes_out))),
    ];
    if any_speaks_udp(services) {
        cells.extend(datagram::cells(|service: &ServiceReport| &service.datagrams));
    }
    services_of(services, cells, services.iter().flat_map(datagram::of_service).collect())
}

/// Whether one of them has, or had, flows.
pub(super) fn any_speaks_udp(services: &[ServiceReport]) -> bool {
    services.iter().any(|service| service.settings.protocol.has(Transport::Udp))
}

/// The column of what services speak.
pub(super) fn protocol() -> Cell<'static, ServiceReport> {
    (("PROTOCOL", Align::Left), Box::new(|service| service.settings.protocol.to_string()))
}

/// The table of services with further columns, and lines below it.
fn services_of(services: &[ServiceReport], wide: Vec<Cell<'_, ServiceReport>>, below: Vec<String>) -> String {
    if services.is_empty() {
        return "there are no services; add one with `balancerctl service add NAME ADDR PORT`".to_owned();
    }
    let limit = |limit: Option<std::num::NonZeroU32>| limit.map_or_else(|| "-".to_owned(), |limit| limit.to_string());
    let name = |service: &ServiceReport| format!("{}{}", service.name, if service.leaving { " (leaving)" } else { "" });
    let active = |service: &ServiceReport| {
        of_limit(service.active, service.settings.max_sessions.map(std::num::NonZeroU64::get))
    };
    let waits = |service: &ServiceReport| service.waiting.map_or_else(|| "-".to_owned(), |it| waits_for(it).to_owned());
    let refused = |service: &ServiceReport| {
        let refused = REFUSED.iter().filter_map(|reason| service.ended.get(reason));
        refused.sum::<u64>().to_string()
    };
    let mut cells: Vec<Cell<'_, ServiceReport>> = vec![
        (("SERVICE", Align::Left), Box::new(name)),
        (("LISTEN", Align::Left), Box::new(|service| listed(&service.addresses))),
        (("POOL", Align::Left), Box::new(|service| service.settings.pool.clone())),
        (("ACTIVE", Align::Right), Box::new(active)),
        (("PER SECOND", Align::Right), Box::new(move |service| limit(service.settings.sessions_per_second))),
        (("PER CLIENT", Align::Right), Box::new(per_client)),
        (("WAITS FOR", Align::Left), Box::new(waits)),
        (("REFUSED", Align::Right), Box::new(refused)),
    ];
    if any_speaks_udp(services) {
        cells.insert(1, protocol());
    }
    cells.extend(wide);
    let mut paragraphs = vec![table_of_cells(&cells, services)];
    let of_one = |service| networks(service).into_iter().chain(proxies(service)).chain(connections(service));
    let lines: Vec<String> = services.iter().flat_map(of_one).chain(below).collect();
    if !lines.is_empty() {
        paragraphs.push(lines.join("\n"));
    }
    paragraphs.join("\n\n")
}

/// The limit of one client, and how much of an IPv6 address is one, where that is not the usual.
fn per_client(service: &ServiceReport) -> String {
    let ServiceSettings { sessions_per_client, client_subnet_ipv6: bits, .. } = &service.settings;
    match sessions_per_client {
        None => "-".to_owned(),
        Some(limit) if *bits == DEFAULT_CLIENT_SUBNET_IPV6 => limit.to_string(),
        Some(limit) => format!("{limit} (IPv6 /{bits})"),
    }
}

/// Whom a service lets in, if not everybody.
fn networks(service: &ServiceReport) -> Option<String> {
    let settings = &service.settings;
    let allow = of_list(&settings.allow, settings.allow_file.as_deref(), service.allowed_networks);
    let deny = of_list(&settings.deny, settings.deny_file.as_deref(), service.denied_networks);
    match (allow, deny) {
        (None, None) => None,
        (None, Some(deny)) => Some(format!("{} serves everybody but {deny}", service.name)),
        (Some(allow), None) => Some(format!("{} serves only {allow}", service.name)),
        (Some(allow), Some(deny)) => Some(format!("{} serves only {allow}, but not {deny}", service.name)),
    }
}

/// A list of networks, if there is one; of a long one, or one with a file, how many there are in all.
fn of_list(networks: &[IpNet], file: Option<&str>, count: u64) -> Option<String> {
    let all = if count == 1 { "1 network".to_owned() } else { format!("{count} networks") };
    match file {
        Some(file) if networks.is_empty() => Some(format!("the {all} of {file}")),
        Some(file) => Some(format!("{all}, those of {file} among them")),
        None if networks.is_empty() => None,
        None if count > networks.len() as u64 => Some(all),
        None => Some(listed(networks)),
    }
}

/// Whose connections say who the client is, if some do.
fn proxies(service: &ServiceReport) -> Option<String> {
    let networks = of_list(&service.settings.accept_proxy, None, service.proxy_networks)?;
    let takes = match service.settings.protocol.has(Transport::Tcp) {
        true => format!("waits {} for", time(service.settings.proxy_timeout_ms)),
        false => "takes".to_owned(),
    };
    Some(format!("{} {takes} the PROXY header of {networks}", service.name))
}

/// What of the connections and flows of its clients is not the usual.
fn connections(service: &ServiceReport) -> Option<String> {
    let mut unusual = of_client_side(&service.settings.client_side);
    unusual.extend(of_flows(&service.settings));
    (!unusual.is_empty()).then(|| format!("{} has {}", service.name, listed(unusual)))
}

/// The answer to `pool list`.
pub(crate) fn pools(pools: &[PoolReport]) -> String {
    if pools.is_empty() {
        return "there are no pools; add one with `balancerctl pool add NAME`".to_owned();
    }
    let columns = [
        ("POOL", Align::Left),
        ("SERVES", Align::Left),
        ("SERVERS", Align::Right),
        ("READY", Align::Right),
        ("ACTIVE", Align::Right),
        ("DIGEST", Align::Left),
        ("POLICY", Align::Left),
    ];
    let line = |pool: &PoolReport| {
        [
            pool.pool.clone(),
            if pool.services.is_empty() { "-".to_owned() } else { listed(&pool.services) },
            pool.servers.to_string(),
            pool.eligible.to_string(),
            pool.active.to_string(),
            pool.digest.to_string(),
            of_pool(&pool.settings),
        ]
    };
    table(columns, pools.iter().map(line))
}

/// The answer to `sessions`, of which there are at most `limit`.
pub(crate) fn sessions(sessions: &[SessionReport], limit: u32) -> String {
    if sessions.is_empty() {
        return "there are no such sessions".to_owned();
    }
    let server = |session: &SessionReport| match session.server {
        Some(server) if session.connected => server.to_string(),
        Some(server) => format!("{server} (connecting)"),
        None => "- (waiting for its header)".to_owned(),
    };
    let mut cells: Vec<Cell<'_, SessionReport>> = vec![
        (("CLIENT", Align::Left), Box::new(|session| session.client.to_string())),
        (("SERVER", Align::Left), Box::new(server)),
        (("SERVICE", Align::Left), Box::new(|session| session.service.clone())),
        (("AGE", Align::Right), Box::new(|session| time(session.age_ms))),
        (("IDLE", Align::Right), Box::new(|session| time(session.idle_ms))),
        (("IN", Align::Right), Box::new(|session| size(session.bytes_in))),
        (("OUT", Align::Right), Box::new(|session| size(session.bytes_out))),
        (("SESSION", Align::Right), Box::new(|session| session.session.to_string())),
    ];
    if sessions.iter().any(|session| session.transport == Transport::Udp) {
        cells.insert(3, (("PROTOCOL", Align::Left), Box::new(|session| session.transport.to_string())));
    }
    let mut text = table_of_cells(&cells, sessions);
    if sessions.len() as u64 >= u64::from(limit) {
        text.push_str("\n\nthere may be more; --limit shows them");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU32, NonZeroU64};

    use wire::difference::Difference;
    use wire::report::{DatagramReport, DropReason, Ended, HealthReport, Hex, RemovalReport, ServerState};
    use wire::settings::{LoadFactor, Policy, Protocol};

    use super::super::tests::service;
    use super::*;

    fn server(address: &str, weight: u32, state: ServerState, active: u64, bytes: u64) -> ServerReport {
        ServerReport {
            server: address.parse().expect("an address"),
            weight,
            max_sessions: None,
            ramp: 1.0,
            state,
            backup: false,
            health: HealthReport::default(),
            share: if weight == 0 { 0.0 } else { 0.25 },
            active,
            total: active * 10,
            bytes_in: bytes,
            bytes_out: bytes * 1000,
            connect_failures: 1,
            connect_timeouts: 2,
            timing: TimingReport::default(),
            overflows: 0,
            replays: 0,
            removal: None,
            ended: Ended::new(),
            datagrams: DatagramReport::default(),
            flows_moved: 0,
        }
    }

    fn pool(servers: Vec<ServerReport>) -> ListReport {
        let settings = PoolSettings::default();
        ListReport { pool: "default".into(), settings, digest: Hex(7), deviations: Vec::new(), servers }
    }

    #[test]
    fn a_list_is_a_table_that_fits_a_terminal() {
        let servers = vec![
            server("10.0.0.1:80", 1, ServerState::Ready, 3, 2048),
            server("192.168.100.200:8080", 16, ServerState::Drain, 1234, 1 << 21),
        ];
        let expected = "\
SERVER                WEIGHT  STATE   SHARE  ACTIVE  TOTAL       IN      OUT  FAILED
10.0.0.1:80                1  ready  25.00%       3     30  2.0 KiB  2.0 MiB       3
192.168.100.200:8080      16  drain  25.00%    1234  12340  2.0 MiB  2.0 GiB       3";
        assert_eq!(list(&pool(servers)), expected);
    }

    #[test]
    fn an_empty_pool_says_what_to_do() {
        let mut report = pool(Vec::new());
        assert_eq!(list(&report), "pool default has no servers; add one with `balancerctl add ADDR PORT`");
        report.pool = "web".into();
        let hint = "pool web has no servers; add one with `balancerctl add ADDR PORT --pool web`";
        assert_eq!(list(&report), format!("pool web: consistent-hash\n\n{hint}"));
    }

    #[test]
    fn limits_ramps_and_overflows_have_columns_where_there_are_some() {
        let mut full = server("10.0.0.1:80", 1, ServerState::Ready, 3, 0);
        full.max_sessions = Some(3);
        full.overflows = 9;
        let mut new = server("10.0.0.2:80", 2, ServerState::Ready, 0, 0);
        new.ramp = 0.254;
        let mut report = pool(vec![full, new]);
        report.settings.max_load = LoadFactor::from_thousandths(1250);
        let expected = "\
pool default: consistent-hash, max load 1.25

SERVER       WEIGHT  RAMP  STATE   SHARE  ACTIVE  TOTAL   IN  OUT  FAILED  OVERFLOWS
10.0.0.1:80       1  100%  ready  25.00%     3/3     30  0 B  0 B       3          9
10.0.0.2:80       2   25%  ready  25.00%       0      0  0 B  0 B       3          0";
        assert_eq!(list(&report), expected);
    }

    #[test]
    fn who_leaves_and_who_differs_from_the_file_is_named() {
        let mut leaving = server("10.0.0.2:80", 1, ServerState::Leaving, 3, 0);
        leaving.removal =
            Some(RemovalReport { how: Removal::Over { time_ms: 600_000 }, sessions: 10, left_ms: Some(180_000) });
        let mut report = pool(vec![server("10.0.0.1:80", 7, ServerState::Ready, 0, 0), leaving]);
        let subject =
            |server: &str| Subject::Server { pool: "default".into(), server: server.parse().expect("an address") };
        report.deviations = vec![
            Difference {
                subject: subject("10.0.0.1:80"),
                key: Some("weight".into()),
                from: Some("1".into()),
                to: Some("7".into()),
            },
            Difference { subject: subject("10.0.0.2:80"), key: None, from: Some("there".into()), to: None },
        ];
        let expected = "\
SERVER        WEIGHT  STATE     SHARE  ACTIVE  TOTAL   IN  OUT  FAILED
10.0.0.1:80*       7  ready    25.00%       0      0  0 B  0 B       3
10.0.0.2:80*       1  leaving  25.00%       3     30  0 B  0 B       3

10.0.0.2:80 is leaving: its sessions are closed evenly, 3 of 10 are left for 3 min

not as in the configuration file; `balancerctl save` writes it there:
server 10.0.0.1:80 of pool default  weight is 7, the file says 1
server 10.0.0.2:80 of pool default  was removed, the file has it";
        assert_eq!(list(&report), expected);
    }

    /// A pool with a server that is up, one that is down, and a backup that is ejected.
    fn unhealthy() -> ListReport {
        let check = |passed: bool, result: &str, duration_us| {
            Some(CheckReport { passed, result: result.into(), duration_us, ago_ms: 1200 })
        };
        let mut up = server("10.0.0.1:80", 1, ServerState::Ready, 0, 0);
        let times = |p50_us, p99_us| Some(QuantilesReport { count: 100, p50_us, p90_us: p50_us, p99_us });
        up.timing = TimingReport {
            connect: times(210, 1400),
            first_byte: times(3500, 61_000),
            round_trip: times(180, 220),
            segments: 1000,
            retransmitted: 5,
        };
        up.replays = 3;
        up.health.since_ms = 3_600_000;
        up.health.passed = 1800;
        up.health.last_check = check(true, "status 200", 740);
        let mut down = server("10.0.0.2:80", 1, ServerState::Ready, 0, 0);
        down.health = HealthReport {
            state: HealthState::Down,
            since_ms: 61_000,
            reason: Some("connection refused".into()),
            failed: 33,
            last_check: check(false, "status 503", 2100),
            ..HealthReport::default()
        };
        let mut ejected = server("10.0.0.3:80", 1, ServerState::Ready, 0, 0);
        ejected.backup = true;
        ejected.health = HealthReport {
            state: HealthState::Ejected,
            since_ms: 4000,
            reason: Some("5 failed connects in a row".into()),
            ejected_ms: Some(6000),
            ejections: 2,
            ..HealthReport::default()
        };
        pool(vec![up, down, ejected])
    }

    #[test]
    fn who_is_not_up_is_told_with_the_reason() {
        let expected = "\
SERVER       WEIGHT  STATE           HEALTH    SHARE  ACTIVE  TOTAL   IN  OUT  FAILED
10.0.0.1:80       1  ready           up       25.00%       0      0  0 B  0 B       3
10.0.0.2:80       1  ready           down     25.00%       0      0  0 B  0 B       3
10.0.0.3:80       1  ready (backup)  ejected  25.00%       0      0  0 B  0 B       3

10.0.0.2:80 has been down for 1 min 1 s: connection refused
10.0.0.3:80 has been ejected for 4 s: 5 failed connects in a row; back in 6 s";
        assert_eq!(list(&unhealthy()), expected);
    }

    #[test]
    fn health_has_a_column_where_it_is_checked() {
        let mut report = pool(vec![server("10.0.0.1:80", 1, ServerState::Ready, 0, 0)]);
        assert!(!list(&report).contains("HEALTH"), "everybody is up, and nobody looks");
        report.settings.health.check.kind = CheckKind::Tcp;
        let expected = "\
pool default: consistent-hash, check tcp, check every 2s

SERVER       WEIGHT  STATE  HEALTH   SHARE  ACTIVE  TOTAL   IN  OUT  FAILED
10.0.0.1:80       1  ready  up      25.00%       0      0  0 B  0 B       3";
        assert_eq!(list(&report), expected);
    }

    #[test]
    fn a_wide_list_has_all_about_health_and_how_fast_servers_were() {
        let text = wide_list(&unhealthy());
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).skip(10).collect())
            .collect();
        let heading = [
            "SINCE",
            "LAST CHECK",
            "TOOK",
            "AGO",
            "CHECKS PASSED",
            "CHECKS FAILED",
            "EJECTIONS",
            "REPLAYS",
            "BACK IN",
            "REASON",
        ];
        let health = [
            heading,
            ["1 h", "passed: status 200", "740 us", "1 s", "1800", "0", "0", "3", "-", "-"],
            ["1 min 1 s", "failed: status 503", "2.1 ms", "1 s", "0", "33", "0", "0", "-", "connection refused"],
            ["4 s", "-", "-", "-", "0", "0", "2", "0", "6 s", "5 failed connects in a row"],
        ];
        let timing = [
            ["CONNECT P50", "P99", "FIRST BYTE P50", "P99", "ROUND TRIP P50", "P99", "RESENT"],
            ["210 us", "1.4 ms", "3.5 ms", "61 ms", "180 us", "220 us", "0.50%"],
            ["-"; 7],
            ["-"; 7],
        ];
        let rows: Vec<Vec<&str>> =
            health.iter().zip(timing).map(|(health, timing)| [health.as_slice(), &timing].concat()).collect();
        assert_eq!(lines, rows, "{text}");
    }

    #[test]
    fn services_show_what_limits_them() {
        let mut limited = service();
        limited.name = "mail".into();
        limited.settings.max_sessions = NonZeroU64::new(1);
        limited.settings.sessions_per_client = NonZeroU32::new(20);
        limited.settings.allow = vec!["10.0.0.0/8".parse().expect("a network")];
        limited.settings.client_side.idle_timeout_ms = NonZeroU64::new(600_000);
        limited.settings.client_side.socket.keepalive_ms = 0;
        limited.waiting = Some(Waiting::ServiceFull);
        limited.accepting = false;
        limited.ended = Ended::from([(EndReason::Denied, 3), (EndReason::ClientClosed, 5)]);
        assert_eq!(accepting(&limited), "no: its session limit");
        let expected = "\
SERVICE  LISTEN   POOL     ACTIVE  PER SECOND  PER CLIENT  WAITS FOR          REFUSED
mail     [::]:80  default     1/1           -          20  its session limit        3
tcp      [::]:80  default       1           -           -  -                        0

mail serves only 10.0.0.0/8
mail has idle timeout 10m, no keepalive";
        assert_eq!(services(&[limited, service()]), expected);
    }

    #[test]
    fn pools_show_how_they_pick() {
        let pool = PoolReport {
            pool: "web".into(),
            settings: PoolSettings { policy: Policy::RoundRobin, slow_start_ms: 30_000, ..PoolSettings::default() },
            services: vec!["a".into(), "b".into()],
            servers: 3,
            eligible: 2,
            active: 5,
            digest: Hex(7),
        };
        let expected = "\
POOL  SERVES  SERVERS  READY  ACTIVE  DIGEST            POLICY
web   a, b          3      2       5  0000000000000007  round-robin, slow start 30 s";
        assert_eq!(pools(&[pool]), expected);
    }

    #[test]
    fn sessions_end_with_their_number() {
        let session = SessionReport {
            session: 4711,
            transport: Transport::Tcp,
            service: "tcp".into(),
            pool: "default".into(),
            client: "192.0.2.7:5000".parse().expect("an address"),
            server: "10.0.0.1:80".parse().ok(),
            connected: false,
            age_ms: 61_000,
            idle_ms: 5,
            bytes_in: 0,
            bytes_out: 2048,
            datagrams_in: 0,
            datagrams_out: 0,
        };
        let expected = "\
CLIENT          SERVER                    SERVICE        AGE  IDLE   IN      OUT  SESSION
192.0.2.7:5000  10.0.0.1:80 (connecting)  tcp      1 min 1 s  5 ms  0 B  2.0 KiB     4711";
        assert_eq!(sessions(std::slice::from_ref(&session), 2), expected);
        assert!(sessions(std::slice::from_ref(&session), 1).ends_with("\n\nthere may be more; --limit shows them"));
        let flow = SessionReport { session: 7, transport: Transport::Udp, connected: true, ..session.clone() };
        let expected = "\
CLIENT          SERVER                    SERVICE  PROTOCOL        AGE  IDLE   IN      OUT  SESSION
192.0.2.7:5000  10.0.0.1:80 (connecting)  tcp      tcp       1 min 1 s  5 ms  0 B  2.0 KiB     4711
192.0.2.7:5000  10.0.0.1:80               tcp      udp       1 min 1 s  5 ms  0 B  2.0 KiB        7";
        assert_eq!(sessions(&[session, flow], 3), expected);
    }

    fn some_datagrams() -> DatagramReport {
        DatagramReport {
            datagrams_in: 10,
            datagrams_out: 9,
            dropped_in: [(DropReason::Full, 3), (DropReason::Rate, 1)].into(),
            dropped_out: [(DropReason::SendBufferFull, 2)].into(),
        }
    }

    #[test]
    fn services_show_what_they_speak_and_what_became_of_datagrams() {
        let mut dns = service();
        dns.name = "dns".into();
        dns.settings.protocol = Protocol::Udp;
        dns.settings.flows.answers = NonZeroU32::new(1);
        dns.settings.accept_proxy = vec!["10.0.0.5/32".parse().expect("a network")];
        dns.datagrams = some_datagrams();
        let expected = "\
SERVICE  PROTOCOL  LISTEN   POOL     ACTIVE  PER SECOND  PER CLIENT  WAITS FOR  REFUSED
dns      udp       [::]:80  default       1           -           -  -                0
tcp      tcp       [::]:80  default       1           -           -  -                0

dns takes the PROXY header of 10.0.0.5/32
dns has flows of 1 answer";
        assert_eq!(services(&[dns.clone(), service()]), expected);
        dns.settings.accept_proxy.clear();
        let expected = "\
SERVICE  PROTOCOL  LISTEN   POOL     ACTIVE  PER SECOND  PER CLIENT  WAITS FOR  REFUSED  TOTAL   IN  OUT  DATAGRAMS IN  \
OUT  DROPPED IN  OUT
dns      udp       [::]:80  default       1           -           -  -                0      2  3 B  4 B            10    \
9           4    2

dns has flows of 1 answer
datagrams of dns: 10 in, 9 out
dropped on the way in: 3 full, 1 rate
dropped on the way out: 2 send-buffer-full";
        assert_eq!(wide_services(&[dns]), expected);
        let expected = "\
SERVICE  LISTEN   POOL     ACTIVE  PER SECOND  PER CLIENT  WAITS FOR  REFUSED  TOTAL   IN  OUT
tcp      [::]:80  default       1           -           -  -                0      2  3 B  4 B";
        assert_eq!(wide_services(&[service()]), expected);
    }

    #[test]
    fn a_wide_list_counts_datagrams_where_there_were_some() {
        let quiet = server("10.0.0.1:80", 1, ServerState::Ready, 0, 0);
        let mut busy = server("10.0.0.2:80", 1, ServerState::Ready, 0, 0);
        busy.datagrams = some_datagrams();
        busy.flows_moved = 7;
        assert!(!wide_list(&pool(vec![quiet.clone()])).contains("DATAGRAMS"));
        let text = wide_list(&pool(vec![quiet, busy]));
        let mut lines = text.lines();
        for end in [
            "RESENT  DATAGRAMS IN  OUT  DROPPED IN  OUT  FLOWS MOVED",
            "             0    0           0    0            0",
            "            10    9           4    2            7",
            "",
            "datagrams of 10.0.0.2:80 dropped on the way in: 3 full, 1 rate; dropped on the way out: 2 send-buffer-full",
        ] {
            assert!(lines.next().is_some_and(|line| line.ends_with(end)), "{end:?} in:\n{text}");
        }
        assert!(!list(&pool(Vec::new())).contains("DATAGRAMS"));
    }
}

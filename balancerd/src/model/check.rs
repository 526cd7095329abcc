//! What settings cannot be: names, values, addresses, and how they stand to each other. Pure; the same rules for a file
//! and for a command.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::ops::RangeInclusive;

use wire::address::{answers_at, check_address, collide};
use wire::connection::{
    BUFFER, CONNECT_TIMEOUT_MS, ClientSide, DEFER_ACCEPT_MS, KEEPALIVE_MS, MAX_BACKLOG, MAX_FAST_OPEN, MAX_REPLAY,
    MAX_SOURCES, MAX_TRIES, SESSION_TIME_MS, ServerSide, SocketSettings, USER_TIMEOUT_MS, is_congestion, is_device,
    is_source,
};
use wire::control::{MAX_LISTENERS, MAX_POOLS, MAX_SERVERS, MAX_WEIGHT, Refusal};
use wire::dns::DnsCheck;
use wire::flow::{FLOW_TIMEOUT_MS, HeaderScope};
use wire::health::{
    CheckKind, CheckSettings, EjectionSettings, HttpCheck, MAX_EJECT_FAILURES, MAX_IN_A_ROW, MAX_STATUSES, MAX_TIME_MS,
    MAX_TIMEOUT_MS, MIN_TIME_MS,
};
use wire::quantity::{size, time as human};
use wire::settings::{
    HashKey, MAX_PROXY_TIMEOUT_MS, Policy, PoolSettings, Protocol, SendProxy, ServerSettings, ServiceSettings,
    Settings, Transport, is_name,
};

/// An address that a service listens at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken<'s> {
    pub(super) listen: SocketAddr,
    pub(super) protocol: Protocol,
    pub(super) service: &'s str,
}

/// Checks everything.
///
/// # Errors
/// The first fault, by pools and then by services in the order of their names.
pub(crate) fn check(settings: &Settings) -> Result<(), Refusal> {
    check_room(settings.pools.len(), settings.services.values().map(listeners).sum())?;
    for (name, pool) in &settings.pools {
        check_name(name)?;
        check_pool(pool)?;
        if pool.servers.len() > MAX_SERVERS {
            return Err(Refusal::TooManyServers);
        }
        let mut points = 0;
        for (&address, server) in &pool.servers {
            check_server(address, server)?;
            points += points_of(pool, server);
        }
        check_points(pool, points)?;
    }
    let mut taken: Vec<Taken<'_>> = Vec::new();
    for (name, service) in &settings.services {
        check_name(name)?;
        let Some(pool) = settings.pools.get(&service.pool) else {
            return Err(Refusal::NoPool { pool: service.pool.clone() });
        };
        check_service(service, &taken)?;
        check_together((name, service), (&service.pool, pool))?;
        taken.extend(taken_by(name, service));
    }
    check_circles(settings, &taken)
}

/// The addresses that a service takes, as it is set to.
pub(super) fn taken_by<'s>(name: &'s str, service: &'s ServiceSettings) -> impl Iterator<Item = Taken<'s>> {
    service.listen.iter().map(move |listen| Taken { listen: *listen, protocol: service.protocol, service: name })
}

/// Listeners that a service has: one for each address and transport.
pub(super) fn listeners(service: &ServiceSettings) -> usize {
    service.listen.len() * service.protocol.transports().len()
}

/// Whether there may be so many pools, and addresses to listen at.
pub(super) fn check_room(pools: usize, listeners: usize) -> Result<(), Refusal> {
    if pools > MAX_POOLS {
        return Err(Refusal::TooManyPools);
    }
    if listeners > MAX_LISTENERS { Err(Refusal::TooManyListeners) } else { Ok(()) }
}

/// Whether a text names a service or a pool.
pub(super) fn check_name(name: &str) -> Result<(), Refusal> {
    if is_name(name) { Ok(()) } else { Err(Refusal::BadName { name: name.to_owned() }) }
}

/// The values of a pool, its servers left aside.
pub(super) fn check_pool(pool: &PoolSettings) -> Result<(), Refusal> {
    match pool.key {
        HashKey::ClientSubnet { ipv4, .. } if ipv4 > 32 => Err(bad("subnet_ipv4", "an IPv4 address has 32 bits")),
        HashKey::ClientSubnet { ipv6, .. } if ipv6 > 128 => Err(bad("subnet_ipv6", "an IPv6 address has 128 bits")),
        _ => Ok(()),
    }?;
    check_kind(&pool.health.check.kind)?;
    check_checks(&pool.health.check)?;
    check_ejection(&pool.health.ejection)?;
    check_server_side(&pool.server_side)?;
    if pool.flows.one_way && pool.uses("send_proxy_in") && pool.flows.send_proxy_in != HeaderScope::EachDatagram {
        return Err(bad("send_proxy_in", "a pool that is one-way has no flows, and so no first datagrams"));
    }
    Ok(())
}

/// A service and its pool, each of which may be sound by itself.
pub(super) fn check_together(
    (name, service): (&str, &ServiceSettings),
    (pool_name, pool): (&str, &PoolSettings),
) -> Result<(), Refusal> {
    let (has_tcp, has_udp) = (service.protocol.has(Transport::Tcp), service.protocol.has(Transport::Udp));
    if pool.flows.one_way && has_tcp {
        let fault = format!("pool {pool_name} is one-way, and service {name} speaks TCP, which goes both ways");
        return Err(bad("one_way", &fault));
    }
    if pool.send_proxy == Some(SendProxy::V1) && has_udp {
        let fault = format!("pool {pool_name} gives v1, and service {name} speaks UDP: in datagrams there is v2 alone");
        return Err(bad("send_proxy", &fault));
    }
    for (key, ends) in [("requests", service.flows.requests), ("answers", service.flows.answers)] {
        if ends.is_some() && has_udp && pool.flows.one_way {
            let fault = format!("service {name} has it, and pool {pool_name} is one-way: no flow could be complete");
            return Err(bad(key, &fault));
        }
    }
    Ok(())
}

/// What a check does.
fn check_kind(kind: &CheckKind) -> Result<(), Refusal> {
    match kind {
        CheckKind::Send { send, expect } if send.is_empty() && expect.is_empty() => {
            Err(bad("check", "\"send\" needs something to be sent or expected"))
        }
        CheckKind::Http(http) => check_http(http),
        CheckKind::Dns(dns) if !DnsCheck::is_name(&dns.name) => Err(bad("check_dns_name", "it is no name of a domain")),
        // A datagram may be empty.
        CheckKind::None | CheckKind::Tcp | CheckKind::Send { .. } | CheckKind::Udp { .. } | CheckKind::Dns(_) => Ok(()),
    }
}

fn check_http(http: &HttpCheck) -> Result<(), Refusal> {
    if !HttpCheck::is_method(&http.method) {
        return Err(bad("check_method", "a method has capital letters only, such as GET"));
    }
    if !HttpCheck::is_path(&http.path) {
        return Err(bad("check_path", "a path begins with / and has no blanks"));
    }
    if http.host.as_deref().is_some_and(|host| !HttpCheck::is_host(host)) {
        return Err(bad("check_host", "it is no name of a host"));
    }
    if http.status.is_empty() {
        return Err(bad("check_status", "no status would pass"));
    }
    if http.status.len() > MAX_STATUSES {
        return Err(bad("check_status", &format!("there may be {MAX_STATUSES} ranges at most")));
    }
    Ok(())
}

/// When is checked, and what results mean. Also where nothing is checked: somebody may turn it on.
fn check_checks(check: &CheckSettings) -> Result<(), Refusal> {
    let interval = MIN_TIME_MS..=MAX_TIME_MS;
    check_time("check_interval", Some(check.interval_ms), interval.clone())?;
    check_time("check_undecided_interval", check.undecided_interval_ms, interval.clone())?;
    check_time("check_down_interval", check.down_interval_ms, interval)?;
    check_time("check_timeout", Some(check.timeout_ms), MIN_TIME_MS..=MAX_TIMEOUT_MS)?;
    for (key, in_a_row) in [("check_rise", check.rise), ("check_fall", check.fall)] {
        if in_a_row.get() > MAX_IN_A_ROW {
            return Err(bad(key, &format!("it is at most {MAX_IN_A_ROW}")));
        }
    }
    Ok(())
}

/// When clients that fail put a server out.
fn check_ejection(ejection: &EjectionSettings) -> Result<(), Refusal> {
    if ejection.failures > MAX_EJECT_FAILURES {
        return Err(bad("eject_failures", &format!("it is at most {MAX_EJECT_FAILURES}")));
    }
    check_time("eject_time", Some(ejection.time_ms), MIN_TIME_MS..=MAX_TIME_MS)?;
    check_time("eject_max_time", Some(ejection.max_time_ms), MIN_TIME_MS..=MAX_TIME_MS)?;
    if ejection.max_time_ms < ejection.time_ms {
        let (time, most) = (human(ejection.time_ms), human(ejection.max_time_ms));
        return Err(bad("eject_max_time", &format!("{most} is below eject_time, which is {time}")));
    }
    if ejection.max_percent > 100 {
        return Err(bad("eject_max_percent", "it is at most 100"));
    }
    Ok(())
}

fn check_time(key: &str, milliseconds: Option<u64>, range: RangeInclusive<u64>) -> Result<(), Refusal> {
    if milliseconds.is_none_or(|milliseconds| range.contains(&milliseconds)) {
        return Ok(());
    }
    Err(bad(key, &format!("it is from {} to {}", human(*range.start()), human(*range.end()))))
}

/// The connections of clients.
fn check_client_side(side: &ClientSide) -> Result<(), Refusal> {
    check_time("idle_timeout", side.idle_timeout_ms.map(NonZeroU64::get), SESSION_TIME_MS)?;
    check_time("half_closed_timeout", Some(side.half_closed_timeout_ms.get()), SESSION_TIME_MS)?;
    check_time("max_age", side.max_age_ms.map(NonZeroU64::get), SESSION_TIME_MS)?;
    check_most("backlog", side.backlog.get(), MAX_BACKLOG)?;
    check_time("defer_accept", side.defer_accept_ms.map(NonZeroU64::get), DEFER_ACCEPT_MS)?;
    if side.defer_accept_ms.is_some_and(|limit| limit.get() % 1000 != 0) {
        return Err(bad("defer_accept", "it is in whole seconds, as the kernel counts them"));
    }
    check_most("fast_open", side.fast_open, MAX_FAST_OPEN)?;
    check_socket(&side.socket)
}

/// The connections to servers.
fn check_server_side(side: &ServerSide) -> Result<(), Refusal> {
    check_time("connect_timeout", side.connect_timeout_ms.map(NonZeroU64::get), CONNECT_TIMEOUT_MS)?;
    check_most("tries", u32::from(side.tries.get()), u32::from(MAX_TRIES))?;
    if side.replay > MAX_REPLAY {
        return Err(bad("replay", &format!("it is at most {}", size(u64::from(MAX_REPLAY)))));
    }
    if side.source.len() > MAX_SOURCES {
        return Err(bad("source", &format!("there may be {MAX_SOURCES} addresses at most")));
    }
    for (index, address) in side.source.iter().enumerate() {
        if !is_source(*address) {
            return Err(bad("source", &format!("no connection can come from {address}")));
        }
        if side.source[..index].iter().any(|other| other.to_canonical() == address.to_canonical()) {
            return Err(bad("source", &format!("{address} is there twice")));
        }
    }
    if side.transparent && !side.source.is_empty() {
        return Err(bad("source", "it does not go together with transparent: both say where connections come from"));
    }
    if side.device.as_deref().is_some_and(|device| !is_device(device)) {
        return Err(bad("device", "it is no name of a network device"));
    }
    check_socket(&side.socket)
}

fn check_socket(socket: &SocketSettings) -> Result<(), Refusal> {
    if socket.keepalive_ms != 0 {
        check_time("keepalive", Some(socket.keepalive_ms), KEEPALIVE_MS)?;
    }
    check_time("user_timeout", socket.user_timeout_ms.map(|time| u64::from(time.get())), USER_TIMEOUT_MS)?;
    if socket.congestion.as_deref().is_some_and(|name| !is_congestion(name)) {
        return Err(bad("congestion", "it is no name of a congestion control"));
    }
    for (key, buffer) in [("send_buffer", socket.send_buffer), ("receive_buffer", socket.receive_buffer)] {
        if buffer.is_some_and(|bytes| !BUFFER.contains(&u64::from(bytes.get()))) {
            return Err(bad(key, &format!("it is from {} to {}", size(*BUFFER.start()), size(*BUFFER.end()))));
        }
    }
    Ok(())
}

fn check_most(key: &str, number: u32, most: u32) -> Result<(), Refusal> {
    if number > most { Err(bad(key, &format!("it is at most {most}"))) } else { Ok(()) }
}

/// A server, by itself.
pub(super) fn check_server(server: SocketAddr, settings: &ServerSettings) -> Result<(), Refusal> {
    check_address(server).map_err(|fault| Refusal::Unaddressable { server, fault })?;
    if settings.weight > MAX_WEIGHT {
        return Err(Refusal::WeightTooLarge { weight: settings.weight });
    }
    // It may lead to a listener of our own: a check ends by itself, so that is no circle.
    if let Some(fault) = settings.check_address.and_then(|address| check_address(address).err()) {
        return Err(bad("check_address", &fault.to_string()));
    }
    Ok(())
}

/// Points that a server of these settings has, eligible or not: making it eligible must not fail.
pub(super) fn points_of(pool: &PoolSettings, server: &ServerSettings) -> u64 {
    u64::from(server.weight) * u64::from(pool.points_per_weight.get())
}

/// Whether the ring of a pool has room for so many points.
pub(super) fn check_points(pool: &PoolSettings, points: u64) -> Result<(), Refusal> {
    let limit = ring::MAX_POINTS as u64;
    if pool.policy == Policy::ConsistentHash && points > limit {
        return Err(Refusal::TooManyPoints { points, limit });
    }
    Ok(())
}

/// A service, beside the addresses that others, or it itself, have `taken`.
pub(super) fn check_service(service: &ServiceSettings, taken: &[Taken<'_>]) -> Result<(), Refusal> {
    if service.listen.is_empty() {
        return Err(bad("listen", "at least one address must be given"));
    }
    for (index, listen) in service.listen.iter().enumerate() {
        if service.listen[..index].iter().any(|other| collide(*other, *listen)) {
            return Err(bad("listen", &format!("{listen} is there twice, or another of the addresses includes it")));
        }
        let is_taken = |other: &&Taken<'_>| other.protocol.overlaps(service.protocol) && collide(other.listen, *listen);
        if let Some(other) = taken.iter().find(is_taken) {
            return Err(Refusal::AddressTaken { listen: *listen, service: other.service.to_owned() });
        }
    }
    if service.client_subnet_ipv6 > 128 {
        return Err(bad("client_subnet_ipv6", "an IPv6 address has 128 bits"));
    }
    if !(1..=MAX_PROXY_TIMEOUT_MS).contains(&service.proxy_timeout_ms) {
        return Err(bad("proxy_timeout", "it is more than no time, and an hour at most"));
    }
    if service.protocol == Protocol::TcpAndUdp && service.listen.iter().any(|listen| listen.port() == 0) {
        let fault = "with protocol = \"tcp+udp\" a port has to be given: for port 0 the system would choose two";
        return Err(bad("listen", fault));
    }
    check_time("flow_timeout", Some(service.flows.timeout_ms.get()), FLOW_TIMEOUT_MS)?;
    check_client_side(&service.client_side)
}

/// No server may be where the balancer itself listens with what it is spoken to by: the same port by the other transport is
/// another program's.
fn check_circles(settings: &Settings, listening: &[Taken<'_>]) -> Result<(), Refusal> {
    for (name, pool) in &settings.pools {
        if let Some(server) = pool.servers.keys().find(|server| is_a_circle(settings, name, **server, listening)) {
            return Err(Refusal::Itself { server: *server });
        }
    }
    Ok(())
}

/// Whether what services send to this server of a pool would come back. Of a pool that none of them uses nothing is sent.
pub(super) fn is_a_circle(settings: &Settings, pool: &str, server: SocketAddr, listening: &[Taken<'_>]) -> bool {
    let its: Vec<_> = listening.iter().filter(|taken| answers_at(taken.listen, server)).collect();
    !its.is_empty()
        && settings
            .services
            .values()
            .any(|service| service.pool == pool && its.iter().any(|taken| taken.protocol.overlaps(service.protocol)))
}

fn bad(key: &str, fault: &str) -> Refusal {
    Refusal::BadValue { key: key.to_owned(), fault: fault.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU8, NonZeroU32};

    use wire::health::{CheckText, HealthSettings, StatusRange};

    use super::*;

    fn refused(change: impl FnOnce(&mut HealthSettings)) -> Option<String> {
        let mut pool = PoolSettings::default();
        change(&mut pool.health);
        check_pool(&pool).err().map(|refusal| refusal.to_string())
    }

    fn of_http(change: impl FnOnce(&mut HttpCheck)) -> Option<String> {
        let mut http = HttpCheck::default();
        change(&mut http);
        refused(|health| health.check.kind = CheckKind::Http(http))
    }

    #[test]
    fn what_a_check_cannot_do_is_refused() {
        let text = |text: &str| CheckText::new(text).expect("short");
        let of_send = |send: &str, expect: &str| {
            refused(|health| health.check.kind = CheckKind::Send { send: text(send), expect: text(expect) })
        };
        assert_eq!(of_send("", "").as_deref(), Some("check: \"send\" needs something to be sent or expected"));
        assert_eq!((of_send("x", ""), of_send("", "x")), (None, None));
        assert_eq!(refused(|health| health.check.kind = CheckKind::Tcp), None);
        assert_eq!(of_http(|_| {}), None);
        let of_dns = |name: &str| {
            let dns = DnsCheck { name: name.to_owned(), ..DnsCheck::default() };
            refused(|health| health.check.kind = CheckKind::Dns(dns))
        };
        assert_eq!(of_dns("a.example"), None);
        assert_eq!(refused(|health| health.check.kind = CheckKind::Udp { send: text(""), expect: text("") }), None);
        for (refusal, key) in [
            (of_dns(""), "check_dns_name"),
            (of_dns("a..b"), "check_dns_name"),
            (of_http(|http| http.method = "get".into()), "check_method"),
            (of_http(|http| http.path = "/a b".into()), "check_path"),
            (of_http(|http| http.host = Some("a\r\nb".into())), "check_host"),
            (of_http(|http| http.status.clear()), "check_status"),
            (of_http(|http| http.status = vec![StatusRange::USUAL; MAX_STATUSES + 1]), "check_status"),
        ] {
            let refusal = refusal.expect(key);
            assert!(refusal.starts_with(&format!("{key}: ")), "{refusal}");
        }
        assert_eq!(of_http(|http| http.status = vec![StatusRange::USUAL; MAX_STATUSES]), None);
    }

    #[test]
    fn values_of_health_have_bounds() {
        type Set = fn(&mut HealthSettings, u64);
        let times = "it is from 10ms to 1day";
        let cases: [(Set, &str, u64, u64, &str); 9] = [
            (|health, time| health.check.interval_ms = time, "check_interval", 10, 86_400_000, times),
            (
                |health, time| health.check.undecided_interval_ms = Some(time),
                "check_undecided_interval",
                10,
                86_400_000,
                times,
            ),
            (|health, time| health.check.down_interval_ms = Some(time), "check_down_interval", 10, 86_400_000, times),
            (|health, time| health.check.timeout_ms = time, "check_timeout", 10, 3_600_000, "it is from 10ms to 1h"),
            (|health, time| health.ejection.max_time_ms = time, "eject_max_time", 1_000, 86_400_000, times),
            (|health, number| health.check.rise = in_a_row(number), "check_rise", 1, 100, "it is at most 100"),
            (|health, number| health.check.fall = in_a_row(number), "check_fall", 1, 100, "it is at most 100"),
            (
                |health, number| health.ejection.failures = number as u32,
                "eject_failures",
                0,
                1_000_000,
                "it is at most 1000000",
            ),
            (
                |health, number| health.ejection.max_percent = number as u8,
                "eject_max_percent",
                0,
                100,
                "it is at most 100",
            ),
        ];
        for (set, key, least, most, fault) in cases {
            assert_eq!((refused(|health| set(health, least)), refused(|health| set(health, most))), (None, None));
            assert_eq!(refused(|health| set(health, most + 1)), Some(format!("{key}: {fault}")));
            if key.ends_with("interval") || key.ends_with("timeout") {
                assert_eq!(refused(|health| set(health, least - 1)), Some(format!("{key}: {fault}")));
            }
        }
        assert_eq!(
            refused(|health| health.ejection.time_ms = 9).as_deref(),
            Some("eject_time: it is from 10ms to 1day")
        );
        assert_eq!(
            refused(|health| health.ejection.time_ms = 61_000).as_deref(),
            Some("eject_max_time: 1m is below eject_time, which is 1m 1s")
        );
    }

    fn client_refused(change: impl FnOnce(&mut ClientSide)) -> Option<String> {
        let mut service = ServiceSettings::new(vec!["0.0.0.0:80".parse().expect("an address")], "web");
        change(&mut service.client_side);
        check_service(&service, &[]).err().map(|refusal| refusal.to_string())
    }

    fn server_refused(change: impl FnOnce(&mut ServerSide)) -> Option<String> {
        let mut pool = PoolSettings::default();
        change(&mut pool.server_side);
        check_pool(&pool).err().map(|refusal| refusal.to_string())
    }

    #[test]
    fn values_of_connections_have_bounds() {
        type Refused = fn(u64) -> Option<String>;
        let (year, hour) = (365 * 86_400_000, 3_600_000);
        let session_times = "it is from 100ms to 365days";
        let buffers = "it is from 4KiB to 64MiB";
        let cases: [(Refused, &str, u64, u64, &str); 14] = [
            (
                |time| client_refused(|side| side.idle_timeout_ms = NonZeroU64::new(time)),
                "idle_timeout",
                100,
                year,
                session_times,
            ),
            (
                |time| client_refused(|side| side.half_closed_timeout_ms = NonZeroU64::new(time).expect("not 0")),
                "half_closed_timeout",
                100,
                year,
                session_times,
            ),
            (
                |time| client_refused(|side| side.max_age_ms = NonZeroU64::new(time)),
                "max_age",
                100,
                year,
                session_times,
            ),
            (
                |number| client_refused(|side| side.backlog = in_a_row(number)),
                "backlog",
                1,
                65_535,
                "it is at most 65535",
            ),
            (
                |time| client_refused(|side| side.defer_accept_ms = NonZeroU64::new(time)),
                "defer_accept",
                1000,
                60_000,
                "it is from 1s to 1m",
            ),
            (
                |number| client_refused(|side| side.fast_open = number as u32),
                "fast_open",
                0,
                65_535,
                "it is at most 65535",
            ),
            (
                |time| client_refused(|side| side.socket.keepalive_ms = time),
                "keepalive",
                1000,
                9 * hour,
                "it is from 1s to 9h",
            ),
            (
                |time| client_refused(|side| side.socket.user_timeout_ms = NonZeroU32::new(time as u32)),
                "user_timeout",
                100,
                hour,
                "it is from 100ms to 1h",
            ),
            (
                |time| server_refused(|side| side.connect_timeout_ms = NonZeroU64::new(time)),
                "connect_timeout",
                10,
                hour,
                "it is from 10ms to 1h",
            ),
            (
                |number| server_refused(|side| side.tries = NonZeroU8::new(number as u8).expect("not 0")),
                "tries",
                1,
                16,
                "it is at most 16",
            ),
            (|bytes| server_refused(|side| side.replay = bytes as u32), "replay", 0, 1 << 20, "it is at most 1MiB"),
            (
                |bytes| server_refused(|side| side.socket.send_buffer = NonZeroU32::new(bytes as u32)),
                "send_buffer",
                4096,
                64 << 20,
                buffers,
            ),
            (
                |bytes| client_refused(|side| side.socket.receive_buffer = NonZeroU32::new(bytes as u32)),
                "receive_buffer",
                4096,
                64 << 20,
                buffers,
            ),
            (
                |time| server_refused(|side| side.socket.keepalive_ms = time),
                "keepalive",
                1000,
                9 * hour,
                "it is from 1s to 9h",
            ),
        ];
        for (refused, key, least, most, fault) in cases {
            assert_eq!((refused(least), refused(most)), (None, None), "{key}");
            assert_eq!(refused(most + 1), Some(format!("{key}: {fault}")));
            if fault.starts_with("it is from") {
                assert_eq!(refused(least - 1), Some(format!("{key}: {fault}")));
            }
        }
        assert_eq!(client_refused(|side| side.socket.keepalive_ms = 0), None, "never");
    }

    #[test]
    fn a_service_and_its_pool_go_together() {
        use Protocol::{Tcp, TcpAndUdp, Udp};
        let together = |protocol, change: fn(&mut ServiceSettings, &mut PoolSettings)| {
            let mut service = ServiceSettings::new(vec!["0.0.0.0:53".parse().expect("an address")], "name");
            service.protocol = protocol;
            let mut settings = Settings::default();
            let mut pool = PoolSettings::default();
            change(&mut service, &mut pool);
            settings.services.insert("dns".to_owned(), service);
            settings.pools.insert("name".to_owned(), pool);
            check(&settings).err().map(|refusal| refusal.to_string())
        };
        let one_way: fn(&mut ServiceSettings, &mut PoolSettings) = |_, pool| pool.flows.one_way = true;
        let v1: fn(&mut ServiceSettings, &mut PoolSettings) = |_, pool| pool.send_proxy = Some(SendProxy::V1);
        for protocol in [Tcp, TcpAndUdp] {
            assert_eq!(
                together(protocol, one_way).as_deref(),
                Some("one_way: pool name is one-way, and service dns speaks TCP, which goes both ways")
            );
        }
        for protocol in [Udp, TcpAndUdp] {
            assert_eq!(
                together(protocol, v1).as_deref(),
                Some("send_proxy: pool name gives v1, and service dns speaks UDP: in datagrams there is v2 alone")
            );
        }
        assert_eq!((together(Udp, one_way), together(Tcp, v1)), (None, None));
        let answers: fn(&mut ServiceSettings, &mut PoolSettings) = |service, _| {
            service.flows.answers = NonZeroU32::new(1);
        };
        assert_eq!(together(Udp, answers), None);
        assert_eq!(
            together(Udp, |service, pool| {
                service.flows.answers = NonZeroU32::new(1);
                pool.flows.one_way = true;
            })
            .as_deref(),
            Some("answers: service dns has it, and pool name is one-way: no flow could be complete")
        );
        let first: fn(&mut ServiceSettings, &mut PoolSettings) = |_, pool| {
            pool.flows.one_way = true;
            pool.flows.send_proxy_in = HeaderScope::FirstDatagram;
        };
        assert_eq!(together(Udp, first), None, "there is no header");
        assert_eq!(
            together(Udp, |_, pool| {
                pool.flows.one_way = true;
                pool.flows.send_proxy_in = HeaderScope::FirstDatagram;
                pool.send_proxy = Some(SendProxy::V2 { crc32c: false, unique_id: false });
            })
            .as_deref(),
            Some("send_proxy_in: a pool that is one-way has no flows, and so no first datagrams")
        );
        let timeout = |time| {
            let mut service = ServiceSettings::new(vec!["0.0.0.0:53".parse().expect("an address")], "name");
            service.flows.timeout_ms = NonZeroU64::new(time).expect("not 0");
            check_service(&service, &[]).err().map(|refusal| refusal.to_string())
        };
        assert_eq!((timeout(100), timeout(86_400_000)), (None, None));
        for wrong in [99, 86_400_001] {
            assert_eq!(timeout(wrong).as_deref(), Some("flow_timeout: it is from 100ms to 1day"));
        }
    }

    #[test]
    fn two_services_may_have_one_port_where_they_share_no_transport() {
        use Protocol::{Tcp, TcpAndUdp, Udp};
        let of = |one, other| {
            let mut settings = Settings::default();
            settings.pools.insert("web".to_owned(), PoolSettings::default());
            for (name, protocol, listen) in [("a", one, "0.0.0.0:53"), ("b", other, "127.0.0.1:53")] {
                let service = ServiceSettings::new(vec![listen.parse().expect("an address")], "web");
                settings.services.insert(name.to_owned(), ServiceSettings { protocol, ..service });
            }
            check(&settings).err().map(|refusal| refusal.to_string())
        };
        assert_eq!((of(Tcp, Udp), of(Udp, Tcp)), (None, None));
        for (one, other) in [(Tcp, Tcp), (Udp, Udp), (TcpAndUdp, Tcp), (Udp, TcpAndUdp)] {
            assert_eq!(of(one, other).as_deref(), Some("service a listens at 127.0.0.1:53"));
        }
    }

    #[test]
    fn a_server_is_the_balancer_where_it_listens_with_what_the_server_is_spoken_to_by() {
        let of = |listening: Protocol, spoken: Option<Protocol>| {
            let mut settings = Settings::default();
            let server = "127.0.0.1:53".parse().expect("an address");
            let with_server = PoolSettings { servers: [(server, ServerSettings::default())].into(), ..<_>::default() };
            settings.pools = [("a".to_owned(), PoolSettings::default()), ("b".to_owned(), with_server)].into();
            let mut serve = |name: &str, listen: &str, protocol| {
                let service = ServiceSettings::new(vec![listen.parse().expect("an address")], name);
                settings.services.insert(name.to_owned(), ServiceSettings { protocol, ..service });
            };
            serve("a", "0.0.0.0:53", listening);
            if let Some(protocol) = spoken {
                serve("b", "127.0.0.1:54", protocol);
            }
            check(&settings)
        };
        for listening in Protocol::ALL {
            assert_eq!(of(listening, None), Ok(()), "nobody uses it");
            for spoken in Protocol::ALL {
                assert_eq!(of(listening, Some(spoken)).is_err(), listening.overlaps(spoken), "{listening} {spoken}");
            }
        }
    }

    #[test]
    fn with_both_protocols_there_is_one_port() {
        for protocol in Protocol::ALL {
            let service = ServiceSettings::new(vec!["127.0.0.1:0".parse().expect("an address")], "web");
            let refused = check_service(&ServiceSettings { protocol, ..service }, &[]);
            assert_eq!(refused.is_err(), protocol == Protocol::TcpAndUdp, "{protocol}");
        }
    }

    #[test]
    fn connections_come_from_where_they_can() {
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("an address")).collect();
        let source = |texts: &[&str]| server_refused(|side| side.source = addresses(texts));
        assert_eq!(source(&["10.0.0.1", "2001:db8::1"]), None);
        assert_eq!(source(&["0.0.0.0"]).as_deref(), Some("source: no connection can come from 0.0.0.0"));
        assert_eq!(source(&["10.0.0.1", "ff02::1"]).as_deref(), Some("source: no connection can come from ff02::1"));
        assert_eq!(source(&["10.0.0.1", "::ffff:10.0.0.1"]).as_deref(), Some("source: ::ffff:10.0.0.1 is there twice"));
        let many =
            |count: u8| server_refused(|side| side.source = (1..=count).map(|last| [10, 0, 0, last].into()).collect());
        assert_eq!(many(64), None);
        assert_eq!(many(65).as_deref(), Some("source: there may be 64 addresses at most"));
        assert_eq!(server_refused(|side| side.transparent = true), None);
        let both = server_refused(|side| {
            side.transparent = true;
            side.source = addresses(&["10.0.0.1"]);
        });
        let fault = "source: it does not go together with transparent: both say where connections come from";
        assert_eq!(both.as_deref(), Some(fault));
    }

    #[test]
    fn names_of_the_kernel_are_looked_at() {
        let device = |name: &str| server_refused(|side| side.device = Some(name.to_owned()));
        assert_eq!(device("eth0"), None);
        assert_eq!(device("../eth0").as_deref(), Some("device: it is no name of a network device"));
        let congestion = |name: &str| client_refused(|side| side.socket.congestion = Some(name.to_owned()));
        assert_eq!(congestion("bbr"), None);
        assert_eq!(congestion("b b r").as_deref(), Some("congestion: it is no name of a congestion control"));
    }

    fn in_a_row(number: u64) -> NonZeroU32 {
        NonZeroU32::new(number as u32).expect("not 0")
    }

    #[test]
    fn a_server_is_checked_where_somebody_can_be() {
        let server = |text: &str| {
            let check_address = Some(text.parse().expect("an address"));
            let settings = ServerSettings { check_address, ..ServerSettings::default() };
            check_server("10.0.0.1:80".parse().expect("an address"), &settings).map_err(|refusal| refusal.to_string())
        };
        assert_eq!(server("10.0.0.2:81"), Ok(()));
        assert_eq!(server("10.0.0.2:0"), Err("check_address: port 0 cannot be connected to".to_owned()));
        assert_eq!(server("224.0.0.1:80"), Err("check_address: it is a multicast group, not one host".to_owned()));
        // A listener of our own is no circle.
        let mut settings = Settings::default();
        let mut pool = PoolSettings::default();
        let check_address = Some("127.0.0.1:80".parse().expect("an address"));
        let checked = ServerSettings { check_address, ..ServerSettings::default() };
        pool.servers.insert("10.0.0.1:80".parse().expect("an address"), checked);
        settings.pools.insert("web".to_owned(), pool);
        let service = ServiceSettings::new(vec!["0.0.0.0:80".parse().expect("an address")], "web");
        settings.services.insert("web".to_owned(), service);
        assert_eq!(check(&settings), Ok(()));
    }
}

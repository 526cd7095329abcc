//! From the tables of a configuration file to settings: which sections there are, what each key means, and what must hold
//! between them. Everything is walked through, whatever is wrong, and `Faults` keeps the first mistakes. `file` calls it.
//! What a pool says of the health of its servers is in `health`, what services and pools say of connections in
//! `connection`, and of datagrams in `flow`.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use wire::control::MAX_SERVERS;
use wire::settings::{
    DEFAULT_CLIENT_SUBNET_IPV6, DEFAULT_PROXY_TIMEOUT_MS, HashKey, OF_CONSISTENT_HASH, Policy, PoolSettings, Protocol,
    SendProxy, ServerSettings, ServiceSettings, Settings, Transport, is_name,
};

use super::file::File;
use super::flow::User;
use super::listens::{Holder, Listens};
use super::section::{Faults, Named, Path, Section, line};
use super::{connection, flow, health, value};

/// The keys of each section.
pub(super) const ROOT: &[&str] = &["balancer", "service", "pool"];
/// Of `[balancer]`.
pub(super) const BALANCER: &[&str] = &["max_sessions", "watch"];
/// Of `[service.NAME]`.
pub(super) const SERVICE: &[&str] = &[
    "listen",
    "protocol",
    "pool",
    "max_sessions",
    "sessions_per_second",
    "sessions_per_client",
    "client_subnet_ipv6",
    "freebind",
    "allow",
    "allow_file",
    "deny",
    "deny_file",
    "accept_proxy",
    "proxy_timeout",
    "splice",
    "idle_timeout",
    "half_closed_timeout",
    "max_age",
    "backlog",
    "defer_accept",
    "fast_open",
    "keepalive",
    "user_timeout",
    "congestion",
    "send_buffer",
    "receive_buffer",
    "flow_timeout",
    "requests",
    "answers",
    "accept_proxy_in",
];
/// Of `[pool.NAME]`.
pub(super) const POOL: &[&str] = &[
    "policy",
    "key",
    "subnet_ipv4",
    "subnet_ipv6",
    "max_load",
    "points_per_weight",
    "slow_start",
    "send_proxy",
    "send_proxy_crc32c",
    "send_proxy_unique_id",
    "check",
    "check_send",
    "check_send_hex",
    "check_expect",
    "check_expect_hex",
    "check_method",
    "check_path",
    "check_host",
    "check_status",
    "check_dns_name",
    "check_dns_type",
    "check_interval",
    "check_undecided_interval",
    "check_down_interval",
    "check_timeout",
    "check_rise",
    "check_fall",
    "check_port",
    "check_initial",
    "eject_failures",
    "eject_time",
    "eject_max_time",
    "eject_max_percent",
    "when_all_down",
    "on_down",
    "connect_timeout",
    "tries",
    "replay",
    "source",
    "transparent",
    "fast_open",
    "mark",
    "device",
    "keepalive",
    "user_timeout",
    "congestion",
    "send_buffer",
    "receive_buffer",
    "one_way",
    "per_datagram",
    "flows_on_loss",
    "flows_on_return",
    "send_proxy_in",
    "path_mtu",
    "servers",
];
/// Of a server.
pub(super) const SERVER: &[&str] = &["address", "weight", "state", "max_sessions", "backup", "check_address"];

/// The keys of a pool that mean something for the key `client-subnet` alone.
const OF_CLIENT_SUBNET: [&str; 2] = ["subnet_ipv4", "subnet_ipv6"];
/// Those that mean something for the header of version 2 alone.
const OF_SEND_PROXY_V2: [&str; 2] = ["send_proxy_crc32c", "send_proxy_unique_id"];

/// What a file is without anything that is wrong in it.
pub(super) fn read(document: &DeTable<'_>, faults: &mut Faults<'_>) -> File {
    let root = Section::open(Path::root(), 0, document, ROOT, faults);
    let mut file = File { settings: Settings::default(), watch: false };
    if let Some((at, table)) = table(&root, "balancer", faults) {
        let section = Section::open(root.path.key("balancer"), at, table, BALANCER, faults);
        file.settings.max_sessions = section.take("max_sessions", value::limit_64, faults);
        file.watch = section.take("watch", value::flag, faults).unwrap_or_default();
    }
    let pools = root.tables("pool", faults);
    let names = pools.iter().map(|pool| pool.name).collect();
    let mut listens = Listens::default();
    let (mut used, mut users) = (HashSet::new(), Vec::new());
    for service in root.tables("service", faults) {
        let path = named(&root.path.key("service"), service, faults);
        let (settings, user) = read_service(path, service, &names, &mut listens, faults);
        used.insert(settings.pool.clone());
        users.extend(user);
        file.settings.services.insert(service.name.to_owned(), settings);
    }
    if file.settings.services.is_empty() && faults.none_yet() {
        faults.note(0, || "no service is there; a file has a section [service.NAME] with listen and pool".to_owned());
    }
    // A service with a mistake may have meant any pool.
    let services_are_right = faults.none_yet();
    for pool in pools {
        let path = named(&root.path.key("pool"), pool, faults);
        if services_are_right && !used.contains(pool.name) {
            faults.note(pool.at, || format!("{path}: no service uses this pool"));
        }
        file.settings.pools.insert(pool.name.to_owned(), read_pool(path, pool, &listens, &users, faults));
    }
    file
}

/// The path of a section with a name, which has to be one.
fn named(path: &Path, named: Named<'_, '_>, faults: &mut Faults<'_>) -> Path {
    let path = path.key(named.name);
    if let Err(fault) = value::check_name(named.name) {
        faults.note(named.at, || format!("{path}: {fault}"));
    }
    path
}

/// The table of a key, and where it is.
fn table<'d, 'i>(section: &Section<'d, 'i>, key: &str, faults: &mut Faults<'_>) -> Option<(usize, &'d DeTable<'i>)> {
    let (value, at) = section.value(key).zip(section.place(key))?;
    if let DeValue::Table(table) = value.get_ref() {
        return Some((at, table));
    }
    faults.note(at, || format!("{}: {}", section.path.key(key), value::unexpected("a table", value.get_ref())));
    None
}

/// A service, and what its pool has to suit if that is known.
fn read_service<'d>(
    path: Path,
    named: Named<'d, '_>,
    pools: &BTreeSet<&str>,
    listens: &mut Listens<'d>,
    faults: &mut Faults<'_>,
) -> (ServiceSettings, Option<User<'d>>) {
    let section = Section::open(path, named.at, named.table, SERVICE, faults);
    section.require("listen", "where clients connect, an address and a port such as \"0.0.0.0:80\"", faults);
    section.require("pool", "the name of the pool that serves it", faults);
    section.not_empty("listen", "give an address and a port such as \"0.0.0.0:80\"", faults);
    section.not_empty("allow", "that would keep everybody out; to let everybody in leave the key out", faults);
    if section.value("accept_proxy").is_none() {
        let with = "accept_proxy, the networks whose connections begin with a PROXY protocol header";
        section.refuse(&["proxy_timeout", "accept_proxy_in"], with, faults);
    }
    if section.value("sessions_per_client").is_none() {
        section.refuse(&["client_subnet_ipv6"], "sessions_per_client, whose clients it is about", faults);
    }
    let protocol = section.take("protocol", value::protocol, faults);
    // What a wrong one was to be is not known, and so not what goes with it.
    let known = protocol.or(section.value("protocol").is_none().then_some(Protocol::Tcp));
    if let Some(protocol) = known {
        flow::check_protocol(&section, protocol, faults);
    }

    let listen = section.list("listen", value::listen_address, faults);
    for (index, address) in listen.iter().enumerate() {
        let at = address.span().start;
        let holder = Holder { service: named.name, address: *address.get_ref(), at };
        if known == Some(Protocol::TcpAndUdp) && holder.address.port() == 0 {
            faults.note(at, || {
                let path = section.path.key("listen");
                format!(
                    "{path}: with protocol = \"tcp+udp\" a port has to be given: for port 0 the system would choose two"
                )
            });
        }
        let twice = || listen[..index].iter().find(|other| other.get_ref() == address.get_ref());
        // Addresses with port 0 do not collide, but two times the same one is a slip all the same.
        let of_port_0 = if holder.address.port() == 0 { twice() } else { None };
        let before = of_port_0.map(|other| Holder { at: other.span().start, ..holder });
        let claim = || known.and_then(|protocol| listens.claim(protocol, holder).err());
        if let Some(other) = before.or_else(claim) {
            let text = faults.text();
            faults.note(at, || format!("{}: {}", section.path.key("listen"), collision(text, holder, other)));
        }
    }
    let pool = section.take_spanned("pool", value::pool_name, faults);
    if let Some(pool) = pool.as_ref().filter(|pool| !pools.contains(pool.get_ref().as_str())) {
        faults.note(pool.span().start, || {
            format!("{}: {}", section.path.key("pool"), no_such_pool(pool.get_ref(), pools))
        });
    }
    let user =
        known.zip(pool.as_ref()).map(|(protocol, pool)| User::of(&section, named.name, protocol, pool.get_ref()));
    let settings = ServiceSettings {
        protocol: known.unwrap_or(Protocol::Tcp),
        listen: listen.into_iter().map(Spanned::into_inner).collect(),
        pool: pool.map(Spanned::into_inner).unwrap_or_default(),
        max_sessions: section.take("max_sessions", value::limit_64, faults),
        sessions_per_second: section.take("sessions_per_second", value::limit_32, faults),
        sessions_per_client: section.take("sessions_per_client", value::limit_32, faults),
        allow: section.list("allow", value::network, faults).into_iter().map(Spanned::into_inner).collect(),
        deny: section.list("deny", value::network, faults).into_iter().map(Spanned::into_inner).collect(),
        accept_proxy: section
            .list("accept_proxy", value::network, faults)
            .into_iter()
            .map(Spanned::into_inner)
            .collect(),
        proxy_timeout_ms: section
            .take("proxy_timeout", value::proxy_timeout, faults)
            .unwrap_or(DEFAULT_PROXY_TIMEOUT_MS),
        splice: section.take("splice", value::flag, faults).unwrap_or(true),
        client_side: connection::read_client_side(&section, faults),
        flows: flow::read_flows(&section, faults),
        client_subnet_ipv6: section
            .take("client_subnet_ipv6", value::prefix_ipv6, faults)
            .unwrap_or(DEFAULT_CLIENT_SUBNET_IPV6),
        freebind: section.take("freebind", value::flag, faults).unwrap_or(false),
        allow_file: section.take("allow_file", value::list_file, faults),
        deny_file: section.take("deny_file", value::list_file, faults),
    };
    (settings, user)
}

fn collision(text: &str, new: Holder<'_>, other: Holder<'_>) -> String {
    let line = line(text, other.at);
    let of_whom = match new.service == other.service {
        true => "this service".to_owned(),
        false => format!("service {}", value::shown(other.service)),
    };
    match new.address == other.address {
        true => format!("{} is an address of {of_whom} already, in line {line}", new.address),
        false => format!(
            "{} cannot be bound beside {} of {of_whom} in line {line}, which takes its connections",
            new.address, other.address
        ),
    }
}

fn no_such_pool(name: &str, pools: &BTreeSet<&str>) -> String {
    // Others are mistakes themselves, and may be no words for a message.
    let names: Vec<&str> = pools.iter().copied().filter(|name| is_name(name)).collect();
    let shown = value::shown(name);
    match value::nearest(name, names.iter().copied()) {
        Some(near) => format!("there is no pool {shown}; did you mean \"{near}\"?"),
        None if names.is_empty() => format!("there is no pool {shown}; a pool is a section [pool.NAME]"),
        None => format!("there is no pool {shown}. Pools here: {}", value::listed(&names)),
    }
}

fn read_pool(
    path: Path,
    named: Named<'_, '_>,
    listens: &Listens<'_>,
    users: &[User<'_>],
    faults: &mut Faults<'_>,
) -> PoolSettings {
    let section = Section::open(path, named.at, named.table, POOL, faults);
    let default = PoolSettings::default();
    let policy = section.take("policy", value::policy, faults);
    let key = section.take("key", value::hash_key, faults);
    let lengths = [
        section.take("subnet_ipv4", value::prefix_ipv4, faults),
        section.take("subnet_ipv6", value::prefix_ipv6, faults),
    ];
    let send_proxy = section.take("send_proxy", value::send_proxy, faults);
    let [crc32c, unique_id] = OF_SEND_PROXY_V2.map(|key| section.take(key, value::flag, faults).unwrap_or_default());
    let pool = PoolSettings {
        policy: policy.unwrap_or(default.policy),
        key: match key {
            Some(HashKey::ClientSubnet { ipv4, ipv6 }) => {
                HashKey::ClientSubnet { ipv4: lengths[0].unwrap_or(ipv4), ipv6: lengths[1].unwrap_or(ipv6) }
            }
            key => key.unwrap_or(default.key),
        },
        max_load: section.take("max_load", value::load_factor, faults),
        points_per_weight: section
            .take("points_per_weight", value::points_per_weight, faults)
            .unwrap_or(default.points_per_weight),
        slow_start_ms: section.take("slow_start", value::slow_start, faults).unwrap_or(default.slow_start_ms),
        send_proxy: send_proxy.map(|how| match how {
            SendProxy::V1 => SendProxy::V1,
            SendProxy::V2 { .. } => SendProxy::V2 { crc32c, unique_id },
        }),
        health: health::read(&section, faults),
        server_side: connection::read_server_side(&section, faults),
        flows: flow::read_flow_policy(&section, faults),
        servers: read_servers(&section, listens, &spoken(named.name, users), faults),
    };
    // What a wrong policy or key was to be is not known, and so not what goes with it.
    if policy.is_some() && pool.policy != Policy::ConsistentHash {
        let instead = format!("policy = \"consistent-hash\", and the policy of this pool is \"{}\"", pool.policy);
        section.refuse(&OF_CONSISTENT_HASH, &instead, faults);
    } else if !matches!(pool.key, HashKey::ClientSubnet { .. }) && (key.is_some() || section.value("key").is_none()) {
        let instead = format!("key = \"client-subnet\", and the key of this pool is \"{}\"", pool.key.name());
        section.refuse(&OF_CLIENT_SUBNET, &instead, faults);
    }
    if !matches!(pool.send_proxy, Some(SendProxy::V2 { .. }))
        && (send_proxy.is_some() || section.value("send_proxy").is_none())
    {
        section.refuse(&OF_SEND_PROXY_V2, "send_proxy = \"v2\"", faults);
        section.refuse(&["send_proxy_in"], "send_proxy = \"v2\"", faults);
    }
    flow::check_users(&section, &pool, users.iter().filter(|user| user.pool == named.name), faults);
    let weights: u64 = pool.servers.values().map(|server| u64::from(server.weight)).sum();
    let points = weights.saturating_mul(u64::from(pool.points_per_weight.get()));
    if pool.policy == Policy::ConsistentHash && points > ring::MAX_POINTS as u64 {
        faults.note(section.at, || {
            format!(
                "{}: its ring would have {points} points, {} for each of {weights} of weight, and may have {}; give the \
                 servers smaller weights in the same proportion, or fewer points_per_weight",
                section.path,
                pool.points_per_weight,
                ring::MAX_POINTS
            )
        });
    }
    pool
}

/// What the services of a pool speak to its servers; everything where that is not known.
fn spoken(pool: &str, users: &[User<'_>]) -> Vec<Transport> {
    let is_spoken = |transport: &Transport| users.iter().any(|user| user.pool == pool && user.protocol.has(*transport));
    let all = Protocol::TcpAndUdp.transports();
    let spoken: Vec<Transport> = all.iter().copied().filter(is_spoken).collect();
    if spoken.is_empty() { all.to_vec() } else { spoken }
}

fn read_servers(
    pool: &Section<'_, '_>,
    listens: &Listens<'_>,
    spoken: &[Transport],
    faults: &mut Faults<'_>,
) -> BTreeMap<SocketAddr, ServerSettings> {
    const EXAMPLE: &str = "{ address = \"10.0.0.1:8080\", weight = 1 }";
    let mut servers = BTreeMap::new();
    let Some(value) = pool.value("servers") else { return servers };
    let path = pool.path.key("servers");
    let DeValue::Array(array) = value.get_ref() else {
        let expected = format!("an array of tables such as [{EXAMPLE}]");
        faults.note(value.span().start, || format!("{path}: {}", value::unexpected(&expected, value.get_ref())));
        return servers;
    };
    if array.len() > MAX_SERVERS {
        faults.note(value.span().start, || {
            format!("{path}: {} servers are more than a pool may have, {MAX_SERVERS}", array.len())
        });
        return servers;
    }
    let mut places = HashMap::new();
    for (index, value) in array.iter().enumerate() {
        let (path, at) = (path.element(index), value.span().start);
        let DeValue::Table(table) = value.get_ref() else {
            let expected = format!("a table such as {EXAMPLE}");
            faults.note(at, || format!("{path}: {}", value::unexpected(&expected, value.get_ref())));
            continue;
        };
        let section = Section::open(path, at, table, SERVER, faults);
        section.require("address", "an IP address and a port such as \"10.0.0.1:8080\"", faults);
        let default = ServerSettings::default();
        let server = ServerSettings {
            weight: section.take("weight", value::weight, faults).unwrap_or(default.weight),
            state: section.take("state", value::admin_state, faults).unwrap_or(default.state),
            max_sessions: section.take("max_sessions", value::limit_64, faults),
            backup: section.take("backup", value::flag, faults).unwrap_or(default.backup),
            check_address: section.take("check_address", value::server_address, faults),
        };
        let Some(address) = section.take_spanned("address", value::server_address, faults) else { continue };
        let (at, address) = (address.span().start, address.into_inner());
        let text = faults.text();
        if let Some(holder) = listens.answers_at(address, spoken) {
            faults.note(at, || {
                format!(
                    "{}: {address} is the balancer itself, which listens on {} for service {} in line {}; it would \
                     connect to itself for ever",
                    section.path.key("address"),
                    holder.address,
                    value::shown(holder.service),
                    line(text, holder.at)
                )
            });
        }
        match servers.entry(address) {
            Entry::Vacant(entry) => {
                entry.insert(server);
                places.insert(address, at);
            }
            Entry::Occupied(_) => faults.note(at, || {
                let line = places.get(&address).map_or(0, |at| line(text, *at));
                format!("{}: {address} is in this pool already, in line {line}", section.path.key("address"))
            }),
        }
    }
    servers
}

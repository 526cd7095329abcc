//! Turns the configuration files of two older load balancers into ours. What has no counterpart is not dropped: it becomes
//! a comment at its place, and a note says so. It reads and writes texts, no files: that is `command`'s part.
//!
//! One kind of file has a `[frontend]` with `bind_on` and `[[frontend.backend]]` with `forward_to`; the other (Convey) has
//! `[frontends.NAME]` with `listen_addr` and `backend`, and `[backends.NAME]` with servers. Both pick servers in turn.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use toml::{Table, Value};
use wire::address::{answers_at, canonical, check_address, collide};
use wire::control::MAX_WEIGHT;
use wire::health::MAX_TIME_MS;
use wire::settings::{DEFAULT_POOL, DEFAULT_SERVICE, MAX_NAME, is_name};

/// A file that was converted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Converted {
    /// The text of our file.
    pub(crate) toml: String,
    /// What is not in it, or in another way, a line each.
    pub(crate) notes: Vec<String>,
}

/// The formats.
const KNOWN: &str = "Two formats can be imported, both TOML: that with [frontend], bind_on and [[frontend.backend]]; and \
                     Convey's, with [frontends.NAME], listen_addr and [backends.NAME]. Files of other balancers (HAProxy, \
                     nginx, Envoy, Traefik) cannot be imported; docs/configuration.md says what a file is made of";

/// Why a file cannot be converted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ImportError {
    /// It is no TOML.
    #[error("line {line}: this is no TOML: {fault}. {}", KNOWN)]
    Toml {
        /// Where, from 1.
        line: usize,
        /// What the parser says.
        fault: String,
    },
    /// It is a file of ours.
    #[error("this is a configuration of this balancer already; `balancerd --check FILE` says whether it is valid")]
    Ours,
    /// It has sections of both kinds of file.
    #[error(
        "the file has both [frontend] and [frontends.NAME] or [backends.NAME], which are of two programs; import one at a time"
    )]
    Mixed,
    /// It has sections of neither.
    #[error("the file has no section of a format that can be imported. {}", KNOWN)]
    Neither,
    /// None of its services can be one of ours.
    #[error("the file has no service that can be taken over: {reason}")]
    NoService {
        /// Why, of the first.
        reason: String,
    },
}

/// Converts the text of a file.
///
/// # Errors
/// When it is not of one of the two kinds, or without a service.
pub(crate) fn convert(text: &str) -> Result<Converted, ImportError> {
    let table: Table = toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.as_bytes().get(..span.start)).unwrap_or_default();
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        ImportError::Toml { line, fault: error.message().replace('\n', " ") }
    })?;
    let has = |key| table.contains_key(key);
    match (has("frontend"), has("frontends") || has("backends")) {
        (true, true) => Err(ImportError::Mixed),
        (true, false) => of_one_frontend(&table),
        (false, true) => of_frontends(&table),
        (false, false) if has("service") => Err(ImportError::Ours),
        (false, false) => Err(ImportError::Neither),
    }
}

/// A service of the old file, as ours would have it.
struct Service {
    /// What the old file calls it.
    old: String,
    name: String,
    /// Where it listens, or why that is no place.
    listen: Result<SocketAddr, String>,
    /// The old name of its pool.
    pool: Option<String>,
    comments: Vec<String>,
}

/// The sections of a file of Convey.
const FRONTENDS: &str = "[frontends.NAME] and [backends.NAME]";

/// The old name of what turns checks on, by connecting every so many seconds.
const CHECK_INTERVAL: &str = "health_check_interval";

/// Convey took a server out and back after one check, gave a check three seconds, and gave
/// nobody to a server that had not been checked.
const CHECK_AS_BEFORE: &str = "check_timeout = \"3s\"\ncheck_fall = 1\ncheck_rise = 1\ncheck_initial = \"down\"\n";

/// A pool of the old file.
struct Pool {
    /// What the old file calls it.
    old: String,
    name: String,
    comments: Vec<String>,
    /// Seconds from one check to the next, if servers are checked.
    check: Option<u64>,
    servers: Vec<Server>,
}

/// A server of the old file.
struct Server {
    /// What the old file calls it.
    old: String,
    /// Its address as it stands there.
    text: String,
    weight: Option<i64>,
    comments: Vec<String>,
}

/// `[frontend]` with `[[frontend.backend]]`.
fn of_one_frontend(table: &Table) -> Result<Converted, ImportError> {
    let mut notes = Vec::new();
    let Some(frontend) = table["frontend"].as_table() else { return Err(ImportError::Neither) };
    let mut pool = Pool {
        old: "frontend".to_owned(),
        name: DEFAULT_POOL.to_owned(),
        comments: Vec::new(),
        check: None,
        servers: Vec::new(),
    };
    match frontend.get("backend") {
        None => {}
        Some(Value::Array(backends)) => {
            for (index, backend) in backends.iter().enumerate() {
                let old = format!("frontend.backend[{index}]");
                pool.servers.extend(server(&old, backend, "forward_to", None, &mut pool.comments, &mut notes));
            }
        }
        Some(other) => pool.comments.push(unknown("frontend", "backend", other, &mut notes)),
    }
    let service = Service {
        old: "frontend".to_owned(),
        name: DEFAULT_SERVICE.to_owned(),
        listen: listen(frontend.get("bind_on"), "bind_on"),
        pool: Some(pool.old.clone()),
        comments: rest("frontend", frontend, &["bind_on", "backend"], &mut notes),
    };
    let comments = rest("", table, &["frontend"], &mut notes);
    write("[frontend]", &comments, &[service], &[pool], notes)
}

/// `[frontends.NAME]` and `[backends.NAME]`.
fn of_frontends(table: &Table) -> Result<Converted, ImportError> {
    let mut notes = Vec::new();
    let mut comments = rest("", table, &["frontends", "backends"], &mut notes);
    let mut pools = Vec::new();
    let mut names = BTreeSet::new();
    for (old, backend) in tables(table, "backends", &mut comments, &mut notes) {
        let path = format!("backends.{old}");
        let name = cleaned(old, &path, &mut names, &mut notes);
        let check = backend.get(CHECK_INTERVAL).and_then(seconds);
        let known: &[&str] = if check.is_some() { &["servers", CHECK_INTERVAL] } else { &["servers"] };
        let mut own = rest(&path, backend, known, &mut notes);
        let mut servers = Vec::new();
        for (name, value) in tables_or_others(backend, "servers", &path, &mut own, &mut notes) {
            servers.extend(server(&format!("{path}.servers.{name}"), value, "addr", Some(name), &mut own, &mut notes));
        }
        if !servers.is_empty() {
            notes.push(format!("{path}: servers have no names here; theirs are comments"));
        }
        pools.push(Pool { old: old.clone(), name, comments: own, check, servers });
    }
    let mut services = Vec::new();
    let mut names = BTreeSet::new();
    for (old, frontend) in tables(table, "frontends", &mut comments, &mut notes) {
        let path = format!("frontends.{old}");
        let name = cleaned(old, &path, &mut names, &mut notes);
        let mut own = rest(&path, frontend, &["listen_addr", "backend"], &mut notes);
        let pool = match frontend.get("backend") {
            Some(Value::String(pool)) => Some(pool.clone()),
            Some(other) => {
                own.push(unknown(&path, "backend", other, &mut notes));
                None
            }
            None => None,
        };
        let listen = listen(frontend.get("listen_addr"), "listen_addr");
        services.push(Service { old: path, name, listen, pool, comments: own });
    }
    write(FRONTENDS, &comments, &services, &pools, notes)
}

/// The tables below a key. What is none becomes a comment.
fn tables<'t>(
    table: &'t Table,
    key: &str,
    comments: &mut Vec<String>,
    notes: &mut Vec<String>,
) -> Vec<(&'t String, &'t Table)> {
    let mut found = Vec::new();
    for (name, value) in tables_or_others(table, key, "", comments, notes) {
        match value.as_table() {
            Some(table) => found.push((name, table)),
            None => comments.push(unknown(key, name, value, notes)),
        }
    }
    found
}

/// What is in the table of a key.
fn tables_or_others<'t>(
    table: &'t Table,
    key: &str,
    path: &str,
    comments: &mut Vec<String>,
    notes: &mut Vec<String>,
) -> Vec<(&'t String, &'t Value)> {
    match table.get(key) {
        None => Vec::new(),
        Some(Value::Table(inner)) => inner.iter().collect(),
        Some(other) => {
            comments.push(unknown(path, key, other, notes));
            Vec::new()
        }
    }
}

/// A server with an address in some form; anything else becomes a comment of its pool.
fn server(
    old: &str,
    value: &Value,
    address: &str,
    name: Option<&str>,
    comments: &mut Vec<String>,
    notes: &mut Vec<String>,
) -> Option<Server> {
    let table = value.as_table();
    let Some((table, text)) = table.and_then(|table| Some((table, table.get(address)?.as_str()?))) else {
        notes.push(format!("{old}: no {address} with an address in it; it is a comment"));
        comments.push(assignment(old, value));
        return None;
    };
    // One of the two kinds has no weights.
    let known: &[&str] = if name.is_some() { &[address, "weight"] } else { &[address] };
    let mut own: Vec<String> = name.map(|name| text_of(name).to_owned()).into_iter().collect();
    own.extend(rest(old, table, known, notes));
    let mut weight = None;
    if let Some(value) = table.get("weight").filter(|_| name.is_some()) {
        weight = value.as_integer().filter(|weight| *weight >= 0);
        if weight.is_none() {
            own.push(unknown(old, "weight", value, notes));
        }
    }
    Some(Server { old: old.to_owned(), text: text.to_owned(), weight, comments: own })
}

/// Seconds that our file takes for an interval.
fn seconds(value: &Value) -> Option<u64> {
    let seconds = u64::try_from(value.as_integer()?).ok()?;
    (1..=MAX_TIME_MS / 1000).contains(&seconds).then_some(seconds)
}

/// The address of a service, or why there is none.
fn listen(value: Option<&Value>, key: &str) -> Result<SocketAddr, String> {
    match value {
        None => Err(format!("{key} is missing")),
        Some(Value::String(text)) => text.parse().map_err(|_| no_address(text)),
        Some(other) => Err(format!("{key} is {other}, not an address")),
    }
}

fn no_address(text: &str) -> String {
    match text.rsplit_once(':') {
        Some((host, _)) if host.starts_with(char::is_alphabetic) => {
            format!("{text:?} has the name of a host, and here addresses are IP addresses")
        }
        _ => format!("{text:?} is no IP address with a port"),
    }
}

/// Everything but the known keys, as comments.
fn rest(path: &str, table: &Table, known: &[&str], notes: &mut Vec<String>) -> Vec<String> {
    let others = table.iter().filter(|(key, _)| !known.contains(&key.as_str()));
    others.map(|(key, value)| unknown(path, key, value, notes)).collect()
}

/// The comment for a key without a counterpart.
fn unknown(path: &str, key: &str, value: &Value, notes: &mut Vec<String>) -> String {
    let whole = if path.is_empty() { text_of(key) } else { format!("{path}.{}", text_of(key)) };
    notes.push(match key {
        CHECK_INTERVAL if path.starts_with("backends.") => {
            format!("{whole}: {value} is no time in seconds, at most a day; it is a comment")
        }
        _ => format!("{whole}: it has no counterpart; it is a comment"),
    });
    assignment(key, value)
}

/// `key = value` as TOML, tables with their headings.
fn assignment(key: &str, value: &Value) -> String {
    let table: Table = [(key.to_owned(), value.clone())].into_iter().collect();
    toml::to_string(&table).unwrap_or_else(|_| format!("{key} = {value}")).trim_end().to_owned()
}

/// A name of ours that is like this one and not taken yet.
fn cleaned(old: &str, path: &str, taken: &mut BTreeSet<String>, notes: &mut Vec<String>) -> String {
    let allowed = |letter: char| if is_name(letter.encode_utf8(&mut [0; 4])) { letter } else { '-' };
    let mut base: String = old.chars().map(allowed).take(MAX_NAME).collect();
    if base.is_empty() {
        base.push_str("unnamed");
    }
    let mut name = base.clone();
    for number in 2.. {
        if taken.insert(name.clone()) {
            break;
        }
        let end = format!("-{number}");
        name = format!("{}{end}", &base[..base.len().min(MAX_NAME - end.len())]);
    }
    if name != old {
        notes.push(format!("{}: its name here is {name}", text_of(path)));
    }
    name
}

/// Puts it all together, and leaves out what our file cannot have.
fn write(
    kind: &str,
    comments: &[String],
    services: &[Service],
    pools: &[Pool],
    mut notes: Vec<String>,
) -> Result<Converted, ImportError> {
    let mut toml = format!("# Imported from a file with {kind}.\n");
    if kind == FRONTENDS {
        toml += "\n# Convey read its file again when it changed.\n[balancer]\nwatch = true\n";
    }
    let names: BTreeMap<&str, &str> = pools.iter().map(|pool| (pool.old.as_str(), pool.name.as_str())).collect();
    let mut listens: Vec<(SocketAddr, &str)> = Vec::new();
    let mut used = BTreeSet::new();
    let mut reason = None;
    for service in services {
        let checked = service.listen.clone().and_then(|listen| {
            let pool = service.pool.as_deref().ok_or("it names no backend")?;
            let pool = *names.get(pool).ok_or_else(|| format!("there is no backend {}", text_of(pool)))?;
            match listens.iter().find(|(other, _)| collide(listen, *other)) {
                Some((other, name)) => Err(format!("{listen} cannot be bound beside {other} of {name}")),
                None => Ok((listen, pool)),
            }
        });
        toml.push('\n');
        match checked {
            Ok((listen, pool)) => {
                listens.push((listen, &service.old));
                used.insert(pool);
                toml += &format!("[service.{}]\n", key(&service.name));
                toml += &commented("", &service.comments);
                toml += &format!("listen = \"{listen}\"\npool = \"{pool}\"\n");
            }
            Err(fault) => {
                let fault = format!("{}: {fault}", text_of(&service.old));
                let mut lines = vec![format!("[service.{}]", key(&service.name))];
                lines.extend(service.comments.iter().cloned());
                toml += &commented("", &[vec![fault.clone()], lines].concat());
                notes.push(format!("{fault}; the service is a comment"));
                reason.get_or_insert(fault);
            }
        }
    }
    if listens.is_empty() {
        let reason = reason.unwrap_or_else(|| "there is none".to_owned());
        return Err(ImportError::NoService { reason });
    }
    for pool in pools {
        let text = pool_text(pool, &listens, &mut notes);
        toml.push('\n');
        if used.contains(pool.name.as_str()) {
            toml += &text;
        } else {
            let fault = format!("no service uses the pool {}", pool.name);
            toml += &commented("", &[format!("{fault}:"), text]);
            notes.push(format!("{fault}; it is a comment"));
        }
    }
    if !comments.is_empty() {
        toml.push('\n');
        toml += &commented("", comments);
    }
    let notes = notes.iter().map(|note| text_of(note)).collect();
    Ok(Converted { toml, notes })
}

fn pool_text(pool: &Pool, listens: &[(SocketAddr, &str)], notes: &mut Vec<String>) -> String {
    let most = pool.servers.iter().filter_map(|server| server.weight).max().unwrap_or_default();
    let scale = |weight: i64| match weight {
        0 => 0,
        _ if most <= i64::from(MAX_WEIGHT) => weight,
        // Rounded; none becomes 0, which would take no clients.
        _ => ((i128::from(weight) * i128::from(MAX_WEIGHT) + i128::from(most) / 2) / i128::from(most)).max(1) as i64,
    };
    if most > i64::from(MAX_WEIGHT) {
        notes.push(format!(
            "pool {}: weights go up to {MAX_WEIGHT} here; they are smaller in the same proportion, rounded",
            pool.name
        ));
    }
    let mut text = format!("[pool.{}]\npolicy = \"round-robin\"\n", key(&pool.name));
    text += &commented("", &pool.comments);
    if let Some(seconds) = pool.check {
        let interval = wire::quantity::time(seconds.saturating_mul(1000));
        text += &format!("check = \"tcp\"\ncheck_interval = \"{interval}\"\n{CHECK_AS_BEFORE}");
    }
    text += "servers = [\n";
    let mut there = BTreeSet::new();
    for server in &pool.servers {
        text += &commented("    ", &server.comments);
        let weight = server.weight.map(|weight| format!(", weight = {}", scale(weight))).unwrap_or_default();
        match server_address(&server.text, listens) {
            Ok(address) if there.insert(address) => text += &format!("    {{ address = \"{address}\"{weight} }},\n"),
            other => {
                let fault = other.map_or_else(|fault| fault, |address| format!("{address} is in this pool already"));
                let line = format!("{{ address = {}{weight} }},", Value::String(server.text.clone()));
                text += &commented("    ", &[fault.clone(), line]);
                notes.push(format!("{}: {fault}; the server is a comment", server.old));
            }
        }
    }
    text + "]\n"
}

/// The address of a server, as long as our file takes it.
fn server_address(text: &str, listens: &[(SocketAddr, &str)]) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| no_address(text))?;
    check_address(address).map_err(|fault| format!("{address} cannot be a server: {fault}"))?;
    if matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0) {
        return Err(format!("{address} cannot be a server: only link-local addresses have an interface"));
    }
    let address = canonical(address);
    match listens.iter().find(|(listen, _)| answers_at(*listen, address)) {
        Some((_, service)) => Err(format!("{address} is where {service} listens; it would connect to itself for ever")),
        None => Ok(address),
    }
}

/// Comments, a line for each of theirs.
fn commented(indent: &str, comments: &[String]) -> String {
    let lines = comments.iter().flat_map(|comment| comment.lines());
    lines.map(|line| format!("{indent}# {}", text_of(line)).trim_end().to_owned() + "\n").collect()
}

/// A name in a heading.
fn key(name: &str) -> String {
    if name.contains('.') { format!("\"{name}\"") } else { name.to_owned() }
}

/// A text without control characters, which neither comments nor terminals take well.
fn text_of(text: &str) -> String {
    let shown = |letter: char| match letter {
        '\t' => "\t".to_owned(),
        letter if letter.is_control() => letter.escape_default().to_string(),
        letter => letter.to_string(),
    };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Converts, and sees to it that what comes out is TOML.
    fn converted(text: &str) -> Converted {
        let converted = convert(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        if let Err(error) = toml::from_str::<Table>(&converted.toml) {
            panic!("{error}\n{}", converted.toml);
        }
        assert!(converted.notes.iter().all(|note| !note.contains('\n')), "{:?}", converted.notes);
        converted
    }

    #[test]
    fn one_frontend_becomes_the_default_service_and_pool() {
        let text = r#"
            [frontend]
            bind_on = "127.0.0.1:8000"
            [[frontend.backend]]
            forward_to = "127.0.0.1:9000"
            [[frontend.backend]]
            forward_to = "127.0.0.1:9001"
        "#;
        let toml = "\
# Imported from a file with [frontend].

[service.default]
listen = \"127.0.0.1:8000\"
pool = \"default\"

[pool.default]
policy = \"round-robin\"
servers = [
    { address = \"127.0.0.1:9000\" },
    { address = \"127.0.0.1:9001\" },
]
";
        assert_eq!(converted(text), Converted { toml: toml.to_owned(), notes: Vec::new() });
    }

    #[test]
    fn frontends_and_backends_become_services_and_pools() {
        let text = r#"
            [frontends.tcp_3000]
            listen_addr = "192.0.2.1:3000"
            backend = "out 3000"

            [backends."out 3000"]
            health_check_interval = 3
            [backends."out 3000".servers.server1]
            addr = "192.0.2.8:8080"
            weight = 10
            [backends."out 3000".servers.server2]
            addr = "web.example:8080"
            zone = "a"

            [backends.spare]
            health_check_interval = 3
            [backends.spare.servers.server1]
            addr = "192.0.2.9:8080"

            [stats]
            port = "7000"
        "#;
        let toml = "\
# Imported from a file with [frontends.NAME] and [backends.NAME].

# Convey read its file again when it changed.
[balancer]
watch = true

[service.tcp_3000]
listen = \"192.0.2.1:3000\"
pool = \"out-3000\"

[pool.out-3000]
policy = \"round-robin\"
check = \"tcp\"
check_interval = \"3s\"
check_timeout = \"3s\"
check_fall = 1
check_rise = 1
check_initial = \"down\"
servers = [
    # server1
    { address = \"192.0.2.8:8080\", weight = 10 },
    # server2
    # zone = \"a\"
    # \"web.example:8080\" has the name of a host, and here addresses are IP addresses
    # { address = \"web.example:8080\" },
]

# no service uses the pool spare:
# [pool.spare]
# policy = \"round-robin\"
# check = \"tcp\"
# check_interval = \"3s\"
# check_timeout = \"3s\"
# check_fall = 1
# check_rise = 1
# check_initial = \"down\"
# servers = [
#     # server1
#     { address = \"192.0.2.9:8080\" },
# ]

# [stats]
# port = \"7000\"
";
        let notes = [
            "stats: it has no counterpart; it is a comment",
            "backends.out 3000: its name here is out-3000",
            "backends.out 3000.servers.server2.zone: it has no counterpart; it is a comment",
            "backends.out 3000: servers have no names here; theirs are comments",
            "backends.spare: servers have no names here; theirs are comments",
            "backends.out 3000.servers.server2: \"web.example:8080\" has the name of a host, and here addresses are IP \
             addresses; the server is a comment",
            "no service uses the pool spare; it is a comment",
        ];
        let converted = converted(text);
        assert_eq!(converted.toml, toml);
        assert_eq!(converted.notes, notes);
    }

    #[test]
    fn what_our_file_does_not_take_is_a_comment_with_its_reason() {
        let text = r#"
            [frontends.a]
            listen_addr = "0.0.0.0:80"
            backend = "x"
            [frontends.b]
            listen_addr = "127.0.0.1:80"
            backend = "x"
            [frontends.c]
            listen_addr = "127.0.0.1:81"
            backend = "y"
            [frontends.d]
            listen_addr = "localhost:82"
            backend = "x"
            [frontends.e]
            listen_addr = "127.0.0.1:83"
            [backends.x.servers]
            one = { addr = "127.0.0.1:80" }
            two = { addr = "10.0.0.1:80", weight = 65535 }
            three = { addr = "[::ffff:10.0.0.1]:80", weight = 1 }
            four = { addr = "10.0.0.2:0" }
            five = { addr = "10.0.0.3:80", weight = 1 }
            six = { addr = "10.0.0.4:80", weight = -1 }
            seven = 7
        "#;
        let converted = converted(text);
        for reason in [
            "frontends.b: 127.0.0.1:80 cannot be bound beside 0.0.0.0:80 of frontends.a; the service is a comment",
            "frontends.c: there is no backend y; the service is a comment",
            "frontends.d: \"localhost:82\" has the name of a host, and here addresses are IP addresses; the service is a comment",
            "frontends.e: it names no backend; the service is a comment",
            "backends.x.servers.one: 127.0.0.1:80 is where frontends.a listens; it would connect to itself for ever; the server is a comment",
            "backends.x.servers.two: 10.0.0.1:80 is in this pool already; the server is a comment",
            "backends.x.servers.four: 10.0.0.2:0 cannot be a server: port 0 cannot be connected to; the server is a comment",
            "backends.x.servers.six.weight: it has no counterpart; it is a comment",
            "backends.x.servers.seven: no addr with an address in it; it is a comment",
            "pool x: weights go up to 256 here; they are smaller in the same proportion, rounded",
        ] {
            assert!(converted.notes.iter().any(|note| note == reason), "{reason} is not in {:#?}", converted.notes);
        }
        let table: Table = toml::from_str(&converted.toml).expect("TOML");
        assert_eq!(table["service"].as_table().expect("services").keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(table["pool"]["x"]["servers"].as_array().expect("servers").len(), 3);
        assert!(converted.toml.contains("{ address = \"10.0.0.3:80\", weight = 1 }"), "{}", converted.toml);
    }

    #[test]
    fn an_interval_that_is_none_is_a_comment() {
        for (interval, taken) in [
            ("1", Some("1s")),
            ("90", Some("1m 30s")),
            ("86400", Some("1day")),
            ("0", None),
            ("86401", None),
            ("-1", None),
            ("1.5", None),
            ("\"3s\"", None),
        ] {
            let text = format!(
                "[frontends.a]\nlisten_addr = \"0.0.0.0:80\"\nbackend = \"x\"\n[backends.x]\n\
                 health_check_interval = {interval}\n"
            );
            let converted = converted(&text);
            let table: Table = toml::from_str(&converted.toml).expect("TOML");
            let pool = &table["pool"]["x"];
            assert_eq!(pool.get("check").and_then(Value::as_str), taken.map(|_| "tcp"), "{interval}");
            assert_eq!(pool.get("check_interval").and_then(Value::as_str), taken, "{interval}");
            let note = format!(
                "backends.x.health_check_interval: {interval} is no time in seconds, at most a day; it is a comment"
            );
            assert_eq!(converted.notes, if taken.is_some() { Vec::new() } else { vec![note] });
        }
    }

    #[test]
    fn names_become_valid_and_stay_different() {
        let mut taken = BTreeSet::new();
        let mut notes = Vec::new();
        let long = "x".repeat(70);
        let names = ["a b", "a-b", "a/b", "ü", "", &long, &format!("{long}y")]
            .map(|old| cleaned(old, &format!("backends.{old}"), &mut taken, &mut notes));
        assert!(names.iter().all(|name| is_name(name)), "{names:?}");
        assert_eq!(names[..5], ["a-b", "a-b-2", "a-b-3", "-", "unnamed"].map(str::to_owned));
        assert_eq!((taken.len(), notes.len()), (7, 7));
    }

    #[test]
    fn control_characters_stay_in_their_comment() {
        let text = "[frontend]\nbind_on = \"127.0.0.1:8000\"\n\"a\\nb\" = \"c\\u0001\\nd\"\n[[frontend.backend]]\nforward_to = \"x\\n]\"\n";
        let converted = converted(text);
        let table: Table = toml::from_str(&converted.toml).expect("TOML");
        assert_eq!(table["service"]["default"].as_table().expect("a service").len(), 2, "{}", converted.toml);
        assert_eq!(table["pool"]["default"]["servers"].as_array().map(Vec::len), Some(0), "{}", converted.toml);
    }

    #[test]
    fn files_that_cannot_be_imported_are_told_apart() {
        let known = |what: &str| format!("{what}. {KNOWN}");
        let neither = known("the file has no section of a format that can be imported");
        let no_toml = known("line 1: this is no TOML: key with no value, expected `=`");
        assert!(KNOWN.contains("[frontend], bind_on") && KNOWN.contains("Convey") && KNOWN.contains("HAProxy"));
        for (text, error) in [
            ("a", no_toml.as_str()),
            ("global\n    maxconn 100\n", no_toml.as_str()),
            ("[pools.a]", neither.as_str()),
            ("", neither.as_str()),
            ("frontend = 1", neither.as_str()),
            (
                "[service.web]",
                "this is a configuration of this balancer already; `balancerd --check FILE` says whether it is valid",
            ),
            (
                "[frontend]\n[backends.a]",
                "the file has both [frontend] and [frontends.NAME] or [backends.NAME], which are of two programs; import one at a time",
            ),
            ("[frontend]", "the file has no service that can be taken over: frontend: bind_on is missing"),
            (
                "[frontend]\nbind_on = 80",
                "the file has no service that can be taken over: frontend: bind_on is 80, not an address",
            ),
            ("[backends.a]", "the file has no service that can be taken over: there is none"),
        ] {
            assert_eq!(convert(text).expect_err(text).to_string(), error);
        }
    }
}

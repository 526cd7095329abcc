//! Writes settings into the text of a configuration file that says others. Only what differs is touched: every edit is a
//! piece of the text that is replaced, so comments, order and format of everything else stay as they are, byte by byte.
//!
//! What goes or gets another value is edited first, and what comes is put into the text that results. Not every way to
//! write TOML is worth an edit of its own: whoever calls this reads the result again and compares.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::ops::Range;

use toml_edit::{Array, Document, InlineTable, Item, Key, Table, TableLike, TomlError, Value};
use wire::Settings;
use wire::address::canonical;
use wire::connection::{ClientSide, ServerSide, SocketSettings};
use wire::health::{CheckKind, CheckText, HealthSettings, HttpCheck, OF_CHECKS, OF_HTTP, OF_SEND};
use wire::quantity;
use wire::settings::{
    AdminState, DEFAULT_PROXY_TIMEOUT_MS, Difference, HashKey, Policy, PoolSettings, SendProxy, ServerSettings,
    ServiceSettings, Subject, differences,
};

/// Why a text cannot be edited.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EditError {
    /// It is no TOML.
    #[error("it is no TOML: {0}")]
    NoToml(#[from] TomlError),
    /// It does not have what it is said to have, or in a form that is not known here.
    #[error("{0} is not found in it")]
    NotFound(Subject),
}

/// Keys of a pool that a file may only have with the policy `consistent-hash`.
const OF_CONSISTENT_HASH: [&str; 5] = ["key", "subnet_ipv4", "subnet_ipv6", "max_load", "points_per_weight"];

/// The text with `now` in place of `said`, which is what it says.
///
/// # Errors
/// When it is no TOML, or does not say that.
pub(crate) fn edit(text: &str, said: &Settings, now: &Settings) -> Result<String, EditError> {
    let wanted = Wanted::of(said, now);
    let document = Document::parse(text)?;
    let shrunk = apply(text, Source::of(text, document.as_table()).change_and_remove(&wanted)?);
    let document = Document::parse(shrunk.as_str())?;
    Ok(apply(&shrunk, Source::of(&shrunk, document.as_table()).add(&wanted)?))
}

/// What is to differ, in the terms of a file.
struct Wanted<'s> {
    now: &'s Settings,
    /// Subjects that come or go as a whole.
    new: Vec<Subject>,
    gone: Vec<Subject>,
    /// Keys of the others; those without a value go.
    values: Vec<(Subject, &'static str, Option<Value>)>,
}

impl<'s> Wanted<'s> {
    fn of(said: &Settings, now: &'s Settings) -> Self {
        let mut wanted = Self { now, new: Vec::new(), gone: Vec::new(), values: Vec::new() };
        for Difference { subject, key, from, .. } in differences(said, now) {
            match (key, from) {
                (None, None) => wanted.new.push(subject),
                (None, Some(_)) => wanted.gone.push(subject),
                (Some(key), _) => wanted.value(&subject, &key),
            }
        }
        // A server that comes or goes with its pool is part of that.
        let pools = |subjects: &[Subject]| -> BTreeSet<String> {
            let names = subjects.iter().filter_map(|one| match one {
                Subject::Pool { pool } => Some(pool.clone()),
                _ => None,
            });
            names.collect()
        };
        let (new, gone) = (pools(&wanted.new), pools(&wanted.gone));
        let apart = |subject: &Subject, pools: &BTreeSet<String>| match subject {
            Subject::Server { pool, .. } => !pools.contains(pool),
            _ => true,
        };
        wanted.new.retain(|subject| apart(subject, &new));
        wanted.gone.retain(|subject| apart(subject, &gone));
        // Whatever it says: what belongs to the ring has no place beside another policy, and neither has what belongs to
        // another kind of check.
        for (pool, settings) in now.pools.iter().filter(|(pool, _)| said.pools.contains_key(*pool)) {
            let subject = Subject::Pool { pool: pool.clone() };
            let misplaced: Vec<&'static str> = bound_keys().filter(|key| !has_place(settings, key)).collect();
            wanted.values.retain(|(other, key, _)| *other != subject || !misplaced.contains(key));
            wanted.values.extend(misplaced.into_iter().map(|key| (subject.clone(), key, None)));
        }
        wanted
    }

    /// The value that a subject has now under a key of [`Difference`].
    fn value(&mut self, subject: &Subject, key: &str) {
        let all = match subject {
            Subject::Balancer => vec![("max_sessions", self.now.max_sessions.map(|limit| integer(limit.get())))],
            Subject::Pool { pool } => self.now.pools.get(pool).map_or_else(Vec::new, pool_values),
            Subject::Server { pool, server } => {
                let server = self.now.pools.get(pool).and_then(|pool| pool.servers.get(server));
                server.map_or_else(Vec::new, server_values)
            }
            Subject::Service { service } => self.now.services.get(service).map_or_else(Vec::new, service_values),
        };
        // Which networks are one key is two values more, and so is what a header has, and how long one may take; and bytes
        // are there as text or in digits.
        let goes_with = |name: &str| {
            let is_other_form = |name: &str, other: &str| name.strip_suffix("_hex") == Some(other);
            let is_text = OF_SEND.contains(&key) && (is_other_form(name, key) || is_other_form(key, name));
            name == key
                || is_text
                || (key == "key" && name.starts_with("subnet_"))
                || (key == "send_proxy" && name.starts_with("send_proxy_"))
                || (key == "accept_proxy" && name == "proxy_timeout")
        };
        // One that goes with another may differ by itself, too.
        for (name, value) in all.into_iter().filter(|(name, _)| goes_with(name)) {
            if !self.values.iter().any(|(other, key, _)| other == subject && *key == name) {
                self.values.push((subject.clone(), name, value));
            }
        }
    }
}

/// Keys of a pool that have a place beside some others alone.
fn bound_keys() -> impl Iterator<Item = &'static str> {
    OF_CONSISTENT_HASH.into_iter().chain(OF_CHECKS).chain(OF_SEND).chain(OF_HTTP)
}

/// Whether a file of this pool may have the key.
fn has_place(pool: &PoolSettings, key: &str) -> bool {
    (pool.policy == Policy::ConsistentHash || !OF_CONSISTENT_HASH.contains(&key)) && pool.health.check.kind.uses(key)
}

type Values = Vec<(&'static str, Option<Value>)>;

fn integer(number: impl Into<u64>) -> Value {
    Value::from(i64::try_from(number.into()).unwrap_or(i64::MAX))
}

fn server_values(server: &ServerSettings) -> Values {
    vec![
        ("weight", Some(integer(server.weight))),
        ("state", Some(server.state.name().into())),
        ("max_sessions", server.max_sessions.map(|limit| integer(limit.get()))),
        ("backup", Some(server.backup.into())),
        ("check_address", server.check_address.map(|address| address.to_string().into())),
    ]
}

fn pool_values(pool: &PoolSettings) -> Values {
    let lengths = match pool.key {
        HashKey::ClientSubnet { ipv4, ipv6 } => Some((ipv4, ipv6)),
        _ => None,
    };
    let (has_checksum, has_unique_id) = match pool.send_proxy {
        Some(SendProxy::V2 { crc32c, unique_id }) => (crc32c, unique_id),
        Some(SendProxy::V1) | None => (false, false),
    };
    let mut values = vec![
        ("policy", Some(pool.policy.name().into())),
        ("key", Some(pool.key.name().into())),
        ("subnet_ipv4", lengths.map(|(ipv4, _)| integer(ipv4))),
        ("subnet_ipv6", lengths.map(|(_, ipv6)| integer(ipv6))),
        ("max_load", pool.max_load.map(|factor| factor.number().into())),
        ("points_per_weight", Some(integer(pool.points_per_weight.get()))),
        ("slow_start", Some(time(pool.slow_start_ms))),
        ("send_proxy", pool.send_proxy.map(|how| how.name().into())),
        ("send_proxy_crc32c", has_checksum.then(|| true.into())),
        ("send_proxy_unique_id", has_unique_id.then(|| true.into())),
    ];
    values.extend(health_values(&pool.health));
    values.extend(server_side_values(&pool.server_side));
    values
}

fn server_side_values(side: &ServerSide) -> Values {
    let mut values = vec![
        ("connect_timeout", side.connect_timeout_ms.map(|limit| time(limit.get()))),
        ("tries", Some(integer(side.tries.get()))),
        ("replay", Some(size(side.replay))),
        ("source", one_or_many(&side.source)),
        ("transparent", Some(side.transparent.into())),
        ("fast_open", Some(side.fast_open.into())),
        ("mark", side.mark.map(|mark| integer(mark.get()))),
        ("device", side.device.as_deref().map(quoted)),
    ];
    values.extend(socket_values(&side.socket));
    values
}

/// What is as usual is not said.
fn client_side_values(side: &ClientSide) -> Values {
    let usual = ClientSide::default();
    let half_closed = side.half_closed_timeout_ms;
    let mut values = vec![
        ("idle_timeout", side.idle_timeout_ms.map(|limit| time(limit.get()))),
        ("half_closed_timeout", (half_closed != usual.half_closed_timeout_ms).then(|| time(half_closed.get()))),
        ("max_age", side.max_age_ms.map(|limit| time(limit.get()))),
        ("backlog", (side.backlog != usual.backlog).then(|| integer(side.backlog.get()))),
        ("defer_accept", side.defer_accept_ms.map(|limit| time(limit.get()))),
        ("fast_open", (side.fast_open != usual.fast_open).then(|| integer(side.fast_open))),
    ];
    let is_said = |key: &str| key != "keepalive" || side.socket.keepalive_ms != usual.socket.keepalive_ms;
    values.extend(socket_values(&side.socket).into_iter().map(|(key, value)| (key, value.filter(|_| is_said(key)))));
    values
}

fn socket_values(socket: &SocketSettings) -> Values {
    vec![
        ("keepalive", Some(time(socket.keepalive_ms))),
        ("user_timeout", socket.user_timeout_ms.map(|limit| time(limit.get().into()))),
        ("congestion", socket.congestion.as_deref().map(Value::from)),
        ("send_buffer", socket.send_buffer.map(|bytes| size(bytes.get()))),
        ("receive_buffer", socket.receive_buffer.map(|bytes| size(bytes.get()))),
    ]
}

fn health_values(health: &HealthSettings) -> Values {
    let HealthSettings { check, ejection, when_all_down, on_down } = health;
    let (send, expect) = match &check.kind {
        CheckKind::Send { send, expect } => (Some(send), Some(expect)),
        _ => (None, None),
    };
    let http = if let CheckKind::Http(http) = &check.kind { Some(http) } else { None };
    let text = |text: Option<&CheckText>| text.filter(|text| !text.is_empty()).and_then(CheckText::text).map(quoted);
    let hex = |text: Option<&CheckText>| text.filter(|text| text.text().is_none()).map(|text| text.hex().into());
    vec![
        ("check", Some(check.kind.name().into())),
        ("check_send", text(send)),
        ("check_send_hex", hex(send)),
        ("check_expect", text(expect)),
        ("check_expect_hex", hex(expect)),
        ("check_method", http.map(|http| http.method.as_str().into())),
        ("check_path", http.map(|http| http.path.as_str().into())),
        ("check_host", http.and_then(|http| http.host.as_deref()).map(Value::from)),
        ("check_status", http.and_then(|http| one_or_many(&http.status))),
        ("check_interval", Some(time(check.interval_ms))),
        ("check_undecided_interval", check.undecided_interval_ms.map(time)),
        ("check_down_interval", check.down_interval_ms.map(time)),
        ("check_timeout", Some(time(check.timeout_ms))),
        ("check_rise", Some(integer(check.rise.get()))),
        ("check_fall", Some(integer(check.fall.get()))),
        ("check_port", check.port.map(|port| integer(port.get()))),
        ("check_initial", Some(check.initial.name().into())),
        ("eject_failures", Some(integer(ejection.failures))),
        ("eject_time", Some(time(ejection.time_ms))),
        ("eject_max_time", Some(time(ejection.max_time_ms))),
        ("eject_max_percent", Some(integer(ejection.max_percent))),
        ("when_all_down", Some(when_all_down.name().into())),
        ("on_down", Some(on_down.name().into())),
    ]
}

fn time(milliseconds: u64) -> Value {
    quantity::time(milliseconds).into()
}

fn size(bytes: u32) -> Value {
    quantity::size(bytes.into()).into()
}

/// A text on one line, whatever is in it. What JSON escapes TOML escapes the same way.
fn quoted(text: &str) -> Value {
    let quoted = serde_json::to_string(text).ok().and_then(|quoted| quoted.parse().ok());
    quoted.unwrap_or_else(|| text.into())
}

fn service_values(service: &ServiceSettings) -> Values {
    // It has no place in a file without the other.
    let says_timeout = !service.accept_proxy.is_empty() && service.proxy_timeout_ms != DEFAULT_PROXY_TIMEOUT_MS;
    let mut values = vec![
        ("listen", one_or_many(&service.listen)),
        ("protocol", Some("tcp".into())),
        ("pool", Some(service.pool.as_str().into())),
        ("max_sessions", service.max_sessions.map(|limit| integer(limit.get()))),
        ("sessions_per_second", service.sessions_per_second.map(|limit| integer(limit.get()))),
        ("sessions_per_client", service.sessions_per_client.map(|limit| integer(limit.get()))),
        ("allow", many(&service.allow)),
        ("deny", many(&service.deny)),
        ("accept_proxy", many(&service.accept_proxy)),
        ("proxy_timeout", says_timeout.then(|| time(service.proxy_timeout_ms))),
        ("splice", (!service.splice).then(|| false.into())),
    ];
    values.extend(client_side_values(&service.client_side));
    values
}

fn many(things: &[impl ToString]) -> Option<Value> {
    (!things.is_empty()).then(|| things.iter().map(ToString::to_string).collect::<Array>().into())
}

fn one_or_many(things: &[impl ToString]) -> Option<Value> {
    if let [one] = things { Some(one.to_string().into()) } else { many(things) }
}

/// The values of a new server: what goes without saying is not said.
fn new_server(address: SocketAddr, server: &ServerSettings) -> Values {
    let usual = ServerSettings::default();
    vec![
        ("address", Some(address.to_string().into())),
        ("weight", (server.weight != usual.weight).then(|| integer(server.weight))),
        ("state", (server.state != AdminState::Ready).then(|| server.state.name().into())),
        ("max_sessions", server.max_sessions.map(|limit| integer(limit.get()))),
        ("backup", server.backup.then(|| true.into())),
        ("check_address", server.check_address.map(|address| address.to_string().into())),
    ]
}

/// As [`new_server`], without the servers.
fn new_pool(pool: &PoolSettings) -> Values {
    let mut values = pool_values(pool);
    values.retain(|(key, value)| {
        let is_said = value.as_ref().is_some_and(|value| *key == "policy" || !is_usual(key, value));
        is_said && has_place(pool, key)
    });
    values
}

/// Whether a pool of which a file says nothing has this value: that of a check, once there is one.
fn is_usual(key: &str, value: &Value) -> bool {
    let mut usual = PoolSettings::default();
    let said = |usual: PoolSettings| pool_values(&usual).into_iter().find(|(other, _)| *other == key)?.1;
    if OF_HTTP.contains(&key) {
        usual.health.check.kind = CheckKind::Http(HttpCheck::default());
    }
    said(usual).is_some_and(|usual| bare(&usual) == bare(value))
}

/// `key = value` of each, on one line.
fn inline(values: &Values, gap: &str) -> String {
    let pairs = values.iter().filter_map(|(key, value)| value.as_ref().map(|value| format!("{key} = {}", bare(value))));
    format!("{{{gap}{}{gap}}}", pairs.collect::<Vec<_>>().join(", "))
}

fn bare(value: &Value) -> String {
    value.to_string().trim().to_owned()
}

/// A name as a key.
fn key_text(name: &str) -> String {
    Key::new(name).display_repr().into_owned()
}

/// A piece of the text and what comes instead.
type Piece = (Range<usize>, String);

/// The text with every piece replaced. Those of one place stay in their order; what lies within one that goes, goes too.
fn apply(text: &str, mut pieces: Vec<Piece>) -> String {
    pieces.sort_by_key(|(range, _)| range.start);
    let (mut result, mut at) = (String::with_capacity(text.len()), 0);
    for (range, instead) in pieces {
        result.push_str(text.get(at..range.start).unwrap_or_default());
        result.push_str(&instead);
        at = at.max(range.end);
    }
    result.push_str(&text[at..]);
    result
}

/// A table of the text.
#[derive(Clone, Copy)]
enum Place<'d> {
    /// With a heading, or of dotted keys.
    Lines(&'d Table),
    /// In braces.
    Braces(&'d InlineTable),
}

impl<'d> Place<'d> {
    fn of(item: &'d Item) -> Option<Self> {
        match item {
            Item::Table(table) => Some(Self::Lines(table)),
            Item::Value(Value::InlineTable(table)) => Some(Self::Braces(table)),
            _ => None,
        }
    }

    fn table(self) -> &'d dyn TableLike {
        match self {
            Self::Lines(table) => table,
            Self::Braces(table) => table,
        }
    }

    fn get(self, key: &str) -> Option<&'d Item> {
        self.table().get(key).filter(|item| !item.is_none())
    }
}

/// What comes, and where to.
#[derive(Default)]
struct Added<'d> {
    pieces: Vec<Piece>,
    /// By the place of the table: keys that come between braces.
    into_braces: BTreeMap<usize, (&'d InlineTable, Vec<String>)>,
    /// Sections for the end of the text.
    sections: Vec<String>,
}

/// The address of a server's table.
fn address(place: Place<'_>) -> Option<SocketAddr> {
    let address: SocketAddr = place.get("address")?.as_str()?.parse().ok()?;
    Some(canonical(address))
}

/// The servers of a pool in the order of the text.
fn servers<'d>(pool: Place<'d>) -> Vec<Place<'d>> {
    match pool.get("servers") {
        Some(Item::ArrayOfTables(tables)) => tables.iter().map(Place::Lines).collect(),
        Some(Item::Value(Value::Array(array))) => {
            array.iter().filter_map(Value::as_inline_table).map(Place::Braces).collect()
        }
        _ => Vec::new(),
    }
}

/// A text and what it says.
struct Source<'d> {
    text: &'d str,
    root: Place<'d>,
    servers: HashMap<(&'d str, SocketAddr), Place<'d>>,
    newline: &'static str,
}

impl<'d> Source<'d> {
    fn of(text: &'d str, document: &'d Table) -> Self {
        let root = Place::Lines(document);
        let mut all = HashMap::new();
        if let Some(pools) = root.get("pool").and_then(Place::of) {
            for (name, pool) in pools.table().iter() {
                let places = Place::of(pool).map(servers).unwrap_or_default();
                all.extend(places.into_iter().filter_map(|place| Some(((name, address(place)?), place))));
            }
        }
        let newline = if text.contains("\r\n") { "\r\n" } else { "\n" };
        Self { text, root, servers: all, newline }
    }

    fn place(&self, subject: &Subject) -> Option<Place<'d>> {
        let named =
            |section: &str, name: &str| self.root.get(section).and_then(Place::of)?.get(name).and_then(Place::of);
        match subject {
            Subject::Balancer => self.root.get("balancer").and_then(Place::of),
            Subject::Pool { pool } => named("pool", pool),
            Subject::Service { service } => named("service", service),
            Subject::Server { pool, server } => self.servers.get(&(pool.as_str(), *server)).copied(),
        }
    }

    fn there(&self, subject: &Subject) -> Result<Place<'d>, EditError> {
        self.place(subject).ok_or_else(|| EditError::NotFound(subject.clone()))
    }

    /// What has another value gets it, and what goes is taken out.
    fn change_and_remove(&self, wanted: &Wanted<'_>) -> Result<Vec<Piece>, EditError> {
        let mut pieces = Vec::new();
        // By the place of its table: keys that go from between braces.
        let mut from_braces: BTreeMap<usize, (&InlineTable, HashSet<&str>)> = BTreeMap::new();
        for (subject, key, value) in &wanted.values {
            let Some(place) = self.place(subject) else { continue };
            let Some(item) = place.get(key) else { continue };
            let lost = || EditError::NotFound(subject.clone());
            let range = item.span().filter(|_| item.is_value()).ok_or_else(lost)?;
            match (value, place) {
                (Some(value), _) => pieces.push((range, bare(value))),
                (None, Place::Lines(table)) => pieces.push(self.lines(entry(table, key).ok_or_else(lost)?)),
                (None, Place::Braces(table)) => {
                    let at = table.span().ok_or_else(lost)?.start;
                    from_braces.entry(at).or_insert_with(|| (table, HashSet::new())).1.insert(key);
                }
            }
        }
        let mut from_pools: BTreeMap<&str, HashSet<SocketAddr>> = BTreeMap::new();
        for subject in &wanted.gone {
            let (section, name) = match subject {
                Subject::Server { pool, server } => {
                    self.there(subject)?;
                    from_pools.entry(pool).or_default().insert(*server);
                    continue;
                }
                Subject::Pool { pool } => ("pool", pool),
                Subject::Service { service } => ("service", service),
                Subject::Balancer => continue,
            };
            let lost = || EditError::NotFound(subject.clone());
            let parent = self.root.get(section).and_then(Place::of).ok_or_else(lost)?;
            match (self.there(subject)?, parent) {
                (Place::Lines(table), _) => self.take_out(table, &mut pieces),
                (Place::Braces(_), Place::Lines(parent)) => {
                    let (lines, _) = self.lines(entry(parent, name).ok_or_else(lost)?);
                    pieces.push((self.with_comments(lines), String::new()));
                }
                (Place::Braces(_), Place::Braces(parent)) => {
                    let at = parent.span().ok_or_else(lost)?.start;
                    from_braces.entry(at).or_insert_with(|| (parent, HashSet::new())).1.insert(name);
                }
            }
        }
        for (table, keys) in from_braces.into_values() {
            let mut entries: Vec<(Range<usize>, bool)> =
                table.iter().filter_map(|(key, _)| Some((entry(table, key)?, keys.contains(key)))).collect();
            entries.sort_by_key(|(range, _)| range.start);
            self.take_from_between(&entries, table.span().unwrap_or_default().end, &mut pieces);
        }
        for (pool, gone) in from_pools {
            let pool = self.there(&Subject::Pool { pool: pool.to_owned() })?;
            let is_gone = |place: Place<'_>| address(place).is_some_and(|address| gone.contains(&address));
            match pool.get("servers") {
                Some(Item::Value(Value::Array(array))) => self.take_from_array(array, is_gone, &mut pieces),
                _ => {
                    for place in servers(pool).into_iter().filter(|place| is_gone(*place)) {
                        if let Place::Lines(table) = place {
                            self.take_out(table, &mut pieces);
                        }
                    }
                }
            }
        }
        Ok(pieces)
    }

    /// Takes a table out whose content is lines: all of its parts, wherever they are.
    fn take_out(&self, table: &Table, pieces: &mut Vec<Piece>) {
        if let Some(heading) = heading(table) {
            pieces.push((self.section(table, heading), String::new()));
        }
        for (key, item) in table {
            match item {
                Item::Table(below) => self.take_out(below, pieces),
                Item::ArrayOfTables(tables) => tables.iter().for_each(|table| self.take_out(table, pieces)),
                // Those below a heading are gone with its section.
                Item::Value(_) if table.is_dotted() => {
                    let range = entry(table, key).map(|range| self.with_comments(self.lines(range).0));
                    pieces.extend(range.map(|range| (range, String::new())));
                }
                _ => {}
            }
        }
    }

    /// Takes servers out of an array.
    fn take_from_array(&self, array: &Array, is_gone: impl Fn(Place<'_>) -> bool, pieces: &mut Vec<Piece>) {
        let end = array.span().unwrap_or_default().end;
        let entries: Vec<(Range<usize>, bool)> = array
            .iter()
            .filter_map(|value| {
                let gone = value.as_inline_table().is_some_and(|table| is_gone(Place::Braces(table)));
                Some((value.span()?, gone))
            })
            .collect();
        if entries.iter().filter(|(_, gone)| *gone).all(|(range, _)| self.is_alone(range, end)) {
            let gone = entries.into_iter().filter(|(_, gone)| *gone);
            pieces.extend(gone.map(|(range, _)| (self.with_comments(self.lines(range).0), String::new())));
        } else {
            self.take_from_between(&entries, end, pieces);
        }
    }

    /// Takes things out that have commas between them; they are in the order of the text, and `end` is behind the bracket.
    fn take_from_between(&self, entries: &[(Range<usize>, bool)], end: usize, pieces: &mut Vec<Piece>) {
        let mut at = 0;
        for run in entries.chunk_by(|a, b| a.1 == b.1) {
            let (first, last) = (at, at + run.len() - 1);
            at += run.len();
            if !run[0].1 {
                continue;
            }
            let (start, stop) = (entries[first].0.start, entries[last].0.end);
            let before = first.checked_sub(1).map(|before| entries[before].0.end);
            let range = match (entries.get(last + 1), before) {
                (Some((next, _)), _) => start..next.start,
                (None, Some(before)) if !self.text[before..start].contains('#') => before..stop,
                (None, _) => start..self.comma(stop, end).map_or(stop, |comma| comma + 1),
            };
            pieces.push((range, String::new()));
        }
    }

    /// What comes is put in.
    fn add(&self, wanted: &Wanted<'_>) -> Result<Vec<Piece>, EditError> {
        let mut added = Added::default();
        // Tables that have no line of their own yet, or have lost the last one: their keys and servers.
        let mut headless: BTreeMap<String, (Values, Vec<Values>)> = BTreeMap::new();
        let is_lost = |pool: &str| self.place(&Subject::Pool { pool: pool.to_owned() }).is_none();
        let heading = |pool: &str| format!("pool.{}", key_text(pool));
        for subject in &wanted.gone {
            if let Subject::Server { pool, .. } = subject
                && is_lost(pool)
            {
                headless.entry(heading(pool)).or_default();
            }
        }
        for (subject, key, value) in &wanted.values {
            let Some(value) = value else { continue };
            let place = match (self.place(subject), subject) {
                (Some(place), _) => place,
                (None, Subject::Balancer) => {
                    headless.entry("balancer".to_owned()).or_default().0.push((key, Some(value.clone())));
                    continue;
                }
                (None, Subject::Pool { pool }) => {
                    headless.entry(heading(pool)).or_default().0.push((key, Some(value.clone())));
                    continue;
                }
                (None, _) => return Err(EditError::NotFound(subject.clone())),
            };
            // What comes with a kind of check has usual values, too.
            let goes_without_saying = OF_HTTP.contains(key) && is_usual(key, value);
            if place.get(key).is_some() || goes_without_saying {
                continue;
            }
            match (place, subject) {
                (Place::Lines(table), Subject::Pool { pool }) if body_end(table).is_none() => {
                    headless.entry(heading(pool)).or_default().0.push((key, Some(value.clone())));
                }
                _ => self.insert(place, key, &bare(value), subject, &mut added)?,
            }
        }
        let mut servers: BTreeMap<&str, Vec<Values>> = BTreeMap::new();
        for subject in &wanted.new {
            match subject {
                Subject::Server { pool, server } => {
                    let settings = wanted.now.pools.get(pool).and_then(|pool| pool.servers.get(server));
                    servers.entry(pool).or_default().extend(settings.map(|settings| new_server(*server, settings)));
                }
                Subject::Pool { pool } => {
                    let Some(settings) = wanted.now.pools.get(pool) else { continue };
                    let servers: Vec<Values> =
                        settings.servers.iter().map(|(address, server)| new_server(*address, server)).collect();
                    self.add_section("pool", pool, &new_pool(settings), &servers, &mut added)?;
                }
                Subject::Service { service } => {
                    let Some(settings) = wanted.now.services.get(service) else { continue };
                    self.add_section("service", service, &service_values(settings), &[], &mut added)?;
                }
                Subject::Balancer => {}
            }
        }
        for (pool, servers) in servers {
            if is_lost(pool) {
                headless.entry(heading(pool)).or_default().1.extend(servers);
            } else {
                self.add_servers(&Subject::Pool { pool: pool.to_owned() }, &servers, &mut added)?;
            }
        }
        let Added { mut pieces, into_braces, sections } = added;
        for (table, pairs) in into_braces.into_values() {
            let pairs = pairs.join(", ");
            pieces.push(match table.iter().filter_map(|(_, item)| item.span()).map(|span| span.end).max() {
                Some(end) => (end..end, format!(", {pairs}")),
                None => (table.span().unwrap_or_default(), format!("{{ {pairs} }}")),
            });
        }
        let headless =
            headless.into_iter().map(|(name, (values, servers))| self.section_text(&name, &values, &servers));
        let text: String = headless.chain(sections).collect::<Vec<_>>().join(self.newline);
        if !text.is_empty() {
            let before = match self.text {
                "" => String::new(),
                text if text.ends_with('\n') => self.newline.to_owned(),
                _ => self.newline.repeat(2),
            };
            pieces.push((self.text.len()..self.text.len(), before + &text));
        }
        Ok(pieces)
    }

    /// A pool or service that is new: a section at the end, or where all are between braces another one there.
    fn add_section(
        &self,
        section: &str,
        name: &str,
        values: &Values,
        servers: &[Values],
        added: &mut Added<'d>,
    ) -> Result<(), EditError> {
        if let Some(place @ Place::Braces(_)) = self.root.get(section).and_then(Place::of) {
            let mut all = inline(values, " ");
            if !servers.is_empty() {
                let servers: Vec<String> = servers.iter().map(|server| inline(server, " ")).collect();
                all.truncate(all.len() - 2);
                all.push_str(&format!(", servers = [{}] }}", servers.join(", ")));
            }
            self.insert(place, &key_text(name), &all, &Subject::Balancer, added)?;
        } else {
            added.sections.push(self.section_text(&format!("{section}.{}", key_text(name)), values, servers));
        }
        Ok(())
    }

    fn section_text(&self, name: &str, values: &Values, servers: &[Values]) -> String {
        let newline = self.newline;
        let mut text = format!("[{name}]{newline}");
        for (key, value) in values.iter().filter_map(|(key, value)| Some((key, value.as_ref()?))) {
            text.push_str(&format!("{key} = {}{newline}", bare(value)));
        }
        if !servers.is_empty() {
            text.push_str(&format!("servers = {}{newline}", self.array_text(servers)));
        }
        text
    }

    /// Servers, each on a line of its own.
    fn array_text(&self, servers: &[Values]) -> String {
        let lines: String = servers.iter().map(|one| format!("    {},{}", inline(one, " "), self.newline)).collect();
        format!("[{}{lines}]", self.newline)
    }

    fn add_servers(&self, pool: &Subject, servers: &[Values], added: &mut Added<'d>) -> Result<(), EditError> {
        let place = self.there(pool)?;
        let lost = || EditError::NotFound(pool.clone());
        match (place.get("servers"), place) {
            (None, Place::Lines(_)) => {
                self.insert(place, "servers", &self.array_text(servers), pool, added)?;
            }
            (None, Place::Braces(_)) => {
                let servers: Vec<String> = servers.iter().map(|one| inline(one, " ")).collect();
                self.insert(place, "servers", &format!("[{}]", servers.join(", ")), pool, added)?;
            }
            (Some(Item::Value(Value::Array(array))), _) => {
                self.extend_array(array, array.span().ok_or_else(lost)?, servers, &mut added.pieces);
            }
            (Some(Item::ArrayOfTables(tables)), _) => {
                let last = tables.iter().last().ok_or_else(lost)?;
                let heading = heading(last).ok_or_else(lost)?;
                let at = self.section(last, heading.clone()).end;
                let indent = self.before(heading.start);
                let keys = self.last_entry(last).map_or("", |start| self.before(start));
                let newline = self.newline;
                let gap = self.before_line(self.line_start(heading.start)).is_some_and(|line| line.trim().is_empty());
                let mut text = if self.text[..at].ends_with('\n') { String::new() } else { newline.to_owned() };
                for server in servers {
                    text.push_str(if gap { newline } else { "" });
                    text.push_str(&format!("{indent}{}{newline}", &self.text[heading.clone()]));
                    for (key, value) in server.iter().filter_map(|(key, value)| Some((key, value.as_ref()?))) {
                        text.push_str(&format!("{keys}{key} = {}{newline}", bare(value)));
                    }
                }
                added.pieces.push((at..at, text));
            }
            _ => return Err(lost()),
        }
        Ok(())
    }

    /// Puts servers behind the last one of an array, in its style.
    fn extend_array(&self, array: &Array, whole: Range<usize>, servers: &[Values], pieces: &mut Vec<Piece>) {
        let close = whole.end - 1;
        let Some(last) = array.iter().last().and_then(Value::span) else {
            let inner = whole.start + 1..close;
            if self.text[inner.clone()].contains('\n') {
                let at = self.line_start(close);
                let lines = servers.iter().map(|one| format!("    {},{}", inline(one, " "), self.newline));
                pieces.push((at..at, lines.collect()));
            } else {
                let texts: Vec<String> = servers.iter().map(|one| inline(one, " ")).collect();
                pieces.push((inner, texts.join(", ")));
            }
            return;
        };
        let gap = if self.text[last.clone()].starts_with("{ ") { " " } else { "" };
        if self.is_alone(&last, whole.end) {
            if self.comma(last.end, close).is_none() {
                pieces.push((last.end..last.end, ",".to_owned()));
            }
            let (at, indent) = (self.line_end(last.end), self.before(last.start));
            let lines = servers.iter().map(|one| format!("{indent}{},{}", inline(one, gap), self.newline));
            pieces.push((at..at, lines.collect()));
        } else {
            let texts = servers.iter().map(|one| format!(", {}", inline(one, gap)));
            pieces.push((last.end..last.end, texts.collect()));
        }
    }

    /// A key for a table that does not have it.
    fn insert(
        &self,
        place: Place<'d>,
        key: &str,
        value: &str,
        subject: &Subject,
        added: &mut Added<'d>,
    ) -> Result<(), EditError> {
        let lost = || EditError::NotFound(subject.clone());
        match place {
            Place::Lines(table) => {
                let at = self.line_end(body_end(table).ok_or_else(lost)?);
                let begin = match self.last_entry(table) {
                    Some(start) => self.before(start),
                    None if table.is_dotted() => return Err(lost()),
                    None => "",
                };
                let newline = self.newline;
                let line = format!("{begin}{key} = {value}");
                let is_last = !self.text[..at].ends_with('\n');
                let line = if is_last { format!("{newline}{line}") } else { format!("{line}{newline}") };
                added.pieces.push((at..at, line));
            }
            Place::Braces(table) => {
                let at = table.span().ok_or_else(lost)?.start;
                let (_, pairs) = added.into_braces.entry(at).or_insert_with(|| (table, Vec::new()));
                pairs.push(format!("{key} = {value}"));
            }
        }
        Ok(())
    }

    /// Where the last key begins that is written in this very table.
    fn last_entry(&self, table: &Table) -> Option<usize> {
        let entries = table.iter().filter(|(_, item)| item.is_value());
        entries.filter_map(|(key, _)| entry(table, key)).map(|range| range.start).max()
    }

    /// The section of a heading: its own comments, its content, and comments that are close behind and belong to nobody
    /// else.
    fn section(&self, table: &Table, heading: Range<usize>) -> Range<usize> {
        let start = self.with_comments(self.line_start(heading.start)..heading.end).start;
        let mut end = self.line_end(body_end(table).unwrap_or(heading.end));
        let mut behind = end;
        while self.line(behind).is_some_and(|line| line.trim_start().starts_with('#')) {
            behind = self.line_end(behind);
        }
        if self.line(behind).is_none_or(|line| line.trim().is_empty()) {
            end = behind;
        }
        start..end
    }

    /// With the lines of comments directly above, and without the gap that it would leave.
    fn with_comments(&self, mut lines: Range<usize>) -> Range<usize> {
        while let Some(line) = self.before_line(lines.start).filter(|line| line.trim_start().starts_with('#')) {
            lines.start -= line.len();
        }
        lines
    }

    /// The lines of a key and its value, to be taken out.
    fn lines(&self, entry: Range<usize>) -> Piece {
        (self.line_start(entry.start)..self.line_end(entry.end), String::new())
    }

    /// Whether nothing else is on the lines of this element, not even the bracket that ends before `end`.
    fn is_alone(&self, element: &Range<usize>, end: usize) -> bool {
        self.before(element.start).trim().is_empty() && self.line_end(element.end) < end && {
            let behind = self.text[element.end..self.line_end(element.end)].trim_start_matches([' ', '\t', ',']);
            behind.trim().is_empty() || behind.starts_with('#')
        }
    }

    /// The comma in a part of the text that has only comments besides.
    fn comma(&self, from: usize, to: usize) -> Option<usize> {
        let mut in_comment = false;
        self.text.get(from..to)?.bytes().enumerate().find_map(|(index, byte)| {
            in_comment = (in_comment || byte == b'#') && byte != b'\n';
            (byte == b',' && !in_comment).then_some(from + index)
        })
    }

    fn line_start(&self, at: usize) -> usize {
        self.text[..at].rfind('\n').map_or(0, |newline| newline + 1)
    }

    /// Behind the newline.
    fn line_end(&self, at: usize) -> usize {
        self.text[at..].find('\n').map_or(self.text.len(), |newline| at + newline + 1)
    }

    /// The line that begins here, if there is one.
    fn line(&self, start: usize) -> Option<&'d str> {
        (start < self.text.len()).then(|| &self.text[start..self.line_end(start)])
    }

    /// The line before the one that begins here.
    fn before_line(&self, start: usize) -> Option<&'d str> {
        (start > 0).then(|| &self.text[self.line_start(start - 1)..start])
    }

    /// What stands before this on its line.
    fn before(&self, at: usize) -> &'d str {
        &self.text[self.line_start(at)..at]
    }
}

/// The heading of a table, if it has one.
fn heading(table: &Table) -> Option<Range<usize>> {
    table.span().filter(|_| !table.is_implicit() && !table.is_dotted())
}

/// Where the last line of a table ends that is its own: not those below further headings.
fn body_end(table: &Table) -> Option<usize> {
    let ends = table.iter().filter_map(|(_, item)| match item {
        Item::Value(value) => value.span().map(|span| span.end),
        Item::Table(below) if below.is_dotted() => body_end(below),
        _ => None,
    });
    ends.max().or_else(|| heading(table).map(|heading| heading.end))
}

/// Where a key and its value are.
fn entry(table: &dyn TableLike, key: &str) -> Option<Range<usize>> {
    let (key, item) = table.get_key_value(key)?;
    Some(key.span()?.start..item.span()?.end)
}

#[cfg(test)]
mod tests;

//! Writes settings into the text of a configuration file that says others. Only what differs is touched: every edit is a
//! piece of the text that is replaced, so comments, order and format of everything else stay as they are, byte by byte.
//!
//! What goes or gets another value is edited first, and what comes is put into the text that results. Not every way to
//! write TOML is worth an edit of its own: whoever calls this reads the result again and compares.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::ops::Range;

use toml_edit::{Array, Document, InlineTable, Item, Table, TableLike, TomlError, Value};
use wire::Settings;
use wire::address::canonical;
use wire::difference::{Difference, Subject, differences};
use wire::health::{OF_DNS, OF_HTTP, OF_SEND};

use values::{
    Values, bare, bound_keys, bound_service_keys, inline, integer, is_usual, key_text, new_pool, new_server,
    pool_values, server_values, service_values,
};

mod values;

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
            let misplaced: Vec<&'static str> = bound_keys().filter(|key| !settings.uses(key)).collect();
            wanted.take_out(&subject, &misplaced);
        }
        // The same of what a service does not speak.
        for (service, settings) in now.services.iter().filter(|(service, _)| said.services.contains_key(*service)) {
            let subject = Subject::Service { service: service.clone() };
            let misplaced: Vec<&'static str> = bound_service_keys().filter(|key| !settings.uses(key)).collect();
            wanted.take_out(&subject, &misplaced);
        }
        wanted
    }

    /// These keys go, if they are there.
    fn take_out(&mut self, subject: &Subject, keys: &[&'static str]) {
        self.values.retain(|(other, key, _)| other != subject || !keys.contains(key));
        self.values.extend(keys.iter().map(|key| (subject.clone(), *key, None)));
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
                || (key == "send_proxy" && name.starts_with("send_proxy_") && name != "send_proxy_in")
                || (key == "sessions_per_client" && name == "client_subnet_ipv6")
                || (key == "accept_proxy" && ["proxy_timeout", "accept_proxy_in"].contains(&name))
        };
        // One that goes with another may differ by itself, too.
        for (name, value) in all.into_iter().filter(|(name, _)| goes_with(name)) {
            if !self.values.iter().any(|(other, key, _)| other == subject && *key == name) {
                self.values.push((subject.clone(), name, value));
            }
        }
    }
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
            let goes_without_saying = (OF_HTTP.contains(key) || OF_DNS.contains(key)) && is_usual(key, value);
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

//! What the state file keeps, and its text: TOML.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use wire::address;
use wire::difference::keys_of_both;
use wire::settings::{DEFAULT_POOL, PoolSettings, ServerSettings, ServiceSettings, Settings};

/// The version of the file's shape. Version 2 is the same without its end.
const VERSION: u32 = 3;

/// Stands at the top of the file for whoever opens it.
const HEADING: &str =
    "# What commands have changed in this balancer. balancerd writes it; change it with balancerctl.\n";

/// What commands have changed of what the arguments and the file say, value by value: what was said at that time, and
/// what holds now. So a file that says something else later can win, and one that does not leaves it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    pools: Vec<PoolRow>,
    servers: Vec<ServerRow>,
    services: Vec<ServiceRow>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PoolRow {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    now: Option<PoolSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    said: Option<PoolSettings>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServerRow {
    pool: String,
    address: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    now: Option<ServerSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    said: Option<ServerSettings>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceRow {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    now: Option<ServiceSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    said: Option<ServiceSettings>,
}

/// The file, from version 2 on.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    version: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pool: Vec<PoolRow>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    server: Vec<ServerRow>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    service: Vec<ServiceRow>,
    /// Behind everything else: a file that was cut off has none.
    end: Option<End>,
}

/// The proof that a file is whole, which people can read and correct.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    /// How many rows there are.
    rows: usize,
}

/// Version 1 kept the servers of the one pool that there was.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FirstText {
    #[expect(dead_code, reason = "it was read before")]
    version: u32,
    #[serde(default)]
    server: Vec<FirstRow>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FirstRow {
    address: SocketAddr,
    weight: u32,
}

impl Kept {
    /// What is to be kept when `said` was said and `present` holds.
    pub(crate) fn between(said: &Settings, present: &Settings) -> Self {
        let mut kept = Self::default();
        let none = BTreeMap::new();
        for name in keys_of_both(&said.pools, &present.pools) {
            let (old, new) = (said.pools.get(name), present.pools.get(name));
            // The servers have rows of their own.
            let row = PoolRow {
                name: name.clone(),
                now: new.map(PoolSettings::without_servers),
                said: old.map(PoolSettings::without_servers),
            };
            if row.now != row.said {
                kept.pools.push(row);
            }
            let (old, new) = (old.map_or(&none, |pool| &pool.servers), new.map_or(&none, |pool| &pool.servers));
            for address in keys_of_both(old, new) {
                let (said, now) = (old.get(address).copied(), new.get(address).copied());
                if said != now {
                    kept.servers.push(ServerRow { pool: name.clone(), address: *address, now, said });
                }
            }
        }
        for name in keys_of_both(&said.services, &present.services) {
            let (said, now) = (said.services.get(name).cloned(), present.services.get(name).cloned());
            if said != now {
                kept.services.push(ServiceRow { name: name.clone(), now, said });
            }
        }
        kept
    }

    /// What was said when it was kept, and what held then, as far as `said` still speaks of it.
    pub(crate) fn apply(&self, said: &Settings) -> (Settings, Settings) {
        let (mut before, mut present) = (said.clone(), said.clone());
        for row in &self.pools {
            // Of a pool that came or went as a whole every server has a row; of another one only those that differ.
            let both = row.said.is_some() && row.now.is_some();
            let its = said.pools.get(&row.name).filter(|_| both);
            let servers = || its.map_or_else(BTreeMap::new, |pool| pool.servers.clone());
            for (settings, value) in [(&mut before, &row.said), (&mut present, &row.now)] {
                match value {
                    Some(value) => {
                        let pool = PoolSettings { servers: servers(), ..value.without_servers() };
                        settings.pools.insert(row.name.clone(), pool);
                    }
                    None => drop(settings.pools.remove(&row.name)),
                }
            }
        }
        for row in &self.servers {
            for (settings, value) in [(&mut before, row.said), (&mut present, row.now)] {
                // The servers of a pool that is gone went with it.
                let Some(pool) = settings.pools.get_mut(&row.pool) else { continue };
                match value {
                    Some(value) => drop(pool.servers.insert(row.address, value)),
                    None => drop(pool.servers.remove(&row.address)),
                }
            }
        }
        for row in &self.services {
            for (settings, value) in [(&mut before, &row.said), (&mut present, &row.now)] {
                match value {
                    Some(value) => drop(settings.services.insert(row.name.clone(), value.clone())),
                    None => drop(settings.services.remove(&row.name)),
                }
            }
        }
        (before, present)
    }

    /// Rows of servers whose pool neither the file nor a row of its own has when this is said: they have no effect.
    pub(crate) fn stray(&self, said: &Settings) -> impl Iterator<Item = (&str, SocketAddr)> {
        let rows: BTreeSet<&str> = self.pools.iter().map(|row| row.name.as_str()).collect();
        let said: BTreeSet<&str> = said.pools.keys().map(String::as_str).collect();
        let servers = self.servers.iter().map(|row| (row.pool.as_str(), row.address));
        servers.filter(move |(pool, _)| !rows.contains(pool) && !said.contains(pool))
    }

    fn rows(&self) -> usize {
        self.pools.len() + self.servers.len() + self.services.len()
    }

    /// From the text of a file, of this version or an earlier one.
    ///
    /// # Errors
    /// Says what is wrong, and in which line if that is known.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        // A file that was cut to nothing says nothing; to take it for an empty one would lose the servers.
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = read(text)?;
        match version {
            1 => {
                let FirstText { server, .. } = read(text)?;
                let now = |weight| Some(ServerSettings { weight, ..ServerSettings::default() });
                let row = |FirstRow { address, weight }| ServerRow {
                    pool: DEFAULT_POOL.to_owned(),
                    address,
                    now: now(weight),
                    said: None,
                };
                Ok(canonical(Kept { servers: server.into_iter().map(row).collect(), ..Kept::default() })?)
            }
            2 | VERSION => {
                let Text { pool, server, service, end, .. } = read(text)?;
                let kept = Kept { pools: pool, servers: server, services: service };
                if version == VERSION {
                    check_end(end.as_ref(), kept.rows())?;
                }
                Ok(canonical(kept)?)
            }
            _ => Err(format!("it has version {version}, this balancer reads versions 1 to {VERSION}")),
        }
    }

    /// The text of a file.
    pub(crate) fn text(&self) -> Result<String, toml::ser::Error> {
        let Self { pools, servers, services } = self.clone();
        let end = Some(End { rows: self.rows() });
        let text = Text { version: VERSION, pool: pools, server: servers, service: services, end };
        Ok(format!("{HEADING}{}", toml::to_string(&text)?))
    }
}

fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    toml::from_str(text).map_err(|error| match error.span() {
        Some(span) => format!("line {}: {}", text[..span.start].matches('\n').count() + 1, error.message()),
        None => error.message().to_owned(),
    })
}

/// Whether a file ends as it says.
fn check_end(end: Option<&End>, rows: usize) -> Result<(), String> {
    match end {
        Some(end) if end.rows == rows => Ok(()),
        Some(end) => Err(format!(
            "its last lines say that it has {} rows of pools, servers and services, and it has {rows}: a part is \
             missing, or it was edited, and then `rows = {rows}` is right",
            end.rows
        )),
        None => Err(format!(
            "it was cut off: its last lines, `[end]` and `rows = {rows}` if these are all rows, are missing"
        )),
    }
}

/// With each address in the form in which it is compared, nothing there twice, and no row that says nothing.
fn canonical(mut kept: Kept) -> Result<Kept, String> {
    for row in &mut kept.servers {
        row.address = address::canonical(row.address);
    }
    let mut seen = BTreeSet::new();
    if let Some(row) = kept.servers.iter().find(|row| !seen.insert((&row.pool, row.address))) {
        return Err(format!("server {} is there twice in pool {}", row.address, row.pool));
    }
    let pools = kept.pools.iter().map(|row| ("pool", &row.name));
    let services = kept.services.iter().map(|row| ("service", &row.name));
    let mut seen = BTreeSet::new();
    if let Some((kind, name)) = pools.chain(services).find(|named| !seen.insert(*named)) {
        return Err(format!("{kind} {name} is there twice"));
    }
    let servers = kept.servers.iter().filter(|row| row.now.is_none() && row.said.is_none());
    let pools = kept.pools.iter().filter(|row| row.now.is_none() && row.said.is_none());
    let services = kept.services.iter().filter(|row| row.now.is_none() && row.said.is_none());
    let mut empty = servers
        .map(|row| format!("server {} of pool {}", row.address, row.pool))
        .chain(pools.map(|row| format!("pool {}", row.name)))
        .chain(services.map(|row| format!("service {}", row.name)));
    if let Some(row) = empty.next() {
        return Err(format!("the row of {row} has neither `now` nor `said`: a part of it is missing"));
    }
    drop(empty);
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::tests::any_settings;

    proptest! {
        #[test]
        fn what_is_kept_comes_back_when_the_same_is_said(said in any_settings(), present in any_settings()) {
            let kept = Kept::between(&said, &present);
            let back = Kept::parse(&kept.text().expect("text")).expect("our own text");
            prop_assert_eq!(&back, &kept);
            prop_assert_eq!(back.apply(&said), (said, present));
        }

        #[test]
        fn a_restart_is_a_reload(said in any_settings(), present in any_settings(), anew in any_settings()) {
            let (before, then) = Kept::between(&said, &present).apply(&anew);
            let restarted = crate::model::merge(&before, &then, &anew);
            prop_assert_eq!(restarted, crate::model::merge(&said, &present, &anew));
        }

        #[test]
        fn a_file_that_was_cut_anywhere_is_an_error(
            present in any_settings(),
            cut in any::<prop::sample::Index>(),
        ) {
            let text = Kept::between(&Settings::default(), &present).text().expect("text");
            // Without its last line break it is whole.
            let cut = cut.index(text.len() - 1);
            prop_assert!(Kept::parse(&text[..cut]).is_err(), "{}", &text[..cut]);
        }
    }

    #[test]
    fn a_row_that_says_nothing_or_is_there_twice_or_has_a_word_too_many_is_an_error() {
        let server = "[[server]]\npool = \"a\"\naddress = \"10.0.0.1:80\"\n";
        let now = "[server.now]\nweight = 1\nstate = \"ready\"\nbackup = false\n";
        let pool = toml::to_string(&Text {
            version: 2,
            pool: vec![PoolRow { name: "a".to_owned(), now: Some(PoolSettings::default()), said: None }],
            server: Vec::new(),
            service: Vec::new(),
            end: None,
        });
        let pool = pool.expect("text");
        let rows = pool.strip_prefix("version = 2\n").expect("that is first");
        assert!(Kept::parse(&pool).is_ok());
        for (text, said) in [
            (format!("version = 2\n{server}"), "server 10.0.0.1:80 of pool a has neither `now` nor `said`"),
            (format!("version = 2\n{server}{now}{server}{now}"), "there twice"),
            (format!("{pool}{rows}"), "pool a is there twice"),
            (pool.replace("tries =", "trmes ="), "trmes"),
            (pool.replace("interval_ms =", "intervall_ms ="), "intervall_ms"),
            (pool.replace("kind =", "knid ="), "knid"),
            (format!("version = 2\n{server}{}", now.replace("backup", "backpu")), "line 8"),
        ] {
            let error = Kept::parse(&text).expect_err(&text);
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn the_end_of_a_file_says_how_many_rows_it_has_and_people_can_correct_it() {
        let servers = [("10.0.0.1:80".parse().expect("an address"), ServerSettings::default())].into();
        let pool = PoolSettings { servers, ..PoolSettings::default() };
        let present = Settings { pools: [("a".to_owned(), pool)].into(), ..Settings::default() };
        let text = Kept::between(&Settings::default(), &present).text().expect("text");
        assert!(text.ends_with("\n[end]\nrows = 2\n"), "{text}");
        let error = Kept::parse(&text.replace("rows = 2", "rows = 3")).expect_err("another number");
        assert!(error.contains("`rows = 2` is right"), "{error}");
        let error = Kept::parse(text.strip_suffix("\n[end]\nrows = 2\n").expect("checked")).expect_err("cut");
        assert!(error.contains("cut off"), "{error}");
    }

    #[test]
    fn a_file_of_version_1_is_the_pool_default() {
        let text = "version = 1\n[[server]]\naddress = \"[::ffff:10.0.0.1]:80\"\nweight = 3\n";
        let (_, present) = Kept::parse(text).expect("version 1").apply(&Settings {
            pools: [(DEFAULT_POOL.to_owned(), PoolSettings::default())].into(),
            ..Settings::default()
        });
        let server = ServerSettings { weight: 3, ..ServerSettings::default() };
        assert_eq!(present.pools[DEFAULT_POOL].servers, [(([10, 0, 0, 1], 80).into(), server)].into());
    }

    #[test]
    fn a_server_twice_is_an_error() {
        let row = "[[server]]\naddress = \"10.0.0.1:80\"\nweight = 3\n";
        let error = Kept::parse(&format!("version = 1\n{row}{row}")).expect_err("twice");
        assert_eq!(error, "server 10.0.0.1:80 is there twice in pool default");
    }
}

//! What the state file keeps, and its text: TOML.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use wire::address;
use wire::difference::keys_of_both;
use wire::settings::{DEFAULT_POOL, PoolSettings, ServerSettings, ServiceSettings, Settings};

/// The version of the file's shape.
const VERSION: u32 = 2;

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

/// The file, in both of its versions.
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

    /// From the text of a file, of this version or the one before.
    ///
    /// # Errors
    /// Says what is wrong, and in which line if that is known.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
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
            VERSION => {
                let Text { pool, server, service, .. } = read(text)?;
                Ok(canonical(Kept { pools: pool, servers: server, services: service })?)
            }
            _ => Err(format!("it has version {version}, this balancer reads versions 1 and {VERSION}")),
        }
    }

    /// The text of a file.
    pub(super) fn text(&self) -> Result<String, toml::ser::Error> {
        let Self { pools, servers, services } = self.clone();
        let text = Text { version: VERSION, pool: pools, server: servers, service: services };
        Ok(format!("{HEADING}{}", toml::to_string(&text)?))
    }
}

fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    toml::from_str(text).map_err(|error| match error.span() {
        Some(span) => format!("line {}: {}", text[..span.start].matches('\n').count() + 1, error.message()),
        None => error.message().to_owned(),
    })
}

/// With each address in the form in which it is compared, and nothing there twice.
fn canonical(mut kept: Kept) -> Result<Kept, String> {
    for row in &mut kept.servers {
        row.address = address::canonical(row.address);
    }
    let mut seen = BTreeSet::new();
    if let Some(row) = kept.servers.iter().find(|row| !seen.insert((&row.pool, row.address))) {
        return Err(format!("server {} is there twice in pool {}", row.address, row.pool));
    }
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
        fn every_prefix_of_a_file_is_an_error_or_says_nothing_new(
            present in any_settings(),
            cut in any::<prop::sample::Index>(),
        ) {
            let kept = Kept::between(&Settings::default(), &present);
            let text = kept.text().expect("text");
            let cut = cut.index(text.len());
            if let Ok(some) = Kept::parse(&text[..cut]) {
                let addresses = |kept: &Kept| -> BTreeSet<_> {
                    kept.servers.iter().map(|row| (row.pool.clone(), row.address)).collect()
                };
                prop_assert!(addresses(&some).is_subset(&addresses(&kept)));
            }
        }
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

//! What a balancer under test can be asked and told beyond its pool `default`.

use std::net::{IpAddr, SocketAddr};

use wire::control::{FileText, MAX_LISTED_SESSIONS, Removal, ServerValues};
use wire::difference::Difference;
use wire::report::{
    ChangeReport, EndReason, ExplainReport, PoolReport, ReloadReport, ServerReport, SessionReport, SettingsReport,
};
use wire::settings::{AdminState, ServerSettings};
use wire::{Change, Refusal, Request, Response};

use crate::{Balancer, Client, loopback, wait};

/// New values of a server: a weight.
#[must_use]
pub fn weight(weight: u32) -> ServerValues {
    ServerValues { weight: Some(weight), ..ServerValues::default() }
}

/// New values of a server: a state.
#[must_use]
pub fn state(state: AdminState) -> ServerValues {
    ServerValues { state: Some(state), ..ServerValues::default() }
}

/// As lines for people.
#[must_use]
pub fn lines(differences: &[Difference]) -> Vec<String> {
    differences.iter().map(ToString::to_string).collect()
}

impl Balancer {
    /// All pools.
    ///
    /// # Panics
    /// When there is no answer.
    #[must_use]
    pub fn pools(&self) -> Vec<PoolReport> {
        match self.call(&Request::Pools) {
            Response::Pools(pools) => pools,
            other => panic!("an answer to another question: {other:?}"),
        }
    }

    /// What it is set to, and what the file says.
    ///
    /// # Panics
    /// When there is no answer.
    #[must_use]
    pub fn settings(&self) -> SettingsReport {
        match self.call(&Request::Settings) {
            Response::Settings(settings) => settings,
            other => panic!("an answer to another question: {other:?}"),
        }
    }

    /// Live sessions, of all servers or of one.
    ///
    /// # Panics
    /// When there is no answer.
    #[must_use]
    pub fn sessions(&self, server: Option<SocketAddr>) -> Vec<SessionReport> {
        match self.call(&Request::Sessions { service: None, pool: None, server, limit: MAX_LISTED_SESSIONS }) {
            Response::Sessions(sessions) => sessions,
            other => panic!("an answer to another question: {other:?}"),
        }
    }

    /// What a reload would change, of its file or of another text.
    ///
    /// # Errors
    /// When it would be refused.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn diff(&self, instead: Option<&str>) -> Result<ReloadReport, Refusal> {
        let instead = instead.map(|text| FileText { name: "other.toml".to_owned(), text: text.to_owned() });
        match self.call(&Request::Reload { instead, dry_run: true }) {
            Response::Reloaded(report) => Ok(report),
            Response::Refused(refusal) => Err(refusal),
            other => panic!("an answer to another question: {other:?}"),
        }
    }

    /// Whom a service would give this client to.
    ///
    /// # Panics
    /// When there is no answer, or no such service.
    #[must_use]
    pub fn explain_at(&self, service: &str, client: IpAddr, port: u16) -> ExplainReport {
        match self.call(&Request::Explain { client, port, service: Some(service.to_owned()) }) {
            Response::Explained(report) => report,
            other => panic!("an answer to another question: {other:?}"),
        }
    }

    /// Adds a server of weight 1 to a pool.
    ///
    /// # Panics
    /// When it is refused.
    pub fn add_to(&self, pool: &str, server: SocketAddr) -> ChangeReport {
        let change = Change::Add { pool: pool.to_owned(), server, settings: ServerSettings::default() };
        self.change(change, false).expect("it is added")
    }

    /// Removes a server from a pool.
    ///
    /// # Panics
    /// When it is refused.
    pub fn remove_from(&self, pool: &str, server: SocketAddr, how: Removal) -> ChangeReport {
        let change = Change::Remove { pool: pool.to_owned(), server, how };
        self.change(change, false).expect("it is removed")
    }

    /// Sets values of a server of a pool.
    ///
    /// # Panics
    /// When it is refused.
    pub fn set(&self, pool: &str, server: SocketAddr, values: ServerValues) -> ChangeReport {
        let change = Change::Set { pool: pool.to_owned(), server, values };
        self.change(change, false).expect("it is set")
    }

    /// A server of a pool, if it is there.
    #[must_use]
    pub fn listed_in(&self, pool: &str, server: SocketAddr) -> Option<ServerReport> {
        self.list_pool(pool).servers.into_iter().find(|report| report.server == server)
    }

    /// What commands have changed of what the file says, as lines for people.
    #[must_use]
    pub fn deviations(&self) -> Vec<String> {
        lines(&self.status().deviations)
    }

    /// Where a service listens: its first address.
    #[must_use]
    pub fn address_of(&self, service: &str) -> SocketAddr {
        self.service_named(service).addresses[0]
    }

    /// A connection of the client with this number to a service.
    #[must_use]
    pub fn client_at(&self, service: &str, number: u32) -> Client {
        Client::connect_from(loopback::client(number), self.address_of(service))
    }

    /// Sessions of a service that ended for this reason.
    #[must_use]
    pub fn ended_at(&self, service: &str, reason: EndReason) -> u64 {
        self.service_named(service).ended.get(&reason).copied().unwrap_or_default()
    }

    /// Waits until all services together have so many sessions.
    ///
    /// # Panics
    /// When it does not come to that.
    pub fn wait_for_all_sessions(&self, count: u64) {
        wait::until(&format!("{count} sessions are alive"), || {
            self.status().services.iter().map(|service| service.active).sum::<u64>() == count
        });
    }
}

/// Who serves the clients with these numbers at an address, found by connecting.
#[must_use]
pub fn served_at(address: SocketAddr, numbers: std::ops::Range<u32>) -> Vec<SocketAddr> {
    numbers.map(|number| Client::connect_from(loopback::client(number), address).server()).collect()
}

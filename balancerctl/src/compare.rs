//! Whether two balancers agree on their clients. Both say what they are set to; the rings are made here, so that neither
//! has to know of the other, and one of them may be a file.

use std::fmt;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use ring::{Digest, Identity, Member, Ring, RingError};
use serde::Serialize;
use wire::difference::keys_of_both;
use wire::report::Hex;
use wire::settings::{Policy, PoolSettings};
use wire::{Client, Request, Response, Settings};

use crate::check;
use crate::failure::Failure;

/// What came of it: printed for `compare --json`.
#[derive(Debug, Serialize)]
pub(crate) struct Compared {
    /// Whether every client gets the same server in every pool, as far as policies hash.
    pub(crate) equal: bool,
    /// The one that was asked.
    pub(crate) this: String,
    /// The other: a socket or a file.
    pub(crate) other: String,
    /// Every pool that either has.
    pub(crate) pools: Vec<PoolCompared>,
}

/// A pool of both, or of one.
#[derive(Debug, Serialize)]
pub(crate) struct PoolCompared {
    pub(crate) pool: String,
    pub(crate) equal: bool,
    pub(crate) policy: Sides<Policy>,
    pub(crate) key: Sides<String>,
    pub(crate) max_load: Sides<String>,
    /// The servers that serve only while every other is down or full.
    pub(crate) backups: Sides<Vec<SocketAddr>>,
    pub(crate) digest: Sides<Hex>,
    /// The share of clients that the two send to different servers while all are up; nothing where that cannot be said.
    pub(crate) elsewhere: Option<f64>,
    /// The largest of them, from the one to the other.
    pub(crate) moves: Vec<Elsewhere>,
}

/// What the one has, and what the other has; nothing where it has no such pool, or no such value.
#[derive(Debug, Serialize)]
pub(crate) struct Sides<T> {
    pub(crate) this: Option<T>,
    pub(crate) other: Option<T>,
}

/// Clients whom the two send to different servers.
#[derive(Debug, Serialize)]
pub(crate) struct Elsewhere {
    this: Option<SocketAddr>,
    other: Option<SocketAddr>,
    share: f64,
}

/// So many of the largest moves are told of a pool.
const MOVES_TOLD: usize = 100;

/// A ring of a pool's servers would be too large; such a pool cannot run either.
#[derive(Debug, thiserror::Error)]
#[error("pool {pool} of {of} cannot be compared: {source}")]
pub(crate) struct CompareError {
    pool: String,
    of: String,
    source: RingError,
}

impl<T: PartialEq> Sides<T> {
    /// Whether both have the same.
    pub(crate) fn same(&self) -> bool {
        self.this == self.other
    }
}

impl<T> Sides<T> {
    fn of<'a>(
        this: Option<&'a PoolSettings>,
        other: Option<&'a PoolSettings>,
        value: impl Fn(&'a PoolSettings) -> Option<T>,
    ) -> Self {
        Self { this: this.and_then(&value), other: other.and_then(&value) }
    }
}

/// A name and what it is set to.
pub(crate) struct Side {
    pub(crate) name: String,
    pub(crate) settings: Settings,
}

impl Side {
    /// The balancer at a socket, or what a file says.
    ///
    /// # Errors
    /// When it cannot be asked or read.
    pub(crate) fn find(place: &Path) -> Result<Self, Failure> {
        let is_socket = place.metadata().is_ok_and(|metadata| metadata.file_type().is_socket());
        let name = place.display().to_string();
        let settings = if is_socket { of_balancer(&mut Client::connect(place)?)? } else { check::settings(place)? };
        Ok(Self { name, settings })
    }
}

/// What a balancer is set to now.
///
/// # Errors
/// When it cannot be asked, or refuses.
pub(crate) fn of_balancer(client: &mut Client) -> Result<Settings, Failure> {
    match client.call(&Request::Settings)? {
        Response::Settings(report) => Ok(report.now),
        Response::Refused(refusal) => Err(Failure::Refused(refusal)),
        _ => Err(Failure::Unexpected),
    }
}

/// Compares pool by pool, by name.
///
/// # Errors
/// When a pool is too large for a ring.
pub(crate) fn compare(this: &Side, other: &Side) -> Result<Compared, CompareError> {
    let pools: Result<Vec<PoolCompared>, CompareError> = keys_of_both(&this.settings.pools, &other.settings.pools)
        .into_iter()
        .map(|name| {
            let failed = |of: &Side, source| CompareError { pool: name.clone(), of: of.name.clone(), source };
            let (one, two) = (this.settings.pools.get(name), other.settings.pools.get(name));
            let ring_of = |side: &Side, pool: Option<&PoolSettings>| {
                pool.map(ring_of).transpose().map_err(|source| failed(side, source))
            };
            Ok(PoolCompared::of(name, (one, ring_of(this, one)?), (two, ring_of(other, two)?)))
        })
        .collect();
    let pools = pools?;
    let equal = pools.iter().all(|pool| pool.equal);
    Ok(Compared { equal, this: this.name.clone(), other: other.name.clone(), pools })
}

/// Those that are ready and have a weight, backups or the others.
fn members(pool: &PoolSettings, backups: bool) -> impl Iterator<Item = (Identity, u32)> {
    let members = pool.servers.iter().filter(move |(_, server)| server.backup == backups && server.ready_weight() > 0);
    members.map(|(address, server)| (Identity::from(*address), server.ready_weight()))
}

/// The ring that clients meet while every server is up: backups have a part only where there is nobody else.
fn ring_of(pool: &PoolSettings) -> Result<Ring<()>, RingError> {
    let of_backups = members(pool, false).next().is_none();
    let members = members(pool, of_backups);
    Ring::build(pool.points_per_weight, members.map(|(identity, weight)| Member { identity, weight, tag: () }))
}

/// The number that the balancer itself gives of such a pool.
fn digest_of(pool: &PoolSettings) -> Hex {
    let of = |backups| Digest::of_servers(pool.points_per_weight, members(pool, backups)).value();
    let has_backups = members(pool, true).next().is_some();
    Hex(if has_backups { of(false) ^ of(true).rotate_left(32) } else { of(false) })
}

fn backups_of(pool: &PoolSettings) -> Vec<SocketAddr> {
    members(pool, true).map(|(identity, _)| identity.addr()).collect()
}

type PoolSide<'a> = (Option<&'a PoolSettings>, Option<Ring<()>>);

impl PoolCompared {
    fn of(name: &str, (this, this_ring): PoolSide<'_>, (other, other_ring): PoolSide<'_>) -> Self {
        let policy = Sides::of(this, other, |pool| Some(pool.policy));
        let hashed = |pool: &PoolSettings| pool.policy == Policy::ConsistentHash;
        let key = Sides::of(this, other, |pool| hashed(pool).then(|| pool.key.to_string()));
        let max_load = Sides::of(this, other, |pool| pool.max_load.filter(|_| hashed(pool)).map(text));
        let backups = Sides::of(this, other, |pool| Some(backups_of(pool)));
        let digest = Sides::of(this, other, |pool| Some(digest_of(pool)));
        let (elsewhere, moves) = match (this, other, this_ring, other_ring) {
            // Where the one hashes something else than the other, or does not hash, a share of clients is no share of
            // a ring.
            (Some(one), Some(two), Some(this), Some(other)) if hashed(one) && hashed(two) && one.key == two.key => {
                let diff = this.diff(&other);
                let moves = diff.moves.iter().take(MOVES_TOLD).map(|one| Elsewhere {
                    this: one.from.map(|identity| identity.addr()),
                    other: one.to.map(|identity| identity.addr()),
                    share: one.share.fraction(),
                });
                (Some(diff.moved.fraction()), moves.collect())
            }
            _ => (None, Vec::new()),
        };
        let equal = policy.same() && key.same() && max_load.same() && backups.same() && digest.same();
        Self { pool: name.to_owned(), equal, policy, key, max_load, backups, digest, elsewhere, moves }
    }
}

fn text(value: impl fmt::Display) -> String {
    value.to_string()
}

#[cfg(test)]
mod tests {
    use wire::health::CheckKind;
    use wire::settings::{AdminState, HashKey, LoadFactor, ServerSettings};

    use super::*;

    fn side(change: impl FnOnce(&mut PoolSettings)) -> Side {
        let servers = ["10.0.0.1:80", "10.0.0.2:80"].map(|text| text.parse().expect("an address"));
        let servers = servers.into_iter().map(|address| (address, ServerSettings::default())).collect();
        let mut pool = PoolSettings { servers, ..PoolSettings::default() };
        change(&mut pool);
        let settings = Settings { pools: [("web".to_owned(), pool)].into(), ..Settings::default() };
        Side { name: "x".into(), settings }
    }

    fn with(change: impl FnOnce(&mut PoolSettings)) -> PoolCompared {
        let mut compared = compare(&side(|_| {}), &side(change)).expect("small");
        assert_eq!(compared.equal, compared.pools[0].equal);
        compared.pools.remove(0)
    }

    fn first(pool: &mut PoolSettings) -> &mut ServerSettings {
        pool.servers.values_mut().next().expect("a server")
    }

    #[test]
    fn the_same_is_equal() {
        let pool = with(|_| {});
        assert!(pool.equal && pool.digest.same());
        assert_eq!(pool.elsewhere, Some(0.0));
        let drained = |pool: &mut PoolSettings| {
            let server = ServerSettings { state: AdminState::Drain, ..ServerSettings::default() };
            pool.servers.insert("10.0.0.9:80".parse().expect("an address"), server);
        };
        assert!(with(drained).equal, "only servers that are ready count");
        assert!(with(|pool| pool.slow_start_ms = 7).equal, "a slow start ends");
    }

    #[test]
    fn backups_belong_to_an_agreement_and_checks_do_not() {
        let backup = |pool: &mut PoolSettings| {
            let server = ServerSettings { backup: true, ..ServerSettings::default() };
            pool.servers.insert("10.0.0.9:80".parse().expect("an address"), server);
        };
        let pool = with(backup);
        assert!(!pool.equal && !pool.digest.same() && !pool.backups.same(), "they differ once the others are down");
        assert_eq!(pool.elsewhere, Some(0.0), "nobody meets it as long as they are up");
        let both = |change: fn(&mut ServerSettings)| {
            let other = side(|pool| {
                backup(pool);
                pool.servers.values_mut().last().map(change).expect("a server");
            });
            compare(&side(backup), &other).expect("small").pools.remove(0)
        };
        assert!(both(|_| {}).equal);
        assert!(both(|server| server.check_address = Some("10.0.0.1:81".parse().expect("an address"))).equal);
        let pool = both(|server| server.weight = 2);
        assert!(!pool.equal && pool.backups.same() && !pool.digest.same());
        let pool = both(|server| server.backup = false);
        assert!(!pool.equal && pool.elsewhere.is_some_and(|share| share > 0.0));
        let all = |pool: &mut PoolSettings| pool.servers.values_mut().for_each(|server| server.backup = true);
        let pool = with(all);
        assert!(!pool.equal);
        assert_eq!(pool.elsewhere, Some(0.0), "where all are backups, they serve");
        let checked = |pool: &mut PoolSettings| {
            pool.health.check.kind = CheckKind::Tcp;
            pool.health.ejection.failures = 0;
        };
        assert!(with(checked).equal, "who is up is another question");
    }

    #[test]
    fn the_share_of_who_goes_elsewhere_is_exact() {
        let pool = with(|pool| first(pool).weight = 0);
        assert!(!pool.equal);
        let settings = side(|_| {}).settings.pools.remove("web").expect("it is there");
        let ring = ring_of(&settings).expect("small");
        let share = ring.share(ring.members()[0].identity).fraction();
        assert_eq!(pool.elsewhere, Some(share));
        assert_eq!(pool.moves.len(), 1);
    }

    #[test]
    fn other_policies_and_keys_have_no_share() {
        let round_robin: fn(&mut PoolSettings) = |pool| pool.policy = Policy::RoundRobin;
        let with_port: fn(&mut PoolSettings) = |pool| pool.key = HashKey::ClientIpPort;
        for change in [round_robin, with_port] {
            let pool = with(change);
            assert!(!pool.equal && pool.digest.same());
            assert_eq!(pool.elsewhere, None);
        }
        let pool = with(|pool| pool.max_load = LoadFactor::from_thousandths(1250));
        assert!(!pool.equal, "who overflows differs");
        assert_eq!(pool.elsewhere, Some(0.0));
    }

    #[test]
    fn a_pool_that_one_has_alone_is_no_agreement() {
        let none = Side { name: "y".into(), settings: Settings::default() };
        let compared = compare(&side(|_| {}), &none).expect("small");
        assert!(!compared.equal);
        assert_eq!(compared.pools[0].policy.other, None);
        assert!(compare(&none, &none).expect("small").equal);
    }
}

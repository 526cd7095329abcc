//! What settings cannot be: names, values, addresses, and how they stand to each other. Pure; the same rules for a file
//! and for a command.

use std::net::SocketAddr;

use wire::address::{answers_at, check_address, collide};
use wire::control::{MAX_LISTENERS, MAX_POOLS, MAX_SERVERS, MAX_WEIGHT, Refusal};
use wire::settings::{
    HashKey, MAX_PROXY_TIMEOUT_MS, Policy, PoolSettings, ServerSettings, ServiceSettings, Settings, is_name,
};

/// Checks everything.
///
/// # Errors
/// The first fault, by pools and then by services in the order of their names.
pub(crate) fn check(settings: &Settings) -> Result<(), Refusal> {
    check_room(settings.pools.len(), settings.services.values().map(|service| service.listen.len()).sum())?;
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
    let mut taken: Vec<(SocketAddr, &str)> = Vec::new();
    for (name, service) in &settings.services {
        check_name(name)?;
        if !settings.pools.contains_key(&service.pool) {
            return Err(Refusal::NoPool { pool: service.pool.clone() });
        }
        check_service(service, &taken)?;
        taken.extend(service.listen.iter().map(|listen| (*listen, name.as_str())));
    }
    check_circles(settings, &taken)
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
    }
}

/// A server, by itself.
pub(super) fn check_server(server: SocketAddr, settings: &ServerSettings) -> Result<(), Refusal> {
    check_address(server).map_err(|fault| Refusal::Unaddressable { server, fault })?;
    if settings.weight > MAX_WEIGHT {
        return Err(Refusal::WeightTooLarge { weight: settings.weight });
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
pub(super) fn check_service(service: &ServiceSettings, taken: &[(SocketAddr, &str)]) -> Result<(), Refusal> {
    if service.listen.is_empty() {
        return Err(bad("listen", "at least one address must be given"));
    }
    for (index, listen) in service.listen.iter().enumerate() {
        if service.listen[..index].iter().any(|other| collide(*other, *listen)) {
            return Err(bad("listen", &format!("{listen} is there twice, or another of the addresses includes it")));
        }
        if let Some((_, owner)) = taken.iter().find(|(other, _)| collide(*other, *listen)) {
            return Err(Refusal::AddressTaken { listen: *listen, service: (*owner).to_owned() });
        }
    }
    if !(1..=MAX_PROXY_TIMEOUT_MS).contains(&service.proxy_timeout_ms) {
        return Err(bad("proxy_timeout", "it is more than no time, and an hour at most"));
    }
    Ok(())
}

/// No server may be where the balancer itself listens.
fn check_circles(settings: &Settings, listening: &[(SocketAddr, &str)]) -> Result<(), Refusal> {
    for pool in settings.pools.values() {
        for &server in pool.servers.keys() {
            if listening.iter().any(|(listen, _)| answers_at(*listen, server)) {
                return Err(Refusal::Itself { server });
            }
        }
    }
    Ok(())
}

fn bad(key: &str, fault: &str) -> Refusal {
    Refusal::BadValue { key: key.to_owned(), fault: fault.to_owned() }
}

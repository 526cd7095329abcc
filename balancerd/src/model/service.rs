//! A service: a listen address offered to clients, bound to one pool.

use std::net::SocketAddr;

use wire::report::ServiceReport;

use super::PoolId;
use super::traffic::Traffic;

/// A service.
#[derive(Debug)]
pub(super) struct Service {
    name: String,
    pub(super) listen: SocketAddr,
    pub(super) pool: PoolId,
    pub(super) accepting: bool,
    pub(super) accept_failures: u64,
    pub(super) traffic: Traffic,
}

impl Service {
    pub(super) fn new(name: &str, listen: SocketAddr, pool: PoolId) -> Self {
        Self { name: name.to_owned(), listen, pool, accepting: true, accept_failures: 0, traffic: Traffic::default() }
    }

    /// Whether a connection to `address` would come to this service: as far as addresses tell, without asking which
    /// ones this machine has.
    pub(super) fn answers_at(&self, address: SocketAddr) -> bool {
        let (own, other) = (self.listen.ip().to_canonical(), address.ip().to_canonical());
        // The IPv6 wildcard takes IPv4 clients too.
        let takes_family = own.is_ipv6() || other.is_ipv4();
        let loops_back = own.is_unspecified() && takes_family && other.is_loopback();
        self.listen.port() == address.port() && (own == other || loops_back)
    }

    pub(super) fn report(&self, pool: &str) -> ServiceReport {
        ServiceReport {
            name: self.name.clone(),
            listen: self.listen,
            pool: pool.to_owned(),
            accepting: self.accepting,
            active: self.traffic.active,
            total: self.traffic.total,
            bytes_in: self.traffic.bytes_in,
            bytes_out: self.traffic.bytes_out,
            accept_failures: self.accept_failures,
            ended: self.traffic.ended_by_reason(),
        }
    }
}

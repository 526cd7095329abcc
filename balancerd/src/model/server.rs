//! A server: one member of a pool.

use std::net::SocketAddr;

use wire::report::{ServerReport, ServerState};

use super::traffic::Traffic;

/// A server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) weight: u32,
    /// It was removed, and is gone when its last session has ended.
    pub(super) leaving: bool,
    pub(super) traffic: Traffic,
    pub(super) connect_failures: u64,
    pub(super) connect_timeouts: u64,
}

impl Server {
    pub(super) fn new(address: SocketAddr, weight: u32) -> Self {
        Self { address, weight, leaving: false, traffic: Traffic::default(), connect_failures: 0, connect_timeouts: 0 }
    }

    /// The ring holds exactly the servers of which this is true.
    pub(super) fn is_eligible(&self) -> bool {
        self.state() == ServerState::Ready
    }

    pub(super) fn state(&self) -> ServerState {
        match (self.leaving, self.weight) {
            (true, _) => ServerState::Leaving,
            (false, 0) => ServerState::Drain,
            (false, _) => ServerState::Ready,
        }
    }

    pub(super) fn report(&self, share: f64) -> ServerReport {
        ServerReport {
            server: self.address,
            weight: self.weight,
            state: self.state(),
            share,
            active: self.traffic.active,
            total: self.traffic.total,
            bytes_in: self.traffic.bytes_in,
            bytes_out: self.traffic.bytes_out,
            connect_failures: self.connect_failures,
            connect_timeouts: self.connect_timeouts,
            ended: self.traffic.ended_by_reason(),
        }
    }
}

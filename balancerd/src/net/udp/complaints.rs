//! What the log says of datagrams that come to nothing: the first of each kind at once, and of further ones how many there
//! were. Anybody can send as many as they like.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use nix::errno::Errno;
use tracing::{info, warn};
use wire::report::DropReason;

use crate::event::Repeated;
use crate::net::connect::NO_SOURCE;

/// The kinds of lines, and how often each came lately.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    refused: Repeated,
    no_server: Repeated,
    shortage: Repeated,
    headers: Repeated,
    unreachable: Repeated,
    sources: Repeated,
}

impl Complaints {
    /// Datagrams of a client may begin no flow.
    pub(super) fn on_refused(&mut self, client: SocketAddr, reason: DropReason, now: Instant) {
        match reason {
            DropReason::NoServer if self.no_server.on_event(now) => {
                warn!(%client, "no server is eligible: datagrams are dropped");
            }
            DropReason::Shortage if self.shortage.on_event(now) => {
                warn!(%client, "short of descriptors, ports or memory: datagrams are dropped");
            }
            DropReason::Full | DropReason::Rate | DropReason::ClientLimit if self.refused.on_event(now) => {
                warn!(%client, %reason, "a datagram could begin no flow; flows that are there go on");
            }
            _ => {}
        }
    }

    /// A datagram began with no header, or a wrong one.
    pub(super) fn on_bad_header(&mut self, peer: SocketAddr, fault: impl Display, now: Instant) {
        if self.headers.on_event(now) {
            info!(%peer, %fault, "a datagram did not begin with the PROXY protocol header that it has to");
        }
    }

    /// The source of a pool is not an address of this machine.
    pub(super) fn on_no_source(&mut self, pool: &str, source: IpAddr, now: Instant) {
        if self.sources.on_event(now) {
            warn!(pool, %source, "{}", NO_SOURCE);
        }
    }

    /// The kernel has heard that datagrams do not come to a server.
    pub(super) fn on_unreachable(&mut self, server: SocketAddr, errno: Errno, now: Instant) {
        if self.unreachable.on_event(now) {
            info!(%server, error = errno.desc(), "datagrams for a server came back");
        }
    }

    /// The earliest time at which [`Complaints::expire`] has something to say.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let kinds = [&self.refused, &self.no_server, &self.shortage, &self.headers, &self.unreachable, &self.sources];
        kinds.into_iter().filter_map(Repeated::next_deadline).min()
    }

    /// Says of how many nothing was said since.
    pub(super) fn expire(&mut self, now: Instant) {
        if let Some(suppressed) = self.refused.expire(now) {
            warn!(suppressed, "further datagrams could begin no flow");
        }
        if let Some(suppressed) = self.no_server.expire(now) {
            warn!(suppressed, "no server is eligible: further datagrams were dropped");
        }
        if let Some(suppressed) = self.shortage.expire(now) {
            warn!(suppressed, "short of descriptors, ports or memory: further datagrams were dropped");
        }
        if let Some(suppressed) = self.headers.expire(now) {
            info!(suppressed, "further datagrams did not begin with the PROXY protocol header that they have to");
        }
        if let Some(suppressed) = self.sources.expire(now) {
            warn!(suppressed, "further datagrams had no source: the pool's is not an address of this machine");
        }
        if let Some(suppressed) = self.unreachable.expire(now) {
            info!(suppressed, "further datagrams for servers came back");
        }
    }
}

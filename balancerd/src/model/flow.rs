//! What the model makes of news of flows and datagrams. A flow is a session; what is its own is that it may begin at no cost
//! to whoever sends, and so only while there is room, and that it can go on with another server.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use wire::control::Removal;
use wire::flow::{FlowPolicy, FlowSettings, OnLoss, OnReturn, PathMtu};
use wire::report::{DropReason, EndReason, Waiting};
use wire::settings::{Policy, SendProxy};

use super::health::Trouble;
use super::{Direction, Model, ServerId, ServiceId};

/// Sockets of a session by TCP; a flow has one.
const SOCKETS: u64 = 2;

/// How the datagrams of a service are handled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Handling {
    pub(crate) flows: FlowSettings,
    pub(crate) policy: FlowPolicy,
    /// The header that servers get.
    pub(crate) send_proxy: Option<SendProxy>,
}

/// Where a flow is to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Onward {
    pub(crate) server: ServerId,
    /// Its own server is lost; otherwise this one is but better.
    pub(crate) is_lost: bool,
}

impl Model {
    /// How the datagrams of a service are handled, as long as it is there.
    pub(crate) fn handling(&self, service: ServiceId) -> Option<Handling> {
        let service = self.services.get(service)?;
        let pool = self.pools.get(service.pool)?;
        let (policy, send_proxy) = (pool.settings.flows, pool.settings.send_proxy);
        Some(Handling { flows: service.settings.flows, policy, send_proxy })
    }

    /// Why a client of a service may begin no flow, if it may not. One of the last, who came before it was told to stop, may.
    pub(crate) fn may_begin_flow(
        &self,
        service: ServiceId,
        client: IpAddr,
        is_last: bool,
        now: Instant,
    ) -> Result<(), DropReason> {
        if !self.lets_in(service, client) {
            return Err(DropReason::Denied);
        }
        match self.waiting(service, now) {
            Some((Waiting::ServiceFull | Waiting::BalancerFull, _)) => return Err(DropReason::Full),
            Some((Waiting::Rate, _)) => return Err(DropReason::Rate),
            Some((Waiting::Stopping, _)) if !is_last => return Err(DropReason::Stopping),
            Some((Waiting::Stopping, _)) | None => {}
        }
        if self.flows >= self.flow_limit() {
            return Err(DropReason::Full);
        }
        let has_room = self.services.get(service).is_some_and(|service| service.has_room_for(client));
        if has_room { Ok(()) } else { Err(DropReason::ClientLimit) }
    }

    /// Flows that there may be at a time: with half of the sockets of all sessions. Anybody can begin flows from addresses
    /// that are not their own; those who come by TCP keep the other half.
    fn flow_limit(&self) -> u64 {
        self.vitals.session_limit as u64
    }

    /// Whether the sockets of those who are there leave none for another session.
    pub(super) fn has_all_sockets(&self) -> bool {
        SOCKETS * self.active - self.flows >= SOCKETS * self.vitals.session_limit as u64
    }

    /// A flow ended, that had this server at that moment.
    pub(crate) fn flow_ended(
        &mut self,
        service: ServiceId,
        client: IpAddr,
        server: ServerId,
        reason: EndReason,
        now: Instant,
    ) {
        self.flows -= 1;
        self.session_ended(service, client, Some(server), true, reason, now);
    }

    /// A flow began that [may](Self::may_begin_flow).
    pub(crate) fn flow_began(&mut self, service: ServiceId, client: IpAddr, server: ServerId, now: Instant) {
        let admitted = self.session_began(service, client, now);
        debug_assert_eq!(admitted, Ok(()));
        self.flows += 1;
        self.flow_came(server);
    }

    /// A server has one flow more.
    fn flow_came(&mut self, server: ServerId) {
        let traffic = &mut self.servers[server].traffic;
        traffic.began();
        traffic.total += 1;
        self.on_load(server);
    }

    /// A flow went on with another server.
    pub(crate) fn flow_moved(&mut self, from: ServerId, to: ServerId) {
        self.flow_came(to);
        let entry = &mut self.servers[from];
        entry.traffic.left();
        entry.flows_moved += 1;
        self.on_load(from);
        self.forget_if_gone(from);
    }

    /// Datagrams of a flow, or of a client without one, went on.
    pub(crate) fn datagrams_passed(
        &mut self,
        service: ServiceId,
        server: ServerId,
        direction: Direction,
        datagrams: usize,
        bytes: usize,
    ) {
        self.services[service].traffic.passed(direction, datagrams, bytes);
        self.servers[server].traffic.passed(direction, datagrams, bytes);
    }

    /// Datagrams did not go on; `server` is the one that they were for or from, if they had one.
    pub(crate) fn datagrams_dropped(
        &mut self,
        service: ServiceId,
        server: Option<ServerId>,
        direction: Direction,
        datagrams: usize,
        reason: DropReason,
    ) {
        if let Some(service) = self.services.get_mut(service) {
            service.traffic.dropped(direction, datagrams, reason);
        }
        if let Some(server) = server.and_then(|server| self.servers.get_mut(server)) {
            server.traffic.dropped(direction, datagrams, reason);
        }
    }

    /// The kernel had no room for datagrams of a service's clients.
    pub(crate) fn receive_overflowed(&mut self, service: ServiceId, datagrams: u32) {
        if let Some(service) = self.services.get_mut(service) {
            service.receive_overflows += u64::from(datagrams);
        }
    }

    /// An ICMP error said that a server is not there.
    pub(crate) fn server_unreachable(&mut self, server: ServerId, now: Instant) {
        if let Some(entry) = self.servers.get_mut(server) {
            entry.connect_failures += 1;
            self.on_trouble(server, Trouble::Unreachable, now);
        }
    }

    /// The other server that a flow is to go on with now, if it is to: since its own is lost, or since there is a better one.
    pub(crate) fn flow_goes_to(&mut self, service: ServiceId, client: SocketAddr, server: ServerId) -> Option<Onward> {
        let pool_id = self.services.get(service)?.pool;
        let (pool, entry) = (self.pools.get_mut(pool_id)?, self.servers.get(server)?);
        let policy = pool.settings.flows;
        // With those that leave over a time, their flows go bit by bit.
        let leaves = entry.leaving.is_some_and(|leave| !matches!(leave.how, Removal::Over { .. }));
        let is_gone = entry.pool != pool_id || leaves;
        let is_lost = is_gone || !entry.is_up();
        let follows = policy.on_return == OnReturn::Move && pool.settings.policy == Policy::ConsistentHash;
        let to = match is_lost {
            true if policy.on_loss == OnLoss::Move => self.pick(service, client, &[server])?.0,
            false if follows && entry.takes_part() => {
                let pick = pool.pick(client, &[], &self.servers, &mut self.rng);
                // Its own has no room for one more session, which this one is not. Nor has any other but the backups.
                let overflows = |to: &ServerId| self.servers[*to].settings.backup && !entry.settings.backup;
                pick.server.filter(|to| !pick.passed.contains(&server) && !overflows(to))?
            }
            _ => return None,
        };
        // With nobody up, all may be in use: none of them is better than another.
        let is_better = is_gone || !is_lost || self.servers[to].is_up();
        (to != server && is_better).then_some(Onward { server: to, is_lost })
    }

    /// The other server that a flow goes on with when its own is to have it no longer, if flows of its pool do.
    pub(crate) fn flow_goes_on_with(
        &mut self,
        service: ServiceId,
        client: SocketAddr,
        tried: &[ServerId],
    ) -> Option<ServerId> {
        let handling = self.handling(service)?;
        let next = (handling.policy.on_loss == OnLoss::Move).then(|| self.pick(service, client, tried)).flatten();
        next.map(|(server, _)| server)
    }

    /// Whether a server is there and does not answer.
    pub(crate) fn is_one_way(&self, server: ServerId) -> bool {
        let server = self.servers.get(server).filter(|server| server.leaving.is_none());
        server.is_some_and(|server| self.pools[server.pool].settings.flows.one_way)
    }

    /// What becomes of datagrams for a server that are longer than the way there takes.
    pub(crate) fn path_mtu(&self, server: ServerId) -> PathMtu {
        self.pools[self.servers[server].pool].settings.flows.path_mtu
    }

    /// Whether it may be that flows are to go on with other servers, since the last time that it was asked.
    pub(crate) fn take_picks_changed(&mut self) -> bool {
        std::mem::take(&mut self.picks_changed)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use wire::settings::{PoolSettings, Protocol, ServerSettings};

    use super::*;
    use crate::event;
    use crate::model::tests::{POINTS, address, client, settings, started};

    #[test]
    fn a_flow_that_takes_the_last_place_of_its_server_stays_there() {
        let mut settings = settings("0.0.0.0:80", POINTS);
        settings.services.get_mut("default").expect("a service").protocol = Protocol::Udp;
        let pool: &mut PoolSettings = settings.pools.get_mut("default").expect("a pool");
        pool.flows.on_return = OnReturn::Move;
        let one_place = ServerSettings { max_sessions: NonZeroU64::new(1), ..ServerSettings::default() };
        pool.servers = (1..=3).map(|number| (address(number), one_place)).collect();
        let now = event::now();
        let mut model = started(&settings, now);
        let service = model.service_named("default").expect("a service");
        let (server, _) = model.pick(service, client(1), &[]).expect("a server");
        model.flow_began(service, client(1).ip(), server, now);
        assert_eq!(model.flow_goes_to(service, client(1), server), None);
        let (second, _) = model.pick(service, client(1), &[]).expect("another one");
        assert_ne!(second, server);
        model.flow_began(service, client(1).ip(), second, now);
        let overflows = model.servers[server].overflows;
        assert_eq!(model.flow_goes_to(service, client(1), second), None, "its own has no room");
        assert_eq!(model.servers[server].overflows, overflows, "nobody came");
        model.flow_ended(service, client(1).ip(), server, EndReason::Killed, now);
        assert_eq!(model.flow_goes_to(service, client(1), second), Some(Onward { server, is_lost: false }));
    }
}

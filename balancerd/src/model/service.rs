//! A service: listen addresses offered to clients, bound to one pool, and who may come how often.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use wire::address::answers_at;
use wire::difference::MOST_NETWORKS;
use wire::report::{EndReason, ServiceReport, Waiting};
use wire::settings::{ServiceSettings, Transport};

use super::PoolId;
use super::access::Access;
use super::clients::Clients;
use super::traffic::Traffic;

/// What the rate of new connections may be behind with: a burst of a tenth of a second's is let in at once.
const BURST: Duration = Duration::from_millis(100);

/// A service.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) settings: ServiceSettings,
    pub(super) pool: PoolId,
    /// Where it listens in fact: with the ports that the kernel chose.
    pub(super) addresses: Vec<SocketAddr>,
    /// It was removed, and is gone when nobody listens for it and its last session has ended.
    pub(super) leaving: bool,
    /// The poller was told that it accepts.
    pub(super) accepting: bool,
    /// Somebody listens for it: clients may still come.
    pub(super) open: bool,
    pub(super) accept_failures: u64,
    /// Datagrams that the kernel had no room for.
    pub(super) receive_overflows: u64,
    pub(super) traffic: Traffic,
    /// Whom it lets in.
    pub(super) access: Access,
    /// Its settings for a report, in which long lists are cut off.
    shown: ServiceSettings,
    /// When the next session would come if they came evenly, as often as they may.
    next_by_rate: Option<Instant>,
    /// Always counted, for a limit that comes later holds for those who are there.
    clients: Clients,
}

impl Service {
    pub(super) fn new(name: &str, settings: ServiceSettings, pool: PoolId, access: Access) -> Self {
        let shown = shown(&settings);
        let clients = Clients::new(settings.client_subnet_ipv6);
        Self {
            name: name.to_owned(),
            settings,
            pool,
            addresses: Vec::new(),
            leaving: false,
            accepting: true,
            open: true,
            accept_failures: 0,
            receive_overflows: 0,
            traffic: Traffic::default(),
            access,
            shown,
            next_by_rate: None,
            clients,
        }
    }

    /// Whether nothing more can come of it.
    pub(super) fn is_gone(&self) -> bool {
        self.leaving && !self.open && self.traffic.active == 0
    }

    /// Whether what is sent to an address comes to it.
    pub(super) fn answers_at(&self, address: SocketAddr) -> bool {
        self.settings.listen.iter().chain(&self.addresses).any(|own| answers_at(*own, address))
    }

    /// Why it takes no further client now, if it does not, and when it does again if that is known.
    pub(super) fn waiting(&self, now: Instant) -> Option<(Waiting, Option<Instant>)> {
        if self.settings.max_sessions.is_some_and(|limit| self.traffic.active >= limit.get()) {
            return Some((Waiting::ServiceFull, None));
        }
        if self.leaving {
            return Some((Waiting::Stopping, None));
        }
        let opens = self.next_by_rate?.checked_sub(self.burst(self.settings.sessions_per_second?))?;
        (opens > now).then_some((Waiting::Rate, Some(opens)))
    }

    /// What the rate may be behind with. Connections wait for their turn, and so come evenly; datagrams cannot, so where
    /// there are some, a whole second's sessions are let in at once.
    fn burst(&self, rate: NonZeroU32) -> Duration {
        let turn = Duration::from_secs(1) / rate.get();
        if self.settings.protocol.has(Transport::Udp) { Duration::from_secs(1) - turn } else { BURST }
    }

    /// A client came. Why it is sent away, if it is; it counts as a session either way.
    pub(super) fn admit(&mut self, client: IpAddr, now: Instant) -> Result<(), EndReason> {
        self.began();
        self.let_in(client)?;
        // Those who are sent away take nobody's turn.
        self.take_turn(now);
        Ok(())
    }

    /// A connection came of which it is not known yet who its client is. It counts as a session, and takes a turn: who
    /// comes is known when others have been accepted behind it.
    pub(super) fn admit_newcomer(&mut self, now: Instant) {
        self.began();
        self.take_turn(now);
    }

    /// Who a newcomer is. Why it is sent away, if it is.
    pub(super) fn let_in(&mut self, client: IpAddr) -> Result<(), EndReason> {
        if !self.lets_in(client) {
            return Err(EndReason::Denied);
        }
        if !self.has_room_for(client) {
            return Err(EndReason::ClientLimit);
        }
        self.clients.came(client);
        Ok(())
    }

    /// Whether a client has fewer sessions than one may have.
    pub(super) fn has_room_for(&self, client: IpAddr) -> bool {
        self.settings.sessions_per_client.is_none_or(|limit| self.clients.count(client) < limit.get())
    }

    /// Whether it limits how many clients are accepted.
    pub(super) fn has_limit(&self) -> bool {
        let settings = &self.settings;
        settings.sessions_per_second.is_some()
            || settings.max_sessions.is_some()
            || settings.sessions_per_client.is_some()
    }

    /// A client had gone when it was accepted.
    pub(super) fn came_and_went(&mut self, reason: EndReason) {
        self.began();
        self.traffic.ended(reason);
    }

    fn began(&mut self) {
        self.traffic.began();
        self.traffic.total += 1;
    }

    fn take_turn(&mut self, now: Instant) {
        if let Some(rate) = self.settings.sessions_per_second {
            let next = self.next_by_rate.map_or(now, |next| next.max(now));
            self.next_by_rate = Some(next + Duration::from_secs(1) / rate.get());
        }
    }

    /// How long the header of a connection from this address may take, if it has to begin with one.
    pub(super) fn header_time(&self, peer: IpAddr) -> Option<Duration> {
        self.access.is_proxy(peer).then(|| Duration::from_millis(self.settings.proxy_timeout_ms))
    }

    /// Whether the networks let a client in.
    pub(super) fn lets_in(&self, client: IpAddr) -> bool {
        self.access.lets_in(client)
    }

    /// A session of somebody who is nobody's client ended: not let in, or never known.
    pub(super) fn ended_outside(&mut self, reason: EndReason) {
        self.traffic.ended(reason);
    }

    /// A session of a client ended.
    pub(super) fn ended(&mut self, client: IpAddr, reason: EndReason) {
        self.traffic.ended(reason);
        self.clients.left(client);
    }

    /// Whether it has these settings already.
    pub(super) fn is_set_to(&self, settings: &ServiceSettings, pool: PoolId, access: &Access) -> bool {
        self.pool == pool && self.access == *access && self.settings == *settings
    }

    /// Takes other settings.
    pub(super) fn set(&mut self, settings: ServiceSettings, pool: PoolId, access: Access) {
        if settings.sessions_per_second != self.settings.sessions_per_second {
            self.next_by_rate = None;
        }
        self.clients.count_by(settings.client_subnet_ipv6);
        self.shown = shown(&settings);
        (self.settings, self.pool, self.access) = (settings, pool, access);
    }

    pub(super) fn report(&self, waiting: Option<Waiting>) -> ServiceReport {
        let [allowed_networks, denied_networks, proxy_networks] = self.access.counts();
        ServiceReport {
            name: self.name.clone(),
            settings: self.shown.clone(),
            addresses: self.addresses.clone(),
            leaving: self.leaving,
            accepting: self.accepting && waiting.is_none(),
            waiting,
            active: self.traffic.active,
            total: self.traffic.total,
            bytes_in: self.traffic.bytes_in,
            bytes_out: self.traffic.bytes_out,
            accept_failures: self.accept_failures,
            ended: self.traffic.ended_by_reason(),
            datagrams: self.traffic.datagrams(),
            receive_overflows: self.receive_overflows,
            allowed_networks,
            denied_networks,
            proxy_networks,
        }
    }
}

/// The settings of a service with the first [`MOST_NETWORKS`] of each list.
fn shown(settings: &ServiceSettings) -> ServiceSettings {
    let mut shown = settings.clone();
    for list in [&mut shown.allow, &mut shown.deny, &mut shown.accept_proxy] {
        list.truncate(MOST_NETWORKS);
        list.shrink_to_fit();
    }
    shown
}

#[cfg(test)]
mod tests {
    use wire::settings::Protocol;

    use super::*;
    use crate::event;

    fn service(change: impl FnOnce(&mut ServiceSettings)) -> Service {
        let mut settings = ServiceSettings::new(vec![([127, 0, 0, 1], 80).into()], "web");
        change(&mut settings);
        let access = Access::new(&settings);
        Service::new("web", settings, PoolId::default(), access)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn denied_networks_win_over_allowed_ones() {
        let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a network")).collect();
        let service = service(|settings| {
            settings.allow = networks(&["10.0.0.0/8", "2001:db8::/32"]);
            settings.deny = networks(&["10.1.0.0/16"]);
        });
        for (client, let_in) in
            [("10.0.0.1", true), ("10.1.0.1", false), ("192.0.2.1", false), ("2001:db8::1", true), ("::1", false)]
        {
            assert_eq!(service.lets_in(ip(client)), let_in, "{client}");
        }
    }

    #[test]
    fn a_client_has_so_many_sessions_and_no_more() {
        let now = event::now();
        let mut service = service(|settings| settings.sessions_per_client = NonZeroU32::new(2));
        let client = ip("10.0.0.1");
        assert_eq!([service.admit(client, now), service.admit(client, now)], [Ok(()), Ok(())]);
        assert_eq!(service.admit(client, now), Err(EndReason::ClientLimit));
        service.ended_outside(EndReason::ClientLimit);
        assert_eq!(service.admit(ip("10.0.0.2"), now), Ok(()));
        service.ended(client, EndReason::ClientClosed);
        assert_eq!(service.admit(client, now), Ok(()));
        let unlimited = ServiceSettings::new(vec![], "web");
        let access = Access::new(&unlimited);
        service.set(unlimited, PoolId::default(), access.clone());
        assert_eq!(service.admit(client, now), Ok(()), "the limit is gone");
        let mut settings = service.settings.clone();
        settings.sessions_per_client = NonZeroU32::new(3);
        service.set(settings, PoolId::default(), access);
        assert_eq!(service.admit(client, now), Err(EndReason::ClientLimit), "who is there counts");
        service.ended_outside(EndReason::ClientLimit);
        for client in [client, client, client, ip("10.0.0.2")] {
            service.ended(client, EndReason::ServerClosed);
        }
        assert_eq!((service.traffic.active, service.clients.is_empty()), (0, true));
    }

    #[test]
    fn a_rate_is_held_over_any_time_but_for_its_burst() {
        let start = event::now();
        let mut service = service(|settings| settings.sessions_per_second = NonZeroU32::new(100));
        let (mut now, mut count) = (start, 0);
        while now < start + Duration::from_secs(3) {
            match service.waiting(now) {
                None => {
                    service.admit(ip("10.0.0.1"), now).expect("nobody is denied");
                    count += 1;
                }
                Some((reason, at)) => {
                    assert_eq!(reason, Waiting::Rate);
                    now = at.expect("a time").max(now + Duration::from_micros(1));
                }
            }
        }
        assert!((300..=312).contains(&count), "{count}");
    }

    #[test]
    fn where_nobody_can_wait_a_whole_seconds_sessions_are_let_in_at_once() {
        let now = event::now();
        for (protocol, burst) in [(Protocol::Tcp, 1), (Protocol::Udp, 5), (Protocol::TcpAndUdp, 5)] {
            let mut service = service(|settings| {
                (settings.protocol, settings.sessions_per_second) = (protocol, NonZeroU32::new(5));
            });
            let mut admitted_at = |now| {
                let mut count = 0;
                while service.waiting(now).is_none() {
                    service.admit(ip("10.0.0.1"), now).expect("nobody is denied");
                    count += 1;
                }
                count
            };
            assert_eq!(admitted_at(now), burst, "{protocol}");
            assert_eq!(admitted_at(now + Duration::from_millis(201)), 1, "{protocol}");
            assert_eq!(admitted_at(now + Duration::from_secs(10)), burst, "{protocol}");
        }
    }

    #[test]
    fn a_full_service_waits_for_an_end() {
        let now = event::now();
        let mut service = service(|settings| settings.max_sessions = std::num::NonZeroU64::new(1));
        assert_eq!(service.waiting(now), None);
        service.admit(ip("10.0.0.1"), now).expect("room");
        assert_eq!(service.waiting(now), Some((Waiting::ServiceFull, None)));
        service.ended(ip("10.0.0.1"), EndReason::ClientClosed);
        assert_eq!(service.waiting(now), None);
    }
}

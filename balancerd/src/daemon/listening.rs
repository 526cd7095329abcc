//! Where the services listen: what is bound before a change, what is closed after it, and who waits meanwhile.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Instant;

use slotmap::{Key, SlotMap};
use tracing::warn;
use wire::control::{Change, Refusal, Request, Response};
use wire::settings::{Settings, Transport};

use super::{Daemon, MOST_NAMED};
use crate::model::ServiceId;
use crate::net::Context;
use crate::net::listen::{self, Endpoint, ListenError, Listener, ListenerId, Place};
use crate::net::udp::{DatagramListener, DatagramListenerId};
use crate::source::Source;

/// What was bound for a change, and serves nobody yet.
#[derive(Debug, Default)]
pub(super) struct Bound {
    streams: Vec<Listener>,
    datagrams: Vec<DatagramListener>,
}

impl Daemon {
    /// Does beforehand what a change needs of the operating system, so that it is refused or made as a whole.
    pub(super) fn bind_for(&mut self, change: &Change, now: Instant) -> Result<Bound, Refusal> {
        match change {
            Change::AddService { service, settings } => {
                let dry = Request::Change { change: change.clone(), dry_run: true };
                if let Ok((Response::Refused(refusal), _)) = self.model.apply(&dry, None, now) {
                    return Err(refusal);
                }
                let mut wanted = self.model.settings();
                wanted.services.insert(service.clone(), settings.clone());
                bind(&wanted, &self.listeners, self.flows.listeners()).map_err(|error| not_bound(&error))
            }
            Change::AddPool { pool, settings } => {
                listen::check_servers(&settings.server_side)
                    .map_err(|fault| not_bound(&ListenError::PoolOption { pool: pool.clone(), fault }))?;
                Ok(Bound::default())
            }
            _ => Ok(Bound::default()),
        }
    }

    /// Lets those in who wait at a listener that is about to go, and gives them their servers, as those who came in this
    /// turn: what serves them now may go with it.
    pub(super) fn serve_those_who_wait(&mut self, settings: &Settings, now: Instant) {
        let kept = wanted_places(settings, Transport::Tcp);
        let cx = &mut lend!(self, now);
        for listener in
            self.listeners.values_mut().filter(|listener| !kept.iter().any(|place| listener.place().does_for(*place)))
        {
            self.sessions.accept_last(listener, cx);
        }
        self.sessions.settle(cx);
    }

    /// Lets every service listen where it is to: with the listeners there are, and with those that were bound for it.
    pub(super) fn relisten(&mut self, bound: Bound, now: Instant) {
        for id in share_out(&mut self.listeners, bound.streams, self.model.wanted_listeners(Transport::Tcp)) {
            self.unlisten(id, true, now);
        }
        let wanted = self.model.wanted_listeners(Transport::Udp);
        let unwanted = share_out(self.flows.listeners_mut(), bound.datagrams, wanted);
        let cx = &mut lend!(self, now);
        for id in unwanted {
            self.flows.unlisten(id, cx);
        }
        for listener in self.listeners.values_mut() {
            if let Some(side) = self.model.client_side(listener.service()) {
                listener.set(side);
            }
        }
        let mut addresses: HashMap<ServiceId, Vec<SocketAddr>> = HashMap::new();
        for (service, address) in self.listening() {
            addresses.entry(service).or_default().push(address);
        }
        self.model.vitals.session_limit =
            self.descriptors.sessions(self.listeners.len() + self.flows.listeners().len());
        self.sessions.listens_at(self.listeners.values().map(Listener::address).collect());
        self.model.listening(addresses);
    }

    /// Where it listens, and for whom.
    fn listening(&self) -> impl Iterator<Item = (ServiceId, SocketAddr)> {
        let streams = self.listeners.values().map(|listener| (listener.service(), listener.address()));
        let datagrams = self.flows.listeners().values().map(|listener| (listener.service(), listener.address()));
        streams.chain(datagrams)
    }

    /// Some of the listeners, for a log line.
    pub(super) fn named_listeners(&self) -> String {
        let udp = self.flows.listeners().values().map(|listener| format!("{}/udp", listener.address()));
        let all: Vec<String> =
            self.listeners.values().map(|listener| listener.address().to_string()).chain(udp).collect();
        let mut named: Vec<String> = all.iter().take(MOST_NAMED).cloned().collect();
        if all.len() > MOST_NAMED {
            named.push(format!("and {} more", all.len() - MOST_NAMED));
        }
        named.join(",")
    }

    /// Closes a listener. Who waits in the kernel's queue was let in before, and is still served if `serve` says so.
    pub(super) fn unlisten(&mut self, id: ListenerId, serve: bool, now: Instant) {
        let Some(mut listener) = self.listeners.remove(id) else { return };
        let cx = &mut lend!(self, now);
        if serve {
            self.sessions.accept_last(&mut listener, cx);
        }
        self.model.accepting(listener.service(), false);
    }

    /// Tells the poller what the listeners wait for now. One that epoll has no room for comes back after a pause.
    pub(super) fn settle_listeners(&mut self, now: Instant) {
        self.opens_at = None;
        for (id, listener) in &mut self.listeners {
            let waiting = self.model.waiting(listener.service(), now);
            if let Some((_, Some(opens))) = waiting {
                self.opens_at = Some(self.opens_at.map_or(opens, |at| at.min(opens)));
            }
            let key = Source::Listener(id).key();
            let accepting = listener.settle(&self.poller, key, waiting.is_none(), now).unwrap_or_else(|error| {
                if self.unpolled.on_event(now) {
                    warn!(%error, "epoll has no room for a listener: clients wait in the kernel's queue");
                }
                false
            });
            self.model.accepting(listener.service(), accepting);
        }
        let cx = &lend!(self, now);
        if let Err(error) = self.flows.settle_listeners(|id| Source::DatagramListener(id).key(), cx)
            && self.unpolled.on_event(now)
        {
            warn!(%error, "epoll has no room for a listener: datagrams wait in the kernel's queue");
        }
    }
}

/// Gives each place that is wanted to a listener there is, or to one that was bound for it. Those that nobody wants.
fn share_out<K: Key, L: Endpoint>(
    listeners: &mut SlotMap<K, L>,
    bound: Vec<L>,
    wanted: impl Iterator<Item = (SocketAddr, ServiceId)>,
) -> Vec<K> {
    for listener in bound {
        listeners.insert(listener);
    }
    // A place may be there several times, with port 0: then each keeps its own.
    let (addresses, services): (Vec<SocketAddr>, Vec<ServiceId>) = wanted.unzip();
    let mut wanted: Vec<(Place, ServiceId)> = places(&addresses).into_iter().zip(services).collect();
    let mut take = |is_it: &dyn Fn((Place, ServiceId)) -> bool| {
        let at = wanted.iter().position(|one| is_it(*one))?;
        Some(wanted.swap_remove(at).1)
    };
    let others = listeners
        .iter()
        .filter(|(_, it)| take(&|(place, service)| it.place().does_for(place) && it.service() == service).is_none())
        .map(|(id, _)| id);
    let others: Vec<K> = others.collect();
    let mut unwanted = Vec::new();
    for id in others {
        let place = listeners[id].place();
        match take(&|(wanted, _)| place.does_for(wanted)) {
            Some(service) => listeners[id].serve(service),
            None => unwanted.push(id),
        }
    }
    unwanted
}

/// Binds the addresses of the settings at which nobody listens yet: all of them, or none. One may overlap with those
/// of ours that are closed afterwards: where a service goes from `0.0.0.0:80` to `10.0.0.1:80`, only a connect that is half
/// done at that moment is lost.
pub(super) fn bind(
    settings: &Settings,
    streams: &SlotMap<ListenerId, Listener>,
    datagrams: &SlotMap<DatagramListenerId, DatagramListener>,
) -> Result<Bound, ListenError> {
    for (name, service) in &settings.services {
        listen::check(&service.client_side).map_err(|fault| ListenError::Option { service: name.clone(), fault })?;
    }
    for (name, pool) in &settings.pools {
        listen::check_servers(&pool.server_side)
            .map_err(|fault| ListenError::PoolOption { pool: name.clone(), fault })?;
    }
    // Datagrams first: a client that came to a connection would be reset if another bind failed after it.
    let datagrams = bind_all(settings, datagrams)?;
    Ok(Bound { datagrams, streams: bind_all(settings, streams)? })
}

fn bind_all<K: Key, L: Endpoint>(settings: &Settings, listeners: &SlotMap<K, L>) -> Result<Vec<L>, ListenError> {
    let (mut going, mut fresh): (Vec<&L>, Vec<Place>) = (listeners.values().collect(), Vec::new());
    for place in wanted_places(settings, L::TRANSPORT) {
        match going.iter().position(|listener| listener.place().does_for(place)) {
            Some(at) => drop(going.swap_remove(at)),
            None => fresh.push(place),
        }
    }
    let in_the_way = |place: Place| {
        let port = place.address.port();
        going.iter().any(|listener| port != 0 && listener.address().port() == port)
    };
    // What overlaps with nobody first: clients come to what overlaps at once, and would be reset if another bind failed.
    fresh.sort_by_key(|place| in_the_way(*place));
    let mut bound = Vec::with_capacity(fresh.len());
    for place in fresh {
        let sharing = in_the_way(place);
        going.iter().filter(|_| sharing).for_each(|listener| listener.share(true));
        let listener = L::bind(place, sharing);
        going.iter().filter(|_| sharing).for_each(|listener| listener.share(false));
        let listener = listener?;
        if sharing {
            listener.share(false);
        }
        bound.push(listener);
    }
    Ok(bound)
}

/// Where the services are to listen with a transport.
fn wanted_places(settings: &Settings, transport: Transport) -> Vec<Place> {
    let services = settings.services.values().filter(|service| service.protocol.has(transport));
    let its = services.flat_map(|service| service.listen.iter().map(|listen| (*listen, service.freebind)));
    let (addresses, freebind): (Vec<SocketAddr>, Vec<bool>) = its.unzip();
    places(&addresses).into_iter().zip(freebind).map(|(place, freebind)| Place { freebind, ..place }).collect()
}

/// Where listeners of these addresses are to be. The IPv6 wildcard takes IPv4 clients, too, where nobody else is there
/// for them.
fn places(addresses: &[SocketAddr]) -> Vec<Place> {
    let is_ipv4 = |address: &SocketAddr| address.ip().to_canonical().is_ipv4();
    let ipv4: HashSet<u16> = addresses.iter().filter(|address| is_ipv4(address)).map(SocketAddr::port).collect();
    let only_ipv6 = |address: &SocketAddr| !is_ipv4(address) && ipv4.contains(&address.port());
    addresses
        .iter()
        .map(|address| Place { address: *address, only_ipv6: only_ipv6(address), freebind: false })
        .collect()
}

pub(super) fn not_bound(error: &ListenError) -> Refusal {
    Refusal::NotBound { fault: error.to_string() }
}

//! The flows of all services: gives each datagram of a client to its server, and each answer to who asked.
//!
//! A flow is a session that speaks UDP. It has one socket, connected to its server: so the kernel gives answers and ICMP
//! errors to the flow that they belong to, and nobody else's datagrams at all. What cannot be sent at once is dropped and
//! counted: a queue of our own would only make a datagram late.

mod complaints;
mod datagram;
mod flow;
mod joiner;
mod listener;
mod looks;
mod moves;
mod notices;
mod one_way;
mod portion;
mod table;
mod too_long;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use slotmap::SlotMap;
use tracing::debug;
use wire::address::canonical;
use wire::flow::{HeaderScope, PathMtu};
use wire::report::{DropReason, EndReason, SessionReport};
use wire::settings::{SendProxy, Transport};

use super::Context;
use super::connect::{connect_datagrams, is_a_circle, is_ours, missing_source};
use super::listen::Endpoint;
use super::proxy::{Addresses, decode_datagram, encode_datagram};
use crate::event::{Ends, Interest, Key, Ready};
use crate::model::{Direction, Handling, Model, ServerId, ServiceId, SessionFilter, milliseconds};
use complaints::Complaints;
use datagram::{
    Received, Route, Sent, Train, control_room, forget_errors, receive, receive_single, send_all, send_introduced,
    tells_of_the_other_side,
};
use flow::{Flow, FlowKey};
use joiner::Joiner;
pub(crate) use listener::{DatagramListener, DatagramListenerId};
use looks::Looks;
use notices::Notices;
use one_way::OneWay;
pub(crate) use table::FlowId;
use table::Table;

/// Calls that an event of a flow's server is worth at most.
const MOST_ANSWERS: u8 = 16;

/// Bytes that all sockets which are ready in a turn move together: some milliseconds, as splicing takes them.
const BYTES_PER_TURN: usize = 4 * 1024 * 1024;

/// Bytes that one of them moves at least, however many are ready: what one call gives at most.
const LEAST_BYTES: usize = 64 * 1024;

/// Answers that have to be there at once, and all of a portion that has grown so far, for a flow to let the kernel join them:
/// that is a call which most flows need not make, and each answer costs more from then on.
const PORTION_TO_JOIN: u8 = 8;

/// Datagrams that are taken from a listener which is about to close: those that waited at that moment. As many as it has room
/// for: the kernel doubles what it is asked for, and counts more than half a KiB for each.
const MOST_LAST: u32 = 16 * 1024;

/// Those of them that are taken in one turn when the balancer was told to stop. Each may begin a flow.
const LAST_PER_TURN: u32 = 64;

/// Flows that leave their server or are looked at in one turn, and that end in it for being idle. Another socket, or to close
/// one, takes some fifteen microseconds each, and sessions end in the same turn; what is left waits for the next one, behind
/// the sockets that are ready.
const FLOWS_PER_TURN: usize = 128;

/// Every flow, the listeners that they come by, and what is common to them.
pub(crate) struct Flows {
    listeners: SlotMap<DatagramListenerId, DatagramListener>,
    table: Table<UdpSocket>,
    one_way: OneWay,
    notices: Notices,
    key: fn(FlowId) -> Key,
    joiner: Joiner,
    control: Vec<u8>,
    /// Flows that are still to be looked at: whether they go on with another server.
    to_look_at: Looks,
    /// Those that are to leave their server, or to end. Some may have done so since.
    to_leave: Ends<FlowId>,
    /// Bytes that an event is worth in this turn.
    most_bytes: usize,
    /// Connects so far: whose turn it is among several sources.
    connects: usize,
    /// Of this run of the balancer, for the ids of flows.
    run: u64,
    ended: u64,
    complaints: Complaints,
}

/// A client's datagrams, as they came.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    listener: DatagramListenerId,
    service: ServiceId,
    key: FlowKey,
    /// As the header says, or the peer.
    client: SocketAddr,
    handling: Handling,
    /// Bytes of a header that were taken off it.
    taken_off: usize,
    /// It came in fragments.
    in_fragments: bool,
    /// It may have come before the balancer was told to stop.
    is_last: bool,
}

impl Flows {
    /// None yet. `key` says what a flow is called at the poller.
    pub(crate) fn new(key: fn(FlowId) -> Key) -> Self {
        Self {
            listeners: SlotMap::with_key(),
            table: Table::new(),
            one_way: OneWay::default(),
            notices: Notices::default(),
            key,
            joiner: Joiner::default(),
            control: control_room(),
            to_look_at: Looks::default(),
            to_leave: Ends::new(),
            most_bytes: LEAST_BYTES,
            connects: 0,
            run: fastrand::u64(..),
            ended: 0,
            complaints: Complaints::default(),
        }
    }

    /// Flows alive.
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// Flows that have ended since the start.
    pub(crate) fn ended(&self) -> u64 {
        self.ended
    }

    /// The listeners that flows come by.
    pub(crate) fn listeners(&self) -> &SlotMap<DatagramListenerId, DatagramListener> {
        &self.listeners
    }

    /// The same, to be added to, and to be given to other services. One is closed by [`Flows::unlisten`].
    pub(crate) fn listeners_mut(&mut self) -> &mut SlotMap<DatagramListenerId, DatagramListener> {
        &mut self.listeners
    }

    /// Closes a listener, when what waits there was served. Its flows go on by another listener that hears the address that
    /// their clients ask, or end.
    pub(crate) fn unlisten(&mut self, id: DatagramListenerId, cx: &mut Context<'_>) {
        self.receive(id, MOST_LAST, usize::MAX, cx);
        let Some(gone) = self.listeners.remove(id) else { return };
        let its = self.table.iter().filter(|(_, flow)| flow.listener == id).map(|(id, flow)| (id, flow.key.asked));
        for (flow, asked) in its.collect::<Vec<_>>() {
            let hears = |other: &DatagramListener| other.service() == gone.service() && other.hears(asked);
            let heir = self.listeners.iter().find(|(_, other)| hears(other)).map(|(id, _)| id);
            match (heir, self.table.get_mut(flow)) {
                (Some(heir), Some(flow)) => flow.listener = heir,
                _ => self.leave_soon(flow, EndReason::Unlistened),
            }
        }
    }

    /// The balancer was told to stop: what waits at the listeners may still begin flows. A part of it does at once, so that
    /// mostly nothing is left when whoever told it is answered.
    pub(crate) fn stop(&mut self, cx: &mut Context<'_>) {
        for id in self.listeners.keys().collect::<Vec<_>>() {
            self.listeners[id].stop(MOST_LAST);
            self.receive_last_of(id, cx);
        }
    }

    /// Whether something may wait that came before the balancer was told to stop.
    pub(crate) fn has_last(&self) -> bool {
        self.listeners.values().any(DatagramListener::has_last)
    }

    /// Takes some of what waited at a listener when the balancer was told to stop.
    fn receive_last(&mut self, cx: &mut Context<'_>) {
        if let Some(id) = self.listeners.iter().find(|(_, it)| it.has_last()).map(|(id, _)| id) {
            self.receive_last_of(id, cx);
        }
    }

    fn receive_last_of(&mut self, id: DatagramListenerId, cx: &mut Context<'_>) {
        if self.listeners[id].has_last() {
            let found = self.receive(id, LAST_PER_TURN, usize::MAX, cx);
            self.listeners[id].on_last(found, found < LAST_PER_TURN);
        }
    }

    /// Tells the poller what the listeners wait for. One that epoll has no room for is tried again in the next turn.
    pub(crate) fn settle_listeners(
        &mut self,
        key: impl Fn(DatagramListenerId) -> Key,
        cx: &Context<'_>,
    ) -> std::io::Result<()> {
        self.listeners.iter_mut().try_for_each(|(id, listener)| listener.settle(cx.poller, key(id)))
    }

    /// A turn begins in which so many sockets are ready: what it moves is shared out among them.
    pub(crate) fn on_turn(&mut self, ready: usize) {
        self.most_bytes = (BYTES_PER_TURN / ready.max(1)).max(LEAST_BYTES);
    }

    /// A listener is ready: takes a portion of what waits there.
    pub(crate) fn receive_from(&mut self, id: DatagramListenerId, cx: &mut Context<'_>) {
        let Some(portion) = self.listeners.get(id).map(DatagramListener::portion) else { return };
        let found = self.receive(id, portion, self.most_bytes, cx);
        if let Some(listener) = self.listeners.get_mut(id) {
            listener.on_received(found);
        }
    }

    /// How many of so many calls found something; none is made any more when an event's bytes have come.
    fn receive(&mut self, id: DatagramListenerId, calls: u32, most_bytes: usize, cx: &mut Context<'_>) -> u32 {
        // Given back at the end. If a fault is in between, the one that stands in for it makes a buffer of its own.
        let mut joiner = std::mem::take(&mut self.joiner);
        let found = self.receive_into(&mut joiner, id, calls, most_bytes, cx);
        if let Some((received, train)) = joiner.rest() {
            self.on_received(id, received, train, cx);
        }
        self.joiner = joiner;
        found
    }

    fn receive_into(
        &mut self,
        joiner: &mut Joiner,
        id: DatagramListenerId,
        calls: u32,
        most_bytes: usize,
        cx: &mut Context<'_>,
    ) -> u32 {
        let mut bytes = 0;
        for found in 0..calls {
            if bytes >= most_bytes {
                return calls;
            }
            let Some(listener) = self.listeners.get_mut(id) else { return found };
            let service = listener.service();
            match listener.receive(joiner.room(), &mut self.control) {
                Ok((received, lost)) => {
                    if lost > 0 {
                        cx.model.receive_overflowed(service, lost);
                    }
                    bytes += received.length;
                    joiner.add(received);
                    while let Some((received, train)) = joiner.next_whole() {
                        self.on_received(id, received, train, cx);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return found,
                Err(errno) => {
                    // Such as memory that the kernel is short of: the next turn tries again.
                    debug!(error = errno.desc(), "datagrams could not be received");
                    return found;
                }
            }
        }
        calls
    }

    fn on_received(&mut self, id: DatagramListenerId, received: Received, train: Train<'_>, cx: &mut Context<'_>) {
        let listener = &self.listeners[id];
        let service = listener.service();
        let Some(handling) = cx.model.handling(service) else { return };
        let client = canonical(received.from);
        let key = FlowKey { peer: received.from, asked: listener.asked(&received), client, server: None };
        let is_last = listener.has_last();
        let in_fragments = received.in_fragments;
        let arrival = Arrival { listener: id, service, key, client, handling, taken_off: 0, in_fragments, is_last };
        if received.is_truncated {
            cx.model.datagrams_dropped(service, None, Direction::In, 1, DropReason::Truncated);
        } else if cx.model.header_time(service, received.from.ip()).is_some() {
            for datagram in train.datagrams() {
                self.on_headed(arrival, datagram, cx);
            }
        } else {
            self.on_datagrams(arrival, train, cx);
        }
    }

    /// A datagram from somebody whose datagrams begin with a header: each, or the first of a flow.
    fn on_headed(&mut self, mut arrival: Arrival, datagram: &[u8], cx: &mut Context<'_>) {
        let first_only = arrival.handling.flows.accept_proxy_in == HeaderScope::FirstDatagram;
        if first_only && self.find(&arrival.key, cx).is_some() {
            return self.on_datagrams(arrival, Train::single(datagram), cx);
        }
        match decode_datagram(datagram) {
            Ok((header, length)) => {
                arrival.client = header.addresses.map_or(arrival.client, |addresses| canonical(addresses.source));
                arrival.taken_off = length;
                if !first_only {
                    arrival.key.client = arrival.client;
                }
                self.on_datagrams(arrival, Train::single(&datagram[length..]), cx);
            }
            Err(fault) => {
                cx.model.datagrams_dropped(arrival.service, None, Direction::In, 1, DropReason::BadHeader);
                self.complaints.on_bad_header(arrival.key.peer, fault, cx.now);
            }
        }
    }

    fn on_datagrams(&mut self, arrival: Arrival, train: Train<'_>, cx: &mut Context<'_>) {
        match arrival.handling.policy {
            policy if policy.one_way => self.on_one_way(arrival, train, cx),
            policy if policy.per_datagram => {
                for datagram in train.datagrams() {
                    self.on_its_own(arrival, Train::single(datagram), cx);
                }
            }
            _ => self.on_request(arrival, train, cx),
        }
    }

    /// Datagrams of a flow. A flow that may have no more of them is followed by another one.
    fn on_request(&mut self, arrival: Arrival, train: Train<'_>, cx: &mut Context<'_>) {
        let mut left = Some(train);
        while let Some(train) = left {
            let Some(id) = self.flow_of(arrival, train.len(), cx) else { return };
            left = self.forward(id, arrival, train, cx);
        }
    }

    /// The flow that takes datagrams of this key. What waits to become of it does so now: none goes where it is to have left.
    fn find(&mut self, key: &FlowKey, cx: &mut Context<'_>) -> Option<FlowId> {
        let id = self.table.find(key)?;
        self.look_at(id, true, cx);
        self.table.get(id).map(|_| id)
    }

    /// The flow of a client, which begins if there is none and there may be one.
    fn flow_of(&mut self, arrival: Arrival, datagrams: usize, cx: &mut Context<'_>) -> Option<FlowId> {
        match self.find(&arrival.key, cx) {
            Some(id) if self.table.get(id).is_some_and(|flow| flow.service == arrival.service) => Some(id),
            other => {
                // Its listener is another service's now.
                if let Some(id) = other {
                    self.end(id, EndReason::Unlistened, cx);
                }
                self.begin(arrival, cx).inspect_err(|reason| self.refuse(arrival, *reason, datagrams, cx)).ok()
            }
        }
    }

    /// A datagram for which a server is picked by itself.
    fn on_its_own(&mut self, mut arrival: Arrival, train: Train<'_>, cx: &mut Context<'_>) {
        let Some((server, _)) = cx.model.pick(arrival.service, arrival.client, &[]) else {
            return self.refuse(arrival, no_server(arrival.service, cx), train.len(), cx);
        };
        arrival.key.server = Some(server);
        self.on_request(arrival, train, cx);
    }

    /// Sends a flow as many datagrams as it may have. Those that are left.
    fn forward<'b>(
        &mut self,
        id: FlowId,
        arrival: Arrival,
        train: Train<'b>,
        cx: &mut Context<'_>,
    ) -> Option<Train<'b>> {
        let run = self.run;
        let flow = self.table.get_mut(id)?;
        let (taken, left) = train.split_at(flow.room(train.len(), &arrival.handling.flows));
        let Some(train) = taken else {
            // It had more before it was said that it may not.
            self.table.close(id);
            return left;
        };
        let server = flow.server;
        flow.listener = arrival.listener;
        let header = header(flow, arrival, run);
        let in_each = arrival.handling.policy.send_proxy_in == HeaderScope::EachDatagram;
        let most = arrival.most_in_fragments(&self.notices);
        let sent = if header.is_empty() || in_each {
            send_all(&flow.socket, None, &header, train, &mut flow.singly_in, most)
        } else {
            send_introduced(&flow.socket, &header, train, &mut flow.singly_in, most)
        };
        if let Some(refused) = sent.too_long {
            arrival.tell_too_long(&mut self.notices, &flow.socket, train, refused, cx.now);
        }
        flow.longest = flow.longest.or(arrival.longest(train, header.len()));
        flow.is_introduced |= sent.datagrams > 0;
        flow.on_request(sent.datagrams, sent.bytes, cx.now);
        let has_all = flow.has_all_requests(&arrival.handling.flows);
        let news = sent.news;
        count(arrival.service, server, Direction::In, &sent, cx.model);
        if has_all {
            self.table.close(id);
        }
        if let Some(errno) = news {
            self.on_unreachable(id, errno, cx);
        }
        if sent.is_stuck && self.table.get(id).is_some_and(|flow| flow.server == server) {
            let _ = self.go_on_with(id, server, cx);
        }
        left
    }

    /// Begins a flow, if there may be one.
    fn begin(&mut self, arrival: Arrival, cx: &mut Context<'_>) -> Result<FlowId, DropReason> {
        let Arrival { listener, service, key, client, handling, is_last, .. } = arrival;
        cx.model.may_begin_flow(service, client.ip(), is_last, cx.now)?;
        let (server, socket) = match key.server {
            Some(server) => (server, self.connect_to_picked(server, client, cx)?),
            None => self.connect(service, client, cx)?,
        };
        cx.model.flow_began(service, client.ip(), server, cx.now);
        let mut flow = Flow::new(key, client, service, server, socket, listener, cx.now);
        flow.looked_after = self.to_look_at.change();
        flow.number = cx.model.next_number();
        let number = flow.number;
        let id = self.table.insert(flow, &handling.flows);
        debug!(session = number, %client, server = %cx.model.server_address(server), "flow began");
        self.wait_for_answers(id, cx)?;
        Ok(id)
    }

    /// Waits for answers. A flow that epoll has no room for ends.
    fn wait_for_answers(&mut self, id: FlowId, cx: &mut Context<'_>) -> Result<(), DropReason> {
        let Some(flow) = self.table.get_mut(id) else { return Ok(()) };
        let told = cx.poller.set(&flow.socket, (self.key)(id), &mut flow.registered, Interest::READ);
        told.map_err(|_| {
            self.end(id, EndReason::Shortage, cx);
            DropReason::Shortage
        })
    }

    /// The server of a client, and a socket that is connected to it.
    fn connect(
        &mut self,
        service: ServiceId,
        client: SocketAddr,
        cx: &mut Context<'_>,
    ) -> Result<(ServerId, UdpSocket), DropReason> {
        let (mut tried, mut reason) = (Vec::new(), no_server(service, cx));
        for _ in 0..cx.model.tries(service) {
            let Some((server, _)) = cx.model.pick(service, client, &tried) else { break };
            match self.connect_to_picked(server, client, cx) {
                Ok(socket) => return Ok((server, socket)),
                Err(fault) => reason = fault,
            }
            tried.push(server);
        }
        Err(reason)
    }

    /// A socket that is connected to one server, since it was picked.
    fn connect_to_picked(
        &mut self,
        server: ServerId,
        client: SocketAddr,
        cx: &mut Context<'_>,
    ) -> Result<UdpSocket, DropReason> {
        self.connect_to(server, client, cx).map_err(|errno| {
            if is_ours(errno) {
                let missing = missing_source(errno, cx.model.server_address(server), cx.model.server_side(server));
                return if missing.is_some() { DropReason::NoSource } else { DropReason::Shortage };
            }
            self.tell_unreachable(server, errno, cx);
            DropReason::Unreachable
        })
    }

    fn connect_to(&mut self, server: ServerId, client: SocketAddr, cx: &mut Context<'_>) -> Result<UdpSocket, Errno> {
        let address = cx.model.server_address(server);
        if is_a_circle(address, self.listeners.values().map(Endpoint::address)) {
            return Err(Errno::ECONNREFUSED);
        }
        self.connects = self.connects.wrapping_add(1);
        let connected = connect_datagrams(address, cx.model.server_side(server), client, self.connects);
        let socket = connected.inspect_err(|errno| {
            if let Some(source) = missing_source(*errno, address, cx.model.server_side(server)) {
                self.complaints.on_no_source(cx.model.pool_name(server), source, cx.now);
            } else if *errno == Errno::EADDRNOTAVAIL || *errno == Errno::EADDRINUSE {
                cx.model.port_shortage();
            }
        })?;
        if cx.model.path_mtu(server) == PathMtu::Report {
            self.notices.keep_whole(&socket);
        }
        Ok(socket)
    }

    /// Sends to a server that does not answer.
    fn on_one_way(&mut self, arrival: Arrival, train: Train<'_>, cx: &mut Context<'_>) {
        let Arrival { service, client, handling, key, .. } = arrival;
        if !cx.model.lets_in(service, client.ip()) {
            return self.refuse(arrival, DropReason::Denied, train.len(), cx);
        }
        let Some((server, address)) = cx.model.pick(service, client, &[]) else {
            return self.refuse(arrival, no_server(arrival.service, cx), train.len(), cx);
        };
        let route = as_the_client(cx.model.server_side(server).transparent, client, address);
        if self.one_way.get_mut(server).is_none() {
            // All clients share the socket: it is bound to none of their addresses.
            match self.connect_to_picked(server, nobody(address), cx) {
                Ok(socket) => self.one_way.insert(server, socket),
                Err(reason) => return self.refuse(arrival, reason, train.len(), cx),
            }
        }
        let addresses = Addresses { source: client, destination: key.asked };
        let header = handling.send_proxy.map_or_else(Vec::new, |how| encode_datagram(how, Some(addresses), None));
        let Some(lane) = self.one_way.get_mut(server) else { return };
        let most = arrival.most_in_fragments(&self.notices);
        let sent = send_all(&lane.socket, route, &header, train, &mut lane.singly, most);
        if let Some(refused) = sent.too_long {
            arrival.tell_too_long(&mut self.notices, &lane.socket, train, refused, cx.now);
        }
        count(service, server, Direction::In, &sent, cx.model);
        if sent.is_stuck {
            self.one_way.remove(server);
        }
        if let Some(errno) = sent.news {
            self.tell_unreachable(server, errno, cx);
        }
    }

    /// The server of a flow is ready: takes a portion of its answers. A flow that is gone has nothing to say.
    pub(crate) fn ready(&mut self, id: FlowId, ready: Ready, cx: &mut Context<'_>) {
        self.take_answers(id, cx);
        if ready.failed
            && let Some(flow) = self.table.get(id)
        {
            forget_errors(&flow.socket, &mut self.control);
        }
    }

    fn take_answers(&mut self, id: FlowId, cx: &mut Context<'_>) {
        let mut joiner = std::mem::take(&mut self.joiner);
        let fault = self.take_answers_into(&mut joiner, id, cx);
        if let Some((received, train)) = joiner.rest() {
            self.on_answer(id, received, train, cx);
        }
        self.joiner = joiner;
        match fault {
            Some(Errno::EMSGSIZE) => self.tell_of_the_longest(id, cx),
            Some(errno) if tells_of_the_other_side(errno) => self.on_unreachable(id, errno, cx),
            _ => {}
        }
    }

    /// The error that nothing more came for, if there was one.
    fn take_answers_into(&mut self, joiner: &mut Joiner, id: FlowId, cx: &mut Context<'_>) -> Option<Errno> {
        let calls = self.table.get(id)?.portion.calls();
        let mut bytes = 0;
        for found in 0..calls {
            if bytes >= self.most_bytes {
                break;
            }
            let flow = self.table.get_mut(id)?;
            let received = if flow.joins {
                receive(&flow.socket, joiner.room(), &mut self.control)
            } else {
                receive_single(&flow.socket, joiner.room(), flow.key.peer)
            };
            match received {
                Ok(received) => {
                    bytes += received.length;
                    joiner.add(received);
                    while let Some((received, train)) = joiner.next_whole() {
                        self.on_answer(id, received, train, cx);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    flow.portion.on_end(found);
                    return Some(errno);
                }
            }
        }
        let flow = self.table.get_mut(id)?;
        flow.portion.on_whole(MOST_ANSWERS);
        if !flow.joins && calls >= PORTION_TO_JOIN {
            flow.joins = true;
            // A kernel that does not have it gives them one by one.
            let _ = setsockopt(&flow.socket, sockopt::UdpGroSegment, &true);
        }
        None
    }

    fn on_answer(&mut self, id: FlowId, received: Received, train: Train<'_>, cx: &mut Context<'_>) {
        let Some(flow) = self.table.get_mut(id) else { return };
        let (service, server) = (flow.service, flow.server);
        if received.is_truncated {
            cx.model.datagrams_dropped(service, Some(server), Direction::Out, 1, DropReason::Truncated);
            return;
        }
        let Some(listener) = self.listeners.get(flow.listener) else { return };
        let sent = listener.answer(flow.key.peer, flow.key.asked.ip(), train, &mut flow.singly_out);
        if std::mem::take(&mut flow.is_unanswered) {
            // What moved last was a question.
            cx.model.answered(server, cx.now.saturating_duration_since(flow.moved), cx.now);
        }
        flow.on_answer(sent.datagrams, sent.bytes, cx.now);
        let is_complete = cx.model.handling(service).is_some_and(|handling| flow.has_all_answers(&handling.flows));
        count(service, server, Direction::Out, &sent, cx.model);
        if is_complete {
            self.end(id, EndReason::Complete, cx);
        }
    }

    /// An ICMP error came for a flow: its server is not there. It goes on with the next one, unless flows are to stay.
    fn on_unreachable(&mut self, id: FlowId, errno: Errno, cx: &mut Context<'_>) {
        let Some(flow) = self.table.get_mut(id) else { return };
        // Its next answer speaks for the server again, however long ago its first one was.
        flow.is_unanswered = true;
        let stays = flow.key.server.is_some() || flow.leaves.is_some();
        let (service, client, server) = (flow.service, flow.client, flow.server);
        cx.model.datagrams_dropped(service, Some(server), Direction::In, 1, DropReason::Unreachable);
        self.tell_unreachable(server, errno, cx);
        if !stays && let Some(next) = cx.model.flow_goes_on_with(service, client, &[server]) {
            let _ = self.go_on_with(id, next, cx);
        }
    }

    fn tell_unreachable(&mut self, server: ServerId, errno: Errno, cx: &mut Context<'_>) {
        self.complaints.on_unreachable(cx.model.server_address(server), errno, cx.now);
        cx.model.server_unreachable(server, cx.now);
    }

    /// Times are others now: looks at every flow by the time that it may be idle.
    pub(crate) fn hurry_all(&mut self, cx: &Context<'_>) {
        // How servers are connected to may be another way, too, and these never end by themselves.
        self.one_way = OneWay::default();
        for id in self.table.ids() {
            let settings = self.table.get(id).and_then(|flow| cx.model.handling(flow.service));
            if let Some(handling) = settings {
                self.table.hurry(id, &handling.flows);
            }
        }
    }

    /// The earliest time at which [`Flows::expire`] or [`Flows::look`] has something to do.
    pub(crate) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let looks = (!self.to_look_at.is_empty() || !self.to_leave.is_empty()).then_some(now);
        let last = self.has_last().then_some(now);
        [self.table.next_deadline(), self.complaints.next_deadline(), looks, last].into_iter().flatten().min()
    }

    /// Does what is due: ends idle flows, serves what waited at a stop, logs what was not logged.
    pub(crate) fn expire(&mut self, cx: &mut Context<'_>) {
        self.receive_last(cx);
        for _ in 0..FLOWS_PER_TURN {
            let model = &*cx.model;
            let settings = |flow: &Flow<_>| model.handling(flow.service).unwrap_or_default().flows;
            let Some(id) = self.table.due(cx.now, settings) else { break };
            let reason = self.table.get(id).map_or(EndReason::IdleTimeout, Flow::end_when_idle);
            self.end(id, reason, cx);
        }
        self.complaints.expire(cx.now);
    }

    /// Ends every flow; nothing that waits begins another one.
    pub(crate) fn end_all(&mut self, reason: EndReason, cx: &mut Context<'_>) {
        self.listeners.values_mut().for_each(|listener| listener.stop(0));
        for id in self.table.ids() {
            self.end(id, reason, cx);
        }
    }

    /// Ends the flow with this number, if there is one.
    pub(crate) fn end_number(&mut self, number: u64, reason: EndReason, cx: &mut Context<'_>) {
        if let Some(id) = self.table.of_number(number) {
            self.end(id, reason, cx);
        }
    }

    /// Whether there is a flow with this number.
    pub(crate) fn has_number(&self, number: u64) -> bool {
        self.table.of_number(number).is_some()
    }

    /// The number of a flow.
    pub(crate) fn number(&self, id: FlowId) -> Option<u64> {
        self.table.get(id).map(|flow| flow.number)
    }

    /// Ends one flow, if it is still there.
    pub(crate) fn end(&mut self, id: FlowId, reason: EndReason, cx: &mut Context<'_>) {
        let Some(flow) = self.table.remove(id) else { return };
        debug!(
            session = flow.number,
            client = %flow.client,
            server = %cx.model.server_address(flow.server),
            %reason,
            age_ms = (cx.now - flow.began).as_millis() as u64,
            "flow ended"
        );
        cx.model.flow_ended(flow.service, flow.client.ip(), flow.server, reason, cx.now);
        self.ended += 1;
    }

    /// Drops datagrams that may begin no flow, and says so once in a while.
    fn refuse(&mut self, arrival: Arrival, reason: DropReason, datagrams: usize, cx: &mut Context<'_>) {
        let Arrival { service, client, .. } = arrival;
        cx.model.datagrams_dropped(service, None, Direction::In, datagrams, reason);
        self.complaints.on_refused(client, reason, cx.now);
    }

    /// The live flows that are meant, the longest idle first.
    pub(crate) fn list(&self, filter: &SessionFilter, model: &Model, now: Instant) -> Vec<SessionReport> {
        let is_meant = |flow: &Flow<_>| filter.takes(flow.service, flow.server, model);
        let mut meant: Vec<_> = self.table.iter().filter(|(_, flow)| is_meant(flow)).collect();
        meant.sort_by_key(|(_, flow)| flow.moved);
        meant.truncate(filter.limit);
        meant.into_iter().map(|(_, flow)| report(flow, model, now)).collect()
    }
}

/// Why datagrams of a service get no server: there is none, or each is full.
fn no_server(service: ServiceId, cx: &Context<'_>) -> DropReason {
    if cx.model.servers_are_full(service) { DropReason::Full } else { DropReason::NoServer }
}

/// The header that stands before the next datagram of a flow, if one does. `run` is this run of the balancer.
fn header<S>(flow: &Flow<S>, arrival: Arrival, run: u64) -> Vec<u8> {
    let in_first = arrival.handling.policy.send_proxy_in == HeaderScope::FirstDatagram;
    match arrival.handling.send_proxy {
        Some(how) if !(in_first && flow.is_introduced) => {
            let has_id = matches!(how, SendProxy::V2 { unique_id: true, .. });
            let unique_id = has_id.then(|| format!("{run:016x}-{}", flow.number).into_bytes());
            let addresses = Addresses { source: flow.client, destination: flow.key.asked };
            encode_datagram(how, Some(addresses), unique_id.as_deref())
        }
        _ => Vec::new(),
    }
}

fn report<S>(flow: &Flow<S>, model: &Model, now: Instant) -> SessionReport {
    SessionReport {
        session: flow.number,
        transport: Transport::Udp,
        service: model.service_name(flow.service).to_owned(),
        pool: model.pool_name(flow.server).to_owned(),
        client: flow.client,
        server: Some(model.server_address(flow.server)),
        connected: true,
        age_ms: milliseconds(now.saturating_duration_since(flow.began)),
        idle_ms: milliseconds(now.saturating_duration_since(flow.moved).max(Duration::ZERO)),
        bytes_in: flow.bytes_in,
        bytes_out: flow.bytes_out,
        datagrams_in: flow.datagrams_in,
        datagrams_out: flow.datagrams_out,
    }
}

/// Counts what became of datagrams.
fn count(service: ServiceId, server: ServerId, direction: Direction, sent: &Sent, model: &mut Model) {
    if sent.datagrams > 0 {
        model.datagrams_passed(service, server, direction, sent.datagrams, sent.bytes);
    }
    for (reason, datagrams) in &sent.dropped {
        model.datagrams_dropped(service, Some(server), direction, *datagrams, *reason);
    }
}

/// The way of a datagram that is to leave with its client's address by a socket that others share, if it can: a server of
/// the other family cannot be shown it.
fn as_the_client(transparent: bool, client: SocketAddr, server: SocketAddr) -> Option<Route> {
    let is_shown = transparent && client.is_ipv4() == server.is_ipv4();
    is_shown.then(|| Route { to: server, from: Some(client.ip()), is_ipv6: server.is_ipv6() })
}

/// A client of the server's family that is none.
fn nobody(server: SocketAddr) -> SocketAddr {
    match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

#[cfg(test)]
mod tests;

//! The TCP sessions of all services: opens them, feeds them their events, and ends them.

mod kernel_pipes;
mod pipe;
mod session;
mod way;

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt};
use slotmap::{Key as _, KeyData, SlotMap};
use tracing::{debug, info, warn};
use wire::address::canonical;
use wire::report::{EndReason, SessionReport, Waiting};

use super::Context;
use super::listen::{Accepted, Listener, MOST_LAST_ACCEPTS};
use crate::event::{Deadlines, Key, Ready, Repeated};
use crate::model::{ConnectFailure, Direction, Model, ServerId, ServiceId, SessionFilter, milliseconds};
use kernel_pipes::KernelPipes;
pub(crate) use kernel_pipes::MOST_KERNEL_PIPES;
use pipe::{Pipe, Through, spliced_in_a_step};
use session::{Attempt, End, Next, Outcome, Session, broken};
pub(crate) use session::{Side, Timeouts};

slotmap::new_key_type! {
    /// A session, as long as it lives. A later session in the same slot has another generation.
    pub(crate) struct SessionId;
}

/// Servers that one client's connect goes to before it is given up.
const MOST_TRIES: usize = 3;

/// Every session, and what is common to them.
pub(crate) struct Sessions {
    slots: SlotMap<SessionId, Session>,
    deadlines: Deadlines<SessionId>,
    timeouts: Timeouts,
    kernel_pipes: KernelPipes,
    /// What one step of splicing takes in at most in this turn.
    most_spliced: usize,
    /// Where this process itself listens.
    listening: Vec<SocketAddr>,
    key: fn(SessionId, Side) -> Key,
    /// Clients that were accepted in this turn. They are opened at the end of it: most have said their first words by then.
    arrivals: Vec<Arrival>,
    /// Those that something changed for in this turn. One may be here twice, or have ended since.
    unsettled: Vec<SessionId>,
    ended: u64,
    full: Repeated,
    no_server: Repeated,
    shortage: Repeated,
    unreachable: Repeated,
}

impl Sessions {
    /// None yet. `key` says what the sides of a session are called at the poller; there are so many kernel pipes at most.
    pub(crate) fn new(timeouts: Timeouts, most_kernel_pipes: usize, key: fn(SessionId, Side) -> Key) -> Self {
        Self {
            slots: SlotMap::with_key(),
            deadlines: Deadlines::new(),
            timeouts,
            kernel_pipes: KernelPipes::new(most_kernel_pipes),
            most_spliced: spliced_in_a_step(1),
            listening: Vec::new(),
            key,
            arrivals: Vec::new(),
            unsettled: Vec::new(),
            ended: 0,
            full: Repeated::default(),
            no_server: Repeated::default(),
            shortage: Repeated::default(),
            unreachable: Repeated::default(),
        }
    }

    /// Sessions alive.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Sessions that have ended since the start.
    pub(crate) fn ended(&self) -> u64 {
        self.ended
    }

    /// The process listens at these addresses from now on.
    pub(crate) fn listens_at(&mut self, listening: Vec<SocketAddr>) {
        self.listening = listening;
    }

    /// A listener is ready: takes a portion of the clients that wait there.
    pub(crate) fn accept_from(&mut self, listener: &mut Listener, cx: &mut Context<'_>) {
        for _ in 0..listener.portion() {
            if !self.accept_one(listener, false, cx) {
                return;
            }
        }
        listener.on_whole_portion();
    }

    /// Takes the clients that wait at a listener which is about to close.
    pub(crate) fn accept_last(&mut self, listener: &mut Listener, cx: &mut Context<'_>) {
        for _ in 0..MOST_LAST_ACCEPTS {
            if !self.accept_one(listener, true, cx) {
                return;
            }
        }
    }

    /// Whether there may be another client.
    fn accept_one(&mut self, listener: &mut Listener, last: bool, cx: &mut Context<'_>) -> bool {
        if let Some((why, _)) = cx.model.waiting(listener.service, cx.now)
            && !(last && why == Waiting::Stopping)
        {
            return false;
        }
        match listener.accept(cx.now) {
            Accepted::Client(client, peer) => {
                let peer = canonical(peer);
                let arrival = Arrival { service: listener.service, client, peer };
                match cx.model.session_began(listener.service, peer.ip(), cx.now) {
                    Ok(()) => self.arrivals.push(arrival),
                    Err(reason) => self.turn_away(arrival, reason, cx),
                }
                if cx.model.is_full() && self.full.on_event(cx.now) {
                    let limit = cx.model.session_limit();
                    warn!(limit, "the session limit is reached: further clients wait in the kernel's queue");
                }
                true
            }
            Accepted::Nobody => false,
            Accepted::Gone(error) => {
                debug!(%error, "a client was gone before it was accepted");
                cx.model.accept_failed(listener.service);
                true
            }
            Accepted::Short(error) => {
                if self.shortage.on_event(cx.now) {
                    warn!(%error, "a client could not be accepted: it waits in the kernel's queue");
                }
                cx.model.accept_failed(listener.service);
                false
            }
        }
    }

    /// Closes a client that gets no server.
    fn turn_away(&mut self, arrival: Arrival, reason: EndReason, cx: &mut Context<'_>) {
        let Arrival { service, client, peer } = arrival;
        drop(client);
        debug!(client = %peer, %reason, "client turned away");
        cx.model.session_ended(service, peer.ip(), None, reason);
        self.ended += 1;
        self.complain(reason, peer, cx.now);
    }

    /// Takes a client: reads what it said first, picks its server and begins to connect.
    fn open(&mut self, arrival: Arrival, cx: &mut Context<'_>) {
        let Arrival { service, client, peer } = arrival;
        let may_splice = cx.model.may_splice(service);
        let mut inward = Pipe::new(may_splice);
        let attempt = match inward.take_in(&client, cx.scratch) {
            Ok(()) => self.connect(service, peer, Vec::new(), inward.wants_write(), cx),
            Err(error) => Err(broken(Side::Client, &error)),
        };
        match attempt {
            Ok(attempt) => {
                let session = Session::new(End::new(client), inward, attempt, service, peer, may_splice, cx.now);
                let id = self.slots.insert(session);
                self.schedule(id);
                self.unsettled.push(id);
            }
            Err(reason) => self.turn_away(Arrival { service, client, peer }, reason, cx),
        }
    }

    /// A turn begins in which so many sockets are ready: what it moves is shared out among them.
    pub(crate) fn on_turn(&mut self, ready: usize) {
        self.most_spliced = spliced_in_a_step(ready);
    }

    /// A side of a session is ready. A session that is gone has nothing to say: the event is of its predecessor.
    pub(crate) fn ready(&mut self, id: SessionId, side: Side, ready: Ready, cx: &mut Context<'_>) {
        let Some(session) = self.slots.get_mut(id) else { return };
        let through =
            &mut Through { scratch: cx.scratch, kernel_pipes: &mut self.kernel_pipes, most_spliced: self.most_spliced };
        let outcome = session.on_ready(side, ready, through, cx.now);
        count(session, &outcome, cx);
        if outcome.connected {
            self.schedule(id);
        }
        let Some(session) = self.slots.get_mut(id) else { return };
        // A healthy relay changes nothing, and comes no further.
        if outcome.next != Next::Wait || !session.is_settled() {
            self.go_on(id, outcome.next, cx);
        }
    }

    /// The earliest time at which [`Sessions::expire`] has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let repeated = [&self.full, &self.no_server, &self.shortage, &self.unreachable];
        let others = [self.deadlines.next(), self.kernel_pipes.next_deadline()];
        repeated.into_iter().filter_map(Repeated::next_deadline).chain(others.into_iter().flatten()).min()
    }

    /// Does what is due: gives connects up, ends idle sessions, takes kernel pipes back, logs what was not logged.
    pub(crate) fn expire(&mut self, cx: &mut Context<'_>) {
        while let Some((at, id)) = self.deadlines.pop_due(cx.now) {
            let Some(session) = self.slots.get_mut(id).filter(|session| session.guess == Some(at)) else { continue };
            session.guess = None;
            match session.expire(self.timeouts, &mut self.kernel_pipes, cx.now) {
                Next::Wait => self.schedule(id),
                next => self.go_on(id, next, cx),
            }
        }
        self.kernel_pipes.expire(cx.now);
        if let Some(suppressed) = self.full.expire(cx.now) {
            warn!(suppressed, "the session limit was reached again");
        }
        if let Some(suppressed) = self.no_server.expire(cx.now) {
            warn!(suppressed, "no server is eligible: further clients were closed");
        }
        if let Some(suppressed) = self.shortage.expire(cx.now) {
            warn!(suppressed, "short of descriptors, ports or memory: further clients were affected");
        }
        if let Some(suppressed) = self.unreachable.expire(cx.now) {
            info!(suppressed, "servers did not answer: further connects failed");
        }
    }

    /// Ends the sessions of one server.
    pub(crate) fn end_of_server(&mut self, server: ServerId, reason: EndReason, cx: &mut Context<'_>) {
        let its = self.slots.iter().filter(|(_, session)| session.server_id == server);
        for id in its.map(|(id, _)| id).collect::<Vec<_>>() {
            self.end(id, reason, cx);
        }
    }

    /// Ends so many sessions of one server, those that are idle for longest.
    pub(crate) fn end_idlest(&mut self, server: ServerId, count: u64, reason: EndReason, cx: &mut Context<'_>) {
        let its = self.slots.iter().filter(|(_, session)| session.server_id == server);
        let mut its: Vec<(Instant, SessionId)> = its.map(|(id, session)| (session.last_moved(), id)).collect();
        let count = its.len().min(usize::try_from(count).unwrap_or(usize::MAX));
        if count < its.len() {
            its.select_nth_unstable(count);
        }
        for (_, id) in its.into_iter().take(count) {
            self.end(id, reason, cx);
        }
    }

    /// Ends the sessions of a service whose clients it lets in no more.
    pub(crate) fn end_unwelcome(&mut self, service: ServiceId, cx: &mut Context<'_>) {
        let is_unwelcome =
            |session: &Session| session.service == service && !cx.model.lets_in(service, session.peer.ip());
        let its: Vec<SessionId> = self.slots.iter().filter(|(_, it)| is_unwelcome(it)).map(|(id, _)| id).collect();
        for id in its {
            self.end(id, EndReason::Denied, cx);
        }
    }

    /// Ends the session with this number, if there is one.
    pub(crate) fn end_number(&mut self, number: u64, reason: EndReason, cx: &mut Context<'_>) {
        self.end(SessionId::from(KeyData::from_ffi(number)), reason, cx);
    }

    /// Whether there is a session with this number.
    pub(crate) fn has_number(&self, number: u64) -> bool {
        self.slots.contains_key(SessionId::from(KeyData::from_ffi(number)))
    }

    /// The live sessions that are meant, the longest idle first.
    pub(crate) fn list(&self, filter: &SessionFilter, model: &Model, now: Instant) -> Vec<SessionReport> {
        let is_meant = |session: &Session| {
            filter.service.is_none_or(|service| session.service == service)
                && filter.pool.is_none_or(|pool| model.pool_of(session.server_id) == pool)
                && filter.server.is_none_or(|server| model.server_address(session.server_id) == server)
        };
        let mut meant: Vec<(SessionId, &Session)> = self.slots.iter().filter(|(_, it)| is_meant(it)).collect();
        meant.sort_by_key(|(_, session)| session.last_moved());
        meant.truncate(filter.limit);
        meant.into_iter().map(|(id, session)| report(id, session, model, now)).collect()
    }

    /// Ends every session.
    pub(crate) fn end_all(&mut self, reason: EndReason, cx: &mut Context<'_>) {
        for id in self.slots.keys().collect::<Vec<_>>() {
            self.end(id, reason, cx);
        }
    }

    /// Ends one session for a reason from outside, if it is still there.
    pub(crate) fn end(&mut self, id: SessionId, reason: EndReason, cx: &mut Context<'_>) {
        let Some(session) = self.slots.get(id) else { return };
        let server = Some(session.server_id);
        self.remove(id, server, reason, cx);
    }

    /// Sees to it that the session is looked at by its deadline: an earlier look than needed is one that finds nothing.
    fn schedule(&mut self, id: SessionId) {
        let Some(session) = self.slots.get_mut(id) else { return };
        let at = session.next_deadline(self.timeouts);
        if session.guess.is_none_or(|guess| at < guess) {
            session.guess = Some(at);
            self.deadlines.push(at, id);
            let slots = &self.slots;
            self.deadlines.tidy(slots.len(), |at, id| slots.get(id).is_some_and(|session| session.guess == Some(at)));
        }
    }

    fn go_on(&mut self, id: SessionId, next: Next, cx: &mut Context<'_>) {
        match next {
            Next::Wait => self.unsettled.push(id),
            Next::Retry(errno) => self.retry(id, errno, cx),
            Next::End(reason) => self.end(id, reason, cx),
        }
    }

    /// At the end of a turn: opens a session for each arrival, tells the sides what has ended, and the poller what they
    /// wait for now. So a session that ended meanwhile costs neither, and one for which two things happened costs them once.
    pub(crate) fn settle(&mut self, cx: &mut Context<'_>) {
        let mut arrivals = std::mem::take(&mut self.arrivals);
        for arrival in arrivals.drain(..) {
            self.open(arrival, cx);
        }
        self.arrivals = arrivals;
        while let Some(id) = self.unsettled.pop() {
            let Some(session) = self.slots.get_mut(id) else { continue };
            let outcome = session.on_end_of_turn(cx.now);
            count(session, &outcome, cx);
            if outcome.connected {
                self.schedule(id);
            }
            match outcome.next {
                Next::Wait => self.settle_one(id, cx),
                next => self.go_on(id, next, cx),
            }
        }
    }

    /// A session that epoll has no room for ends.
    fn settle_one(&mut self, id: SessionId, cx: &mut Context<'_>) {
        let Some(session) = self.slots.get_mut(id) else { return };
        session.pass_on_ends();
        let (client, server) = (session.interest(Side::Client), session.interest(Side::Server));
        let set =
            |side, end: &mut End, wanted| cx.poller.set(&end.stream, (self.key)(id, side), &mut end.registered, wanted);
        let told = set(Side::Client, &mut session.client, client)
            .and_then(|()| set(Side::Server, &mut session.server, server));
        if told.is_err() {
            self.end(id, EndReason::Shortage, cx);
        } else if session.holds_a_kernel_pipe() {
            self.schedule(id);
        }
    }

    /// The server did not answer: goes on with the next one on the ring that was not tried.
    fn retry(&mut self, id: SessionId, errno: Errno, cx: &mut Context<'_>) {
        let Some(session) = self.slots.get_mut(id) else { return };
        let (service, peer, server) = (session.service, session.peer, session.server_id);
        if is_ours(errno) {
            self.end(id, EndReason::Shortage, cx);
            return;
        }
        let (tried, has_first_words) = (session.take_tried(), session.has_first_words());
        self.on_connect_failed(server, errno, cx);
        match self.connect(service, peer, tried, has_first_words, cx) {
            Ok(attempt) => {
                if let Some(session) = self.slots.get_mut(id) {
                    session.reconnect(attempt, cx.now);
                }
                self.schedule(id);
                self.unsettled.push(id);
            }
            Err(reason) => self.remove(id, None, reason, cx),
        }
    }

    /// Begins to connect a client to its server, or to the next one that is not among the `tried`: while connects fail
    /// at once it goes on.
    fn connect(
        &mut self,
        service: ServiceId,
        peer: SocketAddr,
        mut tried: Vec<ServerId>,
        has_first_words: bool,
        cx: &mut Context<'_>,
    ) -> Result<Attempt, EndReason> {
        while tried.len() < MOST_TRIES {
            let Some((server, address)) = cx.model.pick(service, peer, &tried) else { break };
            let begun = if is_a_circle(address, &self.listening) {
                Err(Errno::ECONNREFUSED)
            } else {
                begin_connect(address, has_first_words)
            };
            match begun {
                Ok(stream) => {
                    cx.model.connect_began(server);
                    return Ok(Attempt { server_id: server, server: End::new(stream), tried });
                }
                Err(errno) if is_ours(errno) => return Err(EndReason::Shortage),
                Err(errno) => {
                    cx.model.connect_began(server);
                    self.on_connect_failed(server, errno, cx);
                    tried.push(server);
                }
            }
        }
        Err(if tried.is_empty() { EndReason::NoServer } else { EndReason::ConnectFailed })
    }

    fn on_connect_failed(&mut self, server: ServerId, errno: Errno, cx: &mut Context<'_>) {
        let address = cx.model.server_address(server);
        let failure = if errno == Errno::ETIMEDOUT { ConnectFailure::TimedOut } else { ConnectFailure::Refused };
        cx.model.connect_failed(server, failure);
        if self.unreachable.on_event(cx.now) {
            info!(server = %address, error = errno.desc(), "server did not answer a connect");
        } else {
            debug!(server = %address, error = errno.desc(), "server did not answer a connect");
        }
    }

    fn remove(&mut self, id: SessionId, server: Option<ServerId>, reason: EndReason, cx: &mut Context<'_>) {
        let Some(mut session) = self.slots.remove(id) else { return };
        session.release(&mut self.kernel_pipes);
        session.pass_on_a_reset(reason);
        let age = cx.now - session.began;
        debug!(
            client = %session.peer,
            server = server.map(|server| tracing::field::display(cx.model.server_address(server))),
            %reason,
            age_ms = age.as_millis() as u64,
            "session ended"
        );
        cx.model.session_ended(session.service, session.peer.ip(), server, reason);
        self.ended += 1;
        self.complain(reason, session.peer, cx.now);
    }

    /// Logs the ends that an operator should know of, a few of them.
    fn complain(&mut self, reason: EndReason, client: SocketAddr, now: Instant) {
        match reason {
            EndReason::NoServer if self.no_server.on_event(now) => {
                warn!(%client, "no server is eligible: the client was closed");
            }
            EndReason::Shortage if self.shortage.on_event(now) => {
                warn!(%client, "short of descriptors, ports or memory: the client was closed");
            }
            _ => {}
        }
    }
}

/// A client that was accepted and has no session yet.
struct Arrival {
    service: ServiceId,
    client: TcpStream,
    peer: SocketAddr,
}

fn report(id: SessionId, session: &Session, model: &Model, now: Instant) -> SessionReport {
    let (service, pool) = model.names(session.service, session.server_id);
    let (bytes_in, bytes_out) = session.moved();
    SessionReport {
        session: id.data().as_ffi(),
        service: service.to_owned(),
        pool: pool.to_owned(),
        client: session.peer,
        server: model.server_address(session.server_id),
        connected: session.is_connected(),
        age_ms: milliseconds(now - session.began),
        idle_ms: milliseconds(now - session.last_moved()),
        bytes_in,
        bytes_out,
    }
}

/// Counts what happened in a session.
fn count(session: &mut Session, outcome: &Outcome, cx: &mut Context<'_>) {
    session.count(outcome);
    if outcome.connected {
        cx.model.connect_done(session.server_id);
    }
    for (direction, bytes) in [(Direction::In, outcome.inward), (Direction::Out, outcome.outward)] {
        if bytes > 0 {
            cx.model.relayed(session.service, session.server_id, direction, bytes);
        }
    }
}

/// Begins to connect without waiting. The socket is registered afterwards: one that is not connected reports a hang-up
/// for ever.
///
/// When there is something to be sent at once, the last acknowledgement of the handshake waits for it and goes in the
/// same segment. Only then: a server that speaks first would wait for an acknowledgement that nothing carries.
fn begin_connect(address: SocketAddr, has_first_words: bool) -> Result<TcpStream, Errno> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let stream = TcpStream::from(socket(family, SockType::Stream, flags, None)?);
    setsockopt(&stream, sockopt::TcpNoDelay, &true)?;
    if has_first_words {
        // A socket that cannot do it sends one segment more.
        let _ = rustix::net::sockopt::set_tcp_quickack(&stream, false);
    }
    match connect(stream.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS) if is_connected_to_itself(&stream, address) => Err(Errno::ECONNREFUSED),
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(stream),
        Err(errno) => Err(errno),
    }
}

/// Whether a connect to `address` would come back to one of our own listeners: a circle that takes every session there
/// may be. Asked before the connect, which would be in the listener's queue at once. The model refuses the addresses that
/// it can know of; which others this machine has, the kernel tells: a socket can be bound to no other.
fn is_a_circle(address: SocketAddr, listening: &[SocketAddr]) -> bool {
    listening.iter().any(|own| {
        own.port() == address.port()
            && (own.ip() == address.ip() || own.ip().is_unspecified() && UdpSocket::bind((address.ip(), 0)).is_ok())
    })
}

/// Whether a socket is connected to itself. TCP allows it: where nobody listens on a port of this machine, the kernel may
/// choose that very port for the connecting end, and what the client sends would come back to it as an answer.
fn is_connected_to_itself(stream: &TcpStream, address: SocketAddr) -> bool {
    address.port() >= FIRST_CHOSEN_PORT && stream.local_addr().is_ok_and(|own| own == address)
}

/// The kernel chooses no port below this one (`net.ipv4.ip_local_port_range`).
const FIRST_CHOSEN_PORT: u16 = 1024;

/// Whether a failed connect is the fault of this machine and not of the server.
fn is_ours(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EADDRNOTAVAIL
            | Errno::EADDRINUSE
            | Errno::EAGAIN
            | Errno::EPERM
            | Errno::EMFILE
            | Errno::ENFILE
            | Errno::ENOBUFS
            | Errno::ENOMEM
    )
}

#[cfg(test)]
mod tests;

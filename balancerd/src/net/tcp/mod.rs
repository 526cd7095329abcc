//! The TCP sessions of all services: opens them, feeds them their events, and ends them.

mod introduction;
mod kernel_pipes;
mod newcomer;
mod pipe;
mod session;
mod way;

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use slotmap::SlotMap;
use tracing::{debug, info, warn};
use wire::address::canonical;
use wire::report::{EndReason, SessionReport, Waiting};
use wire::settings::Transport;

use super::Context;
use super::connect::{Begun, NO_SOURCE, begin_connect, is_a_circle, is_ours, missing_source};
use super::listen::{Accepted, Endpoint, Listener};
use super::numbers::Numbers;
use super::options;
use crate::event::{self, Deadlines, Ends, Key, Ready, Repeated};
use crate::model::{ConnectFailure, Direction, Model, ServerId, ServiceId, SessionFilter, milliseconds};
use introduction::{Introductions, Origin};
use kernel_pipes::KernelPipes;
pub(crate) use kernel_pipes::MOST_KERNEL_PIPES;
pub(crate) use newcomer::NewcomerId;
use newcomer::{Newcomer, Newcomers};
use pipe::{Pipe, Through, spliced_in_a_step};
use session::{Attempt, End, Next, Outcome, Session, broken};
pub(crate) use session::{Side, Timeouts};

slotmap::new_key_type! {
    /// A session, as long as it lives. A later session in the same slot has another generation.
    pub(crate) struct SessionId;
}

/// One in so many sessions is asked at its end what its line was like. A question costs half a microsecond.
const SAMPLED: u64 = 16;

/// A client that waited because of a limit, ended without a word, and did so at least this long ago, has gone. Until then it
/// may be one that only listens: a half-close and a close look the same from here.
const GONE_AFTER: Duration = Duration::from_millis(100);

/// Sessions that end in one turn for being idle or late with their header, or since their server is to have none any more.
/// To close both sockets takes some twenty or thirty microseconds, and a turn is to stay below some 5 ms; what is left waits
/// for the next one, behind the sockets that are ready.
const ENDS_PER_TURN: u64 = 128;

/// Every session, and what is common to them.
pub(crate) struct Sessions {
    slots: SlotMap<SessionId, Session>,
    numbers: Numbers<SessionId>,
    deadlines: Deadlines<SessionId>,
    timeouts: Timeouts,
    kernel_pipes: KernelPipes,
    /// What one step of splicing takes in at most in this turn.
    most_spliced: usize,
    /// Where this process itself listens.
    listening: Vec<SocketAddr>,
    key: fn(SessionId, Side) -> Key,
    /// Those whose header has not come yet.
    newcomers: Newcomers,
    introductions: Introductions,
    /// Clients that were accepted in this turn. They are opened at the end of it: most have said their first words by then.
    arrivals: Vec<Arrival>,
    /// Clients whose header came in this turn. They get their servers at the end of it, too.
    introduced: Vec<Known>,
    /// Those that something changed for in this turn. One may be here twice, or have ended since.
    unsettled: Vec<SessionId>,
    /// Those that are to end, whose turn has not come yet. Some may have ended since.
    to_end: Ends<SessionId>,
    ended: u64,
    /// Connects so far: whose turn it is among several sources.
    connects: usize,
    full: Repeated,
    no_server: Repeated,
    servers_full: Repeated,
    shortage: Repeated,
    unreachable: Repeated,
    ports: Repeated,
    sources: Repeated,
    headers: Repeated,
}

impl Sessions {
    /// None yet. There are so many kernel pipes at most. `key` says what the sides of a session are called at the poller,
    /// and `newcomer` what those are whose header has not come.
    pub(crate) fn new(
        timeouts: Timeouts,
        most_kernel_pipes: usize,
        key: fn(SessionId, Side) -> Key,
        newcomer: fn(NewcomerId) -> Key,
    ) -> Self {
        Self {
            slots: SlotMap::with_key(),
            numbers: Numbers::new(),
            deadlines: Deadlines::new(),
            timeouts,
            kernel_pipes: KernelPipes::new(most_kernel_pipes),
            most_spliced: spliced_in_a_step(1),
            listening: Vec::new(),
            key,
            newcomers: Newcomers::new(newcomer),
            introductions: Introductions::new(),
            arrivals: Vec::new(),
            introduced: Vec::new(),
            unsettled: Vec::new(),
            to_end: Ends::new(),
            ended: 0,
            connects: 0,
            full: Repeated::default(),
            no_server: Repeated::default(),
            servers_full: Repeated::default(),
            shortage: Repeated::default(),
            unreachable: Repeated::default(),
            ports: Repeated::default(),
            sources: Repeated::default(),
            headers: Repeated::default(),
        }
    }

    /// Sessions alive, those included whose header has not come.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() + self.newcomers.len()
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
        for _ in 0..listener.most_waiting() {
            if !self.accept_one(listener, true, cx) {
                return;
            }
        }
    }

    /// Whether there may be another client.
    fn accept_one(&mut self, listener: &mut Listener, last: bool, cx: &mut Context<'_>) -> bool {
        if let Some((why, _)) = cx.model.waiting(listener.service(), cx.now)
            && !(last && why == Waiting::Stopping)
        {
            return false;
        }
        match listener.accept(cx.now) {
            Accepted::Client(client, peer) => {
                let peer = canonical(peer);
                let (service, header_time) = (listener.service(), cx.model.header_time(listener.service(), peer.ip()));
                let header_by = header_time.map(|time| cx.now + time);
                if cx.model.makes_clients_wait(service)
                    && let Some(reason) = options::gone(&client, GONE_AFTER)
                {
                    debug!(client = %peer, %reason, "a client had gone while it waited");
                    cx.model.came_and_went(service, reason);
                    self.ended += 1;
                    return true;
                }
                let admitted = match header_by {
                    Some(_) => {
                        cx.model.newcomer_began(service, cx.now);
                        Ok(())
                    }
                    None => cx.model.session_began(service, peer.ip(), cx.now),
                };
                match admitted {
                    Ok(()) => self.arrivals.push(Arrival { service, client, peer, header_by }),
                    Err(reason) => self.turn_away(service, peer, client, reason, cx),
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
                cx.model.accept_failed(listener.service());
                true
            }
            Accepted::Short(error) => {
                if self.shortage.on_event(cx.now) {
                    warn!(%error, "a client could not be accepted: it waits in the kernel's queue");
                }
                cx.model.accept_failed(listener.service());
                false
            }
        }
    }

    /// Closes a client that gets no server.
    fn turn_away(
        &mut self,
        service: ServiceId,
        peer: SocketAddr,
        client: TcpStream,
        reason: EndReason,
        cx: &mut Context<'_>,
    ) {
        drop(client);
        debug!(client = %peer, %reason, "client turned away");
        cx.model.session_ended(service, peer.ip(), None, false, reason, cx.now);
        self.ended += 1;
        self.complain(reason, peer, cx.now);
    }

    /// Takes a client: reads what it said first, or the header that says who it is.
    fn open(&mut self, arrival: Arrival, cx: &mut Context<'_>) {
        let Arrival { service, client, peer, header_by } = arrival;
        if let Some(until) = header_by {
            let number = cx.model.next_number();
            self.meet(Newcomer::new(number, service, client, peer, cx.now, until), cx);
            return;
        }
        let mut inward = Pipe::new(cx.model.may_splice(service));
        match inward.take_in(&client, cx.scratch) {
            Ok(()) => {
                let client = End::new(client);
                self.begin(Known { number: None, service, peer, client, inward, origin: None }, cx);
            }
            Err(error) => self.turn_away(service, peer, client, broken(Side::Client, &error), cx),
        }
    }

    /// Picks the server of a client and begins to connect.
    fn begin(&mut self, known: Known, cx: &mut Context<'_>) {
        let Known { number, service, peer, client, inward, origin } = known;
        match self.connect(service, peer, Vec::new(), inward.wants_write(), cx) {
            Ok(attempt) => {
                let send_proxy = attempt.send_proxy;
                let may_splice = cx.model.may_splice(service);
                let mut session = Session::new(client, inward, attempt, service, peer, may_splice, cx.now);
                session.origin = origin;
                session.number = number.unwrap_or_else(|| cx.model.next_number());
                let replay = cx.model.server_side(session.server_id).replay;
                if replay > 0 {
                    session.record(replay as usize);
                }
                self.introductions.introduce(&mut session, send_proxy);
                let number = session.number;
                let id = self.slots.insert(session);
                self.numbers.insert(number, id);
                self.schedule(id, cx);
                self.unsettled.push(id);
            }
            Err(reason) => self.turn_away(service, peer, client.stream, reason, cx),
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
            self.schedule(id, cx);
        }
        let Some(session) = self.slots.get_mut(id) else { return };
        // A healthy relay changes nothing, and comes no further.
        if outcome.next != Next::Wait || !session.is_settled() {
            self.go_on(id, outcome.next, cx);
        }
    }

    /// The earliest time at which [`Sessions::expire`] has something to do.
    pub(crate) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let repeated = [
            &self.full,
            &self.no_server,
            &self.servers_full,
            &self.shortage,
            &self.unreachable,
            &self.ports,
            &self.sources,
            &self.headers,
        ];
        let ends = (!self.to_end.is_empty()).then_some(now);
        let others = [self.deadlines.next(), self.newcomers.next_deadline(), self.kernel_pipes.next_deadline(), ends];
        repeated.into_iter().filter_map(Repeated::next_deadline).chain(others.into_iter().flatten()).min()
    }

    /// Does what is due: gives connects and headers up, ends idle sessions and others that are to end, takes kernel pipes
    /// back, logs what was not logged.
    pub(crate) fn expire(&mut self, cx: &mut Context<'_>) {
        let mut left = ENDS_PER_TURN;
        while left > 0
            && let Some(id) = self.newcomers.due(cx.now)
        {
            left -= 1;
            self.end_newcomer(id, EndReason::HeaderTimeout, cx);
        }
        while left > 0
            && let Some(id) = self.to_end.pop()
        {
            left -= 1;
            self.end_as_told(id, cx);
        }
        while left > 0
            && let Some((at, id)) = self.deadlines.pop_due(cx.now)
        {
            let Some(session) = self.slots.get_mut(id).filter(|session| session.guess == Some(at)) else { continue };
            session.guess = None;
            let timeouts = self.timeouts.with(cx.model.times(session.service, session.server_id));
            match session.expire(timeouts, &mut self.kernel_pipes, cx.now) {
                Next::Wait => {
                    session.keep_alive(cx.model.server_side(session.server_id).socket.keepalive_ms);
                    self.schedule(id, cx);
                }
                next => {
                    left -= 1;
                    self.go_on(id, next, cx);
                }
            }
        }
        self.kernel_pipes.expire(cx.now);
        if let Some(suppressed) = self.full.expire(cx.now) {
            warn!(suppressed, "the session limit was reached again");
        }
        if let Some(suppressed) = self.no_server.expire(cx.now) {
            warn!(suppressed, "no server is eligible: further clients were closed");
        }
        if let Some(suppressed) = self.servers_full.expire(cx.now) {
            warn!(suppressed, "every server that takes clients is full: further clients were closed");
        }
        if let Some(suppressed) = self.shortage.expire(cx.now) {
            warn!(suppressed, "short of descriptors, ports or memory: further clients were affected");
        }
        if let Some(suppressed) = self.unreachable.expire(cx.now) {
            info!(suppressed, "servers did not answer: further connects failed");
        }
        if let Some(suppressed) = self.ports.expire(cx.now) {
            warn!(suppressed, "further connects found no free source port");
        }
        if let Some(suppressed) = self.sources.expire(cx.now) {
            warn!(suppressed, "further connects had no source: the pool's is not an address of this machine");
        }
        if let Some(suppressed) = self.headers.expire(cx.now) {
            info!(suppressed, "further connections did not begin with the PROXY protocol header that they have to");
        }
    }

    /// Looks at every session: what their times are may have changed.
    pub(crate) fn look_at_all(&mut self, cx: &Context<'_>) {
        for id in self.slots.keys().collect::<Vec<_>>() {
            self.schedule(id, cx);
        }
    }

    /// Ends the sessions of one server, a part of them in each turn.
    pub(crate) fn end_of_server(&mut self, server: ServerId, reason: EndReason) {
        self.end_where(|session| session.server_id == server, reason);
    }

    fn end_where(&mut self, is_meant: impl Fn(&Session) -> bool, reason: EndReason) {
        let its = self.slots.iter().filter(|(_, session)| is_meant(session)).map(|(id, _)| id);
        for id in its.collect::<Vec<_>>() {
            self.end_soon(id, reason);
        }
    }

    /// Ends a session whose turn has come. Where it is the server that goes, one that it has not answered goes on to the next
    /// one; where it is down, one whose client has only to take what it said lives on.
    fn end_as_told(&mut self, id: SessionId, cx: &mut Context<'_>) {
        let Some(session) = self.slots.get_mut(id) else { return };
        let Some(reason) = session.to_end else { return };
        match reason {
            EndReason::ServerDown if session.is_draining() => session.to_end = None,
            EndReason::ServerDown | EndReason::Removed if !session.is_connected() => {
                self.give_up_connect(id, reason, cx);
            }
            _ => self.end(id, reason, cx),
        }
    }

    /// Ends a session when its turn comes. Told several reasons, it is the firmest that holds.
    pub(crate) fn end_soon(&mut self, id: SessionId, reason: EndReason) {
        let Some(session) = self.slots.get_mut(id) else { return };
        if session.to_end.is_none() {
            self.to_end.push(id);
        }
        if is_firmer(session.to_end, reason) {
            session.to_end = Some(reason);
        }
    }

    /// Ends that have had their turn, and as many as will have when the last that waits now has had it.
    pub(crate) fn ends(&self) -> (u64, u64) {
        (self.to_end.done(), self.to_end.done_then())
    }

    /// The sessions of one server, and when each of them moved.
    pub(crate) fn of_server(&self, server: ServerId) -> impl Iterator<Item = (Instant, SessionId)> {
        let its = self.slots.iter().filter(move |(_, session)| session.server_id == server);
        its.map(|(id, session)| (session.last_moved(), id))
    }

    /// Ends the sessions of a service whose clients it lets in no more.
    pub(crate) fn end_unwelcome(&mut self, service: ServiceId, model: &Model) {
        let is_unwelcome = |session: &Session| session.service == service && !model.lets_in(service, session.peer.ip());
        self.end_where(is_unwelcome, EndReason::Denied);
    }

    /// Ends the session with this number, if there is one.
    pub(crate) fn end_number(&mut self, number: u64, reason: EndReason, cx: &mut Context<'_>) {
        match self.newcomers.of_number(number) {
            Some(id) => self.end_newcomer(id, reason, cx),
            None => {
                if let Some(id) = self.numbers.find(number) {
                    self.end(id, reason, cx);
                }
            }
        }
    }

    /// Whether there is a session with this number.
    pub(crate) fn has_number(&self, number: u64) -> bool {
        self.numbers.find(number).is_some() || self.newcomers.of_number(number).is_some()
    }

    /// The number of a session.
    pub(crate) fn number(&self, id: SessionId) -> Option<u64> {
        self.slots.get(id).map(|session| session.number)
    }

    /// The number of a session whose header has not come yet.
    pub(crate) fn newcomer_number(&self, id: NewcomerId) -> Option<u64> {
        self.newcomers.number(id)
    }

    /// The live sessions that are meant, the longest idle first.
    pub(crate) fn list(&self, filter: &SessionFilter, model: &Model, now: Instant) -> Vec<SessionReport> {
        let is_meant = |session: &Session| filter.takes(session.service, session.server_id, model);
        // Who it is, and so its server, is not known yet.
        let is_coming = |newcomer: &Newcomer| {
            filter.server.is_none()
                && filter.service.is_none_or(|service| newcomer.service == service)
                && filter.pool.is_none_or(|pool| model.serving(newcomer.service).is_some_and(|(its, _)| its == pool))
        };
        let sessions = self.slots.iter().filter(|(_, it)| is_meant(it));
        let newcomers = self.newcomers.iter().filter(|(_, it)| is_coming(it));
        let mut meant: Vec<(Instant, Listed<'_>)> = sessions
            .map(|(_, session)| (session.last_moved(), Listed::Session(session)))
            .chain(newcomers.map(|(_, newcomer)| (newcomer.began, Listed::Newcomer(newcomer))))
            .collect();
        meant.sort_by_key(|(moved, _)| *moved);
        meant.truncate(filter.limit);
        meant.into_iter().map(|(_, listed)| listed.report(model, now)).collect()
    }

    /// Ends every session.
    pub(crate) fn end_all(&mut self, reason: EndReason, cx: &mut Context<'_>) {
        for id in self.slots.keys().collect::<Vec<_>>() {
            self.end(id, reason, cx);
        }
        for id in self.newcomers.iter().map(|(id, _)| id).collect::<Vec<_>>() {
            self.end_newcomer(id, reason, cx);
        }
    }

    /// Ends one session for a reason from outside, if it is still there.
    pub(crate) fn end(&mut self, id: SessionId, reason: EndReason, cx: &mut Context<'_>) {
        let Some(session) = self.slots.get(id) else { return };
        let server = Some(session.server_id);
        self.remove(id, server, reason, cx);
    }

    /// Sees to it that the session is looked at by its deadline: an earlier look than needed is one that finds nothing.
    fn schedule(&mut self, id: SessionId, cx: &Context<'_>) {
        let Some(session) = self.slots.get_mut(id) else { return };
        let at = session.next_deadline(self.timeouts.with(cx.model.times(session.service, session.server_id)));
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
            Next::Replay(reason) => self.replay(id, reason, cx),
            Next::End(reason) => match self.slots.get_mut(id).is_some_and(|session| session.drains(reason, cx.now)) {
                true => {
                    self.schedule(id, cx);
                    self.unsettled.push(id);
                }
                false => self.end(id, reason, cx),
            },
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
        let mut introduced = std::mem::take(&mut self.introduced);
        for known in introduced.drain(..) {
            self.begin(known, cx);
        }
        self.introduced = introduced;
        while let Some(id) = self.unsettled.pop() {
            let Some(session) = self.slots.get_mut(id) else { continue };
            let outcome = session.on_end_of_turn(cx.now);
            count(session, &outcome, cx);
            if outcome.connected {
                self.schedule(id, cx);
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
        } else if session.holds_a_kernel_pipe() || session.is_half_closed() {
            self.schedule(id, cx);
        }
    }

    /// The server did not answer: goes on with the next one on the ring that was not tried.
    fn retry(&mut self, id: SessionId, errno: Errno, cx: &mut Context<'_>) {
        let Some(session) = self.slots.get_mut(id) else { return };
        let server = session.server_id;
        if is_ours(errno) {
            self.end(id, EndReason::Shortage, cx);
            return;
        }
        // What was meant for that server is for no other.
        session.lead_with(&[]);
        let (tried, has_first_words) = (session.take_tried(), session.has_first_words());
        self.on_connect_failed(server, errno, cx);
        self.go_elsewhere(id, tried, has_first_words, None, cx);
    }

    /// The server that a session connects to is not waited for any longer: goes on with the next one.
    fn give_up_connect(&mut self, id: SessionId, reason: EndReason, cx: &mut Context<'_>) {
        let Some(session) = self.slots.get_mut(id) else { return };
        let server = session.server_id;
        session.lead_with(&[]);
        let (tried, has_first_words) = (session.take_tried(), session.has_first_words());
        cx.model.connect_given_up(server);
        self.go_elsewhere(id, tried, has_first_words, Some(reason), cx);
    }

    /// The server broke before it said anything: another one gets all that the client said.
    fn replay(&mut self, id: SessionId, reason: EndReason, cx: &mut Context<'_>) {
        let Some(session) = self.slots.get_mut(id) else { return };
        let server = session.server_id;
        session.replay(cx.model.may_splice(session.service));
        let (tried, has_first_words) = (session.replayed().to_vec(), session.has_first_words());
        debug!(session = session.number, client = %session.peer, server = %cx.model.server_address(server), %reason, "the client's words go to another server");
        cx.model.session_moved_on(server, cx.now);
        self.go_elsewhere(id, tried, has_first_words, Some(reason), cx);
    }

    /// Connects a session to a server that is not among the `tried`. If there is none it ends, for the reason that it has
    /// already or else for that.
    fn go_elsewhere(
        &mut self,
        id: SessionId,
        tried: Vec<ServerId>,
        has_first_words: bool,
        reason: Option<EndReason>,
        cx: &mut Context<'_>,
    ) {
        let Some(session) = self.slots.get_mut(id) else { return };
        match session.to_end {
            // It has left the server that was to have it no longer.
            Some(EndReason::Removed | EndReason::ServerDown) => session.to_end = None,
            Some(reason) => return self.remove(id, None, reason, cx),
            None => {}
        }
        let (service, peer) = (session.service, session.peer);
        match self.connect(service, peer, tried, has_first_words, cx) {
            Ok(attempt) => {
                if let Some(session) = self.slots.get_mut(id) {
                    let send_proxy = attempt.send_proxy;
                    session.reconnect(attempt, cx.now);
                    self.introductions.introduce(session, send_proxy);
                }
                self.schedule(id, cx);
                self.unsettled.push(id);
            }
            Err(none) => self.remove(id, None, reason.unwrap_or(none), cx),
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
        let (tries, mut ours) = (cx.model.tries(service), None);
        while tried.len() < tries {
            let Some((server, address)) = cx.model.pick(service, peer, &tried) else { break };
            let send_proxy = cx.model.send_proxy(server);
            let begun = if is_a_circle(address, self.listening.iter().copied()) {
                Err(Errno::ECONNREFUSED)
            } else {
                self.connects = self.connects.wrapping_add(1);
                let side = cx.model.server_side(server);
                begin_connect(address, has_first_words || send_proxy.is_some(), side, peer, self.connects)
            };
            match begun {
                Ok(Begun { stream, waits_for_words }) => {
                    cx.model.connect_began(server);
                    let server_id = server;
                    let server = End::new(stream);
                    return Ok(Attempt { server_id, server, with_words: waits_for_words, tried, send_proxy });
                }
                Err(errno) if let Some(source) = missing_source(errno, address, cx.model.server_side(server)) => {
                    if self.sources.on_event(cx.now) {
                        warn!(pool = cx.model.pool_name(server), %source, "{}", NO_SOURCE);
                    }
                    ours = Some(EndReason::NoSource);
                    tried.push(server);
                }
                // Towards another server there may be some: a port is taken for one at a time.
                Err(errno @ (Errno::EADDRNOTAVAIL | Errno::EADDRINUSE)) => {
                    cx.model.port_shortage();
                    if self.ports.on_event(cx.now) {
                        let error = errno.desc();
                        warn!(server = %address, error, "no free source port: this machine is short of them, the server is not to blame");
                    }
                    ours = Some(EndReason::Shortage);
                    tried.push(server);
                }
                Err(errno) if is_ours(errno) => {
                    if self.shortage.on_event(cx.now) {
                        warn!(server = %address, error = errno.desc(), "a connect could not begin: no fault of the server");
                    }
                    return Err(EndReason::Shortage);
                }
                Err(errno) => {
                    cx.model.connect_began(server);
                    self.on_connect_failed(server, errno, cx);
                    tried.push(server);
                }
            }
        }
        Err(match (tried.is_empty(), ours) {
            (true, _) if cx.model.servers_are_full(service) => EndReason::Full,
            (true, _) => EndReason::NoServer,
            (false, Some(reason)) => reason,
            (false, None) => EndReason::ConnectFailed,
        })
    }

    fn on_connect_failed(&mut self, server: ServerId, errno: Errno, cx: &mut Context<'_>) {
        let address = cx.model.server_address(server);
        let failure = if errno == Errno::ETIMEDOUT { ConnectFailure::TimedOut } else { ConnectFailure::Refused };
        cx.model.connect_failed(server, failure, cx.now);
        if self.unreachable.on_event(cx.now) {
            info!(server = %address, error = errno.desc(), "server did not answer a connect");
        } else {
            debug!(server = %address, error = errno.desc(), "server did not answer a connect");
        }
    }

    fn remove(&mut self, id: SessionId, server: Option<ServerId>, reason: EndReason, cx: &mut Context<'_>) {
        let Some(mut session) = self.slots.remove(id) else { return };
        self.numbers.remove(session.number);
        session.pass_on_a_reset(reason);
        session.release(&mut self.kernel_pipes);
        let age = cx.now - session.began;
        debug!(
            session = session.number,
            client = %session.peer,
            server = server.map(|server| tracing::field::display(cx.model.server_address(server))),
            %reason,
            age_ms = age.as_millis() as u64,
            "session ended"
        );
        let answered = session.moved().1 > 0;
        if let Some(server) = server.filter(|_| session.is_connected() && self.ended.is_multiple_of(SAMPLED))
            && let Some(line) = options::line(&session.server.stream)
        {
            cx.model.sampled(server, line, cx.now);
        }
        cx.model.session_ended(session.service, session.peer.ip(), server, answered, reason, cx.now);
        self.ended += 1;
        self.complain(reason, session.peer, cx.now);
    }

    /// Logs the ends that an operator should know of, a few of them.
    fn complain(&mut self, reason: EndReason, client: SocketAddr, now: Instant) {
        match reason {
            EndReason::NoServer if self.no_server.on_event(now) => {
                warn!(%client, "no server is eligible: the client was closed");
            }
            EndReason::Full if self.servers_full.on_event(now) => {
                warn!(%client, "every server that takes clients is full: the client was closed");
            }
            EndReason::Shortage if self.shortage.on_event(now) => {
                warn!(%client, "short of descriptors, ports or memory: the client was closed");
            }
            EndReason::BadHeader | EndReason::HeaderTimeout if self.headers.on_event(now) => {
                info!(peer = %client, %reason, "a connection did not begin with the PROXY protocol header that it has to");
            }
            _ => {}
        }
    }
}

/// A loop that ends by an error or a panic leaves sessions behind. Their sides get a reset: the kernel would close them in
/// order, which nobody said.
impl Drop for Sessions {
    fn drop(&mut self) {
        for session in self.slots.values() {
            session.pass_on_a_reset(EndReason::Fault);
        }
        for (_, newcomer) in self.newcomers.iter() {
            options::abort_at_close(&newcomer.end.stream);
        }
    }
}

/// Whether it takes more for a session to live on when it is told this reason than before. Who leaves a server that is down
/// may go on elsewhere or have its rest, who leaves one that is removed may go on elsewhere, and others end.
fn is_firmer(before: Option<EndReason>, reason: EndReason) -> bool {
    match before {
        None | Some(EndReason::ServerDown) => true,
        Some(EndReason::Removed) => reason != EndReason::ServerDown,
        Some(_) => false,
    }
}

/// A client that was accepted and has no session yet.
struct Arrival {
    service: ServiceId,
    client: TcpStream,
    peer: SocketAddr,
    /// Until when the header has to be there that says who it is, if one has to be.
    header_by: Option<Instant>,
}

/// A client that has no session yet, and of which it is known who it is.
struct Known {
    /// If it has one already.
    number: Option<u64>,
    service: ServiceId,
    peer: SocketAddr,
    client: End,
    /// With its first words.
    inward: Pipe,
    origin: Option<Box<Origin>>,
}

/// Somebody on the list of sessions.
enum Listed<'a> {
    Session(&'a Session),
    Newcomer(&'a Newcomer),
}

impl Listed<'_> {
    fn report(self, model: &Model, now: Instant) -> SessionReport {
        match self {
            Self::Session(session) => report(session, model, now),
            Self::Newcomer(newcomer) => SessionReport {
                session: newcomer.number,
                transport: Transport::Tcp,
                service: model.service_name(newcomer.service).to_owned(),
                pool: model.serving(newcomer.service).map_or_else(String::new, |(_, name)| name.to_owned()),
                client: newcomer.peer,
                server: None,
                connected: false,
                age_ms: milliseconds(now - newcomer.began),
                idle_ms: milliseconds(now - newcomer.began),
                bytes_in: 0,
                bytes_out: 0,
                datagrams_in: 0,
                datagrams_out: 0,
            },
        }
    }
}

fn report(session: &Session, model: &Model, now: Instant) -> SessionReport {
    let (bytes_in, bytes_out) = session.moved();
    SessionReport {
        session: session.number,
        transport: Transport::Tcp,
        service: model.service_name(session.service).to_owned(),
        pool: model.pool_name(session.server_id).to_owned(),
        client: session.peer,
        server: Some(model.server_address(session.server_id)),
        connected: session.is_connected(),
        age_ms: milliseconds(now - session.began),
        idle_ms: milliseconds(now - session.last_moved()),
        bytes_in,
        bytes_out,
        datagrams_in: 0,
        datagrams_out: 0,
    }
}

/// Counts what happened in a session.
fn count(session: &mut Session, outcome: &Outcome, cx: &mut Context<'_>) {
    if outcome.connected {
        // The turn may have begun long before a connect that was done in it.
        let now = event::now();
        let after = session.on_connected(now);
        cx.model.connect_done(session.server_id, after, now);
    }
    if outcome.outward > 0 && session.moved().1 == 0 {
        cx.model.answered(session.server_id, cx.now.saturating_duration_since(session.connected_at()), cx.now);
    }
    session.count(outcome);
    for (direction, bytes) in [(Direction::In, outcome.inward), (Direction::Out, outcome.outward)] {
        if bytes > 0 {
            cx.model.relayed(session.service, session.server_id, direction, bytes);
        }
    }
}

#[cfg(test)]
mod tests;

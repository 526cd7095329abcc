//! One relayed TCP connection pair, as a state machine. It does not know the poller, the model or the clock: its
//! owner asks what each side waits for, and hands in what happened.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use wire::report::EndReason;
use wire::settings::SendProxy;

use super::introduction::Origin;
use super::kernel_pipes::KernelPipes;
use super::pipe::{Pipe, Step, Through};
use crate::event::{Interest, Ready};
use crate::model::{Direction, ServerId, ServiceId, Times};
use crate::net::{errno_of, options};

/// One of the two ends of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }

    /// Where bytes go that were read on this side.
    fn direction(self) -> Direction {
        match self {
            Self::Client => Direction::In,
            Self::Server => Direction::Out,
        }
    }
}

/// A socket, and what the poller knows of it.
#[derive(Debug)]
pub(super) struct End {
    pub(super) stream: TcpStream,
    pub(super) registered: Interest,
}

impl End {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, registered: Interest::NONE }
    }
}

/// A connect that has begun.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) server_id: ServerId,
    pub(super) server: End,
    /// It begins with the first words: they go with the SYN.
    pub(super) with_words: bool,
    /// Those that did not answer before it.
    pub(super) tried: Vec<ServerId>,
    /// The header that the server gets first, if it does.
    pub(super) send_proxy: Option<SendProxy>,
}

/// A session.
#[derive(Debug)]
pub(super) struct Session {
    /// What people know it by. Its owner gives it.
    pub(super) number: u64,
    pub(super) client: End,
    pub(super) server: End,
    phase: Phase,
    /// What the client sends.
    inward: Pipe,
    /// What the server sends.
    outward: Pipe,
    /// The first thing that began to end the session: it becomes the reason.
    ending: Option<EndReason>,
    pub(super) service: ServiceId,
    pub(super) server_id: ServerId,
    /// The client, as its header says if it had to begin with one.
    pub(super) peer: SocketAddr,
    /// What headers say of it beyond that, if they do.
    pub(super) origin: Option<Box<Origin>>,
    pub(super) began: Instant,
    /// When the connect to its server began, and after it was answered: when that was.
    connected_at: Instant,
    /// A silent server is asked whether it is there.
    kept_alive: bool,
    /// Servers that broke before they said anything.
    replayed: Vec<ServerId>,
    last_moved: Instant,
    /// What both sides had acknowledged in bytes, together, when the session would have been idle for too long, if they had
    /// not acknowledged everything.
    acknowledged: Option<u64>,
    /// Bytes that reached the server, and the client.
    moved: (u64, u64),
    /// The one guess that its owner holds of its deadline; a guess that is not this one is stale.
    pub(super) guess: Option<Instant>,
    /// Why it is to end for somebody outside. Its turn has not come yet.
    pub(super) to_end: Option<EndReason>,
}

#[derive(Debug)]
enum Phase {
    /// Towards a server; those before it did not answer.
    Connecting {
        since: Instant,
        tried: Vec<ServerId>,
        /// The connect began in this turn.
        fresh: bool,
        /// The words go with the SYN; so many bytes have. They are kept until the server answers: who refuses has not
        /// taken them.
        with_syn: Option<usize>,
    },
    Relaying,
    /// One side broke, and what the other is still to be told is in the kernel: a reset would drop it, and waits.
    Draining(Drain),
}

/// What the side that is left has not acknowledged yet, looked at now and then: the kernel tells nobody when it has.
#[derive(Debug, Clone, Copy)]
struct Drain {
    /// Why the session ends.
    reason: EndReason,
    /// What it had acknowledged at the last look, in bytes.
    acknowledged: u64,
    looked: Instant,
    /// From then to the next look.
    pause: Duration,
}

impl Phase {
    fn connecting(tried: Vec<ServerId>, with_words: bool, now: Instant) -> Self {
        Self::Connecting { since: now, tried, fresh: true, with_syn: with_words.then_some(0) }
    }

    /// Bytes that went with the SYN, and of which nobody knows yet whether they were taken.
    fn gone_with_the_syn(&self) -> usize {
        match self {
            Self::Connecting { with_syn: Some(count), .. } => *count,
            _ => 0,
        }
    }
}

/// How long a session may wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    /// For a server to answer the connect.
    pub(crate) connect: Duration,
    /// With nothing moving either way.
    pub(crate) idle: Duration,
    /// The same when one side has ended; nothing is no less than that.
    pub(crate) half_closed: Option<Duration>,
    /// Whatever moves; nothing is for ever.
    pub(crate) max_age: Option<Duration>,
}

impl Timeouts {
    /// Those of the balancer.
    pub(crate) fn new(connect: Duration, idle: Duration) -> Self {
        Self { connect, idle, half_closed: None, max_age: None }
    }

    /// Those of a service and a pool; what they do not say stays.
    pub(super) fn with(self, times: Times) -> Self {
        Self {
            connect: times.connect.unwrap_or(self.connect),
            idle: times.idle.unwrap_or(self.idle),
            half_closed: times.half_closed,
            max_age: times.max_age,
        }
    }
}

/// From the first look at a side that is left to the second; each pause is twice as long as the one before, up to the
/// longest.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LONGEST_LOOK: Duration = Duration::from_millis(500);

/// A session's age limit is the one that is set, give or take this part of it.
const JITTER: u32 = 10;

/// What followed from an event.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// The server answered the connect.
    pub(super) connected: bool,
    /// Bytes that reached the server.
    pub(super) inward: usize,
    /// Bytes that reached the client.
    pub(super) outward: usize,
    /// How it goes on.
    pub(super) next: Next,
}

/// How a session goes on.
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
pub(super) enum Next {
    /// As its interests say.
    #[default]
    Wait,
    /// The server did not answer: try another.
    Retry(Errno),
    /// The server broke before it said anything, and another one can get all that the client said.
    Replay(EndReason),
    /// It is over.
    End(EndReason),
}

impl Session {
    /// A session of a client, of which `inward` may hold the first words, with its first attempt to connect.
    pub(super) fn new(
        client: End,
        inward: Pipe,
        attempt: Attempt,
        service: ServiceId,
        peer: SocketAddr,
        may_splice: bool,
        now: Instant,
    ) -> Self {
        Self {
            client,
            server: attempt.server,
            phase: Phase::connecting(attempt.tried, attempt.with_words, now),
            inward,
            outward: Pipe::new(may_splice),
            ending: None,
            service,
            server_id: attempt.server_id,
            peer,
            origin: None,
            to_end: None,
            number: 0,
            began: now,
            connected_at: now,
            kept_alive: false,
            replayed: Vec::new(),
            last_moved: now,
            acknowledged: None,
            moved: (0, 0),
            guess: None,
        }
    }

    /// Goes on with another server.
    pub(super) fn reconnect(&mut self, attempt: Attempt, now: Instant) {
        (self.server, self.server_id) = (attempt.server, attempt.server_id);
        self.phase = Phase::connecting(attempt.tried, attempt.with_words, now);
        (self.connected_at, self.kept_alive) = (now, false);
    }

    /// Keeps what the client says, up to so much, until its server has said something.
    pub(super) fn record(&mut self, most: usize) {
        self.inward.record(most);
    }

    /// Begins anew, as if no server had been asked; the one that was, and those before it, are among the tried.
    pub(super) fn replay(&mut self, may_splice: bool) {
        self.inward.replay();
        self.outward = Pipe::new(may_splice);
        self.ending = None;
        self.replayed.push(self.server_id);
    }

    /// The servers that broke before they said anything.
    pub(super) fn replayed(&self) -> &[ServerId] {
        &self.replayed
    }

    /// The server has answered the connect now. How long that took.
    pub(super) fn on_connected(&mut self, now: Instant) -> Duration {
        let began = std::mem::replace(&mut self.connected_at, now);
        now.saturating_duration_since(began)
    }

    /// When the server answered the connect.
    pub(super) fn connected_at(&self) -> Instant {
        self.connected_at
    }

    /// One side has ended, and the other has not.
    pub(super) fn is_half_closed(&self) -> bool {
        self.inward.is_finished() != self.outward.is_finished()
    }

    /// Has the kernel ask a server that is silent for so long whether it is there; 0 is never. Not at the connect: most
    /// sessions end before it could matter, and it costs four calls.
    pub(super) fn keep_alive(&mut self, milliseconds: u64) {
        if milliseconds > 0 && self.is_connected() && !std::mem::replace(&mut self.kept_alive, true) {
            // One that cannot be asked is met at the idle timeout.
            let _ = options::set_keepalive(&self.server.stream, milliseconds);
        }
    }

    /// Whether the server has answered the connect.
    pub(super) fn is_connected(&self) -> bool {
        !matches!(self.phase, Phase::Connecting { .. })
    }

    /// When something moved for the last time.
    pub(super) fn last_moved(&self) -> Instant {
        self.last_moved
    }

    /// Bytes that reached the server, and the client.
    pub(super) fn moved(&self) -> (u64, u64) {
        self.moved
    }

    /// Counts what moved.
    pub(super) fn count(&mut self, outcome: &Outcome) {
        self.moved.0 += outcome.inward as u64;
        self.moved.1 += outcome.outward as u64;
    }

    /// The server gets this first, before anything of the client.
    pub(super) fn lead_with(&mut self, header: &[u8]) {
        self.inward.lead_with(header);
    }

    /// Whether there is something that the server is to get first: a header, words of the client, or both.
    pub(super) fn has_first_words(&self) -> bool {
        self.inward.wants_write()
    }

    /// The servers that did not answer, with the present one, when it is still connecting.
    pub(super) fn take_tried(&mut self) -> Vec<ServerId> {
        let Phase::Connecting { tried, .. } = &mut self.phase else { return Vec::new() };
        let mut tried = std::mem::take(tried);
        tried.push(self.server_id);
        tried
    }

    /// What a side waits for: a pure function of the state.
    ///
    /// | phase | client | server |
    /// |---|---|---|
    /// | connecting | that it breaks: what it sends waits | writable |
    /// | relaying, nothing kept | readable, until its end was read | the same |
    /// | relaying, something kept for a side | - | that side writable, the other not readable |
    /// | relaying, the end of a side was read, nothing kept for it | that it breaks | the same |
    /// | draining | nothing: it is looked at now and then | nothing |
    pub(super) fn interest(&self, side: Side) -> Interest {
        let (incoming, outgoing) = match side {
            Side::Client => (&self.inward, &self.outward),
            Side::Server => (&self.outward, &self.inward),
        };
        match (&self.phase, side) {
            (Phase::Draining(_), _) => Interest::NONE,
            (Phase::Connecting { .. }, Side::Client) => Interest::WATCH,
            (Phase::Connecting { .. }, Side::Server) => Interest::WRITE,
            (Phase::Relaying, _) => {
                let (read, write) = (incoming.wants_read(), outgoing.wants_write());
                // Towards a side that may still be told something: one that has been told the end, too, hangs up for ever.
                let watch = !read && !write && !incoming.is_open() && outgoing.is_open();
                Interest { read, write, watch }
            }
        }
    }

    /// The end of the turn in which the connect began. Over loopback it is done by now, and on a near network it may
    /// be; then a header and what the client has sent go out at once, and the poller is spared two calls and an event. Extra calls
    /// do nothing.
    pub(super) fn on_end_of_turn(&mut self, now: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        match &mut self.phase {
            Phase::Connecting { fresh, with_syn, .. } if *fresh => {
                *fresh = false;
                if let Some(gone) = with_syn {
                    match self.inward.show(&self.server.stream) {
                        Ok(count) => *gone = count,
                        // The SYN went without them.
                        Err(error) if errno_of(&error) == Errno::EINPROGRESS => {}
                        Err(error) => outcome.next = Next::Retry(errno_of(&error)),
                    }
                    return outcome;
                }
            }
            _ => return outcome,
        }
        if self.has_first_words() {
            match self.inward.offer(&self.server.stream) {
                Ok(None) => {}
                Ok(Some(count)) => {
                    self.phase = Phase::Relaying;
                    self.last_moved = now;
                    (outcome.connected, outcome.inward) = (true, count);
                }
                Err(error) => outcome.next = Next::Retry(errno_of(&error)),
            }
        }
        outcome
    }

    /// A side is ready.
    pub(super) fn on_ready(&mut self, side: Side, ready: Ready, through: &mut Through<'_>, now: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        if let Phase::Connecting { .. } = self.phase {
            let gone = self.phase.gone_with_the_syn();
            match self.on_connect(side, ready) {
                Next::Wait if matches!(self.phase, Phase::Relaying) => {
                    outcome.connected = true;
                    outcome.inward += self.inward.taken(gone);
                    self.last_moved = now;
                    // A client that speaks first has spoken by now: try it at once instead of waiting a turn for it.
                    if self.has_first_words() {
                        self.flush(Side::Server, through, &mut outcome, now);
                    } else {
                        self.pump(Side::Client, through, &mut outcome, now);
                    }
                }
                next => outcome.next = next,
            }
            if outcome.next == Next::Wait {
                outcome.next = self.next();
            }
            return outcome;
        }
        if self.is_draining() {
            return outcome;
        }
        if ready.writable {
            self.flush(side, through, &mut outcome, now);
        }
        if ready.readable {
            self.pump(side, through, &mut outcome, now);
        }
        if ready.failed && self.interest(side) == Interest::WATCH {
            self.on_break_after_the_end(side, through);
        }
        outcome.next = self.next();
        outcome
    }

    /// Whether the poller knows what the sides wait for, and the sides know what has ended.
    pub(super) fn is_settled(&self) -> bool {
        self.interest(Side::Client) == self.client.registered
            && self.interest(Side::Server) == self.server.registered
            && !self.inward.has_end_to_pass_on()
            && !self.outward.has_end_to_pass_on()
    }

    /// Tells a side that the other one has ended. Not when it happens but at the end of the turn: a session whose other
    /// side has ended by then is closed, which says the same with fewer calls.
    pub(super) fn pass_on_ends(&mut self) {
        if self.is_draining() {
            return;
        }
        self.inward.pass_on_the_end(&self.server.stream);
        self.outward.pass_on_the_end(&self.client.stream);
    }

    /// When [`Session::expire`] has something to say. It moves later with everything that moves; with the connect done
    /// it may come earlier, where the idle timeout is the shorter one.
    pub(super) fn next_deadline(&self, timeouts: Timeouts) -> Instant {
        match self.phase {
            Phase::Connecting { since, .. } => since + timeouts.connect,
            Phase::Draining(drain) => drain.looked + drain.pause,
            Phase::Relaying => {
                let others = [self.inward.stalls_at(), self.outward.stalls_at(), self.too_old_at(timeouts)];
                others.into_iter().flatten().fold(self.idle_at(timeouts), Instant::min)
            }
        }
    }

    /// When it has been idle for too long, if nothing moves.
    fn idle_at(&self, timeouts: Timeouts) -> Instant {
        let half_closed = timeouts.half_closed.filter(|_| self.is_half_closed());
        self.last_moved + half_closed.map_or(timeouts.idle, |limit| limit.min(timeouts.idle))
    }

    /// When it is too old. Sessions that began together do not end together: what tells them apart is their client.
    fn too_old_at(&self, timeouts: Timeouts) -> Option<Instant> {
        let limit = timeouts.max_age?;
        let spread = limit / JITTER;
        let part = u32::from(self.peer.port()).wrapping_mul(0x9e37_79b9) >> 16;
        Some(self.began + (limit - spread) + 2 * spread * part / (1 << 16))
    }

    /// Whether a direction has something in a kernel pipe.
    pub(super) fn holds_a_kernel_pipe(&self) -> bool {
        self.inward.stalls_at().is_some() || self.outward.stalls_at().is_some()
    }

    /// What a deadline that has passed means.
    pub(super) fn expire(&mut self, timeouts: Timeouts, kernel_pipes: &mut KernelPipes, now: Instant) -> Next {
        for pipe in [&mut self.inward, &mut self.outward] {
            if pipe.stalls_at().is_some_and(|at| at <= now) && pipe.take_back(kernel_pipes, now).is_err() {
                return Next::End(EndReason::Fault);
            }
        }
        if self.next_deadline(timeouts) > now {
            return Next::Wait;
        }
        match self.phase {
            Phase::Connecting { .. } => Next::Retry(Errno::ETIMEDOUT),
            Phase::Draining(drain) => self.look_at_the_rest(drain, timeouts, now),
            Phase::Relaying => self.expire_relaying(timeouts, now),
        }
    }

    fn expire_relaying(&mut self, timeouts: Timeouts, now: Instant) -> Next {
        if self.too_old_at(timeouts).is_some_and(|at| at <= now) {
            return Next::End(EndReason::MaxAge);
        }
        if self.is_being_delivered() {
            self.last_moved = now;
            return Next::Wait;
        }
        let half_closed = self.is_half_closed() && timeouts.half_closed.is_some_and(|limit| limit < timeouts.idle);
        Next::End(if half_closed { EndReason::HalfClosedTimeout } else { EndReason::IdleTimeout })
    }

    /// Whether bytes that the kernel holds for a side may have been acknowledged since something moved here, or since this
    /// was asked before: a peer that reads slowly is not idle. The first time nobody knows, and the answer is yes if there
    /// are any: so a peer that takes nothing at all is given up after two idle timeouts at most.
    fn is_being_delivered(&mut self) -> bool {
        let ends = [&self.client, &self.server].into_iter();
        let acknowledged = ends.filter_map(|end| options::unacknowledged(&end.stream)).reduce(u64::wrapping_add);
        let before = std::mem::replace(&mut self.acknowledged, acknowledged);
        before != acknowledged
    }

    /// Gives back what it was lent. It is over.
    pub(super) fn release(&mut self, kernel_pipes: &mut KernelPipes) {
        self.inward.abandon(kernel_pipes);
        self.outward.abandon(kernel_pipes);
    }

    /// Whether the session, of which one side broke, goes on until the other has what was said before. Extra calls say no.
    pub(super) fn drains(&mut self, reason: EndReason, now: Instant) -> bool {
        if !is_abort(reason) || !self.is_relaying() {
            return false;
        }
        let Some(acknowledged) = self.survivor(reason).and_then(|end| options::unacknowledged(&end.stream)) else {
            return false;
        };
        self.last_moved = now;
        self.phase = Phase::Draining(Drain { reason, acknowledged, looked: now, pause: FIRST_LOOK });
        true
    }

    /// One side broke, and the other is still to be told what that said.
    pub(super) fn is_draining(&self) -> bool {
        matches!(self.phase, Phase::Draining(_))
    }

    fn is_relaying(&self) -> bool {
        matches!(self.phase, Phase::Relaying)
    }

    /// Whether the side that is left has everything, or has stopped taking it.
    fn look_at_the_rest(&mut self, drain: Drain, timeouts: Timeouts, now: Instant) -> Next {
        let Some(acknowledged) = self.survivor(drain.reason).and_then(|end| options::unacknowledged(&end.stream))
        else {
            return Next::End(drain.reason);
        };
        if acknowledged != drain.acknowledged {
            self.last_moved = now;
        }
        let limit = timeouts.half_closed.map_or(timeouts.idle, |limit| limit.min(timeouts.idle));
        let is_too_old = self.too_old_at(timeouts).is_some_and(|at| at <= now);
        if is_too_old || now.saturating_duration_since(self.last_moved) >= limit {
            return Next::End(drain.reason);
        }
        let pause = (2 * drain.pause).min(LONGEST_LOOK);
        self.phase = Phase::Draining(Drain { acknowledged, looked: now, pause, ..drain });
        Next::Wait
    }

    /// The end that did not break.
    fn survivor(&self, reason: EndReason) -> Option<&End> {
        match reason {
            EndReason::ClientReset | EndReason::ClientLost => Some(&self.server),
            EndReason::ServerReset | EndReason::ServerLost => Some(&self.client),
            _ => None,
        }
    }

    /// Makes the coming close of the sockets an abort, so that nobody takes a part for the whole:
    ///
    /// | how the session ends | client side | server side |
    /// |---|---|---|
    /// | both sides have ended | orderly | orderly |
    /// | one side broke | reset, unless it is the one that broke | the same |
    /// | no server took the client | orderly, as when it is turned away at once | - |
    /// | by force | reset, unless the server's own end was passed on behind all of its bytes | reset, unless the same of the client |
    ///
    /// A side that was told of the other one's end and goes on itself is reset, too: a close would tell it nothing. By force
    /// means by a command, a file, a check or a time. What the other side had still to say may be in its own kernel, on the
    /// way, or unread in ours, so only an end that was read and passed on says that there was nothing.
    pub(super) fn pass_on_a_reset(&self, reason: EndReason) {
        if matches!(reason, EndReason::ClientClosed | EndReason::ServerClosed) {
            return;
        }
        // A side that was to be told of a reset is told of it, whatever ends its session before that.
        let reason = if let Phase::Draining(drain) = self.phase { drain.reason } else { reason };
        if let Some(survivor) = self.survivor(reason) {
            options::abort_at_close(&survivor.stream);
            return;
        }
        if !self.is_connected() && is_for_want_of_a_server(reason) {
            return;
        }
        for (end, pipe) in [(&self.client, &self.outward), (&self.server, &self.inward)] {
            if !pipe.is_complete() || options::peer_goes_on(&end.stream) {
                options::abort_at_close(&end.stream);
            }
        }
    }

    fn on_connect(&mut self, side: Side, ready: Ready) -> Next {
        if side == Side::Client {
            // It waits for no longer. An end in order says nothing: it may still want the answer.
            return if ready.failed { Next::End(broken(side, &error_of(&self.client.stream))) } else { Next::Wait };
        }
        // A connect that failed reports an error; one that is writable without it has succeeded.
        if ready.failed
            && let Ok(Some(error)) = self.server.stream.take_error()
        {
            return Next::Retry(errno_of(&error));
        }
        self.phase = Phase::Relaying;
        Next::Wait
    }

    /// A side of which the end was read, and which nothing is written to, has broken. No read or write would tell.
    fn on_break_after_the_end(&mut self, side: Side, through: &mut Through<'_>) {
        let end = match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        };
        self.on_break(side, &error_of(&end.stream), through);
    }

    fn pump(&mut self, from: Side, through: &mut Through<'_>, outcome: &mut Outcome, now: Instant) {
        let (pipe, source, sink) = match from {
            Side::Client => (&mut self.inward, &self.client.stream, &self.server.stream),
            Side::Server => (&mut self.outward, &self.server.stream, &self.client.stream),
        };
        if pipe.wants_read() {
            let step = pipe.pump(source, sink, through, now);
            self.on_step(from, step, through, outcome, now);
        }
    }

    /// Writes what is kept for a side. When all of it is out, the other side is read from at once: while it has more than
    /// this one takes, what the two wait for stays as it is.
    fn flush(&mut self, to: Side, through: &mut Through<'_>, outcome: &mut Outcome, now: Instant) {
        let (pipe, sink) = match to {
            Side::Client => (&mut self.outward, &self.client.stream),
            Side::Server => (&mut self.inward, &self.server.stream),
        };
        if pipe.wants_write() {
            let step = pipe.flush(sink, through.kernel_pipes, now);
            self.on_step(to.other(), step, through, outcome, now);
            self.pump(to.other(), through, outcome, now);
        }
    }

    /// What a step of the direction that comes from `from` means for the session.
    fn on_step(&mut self, from: Side, step: Step, through: &mut Through<'_>, outcome: &mut Outcome, now: Instant) {
        match step {
            Step::Moved(count) => {
                if count > 0 {
                    self.last_moved = now;
                    if from == Side::Server {
                        self.inward.forget();
                    }
                }
                match from.direction() {
                    Direction::In => outcome.inward += count,
                    Direction::Out => outcome.outward += count,
                }
            }
            Step::Ended => {
                self.last_moved = now;
                // A server that has nothing to say has said so, and its client hears of it.
                if from == Side::Server {
                    self.inward.forget();
                }
                self.ending.get_or_insert(match from {
                    Side::Client => EndReason::ClientClosed,
                    Side::Server => EndReason::ServerClosed,
                });
            }
            Step::SourceBroke(error) => self.on_break(from, &error, through),
            Step::SinkBroke(error) => self.on_break(from.other(), &error, through),
        }
    }

    /// A side broke. It takes nothing more; what it sent before can still be read and is passed on first. The reason
    /// replaces an end in order: an abort after a half-close is still an abort.
    fn on_break(&mut self, side: Side, error: &io::Error, through: &mut Through<'_>) {
        if !matches!(self.ending, Some(first) if is_abort(first)) {
            self.ending = Some(broken(side, error));
        }
        match side {
            Side::Client => self.outward.abandon(through.kernel_pipes),
            Side::Server => self.inward.abandon(through.kernel_pipes),
        }
    }

    fn next(&self) -> Next {
        if !self.inward.is_finished() || !self.outward.is_finished() {
            return Next::Wait;
        }
        match self.ending.unwrap_or(EndReason::Fault) {
            reason @ (EndReason::ServerReset | EndReason::ServerLost) if self.inward.has_record() => {
                Next::Replay(reason)
            }
            reason => Next::End(reason),
        }
    }
}

/// What it means that a side broke.
pub(super) fn broken(side: Side, error: &io::Error) -> EndReason {
    let reset = matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe);
    match (side, reset) {
        (Side::Client, true) => EndReason::ClientReset,
        (Side::Client, false) => EndReason::ClientLost,
        (Side::Server, true) => EndReason::ServerReset,
        (Side::Server, false) => EndReason::ServerLost,
    }
}

/// Why a socket broke that has reported a failure.
fn error_of(stream: &TcpStream) -> io::Error {
    match stream.take_error() {
        Ok(Some(error)) | Err(error) => error,
        Ok(None) => io::ErrorKind::ConnectionReset.into(),
    }
}

/// Whether a session that ends for this reason before a server answered is one that no server took.
fn is_for_want_of_a_server(reason: EndReason) -> bool {
    matches!(reason, EndReason::NoServer | EndReason::ConnectFailed | EndReason::Shortage)
}

fn is_abort(reason: EndReason) -> bool {
    matches!(reason, EndReason::ClientReset | EndReason::ServerReset | EndReason::ClientLost | EndReason::ServerLost)
}

#[cfg(test)]
mod tests;

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
    /// Those that did not answer before it.
    pub(super) tried: Vec<ServerId>,
    /// The header that the server gets first, if it does.
    pub(super) send_proxy: Option<SendProxy>,
}

/// A session.
#[derive(Debug)]
pub(super) struct Session {
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
    /// Bytes that reached the server, and the client.
    moved: (u64, u64),
    /// The one guess that its owner holds of its deadline; a guess that is not this one is stale.
    pub(super) guess: Option<Instant>,
}

#[derive(Debug)]
enum Phase {
    /// Towards a server; those before it did not answer.
    Connecting {
        since: Instant,
        tried: Vec<ServerId>,
        /// The connect began in this turn.
        fresh: bool,
    },
    Relaying,
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
            phase: Phase::Connecting { since: now, tried: attempt.tried, fresh: true },
            inward,
            outward: Pipe::new(may_splice),
            ending: None,
            service,
            server_id: attempt.server_id,
            peer,
            origin: None,
            began: now,
            connected_at: now,
            kept_alive: false,
            replayed: Vec::new(),
            last_moved: now,
            moved: (0, 0),
            guess: None,
        }
    }

    /// Goes on with another server.
    pub(super) fn reconnect(&mut self, attempt: Attempt, now: Instant) {
        (self.server, self.server_id) = (attempt.server, attempt.server_id);
        self.phase = Phase::Connecting { since: now, tried: attempt.tried, fresh: true };
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
        matches!(self.phase, Phase::Relaying)
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
    /// | connecting | nothing: what it sends waits | writable |
    /// | relaying, nothing kept | readable, until its end was read | the same |
    /// | relaying, something kept for a side | - | that side writable, the other not readable |
    pub(super) fn interest(&self, side: Side) -> Interest {
        let (incoming, outgoing) = match side {
            Side::Client => (&self.inward, &self.outward),
            Side::Server => (&self.outward, &self.inward),
        };
        match (&self.phase, side) {
            (Phase::Connecting { .. }, Side::Client) => Interest::NONE,
            (Phase::Connecting { .. }, Side::Server) => Interest::WRITE,
            (Phase::Relaying, _) => Interest { read: incoming.wants_read(), write: outgoing.wants_write() },
        }
    }

    /// The end of the turn in which the connect began. Over loopback it is done by now, and on a near network it may
    /// be; then a header and what the client has sent go out at once, and the poller is spared two calls and an event. Extra calls
    /// do nothing.
    pub(super) fn on_end_of_turn(&mut self, now: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        match &mut self.phase {
            Phase::Connecting { fresh, .. } if *fresh => *fresh = false,
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
            match self.on_connect(side, ready) {
                Next::Wait if matches!(self.phase, Phase::Relaying) => {
                    outcome.connected = true;
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
        if ready.writable {
            self.flush(side, through, &mut outcome, now);
        }
        if ready.readable {
            self.pump(side, through, &mut outcome, now);
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
        self.inward.pass_on_the_end(&self.server.stream);
        self.outward.pass_on_the_end(&self.client.stream);
    }

    /// When [`Session::expire`] has something to say. It moves later with everything that moves; with the connect done
    /// it may come earlier, where the idle timeout is the shorter one.
    pub(super) fn next_deadline(&self, timeouts: Timeouts) -> Instant {
        match self.phase {
            Phase::Connecting { since, .. } => since + timeouts.connect,
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
            Phase::Relaying if self.too_old_at(timeouts).is_some_and(|at| at <= now) => Next::End(EndReason::MaxAge),
            Phase::Relaying
                if self.is_half_closed() && timeouts.half_closed.is_some_and(|limit| limit < timeouts.idle) =>
            {
                Next::End(EndReason::HalfClosedTimeout)
            }
            Phase::Relaying => Next::End(EndReason::IdleTimeout),
        }
    }

    /// Gives back what it was lent. It is over.
    pub(super) fn release(&mut self, kernel_pipes: &mut KernelPipes) {
        self.inward.abandon(kernel_pipes);
        self.outward.abandon(kernel_pipes);
    }

    /// Makes the coming close of the sockets an abort for whoever would not learn of it otherwise: the peer of a connection
    /// that was reset sees a reset, as it would without the balancer, and so does one that was told of the end before and
    /// goes on itself.
    pub(super) fn pass_on_a_reset(&self, reason: EndReason) {
        let survivor = match reason {
            EndReason::ClientClosed | EndReason::ServerClosed => return,
            EndReason::ClientReset | EndReason::ClientLost => &self.server,
            EndReason::ServerReset | EndReason::ServerLost => &self.client,
            _ => {
                let ends = [&self.client, &self.server].into_iter();
                ends.filter(|end| options::peer_goes_on(&end.stream))
                    .for_each(|end| options::abort_at_close(&end.stream));
                return;
            }
        };
        options::abort_at_close(&survivor.stream);
    }

    fn on_connect(&mut self, side: Side, ready: Ready) -> Next {
        if side == Side::Client {
            return Next::Wait;
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

fn is_abort(reason: EndReason) -> bool {
    matches!(reason, EndReason::ClientReset | EndReason::ServerReset | EndReason::ClientLost | EndReason::ServerLost)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener};
    use std::os::fd::AsFd;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::super::way::Way;
    use super::*;
    use crate::event;

    const READY: Ready = Ready { readable: true, writable: true, failed: false };
    const READABLE: Ready = Ready { readable: true, writable: false, failed: false };
    const WRITABLE: Ready = Ready { readable: false, writable: true, failed: false };
    const BOTH: Interest = Interest { read: true, write: true };

    /// A session between two peers that the test plays.
    struct Scene {
        session: Session,
        client: TcpStream,
        server: TcpStream,
        scratch: Vec<u8>,
        kernel_pipes: KernelPipes,
        now: Instant,
    }

    /// The size of the scratch buffer, unless a test wants another one.
    const SCRATCH: usize = 4096;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let far = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let (near, _) = listener.accept().expect("accepted");
        near.set_nonblocking(true).expect("set");
        (far, near)
    }

    fn wait_for(stream: &TcpStream, flags: PollFlags) {
        let limit = PollTimeout::from(20_000u16);
        assert_eq!(poll(&mut [PollFd::new(stream.as_fd(), flags)], limit), Ok(1), "nothing came");
    }

    fn attempt(server: TcpStream) -> Attempt {
        Attempt { server_id: ServerId::default(), server: End::new(server), tried: Vec::new(), send_proxy: None }
    }

    impl Scene {
        fn connecting() -> Self {
            let ((client, near_client), (server, near_server)) = (pair(), pair());
            let now = event::now();
            let peer = client.local_addr().expect("connected");
            let client_end = End::new(near_client);
            let (inward, attempt) = (Pipe::new(true), attempt(near_server));
            let session = Session::new(client_end, inward, attempt, ServiceId::default(), peer, true, now);
            Self { session, client, server, scratch: vec![0; SCRATCH], kernel_pipes: KernelPipes::new(1), now }
        }

        fn relaying() -> Self {
            let mut scene = Self::connecting();
            assert!(scene.ready(Side::Server, WRITABLE).connected);
            scene
        }

        /// The client says something before the connect is done, and it is read.
        fn says_first(&mut self, words: &[u8]) {
            self.client.write_all(words).expect("sent");
            wait_for(&self.session.client.stream, PollFlags::POLLIN);
            self.session.inward.take_in(&self.session.client.stream, &mut self.scratch).expect("read");
        }

        fn ready(&mut self, side: Side, ready: Ready) -> Outcome {
            let through = &mut Through {
                scratch: &mut self.scratch,
                kernel_pipes: &mut self.kernel_pipes,
                most_spliced: 256 * 1024,
            };
            self.session.on_ready(side, ready, through, self.now)
        }

        /// Waits until the session's own socket has something, and tells it so.
        fn readable(&mut self, side: Side) -> Outcome {
            let end = if side == Side::Client { &self.session.client } else { &self.session.server };
            wait_for(&end.stream, PollFlags::POLLIN);
            self.ready(side, READABLE)
        }

        fn interests(&self) -> (Interest, Interest) {
            (self.session.interest(Side::Client), self.session.interest(Side::Server))
        }

        /// Sends from the client until the session keeps something that the server did not take.
        fn stuff(&mut self) -> usize {
            let mut sent = 0;
            self.client.set_nonblocking(true).expect("set");
            while !self.session.inward.wants_write() {
                sent += self.client.write(&[7; 4096]).unwrap_or(0);
                self.readable(Side::Client);
            }
            sent
        }
    }

    #[test]
    fn interests_are_those_of_the_table() {
        let mut scene = Scene::connecting();
        assert_eq!(scene.interests(), (Interest::NONE, Interest::WRITE));
        scene.ready(Side::Server, WRITABLE);
        assert_eq!(scene.interests(), (Interest::READ, Interest::READ));
        scene.stuff();
        assert_eq!(scene.interests(), (Interest::NONE, BOTH), "back-pressure");
        scene.server.shutdown(Shutdown::Write).expect("half closed");
        scene.readable(Side::Server);
        assert_eq!(scene.interests(), (Interest::NONE, Interest::WRITE), "rule 3: no READ after the end");

        let mut scene = Scene::relaying();
        scene.client.shutdown(Shutdown::Write).expect("half closed");
        scene.readable(Side::Client);
        assert_eq!(scene.interests(), (Interest::NONE, Interest::READ));
    }

    #[test]
    fn what_the_client_sent_while_connecting_goes_on_with_the_connect() {
        let mut scene = Scene::connecting();
        scene.client.write_all(b"first").expect("sent");
        wait_for(&scene.session.client.stream, PollFlags::POLLIN);
        let outcome = scene.ready(Side::Server, WRITABLE);
        assert_eq!(outcome, Outcome { connected: true, inward: 5, outward: 0, next: Next::Wait });
        let mut got = [0; 5];
        scene.server.read_exact(&mut got).expect("received");
        assert_eq!(&got, b"first");
    }

    #[test]
    fn a_connect_that_is_done_at_the_end_of_its_turn_needs_no_event() {
        let mut scene = Scene::connecting();
        scene.says_first(b"early");
        let outcome = scene.session.on_end_of_turn(scene.now);
        assert_eq!(outcome, Outcome { connected: true, inward: 5, outward: 0, next: Next::Wait });
        assert_eq!(scene.interests(), (Interest::READ, Interest::READ));
        let again = scene.session.on_end_of_turn(scene.now);
        assert_eq!(again, Outcome::default(), "extra calls do nothing");
    }

    #[test]
    fn what_a_refusing_server_did_not_take_goes_to_the_next() {
        let mut scene = Scene::connecting();
        scene.says_first(b"kept");
        let gone = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
        let refused = crate::net::connect::begin_plain_connect(gone).expect("begun");
        scene.session.reconnect(attempt(refused), scene.now);
        let outcome = scene.session.on_end_of_turn(scene.now);
        assert_eq!(outcome.next, Next::Retry(Errno::ECONNREFUSED));
        assert_eq!(scene.session.inward.kept(), 4);

        let (mut server, near_server) = pair();
        scene.session.reconnect(attempt(near_server), scene.now);
        let outcome = scene.session.on_end_of_turn(scene.now);
        assert_eq!((outcome.connected, outcome.inward), (true, 4));
        let mut got = [0; 4];
        server.read_exact(&mut got).expect("received");
        assert_eq!(&got, b"kept");
        assert_eq!(scene.session.inward.buffer_capacity(), 0);
    }

    #[test]
    fn a_header_goes_out_first_with_the_words_behind_it_and_counts_as_none() {
        let mut scene = Scene::connecting();
        scene.says_first(b"words");
        scene.session.lead_with(b"header ");
        let outcome = scene.session.on_end_of_turn(scene.now);
        assert_eq!(outcome, Outcome { connected: true, inward: 5, outward: 0, next: Next::Wait });
        let mut got = [0; 100];
        // One segment, so one read has it all.
        wait_for(&scene.server, PollFlags::POLLIN);
        let count = scene.server.read(&mut got).expect("received");
        assert_eq!(&got[..count], b"header words");
        assert_eq!(scene.interests(), (Interest::READ, Interest::READ));
        assert_eq!(scene.session.inward.buffer_capacity(), 0);
    }

    #[test]
    fn a_header_needs_no_words_to_go() {
        let mut scene = Scene::connecting();
        scene.session.lead_with(b"header ");
        let outcome = scene.session.on_end_of_turn(scene.now);
        assert_eq!(outcome, Outcome { connected: true, inward: 0, outward: 0, next: Next::Wait });
        scene.client.write_all(b"words").expect("sent");
        assert_eq!(scene.readable(Side::Client).inward, 5);
        let mut got = [0; 12];
        scene.server.read_exact(&mut got).expect("received");
        assert_eq!(&got, b"header words");
    }

    #[test]
    fn each_server_gets_its_own_header_whole_and_nothing_of_another() {
        let mut scene = Scene::connecting();
        scene.says_first(b"words");
        let gone = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
        for header in [&b"first header "[..], b"", b"the third "] {
            let refused = crate::net::connect::begin_plain_connect(gone).expect("begun");
            scene.session.reconnect(attempt(refused), scene.now);
            scene.session.lead_with(header);
            let outcome = scene.session.on_end_of_turn(scene.now);
            assert_eq!((outcome.inward, outcome.next), (0, Next::Retry(Errno::ECONNREFUSED)));
            assert_eq!(scene.session.inward.kept(), header.len() + 5);
        }
        let (mut server, near_server) = pair();
        scene.session.reconnect(attempt(near_server), scene.now);
        scene.session.lead_with(b"last ");
        let outcome = scene.session.on_end_of_turn(scene.now);
        assert_eq!((outcome.connected, outcome.inward), (true, 5));
        let mut got = [0; 10];
        server.read_exact(&mut got).expect("received");
        assert_eq!(&got, b"last words");
    }

    #[test]
    fn one_event_reads_once() {
        let mut scene = Scene::relaying();
        scene.server.write_all(&[1; 10_000]).expect("sent");
        assert!(scene.readable(Side::Server).outward <= scene.scratch.len());
    }

    #[test]
    fn what_is_kept_goes_out_in_order_and_leaves_no_buffer_behind() {
        let mut scene = Scene::relaying();
        let sent = scene.stuff();
        assert!(scene.session.inward.kept() > 0);
        let (mut got, mut chunk) = (0, vec![0; 65536]);
        while got < sent {
            got += scene.server.read(&mut chunk).expect("received");
            if scene.session.inward.wants_write() {
                scene.ready(Side::Server, WRITABLE);
            } else if got < sent {
                scene.ready(Side::Client, READABLE);
            }
        }
        assert_eq!(scene.session.inward.kept(), 0);
        assert_eq!(scene.session.inward.buffer_capacity(), 0, "an idle session holds no buffer");
        assert_eq!(scene.interests(), (Interest::READ, Interest::READ));
    }

    #[test]
    fn an_end_waits_for_what_is_before_it() {
        let mut scene = Scene::relaying();
        let mut sent = scene.stuff();
        scene.client.set_nonblocking(false).expect("set");
        scene.client.shutdown(Shutdown::Write).expect("half closed");
        let (mut got, mut chunk) = (0, vec![0; 65536]);
        scene.server.set_nonblocking(true).expect("set");
        loop {
            match scene.server.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => got += count,
                Err(_) => drop(scene.ready(Side::Server, WRITABLE)),
            }
            scene.ready(Side::Client, READABLE);
            scene.session.pass_on_ends();
        }
        assert_eq!(got, std::mem::take(&mut sent), "every byte came before the end");
    }

    #[test]
    fn who_closes_first_is_the_reason() {
        for (first, second, reason) in [
            (Side::Client, Side::Server, EndReason::ClientClosed),
            (Side::Server, Side::Client, EndReason::ServerClosed),
        ] {
            let mut scene = Scene::relaying();
            for side in [first, second] {
                let peer = if side == Side::Client { &scene.client } else { &scene.server };
                peer.shutdown(Shutdown::Write).expect("half closed");
                let next = scene.readable(side).next;
                assert_eq!(next, if side == second { Next::End(reason) } else { Next::Wait });
            }
        }
    }

    fn reset(stream: TcpStream) {
        options::abort_at_close(&stream);
        drop(stream);
    }

    #[test]
    fn a_reset_ends_both_and_what_came_before_it_is_delivered() {
        let mut scene = Scene::relaying();
        scene.server.write_all(b"last words").expect("sent");
        wait_for(&scene.session.server.stream, PollFlags::POLLIN);
        let Scene { mut session, mut client, server, mut scratch, mut kernel_pipes, now } = scene;
        let through = &mut Through { scratch: &mut scratch, kernel_pipes: &mut kernel_pipes, most_spliced: 256 * 1024 };
        reset(server);
        let first = session.on_ready(Side::Server, READY, through, now);
        assert_eq!((first.outward, first.next), (10, Next::Wait));
        let second = session.on_ready(Side::Server, READY, through, now);
        assert_eq!(second.next, Next::End(EndReason::ServerReset));
        let mut got = [0; 10];
        client.read_exact(&mut got).expect("received");
        assert_eq!(&got, b"last words");
        session.pass_on_a_reset(EndReason::ServerReset);
        drop(session);
        assert_eq!(client.read(&mut got).expect_err("a reset").kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_sink_that_broke_is_still_read_to_its_end() {
        let mut scene = Scene::relaying();
        scene.server.write_all(b"too large").expect("sent");
        wait_for(&scene.session.server.stream, PollFlags::POLLIN);
        let Scene { mut session, mut client, server, mut scratch, mut kernel_pipes, now } = scene;
        let through = &mut Through { scratch: &mut scratch, kernel_pipes: &mut kernel_pipes, most_spliced: 256 * 1024 };
        reset(server);
        client.write_all(b"body").expect("sent");
        wait_for(&session.client.stream, PollFlags::POLLIN);
        let outcome = session.on_ready(Side::Client, READABLE, through, now);
        assert_eq!((outcome.inward, outcome.next), (0, Next::Wait), "the write met the reset, the answer is unread");
        let mut last = Next::Wait;
        while last == Next::Wait {
            last = session.on_ready(Side::Server, READY, through, now).next;
        }
        assert_eq!(last, Next::End(EndReason::ServerReset));
        let mut got = [0; 9];
        client.read_exact(&mut got).expect("received");
        assert_eq!(&got, b"too large");
    }

    /// What stands at so many bytes from the start of a stream: no two of its pieces are alike.
    fn stream(from: usize, count: usize) -> Vec<u8> {
        (from..from + count).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect()
    }

    /// A session whose client sends much and says what it sent.
    struct Bulk {
        scene: Scene,
        sent: usize,
        got: usize,
    }

    impl Bulk {
        /// A client that has sent so much that its direction splices, all of which the server has.
        fn new() -> Self {
            let mut scene = Scene::relaying();
            scene.scratch = vec![0; 64 * 1024];
            scene.client.set_nonblocking(true).expect("set");
            scene.server.set_nonblocking(true).expect("set");
            let mut bulk = Self { scene, sent: 0, got: 0 };
            while !bulk.splices() {
                bulk.send(256 * 1024);
                bulk.scene.readable(Side::Client);
                bulk.receive();
            }
            bulk.come_through();
            bulk
        }

        fn splices(&self) -> bool {
            matches!(self.scene.session.inward.way(), Way::Splice { .. })
        }

        /// Sends so much, or what the kernel takes of it.
        fn send(&mut self, count: usize) {
            self.sent += self.scene.client.write(&stream(self.sent, count)).unwrap_or(0);
        }

        /// Sends until something stays in the session.
        fn stuff(&mut self) {
            while !self.scene.session.inward.wants_write() {
                self.send(256 * 1024);
                self.scene.ready(Side::Client, READABLE);
            }
        }

        /// The server reads what there is and finds it right.
        fn receive(&mut self) {
            let mut chunk = vec![0; 256 * 1024];
            while let Ok(count) = self.scene.server.read(&mut chunk) {
                assert!(chunk[..count] == stream(self.got, count), "behind {}", self.got);
                self.got += count;
                if count == 0 {
                    return;
                }
            }
        }

        /// Everything that was sent arrives.
        fn come_through(&mut self) {
            while self.got < self.sent {
                if self.scene.session.inward.wants_write() {
                    self.scene.ready(Side::Server, WRITABLE);
                } else {
                    self.scene.ready(Side::Client, READABLE);
                }
                self.receive();
            }
        }

        fn pipes(&self) -> (usize, usize) {
            self.scene.kernel_pipes.lent_and_idle()
        }
    }

    #[test]
    fn bulk_is_spliced_and_small_messages_are_copied_again() {
        let mut bulk = Bulk::new();
        for _ in 0..100 {
            assert!(bulk.splices());
            for _ in 0..3 {
                assert_eq!(bulk.pipes().0, 0, "a session in which nothing is kept holds no pipe");
                bulk.send(100);
                bulk.scene.readable(Side::Client);
            }
            assert!(!bulk.splices());
            while !bulk.splices() {
                bulk.send(256 * 1024);
                bulk.scene.readable(Side::Client);
                bulk.come_through();
            }
        }
        assert_eq!(bulk.pipes(), (0, 1));
        assert_eq!(bulk.scene.session.moved(), (0, 0), "its owner counts");
    }

    #[test]
    fn one_event_splices_no_more_than_it_may() {
        let mut bulk = Bulk::new();
        while bulk.sent < bulk.got + 400 * 1024 {
            bulk.send(256 * 1024);
        }
        assert!((1..=256 * 1024).contains(&bulk.scene.readable(Side::Client).inward));
        bulk.come_through();
    }

    #[test]
    fn what_stays_in_a_kernel_pipe_holds_the_source_up_and_goes_out_in_order() {
        let mut bulk = Bulk::new();
        bulk.stuff();
        assert_eq!(bulk.pipes(), (1, 0));
        assert_eq!(bulk.scene.session.inward.buffer_capacity(), 0);
        assert_eq!(bulk.scene.interests(), (Interest::NONE, BOTH), "back-pressure");
        let kept = bulk.scene.session.inward.kept();
        bulk.send(1);
        bulk.scene.ready(Side::Client, READABLE);
        assert_eq!(bulk.scene.session.inward.kept(), kept, "nothing more is read");
        bulk.come_through();
        assert_eq!(bulk.pipes(), (0, 1));
        assert_eq!(bulk.scene.interests(), (Interest::READ, Interest::READ));
    }

    #[test]
    fn a_sink_that_makes_room_for_all_gets_more_in_the_same_event() {
        let mut bulk = Bulk::new();
        bulk.stuff();
        bulk.send(256 * 1024);
        loop {
            let kept = bulk.scene.session.inward.kept();
            bulk.receive();
            wait_for(&bulk.scene.session.server.stream, PollFlags::POLLOUT);
            let moved = bulk.scene.ready(Side::Server, WRITABLE).inward;
            if moved >= kept {
                assert!(moved > kept || bulk.scene.session.inward.wants_write(), "it was read from again");
                break;
            }
        }
        bulk.come_through();
    }

    #[test]
    fn an_end_waits_for_what_is_in_a_kernel_pipe() {
        let mut bulk = Bulk::new();
        bulk.stuff();
        bulk.scene.client.shutdown(Shutdown::Write).expect("half closed");
        assert!(!bulk.scene.session.inward.has_end_to_pass_on());
        bulk.come_through();
        if bulk.scene.session.inward.wants_read() {
            bulk.scene.readable(Side::Client);
        }
        bulk.scene.session.pass_on_ends();
        wait_for(&bulk.scene.server, PollFlags::POLLIN);
        assert_eq!(bulk.scene.server.read(&mut [0; 1]).expect("the end"), 0);
        assert_eq!(bulk.pipes(), (0, 1));
    }

    #[test]
    fn a_kernel_pipe_whose_sink_broke_is_closed() {
        let mut bulk = Bulk::new();
        bulk.stuff();
        let Bulk { mut scene, .. } = bulk;
        let (other, _) = pair();
        reset(std::mem::replace(&mut scene.server, other));
        wait_for(&scene.session.server.stream, PollFlags::POLLERR);
        let outcome = scene.ready(Side::Server, READY);
        assert_eq!((outcome.inward, outcome.next), (0, Next::End(EndReason::ServerReset)));
        assert_eq!(scene.kernel_pipes.lent_and_idle(), (0, 0), "it was not empty");
        assert!(scene.kernel_pipes.take(scene.now).is_some(), "and makes room for another");
    }

    #[test]
    fn a_session_that_ends_gives_its_kernel_pipe_up() {
        let mut bulk = Bulk::new();
        bulk.stuff();
        bulk.scene.session.release(&mut bulk.scene.kernel_pipes);
        assert_eq!(bulk.pipes(), (0, 0));
    }

    #[test]
    fn a_sink_that_stalls_loses_its_kernel_pipe_and_no_byte() {
        let timeouts = Timeouts::new(Duration::from_secs(3), Duration::from_secs(60));
        let mut bulk = Bulk::new();
        bulk.stuff();
        let (start, kept) = (bulk.scene.now, bulk.scene.session.inward.kept());
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        assert_eq!(bulk.scene.session.next_deadline(timeouts), at(1000));
        let Scene { session, kernel_pipes, .. } = &mut bulk.scene;
        assert_eq!(session.expire(timeouts, kernel_pipes, at(999)), Next::Wait);
        assert_eq!(kernel_pipes.lent_and_idle(), (1, 0));
        assert_eq!(session.expire(timeouts, kernel_pipes, at(1000)), Next::Wait);
        assert_eq!((kernel_pipes.lent_and_idle(), session.inward.kept()), ((0, 1), kept));
        assert_eq!(session.next_deadline(timeouts), at(60_000));
        assert!(!bulk.splices(), "it has to prove itself anew");
        assert_eq!(bulk.scene.interests(), (Interest::NONE, BOTH));
        bulk.come_through();
        assert_eq!(bulk.scene.session.inward.buffer_capacity(), 0);
    }

    #[test]
    fn bulk_that_finds_no_kernel_pipe_is_copied() {
        let mut bulk = Bulk::new();
        bulk.scene.kernel_pipes = KernelPipes::new(0);
        bulk.stuff();
        assert!(bulk.splices() && bulk.scene.session.inward.buffer_capacity() > 0);
        bulk.come_through();
    }

    #[test]
    fn what_came_before_a_reset_is_spliced_first() {
        let mut bulk = Bulk::new();
        bulk.send(200_000);
        wait_for(&bulk.scene.session.client.stream, PollFlags::POLLIN);
        let (other, _) = pair();
        reset(std::mem::replace(&mut bulk.scene.client, other));
        wait_for(&bulk.scene.session.client.stream, PollFlags::POLLERR);
        let mut next = Next::Wait;
        while next == Next::Wait {
            next = bulk.scene.ready(Side::Client, READY).next;
        }
        assert_eq!(next, Next::End(EndReason::ClientReset));
        bulk.receive();
        assert_eq!(bulk.got, bulk.sent);
    }

    #[test]
    fn a_deadline_that_moved_is_not_yet() {
        let timeouts = Timeouts::new(Duration::from_secs(3), Duration::from_secs(60));
        let mut scene = Scene::connecting();
        let (start, mut none) = (scene.now, KernelPipes::new(0));
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(scene.session.expire(timeouts, &mut none, at(2)), Next::Wait);
        assert_eq!(scene.session.expire(timeouts, &mut none, at(3)), Next::Retry(Errno::ETIMEDOUT));
        scene.now = at(1);
        scene.ready(Side::Server, WRITABLE);
        assert_eq!(scene.session.expire(timeouts, &mut none, at(60)), Next::Wait);
        assert_eq!(scene.session.expire(timeouts, &mut none, at(61)), Next::End(EndReason::IdleTimeout));
        scene.client.write_all(b"x").expect("sent");
        scene.now = at(50);
        scene.readable(Side::Client);
        assert_eq!(scene.session.next_deadline(timeouts), at(110));
        scene.now = at(70);
        scene.ready(Side::Client, READABLE);
        assert_eq!(scene.session.next_deadline(timeouts), at(110), "an event that moves nothing is no activity");
    }
}

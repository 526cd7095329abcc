//! One relayed TCP connection pair, as a state machine. It does not know the poller, the model or the clock: its
//! owner asks what each side waits for, and hands in what happened.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use wire::report::EndReason;

use super::pipe::{Pipe, Step};
use crate::event::{Interest, Ready};
use crate::model::{Direction, ServerId, ServiceId};

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
    pub(super) peer: SocketAddr,
    pub(super) began: Instant,
    last_moved: Instant,
}

#[derive(Debug)]
enum Phase {
    /// Towards a server; those before it did not answer.
    Connecting {
        since: Instant,
        tried: Vec<ServerId>,
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
}

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
    /// It is over.
    End(EndReason),
}

impl Session {
    /// A session whose server has been asked to connect.
    pub(super) fn new(
        client: End,
        server: End,
        service: ServiceId,
        server_id: ServerId,
        peer: SocketAddr,
        tried: Vec<ServerId>,
        now: Instant,
    ) -> Self {
        Self {
            client,
            server,
            phase: Phase::Connecting { since: now, tried },
            inward: Pipe::new(),
            outward: Pipe::new(),
            ending: None,
            service,
            server_id,
            peer,
            began: now,
            last_moved: now,
        }
    }

    /// Goes on with another server.
    pub(super) fn reconnect(&mut self, server: End, server_id: ServerId, tried: Vec<ServerId>, now: Instant) {
        (self.server, self.server_id) = (server, server_id);
        self.phase = Phase::Connecting { since: now, tried };
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
    /// | connecting | nothing: what it sends waits in the kernel | writable |
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

    /// A side is ready.
    pub(super) fn on_ready(&mut self, side: Side, ready: Ready, scratch: &mut [u8], now: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        if let Phase::Connecting { .. } = self.phase {
            match self.on_connect(side, ready) {
                Next::Wait if matches!(self.phase, Phase::Relaying) => {
                    outcome.connected = true;
                    self.last_moved = now;
                    // A client that speaks first has spoken by now: try it at once instead of waiting a turn for it.
                    self.pump(Side::Client, scratch, &mut outcome, now);
                }
                next => outcome.next = next,
            }
            if outcome.next == Next::Wait {
                outcome.next = self.next();
            }
            return outcome;
        }
        if ready.writable {
            self.flush(side, &mut outcome, now);
        }
        if ready.readable {
            self.pump(side, scratch, &mut outcome, now);
        }
        outcome.next = self.next();
        outcome
    }

    /// When [`Session::expire`] has something to say: later calls may give a later time, never an earlier one.
    pub(super) fn next_deadline(&self, timeouts: Timeouts) -> Instant {
        match self.phase {
            Phase::Connecting { since, .. } => since + timeouts.connect,
            Phase::Relaying => self.last_moved + timeouts.idle,
        }
    }

    /// What a deadline that has passed means.
    pub(super) fn expire(&self, timeouts: Timeouts, now: Instant) -> Next {
        if self.next_deadline(timeouts) > now {
            return Next::Wait;
        }
        match self.phase {
            Phase::Connecting { .. } => Next::Retry(Errno::ETIMEDOUT),
            Phase::Relaying => Next::End(EndReason::IdleTimeout),
        }
    }

    /// Makes the coming close of the sockets an abort for the side that did not cause it: the peer of a connection
    /// that was reset sees a reset, as it would without the balancer.
    pub(super) fn pass_on_a_reset(&self, reason: EndReason) {
        let survivor = match reason {
            EndReason::ClientReset | EndReason::ClientLost => &self.server,
            EndReason::ServerReset | EndReason::ServerLost => &self.client,
            _ => return,
        };
        // SO_LINGER 0 drops what is queued to be sent, so it is for aborts alone.
        let abort = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        let _ = setsockopt(&survivor.stream, sockopt::Linger, &abort);
    }

    fn on_connect(&mut self, side: Side, ready: Ready) -> Next {
        if side == Side::Client {
            return Next::Wait;
        }
        // A connect that failed reports an error; one that is writable without it has succeeded.
        if ready.failed
            && let Ok(Some(error)) = self.server.stream.take_error()
        {
            return Next::Retry(Errno::from_raw(error.raw_os_error().unwrap_or(0)));
        }
        self.phase = Phase::Relaying;
        Next::Wait
    }

    fn pump(&mut self, from: Side, scratch: &mut [u8], outcome: &mut Outcome, now: Instant) {
        let (pipe, source, sink) = match from {
            Side::Client => (&mut self.inward, &self.client.stream, &self.server.stream),
            Side::Server => (&mut self.outward, &self.server.stream, &self.client.stream),
        };
        if pipe.wants_read() {
            let step = pipe.pump(source, sink, scratch);
            self.on_step(from, step, outcome, now);
        }
    }

    fn flush(&mut self, to: Side, outcome: &mut Outcome, now: Instant) {
        let (pipe, sink) = match to {
            Side::Client => (&mut self.outward, &self.client.stream),
            Side::Server => (&mut self.inward, &self.server.stream),
        };
        if pipe.wants_write() {
            let step = pipe.flush(sink);
            self.on_step(to.other(), step, outcome, now);
        }
    }

    /// What a step of the direction that comes from `from` means for the session.
    fn on_step(&mut self, from: Side, step: Step, outcome: &mut Outcome, now: Instant) {
        match step {
            Step::Moved(count) => {
                if count > 0 {
                    self.last_moved = now;
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
            Step::SourceBroke(error) => self.on_break(from, &error),
            Step::SinkBroke(error) => self.on_break(from.other(), &error),
        }
    }

    /// A side broke. It takes nothing more; what it sent before can still be read and is passed on first. The reason
    /// replaces an end in order: an abort after a half-close is still an abort.
    fn on_break(&mut self, side: Side, error: &io::Error) {
        let reset = matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe);
        let reason = match (side, reset) {
            (Side::Client, true) => EndReason::ClientReset,
            (Side::Client, false) => EndReason::ClientLost,
            (Side::Server, true) => EndReason::ServerReset,
            (Side::Server, false) => EndReason::ServerLost,
        };
        if !matches!(self.ending, Some(first) if is_abort(first)) {
            self.ending = Some(reason);
        }
        match side {
            Side::Client => self.outward.abandon(),
            Side::Server => self.inward.abandon(),
        }
    }

    fn next(&self) -> Next {
        if self.inward.is_done() && self.outward.is_done() {
            Next::End(self.ending.unwrap_or(EndReason::Fault))
        } else {
            Next::Wait
        }
    }
}

fn is_abort(reason: EndReason) -> bool {
    matches!(reason, EndReason::ClientReset | EndReason::ServerReset | EndReason::ClientLost | EndReason::ServerLost)
}

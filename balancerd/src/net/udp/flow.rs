//! A flow: what is known of a client's datagrams to one address of ours, and of the answers.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use wire::flow::FlowSettings;
use wire::report::EndReason;

use super::listener::DatagramListenerId;
use super::portion::Portion;
use crate::event::Interest;
use crate::model::{ServerId, ServiceId};

/// What tells flows apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FlowKey {
    /// Who sends, and gets the answers.
    pub(super) peer: SocketAddr,
    /// The address of ours that it sends to, and that answers come from.
    pub(super) asked: SocketAddr,
    /// Whose datagrams they are, as a header before each of them says: a proxy may send those of many from one socket. Without
    /// such headers it is the peer.
    pub(super) client: SocketAddr,
    /// Where each datagram may go to another server, a flow is between a client and one of them.
    pub(super) server: Option<ServerId>,
}

/// A flow. `S` is its socket towards the server.
#[derive(Debug)]
pub(super) struct Flow<S> {
    /// What people know it by. Its owner gives it.
    pub(super) number: u64,
    pub(super) key: FlowKey,
    /// The client: as a PROXY protocol header said, or the peer.
    pub(super) client: SocketAddr,
    pub(super) service: ServiceId,
    pub(super) server: ServerId,
    pub(super) socket: S,
    pub(super) registered: Interest,
    /// The listener that the client's last datagram came by: answers leave there.
    pub(super) listener: DatagramListenerId,
    pub(super) began: Instant,
    /// When something moved.
    pub(super) moved: Instant,
    /// When it is looked at next, lest it is idle.
    pub(super) guess: Instant,
    pub(super) datagrams_in: u64,
    pub(super) datagrams_out: u64,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    /// Calls that an event of the server is worth.
    pub(super) portion: Portion,
    /// Trains are refused on the way to the server.
    pub(super) singly_in: bool,
    /// Trains are refused on the way to the client.
    pub(super) singly_out: bool,
    /// The kernel joins answers that come one behind the other.
    pub(super) joins: bool,
    /// The present server has not said anything yet.
    pub(super) is_unanswered: bool,
    /// The present server has had the header that it gets once.
    pub(super) is_introduced: bool,
    /// It takes no more of its client, who has sent as many as it may have.
    pub(super) is_closed: bool,
    /// Why it is to leave its server, or to end. Its turn has not come yet.
    pub(super) leaves: Option<EndReason>,
    /// The number of the change after which it was looked at.
    pub(super) looked_after: u32,
    /// What the way to the present server may have been too short for.
    pub(super) longest: Longest,
}

/// The longest datagram that a client has sent in one piece.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Longest {
    /// Its bytes.
    pub(super) length: u16,
    /// Those that were added before it on the way to the server.
    pub(super) added: u16,
    /// Those of its own that were taken off.
    pub(super) taken_off: u16,
}

impl Longest {
    /// There is another one.
    pub(super) fn or(self, other: Self) -> Self {
        if other.length > self.length { other } else { self }
    }
}

impl<S> Flow<S> {
    /// One that begins.
    pub(super) fn new(
        key: FlowKey,
        client: SocketAddr,
        service: ServiceId,
        server: ServerId,
        socket: S,
        listener: DatagramListenerId,
        now: Instant,
    ) -> Self {
        Self {
            key,
            client,
            service,
            server,
            socket,
            registered: Interest::NONE,
            listener,
            number: 0,
            began: now,
            moved: now,
            guess: now,
            datagrams_in: 0,
            datagrams_out: 0,
            bytes_in: 0,
            bytes_out: 0,
            portion: Portion::ONE,
            singly_in: false,
            singly_out: false,
            joins: false,
            is_unanswered: true,
            is_introduced: false,
            is_closed: false,
            leaves: None,
            looked_after: 0,
            longest: Longest::default(),
        }
    }

    /// Goes on with another server.
    pub(super) fn goes_on_with(&mut self, server: ServerId, socket: S) {
        (self.server, self.socket, self.registered) = (server, socket, Interest::NONE);
        (self.portion, self.singly_in, self.joins) = (Portion::ONE, false, false);
        (self.is_unanswered, self.is_introduced, self.leaves) = (true, false, None);
        self.longest = Longest::default();
    }

    /// It is to leave its server, or to end. Who is to end does so, whatever else is said of its server.
    pub(super) fn is_to_leave(&mut self, reason: EndReason) {
        if self.leaves.is_none_or(may_go_on) {
            self.leaves = Some(reason);
        }
    }

    /// How many of so many further datagrams of its client it takes.
    pub(super) fn room(&self, count: usize, settings: &FlowSettings) -> usize {
        let Some(limit) = settings.requests else { return count };
        let left = u64::from(limit.get()).saturating_sub(self.datagrams_in);
        count.min(usize::try_from(left).unwrap_or(usize::MAX))
    }

    /// Datagrams of its client came; `passed` of them, with so many bytes, were sent to the server.
    pub(super) fn on_request(&mut self, passed: usize, bytes: usize, now: Instant) {
        self.moved = now;
        self.datagrams_in += passed as u64;
        self.bytes_in += bytes as u64;
    }

    /// Datagrams of its server came; `passed` of them, with so many bytes, were sent to the client.
    pub(super) fn on_answer(&mut self, passed: usize, bytes: usize, now: Instant) {
        self.moved = now;
        self.datagrams_out += passed as u64;
        self.bytes_out += bytes as u64;
    }

    /// Whether its client has sent as many datagrams as a flow may have.
    pub(super) fn has_all_requests(&self, settings: &FlowSettings) -> bool {
        settings.requests.is_some_and(|limit| self.datagrams_in >= limit.get().into())
    }

    /// Whether its server has sent as many datagrams as are expected. A client may ask again before it has an answer, as
    /// resolvers do that ask for both kinds of addresses.
    pub(super) fn has_all_answers(&self, settings: &FlowSettings) -> bool {
        let expected = |each: NonZeroU32| self.datagrams_in.saturating_mul(each.get().into());
        settings.answers.is_some_and(|each| self.datagrams_out >= expected(each))
    }

    /// When it is idle, as things are.
    pub(super) fn deadline(&self, settings: &FlowSettings) -> Instant {
        self.moved + Duration::from_millis(settings.timeout_ms.get())
    }

    /// Why it ends when it is idle: one that had all it was to have is complete.
    pub(super) fn end_when_idle(&self) -> EndReason {
        if self.is_closed { EndReason::Complete } else { EndReason::IdleTimeout }
    }
}

/// Whether a flow that leaves its server for this reason may go on with another one.
pub(super) fn may_go_on(reason: EndReason) -> bool {
    matches!(reason, EndReason::Removed | EndReason::ServerDown)
}

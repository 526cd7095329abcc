//! Checks of servers: each is one connection or one socket for datagrams, from the model's order to its result, and never
//! longer than its time. What a result means for a server is the model's affair.

mod datagram;
mod dns;
mod http;
mod stream;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use slotmap::SlotMap;
use tracing::warn;

use self::datagram::DatagramProbe;
use self::stream::StreamProbe;
use super::connect::{NO_SOURCE, is_ours, missing_source};
use super::{Context, words};
use crate::event::{Deadlines, Interest, Key, Ready, Repeated};
use crate::model::{CheckResult, Order, TargetId};

slotmap::new_key_type! {
    /// A check that runs.
    pub(crate) struct ProbeId;
}

/// Bytes of an answer that a result quotes.
const QUOTED: usize = 64;

/// Checks that one turn begins: a thousand that are due at once are no reason to let clients wait.
const PER_TURN: usize = 16;

/// The checks that run.
pub(crate) struct Probes {
    slots: SlotMap<ProbeId, Running>,
    deadlines: Deadlines<ProbeId>,
    most: usize,
    key: fn(ProbeId) -> Key,
    /// Checks so far: whose turn it is among several sources.
    begun: usize,
    shortage: Repeated,
}

struct Running {
    target: TargetId,
    probe: Probe,
    registered: Interest,
    began: Instant,
}

/// What a check is while it runs, and what it does.
enum Probe {
    Stream(StreamProbe),
    Datagram(DatagramProbe),
}

/// What was found, in words, either way.
type Outcome = Result<String, String>;

impl Probes {
    /// None yet, and never more than `most` at a time. `key` says what one is called at the poller.
    pub(crate) fn new(most: usize, key: fn(ProbeId) -> Key) -> Self {
        let (slots, deadlines) = (SlotMap::with_key(), Deadlines::new());
        Self { slots, deadlines, most, key, begun: 0, shortage: Repeated::default() }
    }

    /// The earliest time at which [`Probes::expire`] has something to do; `due` is when the next check is to begin.
    pub(crate) fn next_deadline(&self, due: Option<Instant>) -> Option<Instant> {
        let due = due.filter(|_| self.slots.len() < self.most);
        [self.deadlines.next(), self.shortage.next_deadline(), due].into_iter().flatten().min()
    }

    /// Ends those that took too long, and begins those that are due.
    pub(crate) fn expire(&mut self, cx: &mut Context<'_>) {
        while let Some((_, id)) = self.deadlines.pop_due(cx.now) {
            let Some(running) = self.slots.get(id) else { continue };
            let outcome = running.probe.expire();
            self.end(id, outcome, cx);
        }
        for _ in 0..PER_TURN {
            if self.slots.len() >= self.most {
                break;
            }
            let Some((target, order)) = cx.model.next_check(cx.now) else { break };
            self.begin(target, order, cx);
        }
        if let Some(suppressed) = self.shortage.expire(cx.now) {
            warn!(suppressed, "short of descriptors, ports or memory: further checks were left out");
        }
    }

    fn begin(&mut self, target: TargetId, order: Order, cx: &mut Context<'_>) {
        let within = Duration::from_millis(order.settings.timeout_ms);
        self.begun = self.begun.wrapping_add(1);
        let (address, side) = (order.address, Arc::clone(&order.side));
        match Probe::begin(order, self.begun) {
            Ok(probe) => {
                let deadline = cx.now + within;
                let id = self.slots.insert(Running { target, probe, registered: Interest::NONE, began: cx.now });
                self.deadlines.push(deadline, id);
                let slots = &self.slots;
                self.deadlines.tidy(slots.len(), |_, id| slots.contains_key(id));
                self.settle(id, cx);
            }
            Err(errno) if let Some(source) = missing_source(errno, address, &side) => {
                if self.shortage.on_event(cx.now) {
                    warn!(server = %address, %source, "a check was left out: {NO_SOURCE}");
                }
                cx.model.check_done(target, None, cx.now);
            }
            Err(errno) if is_ours(errno) => self.leave_out(target, &errno.into(), cx),
            Err(errno) => {
                let outcome = Err(words(errno));
                cx.model.check_done(target, Some(&CheckResult { outcome, duration: Duration::ZERO }), cx.now);
            }
        }
    }

    /// A check that could not be made for want of something of our own: it says nothing about the server.
    fn leave_out(&mut self, target: TargetId, error: &io::Error, cx: &mut Context<'_>) {
        if self.shortage.on_event(cx.now) {
            warn!(%error, "a check was left out");
        }
        cx.model.check_done(target, None, cx.now);
    }

    /// A check is ready. One that is gone has nothing to say.
    pub(crate) fn ready(&mut self, id: ProbeId, ready: Ready, cx: &mut Context<'_>) {
        let Some(running) = self.slots.get_mut(id) else { return };
        match running.probe.on_ready(ready, cx.scratch) {
            Some(outcome) => self.end(id, outcome, cx),
            None => self.settle(id, cx),
        }
    }

    /// Gives a check up without a result.
    pub(crate) fn drop_out(&mut self, id: ProbeId, cx: &mut Context<'_>) {
        if let Some(running) = self.slots.remove(id) {
            cx.model.check_done(running.target, None, cx.now);
        }
    }

    fn end(&mut self, id: ProbeId, outcome: Outcome, cx: &mut Context<'_>) {
        let Some(running) = self.slots.remove(id) else { return };
        let duration = crate::event::now().saturating_duration_since(running.began);
        cx.model.check_done(running.target, Some(&CheckResult { outcome, duration }), cx.now);
    }

    fn settle(&mut self, id: ProbeId, cx: &mut Context<'_>) {
        let Some(running) = self.slots.get_mut(id) else { return };
        let Running { probe, registered, .. } = running;
        if let Err(error) = cx.poller.set(probe.descriptor(), (self.key)(id), registered, probe.interest())
            && let Some(running) = self.slots.remove(id)
        {
            self.leave_out(running.target, &error, cx);
        }
    }
}

impl Probe {
    fn begin(order: Order, nth: usize) -> Result<Self, Errno> {
        match datagram::asked(&order.settings.kind) {
            Some((asked, awaited)) => DatagramProbe::begin(&order, asked, awaited, nth).map(Self::Datagram),
            None => StreamProbe::begin(order, nth).map(Self::Stream),
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stream(probe) => probe.as_fd(),
            Self::Datagram(probe) => probe.as_fd(),
        }
    }

    fn interest(&self) -> Interest {
        match self {
            Self::Stream(probe) => probe.interest(),
            // It has asked from the beginning.
            Self::Datagram(_) => Interest::READ,
        }
    }

    fn on_ready(&mut self, ready: Ready, scratch: &mut [u8]) -> Option<Outcome> {
        match self {
            Self::Stream(probe) => probe.on_ready(ready, scratch),
            Self::Datagram(probe) => probe.on_ready(ready, scratch),
        }
    }

    fn expire(&self) -> Outcome {
        match self {
            Self::Stream(probe) => probe.expire(),
            Self::Datagram(probe) => probe.expire(),
        }
    }
}

/// What came, for a result.
fn quoted(received: &[u8]) -> String {
    match received {
        [] => "nothing came".to_owned(),
        some => format!("\"{}\" came", some[..some.len().min(QUOTED)].escape_ascii()),
    }
}

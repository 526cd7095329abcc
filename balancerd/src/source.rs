//! What a key at the poller stands for.

use slotmap::{Key as _, KeyData};

use crate::event::Key;
use crate::net::control::ControlId;
use crate::net::listen::ListenerId;
use crate::net::probe::ProbeId;
use crate::net::tcp::{NewcomerId, SessionId, Side};
use crate::net::udp::{DatagramListenerId, FlowId};

/// Whose event it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// One side of a session.
    Session(SessionId, Side),
    /// A client whose header has not come yet.
    Newcomer(NewcomerId),
    /// A control connection.
    Control(ControlId),
    /// The listener of a service.
    Listener(ListenerId),
    /// The listener of the control socket.
    ControlListener,
    /// The signals.
    Signals,
    /// One of the threads: that which writes the state file, reads the configuration file, or finishes answers.
    Threads,
    /// News of the directory of the configuration file.
    Watch,
    /// A check of a server.
    Probe(ProbeId),
    /// The listener of a service for datagrams.
    DatagramListener(DatagramListenerId),
    /// The server's side of a flow.
    Flow(FlowId),
}

/// A slot's key is its generation in the upper 32 bits and its index in the lower ones. The upper four of the index
/// are the tag: no slab here comes near 2^28 entries.
const TAG_SHIFT: u32 = 28;
const TAG_MASK: u64 = 0xf << TAG_SHIFT;

/// Entries that a slab may have for its keys to leave the tag free.
pub(crate) const MOST_ENTRIES: usize = 1 << TAG_SHIFT;

impl Source {
    /// The key to register it with.
    pub(crate) fn key(self) -> Key {
        let (tag, data) = match self {
            Self::Session(id, Side::Client) => (0, id.data().as_ffi()),
            Self::Session(id, Side::Server) => (1, id.data().as_ffi()),
            Self::Control(id) => (2, id.data().as_ffi()),
            Self::Listener(id) => (3, id.data().as_ffi()),
            Self::ControlListener => (4, 0),
            Self::Signals => (5, 0),
            Self::Threads => (6, 0),
            Self::Watch => (7, 0),
            Self::Probe(id) => (8, id.data().as_ffi()),
            Self::Newcomer(id) => (9, id.data().as_ffi()),
            Self::DatagramListener(id) => (10, id.data().as_ffi()),
            Self::Flow(id) => (11, id.data().as_ffi()),
        };
        debug_assert_eq!(data & TAG_MASK, 0, "the index leaves room for the tag");
        Key(data | tag << TAG_SHIFT)
    }

    /// Whose key it is. `None` for a key that was never made here.
    pub(crate) fn of(key: Key) -> Option<Self> {
        let data = key.0 & !TAG_MASK;
        Some(match (key.0 & TAG_MASK) >> TAG_SHIFT {
            0 => Self::Session(KeyData::from_ffi(data).into(), Side::Client),
            1 => Self::Session(KeyData::from_ffi(data).into(), Side::Server),
            2 => Self::Control(KeyData::from_ffi(data).into()),
            3 => Self::Listener(KeyData::from_ffi(data).into()),
            4 => Self::ControlListener,
            5 => Self::Signals,
            6 => Self::Threads,
            7 => Self::Watch,
            8 => Self::Probe(KeyData::from_ffi(data).into()),
            9 => Self::Newcomer(KeyData::from_ffi(data).into()),
            10 => Self::DatagramListener(KeyData::from_ffi(data).into()),
            11 => Self::Flow(KeyData::from_ffi(data).into()),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use slotmap::SlotMap;

    use super::*;

    #[test]
    fn every_source_comes_back_from_its_key() {
        let mut sessions = SlotMap::<SessionId, ()>::with_key();
        let mut controls = SlotMap::<ControlId, ()>::with_key();
        let mut listeners = SlotMap::<ListenerId, ()>::with_key();
        let mut probes = SlotMap::<ProbeId, ()>::with_key();
        let mut newcomers = SlotMap::<NewcomerId, ()>::with_key();
        let mut datagram_listeners = SlotMap::<DatagramListenerId, ()>::with_key();
        let mut flows = SlotMap::<FlowId, ()>::with_key();
        for _ in 0..3 {
            let (session, control) = (sessions.insert(()), controls.insert(()));
            for source in [
                Source::Session(session, Side::Client),
                Source::Session(session, Side::Server),
                Source::Control(control),
                Source::Listener(listeners.insert(())),
                Source::Newcomer(newcomers.insert(())),
                Source::ControlListener,
                Source::Signals,
                Source::Threads,
                Source::Watch,
                Source::Probe(probes.insert(())),
                Source::DatagramListener(datagram_listeners.insert(())),
                Source::Flow(flows.insert(())),
            ] {
                assert_eq!(Source::of(source.key()), Some(source));
            }
            // The next ones come into the same slots with another generation.
            sessions.remove(session);
            controls.remove(control);
        }
        assert_eq!(Source::of(Key(0xf000_0000)), None);
    }

    #[test]
    fn rule_9_a_stale_key_is_not_that_of_the_successor_in_its_slot() {
        let mut sessions = SlotMap::<SessionId, ()>::with_key();
        let first = sessions.insert(());
        let stale = Source::Session(first, Side::Server).key();
        sessions.remove(first);
        let second = sessions.insert(());
        assert_ne!(Source::Session(second, Side::Server).key(), stale);
        let Some(Source::Session(id, _)) = Source::of(stale) else { panic!("a session's key") };
        assert!(!sessions.contains_key(id));
    }
}

//! Newcomers: connections from networks whose PROXY protocol headers are believed, from their accept until the header is
//! there. It is not known yet who the client is, so they have no server; they count as sessions of their service.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use slotmap::SlotMap;
use tracing::debug;
use wire::address::canonical;
use wire::report::EndReason;

use super::introduction::Origin;
use super::pipe::{Pipe, receive};
use super::session::{End, Side, broken};
use super::{Known, Sessions};
use crate::event::{Interest, Key};
use crate::model::ServiceId;
use crate::net::numbers::Numbers;
use crate::net::proxy::{HEADER_LIMIT, Header, Malformed, decode};
use crate::net::{Context, is_transient, options};

slotmap::new_key_type! {
    /// A newcomer, as long as its header has not come.
    pub(crate) struct NewcomerId;
}

/// One of so many of the sessions that there may be may be a newcomer. A header comes with the first segment, so there
/// are hardly any; those who connect and say nothing are to take no place from others. Above it the one whose time is up
/// first is closed.
const PART_OF_SESSIONS: usize = 4;

/// Who waits.
pub(super) struct Newcomers {
    slots: SlotMap<NewcomerId, Newcomer>,
    numbers: Numbers<NewcomerId>,
    /// Whose time is up when; each is here once.
    deadlines: BTreeSet<(Instant, NewcomerId)>,
    pub(super) key: fn(NewcomerId) -> Key,
}

impl Newcomers {
    /// None yet. `key` says what they are called at the poller.
    pub(super) fn new(key: fn(NewcomerId) -> Key) -> Self {
        Self { slots: SlotMap::with_key(), numbers: Numbers::new(), deadlines: BTreeSet::new(), key }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (NewcomerId, &Newcomer)> {
        self.slots.iter()
    }

    pub(super) fn insert(&mut self, newcomer: Newcomer) -> NewcomerId {
        let (until, number) = (newcomer.until, newcomer.number);
        let id = self.slots.insert(newcomer);
        self.numbers.insert(number, id);
        self.deadlines.insert((until, id));
        id
    }

    pub(super) fn get_mut(&mut self, id: NewcomerId) -> Option<&mut Newcomer> {
        self.slots.get_mut(id)
    }

    pub(super) fn remove(&mut self, id: NewcomerId) -> Option<Newcomer> {
        let newcomer = self.slots.remove(id)?;
        self.deadlines.remove(&(newcomer.until, id));
        self.numbers.remove(newcomer.number);
        Some(newcomer)
    }

    /// The end of the first one's time.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(until, _)| *until)
    }

    /// One whose time is up.
    pub(super) fn due(&self, now: Instant) -> Option<NewcomerId> {
        self.deadlines.first().filter(|(until, _)| *until <= now).map(|(_, id)| *id)
    }

    /// The one that has to go where there may be so many sessions.
    pub(super) fn surplus(&self, session_limit: usize) -> Option<NewcomerId> {
        let most = (session_limit / PART_OF_SESSIONS).max(1);
        self.deadlines.first().filter(|_| self.len() > most).map(|(_, id)| *id)
    }

    /// The one with this number.
    pub(super) fn of_number(&self, number: u64) -> Option<NewcomerId> {
        self.numbers.find(number)
    }

    /// The number of one.
    pub(super) fn number(&self, id: NewcomerId) -> Option<u64> {
        self.slots.get(id).map(|newcomer| newcomer.number)
    }
}

/// A connection whose client is not known yet.
#[derive(Debug)]
pub(super) struct Newcomer {
    /// That of the session that it becomes, too.
    pub(super) number: u64,
    pub(super) end: End,
    pub(super) service: ServiceId,
    /// Who relays the connection.
    pub(super) peer: SocketAddr,
    pub(super) began: Instant,
    /// The header has to be there by then.
    until: Instant,
    /// What has come of it.
    said: Vec<u8>,
}

/// What a newcomer came to.
#[derive(Debug)]
pub(super) enum Heard {
    /// Its header is not there yet.
    Part,
    /// Its header, and what was there behind it.
    Header(Header, Vec<u8>),
    /// It ended.
    Ended(EndReason),
    /// It does not begin with a header.
    Malformed(Malformed),
}

impl Newcomer {
    pub(super) fn new(
        number: u64,
        service: ServiceId,
        client: TcpStream,
        peer: SocketAddr,
        began: Instant,
        until: Instant,
    ) -> Self {
        Self { number, end: End::new(client), service, peer, began, until, said: Vec::new() }
    }

    /// Reads once.
    pub(super) fn hear(&mut self, scratch: &mut [u8]) -> Heard {
        // More than that is no header, so there is always room.
        let room = scratch.len().min(HEADER_LIMIT - self.said.len());
        match receive(&self.end.stream, &mut scratch[..room]) {
            // Who looks whether somebody listens says nothing.
            Ok(0) if self.said.is_empty() => return Heard::Ended(EndReason::ClientClosed),
            Ok(0) => return Heard::Ended(EndReason::BadHeader),
            Ok(count) => self.said.extend_from_slice(&scratch[..count]),
            Err(error) if is_transient(&error) => return Heard::Part,
            Err(error) => return Heard::Ended(broken(Side::Client, &error)),
        }
        match decode(&self.said) {
            Ok(None) => Heard::Part,
            Ok(Some((header, length))) => Heard::Header(header, self.said.split_off(length)),
            Err(fault) => Heard::Malformed(fault),
        }
    }
}

impl Sessions {
    /// Somebody came whose header says who it is.
    pub(super) fn meet(&mut self, mut newcomer: Newcomer, cx: &mut Context<'_>) {
        let heard = newcomer.hear(cx.scratch);
        self.on_heard(newcomer, heard, cx);
    }

    /// Waits for the rest of a header.
    fn let_wait(&mut self, newcomer: Newcomer, cx: &mut Context<'_>) {
        let id = self.newcomers.insert(newcomer);
        let key = (self.newcomers.key)(id);
        if let Some(Newcomer { end, .. }) = self.newcomers.get_mut(id)
            && cx.poller.set(&end.stream, key, &mut end.registered, Interest::READ).is_err()
        {
            self.end_newcomer(id, EndReason::Shortage, cx);
        }
        while let Some(id) = self.newcomers.surplus(cx.model.session_limit()) {
            self.end_newcomer(id, EndReason::HeaderTimeout, cx);
        }
    }

    /// A newcomer is ready: reads on.
    pub(crate) fn newcomer_ready(&mut self, id: NewcomerId, cx: &mut Context<'_>) {
        let Some(newcomer) = self.newcomers.get_mut(id) else { return };
        match newcomer.hear(cx.scratch) {
            Heard::Part => {}
            heard => {
                let Some(mut newcomer) = self.newcomers.remove(id) else { return };
                let (end, key) = (&mut newcomer.end, (self.newcomers.key)(id));
                // Under this key it is known no more. That epoll cannot do what it is asked for here is unheard of.
                match cx.poller.set(&end.stream, key, &mut end.registered, Interest::NONE) {
                    Ok(()) => self.on_heard(newcomer, heard, cx),
                    Err(_) => self.newcomer_ended(newcomer, EndReason::Shortage, cx),
                }
            }
        }
    }

    /// What a newcomer said is a header, or none.
    fn on_heard(&mut self, newcomer: Newcomer, heard: Heard, cx: &mut Context<'_>) {
        match heard {
            Heard::Header(header, words) => {
                let Newcomer { number, end: client, service, peer, .. } = newcomer;
                let source = header.addresses.map_or(peer, |addresses| canonical(addresses.source));
                let destination = header.addresses.map(|addresses| canonical(addresses.destination));
                debug!(session = number, client = %source, by = %peer, "a client was introduced");
                if let Err(reason) = cx.model.newcomer_is(service, source.ip()) {
                    self.turn_away(service, source, client.stream, reason, cx);
                    return;
                }
                let origin = Origin { destination, unique_id: header.unique_id };
                let inward = Pipe::with(words, cx.model.may_splice(service));
                let origin = Some(Box::new(origin));
                let number = Some(number);
                self.introduced.push(Known { number, service, peer: source, client, inward, origin });
            }
            Heard::Malformed(fault) => {
                debug!(session = newcomer.number, peer = %newcomer.peer, %fault, "no PROXY protocol header");
                self.newcomer_ended(newcomer, EndReason::BadHeader, cx);
            }
            Heard::Ended(reason) => self.newcomer_ended(newcomer, reason, cx),
            Heard::Part => self.let_wait(newcomer, cx),
        }
    }

    /// Ends a newcomer for a reason from outside, if it is still there.
    pub(crate) fn end_newcomer(&mut self, id: NewcomerId, reason: EndReason, cx: &mut Context<'_>) {
        if let Some(newcomer) = self.newcomers.remove(id) {
            self.newcomer_ended(newcomer, reason, cx);
        }
    }

    fn newcomer_ended(&mut self, newcomer: Newcomer, reason: EndReason, cx: &mut Context<'_>) {
        let Newcomer { number, service, peer, end, .. } = newcomer;
        // Nobody has told this peer anything: an orderly end would be one that no server said.
        if !matches!(reason, EndReason::ClientClosed | EndReason::ClientReset | EndReason::ClientLost) {
            options::abort_at_close(&end.stream);
        }
        drop(end);
        debug!(session = number, %peer, %reason, "a connection ended before its header was there");
        cx.model.newcomer_ended(service, reason);
        self.ended += 1;
        self.complain(reason, peer, cx.now);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{Shutdown, TcpListener};
    use std::time::Duration;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;
    use crate::event::now;

    fn pair() -> (TcpStream, Newcomer) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let far = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let (near, peer) = listener.accept().expect("accepted");
        near.set_nonblocking(true).expect("set");
        let start = now();
        (far, Newcomer::new(1, ServiceId::default(), near, peer, start, start + Duration::from_secs(5)))
    }

    fn hear(newcomer: &mut Newcomer) -> Heard {
        let mut descriptors = [PollFd::new(std::os::fd::AsFd::as_fd(&newcomer.end.stream), PollFlags::POLLIN)];
        poll(&mut descriptors, PollTimeout::try_from(20_000).expect("a limit")).expect("a wait");
        newcomer.hear(&mut [0; 64 * 1024])
    }

    #[test]
    fn a_header_in_parts_is_put_together_and_what_follows_it_is_kept() {
        let (mut far, mut newcomer) = pair();
        assert!(matches!(newcomer.hear(&mut [0; 100]), Heard::Part), "nothing is there");
        far.write_all(b"PROXY TCP4 192.0.2.1 192.").expect("sent");
        assert!(matches!(hear(&mut newcomer), Heard::Part));
        far.write_all(b"0.2.2 5 6\r\nhello").expect("sent");
        let Heard::Header(header, words) = hear(&mut newcomer) else { panic!("it is there") };
        assert_eq!(header.addresses.expect("addresses").source, "192.0.2.1:5".parse().expect("an address"));
        assert_eq!(words, b"hello");
    }

    #[test]
    fn an_end_within_a_header_is_another_than_one_before_it() {
        for (said, reason) in [("", EndReason::ClientClosed), ("PROXY TCP4", EndReason::BadHeader)] {
            let (mut far, mut newcomer) = pair();
            far.write_all(said.as_bytes()).expect("sent");
            if !said.is_empty() {
                assert!(matches!(hear(&mut newcomer), Heard::Part));
            }
            far.shutdown(Shutdown::Write).expect("half closed");
            assert!(matches!(hear(&mut newcomer), Heard::Ended(it) if it == reason), "{said:?}");
        }
    }

    #[test]
    fn who_sends_without_an_end_is_heard_no_longer_than_a_header_may_be() {
        let (mut far, mut newcomer) = pair();
        let mut long = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x10\x00".to_vec();
        far.write_all(&long).expect("sent");
        assert!(matches!(hear(&mut newcomer), Heard::Malformed(Malformed::TooLong(_))));

        let (mut far, mut newcomer) = pair();
        // As long as it may be: 4096 with all.
        long[14..].copy_from_slice(&4080u16.to_be_bytes());
        long.resize(4095, 0);
        far.write_all(&long).expect("sent");
        while newcomer.said.len() < long.len() {
            assert!(matches!(hear(&mut newcomer), Heard::Part));
        }
        far.write_all(&[0; 10_000]).expect("sent");
        assert!(!matches!(hear(&mut newcomer), Heard::Part), "with that it is decided");
        assert!(newcomer.said.len() <= HEADER_LIMIT);
    }

    #[test]
    fn the_first_whose_time_is_up_has_to_go_where_there_are_too_many() {
        let mut newcomers = Newcomers::new(|_| Key(0));
        let start = now();
        let mut streams = Vec::new();
        let mut ids = Vec::new();
        for seconds in [30, 10, 20] {
            let (far, mut newcomer) = pair();
            newcomer.number = seconds;
            newcomer.until = start + Duration::from_secs(seconds);
            streams.push(far);
            ids.push(newcomers.insert(newcomer));
        }
        assert_eq!(newcomers.surplus(12), None);
        assert_eq!(newcomers.surplus(11), Some(ids[1]));
        assert_eq!(newcomers.due(start + Duration::from_secs(9)), None);
        assert_eq!(newcomers.due(start + Duration::from_secs(10)), Some(ids[1]));
        assert!(newcomers.remove(ids[1]).is_some() && newcomers.remove(ids[1]).is_none());
        assert_eq!(newcomers.next_deadline(), Some(start + Duration::from_secs(20)));
        assert_eq!(newcomers.surplus(0), Some(ids[2]), "one is always let in");
        newcomers.remove(ids[2]);
        assert_eq!(newcomers.surplus(0), None);
        assert_eq!((newcomers.of_number(30), newcomers.number(ids[0])), (Some(ids[0]), Some(30)));
        assert_eq!((newcomers.of_number(10), newcomers.number(ids[1])), (None, None), "it has ended");
    }
}

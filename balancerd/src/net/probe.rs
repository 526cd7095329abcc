//! Checks of servers: each is one connection, from the model's order to its result, and never longer than its time. What a
//! result means for a server is the model's affair.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use memchr::memmem;
use slotmap::SlotMap;
use tracing::warn;
use wire::health::{CheckKind, HttpCheck};
use wire::quantity::time;

use super::connect::{begin_own_connect, is_ours};
use super::proxy::encode;
use super::{Context, errno_of, is_transient, words};
use crate::event::{Deadlines, Interest, Key, Ready, Repeated};
use crate::model::{CheckResult, Order, TargetId};

slotmap::new_key_type! {
    /// A check that runs.
    pub(crate) struct ProbeId;
}

/// Bytes of an answer that are looked at.
const MOST_READ: usize = 8 * 1024;

/// Bytes of an answer that a result quotes.
const QUOTED: usize = 64;

/// Checks that one turn begins: a thousand that are due at once are no reason to let clients wait.
const PER_TURN: usize = 16;

/// Headers of an answer that are gone through to its end; the status stands before them.
const HEADERS: usize = 16;

/// The checks that run.
pub(crate) struct Probes {
    slots: SlotMap<ProbeId, Probe>,
    deadlines: Deadlines<ProbeId>,
    most: usize,
    key: fn(ProbeId) -> Key,
    /// Connects so far: whose turn it is among several sources.
    connects: usize,
    shortage: Repeated,
}

struct Probe {
    target: TargetId,
    order: Order,
    stream: TcpStream,
    registered: Interest,
    stage: Stage,
    began: Instant,
    received: Vec<u8>,
}

enum Stage {
    Connecting,
    /// Bytes, and how many of them are written.
    Sending(Vec<u8>, usize),
    Receiving,
}

/// What was found, in words, either way.
type Outcome = Result<String, String>;

impl Probes {
    /// None yet, and never more than `most` at a time. `key` says what one is called at the poller.
    pub(crate) fn new(most: usize, key: fn(ProbeId) -> Key) -> Self {
        let (slots, deadlines) = (SlotMap::with_key(), Deadlines::new());
        Self { slots, deadlines, most, key, connects: 0, shortage: Repeated::default() }
    }

    /// The earliest time at which [`Probes::expire`] has something to do; `due` is when the next check is to begin.
    pub(crate) fn next_deadline(&self, due: Option<Instant>) -> Option<Instant> {
        let due = due.filter(|_| self.slots.len() < self.most);
        [self.deadlines.next(), self.shortage.next_deadline(), due].into_iter().flatten().min()
    }

    /// Ends those that took too long, and begins those that are due.
    pub(crate) fn expire(&mut self, cx: &mut Context<'_>) {
        while let Some((_, id)) = self.deadlines.pop_due(cx.now) {
            let Some(probe) = self.slots.get(id) else { continue };
            let within = probe.order.settings.timeout_ms;
            let what = match probe.stage {
                Stage::Connecting => "the connect was not answered",
                Stage::Sending(..) => "not everything could be sent",
                Stage::Receiving => "what is expected did not come",
            };
            let fault = format!("{what} within {}", time(within));
            self.end(id, Err(fault), cx);
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
        self.connects = self.connects.wrapping_add(1);
        match begin_own_connect(order.address, &order.side, self.connects) {
            Ok(stream) => {
                let deadline = cx.now + Duration::from_millis(order.settings.timeout_ms);
                let id = self.slots.insert(Probe {
                    target,
                    order,
                    stream,
                    registered: Interest::NONE,
                    stage: Stage::Connecting,
                    began: cx.now,
                    received: Vec::new(),
                });
                self.deadlines.push(deadline, id);
                let slots = &self.slots;
                self.deadlines.tidy(slots.len(), |_, id| slots.contains_key(id));
                self.settle(id, cx);
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
        let Some(probe) = self.slots.get_mut(id) else { return };
        match probe.go_on(ready, cx.scratch) {
            Some(outcome) => self.end(id, outcome, cx),
            None => self.settle(id, cx),
        }
    }

    /// Gives a check up without a result.
    pub(crate) fn drop_out(&mut self, id: ProbeId, cx: &mut Context<'_>) {
        if let Some(probe) = self.slots.remove(id) {
            cx.model.check_done(probe.target, None, cx.now);
        }
    }

    fn end(&mut self, id: ProbeId, outcome: Outcome, cx: &mut Context<'_>) {
        let Some(probe) = self.slots.remove(id) else { return };
        let duration = crate::event::now().saturating_duration_since(probe.began);
        cx.model.check_done(probe.target, Some(&CheckResult { outcome, duration }), cx.now);
    }

    fn settle(&mut self, id: ProbeId, cx: &mut Context<'_>) {
        let Some(probe) = self.slots.get_mut(id) else { return };
        let wanted = match probe.stage {
            Stage::Connecting | Stage::Sending(..) => Interest::WRITE,
            Stage::Receiving => Interest::READ,
        };
        if let Err(error) = cx.poller.set(&probe.stream, (self.key)(id), &mut probe.registered, wanted)
            && let Some(probe) = self.slots.remove(id)
        {
            self.leave_out(probe.target, &error, cx);
        }
    }
}

impl Probe {
    /// One step; what was found, when that is known.
    fn go_on(&mut self, ready: Ready, scratch: &mut [u8]) -> Option<Outcome> {
        if let Stage::Connecting = self.stage {
            match self.stream.take_error() {
                Ok(None) => {}
                Ok(Some(error)) | Err(error) => return Some(Err(words(errno_of(&error)))),
            }
            self.stage = Stage::Sending(self.question(), 0);
        }
        if let Stage::Sending(bytes, sent) = &mut self.stage {
            if *sent < bytes.len() {
                match (&self.stream).write(&bytes[*sent..]) {
                    Ok(count) => *sent += count,
                    Err(error) if is_transient(&error) => {}
                    Err(error) => return Some(Err(words(errno_of(&error)))),
                }
            }
            if *sent < bytes.len() {
                return None;
            }
            self.stage = Stage::Receiving;
            return match &self.order.settings.kind {
                CheckKind::None | CheckKind::Tcp => Some(Ok("connected".to_owned())),
                CheckKind::Send { expect, .. } if expect.is_empty() => Some(Ok("sent".to_owned())),
                _ => None,
            };
        }
        if !ready.readable {
            return None;
        }
        let room = (MOST_READ - self.received.len()).min(scratch.len());
        let ended = match (&self.stream).read(&mut scratch[..room]) {
            Ok(count) => {
                self.received.extend_from_slice(&scratch[..count]);
                count == 0
            }
            Err(error) if is_transient(&error) => return None,
            Err(error) if self.received.is_empty() => return Some(Err(words(errno_of(&error)))),
            Err(error) => {
                return Some(Err(format!("{} and then: {}", quoted(&self.received), words(errno_of(&error)))));
            }
        };
        let is_last = ended || self.received.len() == MOST_READ;
        match &self.order.settings.kind {
            CheckKind::Send { expect, .. } if memmem::find(&self.received, expect.bytes()).is_some() => {
                Some(Ok("the expected answer".to_owned()))
            }
            CheckKind::Http(http) => match status(&self.received) {
                Ok(Some(status)) if http.status.iter().any(|range| range.contains(status)) => {
                    Some(Ok(format!("status {status}")))
                }
                Ok(Some(status)) => Some(Err(format!("status {status}"))),
                Ok(None) if is_last => Some(Err(format!("{} instead of HTTP", quoted(&self.received)))),
                Ok(None) => None,
                Err(error) => Some(Err(format!("{} instead of HTTP: {error}", quoted(&self.received)))),
            },
            _ if is_last => Some(Err(format!("{} without what is expected", quoted(&self.received)))),
            _ => None,
        }
    }

    /// All that is sent: a header, if its servers get one, that says that this is nobody's connection; and what is asked.
    fn question(&self) -> Vec<u8> {
        let header = self.order.send_proxy.map_or_else(Vec::new, |how| encode(how, None, None));
        let asked = match &self.order.settings.kind {
            CheckKind::None | CheckKind::Tcp => Vec::new(),
            CheckKind::Send { send, .. } => send.bytes().to_vec(),
            CheckKind::Http(http) => self.request(http),
        };
        [header, asked].concat()
    }

    fn request(&self, check: &HttpCheck) -> Vec<u8> {
        let HttpCheck { method, path, host, .. } = check;
        let host = host.clone().unwrap_or_else(|| self.order.address.to_string());
        let version = env!("CARGO_PKG_VERSION");
        format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: balancerd/{version}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        )
        .into_bytes()
    }
}

/// The status of an answer, once it is there.
fn status(received: &[u8]) -> Result<Option<u16>, httparse::Error> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(received);
    match (response.code, parsed) {
        (Some(status), _) => Ok(Some(status)),
        (None, Ok(_)) => Ok(None),
        (None, Err(error)) => Err(error),
    }
}

/// What came, for a result.
fn quoted(received: &[u8]) -> String {
    match received {
        [] => "nothing came".to_owned(),
        some => format!("\"{}\" came", some[..some.len().min(QUOTED)].escape_ascii()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener};
    use std::sync::Arc;

    use wire::health::{CheckSettings, CheckText};
    use wire::settings::SendProxy;

    use super::*;
    use crate::event;

    const READY: Ready = Ready { readable: true, writable: true, failed: false };

    /// A check of this kind, connected to a server that the test plays.
    fn probe(kind: CheckKind, send_proxy: Option<SendProxy>) -> (Probe, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("bound");
        let stream = TcpStream::connect(address).expect("connected");
        let (server, _) = listener.accept().expect("accepted");
        let settings = Arc::new(CheckSettings { kind, ..CheckSettings::default() });
        let order = Order { address, settings, side: Arc::default(), send_proxy };
        let probe = Probe {
            target: TargetId::default(),
            order,
            stream,
            registered: Interest::NONE,
            stage: Stage::Connecting,
            began: event::now(),
            received: Vec::new(),
        };
        (probe, server)
    }

    /// What comes of a check when the server says `answer`, in such pieces, and nothing more.
    fn outcome(kind: CheckKind, answer: &[u8], piece: usize) -> (Outcome, Vec<u8>) {
        outcome_with(kind, None, answer, piece)
    }

    /// The same for servers that get a header first.
    fn outcome_with(kind: CheckKind, send_proxy: Option<SendProxy>, answer: &[u8], piece: usize) -> (Outcome, Vec<u8>) {
        let (mut probe, mut server) = probe(kind, send_proxy);
        let mut scratch = vec![0; 65536];
        let mut found = probe.go_on(READY, &mut scratch);
        for piece in answer.chunks(piece) {
            server.write_all(piece).expect("sent");
            if found.is_none() {
                found = probe.go_on(READY, &mut scratch);
            }
        }
        server.shutdown(Shutdown::Write).expect("half closed");
        while found.is_none() {
            found = probe.go_on(READY, &mut scratch);
        }
        drop(probe);
        let mut request = Vec::new();
        let _ = server.read_to_end(&mut request);
        (found.expect("an outcome"), request)
    }

    fn text(text: &str) -> CheckText {
        CheckText::new(text).expect("short")
    }

    #[test]
    fn a_connect_is_enough_where_nothing_else_is_asked_for() {
        assert_eq!(outcome(CheckKind::Tcp, b"", 1).0, Ok("connected".to_owned()));
        let banner = CheckKind::Send { send: text(""), expect: text("220 ") };
        assert!(outcome(banner.clone(), b"220 mail\r\n", 3).0.is_ok(), "who says nothing waits for the server");
        let sent = CheckKind::Send { send: text("hello"), expect: text("") };
        assert_eq!(outcome(sent, b"", 1), (Ok("sent".to_owned()), b"hello".to_vec()));
    }

    #[test]
    fn a_header_that_names_nobody_goes_before_everything() {
        let send = |send: &str, expect: &str| CheckKind::Send { send: text(send), expect: text(expect) };
        let v1 = b"PROXY UNKNOWN\r\n";
        let v2 = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
        // LOCAL with a vector of the checksum, which was computed bit by bit elsewhere.
        let checked = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x07\x03\x00\x04\xa9\xb8\x7e\x8f";
        for (how, header) in [
            (SendProxy::V1, &v1[..]),
            (SendProxy::V2 { crc32c: false, unique_id: false }, v2),
            (SendProxy::V2 { crc32c: false, unique_id: true }, v2),
            (SendProxy::V2 { crc32c: true, unique_id: true }, checked),
        ] {
            for (kind, answer, words, asked) in [
                (CheckKind::Tcp, "", "connected", ""),
                (send("", "220 "), "220 mail\r\n", "the expected answer", ""),
                (send("hello", ""), "", "sent", "hello"),
                (send("PING\r\n", "+PONG"), "+PONG\r\n", "the expected answer", "PING\r\n"),
            ] {
                let (found, said) = outcome_with(kind, Some(how), answer.as_bytes(), 1000);
                assert_eq!(found, Ok(words.to_owned()), "{how}");
                assert_eq!(said, [header, asked.as_bytes()].concat(), "{how}");
            }
            let http = CheckKind::Http(HttpCheck::default());
            let (found, said) = outcome_with(http, Some(how), b"HTTP/1.1 200 OK\r\n\r\n", 1000);
            assert_eq!(found, Ok("status 200".to_owned()));
            assert!(said.strip_prefix(header).is_some_and(|asked| asked.starts_with(b"GET / HTTP/1.1\r\n")), "{how}");
        }
    }

    #[test]
    fn the_expected_is_found_wherever_it_is_and_however_it_comes() {
        let kind = || CheckKind::Send { send: text("PING\r\n"), expect: text("+PONG") };
        for piece in [1, 2, 1000] {
            let (found, request) = outcome(kind(), b"-noise\r\n+PONG\r\n", piece);
            assert_eq!((found, request.as_slice()), (Ok("the expected answer".to_owned()), b"PING\r\n".as_slice()));
        }
        let fault = outcome(kind(), b"-ERR \x00no", 4).0.expect_err("not what is expected");
        assert_eq!(fault, "\"-ERR \\x00no\" came without what is expected");
        assert_eq!(outcome(kind(), b"", 1).0.expect_err("nothing"), "nothing came without what is expected");
        let endless = vec![b'x'; 3 * MOST_READ];
        assert!(outcome(kind(), &endless, 65536).0.is_err(), "it reads no further than so far");
    }

    #[test]
    fn the_status_decides() {
        let kind = || CheckKind::Http(HttpCheck { path: "/up".to_owned(), ..HttpCheck::default() });
        for (answer, passes, words) in [
            ("HTTP/1.1 200 OK\r\n\r\n", true, "status 200"),
            ("HTTP/1.0 302 Found\r\nLocation: /x\r\n\r\n", true, "status 302"),
            ("HTTP/1.1 503 Service Unavailable\r\n", false, "status 503"),
            ("HTTP/1.1 20", false, "\"HTTP/1.1 20\" came instead of HTTP"),
            ("SSH-2.0-x\r\n", false, "\"SSH-2.0-x\\r\\n\" came instead of HTTP: invalid HTTP version"),
        ] {
            for piece in [1, 1000] {
                let (found, request) = outcome(kind(), answer.as_bytes(), piece);
                assert_eq!(found.is_ok(), passes, "{answer}");
                if piece > 1 {
                    assert_eq!(found.unwrap_or_else(|fault| fault), words);
                }
                let request = String::from_utf8(request).expect("text");
                assert!(request.starts_with("GET /up HTTP/1.1\r\nHost: 127.0.0.1:"), "{request}");
                assert!(request.ends_with("\r\nConnection: close\r\n\r\n"), "{request}");
            }
        }
    }
}

//! A check by one connection: it connects, sends what is asked, and reads until it is clear what the answer is.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use memchr::memmem;
use nix::errno::Errno;
use wire::health::{CheckKind, HttpCheck};
use wire::quantity::time;

use super::http::{Answer, Body, MOST_BODY, MOST_HEAD, look};
use super::{Outcome, quoted};
use crate::event::{Interest, Ready};
use crate::model::Order;
use crate::net::connect::begin_own_connect;
use crate::net::proxy::encode;
use crate::net::{errno_of, is_transient, words};

/// Bytes of an answer that are looked at for what is expected.
const MOST_READ: usize = 8 * 1024;

/// A check that has a connection, or is about to.
pub(super) struct StreamProbe {
    order: Order,
    stream: TcpStream,
    stage: Stage,
    received: Vec<u8>,
}

enum Stage {
    Connecting,
    /// Bytes, and how many of them are written.
    Sending(Vec<u8>, usize),
    Receiving,
    /// What was found is known, and the rest of the body is read, so many bytes at most: a server whose connection is
    /// closed before takes that for a client that broke off.
    Taking {
        found: Outcome,
        body: Body,
        left: usize,
    },
}

impl StreamProbe {
    /// Begins to connect; of several sources it is the `nth`'s turn.
    pub(super) fn begin(order: Order, nth: usize) -> Result<Self, Errno> {
        let stream = begin_own_connect(order.address, &order.side, nth)?;
        Ok(Self { order, stream, stage: Stage::Connecting, received: Vec::new() })
    }

    /// What it waits for.
    pub(super) fn interest(&self) -> Interest {
        match self.stage {
            Stage::Connecting | Stage::Sending(..) => Interest::WRITE,
            Stage::Receiving | Stage::Taking { .. } => Interest::READ,
        }
    }

    /// Its time is over: what was found.
    pub(super) fn expire(&self) -> Outcome {
        let what = match &self.stage {
            Stage::Taking { found, .. } => return found.clone(),
            Stage::Receiving
                if let CheckKind::Http(http) = &self.order.settings.kind
                    && let Ok(Some(answer)) = look(&self.received, &http.method, |status| passes(http, status)) =>
            {
                return verdict(http, answer.status);
            }
            Stage::Connecting => "the connect was not answered",
            Stage::Sending(..) => "not everything could be sent",
            Stage::Receiving => "what is expected did not come",
        };
        Err(format!("{what} within {}", time(self.order.settings.timeout_ms)))
    }

    /// One step; what was found, when that is known.
    pub(super) fn on_ready(&mut self, ready: Ready, scratch: &mut [u8]) -> Option<Outcome> {
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
        if let Stage::Taking { found, body, left } = &mut self.stage {
            let room = scratch.len().min(*left);
            return match (&self.stream).read(&mut scratch[..room]) {
                Err(error) if is_transient(&error) => None,
                Ok(count) if count > 0 => {
                    *left -= count;
                    (body.on_bytes(&scratch[..count]) || *left == 0).then(|| found.clone())
                }
                _ => Some(found.clone()),
            };
        }
        let most = if matches!(self.order.settings.kind, CheckKind::Http(_)) { MOST_HEAD } else { MOST_READ };
        let room = (most - self.received.len()).min(scratch.len());
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
        let is_last = ended || self.received.len() == most;
        match &self.order.settings.kind {
            CheckKind::Send { expect, .. } if memmem::find(&self.received, expect.bytes()).is_some() => {
                Some(Ok("the expected answer".to_owned()))
            }
            CheckKind::Http(http) => match look(&self.received, &http.method, |status| passes(http, status)) {
                Ok(Some(Answer { status, body })) => {
                    let found = verdict(http, status);
                    match body {
                        _ if ended => Some(found),
                        None => is_last.then_some(found),
                        Some(body) if body.is_over() => Some(found),
                        Some(body) => {
                            self.stage = Stage::Taking { found, body, left: MOST_BODY };
                            None
                        }
                    }
                }
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
            CheckKind::None | CheckKind::Tcp | CheckKind::Udp { .. } | CheckKind::Dns(_) => Vec::new(),
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

impl AsFd for StreamProbe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn passes(check: &HttpCheck, status: u16) -> bool {
    check.status.iter().any(|range| range.contains(status))
}

fn verdict(check: &HttpCheck, status: u16) -> Outcome {
    let words = format!("status {status}");
    if passes(check, status) { Ok(words) } else { Err(words) }
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener};
    use std::sync::Arc;

    use wire::health::{CheckSettings, CheckText};
    use wire::settings::SendProxy;

    use super::*;

    const READY: Ready = Ready { readable: true, writable: true, failed: false };

    /// A check of this kind, connected to a server that the test plays.
    fn probe(kind: CheckKind, send_proxy: Option<SendProxy>) -> (StreamProbe, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("bound");
        let stream = TcpStream::connect(address).expect("connected");
        let (server, _) = listener.accept().expect("accepted");
        let settings = Arc::new(CheckSettings { kind, ..CheckSettings::default() });
        let order = Order { address, settings, side: Arc::default(), send_proxy };
        (StreamProbe { order, stream, stage: Stage::Connecting, received: Vec::new() }, server)
    }

    /// What comes of a check when the server says `answer`, in such pieces, and nothing more.
    fn outcome(kind: CheckKind, answer: &[u8], piece: usize) -> (Outcome, Vec<u8>) {
        outcome_with(kind, None, answer, piece)
    }

    /// The same for servers that get a header first.
    fn outcome_with(kind: CheckKind, send_proxy: Option<SendProxy>, answer: &[u8], piece: usize) -> (Outcome, Vec<u8>) {
        let (mut probe, mut server) = probe(kind, send_proxy);
        let mut scratch = vec![0; 65536];
        let mut found = probe.on_ready(READY, &mut scratch);
        for piece in answer.chunks(piece) {
            server.write_all(piece).expect("sent");
            if found.is_none() {
                found = probe.on_ready(READY, &mut scratch);
            }
        }
        server.shutdown(Shutdown::Write).expect("half closed");
        while found.is_none() {
            found = probe.on_ready(READY, &mut scratch);
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
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\n",
                true,
                "status 204",
            ),
            ("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 500 No\r\n\r\n", false, "status 500"),
            (
                "HTTP/1.1 103 Early Hints\r\n\r\n",
                false,
                "\"HTTP/1.1 103 Early Hints\\r\\n\\r\\n\" came instead of HTTP",
            ),
            ("HTTP/1.1 101 Switching Protocols\r\n\r\n", false, "status 101"),
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

    #[test]
    fn more_headers_than_usual_in_an_interim_answer_are_no_fault() {
        let hints: String = (0..50).map(|n| format!("Link: </{n}.css>; rel=preload\r\n")).collect();
        let answer = format!("HTTP/1.1 103 Early Hints\r\n{hints}\r\nHTTP/1.1 200 OK\r\n{hints}\r\n");
        for piece in [1, 1000] {
            let (found, _) = outcome(CheckKind::Http(HttpCheck::default()), answer.as_bytes(), piece);
            assert_eq!(found, Ok("status 200".to_owned()));
        }
        // There is a limit, and what is beyond it is a failure.
        let endless = format!("HTTP/1.1 103 Early Hints\r\nLink: {}\r\n\r\n", "x".repeat(MOST_HEAD));
        outcome(CheckKind::Http(HttpCheck::default()), endless.as_bytes(), 65_536).0.expect_err("it reads no further");
    }

    /// Whether the server sees its whole answer taken, and an end in order behind it.
    fn is_taken(answer: &[u8]) -> bool {
        let (mut probe, mut server) = probe(CheckKind::Http(HttpCheck::default()), None);
        let mut scratch = vec![0; 65536];
        let mut found = probe.on_ready(READY, &mut scratch);
        server.set_nonblocking(true).expect("set");
        let mut sent = 0;
        while found.is_none() {
            match server.write(&answer[sent..]) {
                Ok(count) => sent += count,
                Err(error) => assert!(is_transient(&error), "{error}"),
            }
            found = probe.on_ready(READY, &mut scratch);
        }
        assert_eq!(found, Some(Ok("status 200".to_owned())));
        drop(probe);
        server.set_nonblocking(false).expect("set");
        sent == answer.len() && server.read_to_end(&mut Vec::new()).is_ok()
    }

    #[test]
    fn a_body_whose_length_is_told_is_taken_to_its_end() {
        let body = "x".repeat(300_000);
        assert!(is_taken(format!("HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n{body}").as_bytes()));
        let chunk = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        assert!(is_taken(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}").as_bytes()));
        assert!(is_taken(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"));
        let long = "x".repeat(3 * MOST_BODY);
        assert!(!is_taken(format!("HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n{long}").as_bytes()));
    }

    #[test]
    fn a_body_that_does_not_come_in_time_changes_nothing_of_what_its_status_said() {
        for (answer, passes) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhal", true),
            ("HTTP/1.1 503 No\r\nContent-Length: 5\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\nServ", true),
            ("HTTP/1.1 103 Early Hints\r\n\r\n", false),
        ] {
            let (mut probe, mut server) = probe(CheckKind::Http(HttpCheck::default()), None);
            let mut scratch = vec![0; 65536];
            assert_eq!(probe.on_ready(READY, &mut scratch), None);
            server.write_all(answer.as_bytes()).expect("sent");
            assert_eq!(probe.on_ready(READY, &mut scratch), None, "{answer}");
            assert_eq!(probe.expire().is_ok(), passes, "{answer}");
        }
    }

    #[test]
    fn a_status_that_is_wanted_is_the_answer_whatever_it_is() {
        let status = vec!["1xx".parse().expect("statuses")];
        let (found, _) = outcome(
            CheckKind::Http(HttpCheck { status, ..HttpCheck::default() }),
            b"HTTP/1.1 100 Continue\r\n\r\n",
            1000,
        );
        assert_eq!(found, Ok("status 100".to_owned()));
    }
}

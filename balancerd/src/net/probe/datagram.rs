//! A check by one datagram: it is sent at once, on a connected socket of its own, so that nobody but the server is heard, and
//! what the way there has to say is. Then it waits for an answer, where one is expected, until its time is over.

use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd};

use memchr::memmem;
use nix::errno::Errno;
use wire::health::{CheckKind, CheckText};
use wire::quantity::time;

use super::dns::Question;
use super::{Outcome, quoted};
use crate::event::Ready;
use crate::model::Order;
use crate::net::connect::connect_own_datagrams;
use crate::net::proxy::encode_datagram;
use crate::net::{errno_of, is_transient, words};

/// Datagrams that are looked at: whoever sends more that are no answer will not send one.
const MOST_DATAGRAMS: usize = 16;

/// A check that has sent its datagram.
pub(super) struct DatagramProbe {
    datagrams: UdpSocket,
    awaited: Awaited,
    /// How long it may take, in words.
    within: String,
    /// Those that came and were no answer, and what is to be said of the last one.
    others: usize,
    last: Option<String>,
}

/// What is waited for.
pub(super) enum Awaited {
    /// An error; anything that comes is as good as silence, and sooner.
    Nothing,
    /// A datagram that has this in it.
    Text(CheckText),
    /// The answer to this.
    Answer(Question),
}

/// What such a check asks, and what is waited for then; nothing for one that is no datagram's affair.
pub(super) fn asked(kind: &CheckKind) -> Option<(Vec<u8>, Awaited)> {
    match kind {
        CheckKind::Udp { send, expect } if expect.is_empty() => Some((send.bytes().to_vec(), Awaited::Nothing)),
        CheckKind::Udp { send, expect } => Some((send.bytes().to_vec(), Awaited::Text(expect.clone()))),
        CheckKind::Dns(check) => {
            let question = Question::new(check, fastrand::u16(..));
            Some((question.bytes().to_vec(), Awaited::Answer(question)))
        }
        CheckKind::None | CheckKind::Tcp | CheckKind::Send { .. } | CheckKind::Http(_) => None,
    }
}

impl DatagramProbe {
    /// Sends the datagram; of several sources it is the `nth`'s turn. A socket that has sent none yet has room for it.
    pub(super) fn begin(order: &Order, asked: Vec<u8>, awaited: Awaited, nth: usize) -> Result<Self, Errno> {
        let header = order.send_proxy.map_or_else(Vec::new, |how| encode_datagram(how, None, None));
        let datagrams = connect_own_datagrams(order.address, &order.side, nth)?;
        datagrams.send(&[header, asked].concat()).map_err(|error| errno_of(&error))?;
        Ok(Self { datagrams, awaited, within: time(order.settings.timeout_ms), others: 0, last: None })
    }

    /// Reads one datagram, or an error; what was found, when that is known.
    pub(super) fn on_ready(&mut self, ready: Ready, scratch: &mut [u8]) -> Option<Outcome> {
        if !ready.readable {
            return None;
        }
        let received = match self.datagrams.recv(scratch) {
            Ok(count) => &scratch[..count],
            Err(error) if is_transient(&error) => return None,
            Err(error) => return Some(Err(words(errno_of(&error)))),
        };
        let fault = match &self.awaited {
            Awaited::Nothing => return Some(Ok("an answer".to_owned())),
            Awaited::Text(expect) if memmem::find(received, expect.bytes()).is_some() => {
                return Some(Ok("the expected answer".to_owned()));
            }
            Awaited::Text(_) => format!("{} without what is expected", what_came(received)),
            Awaited::Answer(question) => match question.answered(received) {
                Ok(rcode) if rcode.is_good() => return Some(Ok(format!("rcode {rcode}"))),
                Ok(rcode) => return Some(Err(format!("rcode {rcode}"))),
                Err(error) => format!("{} instead of the answer: {error}", what_came(received)),
            },
        };
        // It may be a late or a strange one, and the answer still be on its way.
        self.others += 1;
        if self.others == MOST_DATAGRAMS {
            return Some(Err(fault));
        }
        self.last = Some(fault);
        None
    }

    /// Its time is over: what was found.
    pub(super) fn expire(&self) -> Outcome {
        let within = &self.within;
        match (&self.awaited, &self.last) {
            (Awaited::Nothing, _) => Ok(format!("no error within {within}")),
            (_, Some(fault)) => Err(fault.clone()),
            (_, None) => Err(format!("what is expected did not come within {within}")),
        }
    }
}

impl AsFd for DatagramProbe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.datagrams.as_fd()
    }
}

/// What came, for a result.
fn what_came(received: &[u8]) -> String {
    if received.is_empty() { "an empty datagram came".to_owned() } else { quoted(received) }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use wire::dns::DnsCheck;
    use wire::health::CheckSettings;
    use wire::settings::SendProxy;

    use super::*;

    const READY: Ready = Ready { readable: true, writable: true, failed: false };

    fn text(text: &str) -> CheckText {
        CheckText::new(text).expect("short")
    }

    fn udp(send: &str, expect: &str) -> CheckKind {
        CheckKind::Udp { send: text(send), expect: text(expect) }
    }

    fn begin(kind: CheckKind, address: SocketAddr, send_proxy: Option<SendProxy>) -> DatagramProbe {
        let (asked, awaited) = asked(&kind).expect("a check by datagrams");
        let settings = Arc::new(CheckSettings { kind, ..CheckSettings::default() });
        let order = Order { address, settings, side: Arc::default(), send_proxy };
        DatagramProbe::begin(&order, asked, awaited, 0).expect("begun")
    }

    /// A check that has begun, the server that the test plays, what it got, and whence.
    struct Scene {
        probe: DatagramProbe,
        server: UdpSocket,
        said: Vec<u8>,
        from: SocketAddr,
    }

    fn scene(kind: CheckKind, ip: &str, send_proxy: Option<SendProxy>) -> Scene {
        let server = UdpSocket::bind((ip, 0)).expect("a socket");
        let probe = begin(kind, server.local_addr().expect("bound"), send_proxy);
        let mut buffer = [0; 2048];
        let (count, from) = server.recv_from(&mut buffer).expect("asked");
        Scene { probe, server, said: buffer[..count].to_vec(), from }
    }

    impl Scene {
        /// What comes of it when the server says this.
        fn answer(&mut self, bytes: &[u8]) -> Option<Outcome> {
            self.server.send_to(bytes, self.from).expect("sent");
            self.look()
        }

        fn look(&mut self) -> Option<Outcome> {
            self.probe.on_ready(READY, &mut [0; 65536])
        }
    }

    fn passed(words: &str) -> Option<Outcome> {
        Some(Ok(words.to_owned()))
    }

    fn failed(words: &str) -> Option<Outcome> {
        Some(Err(words.to_owned()))
    }

    #[test]
    fn silence_is_as_good_as_an_answer_where_none_is_expected() {
        for (sent, ip) in [("hello", "127.0.0.1"), ("", "127.0.0.1"), ("hello", "::1")] {
            let mut scene = scene(udp(sent, ""), ip, None);
            assert_eq!((scene.look(), scene.probe.expire()), (None, Ok("no error within 1s".to_owned())));
            assert_eq!(scene.said, sent.as_bytes());
            assert_eq!(scene.answer(b""), passed("an answer"));
        }
    }

    #[test]
    fn a_datagram_has_what_is_expected_somewhere() {
        let mut scene = scene(udp("PING", "+PONG"), "127.0.0.1", None);
        assert_eq!(scene.probe.expire(), Err("what is expected did not come within 1s".to_owned()));
        assert_eq!(scene.answer(b"+PO"), None, "it may be on its way");
        assert_eq!(scene.answer(b"NG"), None, "two datagrams are not one");
        assert_eq!(scene.probe.expire(), Err("\"NG\" came without what is expected".to_owned()));
        assert_eq!(scene.answer(b""), None);
        assert_eq!(scene.probe.expire(), Err("an empty datagram came without what is expected".to_owned()));
        assert_eq!(scene.answer(&[vec![b'x'; 60_000], b"+PONG".to_vec()].concat()), passed("the expected answer"));
    }

    #[test]
    fn whoever_says_other_things_all_the_time_is_not_waited_for() {
        let mut scene = scene(udp("PING", "+PONG"), "127.0.0.1", None);
        for _ in 1..MOST_DATAGRAMS {
            assert_eq!(scene.answer(b"-LOADING"), None);
        }
        assert_eq!(scene.answer(b"-LOADING"), failed("\"-LOADING\" came without what is expected"));
    }

    #[test]
    fn nobody_else_is_heard() {
        let mut scene = scene(udp("PING", "+PONG"), "127.0.0.1", None);
        let port = scene.server.local_addr().expect("bound").port();
        for stranger in [("127.0.0.1", 0), ("127.77.0.1", port)] {
            let stranger = UdpSocket::bind(stranger).expect("a socket");
            stranger.send_to(b"+PONG", scene.from).expect("sent");
            assert_eq!(scene.look(), None);
        }
        assert_eq!(scene.answer(b"+PONG"), passed("the expected answer"));
    }

    #[test]
    fn a_closed_port_is_known_at_once_whatever_is_expected() {
        for ip in ["127.0.0.1", "::1"] {
            for kind in [udp("hello", ""), udp("", "x"), CheckKind::Dns(DnsCheck::default())] {
                let address = UdpSocket::bind((ip, 0)).and_then(|socket| socket.local_addr()).expect("a port");
                let mut probe = begin(kind, address, None);
                assert_eq!(probe.on_ready(READY, &mut [0; 65536]), failed("connection refused"), "{ip}");
            }
        }
    }

    #[test]
    fn dns_is_answered_by_who_repeats_the_question_and_does_its_work() {
        let of = |rcode: u8| {
            move |asked: &[u8]| {
                let mut answer = asked.to_vec();
                (answer[2], answer[3]) = (0x81, 0x80 | rcode);
                answer
            }
        };
        for (rcode, outcome) in [
            (0, passed("rcode NOERROR")),
            (3, passed("rcode NXDOMAIN")),
            (2, failed("rcode SERVFAIL")),
            (5, failed("rcode REFUSED")),
        ] {
            let mut scene = scene(CheckKind::Dns(DnsCheck::default()), "127.0.0.1", None);
            let asked = scene.said.clone();
            assert_eq!(scene.answer(&asked), None, "an echo");
            let fault = scene.probe.expire().expect_err("no answer");
            assert!(fault.ends_with(" came instead of the answer: it is no answer"), "{fault}");
            let mut other = of(2)(&asked);
            other[0] ^= 1;
            assert_eq!(scene.answer(&other), None, "that of an earlier question");
            assert_eq!(scene.answer(b"no"), None);
            let fault = "\"no\" came instead of the answer: it ends too soon";
            assert_eq!(scene.probe.expire(), Err(fault.to_owned()));
            assert_eq!(scene.answer(&of(rcode)(&asked)), outcome);
        }
    }

    #[test]
    fn each_question_has_an_id_of_its_own() {
        let id = || scene(CheckKind::Dns(DnsCheck::default()), "127.0.0.1", None).said[..2].to_vec();
        let first = id();
        assert!((0..5).any(|_| id() != first));
    }

    #[test]
    fn a_header_of_version_2_that_names_nobody_goes_before_the_datagram() {
        let v2 = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
        let plain = SendProxy::V2 { crc32c: false, unique_id: true };
        for (how, header) in [(None, &b""[..]), (Some(SendProxy::V1), b""), (Some(plain), v2)] {
            for sent in ["hello", ""] {
                let said = scene(udp(sent, ""), "127.0.0.1", how).said;
                assert_eq!(said, [header, sent.as_bytes()].concat(), "{how:?}");
            }
            let said = scene(CheckKind::Dns(DnsCheck::default()), "127.0.0.1", how).said;
            assert!(said.strip_prefix(header).is_some_and(|asked| asked.len() == 17), "{how:?}");
        }
    }
}

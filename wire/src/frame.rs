//! Frames: how one message follows another on a byte stream. A codec; it does no I/O.
//!
//! A frame is a 32-bit little-endian length, which does not count itself, and that many bytes. The first frame each
//! way is the greeting, four fixed bytes and a 16-bit little-endian [`VERSION`]; a later version may lengthen it, so
//! what follows those six bytes is skipped. Every further frame is one message in the encoding of this version.
//! `docs/control-protocol.md` shows it byte by byte.

use std::marker::PhantomData;

use serde::{Serialize, de::DeserializeOwned};

use crate::encoding::{EncodingError, decode, encode};
use crate::settings::FILE_LIMIT;

/// The version of the control protocol. Both ends must have the same one: messages do not describe themselves.
pub const VERSION: u16 = 5;

/// The first bytes of a greeting.
const MAGIC: [u8; 4] = *b"BALC";

/// Bytes of the length that starts a frame.
const HEADER: usize = 4;

/// The longest request that the daemon takes, in bytes without the header: the text of a configuration file, and what
/// goes with it.
pub const REQUEST_LIMIT: usize = FILE_LIMIT + 16 * 1024;

/// The longest response that a client takes, in bytes without the header: a list of some 200,000 servers.
pub const RESPONSE_LIMIT: usize = 64 * 1024 * 1024;

/// Why a stream of frames cannot be read on. It ends the connection: there is no next frame to find.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length says more than the limit.
    #[error("a frame of {length} bytes is announced, the limit is {limit}")]
    TooLong {
        /// What the header says.
        length: usize,
        /// What this end takes.
        limit: usize,
    },
    /// The first frame is no greeting.
    #[error("the first frame is not a greeting of the balancer's control protocol")]
    NoGreeting,
    /// The other end speaks another version.
    #[error("the other end speaks version {theirs} of the control protocol, this one version {VERSION}")]
    Version {
        /// The version in its greeting.
        theirs: u16,
    },
    /// The bytes of a whole frame are no message.
    #[error("a frame of {length} bytes is no message: {source}")]
    Garbled {
        /// Bytes in the frame.
        length: usize,
        /// What the encoding says is wrong.
        source: EncodingError,
    },
}

/// The greeting, framed: what each end sends first.
#[must_use]
pub fn greeting() -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER + 6);
    frame.extend_from_slice(&6u32.to_le_bytes());
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&VERSION.to_le_bytes());
    frame
}

/// `message`, framed.
///
/// # Errors
/// When it is longer than [`RESPONSE_LIMIT`].
pub fn frame<T: Serialize>(message: &T) -> Result<Vec<u8>, EncodingError> {
    let body = encode(message, RESPONSE_LIMIT)?;
    let length = u32::try_from(body.len()).expect("RESPONSE_LIMIT is below 2^32");
    let mut frame = Vec::with_capacity(HEADER + body.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&body);
    Ok(frame)
}

/// Takes bytes as they come and gives the messages that are whole.
///
/// It holds the bytes that were pushed and not yet given, so at most one frame and one push: what a length field
/// claims is never reserved.
#[derive(Debug)]
pub struct Decoder<T> {
    bytes: Vec<u8>,
    limit: usize,
    greeted: bool,
    message: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Decoder<T> {
    /// A decoder for a stream whose frames are at most `limit` bytes long, header not counted.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, greeted: false, message: PhantomData }
    }

    /// Takes what was read, in any portions.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next message, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// When the stream is broken for good: close the connection, a further call may say anything.
    #[expect(clippy::should_implement_trait, reason = "an error ends the stream and None does not: no iterator")]
    pub fn next(&mut self) -> Result<Option<T>, FrameError> {
        loop {
            let Some(header) = self.bytes.first_chunk::<HEADER>() else { return Ok(None) };
            let length = u32::from_le_bytes(*header) as usize;
            if length > self.limit {
                return Err(FrameError::TooLong { length, limit: self.limit });
            }
            let Some(body) = self.bytes.get(HEADER..HEADER + length) else { return Ok(None) };
            if self.greeted {
                let message = decode(body).map_err(|source| FrameError::Garbled { length, source });
                self.forget(HEADER + length);
                return message.map(Some);
            }
            check_greeting(body)?;
            self.greeted = true;
            self.forget(HEADER + length);
        }
    }

    /// Whether a greeting of this version has been read.
    #[must_use]
    pub fn greeted(&self) -> bool {
        self.greeted
    }

    /// Bytes that were pushed and belong to no message yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.bytes.len()
    }

    fn forget(&mut self, count: usize) {
        self.bytes.drain(..count);
        if self.bytes.is_empty() {
            self.bytes = Vec::new();
        }
    }
}

fn check_greeting(body: &[u8]) -> Result<(), FrameError> {
    let rest = body.strip_prefix(&MAGIC).ok_or(FrameError::NoGreeting)?;
    let version = rest.first_chunk::<2>().ok_or(FrameError::NoGreeting)?;
    match u16::from_le_bytes(*version) {
        VERSION => Ok(()),
        theirs => Err(FrameError::Version { theirs }),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};
    use std::num::NonZeroU64;

    use proptest::prelude::*;

    use super::*;
    use crate::control::{Change, FileText, Removal, Request, Response, ServerValues};
    use crate::event::{EventsReport, HealthEvent};
    use crate::report::HealthState;
    use crate::settings::{AdminState, PoolSettings, ServerSettings, ServiceSettings};

    fn any_server() -> impl Strategy<Value = SocketAddr> {
        (any::<IpAddr>(), any::<u16>()).prop_map(SocketAddr::from)
    }

    fn any_state() -> impl Strategy<Value = AdminState> {
        prop::sample::select(AdminState::ALL.as_slice())
    }

    fn any_change() -> impl Strategy<Value = Change> {
        let name = any::<String>;
        let check_address = || prop::option::of(any_server());
        let settings = (any::<u32>(), any_state(), any::<Option<NonZeroU64>>(), any::<bool>(), check_address())
            .prop_map(|(weight, state, max_sessions, backup, check_address)| ServerSettings {
                weight,
                state,
                max_sessions,
                backup,
                check_address,
            });
        let how = prop_oneof![
            any::<Option<u64>>().prop_map(|limit_ms| Removal::Wait { limit_ms }),
            Just(Removal::Now),
            any::<u64>().prop_map(|time_ms| Removal::Over { time_ms }),
        ];
        let values = (
            any::<Option<u32>>(),
            prop::option::of(any_state()),
            any::<Option<Option<NonZeroU64>>>(),
            any::<Option<bool>>(),
            prop::option::of(check_address()),
        )
            .prop_map(|(weight, state, max_sessions, backup, check_address)| ServerValues {
                weight,
                state,
                max_sessions,
                backup,
                check_address,
            });
        prop_oneof![
            (name(), any_server(), settings).prop_map(|(pool, server, settings)| Change::Add {
                pool,
                server,
                settings
            }),
            (name(), any_server(), how).prop_map(|(pool, server, how)| Change::Remove { pool, server, how }),
            (name(), any_server(), values).prop_map(|(pool, server, values)| Change::Set { pool, server, values }),
            name().prop_map(|pool| Change::AddPool { pool, settings: PoolSettings::default() }),
            (name(), prop::collection::vec(any_server(), 0..4)).prop_map(|(service, listen)| {
                let settings = ServiceSettings::new(listen, &service);
                Change::AddService { service, settings }
            }),
            any::<u64>().prop_map(|session| Change::Kill { session }),
        ]
    }

    fn any_request() -> impl Strategy<Value = Request> {
        prop_oneof![
            Just(Request::Status),
            Just(Request::Pools),
            Just(Request::Settings),
            any::<u64>().prop_map(|since| Request::Events { since }),
            any::<String>().prop_map(|pool| Request::List { pool }),
            any::<String>().prop_map(|pool| Request::Digest { pool }),
            (any_change(), any::<bool>()).prop_map(|(change, dry_run)| Request::Change { change, dry_run }),
            (any::<IpAddr>(), any::<u16>(), any::<Option<String>>())
                .prop_map(|(client, port, service)| Request::Explain { client, port, service }),
            (any::<bool>(), any::<Option<u64>>()).prop_map(|(now, drain_ms)| Request::Stop { now, drain_ms }),
            (any::<String>(), any::<String>(), any::<bool>())
                .prop_map(|(name, text, dry_run)| Request::Reload { instead: Some(FileText { name, text }), dry_run }),
        ]
    }

    fn stream(requests: &[Request]) -> Vec<u8> {
        let mut bytes = greeting();
        for request in requests {
            bytes.extend(frame(request).expect("requests are short"));
        }
        bytes
    }

    proptest! {
        #[test]
        fn every_split_gives_the_same_messages(
            requests in prop::collection::vec(any_request(), 0..5),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let bytes = stream(&requests);
            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            ends.push(bytes.len());
            ends.sort_unstable();
            let mut decoder = Decoder::<Request>::new(REQUEST_LIMIT);
            let (mut got, mut start) = (Vec::new(), 0);
            for end in ends {
                decoder.push(&bytes[start..end]);
                start = end;
                while let Some(request) = decoder.next().expect("sound bytes") {
                    got.push(request);
                }
            }
            prop_assert_eq!(got, requests);
            prop_assert_eq!(decoder.pending(), 0);
        }

        #[test]
        fn every_prefix_asks_for_more(request in any_request()) {
            let bytes = stream(std::slice::from_ref(&request));
            for end in 0..bytes.len() {
                let mut decoder = Decoder::<Request>::new(REQUEST_LIMIT);
                decoder.push(&bytes[..end]);
                prop_assert!(matches!(decoder.next(), Ok(None)), "prefix of {} bytes", end);
            }
        }

        #[test]
        fn garbage_gives_an_error_or_asks_for_more(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let mut decoder = Decoder::<Request>::new(REQUEST_LIMIT);
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next() {}
            prop_assert!(decoder.pending() <= bytes.len());
        }

        #[test]
        fn garbage_after_a_greeting_gives_an_error_or_asks_for_more(
            body in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            for limit in [REQUEST_LIMIT, RESPONSE_LIMIT] {
                let mut requests = Decoder::<Request>::new(limit);
                let mut responses = Decoder::<Response>::new(limit);
                let mut bytes = greeting();
                bytes.extend((body.len() as u32).to_le_bytes());
                bytes.extend(&body);
                requests.push(&bytes);
                responses.push(&bytes);
                while let Ok(Some(_)) = requests.next() {}
                while let Ok(Some(_)) = responses.next() {}
                prop_assert_eq!((requests.pending(), responses.pending()), (0, 0), "a whole frame is consumed");
            }
        }

        #[test]
        fn a_flipped_byte_is_no_panic(request in any_request(), at in any::<prop::sample::Index>(), flip in 1u8..) {
            let mut bytes = stream(std::slice::from_ref(&request));
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let mut decoder = Decoder::<Request>::new(REQUEST_LIMIT);
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next() {}
        }
    }

    #[test]
    fn a_hostile_length_reserves_nothing() {
        let mut decoder = Decoder::<Request>::new(REQUEST_LIMIT);
        decoder.push(&u32::MAX.to_le_bytes());
        assert!(matches!(decoder.next(), Err(FrameError::TooLong { length: 0xffff_ffff, limit: REQUEST_LIMIT })));
        assert!(decoder.bytes.capacity() < 64);
    }

    #[test]
    fn a_hostile_length_inside_a_message_is_refused() {
        let mut bytes = greeting();
        // Variant 1 of Response is List; its first field is a string of 2^63 bytes.
        let body = [1u32.to_le_bytes().to_vec(), (1u64 << 63).to_le_bytes().to_vec()].concat();
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(body);
        let mut decoder = Decoder::<Response>::new(RESPONSE_LIMIT);
        decoder.push(&bytes);
        assert!(matches!(decoder.next(), Err(FrameError::Garbled { .. })));
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = greeting();
        bytes[8] = 9;
        let mut decoder = Decoder::<Request>::new(REQUEST_LIMIT);
        decoder.push(&bytes);
        assert!(matches!(decoder.next(), Err(FrameError::Version { theirs: 9 })));
    }

    #[test]
    fn a_longer_greeting_of_this_version_is_taken() {
        let mut bytes = 9u32.to_le_bytes().to_vec();
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(*b"new");
        bytes.extend(frame(&Request::Status).expect("short"));
        let mut decoder = Decoder::<Request>::new(REQUEST_LIMIT);
        decoder.push(&bytes);
        assert_eq!(decoder.next().expect("sound"), Some(Request::Status));
    }

    #[test]
    fn http_is_no_greeting() {
        let mut decoder = Decoder::<Request>::new(REQUEST_LIMIT);
        decoder.push(b"GET / HTTP/1.1\r\n\r\n");
        assert!(matches!(decoder.next(), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn golden_bytes_of_version_5() {
        let add = Request::Change {
            change: Change::Add {
                pool: "web".to_owned(),
                server: "10.0.0.1:8080".parse().expect("an address"),
                settings: ServerSettings { weight: 2, ..ServerSettings::default() },
            },
            dry_run: false,
        };
        let bytes = [
            b"\x06\0\0\0BALC\x05\0".as_slice(),
            b"\x29\0\0\0",            // 41 bytes follow
            b"\x02\0\0\0",            // Request::Change
            b"\0\0\0\0",              // Change::Add
            b"\x03\0\0\0\0\0\0\0web", // in the pool "web"
            b"\0\0\0\0",              // an IPv4 address
            b"\x0a\0\0\x01\x90\x1f",  // 10.0.0.1, 8080
            b"\x02\0\0\0",            // weight 2
            b"\0\0\0\0",              // ready
            b"\0",                    // no session limit
            b"\0",                    // no backup
            b"\0",                    // checked where it serves
            b"\0",                    // not a dry run
        ]
        .concat();
        assert_eq!(stream(&[add]), bytes);
    }

    #[test]
    fn golden_bytes_of_events() {
        let bytes = [
            b"\x0c\0\0\0".as_slice(), // 12 bytes follow
            b"\x0a\0\0\0",            // Request::Events
            b"\x29\0\0\0\0\0\0\0",    // after number 41
        ]
        .concat();
        assert_eq!(frame(&Request::Events { since: 41 }).expect("short"), bytes);
        let event = HealthEvent {
            number: 42,
            time: "noon".to_owned(),
            pool: "web".to_owned(),
            server: "10.0.0.1:8080".parse().expect("an address"),
            from: HealthState::Up,
            to: HealthState::Ejected,
            reason: Some("no".to_owned()),
            out_ms: Some(1000),
            up: 2,
            of: 3,
        };
        let events = vec![event];
        let report = EventsReport { pid: 7, started: "dawn".to_owned(), next: 43, dropped: 0, events };
        let bytes = [
            b"\x81\0\0\0".as_slice(),        // 129 bytes follow
            b"\x0b\0\0\0",                   // Response::Events
            b"\x07\0\0\0",                   // process 7
            b"\x04\0\0\0\0\0\0\0dawn",       // that began at dawn
            b"\x2b\0\0\0\0\0\0\0",           // the next event will be 43
            b"\0\0\0\0\0\0\0\0",             // none is missing
            b"\x01\0\0\0\0\0\0\0",           // one event
            b"\x2a\0\0\0\0\0\0\0",           // number 42
            b"\x04\0\0\0\0\0\0\0noon",       // at noon
            b"\x03\0\0\0\0\0\0\0web",        // in the pool "web"
            b"\0\0\0\0\x0a\0\0\x01\x90\x1f", // 10.0.0.1, 8080
            b"\0\0\0\0",                     // from up
            b"\x02\0\0\0",                   // to ejected
            b"\x01\x02\0\0\0\0\0\0\0no",     // since "no"
            b"\x01\xe8\x03\0\0\0\0\0\0",     // out for 1000 ms
            b"\x02\0\0\0\0\0\0\0",           // 2 are up
            b"\x03\0\0\0\0\0\0\0",           // of 3
        ]
        .concat();
        assert_eq!(frame(&Response::Events(report)).expect("short"), bytes);
    }
}

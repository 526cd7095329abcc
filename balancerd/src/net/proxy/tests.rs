//! Headers as bytes: golden ones, broken ones, and beside two other programs that read them.

use std::net::IpAddr;

use ppp::{v1, v2};
use proptest::prelude::*;
use proxy_header::{ParseConfig, ProxyHeader};
use wire::settings::SendProxy;

use super::*;

const PLAIN: SendProxy = SendProxy::V2 { crc32c: false, unique_id: false };
const CHECKED: SendProxy = SendProxy::V2 { crc32c: true, unique_id: true };

fn addresses(source: &str, destination: &str) -> Addresses {
    let address = |text: &str| text.parse().expect("an address");
    Addresses { source: address(source), destination: address(destination) }
}

fn bytes(hex: &str) -> Vec<u8> {
    let hex: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let digits = hex.chunks(2).map(|pair| std::str::from_utf8(pair).expect("digits"));
    digits.map(|pair| u8::from_str_radix(pair, 16).expect("digits")).collect()
}

/// A header of version 2 with this in its 13th and 14th byte, and this behind its length.
fn binary(version_command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).expect("short").to_be_bytes();
    [&SIGNATURE[..], &[version_command, family], &length, block].concat()
}

const BLOCK_IPV4: [u8; 12] = [192, 0, 2, 1, 192, 0, 2, 2, 0xdc, 0x04, 0x01, 0xbb];

fn vector(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind][..], &u16::try_from(value.len()).expect("short").to_be_bytes(), value].concat()
}

/// Bytes, how they are written, and what they say.
type Golden = (Vec<u8>, SendProxy, Option<Addresses>, Option<&'static [u8]>);

/// Made by another program, with a checksum made bit by bit.
fn golden() -> Vec<Golden> {
    let ipv4 = addresses("192.0.2.1:56324", "192.0.2.2:443");
    let ipv6 = addresses("[2001:db8::1]:1", "[::ffff:192.0.2.2]:65535");
    vec![
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n".to_vec(), SendProxy::V1, Some(ipv4), None),
        (b"PROXY TCP6 2001:db8::1 ::ffff:192.0.2.2 1 65535\r\n".to_vec(), SendProxy::V1, Some(ipv6), None),
        (b"PROXY UNKNOWN\r\n".to_vec(), SendProxy::V1, None, None),
        (bytes("0d0a0d0a000d0a515549540a 2000 0000"), PLAIN, None, None),
        (bytes("0d0a0d0a000d0a515549540a 2111 000c c0000201 c0000202 dc04 01bb"), PLAIN, Some(ipv4), None),
        (
            bytes(
                "0d0a0d0a000d0a515549540a 2121 0024 20010db8000000000000000000000001
                 00000000000000000000ffffc0000202 0001 ffff",
            ),
            PLAIN,
            Some(ipv6),
            None,
        ),
        (
            bytes("0d0a0d0a000d0a515549540a 2111 0019 c0000201 c0000202 dc04 01bb 050003 612d31 030004 1ff257b1"),
            CHECKED,
            Some(ipv4),
            Some(b"a-1"),
        ),
        (bytes("0d0a0d0a000d0a515549540a 2000 0007 030004 a9b87e8f"), CHECKED, None, None),
    ]
}

#[test]
fn golden_bytes_are_read_and_written() {
    for (golden, how, addresses, unique_id) in golden() {
        let header = Header { addresses, unique_id: unique_id.map(Into::into) };
        assert_eq!(decode(&golden), Ok(Some((header.clone(), golden.len()))), "{golden:x?}");
        assert_eq!(encode(how, addresses, unique_id), golden);
        let followed = [&golden[..], b"GET /"].concat();
        assert_eq!(decode(&followed), Ok(Some((header, golden.len()))), "what follows is not of the header");
        for end in 0..golden.len() {
            assert_eq!(decode(&golden[..end]), Ok(None), "{end} bytes of {golden:x?}");
        }
    }
}

#[test]
fn what_says_nothing_of_the_client_is_taken_and_skipped() {
    let unix = [7; UNIX_ADDRESSES];
    for header in [
        b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n".to_vec(),
        b"PROXY UNKNOWN \xff anything at all\r\n".to_vec(),
        // LOCAL, with whatever in it: the family is to be ignored.
        binary(0x20, 0x11, &BLOCK_IPV4),
        binary(0x20, 0x11, &[1, 2, 3]),
        binary(0x20, 0x77, &[]),
        binary(0x20, 0x00, &[1, 2, 3]),
        // UNSPEC, a known family or transport without the other, UDP and UNIX.
        binary(0x21, 0x00, &[]),
        binary(0x21, 0x10, &BLOCK_IPV4),
        binary(0x21, 0x01, &vector(4, b"aligned")),
        binary(0x21, 0x12, &BLOCK_IPV4),
        binary(0x21, 0x22, &[1; 36]),
        binary(0x21, 0x31, &unix),
        binary(0x21, 0x32, &[&unix[..], &vector(4, b"")].concat()),
    ] {
        let expected = Header { addresses: None, unique_id: None };
        assert_eq!(decode(&header), Ok(Some((expected, header.len()))), "{header:x?}");
    }
}

#[test]
fn vectors_of_every_kind_are_skipped_and_the_unique_id_is_kept() {
    let mut block = BLOCK_IPV4.to_vec();
    let id = [b'i'; MOST_UNIQUE_ID];
    for (kind, value) in [(1, &b"h2"[..]), (2, b"example.org"), (0x20, &[1; 300]), (5, &id), (0xee, b""), (4, &[0; 9])]
    {
        block.extend(vector(kind, value));
    }
    let header = binary(0x21, 0x11, &block);
    let (read, length) = decode(&header).expect("a header").expect("whole");
    assert_eq!(read.unique_id.as_deref(), Some(&id[..]));
    assert_eq!(read.addresses, Some(addresses("192.0.2.1:56324", "192.0.2.2:443")));
    assert_eq!(length, header.len());
}

#[test]
fn a_line_of_two_families_is_taken_as_nginx_writes_it() {
    for (line, source, destination) in [
        ("TCP6 2001:db8::1 192.0.2.1 51512 22", "[2001:db8::1]:51512", "192.0.2.1:22"),
        ("TCP4 192.0.2.7 2001:db8::2 1 2", "192.0.2.7:1", "[2001:db8::2]:2"),
    ] {
        let bytes = format!("PROXY {line}\r\n");
        let (header, length) = decode(bytes.as_bytes()).expect("a header").expect("whole");
        assert_eq!((header.addresses, length), (Some(addresses(source, destination)), bytes.len()));
        // What goes on to servers names both in the one family that has both.
        let on = String::from_utf8(encode(SendProxy::V1, header.addresses, None)).expect("text");
        assert!(on.starts_with("PROXY TCP6 ") && on.contains("::ffff:192.0.2."), "{on}");
    }
}

#[test]
fn what_is_no_header_is_told_as_soon_as_it_is_sure() {
    let long = |length: usize| [b"PROXY UNKNOWN ", &vec![b'x'; length - 14][..]].concat();
    let with = |vector: Vec<u8>| binary(0x21, 0x11, &[&BLOCK_IPV4[..], &vector].concat());
    for (header, fault) in [
        (b"G".to_vec(), Malformed::Signature),
        (b"PROXX".to_vec(), Malformed::Signature),
        (b"PROXY\r".to_vec(), Malformed::Signature),
        (b"PROXY\tTCP4".to_vec(), Malformed::Signature),
        (b"\r\n\r\n\0\r\nQUIX".to_vec(), Malformed::Signature),
        (b"PROXY \r\n".to_vec(), Malformed::Protocol),
        (b"PROXY  TCP4 1.1.1.1 2.2.2.2 1 2\r\n".to_vec(), Malformed::Protocol),
        (b"PROXY TCP5 1.1.1.1 2.2.2.2 1 2\r\n".to_vec(), Malformed::Protocol),
        (b"PROXY UNKNOWNS\r\n".to_vec(), Malformed::Protocol),
        (b"PROXY tcp4 1.1.1.1 2.2.2.2 1 2\r\n".to_vec(), Malformed::Protocol),
        (b"PROXY TCP4\r\n".to_vec(), Malformed::Fields),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n".to_vec(), Malformed::Fields),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 \r\n".to_vec(), Malformed::Fields),
        (b"PROXY TCP4 1.1.1.1  2.2.2.2 1 2\r\n".to_vec(), Malformed::Fields),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 65536\r\n".to_vec(), Malformed::Fields),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n".to_vec(), Malformed::Fields),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 +1 2\r\n".to_vec(), Malformed::Fields),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 -2\r\n".to_vec(), Malformed::Fields),
        (b"PROXY TCP4 1.1.1.01 2.2.2.2 1 2\r\n".to_vec(), Malformed::Fields),
        (b"PROXY TCP4 1.1.1.256 2.2.2.2 1 2\r\n".to_vec(), Malformed::Fields),
        (b"PROXY TCP4 ::1 ::2 1 2\r\n".to_vec(), Malformed::Fields),
        (b"PROXY TCP6 1.1.1.1 2.2.2.2 1 2\r\n".to_vec(), Malformed::Fields),
        (b"PROXY TCP6 [::1] ::2 1 2\r\n".to_vec(), Malformed::Fields),
        (b"PROXY TCP6 fe80::1%1 ::2 1 2\r\n".to_vec(), Malformed::Fields),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\xff\r\n".to_vec(), Malformed::Fields),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n".to_vec(), Malformed::LineBreak),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\rx".to_vec(), Malformed::LineBreak),
        (b"PROXY UNKNOWN\r\r\n".to_vec(), Malformed::LineBreak),
        (long(107), Malformed::LineTooLong),
        ([&long(106)[..], b"\r\n"].concat(), Malformed::LineTooLong),
        (binary(0x11, 0x11, &BLOCK_IPV4)[..13].to_vec(), Malformed::Version),
        (binary(0x31, 0x11, &BLOCK_IPV4)[..13].to_vec(), Malformed::Version),
        (binary(0x22, 0x11, &BLOCK_IPV4)[..13].to_vec(), Malformed::Command),
        (binary(0x21, 0x13, &BLOCK_IPV4)[..14].to_vec(), Malformed::Family),
        (binary(0x21, 0x41, &BLOCK_IPV4)[..14].to_vec(), Malformed::Family),
        (binary(0x21, 0x11, &BLOCK_IPV4[..11])[..16].to_vec(), Malformed::TooShort),
        (binary(0x21, 0x21, &[0; 35])[..16].to_vec(), Malformed::TooShort),
        (binary(0x21, 0x31, &[0; 215])[..16].to_vec(), Malformed::TooShort),
        (binary(0x21, 0x11, &[0; HEADER_LIMIT - FIXED + 1])[..16].to_vec(), Malformed::TooLong(HEADER_LIMIT + 1)),
        (binary(0x20, 0x00, &[0; 65535])[..16].to_vec(), Malformed::TooLong(65551)),
        (with(vec![1]), Malformed::Vectors),
        (with(vec![1, 0]), Malformed::Vectors),
        (with(vec![1, 0, 1]), Malformed::Vectors),
        (with(vec![1, 0xff, 0xff, 0]), Malformed::Vectors),
        (with(vector(TYPE_CRC32C, &[0; 3])), Malformed::Vectors),
        (with(vector(TYPE_CRC32C, &[0; 5])), Malformed::Vectors),
        (with(vector(TYPE_UNIQUE_ID, &[0; MOST_UNIQUE_ID + 1])), Malformed::UniqueId),
        (with(vector(TYPE_CRC32C, &[0; 4])), Malformed::Checksum),
        (binary(0x20, 0x00, &vector(TYPE_CRC32C, &[1; 4])), Malformed::Checksum),
    ] {
        assert_eq!(decode(&header), Err(fault), "{header:x?}");
        let before = decode(&header[..header.len() - 1]);
        let is_early = matches!(before, Ok(None)) || before == Err(fault);
        assert!(is_early, "before that it was {before:?}: {header:x?}");
        assert_eq!(decode(&[&header[..], &[0; 5000]].concat()), Err(fault), "whatever follows");
    }
}

#[test]
fn the_longest_are_taken() {
    let line = [b"PROXY UNKNOWN ", &[b'x'; 91][..], b"\r\n"].concat();
    assert_eq!(line.len(), MOST_V1);
    assert!(matches!(decode(&line), Ok(Some((_, MOST_V1)))));
    let block = [&BLOCK_IPV4[..], &vector(4, &[0; HEADER_LIMIT - FIXED - 12 - 3])].concat();
    assert!(matches!(decode(&binary(0x21, 0x11, &block)), Ok(Some((_, HEADER_LIMIT)))));
}

#[test]
fn a_checksum_holds_every_bit_of_a_header() {
    let header = encode(CHECKED, Some(addresses("192.0.2.1:1", "192.0.2.2:2")), Some(b"id"));
    // But for the type of its own vector: with another type there is no checksum.
    let own = header.len() - 7;
    for bit in (FIXED * 8..header.len() * 8).filter(|bit| bit / 8 != own) {
        let mut changed = header.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&changed).is_err(), "bit {bit}");
    }
}

#[test]
fn addresses_of_two_families_become_ipv6_and_mapped_ones_ipv4() {
    for (source, destination, line) in [
        ("192.0.2.1:1", "[2001:db8::2]:2", "PROXY TCP6 ::ffff:192.0.2.1 2001:db8::2 1 2\r\n"),
        ("[2001:db8::1]:1", "192.0.2.2:2", "PROXY TCP6 2001:db8::1 ::ffff:192.0.2.2 1 2\r\n"),
        ("[::ffff:192.0.2.1]:1", "192.0.2.2:2", "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"),
        ("[fe80::1%3]:1", "[fe80::2%3]:2", "PROXY TCP6 fe80::1 fe80::2 1 2\r\n"),
    ] {
        let given = addresses(source, destination);
        let (header, _) = decode(line.as_bytes()).expect("a header").expect("whole");
        assert_eq!(encode(SendProxy::V1, Some(given), None), line.as_bytes());
        assert_eq!(decode(&encode(PLAIN, Some(given), None)).expect("a header").expect("whole").0, header);
    }
}

fn any_addresses() -> impl Strategy<Value = Addresses> {
    let ipv4 = any::<([u8; 4], [u8; 4])>().prop_map(|(one, other)| (IpAddr::from(one), IpAddr::from(other)));
    let ipv6 = any::<([u8; 16], [u8; 16])>().prop_map(|(one, other)| (IpAddr::from(one), IpAddr::from(other)));
    (prop_oneof![ipv4, ipv6], any::<(u16, u16)>()).prop_map(|((source, destination), (from, to))| Addresses {
        source: SocketAddr::new(source, from),
        destination: SocketAddr::new(destination, to),
    })
}

fn any_way() -> impl Strategy<Value = SendProxy> {
    let second = any::<(bool, bool)>().prop_map(|(crc32c, unique_id)| SendProxy::V2 { crc32c, unique_id });
    prop_oneof![Just(SendProxy::V1), second]
}

/// A header as it is written, some of its bytes changed, and something behind it.
fn nearly_a_header() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    let behind = prop::collection::vec(any::<u8>(), 0..40);
    (any_way(), prop::option::of(any_addresses()), changes, behind).prop_map(|(how, addresses, changes, behind)| {
        let mut header = encode(how, addresses, Some(b"an id"));
        for (at, byte) in changes {
            let at = at.index(header.len());
            header[at] = byte;
        }
        header.extend(behind);
        header
    })
}

/// What `proxy-header` makes of it: both addresses, if it has them, and the length.
fn by_proxy_header(bytes: &[u8]) -> Option<(Option<Addresses>, usize)> {
    let (header, length) = ProxyHeader::parse(bytes, ParseConfig::default()).ok()?;
    let tcp = header.proxied_address().filter(|it| it.protocol == proxy_header::Protocol::Stream);
    Some((tcp.map(|it| Addresses { source: it.source, destination: it.destination }), length))
}

/// What `ppp` makes of it.
fn by_ppp(bytes: &[u8]) -> Option<(Option<Addresses>, usize)> {
    let both = |source: (IpAddr, u16), destination: (IpAddr, u16)| {
        Some(Addresses { source: source.into(), destination: destination.into() })
    };
    match ppp::HeaderResult::parse(bytes) {
        ppp::HeaderResult::V1(Ok(header)) => {
            let addresses = match header.addresses {
                v1::Addresses::Unknown => None,
                v1::Addresses::Tcp4(it) => both(
                    (it.source_address.into(), it.source_port),
                    (it.destination_address.into(), it.destination_port),
                ),
                v1::Addresses::Tcp6(it) => both(
                    (it.source_address.into(), it.source_port),
                    (it.destination_address.into(), it.destination_port),
                ),
            };
            Some((addresses, header.header.len()))
        }
        ppp::HeaderResult::V2(Ok(header)) => {
            let is_meant = header.command == v2::Command::Proxy && header.protocol == v2::Protocol::Stream;
            let addresses = match header.addresses {
                v2::Addresses::IPv4(it) if is_meant => both(
                    (it.source_address.into(), it.source_port),
                    (it.destination_address.into(), it.destination_port),
                ),
                v2::Addresses::IPv6(it) if is_meant => both(
                    (it.source_address.into(), it.source_port),
                    (it.destination_address.into(), it.destination_port),
                ),
                _ => None,
            };
            Some((addresses, header.len()))
        }
        _ => None,
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_again_and_by_others_too(
        how in any_way(),
        addresses in prop::option::of(any_addresses()),
        id in prop::option::of(prop::collection::vec(any::<u8>(), 0..=MOST_UNIQUE_ID)),
        behind in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let written = encode(how, addresses, id.as_deref());
        let all = [&written[..], &behind].concat();
        let (header, length) = decode(&all).expect("a header").expect("whole");
        prop_assert_eq!(length, written.len());
        // Random addresses are no mapped ones.
        prop_assert_eq!(header.addresses, addresses);
        let id = id.filter(|_| how != SendProxy::V1 && addresses.is_some());
        prop_assert_eq!(header.unique_id.as_deref(), id.as_deref());
        let others = Some((addresses, length));
        prop_assert_eq!(by_proxy_header(&all), others);
        // It takes a line for text with all that follows it.
        if how != SendProxy::V1 || behind.is_empty() {
            prop_assert_eq!(by_ppp(&all), others);
        }
        for end in 0..length {
            prop_assert_eq!(decode(&written[..end]), Ok(None));
        }
    }

    /// They take some that are none (a sign before a port, another byte for the first space); never the other way round.
    #[test]
    fn what_is_taken_is_taken_by_others_and_means_the_same(bytes in nearly_a_header()) {
        if let Ok(Some((header, length))) = decode(&bytes) {
            let is_local = bytes.get(12) == Some(&0x20) && bytes[0] == b'\r';
            let is_unknown = bytes.starts_with(b"PROXY UNKNOWN");
            // They take no line of two families, as nginx writes them.
            let is_mixed = bytes[0] == b'P'
                && header.addresses.is_some_and(|it| it.source.is_ipv4() != it.destination.is_ipv4());
            if !is_local && !is_mixed {
                prop_assert_eq!(by_proxy_header(&bytes), Some((header.addresses, length)));
            }
            if !is_local && !is_unknown && bytes[0] == b'\r' {
                prop_assert_eq!(by_ppp(&bytes), Some((header.addresses, length)));
            }
        }
    }

    #[test]
    fn more_bytes_change_no_decision(bytes in nearly_a_header(), at in any::<prop::sample::Index>()) {
        let start = decode(&bytes[..at.index(bytes.len() + 1)]);
        prop_assert!(start == Ok(None) || start == decode(&bytes), "{:?}", start);
    }

    #[test]
    fn garbage_is_no_panic_and_never_waits_for_ever(
        mut bytes in prop::collection::vec(any::<u8>(), HEADER_LIMIT),
        start in prop::sample::select(vec![&b""[..], b"PROXY ", b"PROXY TCP4 ", &SIGNATURE, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0"]),
    ) {
        bytes[..start.len()].copy_from_slice(start);
        prop_assert_ne!(decode(&bytes), Ok(None));
        for end in [0, 1, 15, 16, 17, 107, 108, 500] {
            let _ = decode(&bytes[..end]);
        }
    }
}

/// Why this reading is its own: what others take for a header.
#[test]
fn others_take_what_is_none() {
    for none in ["PROXYxTCP4 1.1.1.1 2.2.2.2 1 2\r\n", "PROXY TCP4 1.1.1.1 2.2.2.2 +1 002\r\n", "PROXY UNKNOWNS\r\n"] {
        assert!(by_proxy_header(none.as_bytes()).is_some() && decode(none.as_bytes()).is_err(), "{none}");
    }
    let unchecked = binary(0x21, 0x11, &[&BLOCK_IPV4[..], &vector(TYPE_CRC32C, &[0; 4])].concat());
    assert!(by_proxy_header(&unchecked).is_some() && by_ppp(&unchecked).is_some() && decode(&unchecked).is_err());
}

#[test]
fn a_header_of_a_datagram_is_of_version_2_and_speaks_of_datagrams() {
    let given = addresses("192.0.2.1:53000", "192.0.2.2:53");
    for (how, id) in [(PLAIN, None), (CHECKED, Some(&b"flow 7"[..]))] {
        let header = encode_datagram(how, Some(given), id);
        assert_eq!(header[13], 0x12);
        let whole = [&header[..], b"question"].concat();
        let (read, length) = decode_datagram(&whole).expect("a header");
        assert_eq!((read.addresses, &whole[length..]), (Some(given), &b"question"[..]));
        assert_eq!(read.unique_id.as_deref(), id);
        for end in 0..header.len() {
            let cut = decode_datagram(&header[..end]);
            assert!(cut.is_err(), "{end} bytes of a header: {cut:?}");
        }
        // A stream is something else.
        assert_eq!(decode(&header).expect("a header").expect("whole").0.addresses, None);
    }
    let six = addresses("[2001:db8::1]:1", "[2001:db8::2]:2");
    let header = encode_datagram(PLAIN, Some(six), None);
    assert_eq!(header[13], 0x22);
    assert_eq!(decode_datagram(&header).expect("a header").0.addresses, Some(six));
    let of_a_stream = encode(PLAIN, Some(given), None);
    assert_eq!(decode_datagram(&of_a_stream).expect("a header").0.addresses, None);
    assert_eq!(decode_datagram(&encode_datagram(PLAIN, None, None)).expect("local").0.addresses, None);
    assert_eq!(encode_datagram(SendProxy::V1, Some(given), None), b"");
    assert_eq!(decode_datagram(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"), Err(Malformed::Signature));
}

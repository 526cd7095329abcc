//! What a router tells whose datagram is longer than the way takes, as the bytes of a packet: "fragmentation needed" of
//! ICMP (RFC 792, RFC 1191), and "packet too big" of ICMPv6 (RFC 4443). No sockets; `notices` sends it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The header of UDP, and that of either kind of ICMP.
const UDP: usize = 8;
const ICMP: usize = 8;

/// A datagram that is too long.
#[derive(Debug, Clone, Copy)]
pub(super) struct TooLong<'b> {
    /// Who sent it.
    pub(super) from: SocketAddr,
    /// The address of ours that it was sent to, of the same family.
    pub(super) to: SocketAddr,
    /// Its bytes, those that have been taken off again, as a header of the PROXY protocol, among them.
    pub(super) length: usize,
    /// What there is of them from the first one on: all or none.
    pub(super) bytes: &'b [u8],
}

/// Bytes of the header of IP.
pub(super) fn ip_header(ip: IpAddr) -> usize {
    if ip.is_ipv4() { 20 } else { 40 }
}

/// What every way takes, with all headers: who is told less would not believe it, or has to send in fragments (RFC 791,
/// RFC 8200). It is also what a message that quotes a packet may be (RFC 1812, RFC 4443).
pub(super) fn least(ip: IpAddr) -> usize {
    if ip.is_ipv4() { 576 } else { 1280 }
}

/// Bytes of a datagram's packet, with all headers.
pub(super) fn packet_length(from: IpAddr, length: usize) -> usize {
    ip_header(from) + UDP + length
}

/// The packet that tells the sender how long one may be, with all headers. None if addresses of two families are given.
pub(super) fn notice(refused: &TooLong<'_>, mtu: usize) -> Option<Vec<u8>> {
    match (refused.from.ip(), refused.to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => Some(notice_ipv4(refused, from, to, mtu)),
        (IpAddr::V6(from), IpAddr::V6(to)) => Some(notice_ipv6(refused, from, to, mtu)),
        _ => None,
    }
}

fn notice_ipv4(refused: &TooLong<'_>, from: Ipv4Addr, to: Ipv4Addr, mtu: usize) -> Vec<u8> {
    /// What routers send goes before other packets (RFC 1812).
    const CONTROL: u8 = 0xc0;
    const UNREACHABLE: u8 = 3;
    const FRAGMENTATION_NEEDED: u8 = 4;
    const PROTOCOL: u8 = 1;
    let mut pseudo = Sum::default();
    pseudo.add(&from.octets());
    pseudo.add(&to.octets());
    let mut quote = header_ipv4(0, 17, UDP + refused.length, from, to);
    quote.extend(udp(refused, pseudo));
    quote.truncate(least(from.into()) - ip_header(from.into()) - ICMP);

    let [high, low] = word(mtu);
    let mut message = vec![UNREACHABLE, FRAGMENTATION_NEEDED, 0, 0, 0, 0, high, low];
    message.extend(quote);
    let checksum = Sum::of(&message).checksum();
    message[2..4].copy_from_slice(&checksum);
    let mut packet = header_ipv4(CONTROL, PROTOCOL, message.len(), to, from);
    packet.extend(message);
    packet
}

fn notice_ipv6(refused: &TooLong<'_>, from: Ipv6Addr, to: Ipv6Addr, mtu: usize) -> Vec<u8> {
    const TOO_BIG: u8 = 2;
    const PROTOCOL: u8 = 58;
    let mut pseudo = Sum::default();
    pseudo.add(&from.octets());
    pseudo.add(&to.octets());
    let mut quote = header_ipv6(17, UDP + refused.length, from, to);
    quote.extend(udp(refused, pseudo));
    quote.truncate(least(from.into()) - ip_header(from.into()) - ICMP);

    let mut message = vec![TOO_BIG, 0, 0, 0];
    message.extend((mtu as u32).to_be_bytes());
    message.extend(quote);
    let mut sum = pseudo;
    sum.add(&word(message.len()));
    sum.add(&[0, PROTOCOL]);
    sum.add(&message);
    message[2..4].copy_from_slice(&sum.checksum());
    let mut packet = header_ipv6(PROTOCOL, message.len(), to, from);
    packet.extend(message);
    packet
}

/// Hops that a packet may take, as most systems have it.
const HOPS: u8 = 64;

/// A header of IPv4 without options, for a packet that may not go in fragments. What the sender had in the fields that
/// are not known here does not come back to it, and nobody looks at them.
fn header_ipv4(service: u8, protocol: u8, length: usize, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    const WHOLE: u8 = 0x40;
    let [high, low] = word(20 + length);
    let mut header = vec![0x45, service, high, low, 0, 0, WHOLE, 0, HOPS, protocol, 0, 0];
    header.extend(from.octets());
    header.extend(to.octets());
    let checksum = Sum::of(&header).checksum();
    header[10..12].copy_from_slice(&checksum);
    header
}

fn header_ipv6(protocol: u8, length: usize, from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let [high, low] = word(length);
    let mut header = vec![0x60, 0, 0, 0, high, low, protocol, HOPS];
    header.extend(from.octets());
    header.extend(to.octets());
    header
}

/// The datagram behind its header of UDP. `pseudo` is the sum of its addresses. If its bytes are not there, neither is
/// its checksum.
fn udp(refused: &TooLong<'_>, mut pseudo: Sum) -> Vec<u8> {
    const PROTOCOL: u8 = 17;
    let length = word(UDP + refused.length);
    let mut bytes = Vec::with_capacity(UDP + refused.bytes.len());
    bytes.extend(refused.from.port().to_be_bytes());
    bytes.extend(refused.to.port().to_be_bytes());
    bytes.extend(length);
    bytes.extend([0, 0]);
    bytes.extend(refused.bytes);
    if refused.bytes.len() == refused.length {
        pseudo.add(&[0, PROTOCOL]);
        pseudo.add(&length);
        pseudo.add(&bytes);
        let checksum = match pseudo.checksum() {
            // That there is none.
            [0, 0] => [0xff, 0xff],
            checksum => checksum,
        };
        bytes[6..8].copy_from_slice(&checksum);
    }
    bytes
}

/// A number in two bytes, or the largest one.
fn word(number: usize) -> [u8; 2] {
    u16::try_from(number).unwrap_or(u16::MAX).to_be_bytes()
}

/// The sum that is the checksum of the internet (RFC 1071).
#[derive(Debug, Default, Clone, Copy)]
struct Sum(u64);

impl Sum {
    fn of(bytes: &[u8]) -> Self {
        let mut sum = Self::default();
        sum.add(bytes);
        sum
    }

    /// Adds bytes; an odd number of them may be the last ones alone.
    fn add(&mut self, bytes: &[u8]) {
        let words = bytes.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        self.0 += words.map(u64::from).sum::<u64>();
    }

    fn checksum(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused<'b>(from: &str, to: &str, bytes: &'b [u8]) -> TooLong<'b> {
        let parse = |text: &str| text.parse().expect("an address");
        TooLong { from: parse(from), to: parse(to), length: bytes.len(), bytes }
    }

    #[test]
    fn golden_bytes_over_ipv4() {
        let packet = notice(&refused("192.0.2.1:4000", "198.51.100.7:53", &[7; 601]), 1300).expect("one family");
        let begin = [
            b"\x45\xc0\x02\x40\0\0\x40\0\x40\x01\x4b\xc1".as_slice(), // ICMP, 576 bytes
            b"\xc6\x33\x64\x07\xc0\0\x02\x01",                        // from who was asked, to who did
            b"\x03\x04\x06\xb0\0\0\x05\x14",                          // fragmentation needed, 1300
            b"\x45\0\x02\x75\0\0\x40\0\x40\x11\x4c\x3c",              // UDP, 629 bytes
            b"\xc0\0\x02\x01\xc6\x33\x64\x07",                        // the other way round
            b"\x0f\xa0\0\x35\x02\x61\xbb\xde",                        // 4000 to 53, 609 bytes
        ]
        .concat();
        assert_eq!(packet[..begin.len()], begin);
        assert_eq!(packet[begin.len()..], [7; 576 - 56]);
    }

    #[test]
    fn golden_bytes_over_ipv6() {
        let packet = notice(&refused("[2001:db8::1]:4000", "[2001:db8::7]:53", &[7; 1401]), 1300).expect("one family");
        let client = b"\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01";
        let own = b"\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x07";
        let begin = [
            b"\x60\0\0\0\x04\xd8\x3a\x40".as_slice(), // ICMPv6, 1240 bytes behind the header
            own,
            client,
            b"\x02\0\x25\x27\0\0\x05\x14", // packet too big, 1300
            b"\x60\0\0\0\x05\x81\x11\x40", // UDP, 1409 bytes behind the header
            client,
            own,
            b"\x0f\xa0\0\x35\x05\x81\x4b\x66", // 4000 to 53, 1409 bytes
        ]
        .concat();
        assert_eq!(packet[..begin.len()], begin);
        assert_eq!(packet[begin.len()..], [7; 1280 - 96]);
    }

    #[test]
    fn what_is_not_known_of_a_datagram_is_not_quoted() {
        let whole = refused("192.0.2.1:4000", "198.51.100.7:53", &[7; 1400]);
        let packet = notice(&TooLong { bytes: &[], ..whole }, 1300).expect("one family");
        // The header of UDP is the last of it: it has the length, and no checksum.
        assert_eq!((packet.len(), &packet[52..]), (56, [0x05, 0x80, 0, 0].as_slice()));
        assert_eq!(notice(&TooLong { to: "[::1]:53".parse().expect("an address"), ..whole }, 1300), None);
    }
}

//! A header to bytes.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use wire::address::canonical;
use wire::settings::SendProxy;

use super::{Addresses, DATAGRAM, FIXED, MOST_UNIQUE_ID, SIGNATURE, STREAM, TYPE_CRC32C, TYPE_UNIQUE_ID};

/// The bytes of a header. Without addresses it says that it is about the connection itself (LOCAL), or that they are not
/// known (UNKNOWN). Addresses of two families are written as IPv6, as HAProxy does: there is no header with both. Of a
/// unique id, which version 1 has no place for, the first 128 bytes count.
pub(crate) fn encode(how: SendProxy, addresses: Option<Addresses>, unique_id: Option<&[u8]>) -> Vec<u8> {
    let addresses = addresses.map(|Addresses { source, destination }| of_one_family(source, destination));
    match how {
        SendProxy::V1 => encode_v1(addresses),
        SendProxy::V2 { crc32c, .. } => encode_v2(STREAM, addresses, unique_id, crc32c),
    }
}

/// The bytes of a header that stands before a datagram. There is none of version 1, which is for connections alone.
pub(crate) fn encode_datagram(how: SendProxy, addresses: Option<Addresses>, unique_id: Option<&[u8]>) -> Vec<u8> {
    let SendProxy::V2 { crc32c, .. } = how else { return Vec::new() };
    let addresses = addresses.map(|Addresses { source, destination }| of_one_family(source, destination));
    encode_v2(DATAGRAM, addresses, unique_id, crc32c)
}

/// IPv4-mapped addresses as IPv4, or the IPv4 one of two families as IPv4-mapped.
fn of_one_family(source: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
    let (source, destination) = (canonical(source), canonical(destination));
    if source.is_ipv4() == destination.is_ipv4() {
        return (source, destination);
    }
    let mapped = |address: SocketAddr| SocketAddr::new(ipv6(address.ip()).into(), address.port());
    (mapped(source), mapped(destination))
}

fn ipv6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

fn encode_v1(addresses: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let Some((source, destination)) = addresses else { return b"PROXY UNKNOWN\r\n".to_vec() };
    let family = if source.is_ipv4() { 4 } else { 6 };
    let (from, to) = (source.ip(), destination.ip());
    format!("PROXY TCP{family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
}

fn encode_v2(
    transport: u8,
    addresses: Option<(SocketAddr, SocketAddr)>,
    unique_id: Option<&[u8]>,
    crc32c: bool,
) -> Vec<u8> {
    const LOCAL: u8 = 0x20;
    const PROXY: u8 = 0x21;
    let mut bytes = Vec::with_capacity(128);
    bytes.extend(SIGNATURE);
    match addresses {
        None => bytes.extend([LOCAL, 0x00, 0, 0]),
        Some((source, destination)) => {
            let family = if source.is_ipv4() { 0x10 } else { 0x20 };
            bytes.extend([PROXY, family | transport, 0, 0]);
            for address in [source, destination] {
                match address.ip() {
                    IpAddr::V4(ip) => bytes.extend(ip.octets()),
                    IpAddr::V6(ip) => bytes.extend(ip.octets()),
                }
            }
            bytes.extend(source.port().to_be_bytes());
            bytes.extend(destination.port().to_be_bytes());
        }
    }
    if let Some(id) = unique_id {
        let id = &id[..id.len().min(MOST_UNIQUE_ID)];
        bytes.extend([TYPE_UNIQUE_ID, 0, id.len() as u8]);
        bytes.extend(id);
    }
    if crc32c {
        bytes.extend([TYPE_CRC32C, 0, 4, 0, 0, 0, 0]);
    }
    let length = u16::try_from(bytes.len() - FIXED).expect("addresses, an id and a checksum are some 200 bytes");
    bytes[FIXED - 2..FIXED].copy_from_slice(&length.to_be_bytes());
    if crc32c {
        let checksum = crc32c::crc32c(&bytes).to_be_bytes();
        let at = bytes.len() - checksum.len();
        bytes[at..].copy_from_slice(&checksum);
    }
    bytes
}

//! Bytes to a header.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::str::FromStr;

use super::{
    Addresses, DATAGRAM, FIXED, HEADER_LIMIT, Header, MOST_UNIQUE_ID, MOST_V1, SIGNATURE, STREAM, TYPE_CRC32C,
    TYPE_UNIQUE_ID, UNIX_ADDRESSES, WORD,
};

/// Why bytes are no header, whatever follows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// Neither version begins so.
    #[error("they are no PROXY protocol header")]
    Signature,
    /// A line of version 1 has no end where it has to have one.
    #[error("a line of version 1 does not end within {MOST_V1} bytes")]
    LineTooLong,
    /// A carriage return or a line feed alone.
    #[error("a line of version 1 has a line break that is not CR LF")]
    LineBreak,
    /// Neither TCP4, TCP6 nor UNKNOWN.
    #[error("a line of version 1 has none of TCP4, TCP6 and UNKNOWN")]
    Protocol,
    /// Not four fields with one space between them, or one of them is none.
    #[error("a line of version 1 has no two addresses of its protocol and two ports")]
    Fields,
    /// A version other than 2 behind the signature of version 2.
    #[error("it has the signature of version 2 and another version")]
    Version,
    /// Neither LOCAL nor PROXY.
    #[error("it has an unknown command")]
    Command,
    /// A family or a transport that nobody has given a meaning.
    #[error("it has an unknown address family or transport protocol")]
    Family,
    /// It announces more than is read.
    #[error("it announces {0} bytes, more than the {HEADER_LIMIT} that a header may have")]
    TooLong(usize),
    /// Its length leaves no room for the addresses of its family.
    #[error("it is too short for its addresses")]
    TooShort,
    /// A type-length-value vector goes beyond the end.
    #[error("its type-length-value vectors do not fit into it")]
    Vectors,
    /// The unique id is longer than one may be.
    #[error("its unique id is longer than {MOST_UNIQUE_ID} bytes")]
    UniqueId,
    /// The datagram ends within it.
    #[error("the datagram ends within its PROXY protocol header")]
    Incomplete,
    /// It was changed on its way.
    #[error("its checksum is not that of its bytes")]
    Checksum,
}

/// The header at the start of a connection, of which `bytes` have come so far, and its length. Nothing as long as more of
/// it is to come: that is never so with [`HEADER_LIMIT`] bytes.
///
/// # Errors
/// As soon as no bytes that may follow can make a header of those that are there.
pub(crate) fn decode(bytes: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
    if begins_as(bytes, &SIGNATURE) {
        return decode_v2(bytes, STREAM);
    }
    if begins_as(bytes, &WORD) {
        return decode_v1(bytes);
    }
    Err(Malformed::Signature)
}

/// The header at the start of a datagram, and its length: of version 2, as there is no other for datagrams.
///
/// # Errors
/// When it is not there as a whole.
pub(crate) fn decode_datagram(bytes: &[u8]) -> Result<(Header, usize), Malformed> {
    if !begins_as(bytes, &SIGNATURE) {
        return Err(Malformed::Signature);
    }
    decode_v2(bytes, DATAGRAM)?.ok_or(Malformed::Incomplete)
}

/// Whether they do, as far as they are there.
fn begins_as(bytes: &[u8], start: &[u8]) -> bool {
    let length = bytes.len().min(start.len());
    bytes[..length] == start[..length]
}

fn decode_v1(bytes: &[u8]) -> Result<Option<(Header, usize)>, Malformed> {
    let seen = &bytes[..bytes.len().min(MOST_V1)];
    let Some(end) = seen.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
        return if seen.len() < MOST_V1 { Ok(None) } else { Err(Malformed::LineTooLong) };
    };
    match seen[end..] {
        [b'\r', b'\n', ..] => {}
        [b'\r'] if seen.len() < MOST_V1 => return Ok(None),
        [b'\r'] => return Err(Malformed::LineTooLong),
        _ => return Err(Malformed::LineBreak),
    }
    // It may have ended within the word itself.
    let line = seen[..end].strip_prefix(&WORD).ok_or(Malformed::Signature)?;
    Ok(Some((Header { addresses: addresses_v1(line)?, unique_id: None }, end + 2)))
}

/// What stands between `PROXY ` and the end of the line.
fn addresses_v1(line: &[u8]) -> Result<Option<Addresses>, Malformed> {
    // Whatever stands behind UNKNOWN is to be ignored, and may be no text.
    if line == b"UNKNOWN" || line.starts_with(b"UNKNOWN ") {
        return Ok(None);
    }
    let (protocol, fields) = line.split_at(line.iter().position(|byte| *byte == b' ').unwrap_or(line.len()));
    let text = || std::str::from_utf8(fields.strip_prefix(b" ")?).ok();
    match protocol {
        b"TCP4" => text().and_then(fields_v1::<Ipv4Addr>),
        b"TCP6" => text().and_then(fields_v1::<Ipv6Addr>),
        _ => return Err(Malformed::Protocol),
    }
    .map(Some)
    .ok_or(Malformed::Fields)
}

/// `A` is what the protocol says, and what the client's address has to be. That of the listener may be of the other family:
/// nginx goes by the client alone, whom a proxy before it may have named.
fn fields_v1<A: FromStr + Into<IpAddr>>(text: &str) -> Option<Addresses> {
    let mut fields = text.split(' ');
    let source = fields.next()?.parse::<A>().ok()?.into();
    let destination = fields.next()?.parse::<IpAddr>().ok()?;
    let mut port = || port_v1(fields.next()?);
    let (source_port, destination_port) = (port()?, port()?);
    fields.next().is_none().then(|| Addresses {
        source: SocketAddr::new(source, source_port),
        destination: SocketAddr::new(destination, destination_port),
    })
}

/// Digits alone, and no zero before others.
fn port_v1(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

/// `transport` is what addresses have to be about to count.
fn decode_v2(bytes: &[u8], transport: u8) -> Result<Option<(Header, usize)>, Malformed> {
    // As early as it is known.
    let Some(&version_command) = bytes.get(12) else { return Ok(None) };
    if version_command >> 4 != 2 {
        return Err(Malformed::Version);
    }
    let is_local = match version_command & 0xf {
        0 => true,
        1 => false,
        _ => return Err(Malformed::Command),
    };
    let Some(&family_transport) = bytes.get(13) else { return Ok(None) };
    // The header of a connection of the sender's own is skipped, whatever its family.
    if !is_local && (family_transport >> 4 > 3 || family_transport & 0xf > 2) {
        return Err(Malformed::Family);
    }
    let Some(&[high, low]) = bytes.get(14..FIXED).and_then(<[u8]>::first_chunk) else { return Ok(None) };
    let length = FIXED + usize::from(u16::from_be_bytes([high, low]));
    if length > HEADER_LIMIT {
        return Err(Malformed::TooLong(length));
    }
    let end_of_addresses = FIXED
        + match family_transport >> 4 {
            _ if is_local => 0,
            1 => 12,
            2 => 36,
            3 => UNIX_ADDRESSES,
            _ => 0,
        };
    if length < end_of_addresses {
        return Err(Malformed::TooShort);
    }
    let Some(header) = bytes.get(..length) else { return Ok(None) };
    if is_local {
        // What it holds is to be discarded. Only a checksum that can be found is held against it.
        if family_transport == 0 && vectors(header, FIXED) == Err(Malformed::Checksum) {
            return Err(Malformed::Checksum);
        }
        return Ok(Some((Header { addresses: None, unique_id: None }, length)));
    }
    let block = &header[FIXED..end_of_addresses];
    let addresses = match (family_transport >> 4, family_transport & 0xf == transport) {
        (1, true) => addresses_v2::<4>(block),
        (2, true) => addresses_v2::<16>(block),
        _ => None,
    };
    let unique_id = vectors(header, end_of_addresses)?.map(|range| header[range].into());
    Ok(Some((Header { addresses, unique_id }, length)))
}

/// Two addresses of so many bytes, and two ports.
fn addresses_v2<const SIZE: usize>(block: &[u8]) -> Option<Addresses>
where
    [u8; SIZE]: Into<IpAddr>,
{
    let (source, block) = block.split_first_chunk::<SIZE>()?;
    let (destination, block) = block.split_first_chunk::<SIZE>()?;
    let (source_port, block) = block.split_first_chunk()?;
    let destination_port = block.first_chunk()?;
    Some(Addresses {
        source: SocketAddr::new((*source).into(), u16::from_be_bytes(*source_port)),
        destination: SocketAddr::new((*destination).into(), u16::from_be_bytes(*destination_port)),
    })
}

/// Walks over the type-length-value vectors of a header, which begin `at`. Where the unique id is, if it has one.
fn vectors(header: &[u8], mut at: usize) -> Result<Option<Range<usize>>, Malformed> {
    let (mut unique_id, mut checksum) = (None, None);
    while at < header.len() {
        let Some(&[kind, high, low]) = header[at..].first_chunk() else { return Err(Malformed::Vectors) };
        let value = at + 3..at + 3 + usize::from(u16::from_be_bytes([high, low]));
        at = value.end;
        if at > header.len() || kind == TYPE_CRC32C && value.len() != 4 {
            return Err(Malformed::Vectors);
        }
        match kind {
            TYPE_CRC32C => checksum = Some(value),
            TYPE_UNIQUE_ID if value.len() > MOST_UNIQUE_ID => return Err(Malformed::UniqueId),
            TYPE_UNIQUE_ID => unique_id = Some(value),
            _ => {}
        }
    }
    if let Some(range) = checksum {
        // It was made with zeros in its place.
        let made = crc32c::crc32c_append(crc32c::crc32c(&header[..range.start]), &[0; 4]);
        let made = crc32c::crc32c_append(made, &header[range.end..]);
        if header[range] != made.to_be_bytes() {
            return Err(Malformed::Checksum);
        }
    }
    Ok(unique_id)
}

//! The header of the PROXY protocol, versions 1 and 2: what stands before the first words of a connection that somebody
//! relays, and says who the client is. Bytes to values and back; no sockets.
//!
//! The format is <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>. Crates that read it were tried: those at
//! hand take lines that are none (`PROXYxTCP4`, ports with a sign, `UNKNOWNfoo`), have no limit below 64 KiB, wait for more
//! where nothing can make a header of what is there, and leave the checksum to the caller. The tests compare with two.

mod decode;
mod encode;

use std::net::SocketAddr;

pub(crate) use decode::{Malformed, decode, decode_datagram};
pub(crate) use encode::{encode, encode_datagram};

/// Bytes that a header may have, whatever its length says: addresses take 16 to 232, a name and a certificate's subject
/// some hundred more. Who announces more is refused at once.
pub(crate) const HEADER_LIMIT: usize = 4 * 1024;

/// Bytes of a header of version 1 at most, with its end of line.
const MOST_V1: usize = 107;

/// Bytes of a unique id at most.
const MOST_UNIQUE_ID: usize = 128;

/// What a header of version 2 begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// What a header of version 1 begins with.
const WORD: [u8; 6] = *b"PROXY ";

/// Bytes of a header of version 2 before its addresses.
const FIXED: usize = 16;

/// The addresses of two UNIX sockets.
const UNIX_ADDRESSES: usize = 216;

/// The transports that addresses of a header of version 2 are about.
const STREAM: u8 = 1;
const DATAGRAM: u8 = 2;

const TYPE_CRC32C: u8 = 0x03;
const TYPE_UNIQUE_ID: u8 = 0x05;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// The client and the address that it asked for; nothing where the header says that it is about the connection
    /// itself (LOCAL), does not know (UNKNOWN, UNSPEC), or speaks of another transport than that which it came by, or of none over IP.
    pub(crate) addresses: Option<Addresses>,
    /// What identifies the connection beyond its addresses, if that is there.
    pub(crate) unique_id: Option<Box<[u8]>>,
}

/// Both ends of the connection that the client made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
}

#[cfg(test)]
mod tests;

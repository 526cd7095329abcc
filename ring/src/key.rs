//! What is looked up in a ring: a position in the hash space. The key of a client is made here from its address; a policy
//! that hashes something else makes its key from the raw hash.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use xxhash_rust::xxh3::xxh3_64;

use crate::identity::canonical;

/// A position in the hash space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key(u64);

impl Key {
    /// The key of a client: xxh3-64 with seed 0 of the 16 canonical bytes of its address, IPv4 as IPv4-mapped IPv6
    /// ("ring format 1"). The client's port is no part of it: all its connections go to one server.
    #[inline]
    #[must_use]
    pub fn of_ip(ip: IpAddr) -> Self {
        Self(xxh3_64(&canonical(ip)))
    }

    /// The key of one connection of a client: as [`of_ip`](Self::of_ip), with the two bytes of the port, big-endian, behind
    /// the address. Connections of one client then go to different servers.
    #[must_use]
    pub fn of_addr(addr: SocketAddr) -> Self {
        let mut bytes = [0; 18];
        bytes[..16].copy_from_slice(&canonical(addr.ip()));
        bytes[16..].copy_from_slice(&addr.port().to_be_bytes());
        Self(xxh3_64(&bytes))
    }

    /// The position itself.
    #[inline]
    #[must_use]
    pub fn hash(self) -> u64 {
        self.0
    }
}

/// From a hash that was made elsewhere; it has to be spread evenly over the 64 bits.
impl From<u64> for Key {
    fn from(hash: u64) -> Self {
        Self(hash)
    }
}

/// The 16 hexadecimal digits of the position.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_and_plain_ipv4_have_one_key() {
        let plain = Key::of_ip("192.0.2.7".parse().unwrap());
        let mapped = Key::of_ip("::ffff:192.0.2.7".parse().unwrap());
        assert_eq!(plain, mapped);
        assert_eq!(Key::from(plain.hash()), plain);
        assert_eq!(Key::from(0xab).to_string(), "00000000000000ab");
    }

    #[test]
    fn the_port_of_a_connection_counts_and_the_spelling_of_its_address_does_not() {
        let key = |text: &str| Key::of_addr(text.parse().unwrap());
        assert_eq!(key("192.0.2.7:80"), key("[::ffff:192.0.2.7]:80"));
        assert_ne!(key("192.0.2.7:80"), key("192.0.2.7:81"));
        assert_ne!(key("192.0.2.7:80"), Key::of_ip("192.0.2.7".parse().unwrap()));
    }
}

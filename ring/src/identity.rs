//! Who a server is: its address and port as 18 canonical bytes. Not its weight, not its name, not its place in a list.
//! Made wherever a server enters the daemon; the point hashes, the order of ties and the digest all rest on these bytes.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The 18 canonical bytes of a server: 16 of address, IPv4 as IPv4-mapped IPv6 (`::ffff:a.b.c.d`), then the port, all
/// big-endian ("ring format 1", `docs/ring-format-1.md`).
///
/// The order is the order of the bytes. `10.0.0.1:80` and `[::ffff:10.0.0.1]:80` are the same identity. The scope and
/// the flow label of an IPv6 socket address are no part of it: they mean something on one machine only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity([u8; 18]);

impl Identity {
    /// The canonical bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 18] {
        &self.0
    }

    /// The address and port again; an IPv4-mapped address comes back as IPv4, scope and flow label as 0.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        let [ip @ .., high, low] = self.0;
        SocketAddr::new(IpAddr::V6(Ipv6Addr::from(ip)).to_canonical(), u16::from_be_bytes([high, low]))
    }

    /// The hash of one of the server's points: xxh3-64 of the canonical bytes with the replica number as seed.
    ///
    /// A server of weight `w` has the replicas `0 .. w * points_per_weight`, so a greater weight only adds points.
    #[must_use]
    pub fn point(&self, replica: u32) -> u64 {
        xxh3_64_with_seed(&self.0, u64::from(replica))
    }
}

impl From<SocketAddr> for Identity {
    fn from(addr: SocketAddr) -> Self {
        let mut bytes = [0; 18];
        let (ip, port) = bytes.split_at_mut(16);
        ip.copy_from_slice(&canonical(addr.ip()));
        port.copy_from_slice(&addr.port().to_be_bytes());
        Self(bytes)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.addr().fmt(f)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({self})")
    }
}

/// The 16 canonical bytes of an address, big-endian, IPv4 as IPv4-mapped IPv6. Servers and clients share them.
pub(crate) fn canonical(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddrV6;

    fn identity(text: &str) -> Identity {
        Identity::from(text.parse::<SocketAddr>().unwrap())
    }

    #[test]
    fn mapped_and_plain_ipv4_are_one_identity() {
        assert_eq!(identity("10.0.0.1:80"), identity("[::ffff:10.0.0.1]:80"));
        assert_ne!(identity("10.0.0.1:80"), identity("10.0.0.1:81"));
        assert_ne!(identity("10.0.0.1:80"), identity("[::10.0.0.1]:80"));
        assert_eq!(identity("[::ffff:10.0.0.1]:80").to_string(), "10.0.0.1:80");
    }

    #[test]
    fn scope_and_flow_label_are_no_part_of_it() {
        let scoped = SocketAddrV6::new("fe80::1".parse().unwrap(), 443, 7, 3);
        assert_eq!(Identity::from(SocketAddr::from(scoped)), identity("[fe80::1]:443"));
    }

    #[test]
    fn order_is_the_order_of_the_bytes() {
        // Text would sort 10.0.0.10 before 10.0.0.9, and port 80 after port 443.
        assert!(identity("10.0.0.9:80") < identity("10.0.0.10:80"));
        assert!(identity("10.0.0.9:80") < identity("10.0.0.9:443"));
        assert!(identity("10.0.0.9:443") < identity("[2001:db8::1]:80"));
        assert_eq!(format!("{:?}", identity("[2001:db8::1]:80")), "Identity([2001:db8::1]:80)");
    }
}

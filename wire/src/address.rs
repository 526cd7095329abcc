//! Addresses of servers and listeners, as both programs compare and check them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// What is wrong with an address that no server can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AddressFault {
    /// Port 0.
    PortZero,
    /// `0.0.0.0` or `::`.
    Unspecified,
    /// Another address in 0.0.0.0/8.
    ThisNetwork,
    /// fe80::/10: it means nothing without an interface, and an identity has none.
    LinkLocal,
    /// A multicast group.
    Multicast,
    /// The broadcast address.
    Broadcast,
}

/// Checks that a server can have this address.
///
/// # Errors
/// Says which rule it breaks.
pub fn check_address(server: SocketAddr) -> Result<(), AddressFault> {
    let ip = server.ip().to_canonical();
    if server.port() == 0 {
        Err(AddressFault::PortZero)
    } else if ip.is_unspecified() {
        Err(AddressFault::Unspecified)
    } else if matches!(ip, IpAddr::V4(v4) if v4.octets()[0] == 0) {
        Err(AddressFault::ThisNetwork)
    } else if matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        Err(AddressFault::LinkLocal)
    } else if ip.is_multicast() {
        Err(AddressFault::Multicast)
    } else if matches!(ip, IpAddr::V4(v4) if v4.is_broadcast()) {
        Err(AddressFault::Broadcast)
    } else {
        Ok(())
    }
}

impl fmt::Display for AddressFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PortZero => "port 0 cannot be connected to",
            Self::Unspecified => "it is the unspecified address, which names no host",
            Self::ThisNetwork => "addresses of 0.0.0.0/8 name no host",
            Self::LinkLocal => "it is link-local and names a host only together with an interface",
            Self::Multicast => "it is a multicast group, not one host",
            Self::Broadcast => "it is the broadcast address, not one host",
        })
    }
}

/// The address as it is compared and hashed: IPv4 in its own form, without the scope and flow of IPv6.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Whether the kernel refuses to listen at both, as balancerd binds them. A wildcard includes the addresses of its family;
/// the IPv6 one is bound for IPv6 alone where there is an IPv4 listener of that port.
#[must_use]
pub fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    let same_family = a.is_ipv4() == b.is_ipv4();
    one.port() == other.port() && one.port() != 0 && same_family && (a == b || a.is_unspecified() || b.is_unspecified())
}

/// Whether a connection to `address` would come to a listener: as far as addresses tell, without asking which ones the
/// machine has.
#[must_use]
pub fn answers_at(listen: SocketAddr, address: SocketAddr) -> bool {
    let (own, other) = (listen.ip().to_canonical(), address.ip().to_canonical());
    // The IPv6 wildcard takes IPv4 clients too.
    let takes_family = own.is_ipv6() || other.is_ipv4();
    let loops_back = own.is_unspecified() && takes_family && other.is_loopback();
    listen.port() == address.port() && (own == other || loops_back)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_no_server_can_have_are_named() {
        for (address, fault) in [
            ("10.0.0.1:0", Err(AddressFault::PortZero)),
            ("0.0.0.0:80", Err(AddressFault::Unspecified)),
            ("[::]:80", Err(AddressFault::Unspecified)),
            ("[::ffff:0.0.0.0]:80", Err(AddressFault::Unspecified)),
            ("0.1.2.3:80", Err(AddressFault::ThisNetwork)),
            ("[fe80::1]:80", Err(AddressFault::LinkLocal)),
            ("224.0.0.1:80", Err(AddressFault::Multicast)),
            ("[ff02::1]:80", Err(AddressFault::Multicast)),
            ("255.255.255.255:80", Err(AddressFault::Broadcast)),
            ("10.0.0.1:80", Ok(())),
            ("[2001:db8::1]:65535", Ok(())),
            ("127.0.0.1:1", Ok(())),
        ] {
            assert_eq!(check_address(address.parse().expect("an address")), fault, "{address}");
        }
    }
}

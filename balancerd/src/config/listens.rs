//! The addresses that the services of a configuration file listen on: which of them cannot be bound together, and which
//! servers would be the balancer itself. As the kernel has it for the sockets of `event::Acceptor`: a wildcard takes every
//! address of its family, and IPv4-mapped addresses are IPv4. An IPv6 wildcard is bound for IPv6 alone where there is an
//! IPv4 address of its port.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use wire::settings::{Protocol, Transport};

/// Who has bound what. The ports of TCP are none of UDP.
#[derive(Debug, Default)]
pub(super) struct Listens<'d> {
    tcp: Bound<'d>,
    udp: Bound<'d>,
}

/// The same of one transport.
#[derive(Debug, Default)]
struct Bound<'d> {
    exact: HashMap<Exact, Holder<'d>>,
    ports: HashMap<u16, Port<'d>>,
}

/// An address, its port, and its interface if it is link-local.
type Exact = (IpAddr, u16, u32);

/// The first holder of each kind.
#[derive(Debug, Default)]
struct Port<'d> {
    ipv6: Option<Holder<'d>>,
    ipv4: Option<Holder<'d>>,
    wildcard_ipv4: Option<Holder<'d>>,
    wildcard_ipv6: Option<Holder<'d>>,
}

/// A service, and an address of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holder<'d> {
    pub(super) service: &'d str,
    pub(super) address: SocketAddr,
    /// Where the file says so.
    pub(super) at: usize,
}

impl<'d> Listens<'d> {
    /// Takes an address for a service, unless the kernel would refuse it because of another: then that one is the error.
    pub(super) fn claim(&mut self, protocol: Protocol, holder: Holder<'d>) -> Result<(), Holder<'d>> {
        protocol.transports().iter().try_for_each(|transport| match transport {
            Transport::Tcp => self.tcp.claim(holder),
            Transport::Udp => self.udp.claim(holder),
        })
    }

    /// The service that a connection to this address would come to, or a datagram, of those transports that are spoken there;
    /// as far as addresses tell, without asking which ones this machine has.
    pub(super) fn answers_at(&self, address: SocketAddr, spoken: &[Transport]) -> Option<Holder<'d>> {
        spoken.iter().find_map(|transport| match transport {
            Transport::Tcp => self.tcp.answers_at(address),
            Transport::Udp => self.udp.answers_at(address),
        })
    }
}

impl<'d> Bound<'d> {
    fn claim(&mut self, holder: Holder<'d>) -> Result<(), Holder<'d>> {
        let (ip, number, _) = exact(holder.address);
        if number == 0 {
            // The kernel chooses a free one.
            return Ok(());
        }
        let port = self.ports.entry(number).or_default();
        let taken = match (ip.is_ipv4(), ip.is_unspecified()) {
            (true, false) => port.wildcard_ipv4,
            (false, false) => port.wildcard_ipv6,
            (true, true) => port.ipv4,
            (false, true) => port.ipv6,
        };
        if let Some(other) = self.exact.get(&exact(holder.address)).copied().or(taken) {
            return Err(other);
        }
        self.exact.insert(exact(holder.address), holder);
        if ip.is_ipv4() { &mut port.ipv4 } else { &mut port.ipv6 }.get_or_insert(holder);
        if ip.is_unspecified() {
            let wildcard = if ip.is_ipv4() { &mut port.wildcard_ipv4 } else { &mut port.wildcard_ipv6 };
            wildcard.get_or_insert(holder);
        }
        Ok(())
    }

    fn answers_at(&self, address: SocketAddr) -> Option<Holder<'d>> {
        let (ip, number, _) = exact(address);
        let at_wildcard = || {
            let port = self.ports.get(&number).filter(|_| ip.is_loopback())?;
            port.wildcard_ipv6.or(port.wildcard_ipv4.filter(|_| ip.is_ipv4()))
        };
        self.exact.get(&exact(address)).copied().or_else(at_wildcard)
    }
}

fn exact(address: SocketAddr) -> Exact {
    let scope = match address {
        SocketAddr::V6(v6) => v6.scope_id(),
        SocketAddr::V4(_) => 0,
    };
    (address.ip().to_canonical(), address.port(), scope)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::event::{Acceptor, Backlog};

    const ADDRESSES: [&str; 7] =
        ["0.0.0.0", "127.0.0.1", "127.0.0.2", "[::]", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:0.0.0.0]"];

    fn holder(service: &'static str, ip: &str, port: u16) -> Holder<'static> {
        Holder { service, address: format!("{ip}:{port}").parse().expect("an address"), at: 0 }
    }

    #[test]
    fn what_collides_is_what_the_kernel_refuses() {
        for one in ADDRESSES {
            for other in ADDRESSES {
                let family = |text| holder("", text, 0).address.ip().to_canonical().is_ipv4();
                let only_ipv6 = |own, other| !family(own) && family(other);
                // Somebody else may have the port that the kernel chose, in the other family.
                let by_kernel = (0..5).any(|_| {
                    let bound =
                        Acceptor::bind(holder("a", one, 0).address, only_ipv6(one, other), false, false, Backlog(1));
                    let bound = bound.expect("bound");
                    let port = bound.local_addr().expect("bound").port();
                    let second = holder("b", other, port).address;
                    match Acceptor::bind(second, only_ipv6(other, one), false, false, Backlog(1)) {
                        Ok(_) => true,
                        Err(error) if error.kind() == io::ErrorKind::AddrInUse => false,
                        Err(error) => panic!("{other}: {error}"),
                    }
                });
                let mut listens = Listens::default();
                assert_eq!(listens.claim(Protocol::Tcp, holder("a", one, 80)), Ok(()));
                assert_eq!(
                    listens.claim(Protocol::Tcp, holder("b", other, 80)).is_ok(),
                    by_kernel,
                    "{one} and {other}"
                );
                assert_eq!(listens.claim(Protocol::Tcp, holder("c", other, 81)), Ok(()), "another port");
            }
        }
    }

    #[test]
    fn port_0_never_collides() {
        let mut listens = Listens::default();
        assert_eq!(listens.claim(Protocol::Tcp, holder("a", "0.0.0.0", 0)), Ok(()));
        assert_eq!(listens.claim(Protocol::Tcp, holder("b", "0.0.0.0", 0)), Ok(()));
    }

    #[test]
    fn only_what_shares_a_transport_collides() {
        use Protocol::{Tcp, TcpAndUdp, Udp};
        for (one, other, collide) in [
            (Tcp, Tcp, true),
            (Tcp, Udp, false),
            (Udp, Tcp, false),
            (Udp, Udp, true),
            (TcpAndUdp, Tcp, true),
            (TcpAndUdp, Udp, true),
            (Tcp, TcpAndUdp, true),
            (Udp, TcpAndUdp, true),
        ] {
            let mut listens = Listens::default();
            assert_eq!(listens.claim(one, holder("a", "0.0.0.0", 53)), Ok(()));
            assert_eq!(listens.claim(other, holder("b", "127.0.0.1", 53)).is_err(), collide, "{one} and {other}");
        }
    }

    #[test]
    fn a_server_is_looked_for_among_the_listeners_of_the_transports_that_it_is_spoken_to_by() {
        for protocol in Protocol::ALL {
            let mut listens = Listens::default();
            listens.claim(protocol, holder("a", "0.0.0.0", 53)).expect("free");
            for spoken in Protocol::ALL {
                let found = listens.answers_at(holder("", "127.0.0.1", 53).address, spoken.transports());
                assert_eq!(found.is_some(), protocol.overlaps(spoken), "{protocol} and {spoken}");
            }
        }
    }

    #[test]
    fn a_wildcard_answers_at_loopback_addresses_of_its_family() {
        for (listen, server, answers) in [
            ("0.0.0.0", "127.0.0.1", true),
            ("0.0.0.0", "[::1]", false),
            ("0.0.0.0", "10.0.0.1", false),
            ("[::]", "127.0.0.1", true),
            ("[::]", "[::1]", true),
            ("[::]", "[2001:db8::1]", false),
            ("10.0.0.1", "[::ffff:10.0.0.1]", true),
            ("10.0.0.1", "10.0.0.2", false),
        ] {
            let mut listens = Listens::default();
            listens.claim(Protocol::Tcp, holder("a", listen, 80)).expect("free");
            let found = |port| listens.answers_at(holder("", server, port).address, &[Transport::Tcp]).is_some();
            assert_eq!((found(80), found(81)), (answers, false), "{listen} and {server}");
        }
    }
}

//! How many sessions each client of a service has. A client is an IPv4 address, or an IPv6 network: whoever has one IPv6
//! address has a whole network of them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};

/// The sessions of each client.
#[derive(Debug)]
pub(super) struct Clients {
    /// By address: what they are counted by may change while they are there.
    addresses: HashMap<IpAddr, u32>,
    /// Those of IPv6 by network, unless each address is one of its own.
    networks: HashMap<Ipv6Addr, u32>,
    /// Bits of an IPv6 address that say which network it is in.
    bits: u8,
}

impl Clients {
    /// None yet.
    pub(super) fn new(bits: u8) -> Self {
        Self { addresses: HashMap::new(), networks: HashMap::new(), bits }
    }

    /// Sessions of the client that an address belongs to.
    pub(super) fn count(&self, address: IpAddr) -> u32 {
        let count = match self.network(address) {
            Some(network) => self.networks.get(&network),
            None => self.addresses.get(&address),
        };
        count.copied().unwrap_or(0)
    }

    /// A session of this address began.
    pub(super) fn came(&mut self, address: IpAddr) {
        *self.addresses.entry(address).or_default() += 1;
        if let Some(network) = self.network(address) {
            *self.networks.entry(network).or_default() += 1;
        }
    }

    /// A session of this address ended.
    pub(super) fn left(&mut self, address: IpAddr) {
        less(self.addresses.entry(address));
        if let Some(network) = self.network(address) {
            less(self.networks.entry(network));
        }
    }

    /// Counts clients of IPv6 by so many bits from now on, those who are there too.
    pub(super) fn count_by(&mut self, bits: u8) {
        if bits == self.bits {
            return;
        }
        self.bits = bits;
        let mut networks = HashMap::new();
        for (address, count) in &self.addresses {
            if let Some(network) = self.network(*address) {
                *networks.entry(network).or_default() += count;
            }
        }
        self.networks = networks;
    }

    /// Whether nobody has a session.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.networks.is_empty()
    }

    /// The network of an address that is counted by it.
    fn network(&self, address: IpAddr) -> Option<Ipv6Addr> {
        let IpAddr::V6(address) = address else { return None };
        let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
        (self.bits < 128).then(|| Ipv6Addr::from_bits(address.to_bits() & mask))
    }
}

fn less<K>(entry: Entry<'_, K, u32>) {
    if let Entry::Occupied(mut entry) = entry {
        *entry.get_mut() -= 1;
        if *entry.get() == 0 {
            entry.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_client_of_ipv6_is_a_network_and_one_of_ipv4_an_address() {
        let mut clients = Clients::new(64);
        for address in ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "10.0.0.1", "10.0.0.2"] {
            clients.came(ip(address));
        }
        let counts = |clients: &Clients| ["2001:db8::9", "2001:db8:0:1::9", "10.0.0.1"].map(|it| clients.count(ip(it)));
        assert_eq!(counts(&clients), [2, 1, 1]);
        clients.count_by(48);
        assert_eq!(counts(&clients), [3, 3, 1]);
        clients.count_by(0);
        assert_eq!(clients.count(ip("::1")), 3);
        clients.count_by(128);
        assert_eq!((counts(&clients), clients.count(ip("2001:db8::1"))), ([0, 0, 1], 1));
        clients.count_by(64);
        for address in ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "10.0.0.1", "10.0.0.2"] {
            clients.left(ip(address));
        }
        assert!(clients.is_empty());
    }
}

//! Which services, pools and servers there are, and the files that say so to balancerd and to HAProxy.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Result;
use bench::servers::free_port;

/// Sessions that HAProxy takes; it refuses to start when the limit of descriptors is too low for them.
const HAPROXY_SESSIONS: usize = 4000;
/// Servers in the last part of an address.
const PER_NETWORK: usize = 250;

/// The ports of everything: services have 127.0.2.x and the like, servers 127.16.x.y and above.
#[derive(Clone, Copy)]
pub(crate) struct Ports {
    services: u16,
    servers: u16,
}

impl Ports {
    /// Ports that nobody uses at the moment.
    pub(crate) fn free() -> Result<Self> {
        let services = free_port(Ipv4Addr::UNSPECIFIED)?;
        loop {
            let servers = free_port(Ipv4Addr::UNSPECIFIED)?;
            if servers != services {
                return Ok(Self { services, servers });
            }
        }
    }

    /// Where the program behind all servers listens: at every address of 127.0.0.0/8.
    pub(crate) fn all_servers(self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, self.servers)
    }

    /// Server number `index` of a generation; no two are the same.
    pub(crate) fn server(self, generation: u8, index: usize) -> SocketAddrV4 {
        let part = |number: usize| u8::try_from(number).expect("fewer than 250 * 256 servers");
        let ip = Ipv4Addr::new(127, 16 + generation, part(index / PER_NETWORK), part(index % PER_NETWORK) + 1);
        SocketAddrV4::new(ip, self.servers)
    }
}

/// As many services as pools, one on each.
#[derive(Clone)]
pub(crate) struct Layout {
    ports: Ports,
    /// Where each service listens.
    pub(crate) listens: Vec<SocketAddrV4>,
    /// The servers of each pool.
    pub(crate) pools: Vec<Vec<SocketAddrV4>>,
}

impl Layout {
    /// So many pools of so many servers each.
    pub(crate) fn new(ports: Ports, pools: usize, servers: usize) -> Self {
        Self {
            ports,
            listens: (0..pools)
                .map(|pool| SocketAddrV4::new(Ipv4Addr::from_bits(0x7f00_0201 + pool as u32), ports.services))
                .collect(),
            pools: (0..pools)
                .map(|pool| (0..servers).map(|server| ports.server(0, pool * servers + server)).collect())
                .collect(),
        }
    }

    /// For a title.
    pub(crate) fn describe(&self) -> String {
        let servers = self.pools[0].len();
        match self.pools.len() {
            1 => format!("1 service on a pool of {servers} servers"),
            pools => format!("{pools} services on {pools} pools of {servers} servers"),
        }
    }

    /// How many servers there are.
    pub(crate) fn servers(&self) -> usize {
        self.pools.iter().map(Vec::len).sum()
    }

    /// The same with another first server in each pool.
    pub(crate) fn with_every_pool_changed(&self) -> Self {
        let mut changed = self.clone();
        for (index, pool) in changed.pools.iter_mut().enumerate() {
            pool[0] = self.ports.server(1, index);
        }
        changed
    }

    /// The same with none of the servers.
    pub(crate) fn with_other_servers(&self) -> Self {
        let mut changed = self.clone();
        for (index, server) in changed.pools.iter_mut().flatten().enumerate() {
            *server = self.ports.server(1, index);
        }
        changed
    }

    /// balancerd's file.
    pub(crate) fn balancerd_file(&self, policy: &str) -> String {
        let mut text = String::new();
        for (index, (listen, servers)) in self.listens.iter().zip(&self.pools).enumerate() {
            let _ = writeln!(text, "[service.s{index}]\nlisten = \"{listen}\"\npool = \"{}\"\n", pool_name(index));
            let _ = writeln!(text, "[pool.{}]\npolicy = \"{policy}\"\nservers = [", pool_name(index));
            for server in servers {
                let _ = writeln!(text, "    {{ address = \"{server}\" }},");
            }
            text.push_str("]\n\n");
        }
        text
    }

    /// HAProxy's file.
    pub(crate) fn haproxy_file(&self) -> String {
        let mut text = format!("global\n    nbthread 1\n    maxconn {HAPROXY_SESSIONS}\n");
        text.push_str("defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 1h\n    timeout server 1h\n");
        for (index, (listen, servers)) in self.listens.iter().zip(&self.pools).enumerate() {
            let _ = writeln!(text, "frontend s{index}\n    bind {listen}\n    default_backend {}", pool_name(index));
            let _ = writeln!(text, "backend {}\n    balance source\n    hash-type consistent", pool_name(index));
            for (number, server) in servers.iter().enumerate() {
                let _ = writeln!(text, "    server s{number} {server}");
            }
        }
        text
    }
}

/// What pool number `index` is called.
pub(crate) fn pool_name(index: usize) -> String {
    format!("p{index}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const PORTS: Ports = Ports { services: 1, servers: 2 };

    #[test]
    fn no_two_servers_are_the_same() {
        let layout = Layout::new(PORTS, 100, 100);
        let other = layout.with_other_servers();
        let all: BTreeSet<_> = layout.pools.iter().chain(&other.pools).flatten().collect();
        assert_eq!(all.len(), 20_000);
        assert!(all.iter().all(|server| server.ip().is_loopback()));
        assert_eq!(layout.listens.iter().collect::<BTreeSet<_>>().len(), 100);
    }

    #[test]
    fn in_every_changed_pool_one_server_is_another() {
        let layout = Layout::new(PORTS, 100, 100);
        let changed = layout.with_every_pool_changed();
        for (before, after) in layout.pools.iter().zip(&changed.pools) {
            assert_eq!(after.iter().filter(|server| !before.contains(server)).count(), 1);
        }
    }
}

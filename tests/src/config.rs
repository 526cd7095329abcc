//! Texts of configuration files, section by section.

use std::net::SocketAddr;

use crate::{DatagramServer, Server};

/// A service at one address.
#[must_use]
pub fn service(name: &str, listen: SocketAddr, pool: &str) -> String {
    format!("[service.{name}]\nlisten = \"{listen}\"\npool = \"{pool}\"\n\n")
}

/// A service of datagrams with the name `udp` at one address, with these lines of keys, on the pool `default`.
#[must_use]
pub fn datagrams(listen: SocketAddr, keys: &str) -> String {
    format!("[service.udp]\nprotocol = \"udp\"\nlisten = \"{listen}\"\npool = \"default\"\n{}\n\n", keys.trim_end())
}

/// The pool `default` with these lines of keys, and these servers of datagrams, of weight 1.
pub fn datagram_pool<'a>(keys: &str, servers: impl IntoIterator<Item = &'a DatagramServer>) -> String {
    weighted("default", keys, servers.into_iter().map(|server| (server.address(), 1)))
}

/// A pool with these lines of keys, and these servers of weight 1.
pub fn pool<'a>(name: &str, keys: &str, servers: impl IntoIterator<Item = &'a Server>) -> String {
    weighted(name, keys, servers.into_iter().map(|server| (server.address(), 1)))
}

/// A pool with these lines of keys, and these servers of these weights.
pub fn weighted(name: &str, keys: &str, servers: impl IntoIterator<Item = (SocketAddr, u32)>) -> String {
    let server = |(address, weight)| format!("    {{ address = \"{address}\", weight = {weight} }},\n");
    let servers: String = servers.into_iter().map(server).collect();
    format!("[pool.{name}]\n{}\nservers = [\n{servers}]\n\n", keys.trim_end())
}

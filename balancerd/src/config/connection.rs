//! What services and pools of a configuration file say of connections: those of clients, those to servers, and the sockets
//! of both. `settings` calls it.

use std::net::IpAddr;

use toml::Spanned;
use wire::connection::{ClientSide, MAX_SOURCES, ServerSide, SocketSettings};

use super::section::{Faults, Section, line};
use super::value;

/// Reads what a service says of the connections of its clients.
pub(super) fn read_client_side(service: &Section<'_, '_>, faults: &mut Faults<'_>) -> ClientSide {
    let default = ClientSide::default();
    ClientSide {
        idle_timeout_ms: service.take("idle_timeout", value::session_time, faults),
        half_closed_timeout_ms: service
            .take("half_closed_timeout", value::session_time, faults)
            .unwrap_or(default.half_closed_timeout_ms),
        max_age_ms: service.take("max_age", value::session_time, faults),
        backlog: service.take("backlog", value::backlog, faults).unwrap_or(default.backlog),
        defer_accept_ms: service.take("defer_accept", value::defer_accept, faults),
        fast_open: service.take("fast_open", value::fast_open, faults).unwrap_or(default.fast_open),
        socket: read_socket(service, faults),
    }
}

/// Reads what a pool says of the connections to its servers.
pub(super) fn read_server_side(pool: &Section<'_, '_>, faults: &mut Faults<'_>) -> ServerSide {
    let default = ServerSide::default();
    let transparent = pool.take("transparent", value::flag, faults).unwrap_or(default.transparent);
    if let (true, Some(one), Some(other)) = (transparent, pool.place("transparent"), pool.place("source")) {
        faults.note(one.max(other), || {
            let key = pool.path.key(if one > other { "transparent" } else { "source" });
            format!("{key}: transparent and source do not go together: both say where connections come from")
        });
    }
    ServerSide {
        connect_timeout_ms: pool.take("connect_timeout", value::connect_timeout, faults),
        tries: pool.take("tries", value::tries, faults).unwrap_or(default.tries),
        replay: pool.take("replay", value::replay, faults).unwrap_or(default.replay),
        source: read_source(pool, faults),
        transparent,
        fast_open: pool.take("fast_open", value::flag, faults).unwrap_or(default.fast_open),
        mark: pool.take("mark", value::mark, faults),
        device: pool.take("device", value::device, faults),
        socket: read_socket(pool, faults),
    }
}

fn read_source(pool: &Section<'_, '_>, faults: &mut Faults<'_>) -> Vec<IpAddr> {
    pool.not_empty("source", "to leave it to the kernel leave the key out", faults);
    let source = pool.list("source", value::source, faults);
    if let Some(value) = pool.value("source").filter(|_| source.len() > MAX_SOURCES) {
        faults.note(value.span().start, || {
            format!("{}: {} are more than there may be, {MAX_SOURCES}", pool.path.key("source"), source.len())
        });
    }
    let text = faults.text();
    for (index, address) in source.iter().enumerate() {
        if let Some(first) = source[..index].iter().find(|other| other.get_ref() == address.get_ref()) {
            faults.note(address.span().start, || {
                let (key, line) = (pool.path.key("source").element(index), line(text, first.span().start));
                format!("{key}: {} is there already, in line {line}", address.get_ref())
            });
        }
    }
    source.into_iter().map(Spanned::into_inner).collect()
}

/// What both say: the keys are called the same.
fn read_socket(section: &Section<'_, '_>, faults: &mut Faults<'_>) -> SocketSettings {
    let default = SocketSettings::default();
    SocketSettings {
        keepalive_ms: section.take("keepalive", value::keepalive, faults).unwrap_or(default.keepalive_ms),
        user_timeout_ms: section.take("user_timeout", value::user_timeout, faults),
        congestion: section.take("congestion", value::congestion, faults),
        send_buffer: section.take("send_buffer", value::buffer, faults),
        receive_buffer: section.take("receive_buffer", value::buffer, faults),
    }
}

#[cfg(test)]
mod tests;

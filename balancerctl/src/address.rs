//! Addresses as people type them: an IP address or a host name beside a port. Host names are looked up here, once.
//!
//! The daemon gets nothing but addresses. What it would refuse for sure is refused here already, in its own words, so
//! that no lookup and no daemon is needed to hear of it.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};

use wire::Refusal;
use wire::address::check_address;

/// Why text is no address. Each says what to type instead.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddressError {
    /// Nothing was given.
    #[error("the address is empty; give an IP address or a host name")]
    Empty,
    /// Address and port in one word.
    #[error("`{given}` is an address and a port in one word; give them as two: `{host} {port}`")]
    PortInside { given: String, host: String, port: String },
    /// A scoped IPv6 address.
    #[error("`{0}` has a zone (%), which means something on one machine only; give an address without one")]
    Zone(String),
    /// It looks like an IP address and is none.
    #[error("`{0}` is not an IP address; write 192.0.2.1, or 2001:db8::1 with or without brackets")]
    NoIp(String),
    /// Not even a host name.
    #[error("`{0}` is neither an IP address nor a host name")]
    NoName(String),
    /// A link-local server.
    #[error(
        "{0} is a link-local address, which cannot be reached without naming an interface; give another of its addresses"
    )]
    LinkLocal(Ipv6Addr),
    /// The resolver does not know it.
    #[error("`{name}` cannot be looked up: {}; check the name, or give an IP address", brief(.source))]
    Unresolved { name: String, source: io::Error },
}

/// Why an address cannot be a server's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    /// It is none.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The daemon would refuse it.
    #[error("{0}")]
    Refused(Refusal),
}

/// An address that was typed, and what else it could have meant.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// The address that is taken.
    pub(crate) ip: IpAddr,
    /// Why others were not, when a name has several.
    pub(crate) note: Option<String>,
}

/// What a word on the command line is.
#[derive(Debug, PartialEq, Eq)]
enum Host<'a> {
    Ip(IpAddr),
    Name(&'a str),
}

/// The address of a host that a balancer may listen on, or that a client has.
///
/// # Errors
/// When it is no address and no name that can be looked up.
pub(crate) fn find(host: &str) -> Result<Found, AddressError> {
    match parse(host)? {
        Host::Ip(ip) => Ok(Found { ip, note: None }),
        Host::Name(name) => look_up(name),
    }
}

/// The address and port of a server.
///
/// # Errors
/// As [`find`], and when no server can have that address or port.
pub(crate) fn find_server(host: &str, port: u16) -> Result<(SocketAddr, Option<String>), ServerError> {
    let Found { ip, note } = find(host)?;
    let server = SocketAddr::new(ip, port);
    check_address(server).map_err(|fault| ServerError::Refused(Refusal::Unaddressable { server, fault }))?;
    match ip {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Err(AddressError::LinkLocal(v6).into()),
        _ => Ok((server, note)),
    }
}

/// The address of a client, and the port behind it, as logs write it; 0 where there is none.
///
/// # Errors
/// As [`find`].
pub(crate) fn find_client(text: &str) -> Result<(Found, u16), AddressError> {
    match text.parse::<SocketAddr>() {
        Ok(address) => Ok((find(&address.ip().to_string())?, address.port())),
        Err(_) => Ok((find(text)?, 0)),
    }
}

fn parse(text: &str) -> Result<Host<'_>, AddressError> {
    if text.is_empty() {
        return Err(AddressError::Empty);
    }
    if text.contains('%') {
        return Err(AddressError::Zone(text.into()));
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(Host::Ip(ip.to_canonical()));
    }
    if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return match inner.parse::<Ipv6Addr>() {
            Ok(ip) => Ok(Host::Ip(IpAddr::V6(ip).to_canonical())),
            Err(_) => Err(AddressError::NoIp(text.into())),
        };
    }
    if let Some((host, port)) = text.rsplit_once(':') {
        let alone = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        let both = port.parse::<u16>().is_ok() && (alone != host || !alone.contains(':')) && parse(alone).is_ok();
        return Err(if both {
            AddressError::PortInside { given: text.into(), host: alone.into(), port: port.into() }
        } else if text.contains("//") {
            AddressError::NoName(text.into())
        } else {
            AddressError::NoIp(text.into())
        });
    }
    if ends_in_a_number(text) {
        return Err(AddressError::NoIp(text.into()));
    }
    if is_name(text) { Ok(Host::Name(text)) } else { Err(AddressError::NoName(text.into())) }
}

/// The C library takes `10`, `0x7f.1` and `127.1` for IPv4 addresses. Nobody who types them here means that.
fn ends_in_a_number(text: &str) -> bool {
    let last = text.strip_suffix('.').unwrap_or(text).rsplit('.').next().unwrap_or_default();
    let digits = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    match digits {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

/// RFC 1123, and the underscore that many networks use.
fn is_name(text: &str) -> bool {
    let labels = text.strip_suffix('.').unwrap_or(text);
    labels.len() <= 253
        && labels.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        })
}

fn look_up(name: &str) -> Result<Found, AddressError> {
    let failed = |source| AddressError::Unresolved { name: name.into(), source };
    let addresses = (name, 0).to_socket_addrs().map_err(failed)?.map(|address| address.ip().to_canonical());
    choose(name, addresses).ok_or_else(|| failed(io::Error::from(io::ErrorKind::NotFound)))
}

/// The resolver's first address: it sorts them by how well this machine reaches them (RFC 6724).
fn choose(name: &str, addresses: impl Iterator<Item = IpAddr>) -> Option<Found> {
    let mut all: Vec<IpAddr> = Vec::new();
    for ip in addresses {
        if !all.contains(&ip) {
            all.push(ip);
        }
    }
    let (&ip, others) = all.split_first()?;
    let note = (!others.is_empty()).then(|| {
        let others: Vec<String> = others.iter().map(ToString::to_string).collect();
        format!("{name} has {} addresses: {ip} is taken, not {}", all.len(), others.join(", "))
    });
    Some(Found { ip, note })
}

/// What the resolver said, without what the standard library puts before it.
fn brief(error: &io::Error) -> String {
    let text = error.to_string();
    text.strip_prefix("failed to lookup address information: ").unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn addresses_are_read_with_and_without_brackets() {
        for (text, address) in [
            ("10.0.0.1", "10.0.0.1"),
            ("0.0.0.0", "0.0.0.0"),
            ("::1", "::1"),
            ("[::1]", "::1"),
            ("::", "::"),
            ("[2001:DB8::0:1]", "2001:db8::1"),
            ("2001:db8::80", "2001:db8::80"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("[::ffff:a00:1]", "10.0.0.1"),
        ] {
            assert_eq!(parse(text).expect(text), Host::Ip(ip(address)), "{text}");
        }
    }

    #[test]
    fn names_are_names() {
        for name in ["localhost", "web-1.example.com", "a.b.", "web_1", "1and1.com", "x1", "beef", "0xyz"] {
            assert_eq!(parse(name).expect(name), Host::Name(name));
        }
    }

    #[test]
    fn what_is_no_address_is_named() {
        for (text, complaint) in [
            ("", "is empty"),
            ("10.0.0.1:80", "as two: `10.0.0.1 80`"),
            ("[::1]:80", "as two: `::1 80`"),
            ("web:80", "as two: `web 80`"),
            ("fe80::1%eth0", "has a zone"),
            ("[fe80::1%2]", "has a zone"),
            ("[::1", "not an IP address"),
            ("[10.0.0.1]", "not an IP address"),
            ("1::2::3", "not an IP address"),
            ("2001:db8:::80", "not an IP address"),
            ("256.0.0.1", "not an IP address"),
            ("10.0.0", "not an IP address"),
            ("10", "not an IP address"),
            ("0x7f000001", "not an IP address"),
            ("010.0.0.1", "not an IP address"),
            ("http://web/", "neither an IP address nor a host name"),
            ("we b", "neither an IP address nor a host name"),
            ("a..b", "neither an IP address nor a host name"),
            ("-a", "neither an IP address nor a host name"),
            ("*", "neither an IP address nor a host name"),
            ("bücher.example", "neither an IP address nor a host name"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(complaint), "{text}: {error}");
        }
    }

    #[test]
    fn no_server_has_nonsense_for_an_address() {
        for (host, port, complaint) in [
            ("10.0.0.1", 0, "port 0"),
            ("0.0.0.0", 80, "unspecified"),
            ("::", 80, "unspecified"),
            ("::ffff:0.0.0.0", 80, "unspecified"),
            ("224.0.0.1", 80, "multicast"),
            ("ff02::1", 80, "multicast"),
            ("255.255.255.255", 80, "broadcast"),
            ("fe80::1", 80, "link-local"),
        ] {
            let error = find_server(host, port).expect_err(host).to_string();
            assert!(error.contains(complaint), "{host} {port}: {error}");
        }
        let (server, note) = find_server("[2001:db8::1]", 65535).expect("an address");
        assert_eq!((server.to_string().as_str(), note), ("[2001:db8::1]:65535", None));
    }

    #[test]
    fn a_client_may_have_a_port() {
        for (text, address, port) in
            [("10.0.0.7:51234", "10.0.0.7", 51234), ("[::1]:9", "::1", 9), ("::ffff:10.0.0.7", "10.0.0.7", 0)]
        {
            let (found, found_port) = find_client(text).expect(text);
            assert_eq!((found.ip, found_port), (ip(address), port));
        }
    }

    #[test]
    fn the_first_of_several_addresses_is_taken_and_said() {
        let found = choose("web", [ip("10.0.0.1"), ip("10.0.0.1"), ip("::2")].into_iter()).expect("an address");
        assert_eq!(found.ip, ip("10.0.0.1"));
        assert_eq!(found.note.as_deref(), Some("web has 2 addresses: 10.0.0.1 is taken, not ::2"));
        let alone = choose("web", [ip("::2"), ip("::2")].into_iter()).expect("an address");
        assert_eq!(alone, Found { ip: ip("::2"), note: None });
        assert_eq!(choose("web", std::iter::empty()), None);
    }
}

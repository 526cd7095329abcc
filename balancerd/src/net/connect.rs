//! Beginning a connect towards a server: without waiting, not to ourselves, and whose fault it is when it fails.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use wire::connection::ServerSide;

use super::options;

/// What the log says when the source of a pool is not here.
pub(super) const NO_SOURCE: &str = "the pool's source is not an address of this machine, so no connection can come from it: \
    `ip address` shows those it has";

/// A connect that has begun.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) stream: TcpStream,
    /// Nothing has been sent yet: the first words that are written go with the SYN.
    pub(super) waits_for_words: bool,
}

/// Begins to connect without waiting. The socket is registered afterwards: one that is not connected reports a hang-up
/// for ever.
///
/// When there is something to be sent at once, the last acknowledgement of the handshake waits for it and goes in the
/// same segment. Only then: a server that speaks first would wait for an acknowledgement that nothing carries.
///
/// `side` is how the pool's connections are to be, for a `client`; of several sources it is the `nth`'s turn, and the others
/// are tried when it has no port left.
pub(super) fn begin_connect(
    address: SocketAddr,
    has_first_words: bool,
    side: &ServerSide,
    client: SocketAddr,
    nth: usize,
) -> Result<Begun, Errno> {
    of_sources(address, side, nth, |source| begin_from(address, has_first_words, side, client, source))
}

/// A socket for the datagrams of a `client` to a server, and for answers of that server alone. It hears of all that is known
/// on the way to speak against the server: without `RECVERR` the kernel tells of a closed port alone, and keeps to itself
/// that a host or network is not reached (udp(7), ip(7)). The rest as for [`begin_connect`].
pub(super) fn connect_datagrams(
    address: SocketAddr,
    side: &ServerSide,
    client: SocketAddr,
    nth: usize,
) -> Result<UdpSocket, Errno> {
    of_sources(address, side, nth, |source| {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = UdpSocket::from(socket(family(address), SockType::Datagram, flags, None)?);
        match address {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?,
            SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?,
        }
        options::set_connecting_datagrams(&socket, side, address, client, source)?;
        connect(socket.as_raw_fd(), &SockaddrStorage::from(address)).map_err(|errno| match errno {
            // What the kernel says when it finds no port to give.
            Errno::EAGAIN => Errno::EADDRNOTAVAIL,
            errno => errno,
        })?;
        if is_itself(socket.local_addr(), address) { Err(Errno::ECONNREFUSED) } else { Ok(socket) }
    })
}

/// Begins with the source whose turn it is, and goes on to the others while they have no port left.
fn of_sources<T>(
    address: SocketAddr,
    side: &ServerSide,
    nth: usize,
    begin: impl Fn(Option<IpAddr>) -> Result<T, Errno>,
) -> Result<T, Errno> {
    let sources: Vec<IpAddr> =
        side.source.iter().copied().filter(|source| source.is_ipv4() == address.is_ipv4()).collect();
    let mut result = Err(Errno::EADDRNOTAVAIL);
    for turn in 0..sources.len().max(1) {
        let source = sources.get((nth + turn) % sources.len().max(1)).copied();
        result = begin(source);
        if !matches!(result, Err(Errno::EADDRNOTAVAIL | Errno::EADDRINUSE)) {
            break;
        }
    }
    result
}

/// The source of a pool's connections to `address` that is not an address of this machine, where a connect failed with
/// `errno`: what the kernel says then is also what it says when ports run out. Asked only after a failure.
pub(super) fn missing_source(errno: Errno, address: SocketAddr, side: &ServerSide) -> Option<IpAddr> {
    if errno != Errno::EADDRNOTAVAIL {
        return None;
    }
    let is_missing = |source: &IpAddr| {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let Ok(socket) = socket(family(address), SockType::Datagram, flags, None) else { return false };
        // An address may be that of a device alone.
        let _ = side.device.as_ref().map(|device| setsockopt(&socket, sockopt::BindToDevice, &device.into()));
        bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(*source, 0))) == Err(Errno::EADDRNOTAVAIL)
    };
    side.source.iter().copied().filter(|source| source.is_ipv4() == address.is_ipv4()).find(is_missing)
}

fn family(address: SocketAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// A connect of our own, for no client, as a check makes it; the client's address is never its source.
pub(super) fn begin_own_connect(address: SocketAddr, side: &ServerSide, nth: usize) -> Result<TcpStream, Errno> {
    debug_assert!(!side.transparent, "there is no client");
    begin_connect(address, false, side, address, nth).map(|begun| begun.stream)
}

/// A socket of our own for datagrams, for no client, as [`begin_own_connect`].
pub(super) fn connect_own_datagrams(address: SocketAddr, side: &ServerSide, nth: usize) -> Result<UdpSocket, Errno> {
    debug_assert!(!side.transparent, "there is no client");
    connect_datagrams(address, side, address, nth)
}

fn begin_from(
    address: SocketAddr,
    has_first_words: bool,
    side: &ServerSide,
    client: SocketAddr,
    source: Option<IpAddr>,
) -> Result<Begun, Errno> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let stream = TcpStream::from(socket(family(address), SockType::Stream, flags, None)?);
    setsockopt(&stream, sockopt::TcpNoDelay, &true)?;
    options::set_connecting(&stream, side, address, client, source)?;
    let asks = has_first_words && side.fast_open;
    if asks {
        options::set_fast_open(&stream)?;
    }
    if has_first_words {
        // A socket that cannot do it sends one segment more.
        let _ = rustix::net::sockopt::set_tcp_quickack(&stream, false);
    }
    match connect(stream.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS) if is_connected_to_itself(&stream, address) => Err(Errno::ECONNREFUSED),
        // What is done at once towards a server is put off: the kernel has its cookie.
        begun @ (Ok(()) | Err(Errno::EINPROGRESS)) => Ok(Begun { stream, waits_for_words: asks && begun.is_ok() }),
        Err(errno) => Err(errno),
    }
}

/// Whether a connect to `address` would come back to one of our own listeners: a circle that takes every session there
/// may be. Asked before the connect, which would be in the listener's queue at once. The model refuses the addresses that
/// it can know of; which others this machine has, the kernel tells: a socket can be bound to no other.
pub(super) fn is_a_circle(address: SocketAddr, listening: impl IntoIterator<Item = SocketAddr>) -> bool {
    listening.into_iter().any(|own| {
        own.port() == address.port()
            && (own.ip() == address.ip() || own.ip().is_unspecified() && UdpSocket::bind((address.ip(), 0)).is_ok())
    })
}

/// Whether a socket is connected to itself. TCP allows it: where nobody listens on a port of this machine, the kernel may
/// choose that very port for the connecting end, and what the client sends would come back to it as an answer.
fn is_connected_to_itself(stream: &TcpStream, address: SocketAddr) -> bool {
    is_itself(stream.local_addr(), address)
}

fn is_itself(own: io::Result<SocketAddr>, address: SocketAddr) -> bool {
    address.port() >= FIRST_CHOSEN_PORT && own.is_ok_and(|own| own == address)
}

/// The kernel chooses no port below this one (`net.ipv4.ip_local_port_range`).
const FIRST_CHOSEN_PORT: u16 = 1024;

/// Whether a failed connect is the fault of this machine and not of the server.
pub(super) fn is_ours(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EADDRNOTAVAIL
            | Errno::EADDRINUSE
            | Errno::EAGAIN
            | Errno::EPERM
            | Errno::ENODEV
            | Errno::EMFILE
            | Errno::ENFILE
            | Errno::ENOBUFS
            | Errno::ENOMEM
    )
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::num::NonZeroU32;

    use nix::sys::socket::getsockopt;
    use wire::connection::SocketSettings;

    use super::*;

    /// A socket on a port of its own choosing that has connected to that very port.
    fn connected_to_itself() -> (TcpStream, SocketAddr) {
        let stream = TcpStream::from(
            socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket"),
        );
        bind(stream.as_raw_fd(), &SockaddrStorage::from("127.0.0.1:0".parse::<SocketAddr>().expect("an address")))
            .expect("bound");
        let own = stream.local_addr().expect("bound");
        connect(stream.as_raw_fd(), &SockaddrStorage::from(own)).expect("TCP allows it");
        (stream, own)
    }

    #[test]
    fn a_socket_that_is_connected_to_itself_is_found_out() {
        let (stream, own) = connected_to_itself();
        assert!(is_connected_to_itself(&stream, own));

        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let server = listener.local_addr().expect("bound");
        assert!(!is_connected_to_itself(&begin_own_connect(server, &ServerSide::default(), 0).expect("begun"), server));
    }

    #[test]
    fn a_connection_to_a_server_has_what_its_pool_says() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let server = listener.local_addr().expect("bound");
        let mut side = ServerSide { source: vec![[127, 0, 0, 9].into()], ..ServerSide::default() };
        side.socket = SocketSettings {
            user_timeout_ms: NonZeroU32::new(7000),
            congestion: Some("reno".to_owned()),
            send_buffer: NonZeroU32::new(16 * 1024),
            receive_buffer: NonZeroU32::new(8 * 1024),
            ..SocketSettings::default()
        };
        let stream = begin_connect(server, false, &side, server, 0).expect("begun").stream;
        assert_eq!(stream.local_addr().expect("connected").ip(), side.source[0]);
        assert_eq!(getsockopt(&stream, sockopt::TcpUserTimeout), Ok(7000));
        assert!(getsockopt(&stream, sockopt::TcpCongestion).expect("asked").to_string_lossy().starts_with("reno"));
        // The kernel doubles them, for what it needs itself.
        assert_eq!(getsockopt(&stream, sockopt::SndBuf), Ok(32 * 1024));
        assert_eq!(getsockopt(&stream, sockopt::RcvBuf), Ok(16 * 1024));
        assert!(stream.nodelay().expect("asked"));
    }

    #[test]
    fn datagrams_that_would_come_back_are_found_out() {
        let own = UdpSocket::bind("127.0.0.1:0").expect("bound");
        let address = own.local_addr().expect("bound");
        own.connect(address).expect("UDP allows it");
        assert!(is_itself(own.local_addr(), address));
        assert!(!is_itself(
            connect_own_datagrams(address, &ServerSide::default(), 0).expect("connected").local_addr(),
            address
        ));
    }

    #[test]
    fn a_circle_through_a_listener_of_our_own_is_found_out() {
        let parse = |text: &str| text.parse::<SocketAddr>().expect("an address");
        for (server, listening, circle) in [
            ("127.0.0.3:80", "0.0.0.0:80", true),
            ("127.0.0.3:80", "127.0.0.3:80", true),
            ("127.0.0.3:80", "0.0.0.0:81", false),
            ("127.0.0.3:80", "127.0.0.4:80", false),
            // An address of the documentation, which no machine has.
            ("192.0.2.1:80", "0.0.0.0:80", false),
        ] {
            assert_eq!(is_a_circle(parse(server), [parse(listening)]), circle, "{server} {listening}");
        }
    }

    #[test]
    fn our_own_shortages_are_not_a_servers_fault() {
        for errno in [Errno::EADDRNOTAVAIL, Errno::EMFILE, Errno::EPERM, Errno::ENODEV] {
            assert!(is_ours(errno), "{errno}");
        }
        for errno in [Errno::ECONNREFUSED, Errno::ETIMEDOUT, Errno::EHOSTUNREACH, Errno::ENETUNREACH] {
            assert!(!is_ours(errno), "{errno}");
        }
    }
}

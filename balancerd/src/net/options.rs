//! Options of sockets, as services and pools are set to them. A service's are set on its listener, once: accepted
//! sockets inherit them.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{IP_RECVFRAGSIZE, IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, IPV6_RECVFRAGSIZE};
use nix::sys::socket::{SockaddrStorage, bind, setsockopt, sockopt};
use rustix::net::AddressFamily;
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, ip_mtu, ip_mtu_discover, ipv6_mtu, ipv6_mtu_discover,
    set_ip_mtu_discover, set_ipv6_mtu_discover, socket_domain,
};
use wire::connection::{ClientSide, ServerSide, SocketSettings};
use wire::report::EndReason;

use crate::model::Line;

/// Questions that a silent peer is asked before it is given up.
const QUESTIONS: u32 = 6;

/// Asks a peer that is silent for so long whether it is there; 0 is never.
pub(super) fn set_keepalive(socket: impl AsFd, milliseconds: u64) -> Result<(), Errno> {
    setsockopt(&socket, sockopt::KeepAlive, &(milliseconds > 0))?;
    if milliseconds == 0 {
        return Ok(());
    }
    let seconds = |milliseconds: u64| u32::try_from(milliseconds.div_ceil(1000)).unwrap_or(u32::MAX);
    setsockopt(&socket, sockopt::TcpKeepIdle, &seconds(milliseconds))?;
    setsockopt(&socket, sockopt::TcpKeepInterval, &seconds(milliseconds / u64::from(QUESTIONS)).max(1))?;
    setsockopt(&socket, sockopt::TcpKeepCount, &QUESTIONS)
}

/// Sets what is not as the kernel has it by itself, the keepalive aside. An error says which option it was.
fn set_socket(socket: impl AsFd, settings: &SocketSettings) -> Result<(), (&'static str, Errno)> {
    let of = |name| move |errno| (name, errno);
    let others = of("user_timeout, send_buffer or receive_buffer");
    if let Some(name) = &settings.congestion {
        setsockopt(&socket, sockopt::TcpCongestion, &name.into()).map_err(of("congestion"))?;
    }
    if let Some(limit) = settings.user_timeout_ms {
        setsockopt(&socket, sockopt::TcpUserTimeout, &limit.get()).map_err(others)?;
    }
    set_buffers(socket, settings).map_err(others)
}

fn set_buffers(socket: impl AsFd, settings: &SocketSettings) -> Result<(), Errno> {
    if let Some(size) = settings.send_buffer {
        setsockopt(&socket, sockopt::SndBuf, &(size.get() as usize))?;
    }
    if let Some(size) = settings.receive_buffer {
        setsockopt(&socket, sockopt::RcvBuf, &(size.get() as usize))?;
    }
    Ok(())
}

/// Sets a socket, its keepalive as well.
///
/// # Errors
/// As [`set_listener`].
pub(super) fn set_named(socket: impl AsFd, settings: &SocketSettings) -> Result<(), (&'static str, Errno)> {
    set_keepalive(&socket, settings.keepalive_ms).map_err(|errno| ("keepalive", errno))?;
    set_socket(socket, settings)
}

/// Sets a listener, before it listens or later: what its next clients inherit.
///
/// # Errors
/// When the kernel does not have what is asked for, such as a congestion control. The name says which option it was.
pub(super) fn set_listener(socket: impl AsFd, side: &ClientSide) -> Result<(), (&'static str, Errno)> {
    let of = |name| move |errno| (name, errno);
    set_named(&socket, &side.socket)?;
    let seconds = side.defer_accept_ms.map_or(0, |limit| Duration::from_millis(limit.get()).as_secs().max(1));
    raw::set(&socket, IPPROTO_TCP, nix::libc::TCP_DEFER_ACCEPT, seconds as i32).map_err(of("defer_accept"))?;
    raw::set(&socket, IPPROTO_TCP, nix::libc::TCP_FASTOPEN, side.fast_open as i32).map_err(of("fast_open"))
}

/// Sets a TCP socket that is about to connect to `server` for `client`; `source` is where it is to come from. What is not
/// set costs no call.
pub(super) fn set_connecting(
    socket: &TcpStream,
    side: &ServerSide,
    server: SocketAddr,
    client: SocketAddr,
    source: Option<IpAddr>,
) -> Result<(), Errno> {
    set_socket(socket, &side.socket).map_err(|(_, errno)| errno)?;
    set_outgoing(socket, side, server, client, source)
}

/// Sets a UDP socket in the same way, as far as there is something to be set.
pub(super) fn set_connecting_datagrams(
    socket: &UdpSocket,
    side: &ServerSide,
    server: SocketAddr,
    client: SocketAddr,
    source: Option<IpAddr>,
) -> Result<(), Errno> {
    set_buffers(socket, &side.socket)?;
    set_outgoing(socket, side, server, client, source)
}

/// By which way a socket leaves, and from where.
fn set_outgoing(
    socket: &(impl AsFd + AsRawFd),
    side: &ServerSide,
    server: SocketAddr,
    client: SocketAddr,
    source: Option<IpAddr>,
) -> Result<(), Errno> {
    if let Some(mark) = side.mark {
        setsockopt(socket, sockopt::Mark, &mark.get())?;
    }
    if let Some(device) = &side.device {
        setsockopt(socket, sockopt::BindToDevice, &device.into())?;
    }
    let source = if side.transparent && client.is_ipv4() == server.is_ipv4() {
        setsockopt(socket, sockopt::IpTransparent, &true)?;
        Some(client.ip())
    } else {
        source
    };
    if let Some(source) = source {
        // The port is chosen when the server is known: then one port can go to many servers.
        setsockopt(socket, sockopt::IpBindAddressNoPort, &true)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source, 0)))?;
    }
    Ok(())
}

/// Lets a socket send datagrams whole or not at all; or, as the kernel has it by itself, in fragments where it has
/// learnt that the way takes less.
pub(super) fn set_whole(socket: impl AsFd, whole: bool) -> Result<(), Errno> {
    let (ipv4, ipv6) = match whole {
        true => (Ipv4PathMtuDiscovery::DO, Ipv6PathMtuDiscovery::DO),
        false => (Ipv4PathMtuDiscovery::WANT, Ipv6PathMtuDiscovery::WANT),
    };
    let set = match is_ipv6(&socket)? {
        true => set_ipv6_mtu_discover(socket, ipv6),
        false => set_ip_mtu_discover(socket, ipv4),
    };
    set.map_err(errno)
}

/// Whether a socket sends datagrams whole or not at all.
pub(super) fn is_whole(socket: impl AsFd) -> Result<bool, Errno> {
    let is = match is_ipv6(&socket)? {
        true => ipv6_mtu_discover(socket).map(|how| how == Ipv6PathMtuDiscovery::DO),
        false => ip_mtu_discover(socket).map(|how| how == Ipv4PathMtuDiscovery::DO),
    };
    is.map_err(errno)
}

/// Has a socket of datagrams tell with each one whether it came in fragments.
pub(super) fn tell_of_fragments(socket: impl AsFd) -> Result<(), Errno> {
    if is_ipv6(&socket)? {
        raw::set(&socket, IPPROTO_IPV6, IPV6_RECVFRAGSIZE, 1)?;
    }
    // A socket of IPv6 may hear IPv4, too.
    raw::set(&socket, IPPROTO_IP, IP_RECVFRAGSIZE, 1)
}

/// Bytes of a packet, with all headers, that the way of a connected socket takes, as far as the kernel has learnt.
pub(super) fn path_mtu(socket: impl AsFd) -> Result<usize, Errno> {
    let mtu = if is_ipv6(&socket)? { ipv6_mtu(socket) } else { ip_mtu(socket) };
    mtu.map(|mtu| mtu as usize).map_err(errno)
}

fn is_ipv6(socket: impl AsFd) -> Result<bool, Errno> {
    socket_domain(socket).map(|family| family == AddressFamily::INET6).map_err(errno)
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

/// The first words go with the SYN, if the server has given us the right to. Only for a socket that has some: another one
/// would wait for them with its SYN.
pub(super) fn set_fast_open(socket: &TcpStream) -> Result<(), Errno> {
    setsockopt(socket, sockopt::TcpFastOpenConnect, &true)
}

/// What the kernel knows of a connection.
pub(super) fn line(socket: &TcpStream) -> Option<Line> {
    // struct tcp_info of linux/tcp.h: words from its begin.
    const ROUND_TRIP: usize = 17;
    const RETRANSMITTED: usize = 25;
    const SEGMENTS: usize = 34;
    let words = raw::tcp_info(socket).ok()?;
    Some(Line {
        round_trip: Duration::from_micros(words[ROUND_TRIP].into()),
        segments: words[SEGMENTS].into(),
        retransmitted: words[RETRANSMITTED].into(),
    })
}

/// How a client ended while it waited to be accepted, if it did: it was reset, or its end came `after` ago or earlier, and not
/// a byte before it.
pub(super) fn gone(socket: &TcpStream, after: Duration) -> Option<EndReason> {
    /// TCP_CLOSE and TCP_CLOSE_WAIT of linux/tcp_states.h.
    const CLOSE: u8 = 7;
    const CLOSE_WAIT: u8 = 8;
    // struct tcp_info of linux/tcp.h: milliseconds since the last acknowledgement, and so since the end, came.
    const LAST_ACKNOWLEDGEMENT: usize = 14;
    let words = raw::tcp_info(socket).ok()?;
    match words[0].to_ne_bytes()[0] {
        CLOSE => Some(EndReason::ClientReset),
        CLOSE_WAIT if u128::from(words[LAST_ACKNOWLEDGEMENT]) < after.as_millis() => None,
        CLOSE_WAIT => matches!(socket.peek(&mut [0]), Ok(0)).then_some(EndReason::ClientClosed),
        _ => None,
    }
}

/// Whether a peer has got all that was sent to it and the end, and has not ended itself: a close would tell it nothing.
pub(super) fn peer_goes_on(socket: &TcpStream) -> bool {
    /// TCP_FIN_WAIT2 of linux/tcp_states.h.
    const FIN_WAIT2: u8 = 5;
    raw::tcp_info(socket).is_ok_and(|words| words[0].to_ne_bytes()[0] == FIN_WAIT2)
}

/// Whether something that was sent is not acknowledged by a peer that is still there: how many bytes were so far.
pub(super) fn unacknowledged(socket: &TcpStream) -> Option<u64> {
    /// TCP_CLOSE of linux/tcp_states.h.
    const CLOSE: u8 = 7;
    // struct tcp_info of linux/tcp.h: words from its begin.
    const SEGMENTS_UNDER_WAY: usize = 6;
    const ACKNOWLEDGED: usize = 30;
    const NOT_SENT: usize = 36;
    let words = raw::tcp_info(socket).ok()?;
    let is_there = words[0].to_ne_bytes()[0] != CLOSE;
    let [low, high] = [words[ACKNOWLEDGED], words[ACKNOWLEDGED + 1]].map(u64::from);
    // A number of 64 bits, of which only a change is of interest.
    (is_there && (words[SEGMENTS_UNDER_WAY] > 0 || words[NOT_SENT] > 0)).then_some(low << 32 | high)
}

/// Lets the close of a socket be an abort. What is queued to be sent is dropped.
pub(super) fn abort_at_close(socket: &TcpStream) {
    let abort = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    let _ = setsockopt(socket, sockopt::Linger, &abort);
}

/// The options for which neither nix nor rustix has a function.
#[expect(unsafe_code, reason = "these system calls have no safe wrapper")]
mod raw {
    use std::os::fd::{AsFd, AsRawFd};

    use nix::errno::Errno;
    use nix::libc::{IPPROTO_TCP, TCP_INFO, c_int, c_void, getsockopt, setsockopt, socklen_t};

    /// Words of `struct tcp_info` that are read; a kernel that has fewer leaves the others 0.
    const WORDS: usize = 37;

    /// Sets an option that is an integer.
    pub(super) fn set(socket: impl AsFd, level: c_int, name: c_int, value: c_int) -> Result<(), Errno> {
        let length = size_of::<c_int>() as socklen_t;
        // SAFETY: the descriptor is open as long as it is borrowed, and the kernel reads `length` bytes of `value`.
        let result = unsafe {
            let value: *const c_void = (&raw const value).cast();
            setsockopt(socket.as_fd().as_raw_fd(), level, name, value, length)
        };
        Errno::result(result).map(drop)
    }

    /// The first words of the `struct tcp_info` of a socket.
    pub(super) fn tcp_info(socket: impl AsFd) -> Result<[u32; WORDS], Errno> {
        let mut words = [0u32; WORDS];
        let mut length = size_of_val(&words) as socklen_t;
        // SAFETY: the descriptor is open as long as it is borrowed, and the kernel writes at most `length` bytes, which is
        // the size of `words`; any bytes are a value of it.
        let result = unsafe {
            let into: *mut c_void = words.as_mut_ptr().cast();
            getsockopt(socket.as_fd().as_raw_fd(), IPPROTO_TCP, TCP_INFO, into, &raw mut length)
        };
        Errno::result(result).map(|_| words)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::num::{NonZeroU32, NonZeroU64};

    use nix::sys::socket::getsockopt;
    use wire::connection::KEEPALIVE_MS;

    use super::*;

    fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let far = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        (far, listener.accept().expect("accepted").0)
    }

    #[test]
    fn clients_inherit_what_their_listener_is_set_to() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let mut side = ClientSide::default();
        side.socket.user_timeout_ms = NonZeroU32::new(7000);
        side.socket.congestion = Some("reno".to_owned());
        set_listener(&listener, &side).expect("set");
        let (_far, near) = pair(&listener);
        assert!(getsockopt(&near, sockopt::KeepAlive).expect("asked"));
        assert_eq!(getsockopt(&near, sockopt::TcpKeepIdle), Ok(60));
        assert_eq!(getsockopt(&near, sockopt::TcpKeepInterval), Ok(10));
        assert_eq!(getsockopt(&near, sockopt::TcpUserTimeout), Ok(7000));
        assert!(getsockopt(&near, sockopt::TcpCongestion).expect("asked").to_string_lossy().starts_with("reno"));

        side.socket.keepalive_ms = 0;
        side.defer_accept_ms = NonZeroU64::new(1);
        set_listener(&listener, &side).expect("set anew");
        side.socket.congestion = Some("nobody".to_owned());
        assert_eq!(set_listener(&listener, &side), Err(("congestion", Errno::ENOENT)));
    }

    #[test]
    fn what_a_peer_has_not_acknowledged_is_known_until_it_has_or_is_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        for resets in [false, true] {
            let (mut far, mut near) = pair(&listener);
            assert_eq!(unacknowledged(&near), None);
            near.set_nonblocking(true).expect("set");
            let mut sent = 0;
            while let Ok(count) = near.write(&[0; 65_536]) {
                sent += count;
            }
            let before = unacknowledged(&near).expect("it is full");
            if resets {
                abort_at_close(&far);
                drop(far);
            } else {
                far.read_exact(&mut vec![0; sent / 2]).expect("the half");
                let after = unacknowledged(&near).expect("the other half");
                assert!(after > before, "{after} {before}");
                far.read_exact(&mut vec![0; sent - sent / 2]).expect("the rest");
            }
            assert_eq!(unacknowledged(&near), None);
        }
    }

    #[test]
    fn the_kernel_takes_the_longest_keepalive_that_there_may_be() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let most = *KEEPALIVE_MS.end();
        set_keepalive(&listener, most).expect("set");
        assert_eq!(getsockopt(&listener, sockopt::TcpKeepIdle).map(u64::from), Ok(most / 1000));
    }

    #[test]
    fn a_line_knows_its_round_trip_and_its_segments() {
        let (mut far, mut near) = pair(&TcpListener::bind("127.0.0.1:0").expect("a listener"));
        far.write_all(b"x").expect("sent");
        near.read_exact(&mut [0]).expect("received");
        let line = line(&far).expect("the kernel tells");
        assert!(line.round_trip > Duration::ZERO && line.round_trip < Duration::from_secs(1), "{line:?}");
        assert!((2..10).contains(&line.segments) && line.retransmitted == 0, "{line:?}");
    }
}

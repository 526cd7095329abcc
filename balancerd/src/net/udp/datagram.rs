//! Datagrams as they are received and sent: one at a time, or in trains of equal ones that the kernel has joined (UDP_GRO)
//! and takes apart again (UDP_SEGMENT). No flows, no servers.
//!
//! Each call is one system call with control messages of its own: nix's `recvmmsg` loses those when its headers are used
//! again, and batches of calls gain nothing here, for the way through the kernel is the cost.

use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, RecvMsg, SockaddrStorage, UnknownCmsg, recv, recvmsg, send, sendmsg,
    sendto,
};
use wire::address::canonical;
use wire::report::DropReason;

use crate::net::options;

/// Bytes of what one call gives, at most.
pub(super) const LONGEST: usize = 64 * 1024;

/// Room for the control messages of what is received: the address that was asked, the size of a train's parts or of
/// fragments, and what was lost before.
pub(super) fn control_room() -> Vec<u8> {
    cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo, libc::c_int, libc::c_int, u32)
}

/// What one call has received into its buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Received {
    /// Bytes.
    pub(super) length: usize,
    /// Bytes of each datagram but the last, if there are several.
    pub(super) segment: Option<usize>,
    /// Who sent it.
    pub(super) from: SocketAddr,
    /// The address that it was sent to, if the socket was asked to tell.
    pub(super) to: Option<IpAddr>,
    /// Datagrams that the kernel had no room for since the socket is open, as far as it says so.
    pub(super) overflows: Option<u32>,
    /// It came in fragments, if the socket was asked to tell: who sent it leaves its length to others.
    pub(super) in_fragments: bool,
    /// It was longer than the buffer.
    pub(super) is_truncated: bool,
}

/// Receives once, without waiting.
pub(super) fn receive(socket: impl AsFd, buffer: &mut [u8], control: &mut [u8]) -> Result<Received, Errno> {
    let mut buffers = [IoSliceMut::new(buffer)];
    let descriptor = socket.as_fd().as_raw_fd();
    let message: RecvMsg<'_, '_, SockaddrStorage> =
        recvmsg(descriptor, &mut buffers, Some(control), MsgFlags::MSG_DONTWAIT)?;
    let mut received = Received {
        length: message.bytes,
        segment: None,
        from: message.address.as_ref().and_then(address_of).unwrap_or((Ipv4Addr::UNSPECIFIED, 0).into()),
        to: None,
        overflows: None,
        in_fragments: false,
        is_truncated: message.flags.contains(MsgFlags::MSG_TRUNC),
    };
    // Control messages that did not fit are those of others: there is room for all that is asked for.
    for control in message.cmsgs().into_iter().flatten() {
        match control {
            ControlMessageOwned::UdpGroSegments(size) => {
                received.segment = usize::try_from(size).ok().filter(|size| (1..received.length).contains(size));
            }
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                received.to = Some(Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)).into());
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                received.to = Some(IpAddr::from(Ipv6Addr::from(info.ipi6_addr.s6_addr)).to_canonical());
            }
            ControlMessageOwned::RxqOvfl(count) => received.overflows = Some(count),
            ControlMessageOwned::Unknown(message) => received.in_fragments |= tells_of_fragments(&message),
            _ => {}
        }
    }
    Ok(received)
}

/// Receives one datagram from a connected socket which the kernel joins nothing for. `from` is who it is connected to.
pub(super) fn receive_single(socket: impl AsFd, buffer: &mut [u8], from: SocketAddr) -> Result<Received, Errno> {
    let length = recv(socket.as_fd().as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?;
    Ok(Received { length, segment: None, from, to: None, overflows: None, in_fragments: false, is_truncated: false })
}

/// Whether a control message is the one that only datagrams have which came in fragments.
fn tells_of_fragments(message: &UnknownCmsg) -> bool {
    let kind = (message.cmsg_header.cmsg_level, message.cmsg_header.cmsg_type);
    kind == (libc::IPPROTO_IP, libc::IP_RECVFRAGSIZE) || kind == (libc::IPPROTO_IPV6, libc::IPV6_RECVFRAGSIZE)
}

fn address_of(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let ipv4 = storage.as_sockaddr_in().map(|address| SocketAddrV4::from(*address).into());
    ipv4.or_else(|| storage.as_sockaddr_in6().map(|address| as_it_is_answered(SocketAddrV6::from(*address))))
}

/// IPv4 in its own form, and a link-local address with its interface: without that nothing can be sent there, and hosts at
/// two of them may have the same one.
fn as_it_is_answered(address: SocketAddrV6) -> SocketAddr {
    match canonical(address.into()) {
        SocketAddr::V6(plain) => SocketAddrV6::new(*plain.ip(), plain.port(), 0, address.scope_id()).into(),
        ipv4 @ SocketAddr::V4(_) => ipv4,
    }
}

/// Drops what the kernel keeps of ICMP errors beside the error that it gives with the next call: as long as it keeps some,
/// the socket is reported as failed.
pub(super) fn forget_errors(socket: impl AsFd, control: &mut [u8]) {
    /// More than a socket's receive buffer holds would be there only if they come as fast as they are dropped.
    const MOST: usize = 256;
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    for _ in 0..MOST {
        let mut buffers = [IoSliceMut::new(&mut [])];
        let descriptor = socket.as_fd().as_raw_fd();
        if recvmsg::<SockaddrStorage>(descriptor, &mut buffers, Some(&mut *control), flags).is_err() {
            return;
        }
    }
}

/// Datagrams in one piece of memory: all of the same length but the last, which may be shorter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Train<'b> {
    bytes: &'b [u8],
    segment: Option<usize>,
}

impl<'b> Train<'b> {
    pub(super) fn new(bytes: &'b [u8], segment: Option<usize>) -> Self {
        debug_assert!(segment.is_none_or(|size| (1..bytes.len()).contains(&size)));
        Self { bytes, segment }
    }

    /// One datagram alone.
    pub(super) fn single(bytes: &'b [u8]) -> Self {
        Self { bytes, segment: None }
    }

    /// Datagrams.
    pub(super) fn len(self) -> usize {
        self.segment.map_or(1, |size| self.bytes.len().div_ceil(size))
    }

    pub(super) fn bytes(self) -> usize {
        self.bytes.len()
    }

    /// Bytes of the longest one.
    pub(super) fn longest(self) -> usize {
        self.segment.unwrap_or(self.bytes.len())
    }

    /// Each by itself.
    pub(super) fn datagrams(self) -> impl Iterator<Item = &'b [u8]> {
        // A datagram of no bytes is one, too.
        let size = self.segment.unwrap_or(self.bytes.len()).max(1);
        let is_empty = self.bytes.is_empty();
        self.bytes.chunks(size).chain(is_empty.then_some(self.bytes))
    }

    /// The first so many datagrams, and those behind them.
    pub(super) fn split_at(self, count: usize) -> (Option<Self>, Option<Self>) {
        let Some(size) = self.segment.filter(|_| count > 0 && count < self.len()) else {
            return if count == 0 { (None, Some(self)) } else { (Some(self), None) };
        };
        let (front, back) = self.bytes.split_at(count * size);
        let of = |bytes: &'b [u8]| Self { bytes, segment: (bytes.len() > size).then_some(size) };
        (Some(of(front)), Some(of(back)))
    }
}

/// Where datagrams go that a socket sends which is not connected, and where they are to come from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Route {
    pub(super) to: SocketAddr,
    /// Nothing is where the socket is bound.
    pub(super) from: Option<IpAddr>,
    /// The socket speaks IPv6, to IPv4 hosts as well.
    pub(super) is_ipv6: bool,
}

/// What became of datagrams that were to be sent.
#[derive(Debug, Default)]
pub(super) struct Sent {
    pub(super) datagrams: usize,
    /// Their bytes, headers not counted.
    pub(super) bytes: usize,
    /// Those that were not sent, and why.
    pub(super) dropped: Vec<(DropReason, usize)>,
    /// What the kernel had heard of the other side since the last call, if it had: an ICMP error.
    pub(super) news: Option<Errno>,
    /// The socket itself may be at fault: it has no way to the other side from its address, which stays as it was when it
    /// was connected, whatever addresses this machine has since.
    pub(super) is_stuck: bool,
    /// The first one that was too long, if one was.
    pub(super) too_long: Option<Refused>,
}

/// A datagram that the way does not take for its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused {
    /// Its number among those that were to be sent, from 0 on.
    pub(super) nth: usize,
    /// Bytes that were to stand before it.
    pub(super) added: usize,
}

impl Sent {
    /// What became of further datagrams.
    pub(super) fn append(&mut self, later: Self) {
        let before = self.datagrams + self.dropped.iter().map(|(_, count)| count).sum::<usize>();
        let behind = later.too_long.map(|refused| Refused { nth: before + refused.nth, ..refused });
        self.too_long = self.too_long.or(behind);
        self.datagrams += later.datagrams;
        self.bytes += later.bytes;
        self.news = self.news.or(later.news);
        self.is_stuck |= later.is_stuck;
        later.dropped.into_iter().for_each(|(reason, count)| self.dropped(reason, count));
    }

    fn passed(&mut self, train: Train<'_>) {
        self.datagrams += train.len();
        self.bytes += train.bytes();
    }

    fn dropped(&mut self, reason: DropReason, count: usize) {
        self.is_stuck |= matches!(reason, DropReason::Unreachable | DropReason::SendFailed);
        match self.dropped.iter_mut().find(|(other, _)| *other == reason) {
            Some((_, so_far)) => *so_far += count,
            None => self.dropped.push((reason, count)),
        }
    }
}

/// Sends datagrams, each with `header` before it. A train goes out in one call unless it is to go `singly`, which is
/// noted there when the way refuses trains: its device does, or they do not fit. A socket that sends them whole or not
/// at all sends those of up to `most_in_fragments` bytes in fragments if need be.
pub(super) fn send_all(
    socket: impl AsFd,
    route: Option<Route>,
    header: &[u8],
    train: Train<'_>,
    singly: &mut bool,
    most_in_fragments: usize,
) -> Sent {
    let mut sent = Sent::default();
    let was_singly = *singly;
    if let Some(size) = train.segment.and_then(|size| u16::try_from(size).ok())
        && header.is_empty()
        && !*singly
    {
        match send_one(&socket, route, &[], train.bytes, Some(size), &mut sent.news) {
            Ok(()) => {
                sent.passed(train);
                return sent;
            }
            Err(Errno::EINVAL | Errno::EIO | Errno::EMSGSIZE | Errno::EOPNOTSUPP) => *singly = true,
            Err(errno) => {
                sent.dropped(reason(errno), train.len());
                return sent;
            }
        }
    }
    for (nth, datagram) in train.datagrams().enumerate() {
        let mut result = send_one(&socket, route, header, datagram, None, &mut sent.news);
        if result == Err(Errno::EMSGSIZE) && datagram.len() <= most_in_fragments {
            result = send_in_fragments(&socket, route, header, datagram, &mut sent.news);
        }
        match result {
            Ok(()) => sent.passed(Train::single(datagram)),
            Err(errno) => {
                if errno == Errno::EMSGSIZE {
                    sent.too_long.get_or_insert(Refused { nth, added: header.len() });
                }
                sent.dropped(reason(errno), 1);
            }
        }
    }
    if sent.too_long.is_some() {
        // It was for their length, and shorter ones follow when who sends them has been told.
        *singly = was_singly;
    }
    sent
}

/// Sends datagrams with `header` before the first one that goes out, and the others without it.
pub(super) fn send_introduced(
    socket: impl AsFd,
    header: &[u8],
    train: Train<'_>,
    singly: &mut bool,
    most_in_fragments: usize,
) -> Sent {
    let (mut sent, mut left) = (Sent::default(), Some(train));
    while let Some(train) = left.take() {
        if sent.datagrams > 0 {
            sent.append(send_all(&socket, None, &[], train, singly, most_in_fragments));
        } else {
            let (first, others) = train.split_at(1);
            if let Some(first) = first {
                sent.append(send_all(&socket, None, header, first, singly, most_in_fragments));
            }
            left = others;
        }
    }
    sent
}

/// Sends once. What the kernel has heard of the other side, or of how long a datagram may be on the way there, comes back as
/// the error of the next call, which sends nothing: so it is made again.
fn send_one(
    socket: &impl AsFd,
    route: Option<Route>,
    header: &[u8],
    bytes: &[u8],
    segment: Option<u16>,
    news: &mut Option<Errno>,
) -> Result<(), Errno> {
    let mut result = call(socket, route, header, bytes, segment);
    if let Err(errno) = result
        && (tells_of_the_other_side(errno) || matches!(errno, Errno::EINTR | Errno::EMSGSIZE))
    {
        *news = news.or(Some(errno).filter(|errno| tells_of_the_other_side(*errno)));
        result = call(socket, route, header, bytes, segment);
    }
    result
}

/// Sends one in fragments by a socket that otherwise sends them whole or not at all.
fn send_in_fragments(
    socket: &impl AsFd,
    route: Option<Route>,
    header: &[u8],
    bytes: &[u8],
    news: &mut Option<Errno>,
) -> Result<(), Errno> {
    if options::is_whole(socket) != Ok(true) {
        // It is longer than a datagram may be.
        return Err(Errno::EMSGSIZE);
    }
    options::set_whole(socket, false)?;
    // What was heard of the way may not have come back yet: a length that is too long by itself is told first.
    let result = send_one(socket, route, header, bytes, None, news);
    options::set_whole(socket, true)?;
    result
}

fn call(
    socket: &impl AsFd,
    route: Option<Route>,
    header: &[u8],
    bytes: &[u8],
    segment: Option<u16>,
) -> Result<(), Errno> {
    let descriptor = socket.as_fd().as_raw_fd();
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let is_plain = header.is_empty() && segment.is_none();
    let to = route.map(|route| SockaddrStorage::from(in_family(route.to, route.is_ipv6)));
    let from = route.and_then(|route| Some((route.from?, route.is_ipv6)));
    match (to, from) {
        (None, _) if is_plain => return send(descriptor, bytes, flags).map(drop),
        (Some(to), None) if is_plain => return sendto(descriptor, bytes, &to, flags).map(drop),
        _ => {}
    }
    let (ipv4, ipv6);
    let mut controls = Vec::with_capacity(2);
    match from {
        Some((from, true)) => {
            let address = match from {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            ipv6 = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: address.octets() }, ipi6_ifindex: 0 };
            controls.push(ControlMessage::Ipv6PacketInfo(&ipv6));
        }
        Some((IpAddr::V4(from), false)) => {
            ipv4 = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from(from).to_be() },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            controls.push(ControlMessage::Ipv4PacketInfo(&ipv4));
        }
        Some((IpAddr::V6(_), false)) | None => {}
    }
    if let Some(segment) = &segment {
        controls.push(ControlMessage::UdpGsoSegments(segment));
    }
    sendmsg(descriptor, &[IoSlice::new(header), IoSlice::new(bytes)], &controls, flags, to.as_ref()).map(drop)
}

/// An address as a socket of that family has to be given it.
fn in_family(address: SocketAddr, is_ipv6: bool) -> SocketAddr {
    match address {
        SocketAddr::V4(address) if is_ipv6 => (address.ip().to_ipv6_mapped(), address.port()).into(),
        address => address,
    }
}

/// Whether an error of a connected socket is one that the other side, or somebody on the way to it, has caused.
pub(super) fn tells_of_the_other_side(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ECONNREFUSED
            | Errno::EHOSTUNREACH
            | Errno::ENETUNREACH
            | Errno::EHOSTDOWN
            | Errno::ENONET
            | Errno::ENOPROTOOPT
            | Errno::EPROTO
            | Errno::EACCES
    )
}

/// Why a datagram could not be sent.
fn reason(errno: Errno) -> DropReason {
    match errno {
        Errno::EAGAIN | Errno::ENOBUFS => DropReason::SendBufferFull,
        Errno::ENOMEM => DropReason::Shortage,
        Errno::EMSGSIZE => DropReason::TooLong,
        errno if tells_of_the_other_side(errno) => DropReason::Unreachable,
        _ => DropReason::SendFailed,
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use nix::sys::socket::{setsockopt, sockopt};

    use super::*;

    fn socket() -> UdpSocket {
        UdpSocket::bind("127.0.0.1:0").expect("bound")
    }

    fn route(to: &UdpSocket) -> Option<Route> {
        Some(Route { to: to.local_addr().expect("bound"), from: None, is_ipv6: false })
    }

    #[test]
    fn a_train_is_its_datagrams_and_one_without_bytes_is_one() {
        let datagrams = |train: Train<'_>| train.datagrams().map(<[u8]>::to_vec).collect::<Vec<_>>();
        let train = Train::new(b"aabbc", Some(2));
        assert_eq!((train.len(), datagrams(train)), (3, vec![b"aa".to_vec(), b"bb".to_vec(), b"c".to_vec()]));
        assert_eq!(datagrams(Train::single(b"")), vec![Vec::<u8>::new()]);
        assert_eq!((Train::single(b"").len(), Train::single(b"abc").len()), (1, 1));
        let (front, back) = train.split_at(2);
        assert_eq!(front.map(datagrams), Some(vec![b"aa".to_vec(), b"bb".to_vec()]));
        assert_eq!(back.map(datagrams), Some(vec![b"c".to_vec()]));
        let (front, back) = train.split_at(1);
        assert_eq!((front.map(datagrams), back.map(Train::len)), (Some(vec![b"aa".to_vec()]), Some(2)));
        assert!(train.split_at(0).0.is_none() && train.split_at(3).1.is_none());
    }

    #[test]
    fn a_train_arrives_as_one_where_it_is_asked_for_and_singly_where_not() {
        let (from, to) = (socket(), socket());
        setsockopt(&to, sockopt::UdpGroSegment, &true).expect("set");
        let bytes: Vec<u8> = (0..10_000u32).map(|at| at as u8).collect();
        let sent = send_all(&from, route(&to), &[], Train::new(&bytes, Some(1200)), &mut false, usize::MAX);
        assert_eq!((sent.datagrams, sent.bytes, sent.dropped.len()), (9, 10_000, 0));
        let (mut buffer, mut control) = (vec![0; 65_536], control_room());
        let received = receive(&to, &mut buffer, &mut control).expect("received");
        assert_eq!((received.length, received.segment), (10_000, Some(1200)));
        assert_eq!(received.from, from.local_addr().expect("bound"));
        assert_eq!(buffer[..10_000], bytes);

        let singly = socket();
        send_all(&from, route(&singly), &[], Train::new(&bytes, Some(1200)), &mut true, usize::MAX);
        for chunk in bytes.chunks(1200) {
            let received = receive(&singly, &mut buffer, &mut control).expect("received");
            assert_eq!((received.segment, &buffer[..received.length]), (None, chunk));
        }
        assert_eq!(receive(&singly, &mut buffer, &mut control), Err(Errno::EAGAIN));
    }

    #[test]
    fn a_train_that_the_way_refuses_goes_singly_from_then_on() {
        let (from, to) = (socket(), socket());
        // More parts than one call takes.
        let bytes = vec![7u8; 1000];
        let mut singly = false;
        let sent = send_all(&from, route(&to), &[], Train::new(&bytes, Some(1)), &mut singly, usize::MAX);
        assert_eq!((sent.datagrams, singly), (1000, true));
        let (mut buffer, mut control) = (vec![0; 65_536], control_room());
        let received = receive(&to, &mut buffer, &mut control).expect("received");
        assert_eq!((received.length, received.segment), (1, None));
    }

    #[test]
    fn a_header_stands_before_each_datagram() {
        let (from, to) = (socket(), socket());
        let sent = send_all(&from, route(&to), b"H:", Train::new(b"aabbc", Some(2)), &mut false, usize::MAX);
        assert_eq!((sent.datagrams, sent.bytes), (3, 5));
        let (mut buffer, mut control) = (vec![0; 65_536], control_room());
        for expected in [&b"H:aa"[..], b"H:bb", b"H:c"] {
            let received = receive(&to, &mut buffer, &mut control).expect("received");
            assert_eq!(&buffer[..received.length], expected);
        }
    }

    #[test]
    fn the_first_that_goes_out_is_introduced_and_no_other() {
        let (from, to) = (socket(), socket());
        from.connect(to.local_addr().expect("bound")).expect("connected");
        let (mut buffer, mut control) = (vec![0; 65_536], control_room());
        let mut heard = || {
            let received = receive(&to, &mut buffer, &mut control).expect("received");
            buffer[..received.length].to_vec()
        };
        let sent = send_introduced(&from, b"H:", Train::new(b"aabbc", Some(2)), &mut false, usize::MAX);
        assert_eq!((sent.datagrams, sent.bytes), (3, 5));
        assert_eq!([heard(), heard(), heard()], [&b"H:aa"[..], b"bb", b"c"]);
        // With the header, the first is longer than a datagram may be.
        let bytes = [&vec![7; 65_507][..], b"short"].concat();
        let sent = send_introduced(&from, b"H:", Train::new(&bytes, Some(65_507)), &mut false, usize::MAX);
        assert_eq!((sent.datagrams, sent.dropped.as_slice()), (1, &[(DropReason::TooLong, 1)][..]));
        assert_eq!(sent.too_long, Some(Refused { nth: 0, added: 2 }));
        assert_eq!(heard(), b"H:short");
    }

    #[test]
    fn the_first_that_was_too_long_is_known_by_its_number_among_all() {
        let part = |datagrams, dropped: &[(DropReason, usize)], too_long: Option<usize>| Sent {
            datagrams,
            dropped: dropped.to_vec(),
            too_long: too_long.map(|nth| Refused { nth, added: 0 }),
            ..Sent::default()
        };
        let mut sent = part(1, &[(DropReason::SendBufferFull, 2)], None);
        sent.append(part(3, &[(DropReason::TooLong, 1)], Some(2)));
        assert_eq!(sent.too_long, Some(Refused { nth: 5, added: 0 }));
        sent.append(part(0, &[(DropReason::TooLong, 1)], Some(0)));
        assert_eq!(sent.too_long, Some(Refused { nth: 5, added: 0 }));
    }

    #[test]
    fn what_the_kernel_has_heard_of_the_other_side_costs_no_datagram() {
        let (from, to) = (socket(), socket());
        let address = to.local_addr().expect("bound");
        from.connect(address).expect("connected");
        drop(to);
        assert_eq!(send_all(&from, None, &[], Train::single(b"lost"), &mut false, usize::MAX).news, None);
        let to = UdpSocket::bind(address).expect("bound anew");
        let sent = send_all(&from, None, &[], Train::single(b"there"), &mut false, usize::MAX);
        assert_eq!((sent.news, sent.datagrams), (Some(Errno::ECONNREFUSED), 1));
        let mut buffer = [0; 16];
        assert_eq!(to.recv(&mut buffer).expect("received"), 5);
    }

    #[test]
    fn one_that_is_too_long_is_told_from_a_full_buffer() {
        let (from, to) = (socket(), socket());
        let sent = send_all(&from, route(&to), &[], Train::single(&vec![0; 65_508]), &mut false, usize::MAX);
        assert_eq!(
            (sent.dropped.as_slice(), sent.too_long),
            (&[(DropReason::TooLong, 1)][..], Some(Refused { nth: 0, added: 0 }))
        );
        assert_eq!((reason(Errno::EAGAIN), reason(Errno::EPERM)), (DropReason::SendBufferFull, DropReason::SendFailed));
    }
}

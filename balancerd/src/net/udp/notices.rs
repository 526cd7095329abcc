//! Tells who sends datagrams that are longer than the way to their server takes, as a router between them would: then
//! the sender's kernel knows how long they may be.
//!
//! Answers that are too long for the way to the client go in fragments: all clients of a service share a socket, and
//! what is known of the way to one of them is not known there.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use tracing::{debug, warn};
use wire::flow::PathMtu;

use super::datagram::{Refused, Route, Train, send_all};
use super::flow::{FlowKey, Longest};
use super::too_long::{TooLong, ip_header, least, notice, packet_length};
use super::{Arrival, FlowId, Flows};
use crate::net::{Context, options};

/// Notices in a second at most, to all senders together, as routers have such a limit: senders have no other cost.
const MOST_PER_SECOND: u32 = 1000;

/// What it takes to tell.
#[derive(Debug, Default)]
pub(super) struct Notices {
    sockets: Sockets,
    second: Option<Instant>,
    /// So many in that second.
    sent: u32,
}

/// Sockets that packets go out by as they are, with all headers. They hear nothing.
#[derive(Debug, Default)]
enum Sockets {
    /// They were not needed yet, or there was no room for them.
    #[default]
    None,
    /// The one for IPv6 is missing where the kernel does not have it.
    Open { ipv4: OwnedFd, ipv6: Option<OwnedFd> },
    /// The balancer may have none.
    Denied,
}

impl Notices {
    /// Lets a socket that is connected to a server send whole datagrams alone, if it can be told who sends others.
    pub(super) fn keep_whole(&mut self, socket: &UdpSocket) {
        self.open();
        if let Sockets::Open { .. } = self.sockets
            && let Err(errno) = options::set_whole(socket, true)
        {
            debug!(error = errno.desc(), "datagrams that are too long go in fragments");
        }
    }

    fn open(&mut self) {
        if !matches!(self.sockets, Sockets::None) {
            return;
        }
        match raw(AddressFamily::Inet) {
            Ok(ipv4) => self.sockets = Sockets::Open { ipv4, ipv6: raw(AddressFamily::Inet6).ok() },
            Err(Errno::EPERM | Errno::EACCES) => {
                warn!("datagrams that are too long go in fragments: to report them takes the capability CAP_NET_RAW");
                self.sockets = Sockets::Denied;
            }
            Err(errno) => debug!(error = errno.desc(), "no socket to report datagrams by that are too long"),
        }
    }

    fn socket(&self, ip: IpAddr) -> Option<&OwnedFd> {
        match &self.sockets {
            Sockets::Open { ipv4, .. } if ip.is_ipv4() => Some(ipv4),
            Sockets::Open { ipv6, .. } => ipv6.as_ref(),
            Sockets::None | Sockets::Denied => None,
        }
    }

    /// Bytes up to which a sender's datagrams go in fragments where the way does not take them whole. It is all of them
    /// where their sender is not to be told, or cannot be; otherwise those that no sender has to make shorter.
    /// `taken_off` are bytes that each one had before.
    pub(super) fn most_in_fragments(&self, policy: PathMtu, sender: SocketAddr, taken_off: usize) -> usize {
        let ip = sender.ip();
        if policy == PathMtu::Fragment || !is_one_host(ip) || self.socket(ip).is_none() {
            return usize::MAX;
        }
        least(ip).saturating_sub(packet_length(ip, taken_off))
    }

    /// Tells the sender of a datagram that a `socket` to a server did not take for its length, with `added` bytes
    /// before it and without those that were `taken_off`.
    pub(super) fn tell(
        &mut self,
        socket: &UdpSocket,
        refused: &TooLong<'_>,
        (added, taken_off): (usize, usize),
        now: Instant,
    ) {
        let ip = refused.from.ip();
        let (Ok(way), Ok(server)) = (options::path_mtu(socket), socket.peer_addr()) else { return };
        let mtu = (way + ip_header(ip) + taken_off).saturating_sub(ip_header(server.ip()) + added).max(least(ip));
        // The way may take more by now.
        if mtu >= packet_length(ip, refused.length) || !is_one_host(ip) || !self.may_send(now) {
            return;
        }
        let (Some(own), Some(packet)) = (self.socket(ip), notice(refused, mtu)) else { return };
        let route = Route { to: host(refused.from), from: Some(refused.to.ip()), is_ipv6: ip.is_ipv6() };
        let sent = send_all(own, Some(route), &[], Train::single(&packet), &mut true, 0);
        debug!(sender = %refused.from, mtu, length = refused.length, told = sent.datagrams > 0, "a datagram is too long for the way");
    }

    fn may_send(&mut self, now: Instant) -> bool {
        if self.second.is_none_or(|began| now.saturating_duration_since(began) >= Duration::from_secs(1)) {
            (self.second, self.sent) = (Some(now), 0);
        }
        self.sent += 1;
        self.sent <= MOST_PER_SECOND
    }
}

impl Arrival {
    /// Bytes up to which a datagram goes in fragments where the way to a server does not take it whole.
    pub(super) fn most_in_fragments(&self, notices: &Notices) -> usize {
        // Who sends in fragments knows, or does not want to know.
        if self.in_fragments {
            return usize::MAX;
        }
        notices.most_in_fragments(self.handling.policy.path_mtu, self.key.peer, self.taken_off)
    }

    /// The longest datagram of `train`, with so many bytes before it, if its sender may have to be told of it.
    pub(super) fn longest(&self, train: Train<'_>, added: usize) -> Longest {
        if self.handling.policy.path_mtu == PathMtu::Fragment || self.in_fragments {
            return Longest::default();
        }
        let short = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX);
        Longest {
            length: short(self.taken_off + train.longest()),
            added: short(added),
            taken_off: short(self.taken_off),
        }
    }

    /// Tells who sent it of a datagram of `train` that the way by a `socket` to a server did not take.
    pub(super) fn tell_too_long(
        &self,
        notices: &mut Notices,
        socket: &UdpSocket,
        train: Train<'_>,
        refused: Refused,
        now: Instant,
    ) {
        if self.handling.policy.path_mtu == PathMtu::Fragment {
            return;
        }
        let Some(rest) = train.datagrams().nth(refused.nth) else { return };
        let FlowKey { peer, asked, .. } = self.key;
        let bytes = if self.taken_off == 0 { rest } else { &[] };
        let too_long = TooLong { from: peer, to: asked, length: self.taken_off + rest.len(), bytes };
        notices.tell(socket, &too_long, (refused.added, self.taken_off), now);
    }
}

impl Flows {
    /// It came back that a datagram of a flow was too long for a part of the way. Which one is not known, so its sender
    /// is told of the longest, which was too long then as well.
    pub(super) fn tell_of_the_longest(&mut self, id: FlowId, cx: &Context<'_>) {
        let Some(flow) = self.table.get_mut(id) else { return };
        let Longest { length, added, taken_off } = std::mem::take(&mut flow.longest);
        if cx.model.path_mtu(flow.server) == PathMtu::Fragment {
            return;
        }
        let FlowKey { peer, asked, .. } = flow.key;
        let too_long = TooLong { from: peer, to: asked, length: length.into(), bytes: &[] };
        self.notices.tell(&flow.socket, &too_long, (added.into(), taken_off.into()), cx.now);
    }
}

/// A socket for packets with all their headers.
fn raw(family: AddressFamily) -> Result<OwnedFd, Errno> {
    socket(family, SockType::Raw, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)
}

/// Whether an address is that of one host: nobody else is told anything. The broadcast addresses of networks are not
/// known here; the kernel sends nothing there by a socket that has not asked for it.
fn is_one_host(ip: IpAddr) -> bool {
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    !ip.is_multicast() && !ip.is_unspecified() && !is_broadcast
}

/// A host without a port: in a packet with all its headers there is one already.
fn host(mut address: SocketAddr) -> SocketAddr {
    address.set_port(0);
    address
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event;

    #[test]
    fn so_many_are_told_in_a_second_and_no_more() {
        let (mut notices, start) = (Notices::default(), event::now());
        let told = |notices: &mut Notices, at: Instant| (0..1500).filter(|_| notices.may_send(at)).count();
        assert_eq!(told(&mut notices, start), 1000);
        assert_eq!(told(&mut notices, start + Duration::from_millis(999)), 0);
        assert_eq!(told(&mut notices, start + Duration::from_secs(1)), 1000);
    }

    #[test]
    fn only_one_host_is_told() {
        for (ip, is_one) in [
            ("192.0.2.1", true),
            ("2001:db8::1", true),
            ("0.0.0.0", false),
            ("255.255.255.255", false),
            ("224.0.0.251", false),
            ("::", false),
            ("ff02::fb", false),
        ] {
            assert_eq!(is_one_host(ip.parse().expect("an address")), is_one, "{ip}");
        }
    }

    #[test]
    fn what_nobody_is_told_of_goes_in_fragments() {
        let sender = "192.0.2.1:53".parse().expect("an address");
        let notices = Notices::default();
        assert_eq!(notices.most_in_fragments(PathMtu::Report, sender, 0), usize::MAX, "there is no socket for it");
        let Ok(ipv4) = raw(AddressFamily::Inet) else {
            println!("skipped: no raw sockets for this user");
            return;
        };
        let notices = Notices { sockets: Sockets::Open { ipv4, ipv6: None }, ..Notices::default() };
        let most = |policy, sender: &str, taken_off| {
            notices.most_in_fragments(policy, sender.parse().expect("an address"), taken_off)
        };
        assert_eq!(most(PathMtu::Fragment, "192.0.2.1:53", 0), usize::MAX);
        assert_eq!(most(PathMtu::Report, "224.0.0.251:53", 0), usize::MAX);
        assert_eq!(most(PathMtu::Report, "[2001:db8::1]:53", 0), usize::MAX, "the kernel has no IPv6");
        assert_eq!(most(PathMtu::Report, "192.0.2.1:53", 0), 576 - 28);
        assert_eq!(most(PathMtu::Report, "192.0.2.1:53", 16), 576 - 28 - 16);
    }
}

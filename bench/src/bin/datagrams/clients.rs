//! The clients' sockets: any number of flows, each from an address and port of its own, over a few sockets.
//!
//! A socket of the unspecified address sends from any address of 127.0.0.0/8 that the datagram says (`IP_PKTINFO`), and
//! tells to which one an answer came. So a new flow costs the load nothing, and ten thousand take no descriptors.

use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use mio::net::UdpSocket;
use mio::{Events, Interest, Poll, Token};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc::{in_addr, in_pktinfo};
use nix::sys::socket::sockopt::{Ipv4PacketInfo, RcvBuf, SndBuf, UdpGsoSegment};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt};

use crate::servers::{LARGEST, RECEIVE_BUFFER};

/// The address of the first client; the others follow.
const FIRST: Ipv4Addr = Ipv4Addr::new(127, 16, 0, 1);
/// So many flows have the same address and differ in the port alone.
const FLOWS_PER_ADDRESS: u32 = 4;
/// More than that, so that no two flows have the same address and port; few, so that one look at the poller finds answers to
/// many.
const SOCKETS: usize = 16;
/// The most readiness events taken at once.
const EVENTS: usize = 256;

/// The sockets, with the target that all of them send to.
pub(crate) struct Clients {
    target: SocketAddrV4,
    sockets: Vec<UdpSocket>,
    poll: Poll,
    events: Events,
    buffer: Box<[u8]>,
}

/// Where a datagram arrived.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    socket: usize,
    addr: Ipv4Addr,
    from: SocketAddrV4,
}

impl Clients {
    /// Opens the sockets, which cut what they send into datagrams of `segment` bytes if that is given.
    pub(crate) fn open(target: SocketAddrV4, segment: Option<usize>) -> Result<Self> {
        let poll = Poll::new().context("open an epoll instance")?;
        let open = |index| {
            let unbound = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
            let mut socket = UdpSocket::bind(unbound.into()).context("open a client's socket")?;
            setsockopt(&socket, Ipv4PacketInfo, &true).context("ask for addresses")?;
            setsockopt(&socket, RcvBuf, &RECEIVE_BUFFER).context("size a client's buffer")?;
            setsockopt(&socket, SndBuf, &RECEIVE_BUFFER).context("size a client's buffer")?;
            if let Some(segment) = segment {
                let segment = segment.try_into().context("datagrams too long for a train")?;
                setsockopt(&socket, UdpGsoSegment, &segment).context("set a client up for trains")?;
            }
            let registry = poll.registry();
            registry.register(&mut socket, Token(index), Interest::READABLE).context("register a client's socket")?;
            Ok(socket)
        };
        let sockets = (0..SOCKETS).map(open).collect::<Result<_>>()?;
        let events = Events::with_capacity(EVENTS);
        Ok(Self { target, sockets, poll, events, buffer: vec![0; LARGEST].into_boxed_slice() })
    }

    /// Sends `bytes` as a datagram, or a train, of `flow`; false when the kernel has no room for it.
    pub(crate) fn send(&self, flow: u32, bytes: &[u8]) -> Result<bool> {
        let info = in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: in_addr { s_addr: u32::from(addr(flow)).to_be() },
            ipi_addr: in_addr { s_addr: 0 },
        };
        let socket = &self.sockets[self.socket(flow)];
        let parts = [IoSlice::new(bytes)];
        let source = [ControlMessage::Ipv4PacketInfo(&info)];
        let target = SockaddrIn::from(self.target);
        match sendmsg(socket.as_raw_fd(), &parts, &source, MsgFlags::MSG_DONTWAIT, Some(&target)) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::ENOBUFS) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("send to {}", self.target)),
        }
    }

    /// Waits for datagrams, at most for `wait`, and gives each of them to `take` with the place where it arrived.
    pub(crate) fn receive(&mut self, wait: Duration, mut take: impl FnMut(Place, &[u8])) -> Result<()> {
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() != std::io::ErrorKind::Interrupted => return Err(error).context("wait"),
            _ => {}
        }
        let mut control = cmsg_space!(in_pktinfo);
        for event in &self.events {
            let socket = event.token().0;
            loop {
                let mut parts = [IoSliceMut::new(&mut self.buffer)];
                let descriptor = self.sockets[socket].as_raw_fd();
                let flags = MsgFlags::MSG_DONTWAIT;
                let message = match recvmsg::<SockaddrIn>(descriptor, &mut parts, Some(&mut control), flags) {
                    Err(Errno::EAGAIN) => break,
                    Err(Errno::EINTR) => continue,
                    result => result.context("receive an answer")?,
                };
                let info = message.cmsgs().context("read an address")?.find_map(|part| match part {
                    ControlMessageOwned::Ipv4PacketInfo(info) => Some(info),
                    _ => None,
                });
                let addr = Ipv4Addr::from(u32::from_be(info.context("an answer to nowhere")?.ipi_addr.s_addr));
                let from = SocketAddrV4::from(message.address.context("an answer from nowhere")?);
                let bytes = message.bytes;
                take(Place { socket, addr, from }, &self.buffer[..bytes]);
            }
        }
        Ok(())
    }

    /// Whether `place` is the client of `flow`, and what arrived there came from the address that it had asked.
    pub(crate) fn belongs(&self, flow: u32, place: Place) -> bool {
        place.socket == self.socket(flow) && place.addr == addr(flow) && place.from == self.target
    }

    /// The ports of all sockets.
    pub(crate) fn ports(&self) -> Result<Vec<u16>> {
        let port = |socket: &UdpSocket| Ok(socket.local_addr().context("read a client's address")?.port());
        self.sockets.iter().map(port).collect()
    }

    fn socket(&self, flow: u32) -> usize {
        flow as usize % self.sockets.len()
    }
}

/// The address of the client of `flow`.
fn addr(flow: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(FIRST) + flow / FLOWS_PER_ADDRESS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_flow_has_an_address_and_port_of_its_own_and_shares_the_address() {
        let clients = Clients::open(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9), None).unwrap();
        let places: BTreeSet<_> = (0..1000).map(|flow| (addr(flow), clients.socket(flow))).collect();
        assert_eq!(places.len(), 1000);
        let addrs: BTreeSet<_> = places.iter().map(|(addr, _)| addr).collect();
        assert_eq!(addrs.len(), 250);
    }

    #[test]
    fn an_answer_belongs_to_who_asked_and_comes_from_who_was_asked() {
        let target = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9);
        let clients = Clients::open(target, None).unwrap();
        let place = Place { socket: 1, addr: FIRST, from: target };
        assert!(clients.belongs(1, place));
        assert!(!clients.belongs(0, place), "another port");
        assert!(!clients.belongs(17, place), "another address");
        let other = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 10);
        assert!(!clients.belongs(1, Place { from: other, ..place }), "another sender");
    }
}

//! Where datagrams of a service's clients arrive, and answers leave from.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt};
use tracing::debug;
use wire::settings::Transport;

use super::datagram::{Received, Route, Sent, Train, receive, send_all};
use super::portion::Portion;
use crate::event::{Interest, Key, Poller, set_freebind};
use crate::model::ServiceId;
use crate::net::listen::{Endpoint, ListenError, Place};
use crate::net::options;

/// What the kernel may hold for a listener, in bytes: some milliseconds at the rate of a fast network. `net.core.rmem_max`
/// caps it where the balancer may not go beyond.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;

/// Calls that one event is worth at most. What is left waits for the next turn, behind the other sockets that are ready.
const MOST_RECEIVED: u8 = 64;

slotmap::new_key_type! {
    /// A listener for datagrams, as long as it is open.
    pub(crate) struct DatagramListenerId;
}

/// A bound socket and how it goes on.
#[derive(Debug)]
pub(crate) struct DatagramListener {
    socket: UdpSocket,
    service: ServiceId,
    place: Place,
    address: SocketAddr,
    registered: Interest,
    portion: Portion,
    /// What the kernel said the last time of datagrams that it had no room for.
    overflows: u32,
    /// Once the balancer was told to stop: calls that are left for what waited here then.
    last: Option<u32>,
}

impl Endpoint for DatagramListener {
    const TRANSPORT: Transport = Transport::Udp;

    fn bind(place: Place, sharing: bool) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Address { address: place.address, source };
        let socket = open(place, sharing).map_err(|errno| failed(errno.into()))?;
        let address = socket.local_addr().map_err(failed)?;
        let service = ServiceId::default();
        let (registered, portion) = (Interest::NONE, Portion::ONE);
        Ok(Self { socket, service, place, address, registered, portion, overflows: 0, last: None })
    }

    fn place(&self) -> Place {
        self.place
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn service(&self) -> ServiceId {
        self.service
    }

    fn serve(&mut self, service: ServiceId) {
        self.service = service;
    }

    fn share(&self, sharing: bool) {
        if let Err(error) = setsockopt(&self.socket, sockopt::ReusePort, &sharing) {
            debug!(%error, "a listener's port cannot be shared");
        }
    }
}

fn open(place: Place, sharing: bool) -> Result<UdpSocket, Errno> {
    let family = if place.address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = UdpSocket::from(socket(family, SockType::Datagram, flags, None)?);
    if place.address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &place.only_ipv6)?;
    }
    if place.address.ip().is_unspecified() {
        // Answers come from the address that was asked.
        match family {
            AddressFamily::Inet => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
            _ => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
        }
    }
    setsockopt(&socket, sockopt::UdpGroSegment, &true)?;
    setsockopt(&socket, sockopt::RxqOvfl, &1)?;
    if let Err(errno) = options::tell_of_fragments(&socket) {
        debug!(error = errno.desc(), "it will not be known which datagrams come in fragments");
    }
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
    }
    if place.freebind {
        set_freebind(&socket, place.address)
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EINVAL as i32)))?;
    }
    setsockopt(&socket, sockopt::ReusePort, &sharing)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(place.address))?;
    Ok(socket)
}

impl DatagramListener {
    /// Receives once, if something is there. Beside it, what the kernel had no room for since the last time.
    pub(super) fn receive(&mut self, buffer: &mut [u8], control: &mut [u8]) -> Result<(Received, u32), Errno> {
        let received = receive(&self.socket, buffer, control)?;
        let overflows = received.overflows.unwrap_or(self.overflows);
        let lost = overflows.wrapping_sub(std::mem::replace(&mut self.overflows, overflows));
        Ok((received, lost))
    }

    /// The balancer was told to stop: what waits here now is still served, with so many calls at most. Told again, it is the
    /// same that waits, or less.
    pub(super) fn stop(&mut self, calls: u32) {
        self.last = Some(self.last.map_or(calls, |left| left.min(calls)));
    }

    /// So many calls found something of that, and whether there is nothing more.
    pub(super) fn on_last(&mut self, found: u32, is_all: bool) {
        self.last = self.last.map(|left| if is_all { 0 } else { left.saturating_sub(found) });
    }

    /// Whether something may wait here that came before the balancer was told to stop.
    pub(super) fn has_last(&self) -> bool {
        self.last.is_some_and(|left| left > 0)
    }

    /// How many calls this event is worth.
    pub(super) fn portion(&self) -> u32 {
        self.portion.calls().into()
    }

    /// So many calls found something, and the next one did not if there was one.
    pub(super) fn on_received(&mut self, found: u32) {
        match u8::try_from(found) {
            Ok(found) if found < self.portion.calls() => self.portion.on_end(found),
            _ => self.portion.on_whole(MOST_RECEIVED),
        }
    }

    /// The address that a client asked.
    pub(super) fn asked(&self, received: &Received) -> SocketAddr {
        SocketAddr::new(received.to.unwrap_or(self.address.ip()).to_canonical(), self.address.port())
    }

    /// Whether datagrams to an address arrive here.
    pub(super) fn hears(&self, address: SocketAddr) -> bool {
        let own = self.address.ip().to_canonical();
        let is_family = self.address.is_ipv6() && !self.place.only_ipv6 || own.is_ipv4() == address.is_ipv4();
        self.address.port() == address.port() && (own == address.ip() || own.is_unspecified() && is_family)
    }

    /// Sends answers to a client, from the address that it asked.
    pub(super) fn answer(&self, client: SocketAddr, asked: IpAddr, train: Train<'_>, singly: &mut bool) -> Sent {
        let from = self.address.ip().is_unspecified().then_some(asked);
        let route = Route { to: client, from, is_ipv6: self.address.is_ipv6() };
        send_all(&self.socket, Some(route), &[], train, singly, usize::MAX)
    }

    /// Tells the poller, if something changed. It is always read: what comes for a flow that is there has nothing to do with
    /// whether there may be another.
    pub(super) fn settle(&mut self, poller: &Poller, key: Key) -> io::Result<()> {
        poller.set(&self.socket, key, &mut self.registered, Interest::READ)
    }
}

//! A bound, listening TCP socket. mio's accept, for one reason: it is one system call that gives a non-blocking socket
//! *and* the peer's address, where the standard library and nix need two.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    self, AddressFamily, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};

/// Connections that the kernel holds until they are accepted. It takes the least of this and `net.core.somaxconn`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backlog(pub(crate) i32);

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Acceptor(mio::net::TcpListener);

impl Acceptor {
    /// Binds and listens. `[::]` takes IPv4 clients too, unless it is for IPv6 alone. What accepted sockets inherit is set
    /// here, once: TCP_NODELAY. With `freebind` the machine may not have the address yet. With `sharing` it may overlap with
    /// sockets of this user that [share](Self::share) theirs.
    pub(crate) fn bind(
        address: SocketAddr,
        only_ipv6: bool,
        freebind: bool,
        sharing: bool,
        backlog: Backlog,
    ) -> io::Result<Self> {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let descriptor: OwnedFd = socket(family, SockType::Stream, flags, None)?;
        setsockopt(&descriptor, sockopt::ReuseAddr, &true)?;
        setsockopt(&descriptor, sockopt::TcpNoDelay, &true)?;
        if address.is_ipv6() {
            setsockopt(&descriptor, sockopt::Ipv6V6Only, &only_ipv6)?;
        }
        if freebind {
            set_freebind(&descriptor, address)?;
        }
        setsockopt(&descriptor, sockopt::ReusePort, &sharing)?;
        let storage = SockaddrStorage::from(address);
        bind(std::os::fd::AsRawFd::as_raw_fd(&descriptor), &storage)?;
        listen(&descriptor, socket::Backlog::new(backlog.0)?)?;
        Ok(Self(mio::net::TcpListener::from_std(TcpListener::from(descriptor))))
    }

    /// Listens with another backlog from now on.
    pub(crate) fn listen(&self, backlog: Backlog) -> io::Result<()> {
        Ok(rustix::net::listen(&self.0, backlog.0)?)
    }

    /// Lets further sockets of this user overlap with this one, or no more.
    pub(crate) fn share(&self, sharing: bool) -> io::Result<()> {
        Ok(setsockopt(&self.0, sockopt::ReusePort, &sharing)?)
    }

    /// The address it is bound to, with the port that the kernel chose for port 0.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Takes one connection. The stream does not block.
    pub(crate) fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, peer) = self.0.accept()?;
        Ok((stream.into(), peer))
    }
}

/// Lets a socket be bound to an address that the machine does not have yet.
pub(crate) fn set_freebind(socket: impl AsFd, address: SocketAddr) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => rustix::net::sockopt::set_ip_freebind(socket, true)?,
        SocketAddr::V6(_) => rustix::net::sockopt::set_ipv6_freebind(socket, true)?,
    }
    Ok(())
}

impl AsFd for Acceptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_sockets_inherit_nodelay_and_do_not_block() {
        let acceptor = Acceptor::bind("127.0.0.1:0".parse().expect("an address"), false, false, false, Backlog(16))
            .expect("bound");
        let client = TcpStream::connect(acceptor.local_addr().expect("bound")).expect("connected");
        let (stream, peer) = acceptor.accept().expect("accepted");
        assert_eq!(peer, client.local_addr().expect("connected"));
        assert!(stream.nodelay().expect("asked"));
        let error = std::io::Read::read(&mut &stream, &mut [0; 1]).expect_err("nothing to read");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(acceptor.accept().expect_err("nobody").kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn the_ipv6_wildcard_leaves_ipv4_to_another_if_told_so() {
        let four =
            Acceptor::bind("0.0.0.0:0".parse().expect("an address"), false, false, false, Backlog(16)).expect("bound");
        let port = four.local_addr().expect("bound").port();
        let six = (std::net::Ipv6Addr::UNSPECIFIED, port).into();
        assert_eq!(
            Acceptor::bind(six, false, false, false, Backlog(16)).expect_err("taken").kind(),
            io::ErrorKind::AddrInUse
        );
        let six = Acceptor::bind(six, true, false, false, Backlog(16)).expect("bound");
        for (acceptor, to) in [(&four, "127.0.0.1"), (&six, "::1")] {
            let client = TcpStream::connect((to, port)).expect("connected");
            assert_eq!(acceptor.accept().expect("accepted").1, client.local_addr().expect("connected"));
        }
    }

    #[test]
    fn those_who_share_may_overlap_and_nobody_else_may() {
        let wide =
            Acceptor::bind("0.0.0.0:0".parse().expect("an address"), false, false, false, Backlog(16)).expect("bound");
        let port = wide.local_addr().expect("bound").port();
        let narrow = ([127, 0, 0, 1], port).into();
        assert_eq!(
            Acceptor::bind(narrow, false, false, true, Backlog(16)).expect_err("taken").kind(),
            io::ErrorKind::AddrInUse
        );
        wide.share(true).expect("shared");
        let second = Acceptor::bind(narrow, false, false, true, Backlog(16)).expect("bound");
        wide.share(false).and_then(|()| second.share(false)).expect("no more");
        let client = TcpStream::connect(narrow).expect("connected");
        assert_eq!(second.accept().expect("accepted").1, client.local_addr().expect("connected"));
        assert_eq!(
            Acceptor::bind(narrow, false, false, false, Backlog(16)).expect_err("taken").kind(),
            io::ErrorKind::AddrInUse
        );
    }

    #[test]
    fn the_ipv6_wildcard_takes_both_families() {
        let acceptor =
            Acceptor::bind("[::]:0".parse().expect("an address"), false, false, false, Backlog(16)).expect("bound");
        let port = acceptor.local_addr().expect("bound").port();
        for (to, from) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1")] {
            let _client = TcpStream::connect((to, port)).expect("connected");
            let (_, peer) = acceptor.accept().expect("accepted");
            assert_eq!(peer.ip().to_canonical().to_string(), from);
        }
    }
}

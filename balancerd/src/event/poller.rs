//! Level-triggered readiness on mio.
//!
//! mio registers every descriptor edge-triggered and has no setting for it. But it keeps no state per descriptor, its
//! token is epoll's 64-bit data, and its registry lends the epoll descriptor. So registrations made here through nix,
//! on mio's own epoll instance and without `EPOLLET`, come back from `mio::Poll` unchanged.
//!
//! Nobody else registers anything, so no descriptor is ever registered both ways.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

/// What a registration is called; the loop gets it back with each event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key(pub(crate) u64);

/// What a descriptor waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Interest {
    pub(crate) read: bool,
    pub(crate) write: bool,
    /// It stays registered for errors and hang-ups, which whoever reads or writes is told anyway.
    pub(crate) watch: bool,
}

impl Interest {
    pub(crate) const NONE: Self = Self { read: false, write: false, watch: false };
    pub(crate) const READ: Self = Self { read: true, ..Self::NONE };
    pub(crate) const WRITE: Self = Self { write: true, ..Self::NONE };
    pub(crate) const WATCH: Self = Self { watch: true, ..Self::NONE };

    fn flags(self) -> EpollFlags {
        // No EPOLLRDHUP: the end of a stream is met by reading it.
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN, self.read);
        flags.set(EpollFlags::EPOLLOUT, self.write);
        flags
    }
}

/// What a descriptor is ready for. An error or a hang-up counts as both, so that the next call on the descriptor meets
/// and consumes it; there is no other path for errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ready {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// An error or a hang-up is what was reported.
    pub(crate) failed: bool,
}

impl Ready {
    fn of(event: &mio::event::Event) -> Self {
        // mio calls a stream closed at EPOLLHUP; the other ways to that answer need EPOLLRDHUP, or an error anyway.
        let failed = event.is_error() || event.is_read_closed() || event.is_write_closed();
        Self { readable: event.is_readable() || failed, writable: event.is_writable() || failed, failed }
    }
}

/// The events of one wait.
#[derive(Debug)]
pub(crate) struct Events(mio::Events);

impl Events {
    /// Room for `capacity` events of one wait; the kernel keeps the others for the next.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self(mio::Events::with_capacity(capacity))
    }

    /// The events, in the kernel's order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, Ready)> {
        self.0.iter().map(|event| (Key(event.token().0 as u64), Ready::of(event)))
    }
}

/// The epoll instance.
#[derive(Debug)]
pub(crate) struct Poller {
    poll: mio::Poll,
    epoll: Epoll,
}

impl Poller {
    /// An empty one.
    pub(crate) fn new() -> io::Result<Self> {
        let poll = mio::Poll::new()?;
        let epoll = Epoll(poll.registry().as_fd().try_clone_to_owned()?);
        Ok(Self { poll, epoll })
    }

    /// Makes the kernel's interest in `descriptor` the wanted one. `current` is what it was the last time and belongs
    /// to whoever owns the descriptor; a system call is made only on a difference.
    ///
    /// An empty interest leaves epoll, because errors and hang-ups are reported to whoever stays.
    pub(crate) fn set(
        &self,
        descriptor: impl AsFd,
        key: Key,
        current: &mut Interest,
        wanted: Interest,
    ) -> io::Result<()> {
        if *current == wanted {
            return Ok(());
        }
        let mut event = EpollEvent::new(wanted.flags(), key.0);
        if wanted == Interest::NONE {
            self.epoll.delete(descriptor)?;
        } else if *current == Interest::NONE {
            self.epoll.add(descriptor, event)?;
        } else {
            self.epoll.modify(descriptor, &mut event)?;
        }
        *current = wanted;
        Ok(())
    }

    /// Waits until something is ready, or for `timeout`; the events replace those in `events`. Where a signal interrupts the
    /// wait, they are those that are there by then: a process that was stopped has much to hear before it looks at the time.
    pub(crate) fn wait(&mut self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        let mut timeout = timeout;
        loop {
            match self.poll.poll(&mut events.0, timeout) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => timeout = Some(Duration::ZERO),
                result => return result,
            }
        }
    }

    pub(super) fn registry(&self) -> &mio::Registry {
        self.poll.registry()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::thread;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};

    use super::super::Waker;
    use super::*;

    const KEY: Key = Key(0x8000_0000_0000_0007);
    const LONG: Option<Duration> = Some(Duration::from_secs(20));
    const NOT_AT_ALL: Option<Duration> = Some(Duration::ZERO);

    struct Bench {
        poller: Poller,
        events: Events,
    }

    impl Bench {
        fn new() -> Self {
            Self { poller: Poller::new().expect("epoll"), events: Events::with_capacity(16) }
        }

        fn wait(&mut self, timeout: Option<Duration>) -> Vec<(Key, Ready)> {
            self.poller.wait(&mut self.events, timeout).expect("a wait");
            self.events.iter().collect()
        }
    }

    fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let client = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
        (client, listener.accept().expect("the other end").0)
    }

    const ABORT: nix::libc::linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    const READABLE: Ready = Ready { readable: true, writable: false, failed: false };
    const WRITABLE: Ready = Ready { readable: false, writable: true, failed: false };
    const FAILED: Ready = Ready { readable: true, writable: true, failed: true };

    #[test]
    fn what_is_not_read_is_reported_again_at_level() {
        let mut bench = Bench::new();
        let (mut far, near) = UnixStream::pair().expect("a pair");
        bench.poller.set(&near, KEY, &mut Interest::NONE.clone(), Interest::READ).expect("registered");
        assert_eq!(bench.wait(NOT_AT_ALL), []);
        far.write_all(b"xy").expect("written");
        for _ in 0..3 {
            assert_eq!(bench.wait(LONG), [(KEY, READABLE)]);
        }
        (&near).read_exact(&mut [0; 1]).expect("one byte");
        assert_eq!(bench.wait(LONG), [(KEY, READABLE)], "the other byte is still there");
        (&near).read_exact(&mut [0; 1]).expect("one byte");
        assert_eq!(bench.wait(NOT_AT_ALL), []);
    }

    #[test]
    fn rule_8_an_interest_that_stays_costs_no_system_call() {
        let bench = Bench::new();
        let (_far, near) = UnixStream::pair().expect("a pair");
        let mut current = Interest::NONE;
        bench.poller.set(&near, KEY, &mut current, Interest::READ).expect("registered");
        // The kernel would say EBADF to a call with this descriptor: a poller is no member of itself.
        bench.poller.set(bench.poller.registry(), KEY, &mut current, Interest::READ).expect("no call is made");
        assert_eq!(current, Interest::READ);
        let error = bench.poller.set(bench.poller.registry(), KEY, &mut current, Interest::WRITE);
        assert!(error.is_err(), "a difference is a call");
        assert_eq!(current, Interest::READ, "a failed call changes nothing");
    }

    #[test]
    fn rule_2_an_empty_interest_leaves_epoll_though_the_peer_hung_up() {
        let mut bench = Bench::new();
        let (far, near) = UnixStream::pair().expect("a pair");
        let mut current = Interest::NONE;
        bench.poller.set(&near, KEY, &mut current, Interest::READ).expect("registered");
        drop(far);
        assert_eq!(bench.wait(LONG), [(KEY, FAILED)]);
        bench.poller.set(&near, KEY, &mut current, Interest::NONE).expect("left");
        assert_eq!(bench.wait(NOT_AT_ALL), [], "a hang-up is not reported to who left");
        bench.poller.set(&near, KEY, &mut current, Interest::WRITE).expect("came back");
        assert_eq!(bench.wait(LONG), [(KEY, FAILED)]);
    }

    #[test]
    fn rule_2_who_only_watches_is_told_of_a_break_and_of_nothing_else() {
        let mut bench = Bench::new();
        let (mut far, near) = tcp_pair();
        bench.poller.set(&near, KEY, &mut Interest::NONE.clone(), Interest::WATCH).expect("registered");
        far.write_all(b"x").expect("written");
        far.shutdown(Shutdown::Write).expect("half closed");
        assert_eq!(bench.wait(NOT_AT_ALL), [], "neither words nor an end");
        nix::sys::socket::setsockopt(&far, nix::sys::socket::sockopt::Linger, &ABORT).expect("set");
        drop(far);
        assert_eq!(bench.wait(LONG), [(KEY, FAILED)]);
    }

    #[test]
    fn rule_3_after_the_end_a_socket_stays_readable_until_read_is_dropped() {
        let mut bench = Bench::new();
        let (far, near) = tcp_pair();
        let mut current = Interest::NONE;
        bench.poller.set(&near, KEY, &mut current, Interest::READ).expect("registered");
        far.shutdown(Shutdown::Write).expect("half closed");
        for _ in 0..3 {
            assert_eq!(bench.wait(LONG), [(KEY, READABLE)], "no EPOLLRDHUP, no hang-up: only readable");
            assert_eq!((&near).read(&mut [0; 8]).expect("the end"), 0);
        }
        bench.poller.set(&near, KEY, &mut current, Interest::NONE).expect("left");
        assert_eq!(bench.wait(NOT_AT_ALL), []);
    }

    #[test]
    fn rule_4_an_icmp_error_on_a_connected_datagram_socket_is_readable_and_consumed_by_reading() {
        let mut bench = Bench::new();
        let gone = UdpSocket::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.connect(gone).expect("connected");
        bench.poller.set(&socket, KEY, &mut Interest::NONE.clone(), Interest::READ).expect("registered");
        socket.send(b"x").expect("sent");
        assert_eq!(bench.wait(LONG), [(KEY, FAILED)]);
        assert_eq!(socket.recv(&mut [0; 8]).expect_err("refused").kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(bench.wait(NOT_AT_ALL), []);
    }

    #[test]
    fn rule_4_a_refused_connect_is_readable_and_writable() {
        let mut bench = Bench::new();
        let gone = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let descriptor = socket(AddressFamily::Inet, SockType::Stream, flags, None).expect("a socket");
        let stream = TcpStream::from(descriptor);
        let _ = connect(std::os::fd::AsRawFd::as_raw_fd(&stream), &SockaddrStorage::from(gone));
        bench.poller.set(&stream, KEY, &mut Interest::NONE.clone(), Interest::WRITE).expect("registered");
        assert_eq!(bench.wait(LONG), [(KEY, FAILED)]);
        let error = stream.take_error().expect("asked").expect("an error");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn rule_6_a_waker_coexists_and_is_reported_once() {
        let mut bench = Bench::new();
        let (mut far, near) = UnixStream::pair().expect("a pair");
        bench.poller.set(&near, KEY, &mut Interest::NONE.clone(), Interest::READ).expect("registered");
        far.write_all(b"x").expect("written");
        let waker = Arc::new(Waker::new(&bench.poller, Key(1)).expect("a waker"));
        let other = Arc::clone(&waker);
        thread::spawn(move || other.wake()).join().expect("woken");
        let mut keys: Vec<Key> = bench.wait(LONG).into_iter().map(|(key, _)| key).collect();
        keys.sort_by_key(|key| key.0);
        assert_eq!(keys, [Key(1), KEY]);
        assert_eq!(bench.wait(LONG), [(KEY, READABLE)], "edge-triggered: the waker is not reported again");
    }

    #[test]
    fn rule_7_an_unconnected_socket_reports_a_hang_up_so_it_is_registered_after_connect() {
        let mut bench = Bench::new();
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let unconnected = socket(AddressFamily::Inet, SockType::Stream, flags, None).expect("a socket");
        bench.poller.set(&unconnected, KEY, &mut Interest::NONE.clone(), Interest::WRITE).expect("registered");
        assert_eq!(bench.wait(LONG), [(KEY, FAILED)]);
        assert_eq!(bench.wait(LONG), [(KEY, FAILED)], "and for ever");

        let mut bench = Bench::new();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let stream = TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
        bench.poller.set(&stream, KEY, &mut Interest::NONE.clone(), Interest::WRITE).expect("registered");
        assert_eq!(bench.wait(LONG), [(KEY, WRITABLE)]);
    }
}

//! The listener of a service: accepts in small portions, and leaves epoll while a new session could not be served.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tracing::{debug, warn};
use wire::connection::{ClientSide, ServerSide, SocketSettings};
use wire::settings::Transport;

use super::{options, words};
use crate::event::{Acceptor, Backlog, Interest, Key, Poller};
use crate::model::ServiceId;

/// Connections that wait in the kernel for their accept, until it is said otherwise. Enough for a second of a storm; `net.core.somaxconn` caps it.
const BACKLOG: Backlog = Backlog(4096);

/// Connections that one turn takes at most. The others wait for the next turn, behind the sessions that are ready.
const MOST_ACCEPTS: u32 = 16;

/// How long a listener stays away when the system is short of something and no session of ours ends.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

slotmap::new_key_type! {
    /// A listener, as long as it is open.
    pub(crate) struct ListenerId;
}

/// A listening socket and how it goes on.
#[derive(Debug)]
pub(crate) struct Listener {
    acceptor: Acceptor,
    service: ServiceId,
    place: Place,
    address: SocketAddr,
    registered: Interest,
    short_until: Option<Instant>,
    portion: u32,
    /// What it was set to the last time.
    side: Option<ClientSide>,
}

/// Where a listener is to be, as it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) address: SocketAddr,
    /// It takes no IPv4 clients, although it is the IPv6 wildcard: somebody else is there for them.
    pub(crate) only_ipv6: bool,
    /// The machine may not have the address yet.
    pub(crate) freebind: bool,
}

impl Place {
    /// Whether a listener that is here does for one that is wanted there. One that has left IPv4 clients to another goes
    /// on to do so when the other goes: whoever took that one away did not mean its clients to come here.
    pub(crate) fn does_for(self, wanted: Self) -> bool {
        self.address == wanted.address && (self.only_ipv6 || !wanted.only_ipv6)
    }
}

/// What a service listens with: it accepts connections, or it receives datagrams.
pub(crate) trait Endpoint: Sized {
    /// What it speaks.
    const TRANSPORT: Transport;

    /// Binds a place, for nobody yet. With `sharing` it may overlap with those that [share](Self::share) theirs.
    fn bind(place: Place, sharing: bool) -> Result<Self, ListenError>;

    /// Where it is, as it was asked for.
    fn place(&self) -> Place;

    /// Where it listens, with the port that the kernel chose for port 0.
    fn address(&self) -> SocketAddr;

    /// Whom it listens for.
    fn service(&self) -> ServiceId;

    /// Listens for another service: a reload may give a place to one.
    fn serve(&mut self, service: ServiceId);

    /// Lets further ones overlap with this one, or no more. A socket that cannot do it lets nobody.
    fn share(&self, sharing: bool);
}

/// Why an address could not be listened on, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    /// The address cannot be had.
    #[error("listening on {address} failed{}", advice(.source))]
    Address {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel does not take what its clients' connections are set to.
    #[error("service {service}: {fault}")]
    Option {
        /// Whose clients.
        service: String,
        /// Which option, and what the kernel said.
        fault: String,
    },
    /// The kernel does not take what the connections to a pool's servers are set to.
    #[error("pool {pool}: {fault}")]
    PoolOption {
        /// To whose servers.
        pool: String,
        /// Which option, and what the kernel said.
        fault: String,
    },
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => " because another program listens there; stop it, or choose another port",
        io::ErrorKind::AddrNotAvailable => {
            " because this machine does not have that address; `ip address` shows those it has. To listen there before it has it, set freebind = true of the service, or the sysctl net.ipv4.ip_nonlocal_bind (net.ipv6.ip_nonlocal_bind)"
        }
        io::ErrorKind::PermissionDenied => "; ports below 1024 need root or the capability CAP_NET_BIND_SERVICE",
        _ => "",
    }
}

/// What one accept came to.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// A client.
    Client(TcpStream, SocketAddr),
    /// A client that was gone before it was accepted; there may be another.
    Gone(io::Error),
    /// Nobody is there.
    Nobody,
    /// The system is short of descriptors or memory: the listener stays away for a while.
    Short(io::Error),
}

impl Endpoint for Listener {
    const TRANSPORT: Transport = Transport::Tcp;

    fn bind(place: Place, sharing: bool) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Address { address: place.address, source };
        let acceptor =
            Acceptor::bind(place.address, place.only_ipv6, place.freebind, sharing, BACKLOG).map_err(failed)?;
        let address = acceptor.local_addr().map_err(failed)?;
        let service = ServiceId::default();
        Ok(Self {
            acceptor,
            service,
            place,
            address,
            registered: Interest::NONE,
            short_until: None,
            portion: 1,
            side: None,
        })
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
        if let Err(error) = self.acceptor.share(sharing) {
            debug!(%error, "a listener's port cannot be shared");
        }
    }
}

impl Listener {
    /// Sets what its next clients inherit, if that is not what it was set to.
    pub(crate) fn set(&mut self, side: &ClientSide) {
        if self.side.as_ref() == Some(side) {
            return;
        }
        if let Err((option, errno)) = options::set_listener(&self.acceptor, side) {
            warn!(address = %self.address, option, error = errno.desc(), "a listener does not have what it is set to");
        }
        if let Err(error) = self.acceptor.listen(backlog(side)) {
            warn!(address = %self.address, %error, "a listener keeps its old backlog");
        }
        self.side = Some(side.clone());
    }

    /// Clients that may wait at it, and so are let in when it is about to close: those who waited at that moment, not those
    /// who come on. The queue of the kernel has room for one more than it is told.
    pub(crate) fn most_waiting(&self) -> u32 {
        self.side.as_ref().map_or(BACKLOG, backlog).0.unsigned_abs() + 1
    }

    /// How many accepts this turn is worth. An accept that finds nobody costs more than one that finds somebody, so
    /// the portion grows only while whole portions are there, and falls back at once.
    pub(crate) fn portion(&self) -> u32 {
        self.portion
    }

    /// A whole portion was there: the queue may be long.
    pub(crate) fn on_whole_portion(&mut self) {
        self.portion = (self.portion * 2).min(MOST_ACCEPTS);
    }

    /// Takes one connection, if one is there.
    pub(crate) fn accept(&mut self, now: Instant) -> Accepted {
        match self.acceptor.accept() {
            Ok((stream, peer)) => Accepted::Client(stream, peer),
            Err(error) => {
                let outcome = classify(error);
                if !matches!(outcome, Accepted::Gone(_)) {
                    self.portion = 1;
                }
                if matches!(outcome, Accepted::Short(_)) {
                    self.short_until = Some(now + SHORTAGE_PAUSE);
                }
                outcome
            }
        }
    }

    /// A session ended, and with it two descriptors came back: no need to wait longer.
    pub(crate) fn on_relief(&mut self) {
        self.short_until = None;
    }

    /// The end of the pause, if there is one.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.short_until
    }

    /// Ends the pause when its time has come.
    pub(crate) fn expire(&mut self, now: Instant) {
        if self.short_until.is_some_and(|until| until <= now) {
            self.short_until = None;
        }
    }

    /// What it waits for, given whether there is room for a session.
    pub(crate) fn interest(&self, room: bool) -> Interest {
        Interest { read: room && self.short_until.is_none(), ..Interest::NONE }
    }

    /// Tells the poller, if something changed. Whether it accepts now. When epoll has no room for it, it stays away for a
    /// while, as when descriptors are short.
    pub(crate) fn settle(&mut self, poller: &Poller, key: Key, room: bool, now: Instant) -> io::Result<bool> {
        let wanted = self.interest(room);
        poller.set(&self.acceptor, key, &mut self.registered, wanted).inspect_err(|_| {
            self.short_until = Some(now + SHORTAGE_PAUSE);
        })?;
        Ok(wanted.read)
    }
}

/// Whether a listener can be set so: tried on a socket that nobody knows of.
///
/// # Errors
/// Says which option the kernel does not take.
pub(crate) fn check(side: &ClientSide) -> Result<(), String> {
    if *side == ClientSide::default() {
        return Ok(());
    }
    tried(&side.socket, |socket| options::set_listener(socket, side))
}

/// The same of a socket towards a server. What asks for a capability or a device is met at the connect: it may come later.
///
/// # Errors
/// The same.
pub(crate) fn check_servers(side: &ServerSide) -> Result<(), String> {
    if side.socket == SocketSettings::default() {
        return Ok(());
    }
    tried(&side.socket, |socket| options::set_named(socket, &side.socket))
}

fn tried(settings: &SocketSettings, set: impl Fn(&OwnedFd) -> Result<(), (&'static str, Errno)>) -> Result<(), String> {
    // Asked for one that is not loaded, the kernel would run a program that loads it, and this thread would wait for that.
    if settings.congestion.as_ref().is_some_and(|name| !is_loaded(name)) {
        return Err(format!("congestion: {}", words(Errno::ENOENT)));
    }
    let failed = |errno: Errno| format!("a socket to try options on: {}", errno.desc());
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None).map_err(failed)?;
    set(&socket).map_err(|(option, errno)| format!("{option}: {}", words(errno)))
}

/// Whether the kernel has this congestion control at hand; a kernel that does not tell has to be asked for it.
fn is_loaded(congestion: &str) -> bool {
    let loaded = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control");
    loaded.map_or(true, |loaded| loaded.split_whitespace().any(|name| name == congestion))
}

fn backlog(side: &ClientSide) -> Backlog {
    Backlog(i32::try_from(side.backlog.get()).unwrap_or(i32::MAX))
}

/// accept(2): the errors of a connection that is already broken are passed on by Linux and are no fault of the
/// listener; those of the system are met again at the next call. One that nobody has heard of counts as the latter,
/// because to try again at once would spin.
fn classify(error: io::Error) -> Accepted {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EAGAIN) => Accepted::Nobody,
        Some(
            Errno::ECONNABORTED
            | Errno::EINTR
            | Errno::EPROTO
            | Errno::EPERM
            | Errno::ENETDOWN
            | Errno::ENOPROTOOPT
            | Errno::EHOSTDOWN
            | Errno::ENONET
            | Errno::EHOSTUNREACH
            | Errno::ENETUNREACH
            | Errno::EOPNOTSUPP,
        ) => Accepted::Gone(error),
        _ => Accepted::Short(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Events, now};

    fn listener() -> Listener {
        let place = Place { address: "127.0.0.1:0".parse().expect("an address"), only_ipv6: false, freebind: false };
        Listener::bind(place, false).expect("bound")
    }

    #[test]
    fn errors_of_accept_are_told_apart() {
        let of = |errno: Errno| classify(io::Error::from_raw_os_error(errno as i32));
        assert!(matches!(of(Errno::EAGAIN), Accepted::Nobody));
        for errno in [Errno::ECONNABORTED, Errno::EINTR, Errno::EPROTO, Errno::EHOSTUNREACH] {
            assert!(matches!(of(errno), Accepted::Gone(_)), "{errno}");
        }
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM, Errno::EINVAL] {
            assert!(matches!(of(errno), Accepted::Short(_)), "{errno}");
        }
    }

    #[test]
    fn the_portion_grows_while_whole_portions_are_there_and_falls_back_at_once() {
        let mut listener = listener();
        let sizes: Vec<u32> = (0..6)
            .map(|_| {
                let size = listener.portion();
                listener.on_whole_portion();
                size
            })
            .collect();
        assert_eq!(sizes, [1, 2, 4, 8, 16, 16]);
        assert!(matches!(listener.accept(now()), Accepted::Nobody));
        assert_eq!(listener.portion(), 1);
    }

    #[test]
    fn rule_5_a_listener_without_room_leaves_epoll_and_comes_back() {
        let mut listener = listener();
        let mut poller = Poller::new().expect("epoll");
        let mut events = Events::with_capacity(4);
        let mut keys = |poller: &mut Poller, wait: Duration| {
            poller.wait(&mut events, Some(wait)).expect("a wait");
            events.iter().map(|(key, _)| key).collect::<Vec<_>>()
        };
        let (key, long) = (Key(3), Duration::from_secs(20));
        let _client = TcpStream::connect(listener.address()).expect("in the backlog");
        let start = now();
        assert!(listener.settle(&poller, key, true, start).expect("registered"));
        assert_eq!(keys(&mut poller, long), [key]);
        assert_eq!(keys(&mut poller, long), [key], "a listener that does not accept stays readable");

        listener.short_until = Some(start + SHORTAGE_PAUSE);
        assert!(!listener.settle(&poller, key, true, start).expect("left"));
        assert_eq!(keys(&mut poller, Duration::ZERO), [], "it has left epoll");
        listener.expire(start);
        assert_eq!(listener.next_deadline(), Some(start + SHORTAGE_PAUSE), "not yet");
        listener.expire(start + SHORTAGE_PAUSE);
        assert!(!listener.settle(&poller, key, false, start).expect("still away"), "no room is a reason of its own");
        assert!(listener.settle(&poller, key, true, start).expect("came back"));
        assert_eq!(keys(&mut poller, long), [key]);

        listener.short_until = Some(start + SHORTAGE_PAUSE);
        listener.on_relief();
        assert_eq!(listener.interest(true), Interest::READ, "a session that ended ends the pause");
    }
}

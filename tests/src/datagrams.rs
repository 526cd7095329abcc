//! A server and a client of datagrams. The server keeps what it has heard and from whom; the client takes nothing that does
//! not come from where it asked.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use nix::cmsg_space;
use nix::sys::socket::{
    self, ControlMessage, ControlMessageOwned, MsgFlags, RecvMsg, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use wire::report::DropReason;

use crate::{Balancer, Setup, config, loopback, wait};

/// The longest datagram over IPv4; over IPv6 it may be 20 bytes longer, for there is no header in its length.
pub const LONGEST: usize = 65_507;

/// What a socket of a test may hold: nothing is lost here while a test does something else.
const BUFFER: usize = 8 * 1024 * 1024;

/// What a server answers to a datagram; it is told its own name.
type Conduct = dyn Fn(SocketAddr, &[u8]) -> Vec<Vec<u8>> + Send + Sync;

/// A datagram as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// From whom.
    pub from: SocketAddr,
    /// What.
    pub bytes: Vec<u8>,
}

/// A server. Its name is its address. It ends when this is dropped.
pub struct DatagramServer {
    address: SocketAddr,
    conduct: Arc<Conduct>,
    shared: Arc<Shared>,
    running: Option<Running>,
}

#[derive(Default)]
struct Shared {
    heard: Mutex<Vec<Heard>>,
    /// Times that something was received: a train that came as one is one.
    calls: AtomicUsize,
}

struct Running {
    socket: Arc<UdpSocket>,
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl DatagramServer {
    /// One that says its name and, behind it, gives back what it gets.
    #[must_use]
    pub fn start() -> Self {
        Self::with(named)
    }

    /// So many of them.
    #[must_use]
    pub fn several(count: usize) -> Vec<Self> {
        (0..count).map(|_| Self::start()).collect()
    }

    /// One that gives back what it gets, and nothing else.
    #[must_use]
    pub fn echo() -> Self {
        Self::with(|_, bytes| vec![bytes.to_vec()])
    }

    /// One that answers nothing.
    #[must_use]
    pub fn silent() -> Self {
        Self::with(|_, _| Vec::new())
    }

    /// One that answers this.
    pub fn with(conduct: impl Fn(SocketAddr, &[u8]) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Self {
        Self::at(SocketAddr::new(loopback::fresh(), 0), conduct)
    }

    /// One at this address that answers this.
    ///
    /// # Panics
    /// When the address is taken.
    pub fn at(
        address: SocketAddr,
        conduct: impl Fn(SocketAddr, &[u8]) -> Vec<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let mut server = Self { address, conduct: Arc::new(conduct), shared: Arc::default(), running: None };
        server.run();
        server
    }

    /// Is there, where it was before: after [`DatagramServer::stop`].
    ///
    /// # Panics
    /// When the address is taken.
    pub fn run(&mut self) {
        let socket = Arc::new(bound(self.address));
        self.address = socket.local_addr().expect("bound");
        let is_over = Arc::new(AtomicBool::new(false));
        let thread = {
            let (name, conduct, shared) = (self.address, Arc::clone(&self.conduct), Arc::clone(&self.shared));
            let (socket, is_over) = (Arc::clone(&socket), Arc::clone(&is_over));
            thread::spawn(move || {
                let mut buffer = vec![0; 1 << 16];
                while let Ok((from, parts)) = receive(&socket, &mut buffer) {
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                    shared.calls.fetch_add(1, Ordering::Relaxed);
                    let heard = parts.iter().map(|bytes| Heard { from, bytes: bytes.clone() });
                    lock(&shared.heard).extend(heard);
                    for answer in parts.iter().flat_map(|bytes| conduct(name, bytes)) {
                        // Whether it arrives is for the client to see.
                        let _ = socket.send_to(&answer, from);
                    }
                }
            })
        };
        self.running = Some(Running { socket, is_over, thread });
    }

    /// Closes its port: who sends there hears so.
    ///
    /// # Panics
    /// When its thread has failed.
    pub fn stop(&mut self) {
        let Some(Running { socket, is_over, thread }) = self.running.take() else { return };
        is_over.store(true, Ordering::Relaxed);
        // It is not connected, which is said; who waits wakes up all the same.
        let _ = socket::shutdown(socket.as_raw_fd(), socket::Shutdown::Both);
        thread.join().expect("it ends in order");
    }

    /// Where it is, which is its name too.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes trains as one from now on.
    ///
    /// # Panics
    /// When it is stopped, or the kernel cannot do it.
    pub fn join_trains(&self) {
        setsockopt(&self.socket(), sockopt::UdpGroSegment, &true).expect("set");
    }

    /// Sends something by itself.
    ///
    /// # Panics
    /// When it is stopped, or it cannot be sent.
    pub fn send(&self, to: SocketAddr, bytes: &[u8]) {
        self.socket().send_to(bytes, to).expect("sent");
    }

    /// Sends these datagrams, all of one size but the last, in one call.
    ///
    /// # Panics
    /// When it is stopped, or they cannot be sent.
    pub fn send_train(&self, to: SocketAddr, datagrams: &[Vec<u8>]) {
        send_train(&self.socket(), to, datagrams);
    }

    fn socket(&self) -> Arc<UdpSocket> {
        Arc::clone(&self.running.as_ref().expect("it runs").socket)
    }

    /// All that it has heard, in order.
    #[must_use]
    pub fn heard(&self) -> Vec<Heard> {
        lock(&self.shared.heard).clone()
    }

    /// All that it has heard, in order, without from whom.
    #[must_use]
    pub fn words(&self) -> Vec<Vec<u8>> {
        self.heard().into_iter().map(|heard| heard.bytes).collect()
    }

    /// Datagrams that it has heard.
    #[must_use]
    pub fn count(&self) -> usize {
        lock(&self.shared.heard).len()
    }

    /// Times that it has received something: a train that came as one is one.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.shared.calls.load(Ordering::Relaxed)
    }

    /// Waits until it has heard so many datagrams, and gives them.
    ///
    /// # Panics
    /// When they do not come.
    #[must_use]
    pub fn wait_for(&self, count: usize) -> Vec<Heard> {
        wait::until(&format!("{} hears {count} datagrams", self.address), || self.count() >= count);
        self.heard()
    }

    /// Waits until it has heard this, and gives who said it.
    ///
    /// # Panics
    /// When it does not come.
    #[must_use]
    pub fn who_said(&self, words: &[u8]) -> SocketAddr {
        wait::for_some("a server hears it", || {
            lock(&self.shared.heard).iter().find(|heard| heard.bytes == words).map(|heard| heard.from)
        })
    }
}

impl Drop for DatagramServer {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.stop();
        }
    }
}

/// The conduct of a server that says its name and gives back what it gets.
#[must_use]
pub fn named(name: SocketAddr, bytes: &[u8]) -> Vec<Vec<u8>> {
    vec![[format!("{name}\n").as_bytes(), bytes].concat()]
}

/// A client: one socket, and one address that it asks. Nothing on it waits for longer than [`wait::LIMIT`].
#[derive(Debug)]
pub struct DatagramClient {
    socket: UdpSocket,
    to: SocketAddr,
}

impl DatagramClient {
    /// From the usual address of this machine.
    #[must_use]
    pub fn new(to: SocketAddr) -> Self {
        let ip = if to.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        Self::from(ip, to)
    }

    /// From this address.
    ///
    /// # Panics
    /// When there is no socket.
    #[must_use]
    pub fn from(ip: IpAddr, to: SocketAddr) -> Self {
        Self { socket: bound(SocketAddr::new(ip, 0)), to }
    }

    /// The same socket, asking another address.
    ///
    /// # Panics
    /// When there is no further descriptor.
    #[must_use]
    pub fn asking(&self, to: SocketAddr) -> Self {
        Self { socket: self.socket.try_clone().expect("a copy"), to }
    }

    /// Its own address.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.socket.local_addr().expect("bound")
    }

    /// Takes trains as one from now on.
    ///
    /// # Panics
    /// When the kernel cannot do it.
    pub fn join_trains(&self) {
        setsockopt(&self.socket, sockopt::UdpGroSegment, &true).expect("set");
    }

    /// Sends one datagram.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub fn send(&self, bytes: &[u8]) {
        self.socket.send_to(bytes, self.to).expect("sent");
    }

    /// Sends these datagrams, all of one size but the last, in one call.
    ///
    /// # Panics
    /// When they cannot be sent.
    pub fn send_train(&self, datagrams: &[Vec<u8>]) {
        send_train(&self.socket, self.to, datagrams);
    }

    /// Receives once: one datagram, or several if trains are taken as one.
    ///
    /// # Panics
    /// When nothing comes, or from elsewhere than was asked.
    #[must_use]
    pub fn receive_all(&self) -> Vec<Vec<u8>> {
        let (from, parts) = receive(&self.socket, &mut vec![0; 1 << 16]).expect("an answer comes");
        assert_eq!(from, self.to, "the answer comes from where it was asked");
        parts
    }

    /// Receives one datagram, from where it asked.
    ///
    /// # Panics
    /// When none comes, or from elsewhere.
    #[must_use]
    pub fn receive(&self) -> Vec<u8> {
        self.receive_all().remove(0)
    }

    /// Receives one datagram from anywhere.
    ///
    /// # Panics
    /// When none comes.
    #[must_use]
    pub fn receive_from(&self) -> (SocketAddr, Vec<u8>) {
        let (from, mut parts) = receive(&self.socket, &mut vec![0; 1 << 16]).expect("an answer comes");
        (from, parts.remove(0))
    }

    /// Receives the answer of a server that says its name: the name, and what is behind.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn answer(&self) -> (SocketAddr, Vec<u8>) {
        of_named(&self.receive())
    }

    /// Asks a server that says its name, which it gives.
    ///
    /// # Panics
    /// When it is not given back what it said.
    #[must_use]
    pub fn ask(&self, bytes: &[u8]) -> SocketAddr {
        self.send(bytes);
        let (name, said) = self.answer();
        assert!(said == bytes, "it gets the answer to what it asked");
        name
    }

    /// Asks until a server that says its name answers: for times at which questions are lost.
    ///
    /// # Panics
    /// When none does.
    #[must_use]
    pub fn ask_until_answered(&self, bytes: &[u8]) -> SocketAddr {
        wait::for_some("a question is answered", || {
            self.send(bytes);
            crate::wait::until_readable(&self.socket).then(|| {
                let (name, said) = self.answer();
                assert!(said == bytes, "it gets the answer to what it asked");
                name
            })
        })
    }

    /// Checks that nothing more has come so far. It proves something only behind an answer that came later.
    ///
    /// # Panics
    /// When something is there.
    pub fn assert_nothing_more(&self) {
        let flags = MsgFlags::MSG_DONTWAIT;
        let mut buffer = [0; 64];
        let result = socket::recv(self.socket.as_raw_fd(), &mut buffer, flags);
        assert_eq!(result, Err(nix::errno::Errno::EAGAIN), "{:?}", String::from_utf8_lossy(&buffer));
    }
}

impl Balancer {
    /// One with the service `udp`, on the pool `default` of these servers, each with these lines of keys.
    pub fn of_datagrams<'a>(service: &str, pool: &str, servers: impl IntoIterator<Item = &'a DatagramServer>) -> Self {
        let text = config::datagrams(loopback::free(), service) + &config::datagram_pool(pool, servers);
        Setup::new().config(&text).start()
    }

    /// A client of datagrams, from the usual address.
    #[must_use]
    pub fn datagrams(&self) -> DatagramClient {
        DatagramClient::new(self.address())
    }

    /// The client of datagrams with this number.
    #[must_use]
    pub fn datagrams_of(&self, number: u32) -> DatagramClient {
        DatagramClient::from(loopback::client(number), self.address())
    }

    /// The server that the client with this number has.
    ///
    /// # Panics
    /// When it has none, or one of several.
    #[must_use]
    pub fn server_of(&self, number: u32) -> SocketAddr {
        self.explain(loopback::client(number)).server.expect("it has a server")
    }

    /// The lowest numbers of clients that have this server.
    #[must_use]
    pub fn clients_of(&self, server: SocketAddr, count: usize) -> Vec<u32> {
        (0..).filter(|number| self.server_of(*number) == server).take(count).collect()
    }

    /// Datagrams of clients that were dropped for this reason.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.service().datagrams.dropped_in.get(&reason).copied().unwrap_or_default()
    }
}

impl AsFd for DatagramClient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The name that a server said first, and what is behind.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn of_named(answer: &[u8]) -> (SocketAddr, Vec<u8>) {
    let end = answer.iter().position(|byte| *byte == b'\n').expect("a name");
    let name = std::str::from_utf8(&answer[..end]).expect("text");
    (name.parse().expect("an address"), answer[end + 1..].to_vec())
}

fn bound(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &BUFFER).expect("set");
    }
    socket.set_read_timeout(Some(wait::LIMIT)).expect("a limit");
    socket
}

/// One datagram, or those of a train that came as one.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(SocketAddr, Vec<Vec<u8>>)> {
    let mut control = cmsg_space!(i32);
    let mut buffers = [IoSliceMut::new(buffer)];
    let message: RecvMsg<'_, '_, SockaddrStorage> = loop {
        match recvmsg(socket.as_raw_fd(), &mut buffers, Some(&mut control), MsgFlags::empty()) {
            // Of somebody who was answered.
            Err(nix::errno::Errno::ECONNREFUSED) => {}
            result => break result?,
        }
    };
    let of_train = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
        _ => None,
    });
    let (length, address) = (message.bytes, message.address);
    let from = match address {
        Some(address) => match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(ipv4), _) => std::net::SocketAddrV4::from(*ipv4).into(),
            (_, Some(ipv6)) => std::net::SocketAddrV6::from(*ipv6).into(),
            _ => (Ipv4Addr::UNSPECIFIED, 0).into(),
        },
        None => (Ipv4Addr::UNSPECIFIED, 0).into(),
    };
    let bytes = &buffer[..length];
    let parts = if bytes.is_empty() {
        vec![Vec::new()]
    } else {
        bytes.chunks(of_train.unwrap_or(length)).map(<[u8]>::to_vec).collect()
    };
    Ok((from, parts))
}

/// Sends these datagrams, all of one size but the last, in one call.
///
/// # Panics
/// When they cannot be sent.
pub fn send_train(socket: &UdpSocket, to: SocketAddr, datagrams: &[Vec<u8>]) {
    let size = u16::try_from(datagrams[0].len()).expect("it fits");
    let control = [ControlMessage::UdpGsoSegments(&size)];
    let bytes = datagrams.concat();
    let to = SockaddrStorage::from(to);
    let sent = sendmsg(socket.as_raw_fd(), &[IoSlice::new(&bytes)], &control, MsgFlags::empty(), Some(&to));
    assert_eq!(sent, Ok(bytes.len()));
}

/// Sockets of this machine that are connected to this address: lines of proc_net_udp.
///
/// # Panics
/// When there is no such table.
#[must_use]
pub fn sockets_towards(address: SocketAddr) -> usize {
    let (table, number) = match address.ip() {
        IpAddr::V4(ip) => ("/proc/net/udp", format!("{:08X}", u32::from_ne_bytes(ip.octets()))),
        IpAddr::V6(ip) => {
            let words = ip.octets();
            let words = words.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().expect("four bytes")));
            ("/proc/net/udp6", words.map(|word| format!("{word:08X}")).collect())
        }
    };
    let wanted = format!("{number}:{:04X}", address.port());
    let text = std::fs::read_to_string(table).expect("the table");
    text.lines().filter(|line| line.split_whitespace().nth(2) == Some(&wanted)).count()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! A server: says who it is, and does as the test wants.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt};

use crate::{client, loopback, wait};

/// What a server does with one connection; the connection is closed behind it.
type Conduct = dyn Fn(&TcpStream, SocketAddr) -> io::Result<()> + Send + Sync;

/// A server. Its name is its address. It ends, with its connections, when this is dropped.
pub struct Server {
    socket: Arc<TcpListener>,
    address: SocketAddr,
    conduct: Arc<Conduct>,
    connections: Arc<Mutex<Connections>>,
}

#[derive(Default)]
struct Connections {
    living: Vec<Weak<TcpStream>>,
    total: usize,
}

impl Server {
    /// One that says its name and then gives back what it gets, to the end.
    #[must_use]
    pub fn start() -> Self {
        Self::with(echo)
    }

    /// So many of them.
    #[must_use]
    pub fn several(count: usize) -> Vec<Self> {
        (0..count).map(|_| Self::start()).collect()
    }

    /// One at `ip`.
    #[must_use]
    pub fn start_at(ip: IpAddr) -> Self {
        Self::at(ip, echo)
    }

    /// One that does this with each connection.
    pub fn with(conduct: impl Fn(&TcpStream, SocketAddr) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self::at(loopback::fresh(), conduct)
    }

    /// One at `ip` that does this with each connection.
    pub fn at(ip: IpAddr, conduct: impl Fn(&TcpStream, SocketAddr) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let server = Self::bound(ip, conduct);
        server.listen();
        server
    }

    /// One that says its name and then only reads, to the end.
    #[must_use]
    pub fn silent() -> Self {
        Self::with(|stream, name| {
            say_name(stream, name)?;
            io::copy(&mut &*stream, &mut io::sink()).map(drop)
        })
    }

    /// One that refuses: its port is its own, and nobody listens there until [`Server::listen`].
    #[must_use]
    pub fn refusing() -> Self {
        Self::bound(loopback::fresh(), echo)
    }

    /// One that resets each connection that has sent it a byte.
    #[must_use]
    pub fn resetting() -> Self {
        Self::with(|mut stream, _| {
            stream.read_exact(&mut [0])?;
            client::reset(stream);
            Ok(())
        })
    }

    fn bound(ip: IpAddr, conduct: impl Fn(&TcpStream, SocketAddr) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let socket = Arc::new(place(ip));
        let address = socket.local_addr().expect("an address");
        Self { socket, address, conduct: Arc::new(conduct), connections: Arc::default() }
    }

    /// Begins to accept.
    ///
    /// # Panics
    /// When it cannot.
    pub fn listen(&self) {
        socket::listen(&self.socket, Backlog::new(4096).expect("a number")).expect("it listens");
        let (socket, address) = (Arc::clone(&self.socket), self.address);
        let (conduct, connections) = (Arc::clone(&self.conduct), Arc::clone(&self.connections));
        thread::spawn(move || {
            while let Ok((stream, _)) = socket.accept() {
                let stream = Arc::new(stream);
                stream.set_read_timeout(Some(wait::LIMIT)).expect("set");
                stream.set_write_timeout(Some(wait::LIMIT)).expect("set");
                {
                    let mut connections = lock(&connections);
                    connections.total += 1;
                    connections.living.retain(|other| other.strong_count() > 0);
                    connections.living.push(Arc::downgrade(&stream));
                }
                let conduct = Arc::clone(&conduct);
                let serve = move || {
                    // How a connection ends is for the client to see; a server has nobody to tell.
                    let _ = conduct(&stream, address);
                };
                thread::Builder::new().stack_size(256 * 1024).spawn(serve).expect("a thread");
            }
        });
    }

    /// Ceases to accept: connects are refused from now on. The connections that are there live on.
    pub fn refuse(&self) {
        // On Linux this takes a listening socket back to where it was before listen(), and its accept() ends.
        let _ = socket::shutdown(self.socket.as_raw_fd(), socket::Shutdown::Both);
    }

    /// Refuses, and resets every connection, as a host does whose server was killed.
    pub fn die(&self) {
        self.refuse();
        self.end(|stream| {
            client::reset(stream);
            // The reset goes out when the last copy is closed, which is when its thread wakes up from this.
            let _ = stream.shutdown(Shutdown::Read);
        });
    }

    /// Ends every connection in order.
    pub fn hang_up(&self) {
        self.end(|stream| drop(stream.shutdown(Shutdown::Both)));
    }

    fn end(&self, how: impl Fn(&TcpStream)) {
        let living = std::mem::take(&mut lock(&self.connections).living);
        living.iter().filter_map(Weak::upgrade).for_each(|stream| how(&stream));
    }

    /// Where it is, which is its name too.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections that it accepted so far.
    #[must_use]
    pub fn accepted(&self) -> usize {
        lock(&self.connections).total
    }

    /// Connections that are there now.
    #[must_use]
    pub fn living(&self) -> usize {
        lock(&self.connections).living.iter().filter(|stream| stream.strong_count() > 0).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.refuse();
        self.hang_up();
    }
}

/// A socket with a port of its own at this address, where nobody listens yet.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn place(ip: IpAddr) -> TcpListener {
    let family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let bind = |port| {
        let descriptor: OwnedFd =
            socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        setsockopt(&descriptor, sockopt::ReuseAddr, &true).expect("set");
        socket::bind(descriptor.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(ip, port))).expect("bound");
        TcpListener::from(descriptor)
    };
    // A port that was asked for by its number stays with the socket when it ceases to listen; one that the kernel chose
    // does not. So it is chosen on one socket and bound on another.
    let choice = bind(0);
    bind(choice.local_addr().expect("an address").port())
}

fn lock(connections: &Mutex<Connections>) -> MutexGuard<'_, Connections> {
    connections.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says the name that [`crate::Client::server`] reads.
///
/// # Errors
/// When the connection is gone.
pub fn say_name(mut stream: &TcpStream, name: SocketAddr) -> io::Result<()> {
    stream.write_all(format!("{name}\n").as_bytes())
}

/// Says the name and gives back everything, to the end.
///
/// # Errors
/// When the connection is gone.
pub fn echo(mut stream: &TcpStream, name: SocketAddr) -> io::Result<()> {
    say_name(stream, name)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => stream.write_all(&buffer[..count])?,
        }
    }
}

/// Holds a connection of which the end has been read, until [`Server::hang_up`], [`Server::die`] or its drop.
///
/// # Errors
/// Never; it fits in at the end of a conduct.
pub fn held(stream: &TcpStream) -> io::Result<()> {
    // A socket whose own side is shut, or that the peer has reset, reports a hang-up; poll(2) waits for that alone.
    let mut descriptors = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let limit = PollTimeout::try_from(wait::LIMIT).expect("a minute");
    let _ = poll(&mut descriptors, limit);
    Ok(())
}

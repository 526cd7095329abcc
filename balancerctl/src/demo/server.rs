//! A server of the demonstration: it answers each line with its name, so that a client sees who serves it.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use nix::sys::socket;

/// A server that runs until it is killed or dropped.
#[derive(Debug)]
pub(super) struct Server {
    name: &'static str,
    address: SocketAddr,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    listener: Arc<TcpListener>,
    accepting: JoinHandle<()>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl Server {
    /// Starts one on a free port.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn start(name: &'static str) -> io::Result<Self> {
        let listener = Arc::new(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?);
        let address = listener.local_addr()?;
        let connections = Arc::default();
        let accepting = thread::spawn({
            let (listener, connections) = (Arc::clone(&listener), Arc::clone(&connections));
            move || accept(name, &listener, &connections)
        });
        Ok(Self { name, address, running: Some(Running { listener, accepting, connections }) })
    }

    /// Its name, which is its answer.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it as a crash would: new connections are refused and those that it has break.
    pub(super) fn kill(&mut self) {
        let Some(Running { listener, accepting, connections }) = self.running.take() else { return };
        // It wakes the thread that accepts, which a close would not.
        let _ = socket::shutdown(listener.as_raw_fd(), socket::Shutdown::Both);
        let _ = accepting.join();
        for connection in connections.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn accept(name: &'static str, listener: &TcpListener, connections: &Mutex<Vec<TcpStream>>) {
    // Any error ends it: that of `kill`, or one that the story meets as a client without an answer.
    while let Ok((stream, _)) = listener.accept() {
        let Ok(connection) = stream.try_clone() else { return };
        connections.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        thread::spawn(move || answer(name, &stream));
    }
}

/// One line of answer for each line, until the other end has no more or the connection breaks.
fn answer(name: &str, mut stream: &TcpStream) {
    for line in BufReader::new(stream).lines() {
        if line.is_err() || writeln!(stream, "{name}").is_err() {
            break;
        }
    }
    // `connections` has a second handle of it, which would keep it open.
    let _ = stream.shutdown(Shutdown::Both);
}

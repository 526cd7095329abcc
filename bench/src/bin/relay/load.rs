//! The load: a fixed number of clients, each of which makes its next request when the last one is answered.
//!
//! One thread, one epoll instance, the same code for every balancer. A closed loop: a faster balancer gets more
//! requests, and latency includes the wait for the other clients of the same load.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::{client, clock};

use crate::response::Response;

/// The longest wait for readiness, so that the end of a run and an interrupt are noticed.
const WAIT: Duration = Duration::from_millis(20);
/// The most readiness events taken at once.
const EVENTS: usize = 256;
/// The size of one read: a large answer should cost the client little.
const SCRATCH: usize = 256 * 1024;
/// Failed requests at which a run is given up: a few may be bad luck, so many are a broken balancer.
const ERROR_LIMIT: u64 = 1000;

/// What every client does.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// How many clients there are.
    pub(crate) clients: usize,
    /// What each of them sends.
    pub(crate) request: &'static [u8],
    /// Whether a connection is used again or ends, by the server's close, after one request.
    pub(crate) kept: bool,
}

/// What a run of the load counted.
#[derive(Default)]
pub(crate) struct Tally {
    /// Requests answered completely; without kept connections, also closed.
    pub(crate) requests: u64,
    /// Requests that failed; each of them ended its connection and the client opened a new one.
    pub(crate) errors: u64,
    /// Bytes received.
    pub(crate) bytes: u64,
    /// How long the run took.
    pub(crate) elapsed: Duration,
    /// How long each request took: from sending it, or from the start of connecting when connections are not kept.
    pub(crate) latencies: Vec<Duration>,
}

/// The clients of one target.
pub(crate) struct Load {
    target: SocketAddrV4,
    shape: Shape,
    poll: Poll,
    events: Events,
    connections: Vec<Connection>,
    scratch: Box<[u8]>,
    interrupted: Arc<AtomicBool>,
}

struct Connection {
    stream: TcpStream,
    response: Response,
    /// How much of the request is sent.
    sent: usize,
    /// Whether the response is complete and only the server's close is awaited.
    answered: bool,
    started: Instant,
}

/// What became of a connection that was ready.
enum Outcome {
    /// It waits for readiness again.
    Waiting,
    /// It has served its requests and the server has closed it.
    Ended,
}

impl Load {
    /// Connects the clients; no request is made before [`Load::run`].
    pub(crate) fn open(target: SocketAddrV4, shape: Shape, interrupted: &Arc<AtomicBool>) -> Result<Self> {
        let poll = Poll::new().context("open an epoll instance")?;
        let connections =
            (0..shape.clients).map(|index| Connection::open(&poll, index, target)).collect::<Result<_>>()?;
        Ok(Self {
            target,
            shape,
            poll,
            events: Events::with_capacity(EVENTS),
            connections,
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            interrupted: Arc::clone(interrupted),
        })
    }

    /// Lets the clients work for `duration`. Requests under way at the end are counted by the next run, if any.
    pub(crate) fn run(&mut self, duration: Duration) -> Result<Tally> {
        let mut tally = Tally::default();
        let begin = clock::now();
        loop {
            tally.elapsed = clock::now() - begin;
            if tally.elapsed >= duration {
                return Ok(tally);
            }
            if self.interrupted.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            match self.poll.poll(&mut self.events, Some(WAIT)) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error).context("wait for sockets"),
                _ => {}
            }
            for event in &self.events {
                let index = event.token().0;
                let connection = &mut self.connections[index];
                match connection.ready(event, self.shape, &mut self.scratch, &mut tally) {
                    Ok(Outcome::Waiting) => {}
                    Ok(Outcome::Ended) => *connection = Connection::open(&self.poll, index, self.target)?,
                    Err(error) => {
                        tally.errors += 1;
                        ensure!(tally.errors < ERROR_LIMIT, "too many failed requests, the last one: {error:#}");
                        *connection = Connection::open(&self.poll, index, self.target)?;
                    }
                }
            }
        }
    }
}

impl Connection {
    fn open(poll: &Poll, index: usize, target: SocketAddrV4) -> Result<Self> {
        let started = clock::now();
        let mut stream = TcpStream::from_std(client::connect(index, target)?);
        poll.registry()
            .register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)
            .context("register a client's socket")?;
        Ok(Self { stream, response: Response::default(), sent: 0, answered: false, started })
    }

    /// Goes on as far as the socket allows. An event left over from the connection before this one does no harm.
    fn ready(&mut self, event: &Event, shape: Shape, scratch: &mut [u8], tally: &mut Tally) -> Result<Outcome> {
        self.send(shape)?;
        loop {
            let count = match self.stream.read(scratch) {
                Ok(0) if self.answered => {
                    self.count(tally);
                    return Ok(Outcome::Ended);
                }
                Ok(0) => bail!("the connection ended before the response did"),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Outcome::Waiting),
                Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(Outcome::Waiting),
                Err(error) => return Err(error).context("read a response"),
            };
            tally.bytes += count as u64;
            ensure!(!self.answered, "bytes after the response's end");
            self.answered = self.response.push(&scratch[..count])?;
            if self.answered && shape.kept {
                self.count(tally);
                self.response.clear();
                self.answered = false;
                self.sent = 0;
                self.started = clock::now();
                self.send(shape)?;
            }
            // A short read has emptied the socket: what comes later is a new event. Only a close may be there already.
            if shape.kept && count < scratch.len() && !event.is_read_closed() {
                return Ok(Outcome::Waiting);
            }
        }
    }

    fn send(&mut self, shape: Shape) -> Result<()> {
        while self.sent < shape.request.len() {
            match self.stream.write(&shape.request[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::NotConnected => break,
                Err(error) => return Err(error).context("send a request"),
            }
        }
        Ok(())
    }

    fn count(&self, tally: &mut Tally) {
        tally.requests += 1;
        tally.latencies.push(clock::now() - self.started);
    }
}

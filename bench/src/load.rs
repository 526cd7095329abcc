//! The load: a fixed number of clients, each of which makes its next request when the last one is answered.
//!
//! One thread, one epoll instance, the same code for every balancer. A closed loop: a faster balancer gets more
//! requests, and latency includes the wait for the other clients of the same load.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::interrupt::Interrupt;
use crate::response::Response;
use crate::{client, clock};

/// The longest wait for readiness, so that the end of a run and an interrupt are noticed.
const WAIT: Duration = Duration::from_millis(20);
/// The most readiness events taken at once.
const EVENTS: usize = 256;
/// The size of one read: a large answer should cost the client little.
const SCRATCH: usize = 256 * 1024;
/// Failed requests at which a run is given up: a few may be bad luck, so many are a broken balancer.
pub(crate) const ERROR_LIMIT: u64 = 1000;

/// What every client does.
#[derive(Clone, Copy)]
pub struct Shape {
    /// How many clients there are.
    pub clients: usize,
    /// What each of them sends.
    pub request: &'static [u8],
    /// Whether a connection is used again or ends, by the server's close, after one request.
    pub kept: bool,
    /// How long a client waits after an answer before its next request, or, without kept connections, after a connection before
    /// it opens the next.
    pub pause: Duration,
}

/// What a run of the load counted.
#[derive(Default)]
pub struct Tally {
    /// Requests answered completely; without kept connections, also closed.
    pub requests: u64,
    /// Requests that failed; each of them ended its connection and the client opened a new one.
    pub errors: u64,
    /// Bytes received.
    pub bytes: u64,
    /// How long the run took.
    pub elapsed: Duration,
    /// How long each request took: from sending it, or from the start of connecting when connections are not kept.
    pub latencies: Vec<Duration>,
}

/// The clients, and the targets that they connect to in turn.
pub struct Load {
    targets: Vec<SocketAddrV4>,
    shape: Shape,
    poll: Poll,
    events: Events,
    /// One place for each client; empty while it pauses between two connections.
    connections: Vec<Option<Connection>>,
    /// Connections opened so far.
    opened: usize,
    /// Clients that pause, and when they go on, in that order.
    pausing: VecDeque<(Instant, usize)>,
    scratch: Box<[u8]>,
    interrupt: Interrupt,
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
    /// It has its answer, and waits before it asks again.
    Pausing,
    /// It has served its requests and the server has closed it.
    Ended,
}

impl Load {
    /// Connects the clients, or lets them begin evenly over the first pause; no request is made before [`Load::run`].
    ///
    /// # Errors
    /// When a client's socket cannot be opened.
    pub fn open(targets: &[SocketAddrV4], shape: Shape, interrupt: &Interrupt) -> Result<Self> {
        ensure!(!targets.is_empty(), "nothing to connect to");
        let mut load = Self {
            targets: targets.to_vec(),
            shape,
            poll: Poll::new().context("open an epoll instance")?,
            events: Events::with_capacity(EVENTS),
            connections: (0..shape.clients).map(|_| None).collect(),
            opened: 0,
            pausing: VecDeque::new(),
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            interrupt: interrupt.clone(),
        };
        if shape.pause.is_zero() {
            (0..shape.clients).try_for_each(|index| load.connect(index))?;
        } else {
            let (now, step) = (clock::now(), shape.pause.div_f64(shape.clients as f64));
            load.pausing = (0..shape.clients).map(|index| (now + step.mul_f64(index as f64), index)).collect();
        }
        Ok(load)
    }

    /// Lets the clients work for `duration`. Requests under way at the end are counted by the next run, if any.
    ///
    /// # Errors
    /// When it is interrupted, or so many requests fail that the balancer must be broken.
    pub fn run(&mut self, duration: Duration) -> Result<Tally> {
        self.run_while(|elapsed| elapsed < duration)
    }

    /// Lets the clients work as long as `wanted` says so, which is told how long they have. Requests under way at the end
    /// are counted by the next run, if any.
    ///
    /// # Errors
    /// As [`Load::run`].
    pub fn run_while(&mut self, wanted: impl Fn(Duration) -> bool) -> Result<Tally> {
        let mut tally = Tally::default();
        let begin = clock::now();
        loop {
            let now = clock::now();
            tally.elapsed = now - begin;
            if !wanted(tally.elapsed) {
                return Ok(tally);
            }
            self.interrupt.check()?;
            while let Some((due, index)) = self.pausing.front().copied()
                && due <= now
            {
                self.pausing.pop_front();
                match &mut self.connections[index] {
                    Some(connection) => connection.ask_again(self.shape)?,
                    None => self.connect(index)?,
                }
            }
            let due = self.pausing.front().map_or(WAIT, |(due, _)| due.saturating_duration_since(now));
            match self.poll.poll(&mut self.events, Some(due.min(WAIT))) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error).context("wait for sockets"),
                _ => {}
            }
            let mut ended = Vec::new();
            for event in &self.events {
                let index = event.token().0;
                let Some(connection) = &mut self.connections[index] else { continue };
                match connection.ready(event, self.shape, &mut self.scratch, &mut tally) {
                    Ok(Outcome::Waiting) => {}
                    Ok(Outcome::Pausing) => self.pausing.push_back((clock::now() + self.shape.pause, index)),
                    Ok(Outcome::Ended) => ended.push(index),
                    Err(error) => {
                        tally.errors += 1;
                        ensure!(tally.errors < ERROR_LIMIT, "too many failed requests, the last one: {error:#}");
                        ended.push(index);
                    }
                }
            }
            for index in ended {
                if self.shape.pause.is_zero() {
                    self.connect(index)?;
                } else {
                    self.connections[index] = None;
                    self.pausing.push_back((clock::now() + self.shape.pause, index));
                }
            }
        }
    }

    fn connect(&mut self, index: usize) -> Result<()> {
        let target = self.targets[self.opened % self.targets.len()];
        self.opened += 1;
        self.connections[index] = Some(Connection::open(&self.poll, index, target)?);
        Ok(())
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
                if !shape.pause.is_zero() {
                    return Ok(Outcome::Pausing);
                }
                self.ask_again(shape)?;
            }
            // A short read has emptied the socket: what comes later is a new event. Only a close may be there already.
            if shape.kept && count < scratch.len() && !event.is_read_closed() {
                return Ok(Outcome::Waiting);
            }
        }
    }

    /// Makes the next request on a kept connection.
    fn ask_again(&mut self, shape: Shape) -> Result<()> {
        self.sent = 0;
        self.started = clock::now();
        self.send(shape)
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

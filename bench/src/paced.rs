//! A load at a fixed rate: requests are due at even moments, whether or not those before them are answered.
//!
//! An open loop. How long a request took counts from the moment when it was due, so that a balancer that stands still also
//! pays for the requests that could not be sent meanwhile: a closed loop asks less of a slow balancer, and leaves out just
//! the moments that are worst ("coordinated omission").

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddrV4;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::interrupt::Interrupt;
use crate::load::{ERROR_LIMIT, Tally};
use crate::response::Response;
use crate::{client, clock};

/// The longest wait for readiness, so that an interrupt is noticed.
const WAIT: Duration = Duration::from_millis(20);
/// The most readiness events taken at once.
const EVENTS: usize = 256;
/// The size of one read; the answers are small.
const SCRATCH: usize = 16 * 1024;
/// How long answers may still come after the last request was due.
const REST_LIMIT: Duration = Duration::from_secs(5);
/// The timer's token; those below it are the clients'.
const TIMER: Token = Token(usize::MAX - 1);

/// Clients with a kept connection each, which make small requests in turn.
pub struct Paced {
    target: SocketAddrV4,
    poll: Poll,
    events: Events,
    /// epoll waits in whole milliseconds, and a request is due every hundred microseconds.
    timer: TimerFd,
    connections: Vec<Connection>,
    scratch: Box<[u8]>,
    interrupt: Interrupt,
}

struct Connection {
    stream: TcpStream,
    response: Response,
    /// When the requests were due that are not answered; the first one is under way.
    due: VecDeque<Instant>,
    /// How much of the first of them is sent.
    sent: usize,
}

impl Paced {
    /// Connects the clients.
    ///
    /// # Errors
    /// When a socket or the timer cannot be opened.
    pub fn open(target: SocketAddrV4, clients: usize, interrupt: &Interrupt) -> Result<Self> {
        ensure!(clients > 0, "nobody to make requests");
        let poll = Poll::new().context("open an epoll instance")?;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)
            .context("open a timer")?;
        poll.registry()
            .register(&mut SourceFd(&timer.as_fd().as_raw_fd()), TIMER, Interest::READABLE)
            .context("register a timer")?;
        let connections =
            (0..clients).map(|index| Connection::open(&poll, index, target)).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            target,
            poll,
            events: Events::with_capacity(EVENTS),
            timer,
            connections,
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            interrupt: interrupt.clone(),
        })
    }

    /// Makes `rate` requests per second for `duration`, and waits until they are answered. One that fails, or has no answer
    /// `REST_LIMIT` after the end, is an error.
    ///
    /// # Errors
    /// When it is interrupted, or so many requests fail that the balancer must be broken.
    pub fn run(&mut self, rate: f64, duration: Duration) -> Result<Tally> {
        ensure!(rate > 0.0, "no requests to make");
        let mut tally = Tally::default();
        let (begin, count) = (clock::now(), (duration.as_secs_f64() * rate) as u32);
        let due = |number: u32| begin + Duration::from_secs_f64(f64::from(number) / rate);
        let mut next = 0;
        loop {
            let now = clock::now();
            while next < count && due(next) <= now {
                let index = next as usize % self.connections.len();
                if self.connections[index].ask(due(next)).is_err() {
                    self.replace(index, &mut tally)?;
                }
                next += 1;
            }
            tally.elapsed = now - begin;
            let left: usize = self.connections.iter().map(|connection| connection.due.len()).sum();
            if next == count && (left == 0 || tally.elapsed > duration + REST_LIMIT) {
                tally.errors += left as u64;
                return Ok(tally);
            }
            self.interrupt.check()?;
            let wait = if next < count { due(next).saturating_duration_since(clock::now()) } else { WAIT };
            self.wait(wait.clamp(Duration::from_nanos(1), WAIT))?;
            self.take_in(&mut tally)?;
        }
    }

    /// Waits for sockets, for at most `duration`.
    fn wait(&mut self, duration: Duration) -> Result<()> {
        // Setting it anew takes back what it told before: its descriptor need not be read.
        self.timer.set(Expiration::OneShot(duration.into()), TimerSetTimeFlags::empty()).context("set the timer")?;
        match self.poll.poll(&mut self.events, Some(WAIT)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => Err(error).context("wait for sockets"),
            _ => Ok(()),
        }
    }

    /// Reads what has come.
    fn take_in(&mut self, tally: &mut Tally) -> Result<()> {
        let mut broken = Vec::new();
        for token in self.events.iter().map(mio::event::Event::token) {
            let Some(connection) = self.connections.get_mut(token.0) else { continue };
            if connection.ready(&mut self.scratch, tally).is_err() {
                broken.push(token.0);
            }
        }
        broken.into_iter().try_for_each(|index| self.replace(index, tally))
    }

    /// Opens another connection in the place of a broken one, whose requests have failed.
    fn replace(&mut self, index: usize, tally: &mut Tally) -> Result<()> {
        tally.errors += self.connections[index].due.len() as u64;
        ensure!(tally.errors < ERROR_LIMIT, "too many failed requests");
        self.connections[index] = Connection::open(&self.poll, index, self.target)?;
        Ok(())
    }
}

impl Connection {
    fn open(poll: &Poll, index: usize, target: SocketAddrV4) -> Result<Self> {
        let mut stream = TcpStream::from_std(client::connect(index, target)?);
        poll.registry()
            .register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE)
            .context("register a client's socket")?;
        Ok(Self { stream, response: Response::default(), due: VecDeque::new(), sent: 0 })
    }

    /// Makes a request that was due at `due`, or keeps it until those before it are answered.
    fn ask(&mut self, due: Instant) -> Result<()> {
        self.due.push_back(due);
        if self.due.len() == 1 { self.send() } else { Ok(()) }
    }

    /// Goes on as far as the socket allows.
    fn ready(&mut self, scratch: &mut [u8], tally: &mut Tally) -> Result<()> {
        self.send()?;
        loop {
            let count = match self.stream.read(scratch) {
                Ok(0) => bail!("the connection ended"),
                Ok(count) => count,
                Err(error) if waits(&error) => return Ok(()),
                Err(error) => return Err(error).context("read a response"),
            };
            tally.bytes += count as u64;
            if self.response.push(&scratch[..count])? {
                let due = self.due.pop_front().context("an answer to no request")?;
                tally.requests += 1;
                tally.latencies.push(clock::now() - due);
                self.response.clear();
                self.sent = 0;
                self.send()?;
            }
        }
    }

    /// Sends what is left of the request under way.
    fn send(&mut self) -> Result<()> {
        while !self.due.is_empty() && self.sent < client::KEPT.len() {
            match self.stream.write(&client::KEPT[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if waits(&error) => break,
                Err(error) => return Err(error).context("send a request"),
            }
        }
        Ok(())
    }
}

/// Whether a socket is only not ready, or not connected yet.
fn waits(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener};
    use std::thread;

    use super::*;

    const STILL: Duration = Duration::from_millis(200);

    /// A server that answers at once, but for a while in the middle.
    fn server_that_stands_still() -> SocketAddrV4 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(addr) = listener.local_addr().unwrap() else { unreachable!("bound to IPv4") };
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; client::KEPT.len()];
            for number in 0.. {
                if stream.read_exact(&mut request).is_err() {
                    return;
                }
                if number == 100 {
                    clock::pause(STILL);
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
            }
        });
        addr
    }

    #[test]
    fn requests_that_were_due_while_the_server_stood_still_count_their_wait() {
        let mut paced = Paced::open(server_that_stands_still(), 1, &Interrupt::default()).unwrap();
        let tally = paced.run(500.0, Duration::from_millis(600)).unwrap();
        assert_eq!((tally.requests, tally.errors), (300, 0));
        // A request every 2 ms: nearly fifty were due in the first half of the pause. In a closed loop
        // a single one would have.
        let waited = tally.latencies.iter().filter(|latency| **latency > STILL / 2).count();
        assert!(waited >= 45, "{waited}");
    }
}

//! The servers behind every balancer: several sockets of one thread, which look at every datagram and answer it where it
//! is a question.

use std::io::{ErrorKind, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bench::clock;
use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::sockopt::{RcvBuf, UdpGroSegment};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, setsockopt};

use crate::account::{Arrivals, Faults};
use crate::datagram::{Label, Way};

/// How many servers a balancer has to choose from.
const SERVERS: usize = 3;
/// What the kernel may keep for each of our sockets; it gives less where `net.core.rmem_max` is less.
pub(crate) const RECEIVE_BUFFER: usize = 4 << 20;
/// The largest datagram, or train of some.
pub(crate) const LARGEST: usize = 64 * 1024;
/// The longest wait for a datagram, in milliseconds, so that the end of a run is noticed.
const WAIT: u8 = 10;
/// The time between two looks at servers that nobody waits for.
const TICK: Duration = Duration::from_micros(200);
/// Datagrams taken from one server before the next one's turn.
const PORTION: usize = 64;
/// How long nothing may arrive before what has not is given up, and the step in which that is looked at.
const QUIET: Duration = Duration::from_millis(200);
const STEP: Duration = Duration::from_millis(5);

/// The servers' sockets.
pub(crate) struct Servers {
    /// The address of each; never empty.
    pub(crate) addrs: Vec<SocketAddrV4>,
    sockets: Vec<UdpSocket>,
}

/// What the servers do in one run.
#[derive(Clone, Copy)]
pub(crate) struct Conduct {
    pub(crate) run: u32,
    /// Whether each datagram gets an answer.
    pub(crate) answer: bool,
    /// Whether trains are taken whole (`UDP_GRO`).
    pub(crate) trains: bool,
}

/// What the thread of the servers and that of the clients tell each other.
#[derive(Default)]
pub(crate) struct Watch {
    /// Datagrams that have arrived at the servers.
    arrived: AtomicU64,
    /// Set when the servers are to stop.
    over: AtomicBool,
}

/// What arrived at the servers in one run.
#[derive(Default)]
pub(crate) struct Served {
    /// Datagrams, each counted once.
    pub(crate) arrived: u64,
    /// All but those that were lost, which only who sent them can know.
    pub(crate) faults: Faults,
    flows: Vec<Flow>,
}

/// A flow as the servers see it.
#[derive(Default)]
struct Flow {
    arrivals: Arrivals,
    /// Which server has it, and from which address it comes.
    at: Option<(usize, SocketAddrV4)>,
}

impl Servers {
    pub(crate) fn start() -> Result<Self> {
        let open = || {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("open a server's socket")?;
            socket.set_nonblocking(true).context("set up a server's socket")?;
            setsockopt(&socket, RcvBuf, &RECEIVE_BUFFER).context("size a server's buffer")?;
            Ok(socket)
        };
        let sockets = (0..SERVERS).map(|_| open()).collect::<Result<Vec<_>>>()?;
        let addr = |socket: &UdpSocket| match socket.local_addr().context("read a server's address")? {
            SocketAddr::V4(addr) => Ok(addr),
            SocketAddr::V6(addr) => anyhow::bail!("{addr} is not an address of IPv4"),
        };
        Ok(Self { addrs: sockets.iter().map(addr).collect::<Result<_>>()?, sockets })
    }

    /// Takes datagrams until `watch` says that it is over.
    pub(crate) fn serve(&self, conduct: Conduct, watch: &Watch) -> Result<Served> {
        for socket in &self.sockets {
            setsockopt(socket, UdpGroSegment, &conduct.trains).context("set a server up for trains")?;
        }
        let mut served = Served::default();
        let mut buffer = vec![0; LARGEST];
        while !watch.over.load(Ordering::Relaxed) {
            let before = served.arrived;
            for server in self.ready(conduct)? {
                self.receive(server, conduct, &mut buffer, &mut served)?;
            }
            // Who needs no answer is not answered sooner for a server that wakes up for each datagram: that would only
            // take time from who sends, and count as the balancer's own.
            if !conduct.answer && served.arrived == before {
                clock::pause(TICK);
            }
            watch.arrived.store(served.arrived, Ordering::Relaxed);
        }
        Ok(served)
    }

    /// Waits for datagrams that are to be answered; the servers that may have some.
    fn ready(&self, conduct: Conduct) -> Result<Vec<usize>> {
        if !conduct.answer {
            return Ok((0..self.sockets.len()).collect());
        }
        let mut waiting: Vec<_> =
            self.sockets.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
        match poll(&mut waiting, WAIT) {
            Err(Errno::EINTR) => {}
            result => drop(result.context("wait for datagrams")?),
        }
        Ok((0..waiting.len()).filter(|server| waiting[*server].any() == Some(true)).collect())
    }

    fn receive(&self, server: usize, conduct: Conduct, buffer: &mut [u8], served: &mut Served) -> Result<()> {
        let socket = &self.sockets[server];
        let mut control = cmsg_space!(i32);
        for _ in 0..PORTION {
            let (length, whole, segment, from) = {
                let mut parts = [IoSliceMut::new(buffer)];
                let received =
                    recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT);
                let message = match received {
                    Err(Errno::EAGAIN) => return Ok(()),
                    Err(Errno::EINTR) => continue,
                    result => result.context("receive a datagram")?,
                };
                let segment = message.cmsgs().context("read a train's length")?.find_map(|part| match part {
                    ControlMessageOwned::UdpGroSegments(segment) => usize::try_from(segment).ok(),
                    _ => None,
                });
                let from = message.address.context("a datagram from nowhere")?;
                (message.bytes, !message.flags.contains(MsgFlags::MSG_TRUNC), segment, SocketAddrV4::from(from))
            };
            if !whole {
                served.faults.altered += 1;
                continue;
            }
            for datagram in buffer[..length].chunks_mut(segment.unwrap_or(length).max(1)) {
                if let Some(label) = served.take(datagram, conduct.run, (server, from))
                    && conduct.answer
                {
                    Label { way: Way::Answer, ..label }.write(datagram);
                    match socket.send_to(datagram, from) {
                        Ok(_) => {}
                        Err(error) if error.kind() == ErrorKind::WouldBlock => served.faults.unsent += 1,
                        Err(error) => return Err(error).with_context(|| format!("answer {from}")),
                    }
                }
            }
        }
        Ok(())
    }
}

impl Served {
    /// Counts one datagram; its label if it is a question of this run that was not there before.
    fn take(&mut self, datagram: &[u8], run: u32, at: (usize, SocketAddrV4)) -> Option<Label> {
        let Some(label) = Label::read(datagram) else {
            self.faults.altered += 1;
            return None;
        };
        if label.run != run {
            return None;
        }
        if label.way == Way::Answer {
            self.faults.strayed += 1;
            return None;
        }
        let place = label.flow as usize;
        if place >= self.flows.len() {
            self.flows.resize_with(place + 1, Flow::default);
        }
        let flow = &mut self.flows[place];
        if *flow.at.get_or_insert(at) != at {
            self.faults.strayed += 1;
        }
        let new = self.faults.count(flow.arrivals.take(label.sequence));
        self.arrived += u64::from(new);
        new.then_some(label)
    }
}

impl Watch {
    /// Waits until `sent` datagrams have arrived, or nothing has for a while.
    pub(crate) fn settle(&self, sent: u64) {
        let mut arrived = self.arrived.load(Ordering::Relaxed);
        let mut since = clock::now();
        while arrived < sent && clock::now() - since < QUIET {
            clock::pause(STEP);
            let now_arrived = self.arrived.load(Ordering::Relaxed);
            if now_arrived != arrived {
                (arrived, since) = (now_arrived, clock::now());
            }
        }
    }

    /// Lets the servers stop.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1);
    const LABEL: Label = Label { run: 1, flow: 5, sequence: 0, way: Way::Question };

    fn datagram(label: Label) -> [u8; 64] {
        let mut bytes = [0; 64];
        label.write(&mut bytes);
        bytes
    }

    #[test]
    fn a_flow_that_comes_to_a_second_server_or_from_a_second_address_strays() {
        let mut served = Served::default();
        let other = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 2);
        for (sequence, at, strayed) in [(0, (0, FROM), 0), (1, (1, FROM), 1), (2, (0, other), 2), (3, (0, FROM), 2)] {
            assert!(served.take(&datagram(Label { sequence, ..LABEL }), 1, at).is_some());
            assert_eq!(served.faults.strayed, strayed);
        }
        assert_eq!(served.arrived, 4);
    }

    #[test]
    fn what_is_left_of_an_earlier_run_is_nobodys_and_an_answer_strays() {
        let mut served = Served::default();
        assert!(served.take(&datagram(LABEL), 2, (0, FROM)).is_none());
        assert_eq!(served.faults, Faults::default());
        assert!(served.take(&datagram(Label { way: Way::Answer, ..LABEL }), 1, (0, FROM)).is_none());
        assert_eq!(served.faults, Faults { strayed: 1, ..Faults::default() });
        assert!(served.take(&[1; 64], 1, (0, FROM)).is_none());
        assert_eq!(served.faults, Faults { strayed: 1, altered: 1, ..Faults::default() });
        assert_eq!(served.arrived, 0);
    }
}

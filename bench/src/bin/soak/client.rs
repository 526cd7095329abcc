//! The clients: those that have to be served, whatever happens around them, and those that behave as they like.

use std::io::{ErrorKind, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bench::clock;
use fastrand::Rng;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, setsockopt, sockopt};

use crate::conduct::{self, Heard, is_timeout};
use crate::content::{Stream, Way};
use crate::findings::Findings;
use crate::order::{End, Order};

/// How long a client that has to be served waits for a byte, or for one to be taken: as long as a service that has no
/// room may let it wait.
const PATIENCE: Duration = Duration::from_secs(90);

/// Client addresses: the keys of the rings.
const ADDRESSES: u16 = 2_000;

/// The longest pause between two sessions of one client, in milliseconds.
const MOST_PAUSE: u64 = 30;

/// A client that has to be served by this service, session after session.
pub(crate) fn strict(service: &str, address: SocketAddr, number: u64, seed: u64, findings: &Findings) {
    let mut rng = Rng::with_seed(seed);
    for round in 0.. {
        if findings.is_over() {
            return;
        }
        let order = Order::draw(number << 32 | round, true, &mut rng);
        findings.count(&format!("began {service}"));
        match connect(address, &mut rng) {
            Ok(stream) => findings.count(&format!("{} {service}", session(&stream, order, service, findings))),
            Err(error) => {
                findings.fault(format!("session {} of {service} could not connect: {error:#}", order.session));
            }
        }
        clock::pause(Duration::from_millis(rng.u64(0..=MOST_PAUSE)));
    }
}

/// One session of a client that has to be served, and how it ended: `whole`, `cut` or `wrong`.
fn session(stream: &TcpStream, order: Order, service: &str, findings: &Findings) -> &'static str {
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let _ = stream.set_write_timeout(Some(PATIENCE));
    let who = || format!("session {} of {service} at the client", order.session);
    let (mut up, way) = (Stream::new(order.session, Way::Up), if order.echo { Way::Up } else { Way::Down });
    let mut down = Stream::new(order.session, way);
    let enough = if let End::ClientResets(after) = order.end { Some(after) } else { None };
    let heard = thread::scope(|scope| {
        let said = scope.spawn(|| {
            let mut socket = stream;
            let said = socket.write_all(&order.encode()).and_then(|()| conduct::say(stream, &mut up, order.up));
            if said.is_ok() && order.end == End::ClientFirst {
                let _ = stream.shutdown(Shutdown::Write);
            }
            said
        });
        let heard = conduct::hear(stream, &mut down, enough, order.client_is_slow, &who, findings, |_| Ok(()));
        let heard = heard.beside(said.join().unwrap_or(Ok(())));
        if matches!(heard, Heard::End) && order.end == End::ServerFirst {
            let _ = stream.shutdown(Shutdown::Write);
        }
        heard
    });
    if down.offset() > order.down {
        findings.fault(format!("{}: {} bytes of {}", who(), down.offset(), order.down));
        return "wrong";
    }
    match (heard, order.end) {
        (Heard::Wrong, _) => "wrong",
        (Heard::Broken(error), _) if is_timeout(&error) => {
            findings.fault(format!("{}: it stood still at {} bytes of {}", who(), down.offset(), order.down));
            "wrong"
        }
        (Heard::End, End::ClientFirst | End::ServerFirst) if down.offset() == order.down => "whole",
        (Heard::Enough, _) => {
            conduct::reset(stream);
            "whole"
        }
        (Heard::Broken(error), End::ServerResets(after)) if error.kind() == ErrorKind::ConnectionReset => {
            if down.offset() <= after {
                return "whole";
            }
            findings.fault(format!("{}: {} bytes of a server that sent {after}", who(), down.offset()));
            "wrong"
        }
        _ => "cut",
    }
}

/// A client that comes to any of these services, which may have gone or have servers that do nothing right, and leaves
/// when it likes. What it gets is right nevertheless.
pub(crate) fn rough(places: &Mutex<Vec<SocketAddr>>, number: u64, seed: u64, findings: &Findings) {
    let mut rng = Rng::with_seed(seed);
    for round in 0.. {
        if findings.is_over() {
            return;
        }
        let place = rng.choice(places.lock().unwrap_or_else(PoisonError::into_inner).iter().copied());
        // A service that is gone refuses.
        let Some(Ok(mut stream)) = place.map(|place| connect(place, &mut rng)) else {
            clock::pause(Duration::from_millis(10));
            continue;
        };
        let order = Order::draw(number << 32 | round, false, &mut rng);
        let patience = Duration::from_millis(rng.u64(20..3_000));
        let _ = stream.set_read_timeout(Some(patience));
        let _ = stream.set_write_timeout(Some(patience));
        findings.count("rough");
        match rng.u32(0..10) {
            // It says nothing, or a byte, and goes in order or not.
            0 => {}
            1 => drop(stream.write_all(&order.encode()[..1])),
            2 => {
                clock::pause(patience);
                conduct::reset(&stream);
            }
            _ => converse(&stream, order, findings),
        }
    }
}

fn converse(stream: &TcpStream, order: Order, findings: &Findings) {
    let who = || format!("session {} at a rough client", order.session);
    let mut up = Stream::new(order.session, Way::Up);
    let mut down = Stream::new(order.session, if order.echo { Way::Up } else { Way::Down });
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut socket = stream;
            let said = socket.write_all(&order.encode()).and_then(|()| conduct::say(stream, &mut up, order.up));
            if said.is_ok() && order.end == End::ClientFirst {
                let _ = stream.shutdown(Shutdown::Write);
            }
        });
        let heard = conduct::hear(stream, &mut down, None, order.client_is_slow, &who, findings, |_| Ok(()));
        // It gives up, unless all is done.
        if !matches!(heard, Heard::End) {
            conduct::reset(stream);
        }
    });
}

/// Connects from one of the addresses that clients have.
fn connect(to: SocketAddr, rng: &mut Rng) -> Result<TcpStream> {
    let number = rng.u16(0..ADDRESSES);
    let [high, low] = number.to_be_bytes();
    let from = SockaddrIn::new(127, 3, high, low.max(1), 0);
    let SocketAddr::V4(to) = to else { anyhow::bail!("{to} is not IPv4") };
    let fd = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .context("open a client's socket")?;
    // The port is chosen at connect, so that it only has to be free for this one target.
    setsockopt(&fd, sockopt::IpBindAddressNoPort, &true).context("choose the port late")?;
    socket::bind(fd.as_raw_fd(), &from).with_context(|| format!("bind to {from}"))?;
    socket::connect(fd.as_raw_fd(), &SockaddrIn::from(to)).with_context(|| format!("connect to {to}"))?;
    Ok(fd.into())
}

/// An address that no client and no server has, to be asked about.
pub(crate) const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 3, 200, 200);

//! The servers: those that do as they are told, and those that do not.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bench::clock;
use fastrand::Rng;

use crate::conduct::{self, Heard, is_timeout};
use crate::content::{Stream, Way};
use crate::findings::Findings;
use crate::order::{End, LENGTH, Order};

/// How long a server waits for a byte, or for one to be taken.
const PATIENCE: Duration = Duration::from_secs(120);

/// The stack of a connection's thread, in bytes.
const STACK: usize = 256 * 1024;

/// Connections that a silent server holds; it closes the oldest then.
const MOST_HELD: usize = 200;

/// What a server does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Conduct {
    /// As it is told.
    Well,
    /// It accepts and says nothing.
    Silent,
    /// It resets every connection, at once or after some bytes.
    Resetting,
    /// As it is told, but it listens only from time to time.
    Flapping,
}

/// Starts one at this address with a port of the kernel's choice. It goes on as long as this program does.
pub(crate) fn start(ip: Ipv4Addr, conduct: Conduct, seed: u64, findings: &Arc<Findings>) -> Result<SocketAddr> {
    let listener = TcpListener::bind((ip, 0)).with_context(|| format!("listen at {ip}"))?;
    let address = listener.local_addr().context("the address of a server")?;
    let (findings, mut rng) = (Arc::clone(findings), Rng::with_seed(seed));
    thread::Builder::new()
        .spawn(move || match conduct {
            Conduct::Well => accept(&listener, |stream| spawn(stream, &findings)),
            Conduct::Silent => {
                let mut held = std::collections::VecDeque::new();
                accept(&listener, |stream| {
                    held.push_back(stream);
                    if held.len() > MOST_HELD {
                        held.pop_front();
                    }
                });
            }
            Conduct::Resetting => accept(&listener, |mut stream| {
                let _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
                let wanted = rng.usize(0..100);
                let _ = stream.read(&mut vec![0; wanted]);
                conduct::reset(&stream);
            }),
            Conduct::Flapping => flap(listener, address, &mut rng, &findings),
        })
        .context("a thread for a server")?;
    Ok(address)
}

fn accept(listener: &TcpListener, mut then: impl FnMut(TcpStream)) {
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => then(stream),
            // Out of descriptors: those that are there end.
            Err(_) => clock::pause(Duration::from_millis(10)),
        }
    }
}

fn flap(listener: TcpListener, address: SocketAddr, rng: &mut Rng, findings: &Arc<Findings>) {
    let mut next = Some(listener);
    loop {
        if let Some(listener) = next.take().or_else(|| TcpListener::bind(address).ok()) {
            let end = clock::now() + Duration::from_millis(rng.u64(20..500));
            let _ = listener.set_nonblocking(true);
            while clock::now() < end {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let _ = stream.set_nonblocking(false);
                        spawn(stream, findings);
                    }
                    Err(_) => clock::pause(Duration::from_millis(2)),
                }
            }
        }
        clock::pause(Duration::from_millis(rng.u64(20..500)));
    }
}

fn spawn(stream: TcpStream, findings: &Arc<Findings>) {
    let findings = Arc::clone(findings);
    let serve = move || serve(&stream, &findings);
    // Without a thread the connection is closed, which its client tells of.
    let _ = thread::Builder::new().stack_size(STACK).spawn(serve);
}

/// Does what the order says.
fn serve(mut stream: &TcpStream, findings: &Findings) {
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let _ = stream.set_write_timeout(Some(PATIENCE));
    let mut first = [0; LENGTH];
    // A check of the balancer says nothing, and a client may have gone.
    if stream.read_exact(&mut first).is_err() {
        return;
    }
    let Some(order) = Order::decode(&first) else {
        findings.fault(format!("a server: the first bytes of a session are no order: {first:02x?}"));
        return;
    };
    let who = || format!("session {} at the server", order.session);
    let mut up = Stream::new(order.session, Way::Up);
    let mut down = Stream::new(order.session, Way::Down);
    let last = if let End::ServerResets(after) = order.end { after } else { order.down };
    let heard = thread::scope(|scope| {
        if !order.echo {
            let said = scope.spawn(move || {
                let said = conduct::say(stream, &mut down, last);
                match order.end {
                    End::ServerFirst if said.is_ok() => drop(stream.shutdown(Shutdown::Write)),
                    End::ServerResets(_) => {
                        conduct::reset(stream);
                        // It wakes up who reads; the reset goes out when the socket is closed.
                        let _ = stream.shutdown(Shutdown::Read);
                    }
                    _ => {}
                }
                said
            });
            let heard = conduct::hear(stream, &mut up, None, order.server_is_slow, &who, findings, |_| Ok(()));
            return heard.beside(said.join().unwrap_or(Ok(())));
        }
        conduct::hear(stream, &mut up, None, order.server_is_slow, &who, findings, |bytes| stream.write_all(bytes))
    });
    let is_cut = match heard {
        _ if matches!(order.end, End::ServerResets(_)) => false,
        Heard::End if up.offset() > order.up => {
            findings.fault(format!("{}: {} bytes of {}", who(), up.offset(), order.up));
            false
        }
        // An end in order is said by the client alone, behind the last byte.
        Heard::End => up.offset() < order.up || matches!(order.end, End::ClientResets(_)),
        Heard::Broken(error) if is_timeout(&error) => {
            findings.fault(format!("{}: it stood still at {} bytes of {}", who(), up.offset(), order.up));
            false
        }
        Heard::Broken(_) => !matches!(order.end, End::ClientResets(_)),
        Heard::Enough | Heard::Wrong => false,
    };
    if is_cut && order.strict {
        findings.cut_at_servers.fetch_add(1, Ordering::Relaxed);
    }
}

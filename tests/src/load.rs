//! Clients that keep coming, and clients that stay, while a test does something.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::noise::Noise;
use crate::{Client, loopback, wait};

/// Clients that connect at the same time.
const WORKERS: u32 = 4;

/// Addresses of each of them.
const CLIENTS: u32 = 5000;

/// Bytes of one exchange, at most: more than is read at once.
const MOST_BYTES: usize = 100_000;

/// The clients, and what became of their requests.
#[derive(Debug, Default)]
pub struct Load {
    over: AtomicBool,
    failed: AtomicBool,
    requests: AtomicUsize,
}

impl Load {
    /// Waits until so many further requests were served.
    ///
    /// # Panics
    /// When one failed, or they do not come.
    pub fn pass(&self, count: usize) {
        let before = self.requests.load(Ordering::Relaxed);
        wait::until("requests go on", || {
            assert!(!self.failed.load(Ordering::Relaxed), "a request failed");
            self.requests.load(Ordering::Relaxed) >= before + count
        });
    }
}

/// Does this while clients connect to each of these places all the time, one connection after the other, and each is
/// served by one of the servers that its place may have. Gives the number of their requests.
///
/// # Panics
/// When a request fails, or is served by another.
pub fn during(places: &[(SocketAddr, Vec<SocketAddr>)], work: impl FnOnce(&Load)) -> usize {
    let load = Load::default();
    thread::scope(|scope| {
        let end = Set(&load.over);
        for worker in 0..WORKERS {
            let load = &load;
            scope.spawn(move || {
                let failed = Set(&load.failed);
                for (round, (address, servers)) in (0u32..).zip(places.iter().cycle()) {
                    if load.over.load(Ordering::Relaxed) {
                        break;
                    }
                    request(worker, round, *address, servers);
                    load.requests.fetch_add(1, Ordering::Relaxed);
                }
                std::mem::forget(failed);
            });
        }
        work(&load);
        drop(end);
    });
    load.requests.into_inner()
}

/// Does this while each of these clients, of which the server is known, exchanges bytes on a connection that it keeps and on
/// a new one, in turn and all the time. Gives the number of their exchanges.
///
/// # Panics
/// When a byte is not the right one, a connection ends, or another server serves.
pub fn beside(address: SocketAddr, clients: &[(u32, SocketAddr)], work: impl FnOnce(&Load)) -> usize {
    let load = Load::default();
    thread::scope(|scope| {
        let end = Set(&load.over);
        for (number, server) in clients {
            let load = &load;
            scope.spawn(move || {
                let failed = Set(&load.failed);
                let connect = || {
                    let client = Client::connect_from(loopback::client(*number), address);
                    assert_eq!(client.server(), *server, "client {number} stays at its server");
                    client
                };
                let (kept, mut noise) = (connect(), Noise::of(u64::from(*number)));
                while !load.over.load(Ordering::Relaxed) {
                    let bytes = noise.bytes(1 + load.requests.load(Ordering::Relaxed) * 97 % MOST_BYTES);
                    assert!(kept.exchange(&bytes) == bytes, "client {number} gets what it sent");
                    let new = connect();
                    assert!(new.exchange(&bytes) == bytes, "client {number} gets what it sent");
                    new.shut();
                    assert_eq!(new.rest().expect("an end in order"), b"");
                    load.requests.fetch_add(2, Ordering::Relaxed);
                }
                kept.shut();
                assert_eq!(kept.rest().expect("an end in order"), b"");
                std::mem::forget(failed);
            });
        }
        work(&load);
        drop(end);
    });
    load.requests.into_inner()
}

fn request(worker: u32, round: u32, address: SocketAddr, servers: &[SocketAddr]) {
    let client = Client::connect_from(loopback::client(worker * CLIENTS + round % CLIENTS), address);
    let server = client.server();
    assert!(servers.contains(&server), "{server} serves {address}, which has {servers:?}");
    let bytes = [worker.to_le_bytes(), round.to_le_bytes()].concat();
    client.send(&bytes);
    client.shut();
    assert_eq!(client.rest().expect("an end in order"), bytes);
}

/// Is set at the end, also that by a panic.
struct Set<'a>(&'a AtomicBool);

impl Drop for Set<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

//! Loopback addresses that nobody else uses at this moment.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};

/// The next address of this process: `127.64.0.0/10`, a part of it for each process that runs tests. Two processes may
/// share a part when there are very many; the kernel's choice of ports keeps even those apart.
pub fn fresh() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed) % (1 << 12) + 1;
    let part = std::process::id() % (1 << 9);
    IpAddr::V4(Ipv4Addr::from_bits(0x7f40_0000 | part << 13 | number))
}

/// The next address with a port at which nobody listens: for a file, which has to say one.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free() -> SocketAddr {
    free_at(fresh())
}

/// This address with a port at which nobody listens.
///
/// # Panics
/// When there is none, or the address is not this machine's.
#[must_use]
pub fn free_at(ip: IpAddr) -> SocketAddr {
    TcpListener::bind((ip, 0)).and_then(|listener| listener.local_addr()).expect("a port")
}

/// This address, which others use too, or all, with a port that is free for connections and datagrams. The kernel chooses
/// none of these for anybody, so none is taken between this and its use.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free_of_both(ip: IpAddr) -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 22_000;
    let is_free = |address: &SocketAddr| TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok();
    (0..COUNT)
        .map(|_| {
            let number = (std::process::id() % COUNT * 61 + NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT + FIRST;
            SocketAddr::new(ip, u16::try_from(number).expect("it is below 2^16"))
        })
        .find(is_free)
        .expect("a port")
}

/// The client with this number: `127.0.0.0/10`, where no balancer and no server is.
///
/// # Panics
/// When the number is not below 2^20.
#[must_use]
pub fn client(number: u32) -> IpAddr {
    assert!(number < 1 << 20, "clients have 20 bits");
    IpAddr::V4(Ipv4Addr::from_bits(0x7f10_0000 | number))
}

//! What the shell itself decides about a connect.

use std::net::TcpListener;

use nix::sys::socket::bind;

use super::*;

/// A socket on a port of its own choosing that has connected to that very port.
fn connected_to_itself() -> (TcpStream, SocketAddr) {
    let stream =
        TcpStream::from(socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket"));
    bind(stream.as_raw_fd(), &SockaddrStorage::from("127.0.0.1:0".parse::<SocketAddr>().expect("an address")))
        .expect("bound");
    let own = stream.local_addr().expect("bound");
    connect(stream.as_raw_fd(), &SockaddrStorage::from(own)).expect("TCP allows it");
    (stream, own)
}

#[test]
fn a_socket_that_is_connected_to_itself_is_found_out() {
    let (stream, own) = connected_to_itself();
    assert!(is_connected_to_itself(&stream, own));

    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let server = listener.local_addr().expect("bound");
    assert!(!is_connected_to_itself(&begin_connect(server, false).expect("begun"), server));
}

#[test]
fn a_circle_through_a_listener_of_our_own_is_found_out() {
    let parse = |text: &str| text.parse::<SocketAddr>().expect("an address");
    for (server, listening, circle) in [
        ("127.0.0.3:80", "0.0.0.0:80", true),
        ("127.0.0.3:80", "127.0.0.3:80", true),
        ("127.0.0.3:80", "0.0.0.0:81", false),
        ("127.0.0.3:80", "127.0.0.4:80", false),
        // An address of the documentation, which no machine has.
        ("192.0.2.1:80", "0.0.0.0:80", false),
    ] {
        assert_eq!(is_a_circle(parse(server), &[parse(listening)]), circle, "{server} {listening}");
    }
}

#[test]
fn a_turn_shares_what_it_splices_out() {
    let steps: Vec<usize> =
        [0, 1, 8, 16, 32, 64, 256].into_iter().map(|ready| spliced_in_a_step(ready) / 1024).collect();
    assert_eq!(steps, [512, 512, 512, 256, 128, 64, 64]);
}

#[test]
fn our_own_shortages_are_not_a_servers_fault() {
    for errno in [Errno::EADDRNOTAVAIL, Errno::EMFILE, Errno::EPERM] {
        assert!(is_ours(errno), "{errno}");
    }
    for errno in [Errno::ECONNREFUSED, Errno::ETIMEDOUT, Errno::EHOSTUNREACH, Errno::ENETUNREACH] {
        assert!(!is_ours(errno), "{errno}");
    }
}

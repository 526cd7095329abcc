//! The control socket, and whoever speaks to it: every peer gets its end, and traffic goes on.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tests::balancer::{add, remove};
use tests::noise::Noise;
use tests::programs::programs;
use tests::{Balancer, Server, Setup, process, wait};
use wire::control::Removal;
use wire::frame::{Decoder, REQUEST_LIMIT, RESPONSE_LIMIT, frame, greeting};
use wire::report::Phase;
use wire::{Request, Response};

/// Somebody at the control socket.
struct Peer(UnixStream);

impl Peer {
    fn of(balancer: &Balancer) -> Self {
        let stream = UnixStream::connect(balancer.socket()).expect("connected");
        stream.set_read_timeout(Some(wait::LIMIT)).expect("set");
        stream.set_write_timeout(Some(wait::LIMIT)).expect("set");
        Self(stream)
    }

    /// What comes until the balancer closes the connection.
    fn rest(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match (&self.0).read_to_end(&mut bytes) {
            // A close with bytes that were not read is a reset.
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        bytes
    }
}

/// Runs `work` while requests go through the balancer, each of which is answered by the server.
fn under_traffic<T>(balancer: &Balancer, server: &Server, work: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut requests = 0u32;
            while !over.load(Ordering::Relaxed) || requests < 20 {
                let client = balancer.client();
                assert_eq!(client.server(), server.address());
                assert_eq!(client.exchange(&requests.to_le_bytes()), requests.to_le_bytes());
                requests += 1;
            }
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        over.store(true, Ordering::Relaxed);
        traffic.join().expect("traffic goes on");
        done.unwrap_or_else(|fault| std::panic::resume_unwind(fault))
    })
}

#[test]
fn garbage_ends_its_connection_and_nothing_else() {
    let server = Server::start();
    let balancer = Balancer::of([&server]);
    balancer.wait_for_sessions(0);
    let descriptors = balancer.descriptors();
    let mut noise = Noise::new();
    let with_greeting = |bytes: &[u8]| [&greeting(), bytes].concat();
    let mut strange = vec![
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        vec![0; 100],
        vec![0xff; 100],
        // A greeting of another version, of none, and one twice: the second is no request.
        [&6u32.to_le_bytes()[..], b"BALC", &7u16.to_le_bytes()].concat(),
        [&4u32.to_le_bytes()[..], b"BALC"].concat(),
        [greeting(), greeting()].concat(),
        // A length above the limit, the largest there is, and a request with something behind it.
        with_greeting(&(REQUEST_LIMIT as u32 + 1).to_le_bytes()),
        with_greeting(&u32::MAX.to_le_bytes()),
        with_greeting(&[&5u32.to_le_bytes()[..], &[0, 0, 0, 0, 0]].concat()),
        with_greeting(&0u32.to_le_bytes()),
    ];
    strange.extend((0..50).map(|_| with_greeting(&[&64u32.to_le_bytes()[..], &noise.bytes(64)].concat())));
    under_traffic(&balancer, &server, || {
        for bytes in &strange {
            let peer = Peer::of(&balancer);
            (&peer.0).write_all(bytes).expect("taken");
            let said = peer.rest();
            assert!(greeting().starts_with(&said), "{bytes:?} is answered with {said:?}");
        }
    });
    wait::until("every descriptor is given back", || balancer.descriptors() <= descriptors);
    assert!(!balancer.log().contains("ERROR"), "{}", balancer.log());
}

#[test]
fn half_a_frame_and_an_answer_that_nobody_reads_try_its_patience() {
    let server = Server::start();
    let balancer = Balancer::of([&server]);
    let bytes = [greeting(), frame(&Request::Status).expect("short")].concat();
    let halves = [1, 3, 4, 9, 10, 11, bytes.len() - 1];
    under_traffic(&balancer, &server, || {
        let peers: Vec<Peer> = halves.iter().map(|_| Peer::of(&balancer)).collect();
        for (peer, count) in peers.iter().zip(halves) {
            (&peer.0).write_all(&bytes[..count]).expect("taken");
        }
        for (peer, count) in peers.iter().zip(halves).filter(|(_, count)| *count != 10) {
            assert_eq!(peer.rest(), greeting(), "after {count} bytes it waits and then closes");
        }
        // A greeting alone is no half of anything: that one may be silent for as long as it likes.
        let (mut silent, request) = (&peers[4].0, frame(&Request::Status).expect("short"));
        silent.write_all(&request).expect("still open");
        silent.read_exact(&mut vec![0; greeting().len() + 4]).expect("an answer");
    });
}

#[test]
fn a_request_in_single_bytes_is_answered() {
    let balancer = Balancer::start();
    let peer = Peer::of(&balancer);
    for byte in [greeting(), frame(&Request::List { pool: "default".to_owned() }).expect("short")].concat() {
        (&peer.0).write_all(&[byte]).expect("taken");
    }
    let mut decoder = Decoder::<Response>::new(RESPONSE_LIMIT);
    let response = loop {
        if let Some(response) = decoder.next().expect("a response") {
            break response;
        }
        let mut chunk = [0; 512];
        let count = (&peer.0).read(&mut chunk).expect("bytes");
        decoder.push(&chunk[..count]);
    };
    assert_eq!(response, Response::List(balancer.list()));
}

#[test]
fn pipelined_requests_are_all_answered_in_order_also_behind_the_end() {
    let balancer = Balancer::start();
    let clients: Vec<std::net::IpAddr> = (0..2000).map(tests::loopback::client).collect();
    let peer = Peer::of(&balancer);
    let answers = thread::scope(|scope| {
        scope.spawn(|| {
            let mut bytes = greeting();
            for client in &clients {
                bytes.extend(frame(&Request::Explain { client: *client, port: 0, service: None }).expect("short"));
            }
            (&peer.0).write_all(&bytes).expect("taken");
            peer.0.shutdown(std::net::Shutdown::Write).expect("half closed");
        });
        peer.rest()
    });
    let mut decoder = Decoder::<Response>::new(RESPONSE_LIMIT);
    decoder.push(&answers);
    for client in &clients {
        match decoder.next().expect("a response").expect("one for each") {
            Response::Explained(report) => assert_eq!(report.client, *client),
            other => panic!("an answer to another question: {other:?}"),
        }
    }
    assert!(decoder.next().expect("the end").is_none());
}

#[test]
fn thousands_of_requests_whose_answers_nobody_reads_are_cut_off() {
    let server = Server::start();
    let balancer = Balancer::of([&server]);
    let memory = process::most_memory_kib(balancer.pid());
    let request = frame(&Request::Status).expect("short");
    under_traffic(&balancer, &server, || {
        let peer = Peer::of(&balancer);
        (&peer.0).write_all(&greeting()).expect("taken");
        let mut sent = 0u64;
        let error = loop {
            match (&peer.0).write(&request.repeat(1000)) {
                Ok(count) => sent += count as u64,
                Err(error) => break error,
            }
        };
        assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
        assert!(sent > 1000, "some were taken: {sent} bytes");
    });
    let grown = process::most_memory_kib(balancer.pid()) - memory;
    assert!(grown < 4096, "{grown} KiB for answers that nobody reads");
}

#[test]
fn silent_connections_never_lock_an_operator_out() {
    let server = Server::start();
    let balancer = Balancer::of([&server]);
    let silent: Vec<Peer> = (0..100).map(|_| Peer::of(&balancer)).collect();
    assert_eq!(balancer.list().servers.len(), 1);
    // The quietest gave way: at most 32 are left.
    wait::until("most of them were closed", || {
        let closed = silent.iter().filter(|peer| {
            peer.0.set_nonblocking(true).expect("set");
            let mut chunk = [0; 64];
            loop {
                match (&peer.0).read(&mut chunk) {
                    Ok(0) => break true,
                    Ok(_) => {}
                    Err(error) => break error.kind() != ErrorKind::WouldBlock,
                }
            }
        });
        closed.count() >= 68
    });
    assert_eq!(balancer.client().server(), server.address());
    balancer.assert_quiet();
}

#[test]
fn one_connection_may_ask_for_as_long_as_it_likes() {
    let server = Server::start();
    let balancer = Balancer::of([&server]);
    let mut control = wire::Client::connect(balancer.socket()).expect("it listens");
    for _ in 0..1000 {
        match control.call(&Request::Status).expect("it answers") {
            Response::Status(status) => assert_eq!((status.pid, status.phase), (balancer.pid(), Phase::Running)),
            other => panic!("an answer to another question: {other:?}"),
        }
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").mode() & 0o7777
}

#[test]
fn the_socket_and_what_is_made_for_it_are_closed_to_others() {
    let balancer = Setup::new().socket("new/deep/control.sock").start();
    assert_eq!(mode(balancer.socket()), 0o660);
    for directory in ["new", "new/deep"] {
        assert_eq!(mode(&balancer.file(directory)), 0o750, "{directory}");
    }
    let pid = fs::read_to_string(balancer.file("new/deep/control.pid")).expect("a pid file");
    assert_eq!(pid, format!("{}\n", balancer.pid()));
    balancer.add("10.0.0.1:80".parse().expect("an address"));
    assert_eq!(mode(&balancer.file("new/deep/control.state")) & 0o007, 0, "nothing for others");
}

#[test]
fn a_second_daemon_at_the_socket_is_told_the_pid_of_the_first() {
    let server = Server::start();
    let balancer = Balancer::of([&server]);
    let second = balancer.setup().clone().listen("127.0.0.1:0".parse().expect("an address"));
    let output = second.run();
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("a balancer runs already") && said.contains(&format!("pid {}", balancer.pid())), "{said}");
    assert_eq!(balancer.client().server(), server.address(), "the first is untouched");
    assert_eq!(balancer.status().pid, balancer.pid());
}

#[test]
fn what_a_killed_daemon_left_is_replaced() {
    let server = Server::start();
    let mut balancer = Balancer::of([&server]);
    balancer.crash();
    assert!(balancer.socket().exists() && balancer.file("control.pid").exists(), "it had no time to clean up");
    balancer.restart();
    assert_eq!(fs::read_to_string(balancer.file("control.pid")).expect("a pid"), format!("{}\n", balancer.pid()));
    assert_eq!(balancer.client().server(), server.address());
}

#[test]
fn a_file_in_the_place_of_the_socket_is_left_alone() {
    let setup = Setup::new();
    let path = setup.directory().join("control.sock");
    fs::write(&path, "precious").expect("written");
    let output = setup.run();
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("control.sock is there and is not a socket"), "{said}");
    assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
}

#[test]
fn two_balancers_in_one_directory_share_nothing() {
    let (server, other) = (Server::start(), Server::start());
    let one = Balancer::of([&server]);
    let two = one.setup().clone().socket("other.sock").listen(Setup::new().address()).start();
    two.add_all([&other]);
    assert_eq!(one.client().server(), server.address());
    assert_eq!(two.client().server(), other.address());
    assert_eq!((one.list().servers.len(), two.list().servers.len()), (1, 1));
    drop(two);
    assert_eq!(one.client().server(), server.address());
}

/// balancerctl as the user nobody, who is in no group of ours.
fn as_nobody(balancer: &Balancer, line: &str) -> Output {
    // Where the target directory is closed to others, so is the program in it.
    let program = balancer.file("balancerctl");
    fs::copy(&programs().balancerctl, &program).expect("copied");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("set");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
    command.args(line.split_whitespace()).arg("--socket").arg(balancer.socket());
    command.env_remove("BALANCER_SOCKET").current_dir("/").output().expect("setpriv runs")
}

fn assert_turned_away(output: &Output, code: i32, words: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.lines().count()), (Some(code), 1), "{said}");
    assert!(said.contains(words) && output.stdout.is_empty(), "{said}");
}

#[test]
fn a_stranger_is_turned_away_by_the_socket_and_by_the_daemon() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can become somebody else");
        return;
    }
    let balancer = Balancer::start();
    fs::set_permissions(balancer.directory(), fs::Permissions::from_mode(0o755)).expect("set");
    assert_turned_away(&as_nobody(&balancer, "list"), 2, "permission to use");
    // Somebody opened the socket for everybody. The daemon still looks who it is.
    fs::set_permissions(balancer.socket(), fs::Permissions::from_mode(0o666)).expect("set");
    assert_turned_away(&as_nobody(&balancer, "add 10.0.0.1 80"), 1, "user 65534 may not steer this balancer");
    assert!(balancer.list().servers.is_empty());
    balancer.wait_for_log("a control connection was refused");
    // A member of the socket's group may. The socket has the group of its directory, for that has the bit.
    let mut balancer = balancer;
    fs::set_permissions(balancer.directory(), fs::Permissions::from_mode(0o2755)).expect("set");
    nix::unistd::chown(balancer.directory(), None, Some(65534.into())).expect("changed");
    balancer.restart();
    let output = as_nobody(&balancer, "add 10.0.0.1 80");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(balancer.list().servers.len(), 1);
}

#[test]
fn strangers_that_knock_again_and_again_are_one_line_of_the_log_and_a_number() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can become somebody else");
        return;
    }
    let balancer = Balancer::start();
    fs::set_permissions(balancer.directory(), fs::Permissions::from_mode(0o755)).expect("set");
    fs::set_permissions(balancer.socket(), fs::Permissions::from_mode(0o666)).expect("set");
    for _ in 0..5 {
        assert_turned_away(&as_nobody(&balancer, "list"), 1, "user 65534 may not steer this balancer");
    }
    balancer.wait_for_log("further control connections were refused suppressed=4");
    assert_eq!(balancer.log().matches("a control connection was refused").count(), 1, "{}", balancer.log());
}

#[test]
fn a_peer_that_goes_before_its_answer_harms_nobody() {
    let server = Server::start();
    let balancer = Balancer::of([&server]);
    balancer.wait_for_sessions(0);
    let descriptors = balancer.descriptors();
    for number in 0..200 {
        let peer = Peer::of(&balancer);
        let server = std::net::SocketAddr::new(tests::loopback::client(number % 2), 9);
        let change = if number / 2 % 2 == 0 { add(server, 1) } else { remove(server, Removal::Now) };
        let request = frame(&Request::Change { change, dry_run: false }).expect("short");
        let sent: io::Result<()> = (&peer.0).write_all(&[greeting(), request].concat());
        sent.expect("taken");
    }
    wait::until("every descriptor is given back", || balancer.descriptors() <= descriptors);
    assert!(balancer.list().servers.iter().any(|report| report.server == server.address()));
}

#[test]
fn a_daemon_that_stands_still_is_said_to() {
    let server = Server::start();
    let balancer = Balancer::of([&server]);
    let client = balancer.client();
    assert_eq!(client.server(), server.address());
    balancer.signal(nix::sys::signal::Signal::SIGSTOP);
    assert_turned_away(&balancer.ctl("status"), 2, "did not answer");
    balancer.signal(nix::sys::signal::Signal::SIGCONT);
    assert_eq!(balancer.status().pid, balancer.pid());
    assert_eq!(client.exchange(b"x"), b"x");
}

//! How sessions end: half-closes and resets pass through the balancer, and each end is counted with its reason.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver};

use nix::sys::signal::Signal;
use tests::noise::Noise;
use tests::{Balancer, Client, Server, Setup, client, config, loopback, server, wait};
use wire::control::{Change, PoolValues};
use wire::health::{CheckKind, OnDown};
use wire::report::EndReason;

/// What a server read, and how it ended.
type Heard = (Vec<u8>, io::Result<()>);

/// A server that says its name, reads until there is no more, and tells the test what came and how it ended.
fn reader() -> (Server, Receiver<Heard>) {
    let (tell, told) = mpsc::channel();
    let server = Server::with(move |stream, name| {
        server::say_name(stream, name)?;
        let _ = tell.send(read_all(stream));
        Ok(())
    });
    (server, told)
}

fn read_all(mut stream: &TcpStream) -> Heard {
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes).map(drop);
    (bytes, end)
}

/// A server that says its name, and then never ceases to answer.
fn endless() -> Server {
    Server::with(|mut stream, name| {
        server::say_name(stream, name)?;
        loop {
            stream.write_all(&[0; 65_536])?;
        }
    })
}

#[test]
fn a_client_that_has_said_everything_reads_the_whole_answer() {
    let answer = Noise::new().bytes(3_000_000);
    let source = answer.clone();
    let server = Server::with(move |mut stream, name| {
        let (question, end) = read_all(stream);
        end?;
        server::say_name(stream, name)?;
        stream.write_all(&question)?;
        stream.write_all(&source)
    });
    let balancer = Balancer::of([&server]);
    let client = balancer.client();
    client.send(b"everything");
    client.shut();
    assert_eq!(client.server(), server.address(), "it answers only after the end");
    assert_eq!(client.receive(10), b"everything");
    assert!(client.rest().expect("an end in order") == answer);
    balancer.wait_for_ends(EndReason::ClientClosed, 1);
    assert_eq!(balancer.listed(server.address()).ended, [(EndReason::ClientClosed, 1)].into());
}

#[test]
fn a_server_that_has_said_everything_hears_the_whole_client() {
    let (tell, told) = mpsc::channel();
    let server = Server::with(move |stream, name| {
        server::say_name(stream, name)?;
        stream.shutdown(Shutdown::Write)?;
        let _ = tell.send(read_all(stream));
        Ok(())
    });
    let balancer = Balancer::of([&server]);
    let client = balancer.client();
    assert_eq!(client.server(), server.address());
    assert_eq!(client.rest().expect("an end in order"), b"", "the server has ended");
    let bytes = Noise::new().bytes(3_000_000);
    client.send(&bytes);
    balancer.wait_for_sessions(1);
    client.shut();
    let (received, end) = told.recv_timeout(wait::LIMIT).expect("the server read");
    assert!(end.is_ok() && received == bytes);
    balancer.wait_for_ends(EndReason::ServerClosed, 1);
}

#[test]
fn half_closed_sessions_cost_no_time() {
    let server = Server::silent();
    let balancer = Balancer::of([&server]);
    let half: Vec<_> = (0..10).map(|number| balancer.client_number(number)).collect();
    for client in &half {
        assert_eq!(client.server(), server.address());
    }
    let other = Server::with(|stream, name| {
        server::say_name(stream, name)?;
        stream.shutdown(Shutdown::Write)?;
        read_all(stream).1
    });
    let ended = Balancer::of([&other]);
    let clients: Vec<_> = (0..10).map(|number| ended.client_number(number)).collect();
    for client in &clients {
        assert_eq!(client.server(), other.address());
        assert_eq!(client.rest().expect("an end in order"), b"");
    }
    ended.wait_for_sessions(10);
    ended.assert_quiet();

    let waiting = Server::with(|stream, name| {
        server::say_name(stream, name)?;
        read_all(stream).1?;
        // It has read the end and holds the session until the test hangs up.
        server::held(stream)
    });
    let shut = Balancer::of([&waiting]);
    let clients: Vec<_> = (0..10).map(|number| shut.client_number(number)).collect();
    for client in &clients {
        assert_eq!(client.server(), waiting.address());
        client.shut();
    }
    shut.wait_for_sessions(10);
    shut.assert_quiet();
    waiting.hang_up();
    shut.wait_for_ends(EndReason::ClientClosed, 10);
}

#[test]
fn a_client_that_resets_is_a_reset_for_the_server_behind_the_bytes_before_it() {
    let (server, told) = reader();
    let balancer = Balancer::of([&server]);
    let mut noise = Noise::new();
    for size in [0, 1, 10_000] {
        let (client, bytes) = (balancer.client(), noise.bytes(size));
        assert_eq!(client.server(), server.address());
        client.send(&bytes);
        client.reset();
        let (received, end) = told.recv_timeout(wait::LIMIT).expect("the server read");
        assert!(received == bytes, "{} bytes of {size}", received.len());
        assert_eq!(end.expect_err("no end in order").kind(), ErrorKind::ConnectionReset);
    }
    balancer.wait_for_ends(EndReason::ClientReset, 3);
    assert_eq!(balancer.listed(server.address()).ended, [(EndReason::ClientReset, 3)].into());
}

#[test]
fn a_server_that_resets_is_a_reset_for_the_client_behind_the_bytes_before_it() {
    let mut noise = Noise::new();
    for size in [0, 1, 10_000] {
        let bytes = noise.bytes(size);
        let source = bytes.clone();
        let server = Server::with(move |mut stream, name| {
            server::say_name(stream, name)?;
            stream.read_exact(&mut [0])?;
            stream.write_all(&source)?;
            client::reset(stream);
            Ok(())
        });
        let balancer = Balancer::of([&server]);
        let client = balancer.client();
        assert_eq!(client.server(), server.address());
        client.send(b"!");
        assert!(client.receive(size) == bytes, "{size} bytes");
        assert_eq!(client.rest().expect_err("no end in order").kind(), ErrorKind::ConnectionReset);
        balancer.wait_for_ends(EndReason::ServerReset, 1);
        assert_eq!(balancer.listed(server.address()).ended, [(EndReason::ServerReset, 1)].into());
    }
}

#[test]
fn a_reset_after_a_half_close_is_still_a_reset() {
    let server = Server::with(|mut stream, name| {
        server::say_name(stream, name)?;
        read_all(stream).1?;
        stream.write_all(b"!")?;
        client::reset(stream);
        Ok(())
    });
    let balancer = Balancer::of([&server]);
    let client = balancer.client();
    assert_eq!(client.server(), server.address());
    client.shut();
    assert_eq!(client.receive(1), b"!");
    assert_eq!(client.rest().expect_err("no end in order").kind(), ErrorKind::ConnectionReset);
    balancer.wait_for_ends(EndReason::ServerReset, 1);
}

#[test]
fn a_client_that_goes_in_the_middle_of_an_answer_ends_the_session() {
    let server = endless();
    let balancer = Balancer::of([&server]);
    let client = balancer.client();
    assert_eq!(client.server(), server.address());
    drop(client.receive(1_000_000));
    // What it did not read makes its close a reset.
    drop(client);
    balancer.wait_for_ends(EndReason::ClientReset, 1);
    wait::until("the server is let go", || server.living() == 0);
}

#[test]
fn a_server_that_dies_in_the_middle_is_an_end_for_its_clients_and_for_nobody_else() {
    let servers = Server::several(2);
    let balancer = Balancer::of(&servers);
    let clients: Vec<_> = (0..20).map(|number| balancer.client_number(number)).collect();
    let (dying, living): (Vec<_>, Vec<_>) = clients.iter().partition(|client| client.server() == servers[0].address());
    assert!(!dying.is_empty() && !living.is_empty());
    servers[0].die();
    for client in &dying {
        client.assert_ended();
    }
    for client in living {
        assert_eq!(client.exchange(b"still here"), b"still here");
    }
    balancer.wait_for_ends(EndReason::ServerReset, dying.len() as u64);
}

#[test]
fn a_server_that_resets_every_client_at_once_leaves_nothing_behind() {
    let server = Server::with(|stream, _| {
        client::reset(stream);
        Ok(())
    });
    let balancer = Balancer::of([&server]);
    balancer.wait_for_sessions(0);
    let descriptors = balancer.descriptors();
    for number in 0..200 {
        match Client::try_from(loopback::client(number), balancer.address()) {
            Ok(client) => client.assert_ended(),
            // The reset came before the client's own connect had returned.
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
    balancer.wait_for_sessions(0);
    // Whether the reset comes before or after the balancer has seen the connect is not for a test to say.
    let ended = balancer.service().ended;
    assert!(
        ended.keys().all(|reason| matches!(reason, EndReason::ServerReset | EndReason::ConnectFailed)),
        "{ended:?}"
    );
    assert_eq!(ended.values().sum::<u64>(), 200);
    wait::until("every descriptor is given back", || balancer.descriptors() <= descriptors);
}

#[test]
fn an_idle_session_ends_and_one_that_is_used_does_not() {
    let server = Server::start();
    let balancer = Setup::new().options("--idle-timeout 4s").start();
    balancer.add(server.address());
    let (idle, used) = (balancer.client(), balancer.client());
    assert_eq!((idle.server(), used.server()), (server.address(), server.address()));
    wait::until("the idle one ends", || {
        assert_eq!(used.exchange(b"x"), b"x");
        balancer.ended(EndReason::IdleTimeout) > 0
    });
    idle.assert_ended();
    assert_eq!(balancer.service().active, 1);
    assert_eq!(used.exchange(b"x"), b"x");
    assert_eq!(balancer.listed(server.address()).ended, [(EndReason::IdleTimeout, 1)].into());
}

#[test]
fn an_idle_timeout_below_the_connect_timeout_is_not_late() {
    let server = Server::start();
    // Later than any test waits.
    let balancer = Setup::new().options("--idle-timeout 300ms --connect-timeout 10m").start();
    balancer.add(server.address());
    let (silent, used) = (balancer.client(), balancer.client());
    assert_eq!((silent.server(), used.server()), (server.address(), server.address()));
    // A machine that stands still may make this one idle as well, before its byte is there.
    let _ = used.stream().write_all(b"x");
    balancer.wait_for_ends(EndReason::IdleTimeout, 2);
    silent.assert_ended();
    assert_eq!(balancer.listed(server.address()).ended, [(EndReason::IdleTimeout, 2)].into());
}

#[test]
fn a_half_closed_session_is_idle_too() {
    let server = Server::with(|stream, name| {
        server::say_name(stream, name)?;
        read_all(stream).1?;
        server::held(stream)
    });
    let balancer = Setup::new().options("--idle-timeout 300ms").start();
    balancer.add(server.address());
    let client = balancer.client();
    assert_eq!(client.server(), server.address());
    client.shut();
    balancer.wait_for_ends(EndReason::IdleTimeout, 1);
    client.assert_ended();
}

#[test]
fn clients_that_are_gone_before_they_are_accepted_leave_nothing_behind() {
    let server = Server::silent();
    let balancer = Balancer::of([&server]);
    balancer.wait_for_sessions(0);
    let descriptors = balancer.descriptors();
    // A process that stands still accepts nobody; the kernel takes the connections for it.
    balancer.signal(Signal::SIGSTOP);
    for number in 0..100 {
        let client = balancer.client_number(number);
        client.send(b"too late");
        if number % 2 == 0 { client.reset() } else { drop(client) }
    }
    balancer.signal(Signal::SIGCONT);
    wait::until("all of them have ended", || balancer.service().ended.values().sum::<u64>() == 100);
    let ended = balancer.service().ended;
    let known = [EndReason::ClientReset, EndReason::ClientClosed];
    assert!(ended.keys().all(|reason| known.contains(reason)), "{ended:?}");
    wait::until("every descriptor is given back", || balancer.descriptors() <= descriptors);
    wait::until("no server is left with one", || server.living() == 0);
}

#[test]
fn what_a_client_said_before_it_was_accepted_is_answered() {
    let server = Server::start();
    let balancer = Balancer::of([&server]);
    let bytes = Noise::new().bytes(20_000);
    balancer.signal(Signal::SIGSTOP);
    let clients: Vec<_> = (0..20).map(|number| balancer.client_number(number)).collect();
    for client in &clients {
        client.send(&bytes);
        client.shut();
    }
    balancer.signal(Signal::SIGCONT);
    for client in &clients {
        assert_eq!(client.server(), server.address());
        assert!(client.rest().expect("an end in order") == bytes);
    }
    balancer.wait_for_ends(EndReason::ClientClosed, 20);
}

#[test]
fn a_client_that_resets_while_its_server_is_slow_is_noticed_when_the_server_goes_on() {
    let (go, gate) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    let gate = std::sync::Mutex::new(gate);
    let server = Server::with(move |stream, name| {
        server::say_name(stream, name)?;
        gate.lock().expect("one session").recv_timeout(wait::LIMIT).map_err(io::Error::other)?;
        let _ = tell.send(read_all(stream));
        Ok(())
    });
    let balancer = Balancer::of([&server]);
    let client = balancer.client();
    assert_eq!(client.server(), server.address());
    client.stream().set_nonblocking(true).expect("set");
    let mut sent = 0;
    let mut noise = Noise::new();
    // Until nothing is taken any more, by any of the buffers on the way.
    while let Ok(count) = client.stream().write(&noise.bytes(65_536)) {
        sent += count;
    }
    assert!(sent > 100_000);
    client.reset();
    balancer.assert_quiet();
    go.send(()).expect("the server waits");
    let (received, end) = told.recv_timeout(wait::LIMIT).expect("the server read");
    assert!(received.len() <= sent, "{} of {sent}", received.len());
    assert_eq!(end.expect_err("no end in order").kind(), ErrorKind::ConnectionReset);
    balancer.wait_for_ends(EndReason::ClientReset, 1);
}

#[test]
fn a_stalled_session_ends_when_it_is_told_to() {
    let server = endless();
    let balancer = Balancer::of([&server]);
    let client = balancer.client();
    assert_eq!(client.server(), server.address());
    wait::until("the client is behind", || {
        let before = balancer.service().bytes_out;
        wait::a_moment();
        before > 100_000 && balancer.service().bytes_out == before
    });
    balancer.remove_now(server.address());
    balancer.wait_for_ends(EndReason::Removed, 1);
    wait::until("the server is let go", || server.living() == 0);
    let end = client.rest().map(|bytes| bytes.len());
    let end = end.expect_err("what was read for it did not come, so that is no end in order");
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
}

/// More than the far side of a connection takes in that does not read, and less than both of them do.
const UNDER_WAY: usize = 400_000;

/// A server that says its name and these bytes, and resets when it is told to.
fn saying(bytes: &[u8]) -> (Server, mpsc::Sender<()>) {
    let (source, (go, may_go)) = (bytes.to_vec(), mpsc::channel());
    let may_go = Mutex::new(may_go);
    let server = Server::with(move |mut stream, name| {
        server::say_name(stream, name)?;
        stream.write_all(&source)?;
        may_go.lock().expect("alive").recv().map_err(io::Error::other)?;
        client::reset(stream);
        Ok(())
    });
    (server, go)
}

/// Lets a server reset whose bytes are all on their way from the balancer to its client.
fn reset_behind(server: &Server, go: &mpsc::Sender<()>, balancer: &Balancer) {
    wait::until("the balancer has passed everything on", || balancer.service().bytes_out as usize >= UNDER_WAY);
    go.send(()).expect("it waits");
    wait::until("the server has reset", || server.living() == 0);
}

/// A server has said all that it says and has reset, and its client has read nothing of it.
struct Reset {
    bytes: Vec<u8>,
    server: Server,
    balancer: Balancer,
    client: Client,
}

impl Reset {
    fn begun() -> Self {
        let bytes = Noise::new().bytes(UNDER_WAY);
        let (server, go) = saying(&bytes);
        let balancer = Balancer::of([&server]);
        let client = balancer.client();
        assert_eq!(client.server(), server.address());
        reset_behind(&server, &go, &balancer);
        Self { bytes, server, balancer, client }
    }

    /// Its client reads: all that was said comes, and then the reset.
    fn assert_passed_on(&self) {
        assert!(self.client.receive(UNDER_WAY) == self.bytes);
        assert_eq!(self.client.rest().expect_err("no end in order").kind(), ErrorKind::ConnectionReset);
        self.balancer.wait_for_ends(EndReason::ServerReset, 1);
    }
}

#[test]
fn what_a_server_said_before_it_reset_comes_to_a_client_that_reads_late() {
    let reset = Reset::begun();
    reset.balancer.assert_quiet();
    assert_eq!(reset.balancer.service().active, 1, "its client is still to be told what it said");
    reset.assert_passed_on();
}

#[test]
fn what_a_server_said_before_it_reset_comes_though_checks_take_it_down() {
    let reset = Reset::begun();
    reset.server.refuse();
    let values = PoolValues {
        check: Some(CheckKind::Tcp),
        check_interval_ms: Some(20),
        on_down: Some(OnDown::Close),
        ..PoolValues::default()
    };
    reset.balancer.change(Change::SetPool { pool: "default".to_owned(), values }, false).expect("it is set");
    reset.balancer.wait_for_log("server is down");
    reset.assert_passed_on();
}

#[test]
fn what_a_client_said_before_it_reset_comes_to_a_server_that_reads_late() {
    let (go, may_go) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    let may_go = Mutex::new(may_go);
    let server = Server::with(move |stream, name| {
        server::say_name(stream, name)?;
        may_go.lock().expect("alive").recv().map_err(io::Error::other)?;
        let _ = tell.send(read_all(stream));
        Ok(())
    });
    let balancer = Balancer::of([&server]);
    let (client, bytes) = (balancer.client(), Noise::new().bytes(UNDER_WAY));
    assert_eq!(client.server(), server.address());
    client.send(&bytes);
    wait::until("the balancer has passed everything on", || balancer.service().bytes_in as usize == UNDER_WAY);
    client.reset();
    balancer.assert_quiet();
    go.send(()).expect("it waits");
    let (received, end) = told.recv_timeout(wait::LIMIT).expect("the server read");
    assert!(received == bytes, "{} bytes", received.len());
    assert_eq!(end.expect_err("no end in order").kind(), ErrorKind::ConnectionReset);
    balancer.wait_for_ends(EndReason::ClientReset, 1);
}

#[test]
fn who_does_not_read_what_came_before_a_reset_is_waited_for_as_long_as_for_a_half_closed_session() {
    let (server, go) = saying(&[0; UNDER_WAY]);
    let listen = loopback::free();
    let service = config::service("web", listen, "web").trim_end().to_owned() + "\nhalf_closed_timeout = \"300ms\"\n\n";
    let balancer = Setup::new().config(&(service + &config::pool("web", "", [&server]))).start();
    let (descriptors, client) = (balancer.descriptors(), Client::connect(listen));
    assert_eq!(client.server(), server.address());
    reset_behind(&server, &go, &balancer);
    wait::until("it has ended", || balancer.service().ended.get(&EndReason::ServerReset) == Some(&1));
    assert_eq!(balancer.service().active, 0);
    wait::until("nothing is left", || balancer.descriptors() <= descriptors);
}

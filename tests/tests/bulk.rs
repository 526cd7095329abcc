//! Bulk goes through the kernel's pipes: every byte comes as it was sent, and no pipe stays behind.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::{Mutex, mpsc};
use std::thread;

use nix::sys::socket::{self, MsgFlags};
use tests::noise::Noise;
use tests::{Balancer, Client, Server, Setup, client, config, loopback, process, server, wait};
use wire::report::EndReason;

/// Enough that a direction splices most of it.
const BULK: usize = 3_000_000;

/// More than the sockets between two peers hold.
const TOO_MUCH: usize = 40_000_000;

fn pipes(balancer: &Balancer) -> usize {
    process::pipes(balancer.pid())
}

/// A balancer, and how many ends of pipes and how many descriptors it has at rest.
fn at_rest<'a>(servers: impl IntoIterator<Item = &'a Server>) -> (Balancer, usize, usize) {
    let balancer = Balancer::of(servers);
    balancer.wait_for_sessions(0);
    let (pipes, descriptors) = (pipes(&balancer), balancer.descriptors());
    (balancer, pipes, descriptors)
}

fn wait_for_rest(balancer: &Balancer, pipes: usize, descriptors: usize) {
    wait::until("every pipe is closed", || self::pipes(balancer) == pipes);
    wait::until("every descriptor is given back", || balancer.descriptors() <= descriptors);
    balancer.assert_quiet();
}

/// A server that says so many bytes of the noise with this seed, and ends.
fn speaker(seed: u64, count: usize) -> Server {
    Server::with(move |mut stream, _| stream.write_all(&Noise::of(seed).bytes(count)))
}

/// A server that reads nothing until it is told to, and then tells what came until the end.
fn late_reader() -> (Server, mpsc::Sender<()>, mpsc::Receiver<io::Result<Vec<u8>>>) {
    let ((go, gate), (tell, told)) = (mpsc::channel::<()>(), mpsc::channel());
    let gate = Mutex::new(gate);
    let server = Server::with(move |mut stream, _| {
        gate.lock().expect("one session").recv_timeout(wait::LIMIT).map_err(io::Error::other)?;
        let mut bytes = Vec::new();
        let end = stream.read_to_end(&mut bytes);
        let _ = tell.send(end.map(|_| bytes));
        Ok(())
    });
    (server, go, told)
}

/// So many bytes, which are others for another number.
fn noise_of(count: usize) -> Vec<u8> {
    Noise::of(count as u64).bytes(count)
}

/// Waits until bytes have moved and then move no more.
fn wait_for_stall(balancer: &Balancer) {
    let mut before = 0;
    wait::until("the transfer stands still", || {
        let service = balancer.service();
        let moved = service.bytes_in + service.bytes_out;
        let stalled = moved > 0 && moved == before;
        before = moved;
        wait::a_moment();
        stalled
    });
}

#[test]
fn bulk_of_any_size_both_ways_at_once_is_what_was_sent() {
    let server = Server::start();
    let (balancer, pipes, descriptors) = at_rest([&server]);
    let mut noise = Noise::new();
    let mut some = || (0..5).map(|_| 1 + noise.number() as usize % (2 * BULK)).map(noise_of).collect();
    let all: Vec<(Client, Vec<Vec<u8>>)> = (0..4).map(|number| (balancer.client_number(number), some())).collect();
    thread::scope(|scope| {
        for (client, messages) in &all {
            let name = server.address();
            scope.spawn(move || {
                assert_eq!(client.server(), name);
                for bytes in messages {
                    assert!(client.exchange(bytes) == *bytes, "{} bytes", bytes.len());
                }
            });
        }
    });
    assert!(self::pipes(&balancer) > pipes, "it was spliced");
    let bytes: usize = all.iter().flat_map(|(_, messages)| messages).map(Vec::len).sum();
    let names = all.len() * (server.address().to_string().len() + 1);
    let service = balancer.service();
    assert_eq!((service.bytes_in, service.bytes_out), (bytes as u64, (bytes + names) as u64));
    drop(all);
    wait_for_rest(&balancer, pipes, descriptors);
}

#[test]
fn thousands_of_turns_from_bulk_to_small_messages_and_back() {
    let server = Server::start();
    let (balancer, pipes, descriptors) = at_rest([&server]);
    let (client, noise) = (balancer.client(), Noise::new().bytes(1_000_000));
    assert_eq!(client.server(), server.address());
    for round in 0..2000 {
        let from = round * 101;
        let bulk = &noise[from..from + 400_000];
        assert!(client.exchange(bulk) == bulk, "round {round}");
        for small in noise[from..from + 40].chunks(10) {
            assert_eq!(client.exchange(small), small, "round {round}");
        }
    }
    assert!(self::pipes(&balancer) > pipes, "it was spliced");
    client.shut();
    assert_eq!(client.rest().expect("an end in order"), b"");
    wait_for_rest(&balancer, pipes, descriptors);
}

#[test]
fn a_client_that_does_not_read_gives_its_pipe_back_and_loses_nothing() {
    let seed = Noise::new().number();
    let server = speaker(seed, TOO_MUCH);
    let (balancer, pipes, descriptors) = at_rest([&server]);
    let client = balancer.client();
    wait::until("it is spliced", || self::pipes(&balancer) > pipes);
    wait_for_stall(&balancer);
    assert_eq!(balancer.service().active, 1);
    wait::until("the pipe is closed", || self::pipes(&balancer) == pipes);
    balancer.assert_quiet();
    assert!(client.rest().expect("an end in order") == Noise::of(seed).bytes(TOO_MUCH));
    drop(client);
    wait_for_rest(&balancer, pipes, descriptors);
}

#[test]
fn an_urgent_byte_within_bulk_holds_nothing_up() {
    let (tell, told) = mpsc::channel();
    let server = Server::with(move |mut stream, _| {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        let _ = tell.send(bytes);
        Ok(())
    });
    let (balancer, pipes, descriptors) = at_rest([&server]);
    let (client, bytes) = (balancer.client(), noise_of(2 * BULK));
    client.send(&bytes[..BULK]);
    wait::until("it is spliced", || self::pipes(&balancer) > pipes);
    let urgent = socket::send(client.stream().as_raw_fd(), b"!", MsgFlags::MSG_OOB);
    assert_eq!(urgent, Ok(1));
    client.send(&bytes[BULK..]);
    wait::until("all of it is through", || balancer.service().bytes_in as usize == bytes.len());
    balancer.assert_quiet();
    client.shut();
    assert!(told.recv_timeout(wait::LIMIT).expect("it came") == bytes, "without the urgent byte");
    drop(client);
    wait_for_rest(&balancer, pipes, descriptors);
}

#[test]
fn bulk_behind_an_urgent_byte_comes_before_the_end() {
    let expected = noise_of(2 * BULK);
    let bytes = expected.clone();
    let server = Server::with(move |mut stream, _| {
        let (before, behind) = bytes.split_at(bytes.len() - 100_000);
        stream.write_all(before)?;
        socket::send(stream.as_raw_fd(), b"!", MsgFlags::MSG_OOB)?;
        stream.write_all(behind)
    });
    let (balancer, pipes, descriptors) = at_rest([&server]);
    for _ in 0..10 {
        let client = balancer.client();
        // It reads when all of it is there, up to the end.
        wait::until("the server has ended", || server.living() == 0);
        let got = client.rest().expect("an end in order");
        assert!(got == expected, "{} bytes", got.len());
    }
    wait_for_rest(&balancer, pipes, descriptors);
}

#[test]
fn readers_of_every_pace_get_the_same() {
    let seed = Noise::new().number();
    let server = speaker(seed, 2 * BULK);
    let (balancer, pipes, descriptors) = at_rest([&server]);
    let expected = Noise::of(seed).bytes(2 * BULK);
    for piece in [1000, 20_000, 150_000, 1_000_000] {
        let (client, mut got) = (balancer.client(), Vec::new());
        let mut chunk = vec![0; piece];
        loop {
            match client.stream().read(&mut chunk).expect("it comes") {
                0 => break,
                count => got.extend_from_slice(&chunk[..count]),
            }
            thread::yield_now();
        }
        assert!(got == expected, "in pieces of {piece}");
    }
    wait_for_rest(&balancer, pipes, descriptors);
}

#[test]
fn an_end_comes_behind_all_of_the_bulk() {
    let (server, go, told) = late_reader();
    let (balancer, pipes, descriptors) = at_rest([&server]);
    let bytes = Noise::new().bytes(TOO_MUCH);
    let client = balancer.client();
    thread::scope(|scope| {
        scope.spawn(|| {
            client.send(&bytes);
            client.shut();
        });
        wait_for_stall(&balancer);
        go.send(()).expect("the server waits");
        let got = told.recv_timeout(wait::LIMIT).expect("it read").expect("an end in order");
        assert!(got == bytes);
    });
    client.assert_ended();
    assert_eq!(balancer.service().bytes_in, TOO_MUCH as u64);
    drop(client);
    wait_for_rest(&balancer, pipes, descriptors);
}

#[test]
fn what_came_before_a_reset_is_delivered_and_the_reset_behind_it() {
    let seed = Noise::new().number();
    let (go, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let server = Server::with(move |mut stream, _| {
        stream.write_all(&Noise::of(seed).bytes(BULK))?;
        gate.lock().expect("one session").recv_timeout(wait::LIMIT).map_err(io::Error::other)?;
        client::reset(stream);
        Ok(())
    });
    let (balancer, pipes, descriptors) = at_rest([&server]);
    for round in 1..=10 {
        let client = balancer.client();
        assert!(client.receive(BULK) == Noise::of(seed).bytes(BULK));
        go.send(()).expect("the server waits");
        assert_eq!(client.rest().expect_err("a reset").kind(), io::ErrorKind::ConnectionReset);
        balancer.wait_for_ends(EndReason::ServerReset, round);
    }
    wait_for_rest(&balancer, pipes, descriptors);
}

#[test]
fn a_reset_in_the_middle_of_bulk_leaves_nothing_behind() {
    let (tell, told) = mpsc::channel();
    let server = Server::with(move |mut stream, name| {
        server::say_name(stream, name)?;
        let bytes = vec![7; 100_000];
        let error = loop {
            if let Err(error) = stream.write_all(&bytes) {
                break error;
            }
        };
        let _ = tell.send(error.kind());
        Ok(())
    });
    let (balancer, pipes, descriptors) = at_rest([&server]);
    let mut noise = Noise::new();
    for round in 1..=30 {
        let client = balancer.client();
        assert_eq!(client.server(), server.address());
        let count = noise.number() as usize % BULK;
        assert!(client.receive(count).iter().all(|byte| *byte == 7));
        client.reset();
        let kind = told.recv_timeout(wait::LIMIT).expect("the server notices");
        assert!(matches!(kind, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{kind:?}");
        balancer.wait_for_ends(EndReason::ClientReset, round);
    }
    wait_for_rest(&balancer, pipes, descriptors);
}

#[test]
fn a_session_that_is_killed_in_the_middle_of_bulk_leaves_nothing_behind() {
    let server = speaker(1, TOO_MUCH);
    let (balancer, pipes, descriptors) = at_rest([&server]);
    let clients: Vec<Client> = (0..10).map(|number| balancer.client_number(number)).collect();
    wait::until("they are spliced", || self::pipes(&balancer) > pipes);
    balancer.remove_now(server.address());
    balancer.wait_for_ends(EndReason::Removed, 10);
    drop(clients);
    wait_for_rest(&balancer, pipes, descriptors);
}

/// With this limit of descriptors there are as many ends of kernel pipes.
const DESCRIPTORS: u64 = 300;
const ENDS: usize = 6;

#[test]
fn bulk_that_finds_no_pipe_goes_on_all_the_same() {
    let seed = Noise::new().number();
    let server = speaker(seed, 4 * BULK);
    let balancer = Setup::new().descriptors(DESCRIPTORS).start();
    balancer.add(server.address());
    balancer.wait_for_sessions(0);
    let (pipes, descriptors) = (pipes(&balancer), balancer.descriptors());
    let clients: Vec<Client> = (0..40).map(|number| balancer.client_number(number)).collect();
    wait::until("there are as many pipes as there may be", || self::pipes(&balancer) == pipes + ENDS);
    let expected = Noise::of(seed).bytes(4 * BULK);
    thread::scope(|scope| {
        for client in &clients {
            scope.spawn(|| assert!(client.rest().expect("an end in order") == expected));
        }
    });
    assert!(self::pipes(&balancer) <= pipes + ENDS);
    drop(clients);
    wait_for_rest(&balancer, pipes, descriptors);
}

#[test]
fn bulk_goes_on_when_there_are_no_descriptors() {
    let server = Server::start();
    let (balancer, pipes, _) = at_rest([&server]);
    let (client, bytes) = (balancer.client(), Noise::new().bytes(BULK));
    assert_eq!(client.server(), server.address());
    process::limit_descriptors(balancer.pid(), 0);
    assert!(client.exchange(&bytes) == bytes);
    assert_eq!(self::pipes(&balancer), pipes);
    process::limit_descriptors(balancer.pid(), process::MOST_DESCRIPTORS);
    assert_eq!(balancer.service().active, 1);
}

#[test]
fn a_service_that_does_not_splice_copies_everything() {
    let server = Server::start();
    let address = |port: u16| (loopback::fresh(), port).into();
    let text = format!(
        "{}splice = false\n\n{}",
        config::service("web", address(0), "web").trim_end().to_owned() + "\n",
        config::pool("web", "", [&server])
    );
    let balancer = Setup::new().config(&text).start();
    let added = balancer.ctl(&format!("service add copies {} 0 --pool web --no-splice", loopback::fresh()));
    assert!(added.status.success(), "{added:?}");
    let added = balancer.ctl(&format!("service add splices {} 0 --pool web", loopback::fresh()));
    assert!(added.status.success(), "{added:?}");
    let (before, bytes) = (pipes(&balancer), Noise::new().bytes(BULK));
    for (service, splices) in [("web", false), ("copies", false), ("splices", true)] {
        assert_eq!(balancer.service_named(service).settings.splice, splices);
        let client = balancer.client_at(service, 1);
        assert_eq!(client.server(), server.address());
        assert!(client.exchange(&bytes) == bytes, "{service}");
        assert_eq!(pipes(&balancer) > before, splices, "{service}");
    }
}

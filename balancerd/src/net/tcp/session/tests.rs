//! A session between two peers that the test plays, without a poller.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use wire::connection::ServerSide;

use super::super::way::Way;
use super::*;
use crate::event;

const READY: Ready = Ready { readable: true, writable: true, failed: false };
const READABLE: Ready = Ready { readable: true, writable: false, failed: false };
const WRITABLE: Ready = Ready { readable: false, writable: true, failed: false };
const FAILED: Ready = Ready { readable: true, writable: true, failed: true };
const BOTH: Interest = Interest { read: true, write: true, watch: false };

/// A session between two peers that the test plays.
struct Scene {
    session: Session,
    client: TcpStream,
    server: TcpStream,
    scratch: Vec<u8>,
    kernel_pipes: KernelPipes,
    now: Instant,
}

/// The size of the scratch buffer, unless a test wants another one.
const SCRATCH: usize = 4096;

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let far = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
    let (near, _) = listener.accept().expect("accepted");
    near.set_nonblocking(true).expect("set");
    (far, near)
}

fn wait_for(stream: &TcpStream, flags: PollFlags) {
    let limit = PollTimeout::from(20_000u16);
    assert_eq!(poll(&mut [PollFd::new(stream.as_fd(), flags)], limit), Ok(1), "nothing came");
}

fn attempt(server: TcpStream) -> Attempt {
    Attempt {
        server_id: ServerId::default(),
        server: End::new(server),
        with_words: false,
        tried: Vec::new(),
        send_proxy: None,
    }
}

impl Scene {
    fn connecting() -> Self {
        let ((client, near_client), (server, near_server)) = (pair(), pair());
        let now = event::now();
        let peer = client.local_addr().expect("connected");
        let client_end = End::new(near_client);
        let (inward, attempt) = (Pipe::new(true), attempt(near_server));
        let session = Session::new(client_end, inward, attempt, ServiceId::default(), peer, true, now);
        Self { session, client, server, scratch: vec![0; SCRATCH], kernel_pipes: KernelPipes::new(1), now }
    }

    fn relaying() -> Self {
        let mut scene = Self::connecting();
        assert!(scene.ready(Side::Server, WRITABLE).connected);
        scene
    }

    /// The client says something before the connect is done, and it is read.
    fn says_first(&mut self, words: &[u8]) {
        self.client.write_all(words).expect("sent");
        wait_for(&self.session.client.stream, PollFlags::POLLIN);
        self.session.inward.take_in(&self.session.client.stream, &mut self.scratch).expect("read");
    }

    fn ready(&mut self, side: Side, ready: Ready) -> Outcome {
        let through =
            &mut Through { scratch: &mut self.scratch, kernel_pipes: &mut self.kernel_pipes, most_spliced: 256 * 1024 };
        self.session.on_ready(side, ready, through, self.now)
    }

    /// Waits until the session's own socket has something, and tells it so.
    fn readable(&mut self, side: Side) -> Outcome {
        let end = if side == Side::Client { &self.session.client } else { &self.session.server };
        wait_for(&end.stream, PollFlags::POLLIN);
        self.ready(side, READABLE)
    }

    fn interests(&self) -> (Interest, Interest) {
        (self.session.interest(Side::Client), self.session.interest(Side::Server))
    }

    /// Sends from the client until the session keeps something that the server did not take.
    fn stuff(&mut self) -> usize {
        let mut sent = 0;
        self.client.set_nonblocking(true).expect("set");
        while !self.session.inward.wants_write() {
            sent += self.client.write(&[7; 4096]).unwrap_or(0);
            self.readable(Side::Client);
        }
        sent
    }
}

#[test]
fn interests_are_those_of_the_table() {
    let mut scene = Scene::connecting();
    assert_eq!(scene.interests(), (Interest::WATCH, Interest::WRITE));
    scene.ready(Side::Server, WRITABLE);
    assert_eq!(scene.interests(), (Interest::READ, Interest::READ));
    scene.stuff();
    assert_eq!(scene.interests(), (Interest::NONE, BOTH), "back-pressure");
    scene.server.shutdown(Shutdown::Write).expect("half closed");
    scene.readable(Side::Server);
    assert_eq!(scene.interests(), (Interest::NONE, Interest::WRITE), "rule 3: no READ after the end");

    let mut scene = Scene::relaying();
    scene.client.shutdown(Shutdown::Write).expect("half closed");
    scene.readable(Side::Client);
    assert_eq!(scene.interests(), (Interest::WATCH, Interest::READ));
}

#[test]
fn a_peer_that_takes_what_the_kernel_holds_for_it_is_not_idle() {
    let idle = Duration::from_secs(10);
    for half_closed in [None, Some(Duration::from_secs(5))] {
        let timeouts = Timeouts { half_closed, ..Timeouts::new(idle, idle) };
        let mut scene = Scene::relaying();
        // All that the kernel takes for the client, which does not read.
        scene.server.set_nonblocking(true).expect("set");
        while !scene.session.outward.wants_write() {
            let _ = scene.server.write(&[7; 4096]);
            scene.ready(Side::Server, READABLE);
        }
        let ask = |scene: &mut Scene| {
            scene.now = scene.session.next_deadline(timeouts);
            scene.session.expire(timeouts, &mut scene.kernel_pipes, scene.now)
        };
        assert_eq!(ask(&mut scene), Next::Wait, "the first time nobody knows");
        for _ in 0..3 {
            let before = options::unacknowledged(&scene.session.client.stream).expect("it is full");
            let mut bytes = vec![0; 65_536];
            while options::unacknowledged(&scene.session.client.stream) == Some(before) {
                scene.client.read_exact(&mut bytes).expect("there is more");
            }
            assert_eq!(ask(&mut scene), Next::Wait, "it reads");
        }
        // What it has room for may still be on its way.
        let patience = event::now() + Duration::from_secs(20);
        let mut next = Next::Wait;
        while next == Next::Wait && event::now() < patience {
            next = ask(&mut scene);
        }
        assert_eq!(next, Next::End(EndReason::IdleTimeout), "it has ceased to read");
    }
}

#[test]
fn a_reset_behind_an_end_ends_the_session() {
    for (side, reason) in [(Side::Client, EndReason::ClientReset), (Side::Server, EndReason::ServerReset)] {
        let scene = Scene::relaying();
        let Scene { session, client, server, mut scratch, mut kernel_pipes, now } = scene;
        let (far, other) = if side == Side::Client { (client, server) } else { (server, client) };
        let mut session = session;
        let mut ready = |session: &mut Session, flags, ready| {
            let end = if side == Side::Client { &session.client } else { &session.server };
            wait_for(&end.stream, flags);
            let through =
                &mut Through { scratch: &mut scratch, kernel_pipes: &mut kernel_pipes, most_spliced: 256 * 1024 };
            session.on_ready(side, ready, through, now)
        };
        far.shutdown(Shutdown::Write).expect("half closed");
        assert_eq!(ready(&mut session, PollFlags::POLLIN, READABLE).next, Next::Wait);
        session.pass_on_ends();
        options::abort_at_close(&far);
        drop(far);
        assert_eq!(ready(&mut session, PollFlags::POLLERR, FAILED).next, Next::End(reason));
        drop(other);
    }
}

#[test]
fn what_the_client_sent_while_connecting_goes_on_with_the_connect() {
    let mut scene = Scene::connecting();
    scene.client.write_all(b"first").expect("sent");
    wait_for(&scene.session.client.stream, PollFlags::POLLIN);
    let outcome = scene.ready(Side::Server, WRITABLE);
    assert_eq!(outcome, Outcome { connected: true, inward: 5, outward: 0, next: Next::Wait });
    let mut got = [0; 5];
    scene.server.read_exact(&mut got).expect("received");
    assert_eq!(&got, b"first");
}

#[test]
fn a_connect_that_is_done_at_the_end_of_its_turn_needs_no_event() {
    let mut scene = Scene::connecting();
    scene.says_first(b"early");
    let outcome = scene.session.on_end_of_turn(scene.now);
    assert_eq!(outcome, Outcome { connected: true, inward: 5, outward: 0, next: Next::Wait });
    assert_eq!(scene.interests(), (Interest::READ, Interest::READ));
    let again = scene.session.on_end_of_turn(scene.now);
    assert_eq!(again, Outcome::default(), "extra calls do nothing");
}

#[test]
fn what_a_refusing_server_did_not_take_goes_to_the_next() {
    let mut scene = Scene::connecting();
    scene.says_first(b"kept");
    let gone = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let refused = crate::net::connect::begin_own_connect(gone, &ServerSide::default(), 0).expect("begun");
    scene.session.reconnect(attempt(refused), scene.now);
    let outcome = scene.session.on_end_of_turn(scene.now);
    assert_eq!(outcome.next, Next::Retry(Errno::ECONNREFUSED));
    assert_eq!(scene.session.inward.kept(), 4);

    let (mut server, near_server) = pair();
    scene.session.reconnect(attempt(near_server), scene.now);
    let outcome = scene.session.on_end_of_turn(scene.now);
    assert_eq!((outcome.connected, outcome.inward), (true, 4));
    let mut got = [0; 4];
    server.read_exact(&mut got).expect("received");
    assert_eq!(&got, b"kept");
    assert_eq!(scene.session.inward.buffer_capacity(), 0);
}

#[test]
fn a_header_goes_out_first_with_the_words_behind_it_and_counts_as_none() {
    let mut scene = Scene::connecting();
    scene.says_first(b"words");
    scene.session.lead_with(b"header ");
    let outcome = scene.session.on_end_of_turn(scene.now);
    assert_eq!(outcome, Outcome { connected: true, inward: 5, outward: 0, next: Next::Wait });
    let mut got = [0; 100];
    // One segment, so one read has it all.
    wait_for(&scene.server, PollFlags::POLLIN);
    let count = scene.server.read(&mut got).expect("received");
    assert_eq!(&got[..count], b"header words");
    assert_eq!(scene.interests(), (Interest::READ, Interest::READ));
    assert_eq!(scene.session.inward.buffer_capacity(), 0);
}

#[test]
fn a_header_needs_no_words_to_go() {
    let mut scene = Scene::connecting();
    scene.session.lead_with(b"header ");
    let outcome = scene.session.on_end_of_turn(scene.now);
    assert_eq!(outcome, Outcome { connected: true, inward: 0, outward: 0, next: Next::Wait });
    scene.client.write_all(b"words").expect("sent");
    assert_eq!(scene.readable(Side::Client).inward, 5);
    let mut got = [0; 12];
    scene.server.read_exact(&mut got).expect("received");
    assert_eq!(&got, b"header words");
}

#[test]
fn each_server_gets_its_own_header_whole_and_nothing_of_another() {
    let mut scene = Scene::connecting();
    scene.says_first(b"words");
    let gone = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    for header in [&b"first header "[..], b"", b"the third "] {
        let refused = crate::net::connect::begin_own_connect(gone, &ServerSide::default(), 0).expect("begun");
        scene.session.reconnect(attempt(refused), scene.now);
        scene.session.lead_with(header);
        let outcome = scene.session.on_end_of_turn(scene.now);
        assert_eq!((outcome.inward, outcome.next), (0, Next::Retry(Errno::ECONNREFUSED)));
        assert_eq!(scene.session.inward.kept(), header.len() + 5);
    }
    let (mut server, near_server) = pair();
    scene.session.reconnect(attempt(near_server), scene.now);
    scene.session.lead_with(b"last ");
    let outcome = scene.session.on_end_of_turn(scene.now);
    assert_eq!((outcome.connected, outcome.inward), (true, 5));
    let mut got = [0; 10];
    server.read_exact(&mut got).expect("received");
    assert_eq!(&got, b"last words");
}

#[test]
fn one_event_reads_once() {
    let mut scene = Scene::relaying();
    scene.server.write_all(&[1; 10_000]).expect("sent");
    assert!(scene.readable(Side::Server).outward <= scene.scratch.len());
}

#[test]
fn what_is_kept_goes_out_in_order_and_leaves_no_buffer_behind() {
    let mut scene = Scene::relaying();
    let sent = scene.stuff();
    assert!(scene.session.inward.kept() > 0);
    let (mut got, mut chunk) = (0, vec![0; 65536]);
    while got < sent {
        got += scene.server.read(&mut chunk).expect("received");
        if scene.session.inward.wants_write() {
            scene.ready(Side::Server, WRITABLE);
        } else if got < sent {
            scene.ready(Side::Client, READABLE);
        }
    }
    assert_eq!(scene.session.inward.kept(), 0);
    assert_eq!(scene.session.inward.buffer_capacity(), 0, "an idle session holds no buffer");
    assert_eq!(scene.interests(), (Interest::READ, Interest::READ));
}

#[test]
fn an_end_waits_for_what_is_before_it() {
    let mut scene = Scene::relaying();
    let mut sent = scene.stuff();
    scene.client.set_nonblocking(false).expect("set");
    scene.client.shutdown(Shutdown::Write).expect("half closed");
    let (mut got, mut chunk) = (0, vec![0; 65536]);
    scene.server.set_nonblocking(true).expect("set");
    loop {
        match scene.server.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => got += count,
            Err(_) => drop(scene.ready(Side::Server, WRITABLE)),
        }
        scene.ready(Side::Client, READABLE);
        scene.session.pass_on_ends();
    }
    assert_eq!(got, std::mem::take(&mut sent), "every byte came before the end");
}

#[test]
fn who_closes_first_is_the_reason() {
    for (first, second, reason) in
        [(Side::Client, Side::Server, EndReason::ClientClosed), (Side::Server, Side::Client, EndReason::ServerClosed)]
    {
        let mut scene = Scene::relaying();
        for side in [first, second] {
            let peer = if side == Side::Client { &scene.client } else { &scene.server };
            peer.shutdown(Shutdown::Write).expect("half closed");
            let next = scene.readable(side).next;
            assert_eq!(next, if side == second { Next::End(reason) } else { Next::Wait });
        }
    }
}

fn reset(stream: TcpStream) {
    options::abort_at_close(&stream);
    drop(stream);
}

#[test]
fn a_reset_ends_both_and_what_came_before_it_is_delivered() {
    let mut scene = Scene::relaying();
    scene.server.write_all(b"last words").expect("sent");
    wait_for(&scene.session.server.stream, PollFlags::POLLIN);
    let Scene { mut session, mut client, server, mut scratch, mut kernel_pipes, now } = scene;
    let through = &mut Through { scratch: &mut scratch, kernel_pipes: &mut kernel_pipes, most_spliced: 256 * 1024 };
    reset(server);
    let first = session.on_ready(Side::Server, READY, through, now);
    assert_eq!((first.outward, first.next), (10, Next::Wait));
    let second = session.on_ready(Side::Server, READY, through, now);
    assert_eq!(second.next, Next::End(EndReason::ServerReset));
    let mut got = [0; 10];
    client.read_exact(&mut got).expect("received");
    assert_eq!(&got, b"last words");
    session.pass_on_a_reset(EndReason::ServerReset);
    drop(session);
    assert_eq!(client.read(&mut got).expect_err("a reset").kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_sink_that_broke_is_still_read_to_its_end() {
    let mut scene = Scene::relaying();
    scene.server.write_all(b"too large").expect("sent");
    wait_for(&scene.session.server.stream, PollFlags::POLLIN);
    let Scene { mut session, mut client, server, mut scratch, mut kernel_pipes, now } = scene;
    let through = &mut Through { scratch: &mut scratch, kernel_pipes: &mut kernel_pipes, most_spliced: 256 * 1024 };
    reset(server);
    client.write_all(b"body").expect("sent");
    wait_for(&session.client.stream, PollFlags::POLLIN);
    let outcome = session.on_ready(Side::Client, READABLE, through, now);
    assert_eq!((outcome.inward, outcome.next), (0, Next::Wait), "the write met the reset, the answer is unread");
    let mut last = Next::Wait;
    while last == Next::Wait {
        last = session.on_ready(Side::Server, READY, through, now).next;
    }
    assert_eq!(last, Next::End(EndReason::ServerReset));
    let mut got = [0; 9];
    client.read_exact(&mut got).expect("received");
    assert_eq!(&got, b"too large");
}

/// What stands at so many bytes from the start of a stream: no two of its pieces are alike.
fn stream(from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect()
}

/// A session whose client sends much and says what it sent.
struct Bulk {
    scene: Scene,
    sent: usize,
    got: usize,
}

impl Bulk {
    /// A client that has sent so much that its direction splices, all of which the server has.
    fn new() -> Self {
        let mut scene = Scene::relaying();
        scene.scratch = vec![0; 64 * 1024];
        scene.client.set_nonblocking(true).expect("set");
        scene.server.set_nonblocking(true).expect("set");
        let mut bulk = Self { scene, sent: 0, got: 0 };
        while !bulk.splices() {
            bulk.send(256 * 1024);
            bulk.scene.readable(Side::Client);
            bulk.receive();
        }
        bulk.come_through();
        bulk
    }

    fn splices(&self) -> bool {
        matches!(self.scene.session.inward.way(), Way::Splice { .. })
    }

    /// Sends so much, or what the kernel takes of it.
    fn send(&mut self, count: usize) {
        self.sent += self.scene.client.write(&stream(self.sent, count)).unwrap_or(0);
    }

    /// Sends until something stays in the session.
    fn stuff(&mut self) {
        while !self.scene.session.inward.wants_write() {
            self.send(256 * 1024);
            self.scene.ready(Side::Client, READABLE);
        }
    }

    /// The server reads what there is and finds it right.
    fn receive(&mut self) {
        let mut chunk = vec![0; 256 * 1024];
        while let Ok(count) = self.scene.server.read(&mut chunk) {
            assert!(chunk[..count] == stream(self.got, count), "behind {}", self.got);
            self.got += count;
            if count == 0 {
                return;
            }
        }
    }

    /// Everything that was sent arrives.
    fn come_through(&mut self) {
        while self.got < self.sent {
            if self.scene.session.inward.wants_write() {
                self.scene.ready(Side::Server, WRITABLE);
            } else {
                self.scene.ready(Side::Client, READABLE);
            }
            self.receive();
        }
    }

    fn pipes(&self) -> (usize, usize) {
        self.scene.kernel_pipes.lent_and_idle()
    }
}

#[test]
fn bulk_is_spliced_and_small_messages_are_copied_again() {
    let mut bulk = Bulk::new();
    for _ in 0..100 {
        assert!(bulk.splices());
        for _ in 0..3 {
            assert_eq!(bulk.pipes().0, 0, "a session in which nothing is kept holds no pipe");
            bulk.send(100);
            bulk.scene.readable(Side::Client);
        }
        assert!(!bulk.splices());
        while !bulk.splices() {
            bulk.send(256 * 1024);
            bulk.scene.readable(Side::Client);
            bulk.come_through();
        }
    }
    assert_eq!(bulk.pipes(), (0, 1));
    assert_eq!(bulk.scene.session.moved(), (0, 0), "its owner counts");
}

#[test]
fn one_event_splices_no_more_than_it_may() {
    let mut bulk = Bulk::new();
    while bulk.sent < bulk.got + 400 * 1024 {
        bulk.send(256 * 1024);
    }
    assert!((1..=256 * 1024).contains(&bulk.scene.readable(Side::Client).inward));
    bulk.come_through();
}

#[test]
fn what_stays_in_a_kernel_pipe_holds_the_source_up_and_goes_out_in_order() {
    let mut bulk = Bulk::new();
    bulk.stuff();
    assert_eq!(bulk.pipes(), (1, 0));
    assert_eq!(bulk.scene.session.inward.buffer_capacity(), 0);
    assert_eq!(bulk.scene.interests(), (Interest::NONE, BOTH), "back-pressure");
    let kept = bulk.scene.session.inward.kept();
    bulk.send(1);
    bulk.scene.ready(Side::Client, READABLE);
    assert_eq!(bulk.scene.session.inward.kept(), kept, "nothing more is read");
    bulk.come_through();
    assert_eq!(bulk.pipes(), (0, 1));
    assert_eq!(bulk.scene.interests(), (Interest::READ, Interest::READ));
}

#[test]
fn a_sink_that_makes_room_for_all_gets_more_in_the_same_event() {
    let mut bulk = Bulk::new();
    bulk.stuff();
    bulk.send(256 * 1024);
    loop {
        let kept = bulk.scene.session.inward.kept();
        bulk.receive();
        wait_for(&bulk.scene.session.server.stream, PollFlags::POLLOUT);
        let moved = bulk.scene.ready(Side::Server, WRITABLE).inward;
        if moved >= kept {
            assert!(moved > kept || bulk.scene.session.inward.wants_write(), "it was read from again");
            break;
        }
    }
    bulk.come_through();
}

#[test]
fn an_end_waits_for_what_is_in_a_kernel_pipe() {
    let mut bulk = Bulk::new();
    bulk.stuff();
    bulk.scene.client.shutdown(Shutdown::Write).expect("half closed");
    assert!(!bulk.scene.session.inward.has_end_to_pass_on());
    bulk.come_through();
    if bulk.scene.session.inward.wants_read() {
        bulk.scene.readable(Side::Client);
    }
    bulk.scene.session.pass_on_ends();
    wait_for(&bulk.scene.server, PollFlags::POLLIN);
    assert_eq!(bulk.scene.server.read(&mut [0; 1]).expect("the end"), 0);
    assert_eq!(bulk.pipes(), (0, 1));
}

#[test]
fn a_kernel_pipe_whose_sink_broke_is_closed() {
    let mut bulk = Bulk::new();
    bulk.stuff();
    let Bulk { mut scene, .. } = bulk;
    let (other, _) = pair();
    reset(std::mem::replace(&mut scene.server, other));
    wait_for(&scene.session.server.stream, PollFlags::POLLERR);
    let outcome = scene.ready(Side::Server, READY);
    assert_eq!((outcome.inward, outcome.next), (0, Next::End(EndReason::ServerReset)));
    assert_eq!(scene.kernel_pipes.lent_and_idle(), (0, 0), "it was not empty");
    assert!(scene.kernel_pipes.take(scene.now).is_some(), "and makes room for another");
}

#[test]
fn a_session_that_ends_gives_its_kernel_pipe_up() {
    let mut bulk = Bulk::new();
    bulk.stuff();
    bulk.scene.session.release(&mut bulk.scene.kernel_pipes);
    assert_eq!(bulk.pipes(), (0, 0));
}

#[test]
fn a_sink_that_stalls_loses_its_kernel_pipe_and_no_byte() {
    let timeouts = Timeouts::new(Duration::from_secs(3), Duration::from_secs(60));
    let mut bulk = Bulk::new();
    bulk.stuff();
    let (start, kept) = (bulk.scene.now, bulk.scene.session.inward.kept());
    let at = |milliseconds| start + Duration::from_millis(milliseconds);
    assert_eq!(bulk.scene.session.next_deadline(timeouts), at(1000));
    let Scene { session, kernel_pipes, .. } = &mut bulk.scene;
    assert_eq!(session.expire(timeouts, kernel_pipes, at(999)), Next::Wait);
    assert_eq!(kernel_pipes.lent_and_idle(), (1, 0));
    assert_eq!(session.expire(timeouts, kernel_pipes, at(1000)), Next::Wait);
    assert_eq!((kernel_pipes.lent_and_idle(), session.inward.kept()), ((0, 1), kept));
    assert_eq!(session.next_deadline(timeouts), at(60_000));
    assert!(!bulk.splices(), "it has to prove itself anew");
    assert_eq!(bulk.scene.interests(), (Interest::NONE, BOTH));
    bulk.come_through();
    assert_eq!(bulk.scene.session.inward.buffer_capacity(), 0);
}

#[test]
fn bulk_that_finds_no_kernel_pipe_is_copied() {
    let mut bulk = Bulk::new();
    bulk.scene.kernel_pipes = KernelPipes::new(0);
    bulk.stuff();
    assert!(bulk.splices() && bulk.scene.session.inward.buffer_capacity() > 0);
    bulk.come_through();
}

#[test]
fn what_came_before_a_reset_is_spliced_first() {
    let mut bulk = Bulk::new();
    bulk.send(200_000);
    wait_for(&bulk.scene.session.client.stream, PollFlags::POLLIN);
    let (other, _) = pair();
    reset(std::mem::replace(&mut bulk.scene.client, other));
    wait_for(&bulk.scene.session.client.stream, PollFlags::POLLERR);
    let mut next = Next::Wait;
    while next == Next::Wait {
        next = bulk.scene.ready(Side::Client, READY).next;
    }
    assert_eq!(next, Next::End(EndReason::ClientReset));
    bulk.receive();
    assert_eq!(bulk.got, bulk.sent);
}

#[test]
fn a_deadline_that_moved_is_not_yet() {
    let timeouts = Timeouts::new(Duration::from_secs(3), Duration::from_secs(60));
    let mut scene = Scene::connecting();
    let (start, mut none) = (scene.now, KernelPipes::new(0));
    let at = |seconds| start + Duration::from_secs(seconds);
    assert_eq!(scene.session.expire(timeouts, &mut none, at(2)), Next::Wait);
    assert_eq!(scene.session.expire(timeouts, &mut none, at(3)), Next::Retry(Errno::ETIMEDOUT));
    scene.now = at(1);
    scene.ready(Side::Server, WRITABLE);
    assert_eq!(scene.session.expire(timeouts, &mut none, at(60)), Next::Wait);
    assert_eq!(scene.session.expire(timeouts, &mut none, at(61)), Next::End(EndReason::IdleTimeout));
    scene.client.write_all(b"x").expect("sent");
    scene.now = at(50);
    scene.readable(Side::Client);
    assert_eq!(scene.session.next_deadline(timeouts), at(110));
    scene.now = at(70);
    scene.ready(Side::Client, READABLE);
    assert_eq!(scene.session.next_deadline(timeouts), at(110), "an event that moves nothing is no activity");
}

#[test]
fn sessions_that_came_together_grow_too_old_one_after_the_other() {
    let hour = Duration::from_secs(3600);
    let timeouts = Timeouts { max_age: Some(hour), ..Timeouts::new(Duration::from_secs(3), 2 * hour) };
    let mut scene = Scene::relaying();
    let mut ages: Vec<Duration> = (0..1000u16)
        .map(|number| {
            scene.session.peer.set_port(32_768 + number);
            scene.session.too_old_at(timeouts).expect("a limit") - scene.now
        })
        .collect();
    let mut none = KernelPipes::new(0);
    let last = *ages.last().expect("some");
    assert_eq!(scene.session.expire(timeouts, &mut none, scene.now + last), Next::End(EndReason::MaxAge));
    ages.sort_unstable();
    assert!(ages[0] >= hour * 9 / 10 && ages[999] <= hour * 11 / 10, "{:?} {:?}", ages[0], ages[999]);
    // In each tenth of the span come some of them, and nowhere more than twice as many.
    for tenth in 0..10 {
        let from = hour * 9 / 10 + hour / 50 * tenth;
        let count = ages.iter().filter(|age| (from..from + hour / 50).contains(*age)).count();
        assert!((50..=200).contains(&count), "{count} in the tenth {tenth}");
    }
}

#[test]
fn a_reset_waits_for_what_is_under_way_and_looks_ever_less_often() {
    let timeouts = Timeouts {
        half_closed: Some(Duration::from_secs(10)),
        ..Timeouts::new(Duration::from_secs(3), Duration::from_secs(60))
    };
    let mut scene = Scene::relaying();
    let sent = scene.stuff();
    assert!(!scene.session.drains(EndReason::ClientClosed, scene.now), "an end in order drops nothing");
    assert!(scene.session.drains(EndReason::ClientReset, scene.now));
    assert!(scene.session.is_draining() && scene.session.is_connected());
    assert!(!scene.session.drains(EndReason::ClientReset, scene.now), "once");
    assert_eq!(scene.interests(), (Interest::NONE, Interest::NONE));
    assert_eq!(scene.ready(Side::Server, FAILED), Outcome::default());
    let (mut none, mut looks) = (KernelPipes::new(0), 0);
    let at = loop {
        let at = scene.session.next_deadline(timeouts);
        looks += 1;
        match scene.session.expire(timeouts, &mut none, at) {
            Next::Wait => {}
            next => {
                assert_eq!(next, Next::End(EndReason::ClientReset), "after {looks} looks");
                break at;
            }
        }
    };
    let waited = at - scene.now;
    assert!(waited >= Duration::from_secs(10) && waited < Duration::from_secs(11), "{waited:?}");
    assert!((20..30).contains(&looks), "{looks}");

    // One that takes it all is not waited for any longer.
    scene.server.set_nonblocking(true).expect("set");
    let mut got = 0;
    while got < sent - scene.session.inward.kept() {
        got += scene.server.read(&mut [0; 65_536]).unwrap_or(0);
    }
    let next = scene.session.look_at_the_rest(
        Drain { reason: EndReason::ClientReset, acknowledged: 0, looked: at, pause: FIRST_LOOK },
        timeouts,
        at,
    );
    assert_eq!(next, Next::End(EndReason::ClientReset));
}

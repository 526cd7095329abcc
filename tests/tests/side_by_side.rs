//! How connections end, beside HAProxy and nginx: one script of both ends, through each of the three.
//!
//! Each case says who says how much, who ends in which way, and who looks. What a side sees is what came to it, which has to
//! be what was said, in order, and how that ended: with a FIN, with a reset, or not at all. The cases are played twice: on a
//! new connection with 10 kB, and on one that has moved 2 MB each way, and so is spliced, with 3 MB.
//!
//! What the others make of it is printed (`--nocapture`). HAProxy 2.6 in TCP mode and nginx 1.22 with `proxy_half_close on`:
//!
//! | what happens | ours | HAProxy | nginx |
//! |---|---|---|---|
//! | an end in order, of either side or both | FIN, behind everything | the same | the same |
//! | the client resets, or closes with something unread | RST | RST, seldom FIN | FIN |
//! | the server does | RST | FIN, seldom RST | FIN, seldom RST |
//! | the other one does after a FIN | RST | FIN | FIN |
//! | who has sent a FIN resets, or is gone and is told something | RST | nothing, until more is said or its time is over | nothing |
//! | the server refuses | FIN | FIN | FIN |
//!
//! So we differ from both where a reset would become an end in order, or nothing at all: half of an answer would be a whole
//! one then, and a server would go on working for a client that is gone.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, Backlog, listen};
use tests::noise::Noise;
use tests::program::Program;
use tests::programs::installed;
use tests::proxies::{haproxy, nginx, nginx_stream};
use tests::{Balancer, Server, client, loopback, process, server, wait};
use wire::control::{Change, PoolValues};
use wire::report::EndReason;

/// The two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Client,
    Server,
}
use Who::{Client as C, Server as S};

/// What one of them does.
#[derive(Debug, Clone, Copy)]
enum Act {
    /// Says so much, and then ends so. The script goes on meanwhile.
    Say(Much, Then),
    /// Ends so, and says nothing more of what it had to say.
    End(Then),
    /// Reads so many bytes.
    Take(usize),
    /// Reads to the end, and says what it sees.
    Look,
    /// Has read the end, and says whether it sees a reset behind that.
    LookOn,
}
use Act::{End, Look, LookOn, Say, Take};

#[derive(Debug, Clone, Copy)]
enum Much {
    /// What the sockets on the way can hold, or where it is bulk what they cannot.
    Words,
    /// More than it will have said when it is interrupted.
    Endless,
}
use Much::{Endless, Words};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Stay,
    Shut,
    Close,
    Reset,
}
use Then::{Close, Reset, Shut, Stay};

/// How the server is when the client comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scene {
    /// It accepts, and both have said something.
    Begun,
    /// It accepts, and nobody has said anything.
    New,
    /// It does not answer the connect until it looks for the first time.
    Late,
    /// It refuses.
    Refused,
}
use Scene::{Begun, Late, New, Refused};

struct Case {
    name: &'static str,
    scene: Scene,
    script: &'static [(Who, Act)],
    /// What is seen through us.
    ours: &'static str,
}

const fn case(name: &'static str, scene: Scene, script: &'static [(Who, Act)], ours: &'static str) -> Case {
    Case { name, scene, script, ours }
}

const CASES: &[Case] = &[
    case(
        "the client ends first",
        Begun,
        &[(C, Say(Words, Shut)), (S, Look), (S, Say(Words, Close)), (C, Look)],
        "server all FIN, client all FIN",
    ),
    case(
        "the server ends first",
        Begun,
        &[(S, Say(Words, Shut)), (C, Look), (C, Say(Words, Close)), (S, Look)],
        "client all FIN, server all FIN",
    ),
    case(
        "both end at once",
        Begun,
        &[(C, Say(Words, Shut)), (S, Say(Words, Shut)), (S, Look), (C, Look)],
        "server all FIN, client all FIN",
    ),
    case(
        "the client is gone, and the server speaks",
        Begun,
        &[(C, Say(Words, Close)), (S, Look), (S, Say(Words, Stay)), (S, LookOn)],
        "server all FIN, server then RST",
    ),
    case(
        "the server is gone, and the client speaks",
        Begun,
        &[(S, Say(Words, Close)), (C, Look), (C, Say(Words, Stay)), (C, LookOn)],
        "client all FIN, client then RST",
    ),
    case("the client resets, idle", Begun, &[(C, End(Reset)), (S, Look)], "server all RST"),
    case("the server resets, idle", Begun, &[(S, End(Reset)), (C, Look)], "client all RST"),
    case("the client speaks and resets", Begun, &[(C, Say(Words, Reset)), (S, Look)], "server all RST"),
    case("the server speaks and resets", Begun, &[(S, Say(Words, Reset)), (C, Look)], "client all RST"),
    case(
        "the client resets while it speaks",
        Begun,
        &[(C, Say(Endless, Stay)), (S, Take(100_000)), (C, End(Reset)), (S, Look)],
        "server some RST",
    ),
    case(
        "the server resets while it speaks",
        Begun,
        &[(S, Say(Endless, Stay)), (C, Take(100_000)), (S, End(Reset)), (C, Look)],
        "client some RST",
    ),
    case(
        "the client resets while it is spoken to",
        Begun,
        &[(S, Say(Endless, Stay)), (C, Take(100_000)), (C, End(Reset)), (S, Look)],
        "server all RST",
    ),
    case(
        "the server resets while it is spoken to",
        Begun,
        &[(C, Say(Endless, Stay)), (S, Take(100_000)), (S, End(Reset)), (C, Look)],
        "client all RST",
    ),
    case(
        "the client closes with something unread",
        Begun,
        &[(S, Say(Words, Stay)), (C, Take(1)), (C, End(Close)), (S, Look)],
        "server all RST",
    ),
    case(
        "the server closes with something unread",
        Begun,
        &[(C, Say(Words, Stay)), (S, Take(1)), (S, End(Close)), (C, Look)],
        "client all RST",
    ),
    case(
        "the server answers and closes with something unread",
        Begun,
        &[(C, Say(Words, Stay)), (S, Take(1)), (S, Say(Words, Close)), (C, Look)],
        "client all RST",
    ),
    case(
        "the client ends, and the server resets",
        Begun,
        &[(C, Say(Words, Shut)), (S, Look), (S, End(Reset)), (C, Look)],
        "server all FIN, client all RST",
    ),
    case(
        "the server ends, and the client resets",
        Begun,
        &[(S, Say(Words, Shut)), (C, Look), (C, End(Reset)), (S, Look)],
        "client all FIN, server all RST",
    ),
    case(
        "the client ends, and then resets",
        Begun,
        &[(C, Say(Words, Shut)), (S, Look), (C, End(Reset)), (S, LookOn)],
        "server all FIN, server then RST",
    ),
    case(
        "the server ends, and then resets",
        Begun,
        &[(S, Say(Words, Shut)), (C, Look), (S, End(Reset)), (C, LookOn)],
        "client all FIN, client then RST",
    ),
    case(
        "the server resets before it says anything",
        New,
        &[(C, Say(Words, Stay)), (S, Take(10_000)), (S, End(Reset)), (C, Look)],
        "client all RST",
    ),
    case(
        "the server ends before it says anything",
        New,
        &[(C, Say(Words, Stay)), (S, Take(10_000)), (S, End(Shut)), (C, Look)],
        "client all FIN",
    ),
    case("the client says nothing at all and ends", New, &[(C, End(Close)), (S, Look)], "server all FIN"),
    case("the client says nothing at all and resets", New, &[(C, End(Reset)), (S, Look)], "server all RST"),
    case(
        "the client ends before the server answers",
        Late,
        &[(C, Say(Words, Shut)), (S, Look), (S, Say(Words, Close)), (C, Look)],
        "server all FIN, client all FIN",
    ),
    case(
        "the client is gone before the server answers",
        Late,
        &[(C, Say(Words, Close)), (S, Look), (S, Say(Words, Stay)), (S, LookOn)],
        "server all FIN, server then RST",
    ),
    // It is let go at once, and its server never hears of it.
    case("the client resets before the server answers", Late, &[(C, Say(Words, Reset)), (S, Look)], "server nobody"),
    // One that has said something by then, which nobody has read, is reset by the kernel.
    case("the server refuses", Refused, &[(C, Look)], "client all FIN"),
];

/// How much is said in a case.
#[derive(Debug, Clone, Copy)]
struct Size {
    /// Both have said so much before.
    before: usize,
    words: usize,
}

impl Size {
    fn is_bulk(self) -> bool {
        self.before > 1
    }
}

const SMALL: Size = Size { before: 1, words: 10_000 };
const BULK: Size = Size { before: 2_000_000, words: 3_000_000 };

/// More than all sockets on the way hold.
const ENDLESS: usize = 1_000_000_000;

/// How long an end is waited for that may not come. A SYN that was lost is sent again after 1 s.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a voice may not notice that it is to be silent.
const BREATH: Duration = Duration::from_millis(50);

/// So much of what this one says, from there on: noise that begins anew after a prime number of bytes.
fn words(who: Who, from: usize, count: usize) -> Vec<u8> {
    static NOISE: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    let noise = &NOISE.get_or_init(|| [1, 2].map(|seed| Noise::of(seed).bytes(65_521)))[who as usize];
    noise.iter().cycle().skip(from % noise.len()).take(count).copied().collect()
}

/// One end of the connection.
struct Peer {
    who: Who,
    /// Nothing after a close or a reset.
    stream: Option<Arc<TcpStream>>,
    /// What it says, until it has said that. Whether it could.
    voice: Option<JoinHandle<io::Result<()>>>,
    hush: Arc<AtomicBool>,
    said: usize,
    heard: usize,
    has_shut: bool,
}

impl Peer {
    fn new(who: Who, stream: TcpStream, patience: Duration) -> Self {
        stream.set_read_timeout(Some(patience)).expect("set");
        stream.set_write_timeout(Some(BREATH)).expect("set");
        let (stream, hush) = (Some(Arc::new(stream)), Arc::default());
        Self { who, stream, voice: None, hush, said: 0, heard: 0, has_shut: false }
    }

    fn stream(&self) -> &TcpStream {
        self.stream.as_ref().expect("it is not closed")
    }

    fn say(&mut self, count: usize, then: Then) {
        let (who, from, hush) = (self.who, self.said, Arc::clone(&self.hush));
        self.said += count;
        self.has_shut |= then == Shut;
        let stream = match then {
            Stay | Shut => self.stream.clone(),
            Close | Reset => self.stream.take(),
        };
        let stream = stream.expect("it is not closed");
        self.wait();
        self.voice = Some(thread::spawn(move || {
            let end = from + count;
            let mut next = from;
            while next < end && !hush.load(Ordering::Relaxed) {
                let bytes = words(who, next, (end - next).min(1 << 17));
                match (&*stream).write(&bytes) {
                    Ok(count) => next += count,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            finish(stream, then)
        }));
    }

    /// Waits until it has said everything.
    fn wait(&mut self) {
        if let Some(voice) = self.voice.take() {
            let _ = voice.join().expect("a voice does not panic");
        }
    }

    fn end(&mut self, then: Then) {
        self.hush.store(true, Ordering::Relaxed);
        self.wait();
        self.has_shut |= then == Shut;
        let stream = if then == Shut { self.stream.clone() } else { self.stream.take() };
        let _ = finish(stream.expect("it is not closed"), then);
    }

    /// Reads once. Panics when that is not what the other one has said.
    fn read(&mut self, most: usize) -> io::Result<usize> {
        let mut bytes = vec![0; most.min(1 << 17)];
        let count = self.stream().read(&mut bytes)?;
        let other = if self.who == C { S } else { C };
        assert!(bytes[..count] == words(other, self.heard, count), "{:?} hears what was not said", self.who);
        self.heard += count;
        Ok(count)
    }

    fn take(&mut self, count: usize) -> io::Result<()> {
        let wanted = self.heard + count;
        while self.heard < wanted {
            if self.read(wanted - self.heard)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Reads to the end.
    fn look(&mut self) -> &'static str {
        loop {
            match self.read(usize::MAX) {
                // Its voice may have met the reset before.
                Ok(0) => return if !self.has_shut && self.is_reset(Duration::ZERO) { "RST" } else { "FIN" },
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return "nothing",
                Err(_) => return "RST",
            }
        }
    }

    /// Whether a connection of which only the other side may be shut ends altogether.
    fn is_reset(&self, within: Duration) -> bool {
        assert!(!self.has_shut, "two ends make a hang-up as well");
        let mut descriptors = [PollFd::new(self.stream().as_fd(), PollFlags::empty())];
        let limit = PollTimeout::try_from(within).expect("a minute");
        poll(&mut descriptors, limit).expect("polled") > 0
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.hush.store(true, Ordering::Relaxed);
    }
}

/// The last of those who have it closes it.
fn finish(stream: Arc<TcpStream>, then: Then) -> io::Result<()> {
    match then {
        Stay => {}
        Shut => stream.shutdown(Shutdown::Write)?,
        Close => {}
        Reset => client::reset(&*stream),
    }
    drop(stream);
    Ok(())
}

/// Where the server of the test is, whatever it does with connects.
struct Place {
    socket: TcpListener,
    /// Those who fill the queue of a server that does not answer.
    waiting: Vec<TcpStream>,
}

impl Place {
    fn new() -> Self {
        Self { socket: server::place(loopback::fresh()), waiting: Vec::new() }
    }

    fn address(&self) -> SocketAddr {
        self.socket.local_addr().expect("bound")
    }

    fn set(&mut self, scene: Scene) {
        let queue = |size| listen(&self.socket, Backlog::new(size).expect("a number")).expect("it listens");
        match scene {
            Begun | New => queue(16),
            // On Linux this takes a listening socket back to where it was before listen(). Another one, which does not
            // listen, is shut, and so would be all that it accepts later.
            Refused => {
                queue(0);
                socket::shutdown(self.socket.as_raw_fd(), socket::Shutdown::Both).expect("it listened");
            }
            Late => {
                queue(0);
                let come = || TcpStream::connect_timeout(&self.address(), Duration::from_millis(100)).ok();
                self.waiting = std::iter::from_fn(come).collect();
            }
        }
    }

    /// The connection of the proxy, if it comes.
    fn accept(&mut self, patience: Duration) -> Option<TcpStream> {
        for _ in self.waiting.drain(..) {
            drop(self.socket.accept().expect("one that waits"));
        }
        let mut descriptors = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(patience).expect("a minute");
        let comes = poll(&mut descriptors, limit).expect("polled") > 0;
        comes.then(|| self.socket.accept().expect("it is there").0)
    }

    /// Whether somebody connects to it and is not answered (`proc_net_tcp`: 02 is SYN_SENT).
    fn is_called(&self) -> bool {
        let SocketAddr::V4(address) = self.address() else { panic!("IPv4") };
        let to = format!("{:08X}:{:04X} 02", u32::from_ne_bytes(address.ip().octets()), address.port());
        fs::read_to_string("/proc/net/tcp").expect("the table").contains(&to)
    }
}

/// What both see when a case is played through a proxy.
fn play(case: &Case, size: Size, (proxy, pid): (SocketAddr, u32), place: &mut Place, patience: Duration) -> String {
    place.set(case.scene);
    let mut client = Peer::new(C, TcpStream::connect(proxy).expect("the proxy takes it"), patience);
    let mut server = None;
    match case.scene {
        Refused => {}
        Late => wait::until("the proxy tries", || place.is_called()),
        Begun | New => {
            server = place.accept(patience).map(|stream| Peer::new(S, stream, patience));
            // The server's side of it is there before the proxy has heard so, and HAProxy resets a server whose client is
            // gone until then. Who sleeps has heard it.
            wait::until("the proxy knows that it is connected", || process::status(pid, "State").starts_with('S'));
        }
    }
    if let (Begun, Some(server)) = (case.scene, &mut server) {
        for turn in [true, false] {
            let (from, to) = if turn { (&mut client, &mut *server) } else { (&mut *server, &mut client) };
            from.say(size.before, Stay);
            to.take(size.before).expect("it comes through");
            from.wait();
        }
    }
    let mut seen = Vec::new();
    for (who, act) in case.script {
        if *who == S && server.is_none() {
            client.wait();
            server = place.accept(patience).map(|stream| Peer::new(S, stream, patience));
        }
        let (its, other) = match (who, &mut server) {
            (C, Some(server)) => (&mut client, server.said),
            (C, None) => (&mut client, 0),
            (S, Some(server)) => (server, client.said),
            (S, None) => {
                seen.push("server nobody".to_owned());
                break;
            }
        };
        let name = if *who == C { "client" } else { "server" };
        match act {
            Say(much, then) => its.say(
                match much {
                    Words => size.words,
                    Endless => ENDLESS,
                },
                *then,
            ),
            End(then) => its.end(*then),
            Take(count) => {
                if its.take(*count).is_err() {
                    seen.push(format!("{name} too little"));
                    break;
                }
            }
            Look => {
                let end = its.look();
                let much = match its.heard {
                    _ if size.is_bulk() && end == "RST" => "some",
                    heard if heard == other => "all",
                    0 => "none",
                    _ => "some",
                };
                seen.push(format!("{name} {much} {end}"));
            }
            LookOn => seen.push(format!("{name} then {}", if its.is_reset(patience) { "RST" } else { "nothing" })),
        }
    }
    seen.join(", ")
}

/// A balancer with that server alone, which it never leaves out.
fn ours(place: &Place) -> Balancer {
    let balancer = Balancer::start();
    let values = PoolValues { eject_failures: Some(0), ..PoolValues::default() };
    balancer.change(Change::SetPool { pool: "default".to_owned(), values }, false).expect("it is set");
    balancer.add(place.address());
    balancer
}

fn haproxy_before(program: &Path, place: &Place) -> Program {
    Program::start(8080, |address, directory| {
        let text = format!(
            "listen web\n mode tcp\n option splice-auto\n retries 0\n bind {address}\n server one {}",
            place.address()
        );
        haproxy(program, directory, &text)
    })
}

/// It ends both directions with the first end if it is not told otherwise.
fn nginx_before(program: &Path, place: &Place, stream: &str) -> Program {
    Program::start(8080, |address, directory| {
        let to = place.address();
        let text = format!("stream {{ server {{ listen {address}; proxy_pass {to}; proxy_half_close on; }} }}");
        nginx(program, directory, stream, &text)
    })
}

/// The cases, small, and bulk where that makes a difference.
fn cases() -> impl Iterator<Item = (Size, &'static Case)> {
    let bulk = CASES.iter().filter(|case| case.scene == Begun).map(|case| (BULK, case));
    CASES.iter().map(|case| (SMALL, case)).chain(bulk)
}

/// What is to be seen through us. How much of bulk comes before a reset is for nobody to say.
fn expected(size: Size, case: &Case) -> String {
    let ours = case.ours.to_owned();
    if size.is_bulk() { ours.replace("all RST", "some RST") } else { ours }
}

#[test]
fn ends_come_through_as_what_they_are() {
    let mut place = Place::new();
    let balancer = ours(&place);
    let pipes = process::pipes(balancer.pid());
    for (size, case) in cases() {
        let seen = play(case, size, (balancer.address(), balancer.pid()), &mut place, wait::LIMIT);
        assert_eq!(seen, expected(size, case), "{}, {size:?}", case.name);
        balancer.wait_for_sessions(0);
    }
    assert!(process::pipes(balancer.pid()) > pipes, "bulk was spliced");
    assert!(!balancer.service().ended.contains_key(&EndReason::Fault));
}

#[test]
fn an_end_in_order_is_the_same_for_all_three() {
    let Some([program, other]) = installed(["haproxy", "nginx"]) else { return };
    let Some(stream) = nginx_stream() else { return };
    let mut place = Place::new();
    let fronts = [haproxy_before(&program, &place), nginx_before(&other, &place, &stream)];
    for (size, case) in cases() {
        let ours = expected(size, case);
        let others =
            fronts.each_ref().map(|front| play(case, size, (front.address(), front.pid()), &mut place, PATIENCE));
        println!("{}{}", case.name, if size.is_bulk() { ", bulk" } else { "" });
        for (name, seen) in ["HAProxy", "nginx"].iter().zip(&others) {
            println!("    {name:8} {}", if *seen == ours { "the same" } else { seen.as_str() });
        }
        println!("    {:8} {ours}", "ours");
        let resets = |act: &Act| matches!(act, Say(_, Reset) | End(Reset));
        if !ours.contains("RST") && !case.script.iter().any(|(_, act)| resets(act)) {
            assert_eq!(others, [ours.as_str(); 2], "{}", case.name);
        }
    }
}

/// What socat says when the other end has reset the connection.
const SOCAT_IS_RESET: &str = "Connection reset by peer";

#[test]
fn socat_sees_the_ends_that_it_sees_without_us() {
    let Some([socat]) = installed(["socat"]) else { return };
    let bytes = Noise::new().bytes(3_000_000);
    let listening = || {
        Program::start(7000, |address, _| {
            let here = format!("TCP-LISTEN:{},bind={},reuseaddr,fork", address.port(), address.ip());
            let mut command = Command::new(&socat);
            command.args(["-d", "-d", "-t60", &here, "EXEC:cat"]);
            command
        })
    };
    let connecting = |balancer: &Balancer, from: &str| {
        let there = format!("TCP:{}", balancer.address());
        Command::new(&socat).args(["-d", "-d", "-t60", from, &there]).stdin(Stdio::null()).output().expect("socat runs")
    };
    let before = |server: SocketAddr| {
        let balancer = Balancer::start();
        balancer.add(server);
        balancer
    };

    // All that one says, then its end; all of that back, then that of the other.
    let echo = listening();
    let balancer = before(echo.address());
    let file = balancer.file("words");
    fs::write(&file, &bytes).expect("written");
    let output = connecting(&balancer, &format!("OPEN:{},rdonly!!-", file.display()));
    assert!(output.status.success() && output.stdout == bytes, "{output:?}");
    balancer.wait_for_ends(EndReason::ClientClosed, 1);

    // The other one resets behind its words, as a server.
    let words = bytes[..10_000].to_vec();
    let resets = Server::with(move |mut stream, _| {
        stream.write_all(&words)?;
        stream.read_exact(&mut [0])?;
        client::reset(stream);
        Ok(())
    });
    let balancer = before(resets.address());
    let output = connecting(&balancer, &format!("OPEN:{},rdonly,readbytes=1,ignoreeof!!-", file.display()));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(SOCAT_IS_RESET), "{said}");
    assert!(output.stdout == bytes[..10_000]);
    balancer.wait_for_ends(EndReason::ServerReset, 1);

    // And as a client.
    let balancer = before(echo.address());
    let client = balancer.client();
    assert_eq!(client.exchange(&bytes[..10_000]), bytes[..10_000]);
    client.reset();
    balancer.wait_for_ends(EndReason::ClientReset, 1);
    let said = echo.directory().join("output");
    wait::until("it says so", || fs::read_to_string(&said).is_ok_and(|said| said.contains(SOCAT_IS_RESET)));
}

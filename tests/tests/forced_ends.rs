//! A session that is ended by force gives nobody a part for the whole: who has not been given the other side's own end,
//! behind all of its bytes, is reset, wherever those bytes are.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use nix::sys::signal::Signal;
use tests::noise::Noise;
use tests::{Balancer, Client, Server, Setup, config, loopback, server, wait};
use wire::control::{Change, Removal, Request};
use wire::frame::{frame, greeting};
use wire::report::EndReason;

/// What ends a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Force {
    Kill,
    KillAll,
    RemoveNow,
    RemoveOver,
    RemoveAtLimit,
    StopNow,
    DrainTimeOver,
    /// Its file says now that the client is denied.
    DeniedByReload,
}

const COMMANDS: [Force; 8] = [
    Force::Kill,
    Force::KillAll,
    Force::RemoveNow,
    Force::RemoveOver,
    Force::RemoveAtLimit,
    Force::StopNow,
    Force::DrainTimeOver,
    Force::DeniedByReload,
];

impl Force {
    fn request(self, server: &Server) -> Request {
        let pool = "default".to_owned();
        let server = server.address();
        let remove = |how| Change::Remove { pool: pool.clone(), server, how };
        let change = match self {
            Self::Kill => Change::Kill { session: 1 },
            Self::KillAll => Change::KillAll { pool: pool.clone(), server },
            Self::RemoveNow => remove(Removal::Now),
            Self::RemoveOver => remove(Removal::Over { time_ms: 1 }),
            Self::RemoveAtLimit => remove(Removal::Wait { limit_ms: Some(1) }),
            Self::StopNow => return Request::Stop { now: true, drain_ms: None },
            Self::DrainTimeOver => return Request::Stop { now: false, drain_ms: Some(1) },
            Self::DeniedByReload => return Request::Reload { instead: None, dry_run: false },
        };
        Request::Change { change, dry_run: false }
    }
}

/// A server that says its name, and when it is told to says so much and ends. It tells what came from its client, and how
/// that ended.
struct Speaker {
    server: Server,
    say: Sender<Vec<u8>>,
    said: Receiver<()>,
    heard: Receiver<(Vec<u8>, io::Result<()>)>,
}

impl Speaker {
    fn new() -> Self {
        let (say, to_say) = mpsc::channel::<Vec<u8>>();
        let (tell_said, said) = mpsc::channel();
        let (tell_heard, heard) = mpsc::channel();
        let to_say = Mutex::new(to_say);
        let server = Server::with(move |mut stream, name| {
            server::say_name(stream, name)?;
            let words = to_say.lock().expect("alive").recv().map_err(io::Error::other)?;
            if !words.is_empty() {
                stream.write_all(&words)?;
                stream.shutdown(Shutdown::Write)?;
            }
            let _ = tell_said.send(());
            let _ = tell_heard.send(read_all(stream));
            Ok(())
        });
        Self { server, say, said, heard }
    }

    /// It says that and ends; with nothing to say it goes on and listens.
    fn say(&self, words: &[u8]) {
        self.say.send(words.to_vec()).expect("it waits");
        self.said.recv_timeout(wait::LIMIT).expect("it has said so");
    }

    fn heard(&self) -> (Vec<u8>, io::Result<()>) {
        self.heard.recv_timeout(wait::LIMIT).expect("it reads to the end")
    }
}

/// A balancer that has this server from its file, and its file as it is to be when the session is to end.
fn started(server: &Server) -> Balancer {
    let listen = loopback::free();
    let service = config::service("default", listen, "default");
    let pool = config::pool("default", "", [server]);
    let balancer = Setup::new().listen(listen).config(&format!("{service}{pool}")).start();
    let denying = format!("{}\ndeny = \"0.0.0.0/0\"\n\n", service.trim_end());
    balancer.configure(&(denying + &pool));
    balancer
}

fn read_all(mut stream: &TcpStream) -> (Vec<u8>, io::Result<()>) {
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes).map(drop);
    (bytes, end)
}

/// A session of a client that knows its server.
fn begun() -> (Speaker, Balancer, Client) {
    let speaker = Speaker::new();
    let balancer = started(&speaker.server);
    let client = balancer.client();
    assert_eq!(client.server(), speaker.server.address());
    (speaker, balancer, client)
}

/// All of it with an end in order, or a reset behind a part: nothing between.
fn assert_no_part_for_the_whole(heard: &(Vec<u8>, io::Result<()>), whole: &[u8], what: impl fmt::Debug) {
    let (bytes, end) = heard;
    assert!(whole.starts_with(bytes), "{what:?}: something else came");
    match end {
        Ok(()) => assert_eq!(bytes.len(), whole.len(), "{what:?}: a part came with an end in order"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{what:?}"),
    }
}

/// Sends a request that waits in the kernel until the balancer goes on.
fn ask(control: &mut UnixStream, request: &Request) {
    control.write_all(&[greeting(), frame(request).expect("small")].concat()).expect("there is room");
}

/// Sizes that lie in the kernel's queues in different ways: within a segment, within a window, more than a read takes.
const WAITING: [usize; 5] = [1, 1000, 60_000, 200_000, 540_000];

#[test]
fn a_client_is_reset_when_its_answer_lies_unread_in_the_kernel_at_a_forced_end() {
    for force in COMMANDS {
        for size in WAITING {
            let (speaker, balancer, client) = begun();
            let words = Noise::new().bytes(size);
            let mut control = UnixStream::connect(balancer.socket()).expect("connected");
            balancer.signal(Signal::SIGSTOP);
            speaker.say(&words);
            ask(&mut control, &force.request(&speaker.server));
            balancer.signal(Signal::SIGCONT);
            assert_no_part_for_the_whole(&read_all(client.stream()), &words, (force, size));
        }
    }
}

#[test]
fn a_server_is_reset_when_its_client_lies_unread_in_the_kernel_at_a_forced_end() {
    for force in COMMANDS {
        for size in WAITING {
            let (speaker, balancer, client) = begun();
            speaker.say(&[]);
            let words = Noise::new().bytes(size);
            let mut control = UnixStream::connect(balancer.socket()).expect("connected");
            balancer.signal(Signal::SIGSTOP);
            client.send(&words);
            client.shut();
            ask(&mut control, &force.request(&speaker.server));
            balancer.signal(Signal::SIGCONT);
            assert_no_part_for_the_whole(&speaker.heard(), &words, (force, size));
        }
    }
}

/// More than all queues on the way take, so that the balancer keeps something, in a buffer or in a pipe of the kernel.
const BEHIND: usize = 40_000_000;

/// A session of a client that does not read while its server says more than finds room on the way.
struct Stalled {
    balancer: Balancer,
    /// Its file, as it is to be when the session is to end.
    denying: String,
    client: Client,
    words: Vec<u8>,
    speaker: Speaker,
}

impl Stalled {
    fn begun(setup: Setup, splice: bool) -> Self {
        let speaker = Speaker::new();
        let listen = loopback::free();
        let service = config::service("default", listen, "default");
        let service = format!("{}\nsplice = {splice}\n\n", service.trim_end());
        let pool = config::pool("default", "", [&speaker.server]);
        let denying = format!("{}\ndeny = \"0.0.0.0/0\"\n\n", service.trim_end()) + &pool;
        let balancer = setup.config(&(service + &pool)).start();
        let client = Client::connect(listen);
        assert_eq!(client.server(), speaker.server.address());
        let words = Noise::new().bytes(BEHIND);
        speaker.say.send(words.clone()).expect("it waits");
        Self { balancer, denying, client, words, speaker }
    }

    fn deny(&self) {
        self.balancer.configure(&self.denying);
    }

    fn wait_until_behind(&self) {
        wait::until("the client is behind", || {
            let before = self.balancer.service().bytes_out;
            wait::a_moment();
            before > 100_000 && self.balancer.service().bytes_out == before
        });
    }

    fn assert_client_is_reset(&self, what: impl fmt::Debug) {
        let heard = read_all(self.client.stream());
        assert!(
            heard.1.is_err(),
            "{what:?}: {} of {} bytes came with an end in order",
            heard.0.len(),
            self.words.len()
        );
        assert_no_part_for_the_whole(&heard, &self.words, what);
    }
}

#[test]
fn a_client_is_reset_when_the_balancer_keeps_a_part_of_its_answer_at_a_forced_end() {
    for force in COMMANDS {
        for splice in [true, false] {
            let stalled = Stalled::begun(Setup::new(), splice);
            stalled.wait_until_behind();
            stalled.deny();
            let mut control = UnixStream::connect(stalled.balancer.socket()).expect("connected");
            ask(&mut control, &force.request(&stalled.speaker.server));
            wait::until("the server is let go", || stalled.speaker.server.living() == 0);
            stalled.assert_client_is_reset((force, splice));
        }
    }
}

#[test]
fn a_client_is_reset_when_a_time_ends_its_session_in_the_middle_of_an_answer() {
    for (keys, reason) in
        [("idle_timeout = \"200ms\"", EndReason::IdleTimeout), ("max_age = \"1s\"", EndReason::MaxAge)]
    {
        let speaker = Speaker::new();
        let listen = loopback::free();
        let service = format!("{}\n{keys}\n\n", config::service("default", listen, "default").trim_end());
        let balancer = Setup::new().config(&(service + &config::pool("default", "", [&speaker.server]))).start();
        let client = Client::connect(listen);
        assert_eq!(client.server(), speaker.server.address());
        let words = Noise::new().bytes(BEHIND);
        speaker.say.send(words.clone()).expect("it waits");
        balancer.wait_for_ends(reason, 1);
        let heard = read_all(client.stream());
        assert!(heard.1.is_err(), "{reason:?}: an end in order after {} bytes", heard.0.len());
        assert_no_part_for_the_whole(&heard, &words, reason);
    }
}

#[test]
fn both_sides_of_a_session_with_nothing_on_its_way_are_reset_at_a_forced_end() {
    for force in COMMANDS {
        let (speaker, balancer, client) = begun();
        speaker.say(&[]);
        let mut control = UnixStream::connect(balancer.socket()).expect("connected");
        ask(&mut control, &force.request(&speaker.server));
        // Nobody knows what the other one had still to say.
        for (who, (bytes, end)) in [("client", read_all(client.stream())), ("server", speaker.heard())] {
            assert!(bytes.is_empty());
            let error = end.expect_err(&format!("{who}, {force:?}: an end that nobody said"));
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
    }
}

#[test]
fn a_client_that_has_its_servers_own_end_keeps_it_at_a_forced_end() {
    for force in COMMANDS {
        let (speaker, balancer, client) = begun();
        let words = Noise::new().bytes(100_000);
        speaker.say(&words);
        wait::until("the balancer has passed everything on", || balancer.service().bytes_out as usize >= words.len());
        // Its end comes in the same turn as its last bytes, or in the next one: a status asked later is answered behind it.
        let _ = balancer.status();
        let mut control = UnixStream::connect(balancer.socket()).expect("connected");
        ask(&mut control, &force.request(&speaker.server));
        let (_, end) = speaker.heard();
        assert_eq!(end.expect_err("its client has not ended").kind(), ErrorKind::ConnectionReset, "{force:?}");
        assert!(client.rest().expect("the server has ended in order") == words, "{force:?}");
    }
}

/// What one side of a session of the torture does.
#[derive(Debug, Clone)]
struct Part {
    words: Vec<u8>,
    /// It ends behind them.
    ends: bool,
    /// It speaks before it listens, which is for words that find room in the kernel, or both at once.
    speaks_first: bool,
    /// It reads so much, and the rest when the end of the session has been asked for.
    reads_first: usize,
}

impl Part {
    fn speak(&self, mut stream: &TcpStream) -> io::Result<()> {
        stream.write_all(&self.words)?;
        if self.ends { stream.shutdown(Shutdown::Write) } else { Ok(()) }
    }

    /// What came, and how it ended.
    fn play(&self, mut stream: &TcpStream, between: impl FnOnce()) -> (Vec<u8>, io::Result<()>) {
        thread::scope(|scope| {
            let speaking = match self.speaks_first {
                true => Err(self.speak(stream)),
                false => Ok(scope.spawn(|| self.speak(stream))),
            };
            let mut bytes = Vec::new();
            let first = stream.take(self.reads_first as u64).read_to_end(&mut bytes);
            between();
            let heard = first.and_then(|_| stream.read_to_end(&mut bytes)).map(drop);
            // The kernel tells of a reset once: a write that was told of it leaves an end to be read.
            let spoken = speaking.map_or_else(|spoken| spoken, |speaking| speaking.join().expect("no panic"));
            (bytes, heard.and(spoken))
        })
    }
}

/// Rounds of the torture.
const ROUNDS: usize = 200;

#[test]
fn forced_ends_at_any_time_with_bytes_anywhere_give_nobody_a_part_for_the_whole() {
    let mut noise = Noise::new();
    for round in 0..ROUNDS {
        let force = COMMANDS[noise.number() as usize % COMMANDS.len()];
        let stops = noise.number().is_multiple_of(2);
        let mut below = |most: usize| noise.number() as usize % most;
        let mut part = || {
            let most = if stops { [1, 2000, 70_000, 400_000] } else { [2000, 70_000, 600_000, 6_000_000] }[below(4)];
            let ends = below(2) == 0;
            Part { words: vec![0; below(most) + 1], ends, speaks_first: stops, reads_first: 0 }
        };
        let (mut client_part, mut server_part) = (part(), part());
        if !stops {
            client_part.reads_first = below(server_part.words.len());
            server_part.reads_first = below(client_part.words.len());
        }
        client_part.words = noise.bytes(client_part.words.len());
        server_part.words = noise.bytes(server_part.words.len());
        let what = format!("round {round}, {force:?}, stops {stops}");

        let (begin, begins) = mpsc::channel();
        let (spoken, has_spoken) = mpsc::channel();
        let (go_on, goes_on) = mpsc::channel();
        let (hears, heard) = mpsc::channel();
        let (waits, its) = (Mutex::new((begins, goes_on)), server_part.clone());
        let server = Server::with(move |stream, name| {
            let (begins, goes_on) = &*waits.lock().expect("alive");
            server::say_name(stream, name)?;
            begins.recv().map_err(io::Error::other)?;
            let between = || {
                let _ = spoken.send(());
                let _ = goes_on.recv();
            };
            let _ = hears.send(its.play(stream, between));
            Ok(())
        });
        let balancer = started(&server);
        let client = balancer.client();
        assert_eq!(client.server(), server.address());
        let mut control = UnixStream::connect(balancer.socket()).expect("connected");
        if stops {
            balancer.signal(Signal::SIGSTOP);
        }
        begin.send(()).expect("it waits");
        let heard_by_client = client_part.play(client.stream(), || {
            if stops {
                has_spoken.recv_timeout(wait::LIMIT).expect("there is room");
            }
            ask(&mut control, &force.request(&server));
            if stops {
                balancer.signal(Signal::SIGCONT);
            }
            go_on.send(()).expect("it waits");
        });
        let heard_by_server = heard.recv_timeout(wait::LIMIT).expect("it reads to the end");
        // The server closes when it has heard its client's end; the client does not.
        let server_ends = server_part.ends || heard_by_server.1.is_ok();
        for (who, (bytes, end), said, ends) in [
            ("client", &heard_by_client, &server_part, server_ends),
            ("server", &heard_by_server, &client_part, client_part.ends),
        ] {
            assert!(said.words.starts_with(bytes), "{what}: something else came to the {who}");
            if end.is_ok() {
                let (count, all) = (bytes.len(), said.words.len());
                assert!(ends && count == all, "{what}: the {who} took {count} of {all} for the whole");
            }
        }
    }
}

//! No call of the loop's thread blocks: a disk, a service manager, a reader of the log that hangs holds nobody up.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Stdio;
use std::thread;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tests::balancer::balancerd;
use tests::hold::Hold;
use tests::{Balancer, Client, Process, Server, Setup, config, loopback, wait};
use wire::control::{Change, PoolValues, ServerValues};
use wire::settings::DEFAULT_POOL;
use wire::{Request, Response};

/// A client that was there before, one that comes now, and an operator: all are served.
fn assert_serves(balancer: &Balancer, client: &Client, server: &Server) {
    assert_eq!(client.exchange(b"ping"), b"ping");
    assert_eq!(balancer.client().server(), server.address());
    assert_eq!(balancer.status().pid, balancer.pid());
}

/// Whether nobody can lay another datagram into the queue of this socket.
fn is_full(path: &Path) -> bool {
    let socket = UnixDatagram::unbound().expect("a socket");
    socket.set_nonblocking(true).expect("set");
    socket.send_to(b"", path).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// Calls that a balancer makes again and again beside the loop, and those that it only makes at its start and its end.
const CALLS: [(&str, bool); 17] = [
    ("open", true),
    ("stat", true),
    ("write", true),
    ("close", true),
    ("fsync", true),
    ("rename", true),
    ("unlink", true),
    ("send", true),
    ("access", false),
    ("mkdir", false),
    ("chmod", false),
    ("readlink", false),
    ("realpath", false),
    ("inotify_add_watch", true),
    ("flock", false),
    ("names", false),
    ("connect", false),
];

/// The balancer that calls are held of, at a service manager and with a log file of its own; the file that it reads is
/// watched if that is wanted.
struct Scene {
    hold: Hold,
    balancer: Balancer,
    server: Server,
    manager: UnixDatagram,
}

impl Scene {
    fn new() -> Option<Self> {
        let (server, setup) = (Server::start(), Setup::new());
        let (manager, log) = (setup.directory().join("manager"), setup.directory().join("log"));
        let text = "[balancer]\nwatch = true\n\n".to_owned()
            + &config::service("web", loopback::free(), DEFAULT_POOL)
            + &config::weighted(DEFAULT_POOL, "", [(server.address(), 1)]);
        let socket = UnixDatagram::bind(&manager).expect("a socket");
        socket.set_nonblocking(true).expect("set");
        let setup = setup.config(&text).options(&format!("--log {} --log-level debug", log.display()));
        let setup = setup.environment("NOTIFY_SOCKET", manager).environment("WATCHDOG_USEC", "100000");
        let (hold, setup) = Hold::prepare(setup)?;
        Some(Self { hold, balancer: setup.start(), server, manager: socket })
    }

    fn change(&self, weight: u32) {
        let values = ServerValues { weight: Some(weight), ..ServerValues::default() };
        let change = Change::Set { pool: DEFAULT_POOL.to_owned(), server: self.server.address(), values };
        self.balancer.change(change, false).expect("it is made");
    }

    fn forget_news(&self) {
        let mut news = [0; 512];
        while self.manager.recv(&mut news).is_ok() {}
    }
}

#[test]
fn a_call_that_hangs_holds_no_client_up_whichever_it_is() {
    let Some(scene) = Scene::new() else { return };
    let (hold, balancer) = (&scene.hold, &scene.balancer);
    let client = balancer.client();
    assert_eq!(client.server(), scene.server.address());
    for (round, (call, is_made)) in CALLS.into_iter().enumerate() {
        let before = hold.held().len();
        hold.begin(call);
        thread::scope(|scope| {
            // A change, which is saved and logged; a file that is read again; and signs of life all the time.
            scope.spawn(|| scene.change(10 + round as u32));
            balancer.signal(Signal::SIGHUP);
            if is_made {
                wait::until(&format!("{call} is held"), || hold.held().len() > before);
            }
            for _ in 0..3 {
                assert_serves(balancer, &client, &scene.server);
            }
            hold.end();
        });
        balancer.reload().expect("it is read");
        scene.forget_news();
    }
    let of_loop: Vec<_> = hold.held().into_iter().filter(|held| held.by_loop).collect();
    assert_eq!(of_loop, [], "calls that may block are made by other threads");
}

#[test]
fn a_file_that_hangs_holds_no_change_up_and_is_read_when_it_goes_on() {
    let Some(scene) = Scene::new() else { return };
    let (hold, balancer) = (&scene.hold, &scene.balancer);
    let client = balancer.client();
    assert_eq!(client.server(), scene.server.address());
    let text = fs::read_to_string(balancer.setup().config_path()).expect("there");
    hold.begin("stat");
    balancer.configure(&text.replace("watch = true", "watch = true\nmax_sessions = 77"));
    wait::until("the file is being read", || hold.held().iter().any(|held| held.what.ends_with("balancer.toml")));
    for weight in 2..6 {
        scene.change(weight);
        assert_serves(balancer, &client, &scene.server);
    }
    // One that takes a ring which is made beside the loop.
    let points = std::num::NonZeroU32::new(200_000).expect("some");
    let values = PoolValues { points_per_weight: Some(points), ..PoolValues::default() };
    balancer.change(Change::SetPool { pool: DEFAULT_POOL.to_owned(), values }, false).expect("it is made");
    assert!(!balancer.log().contains("could not be read"), "nobody has waited until the file was given up");
    // Who asks for it again hears the true reason, at once if it was given up before.
    for _ in 0..2 {
        let refusal = balancer.reload().expect_err("it hangs").to_string();
        assert!(refusal.contains("balancer.toml: it could not be read within"), "{refusal}");
        assert!(refusal.contains("hangs"), "{refusal}");
    }
    scene.change(9);
    hold.end();
    wait::until("the file is read again by itself", || balancer.status().session_limit == 77);
    let of_loop: Vec<_> = hold.held().into_iter().filter(|held| held.by_loop).collect();
    assert_eq!(of_loop, []);
}

#[test]
fn a_service_manager_that_reads_nothing_holds_nobody_up() {
    let (server, setup) = (Server::start(), Setup::new());
    let path = setup.directory().join("manager");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    let setup = setup.environment("NOTIFY_SOCKET", &path).environment("WATCHDOG_USEC", "10000");
    let mut balancer = setup.start();
    balancer.add_all([&server]);
    let client = balancer.client();
    assert_eq!(client.server(), server.address());
    wait::until("its queue is full", || is_full(&path));
    // The next sign of life finds no room, and the one after that finds it waiting.
    balancer.wait_for_log("the service manager reads nothing");
    for _ in 0..10 {
        assert_serves(&balancer, &client, &server);
    }
    drop(client);
    balancer.signal(Signal::SIGTERM);
    assert_eq!(balancer.wait_for_end().code(), Some(0));
    let mut news = [0; 512];
    let count = manager.recv(&mut news).expect("what was there first");
    assert_eq!(&news[..count], b"READY=1\n");
    assert_eq!(balancer.log().matches("the service manager reads nothing").count(), 1, "it is said once");
}

#[test]
fn a_service_manager_of_the_abstract_namespace_is_told_as_one_at_a_path() {
    use std::os::linux::net::SocketAddrExt;
    let setup = Setup::new();
    let name = format!("balancer-{}-{}", std::process::id(), setup.address().ip());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("a name");
    let manager = UnixDatagram::bind_addr(&address).expect("a socket");
    manager.set_read_timeout(Some(wait::LIMIT)).expect("set");
    let setup = setup.environment("NOTIFY_SOCKET", format!("@{name}")).environment("WATCHDOG_USEC", "400000");
    let mut balancer = setup.start();
    let next = || {
        let mut news = [0; 512];
        let count = manager.recv(&mut news).expect("news");
        String::from_utf8(news[..count].to_vec()).expect("text")
    };
    assert_eq!((next().as_str(), next().as_str()), ("READY=1\n", "WATCHDOG=1\n"));
    balancer.signal(Signal::SIGTERM);
    wait::until("it says that it stops", || next() == "STOPPING=1\n");
    assert_eq!(balancer.wait_for_end().code(), Some(0));
}

#[test]
fn a_service_manager_that_is_not_there_is_missed_once() {
    let setup = Setup::new();
    let path = setup.directory().join("nobody");
    let mut balancer = setup.environment("NOTIFY_SOCKET", path).environment("WATCHDOG_USEC", "20000").start();
    balancer.wait_for_log("the service manager could not be told");
    wait::a_moment();
    balancer.signal(Signal::SIGTERM);
    assert_eq!(balancer.wait_for_end().code(), Some(0));
    assert_eq!(balancer.log().matches("service manager").count(), 1, "{}", balancer.log());
}

#[test]
fn a_watchdog_time_of_nothing_keeps_nobody_busy() {
    let setup = Setup::new();
    let path = setup.directory().join("manager");
    let _manager = UnixDatagram::bind(&path).expect("a socket");
    let balancer = setup.environment("NOTIFY_SOCKET", path).environment("WATCHDOG_USEC", "0").start();
    balancer.assert_quiet();
    balancer.wait_for_log("the watchdog is off");
}

#[test]
fn a_log_that_is_a_pipe_without_a_reader_holds_nobody_up() {
    let (server, setup) = (Server::start(), Setup::new());
    let path = setup.directory().join("log");
    mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).expect("a pipe");
    let mut balancer = setup.options(&format!("--log {} --log-level debug", path.display())).start();
    balancer.add_all([&server]);
    let client = balancer.client();
    assert_eq!(client.server(), server.address());
    wait::until("lines find no room", || {
        assert_serves(&balancer, &client, &server);
        balancer.status().log_lines_dropped > 0
    });
    // Whoever reads at last gets what was there first.
    let mut options = OpenOptions::new();
    let mut reader: File = options.read(true).custom_flags(nix::libc::O_NONBLOCK).open(&path).expect("it is there");
    let mut first = [0; 512];
    let count = reader.read(&mut first).expect("lines");
    assert!(String::from_utf8_lossy(&first[..count]).contains("balancer started"), "the first line");
    drop((client, reader));
    balancer.signal(Signal::SIGTERM);
    assert_eq!(balancer.wait_for_end().code(), Some(0));
}

#[test]
fn an_end_with_an_error_waits_for_nobody_who_reads_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("run/control.sock");
    // The reader stays there and reads nothing; the pipe is full.
    let (_reader, writer) = std::io::pipe().expect("a pipe");
    let full = writer.try_clone().expect("a copy");
    fcntl(&full, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("set");
    while (&full).write(&[b'x'; 4096]).is_ok() {}
    fcntl(&full, FcntlArg::F_SETFL(OFlag::empty())).expect("set");
    let mut command = balancerd("--listen 127.0.0.1:0");
    command.arg("--socket").arg(&socket).arg("--state").arg(directory.path().join("state"));
    let mut process = Process::spawn(command.stdout(Stdio::null()).stderr(writer));
    let mut control = wait::for_some("it listens", || wire::Client::connect(&socket).ok());
    // What is changed cannot be saved, which is an error at the end.
    std::fs::remove_dir_all(directory.path().join("state")).expect("removed");
    let change = tests::balancer::add("10.0.0.1:80".parse().expect("an address"), 1);
    let Response::Changed(report) = control.call(&Request::Change { change, dry_run: false }).expect("an answer")
    else {
        panic!("it is made")
    };
    assert!(report.unsaved.is_some());
    process.signal(Signal::SIGTERM);
    assert_eq!(process.wait().code(), Some(1));
}

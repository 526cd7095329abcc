//! Sessions with real sockets and a made-up clock.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::num::NonZeroU32;
use std::time::Duration;

use wire::control::{Change, Request, Response};
use wire::settings::{PoolSettings, ServerSettings, ServiceSettings, Settings};

use super::*;
use crate::descriptors::Descriptors;
use crate::event::Poller;
use crate::model::Effect;
use crate::model::tests::started;
use crate::net::listen::Place;
use crate::source::Source;

/// Sessions of one service, with servers of which a test plays the part.
struct Scene {
    now: Instant,
    listener: Listener,
    servers: Vec<TcpListener>,
    model: Model,
    poller: Poller,
    scratch: Vec<u8>,
    sessions: Sessions,
}

impl Scene {
    fn new(servers: usize, session_limit: usize) -> Self {
        let now = event::now();
        let place = Place { address: (Ipv4Addr::LOCALHOST, 0).into(), only_ipv6: false, freebind: false };
        let mut listener = Listener::bind(place, false).expect("bound");
        let servers: Vec<_> = (0..servers).map(|_| TcpListener::bind("127.0.0.1:0").expect("bound")).collect();
        let points_per_weight = NonZeroU32::new(64).expect("64 is not 0");
        let entry = |server: &TcpListener| (server.local_addr().expect("bound"), ServerSettings::default());
        let pool =
            PoolSettings { points_per_weight, servers: servers.iter().map(entry).collect(), ..PoolSettings::default() };
        let settings = Settings {
            services: [("default".to_owned(), ServiceSettings::new(vec![listener.address()], "default"))].into(),
            pools: [("default".to_owned(), pool)].into(),
            ..Settings::default()
        };
        let mut model = started(&settings, now);
        model.vitals.session_limit = session_limit;
        let (_, service) = model.wanted_listeners(Transport::Tcp).next().expect("a service");
        listener.serve(service);
        let timeouts = Timeouts::new(Duration::from_secs(3), Duration::from_secs(3600));
        let sessions =
            Sessions::new(timeouts, 0, |id, side| Source::Session(id, side).key(), |id| Source::Newcomer(id).key());
        let (poller, scratch) = (Poller::new().expect("epoll"), vec![0; 65_536]);
        Self { now, listener, servers, model, poller, scratch, sessions }
    }

    fn with(&mut self, act: impl FnOnce(&mut Sessions, &mut Listener, &mut Context<'_>)) {
        let Self { poller, model, scratch, now, .. } = self;
        let cx = &mut Context { poller, model, scratch, now: *now };
        act(&mut self.sessions, &mut self.listener, cx);
    }

    fn expire(&mut self) {
        self.with(|sessions, _, cx| sessions.expire(cx));
    }

    /// A client comes and is let in.
    fn client(&mut self) -> TcpStream {
        let client = TcpStream::connect(self.listener.address()).expect("connected");
        self.with(|sessions, listener, cx| {
            sessions.accept_from(listener, cx);
            sessions.settle(cx);
        });
        client
    }
}

#[test]
fn the_many_sessions_of_a_server_end_a_part_in_a_turn_and_each_once() {
    const SESSIONS: u64 = ENDS_PER_TURN + 50;
    Descriptors::raise().expect("raised");
    let mut scene = Scene::new(1, 2 * SESSIONS as usize);
    let mut both_ends = Vec::new();
    for _ in 0..SESSIONS {
        let client = scene.client();
        both_ends.push((client, scene.servers[0].accept().expect("it came").0));
    }
    assert_eq!(scene.sessions.len() as u64, SESSIONS);

    let (now, server_address) = (scene.now, scene.servers[0].local_addr().expect("bound"));
    let kill = Change::KillAll { pool: "default".to_owned(), server: server_address };
    let (response, effects) =
        scene.model.apply(&Request::Change { change: kill, dry_run: false }, None, now).expect("done");
    let Response::Changed(report) = response else { panic!("{response:?}") };
    let [Effect::EndSessions(id, reason)] = effects[..] else { panic!("{effects:?}") };
    scene.sessions.end_of_server(id, reason);
    // Told again, it is told of the same ones.
    scene.sessions.end_of_server(id, EndReason::Removed);
    assert_eq!(scene.sessions.ends(), (0, report.sessions));
    for ended in [ENDS_PER_TURN, SESSIONS, SESSIONS] {
        let Scene { sessions, .. } = &scene;
        assert!(sessions.next_deadline(now).is_some_and(|at| (at == now) == (sessions.ended() < SESSIONS)));
        scene.expire();
        assert_eq!((scene.sessions.ended(), scene.sessions.len() as u64), (ended, SESSIONS - ended));
    }
    assert_eq!(scene.sessions.ends(), (SESSIONS, SESSIONS));
    let Response::Status(status) = scene.model.apply(&Request::Status, None, now).expect("a report").0 else {
        panic!("a status")
    };
    assert_eq!(status.services[0].ended, [(EndReason::Killed, SESSIONS)].into());
}

#[test]
fn who_is_killed_ends_though_its_server_was_to_have_it_no_longer_before() {
    use EndReason::{Killed, Removed, ServerDown};
    let mut scene = Scene::new(2, 10);
    for (reasons, ends) in [
        // Nobody has told it that its connect is there: another server may have it.
        (&[ServerDown, Removed][..], false),
        (&[Removed, Killed], true),
        (&[ServerDown, Killed], true),
        (&[Killed, ServerDown], true),
    ] {
        let _client = scene.client();
        let (id, server) =
            scene.sessions.slots.iter().map(|(id, session)| (id, session.server_id)).next().expect("one");
        for reason in reasons {
            scene.sessions.end_of_server(server, *reason);
        }
        scene.expire();
        let sessions = &scene.sessions;
        assert_eq!(sessions.slots.get(id).is_none(), ends, "{reasons:?}");
        assert!(sessions.slots.get(id).is_none_or(|session| session.server_id != server), "{reasons:?}");
        assert_eq!(sessions.ends().0, sessions.ends().1);
        scene.with(|sessions, _, cx| sessions.end(id, Killed, cx));
    }
}

#[test]
fn a_removed_server_keeps_no_session_for_being_down_before() {
    assert!(is_firmer(None, EndReason::ServerDown));
    assert!(is_firmer(Some(EndReason::ServerDown), EndReason::Removed));
    assert!(!is_firmer(Some(EndReason::Removed), EndReason::ServerDown));
    assert!(!is_firmer(Some(EndReason::Killed), EndReason::Removed));
}

#[test]
fn sides_are_reset_when_the_loop_ends_with_sessions_left() {
    let mut scene = Scene::new(1, 10);
    let mut client = scene.client();
    let mut server = scene.servers[0].accept().expect("it came").0;
    server.write_all(b"a part").expect("sent");
    let Scene { sessions, .. } = scene;
    drop(sessions);
    for (who, side) in [("client", &mut client), ("server", &mut server)] {
        let error = side.read_to_end(&mut Vec::new()).expect_err(who);
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{who}");
    }
}

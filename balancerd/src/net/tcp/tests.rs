//! Sessions with real sockets and a made-up clock.

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

#[test]
fn the_many_sessions_of_a_server_end_a_part_in_a_turn_and_each_once() {
    const SESSIONS: u64 = ENDS_PER_TURN + 50;
    Descriptors::raise().expect("raised");
    let now = event::now();
    let place = Place { address: (Ipv4Addr::LOCALHOST, 0).into(), only_ipv6: false };
    let mut listener = Listener::bind(place, false).expect("bound");
    let server = TcpListener::bind("127.0.0.1:0").expect("bound");
    let server_address = server.local_addr().expect("bound");
    let points_per_weight = NonZeroU32::new(64).expect("64 is not 0");
    let servers = [(server_address, ServerSettings::default())].into();
    let settings = Settings {
        services: [("default".to_owned(), ServiceSettings::new(vec![listener.address()], "default"))].into(),
        pools: [("default".to_owned(), PoolSettings { points_per_weight, servers, ..PoolSettings::default() })].into(),
        ..Settings::default()
    };
    let (mut model, mut scratch) = (started(&settings, now), vec![0; 65_536]);
    model.vitals.session_limit = 2 * SESSIONS as usize;
    let (_, service) = model.wanted_listeners(Transport::Tcp).next().expect("a service");
    listener.serve(service);
    let poller = Poller::new().expect("epoll");
    let timeouts = Timeouts::new(Duration::from_secs(3), Duration::from_secs(3600));
    let mut sessions =
        Sessions::new(timeouts, 0, |id, side| Source::Session(id, side).key(), |id| Source::Newcomer(id).key());
    let mut both_ends = Vec::new();
    for _ in 0..SESSIONS {
        let client = TcpStream::connect(listener.address()).expect("connected");
        let cx = &mut Context { poller: &poller, model: &mut model, scratch: &mut scratch, now };
        sessions.accept_from(&mut listener, cx);
        sessions.settle(cx);
        both_ends.push((client, server.accept().expect("it came").0));
    }
    assert_eq!(sessions.len() as u64, SESSIONS);

    let kill = Change::KillAll { pool: "default".to_owned(), server: server_address };
    let (response, effects) = model.apply(&Request::Change { change: kill, dry_run: false }, None, now).expect("done");
    let Response::Changed(report) = response else { panic!("{response:?}") };
    let [Effect::EndSessions(id, reason)] = effects[..] else { panic!("{effects:?}") };
    sessions.end_of_server(id, reason);
    // Told again, it is told of the same ones.
    sessions.end_of_server(id, EndReason::Removed);
    assert_eq!(sessions.ends(), (0, report.sessions));
    for ended in [ENDS_PER_TURN, SESSIONS, SESSIONS] {
        assert!(sessions.next_deadline(now).is_some_and(|at| (at == now) == (sessions.ended() < SESSIONS)));
        let cx = &mut Context { poller: &poller, model: &mut model, scratch: &mut scratch, now };
        sessions.expire(cx);
        assert_eq!((sessions.ended(), sessions.len() as u64), (ended, SESSIONS - ended));
    }
    assert_eq!(sessions.ends(), (SESSIONS, SESSIONS));
    let Response::Status(status) = model.apply(&Request::Status, None, now).expect("a report").0 else {
        panic!("a status")
    };
    assert_eq!(status.services[0].ended, [(EndReason::Killed, SESSIONS)].into());
}

#[test]
fn who_is_killed_ends_though_its_server_was_to_have_it_no_longer_before() {
    use EndReason::{Killed, Removed, ServerDown};
    let now = event::now();
    let place = Place { address: (Ipv4Addr::LOCALHOST, 0).into(), only_ipv6: false };
    let mut listener = Listener::bind(place, false).expect("bound");
    let servers = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("bound"));
    let addresses = servers.each_ref().map(|server| server.local_addr().expect("bound"));
    let points_per_weight = NonZeroU32::new(64).expect("64 is not 0");
    let servers = addresses.map(|address| (address, ServerSettings::default())).into();
    let settings = Settings {
        services: [("default".to_owned(), ServiceSettings::new(vec![listener.address()], "default"))].into(),
        pools: [("default".to_owned(), PoolSettings { points_per_weight, servers, ..PoolSettings::default() })].into(),
        ..Settings::default()
    };
    let (mut model, mut scratch) = (started(&settings, now), vec![0; 65_536]);
    model.vitals.session_limit = 10;
    let (_, service) = model.wanted_listeners(Transport::Tcp).next().expect("a service");
    listener.serve(service);
    let poller = Poller::new().expect("epoll");
    let timeouts = Timeouts::new(Duration::from_secs(3), Duration::from_secs(3600));
    let mut sessions =
        Sessions::new(timeouts, 0, |id, side| Source::Session(id, side).key(), |id| Source::Newcomer(id).key());
    for (reasons, ends) in [
        // Nobody has told it that its connect is there: another server may have it.
        (&[ServerDown, Removed][..], false),
        (&[Removed, Killed], true),
        (&[ServerDown, Killed], true),
        (&[Killed, ServerDown], true),
    ] {
        let _client = TcpStream::connect(listener.address()).expect("connected");
        let cx = &mut Context { poller: &poller, model: &mut model, scratch: &mut scratch, now };
        sessions.accept_from(&mut listener, cx);
        sessions.settle(cx);
        let (id, server) = sessions.slots.iter().map(|(id, session)| (id, session.server_id)).next().expect("one");
        for reason in reasons {
            sessions.end_of_server(server, *reason);
        }
        sessions.expire(cx);
        assert_eq!(sessions.slots.get(id).is_none(), ends, "{reasons:?}");
        assert!(sessions.slots.get(id).is_none_or(|session| session.server_id != server), "{reasons:?}");
        assert_eq!(sessions.ends().0, sessions.ends().1);
        sessions.end(id, Killed, cx);
    }
}

#[test]
fn a_removed_server_keeps_no_session_for_being_down_before() {
    assert!(is_firmer(None, EndReason::ServerDown));
    assert!(is_firmer(Some(EndReason::ServerDown), EndReason::Removed));
    assert!(!is_firmer(Some(EndReason::Removed), EndReason::ServerDown));
    assert!(!is_firmer(Some(EndReason::Killed), EndReason::Removed));
}

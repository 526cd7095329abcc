//! Programs of datagrams that everybody knows, through the balancer.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv6Addr;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tests::config::weighted;
use tests::datagrams::sockets_towards;
use tests::program::{Program, run, text};
use tests::programs::installed;
use tests::{Balancer, Setup, loopback, wait};
use wire::report::EndReason;

/// One for IPv4 and IPv6 clients, with these lines of keys; each of the servers is IPv4.
fn balancer_of(programs: &[Program], service: &str, pool: &str) -> Balancer {
    let listen = loopback::free_of_both(Ipv6Addr::UNSPECIFIED.into());
    let service = format!("[service.udp]\nlisten = \"{listen}\"\npool = \"default\"\n{service}\n\n");
    let servers = programs.iter().map(|program| (program.address(), 1));
    Setup::new().config(&(service + &weighted("default", pool, servers))).start()
}

/// Nothing went amiss in the balancer.
fn assert_nothing_dropped(balancer: &Balancer) {
    let service = balancer.service();
    let datagrams = &service.datagrams;
    assert!(datagrams.dropped_in.is_empty() && datagrams.dropped_out.is_empty(), "{datagrams:?}");
    assert_eq!(service.receive_overflows, 0);
}

/// Knows the name `name.test`, which is its address, and `long.test`, which does not fit into a small datagram.
fn dnsmasq(program: &Path) -> Program {
    Program::start(5300, |address, _| {
        let mut command = Command::new(program);
        command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--pid-file="]);
        command
            .args(["--bind-interfaces", "--port=5300", "--user=root"])
            .arg(format!("--listen-address={}", address.ip()));
        let long: Vec<String> = ["a", "b", "c"].map(|letter| letter.repeat(200)).to_vec();
        command.arg(format!("--txt-record=name.test,{address}"));
        command.arg(format!("--txt-record=long.test,{}", long.join(",")));
        command
    })
}

#[test]
fn dig_gets_its_answers_from_one_server_by_datagrams_and_by_tcp() {
    let Some([dnsmasq_program, dig]) = installed(["dnsmasq", "dig"]) else { return };
    let servers = [dnsmasq(&dnsmasq_program), dnsmasq(&dnsmasq_program), dnsmasq(&dnsmasq_program)];
    let balancer = balancer_of(&servers, "protocol = \"tcp+udp\"\nanswers = 1", "");
    let port = balancer.address().port().to_string();
    let ask = |words: &[&str]| {
        let output = run(Command::new(&dig).args(["-r", "+tries=1", "+time=10", "-p", &port]).args(words));
        text(&output).trim().to_owned()
    };
    for number in 0..15 {
        let client = loopback::client(number);
        let from = client.to_string();
        let server = format!("\"{}\"", balancer.explain(client).server.expect("a server"));
        for transport in ["+notcp", "+tcp"] {
            let said = ask(&["-b", &from, "@127.0.0.1", "name.test", "TXT", "+short", transport]);
            assert_eq!(said, server, "{from} {transport}");
        }
    }
    assert_eq!(balancer.ended(EndReason::Complete), 15);
    let server = format!("\"{}\"", balancer.explain(Ipv6Addr::LOCALHOST.into()).server.expect("a server"));
    assert_eq!(ask(&["@::1", "name.test", "TXT", "+short"]), server);
    // What does not fit is asked for again by TCP, at the same port.
    for host in ["@127.0.0.1", "@::1"] {
        let said = ask(&["+noedns", host, "long.test", "TXT"]);
        assert!(said.contains("retrying in TCP mode") && said.contains(&"c".repeat(200)), "{said}");
    }
    balancer.wait_for_sessions(0);
    assert_nothing_dropped(&balancer);
}

#[test]
fn dnsperf_loses_no_question_by_datagrams_and_by_tcp() {
    let Some([dnsmasq_program, dnsperf]) = installed(["dnsmasq", "dnsperf"]) else { return };
    let servers = [dnsmasq(&dnsmasq_program), dnsmasq(&dnsmasq_program)];
    let balancer = balancer_of(&servers, "protocol = \"tcp+udp\"\nanswers = 1", "key = \"client-ip-port\"");
    let questions = balancer.file("questions");
    fs::write(&questions, "name.test TXT\nlong.test TXT\n").expect("written");
    let port = balancer.address().port().to_string();
    for host in ["127.0.0.1", "::1"] {
        for (mode, count) in [("udp", 10_000), ("tcp", 1000)] {
            let mut command = Command::new(&dnsperf);
            command
                .args(["-s", host, "-p", &port, "-m", mode, "-c", "10", "-q", "50", "-t", "20", "-d"])
                .arg(&questions);
            let output = run(command.args(["-n", &(count / 2).to_string()]));
            let said: Vec<&str> = text(&output).split_whitespace().collect();
            let said = said.join(" ");
            assert!(said.contains(&format!("Queries completed: {count} (100.00%)")), "{host} {mode}: {said}");
            assert!(said.contains(&format!("NOERROR {count} (100.00%)")), "{host} {mode}: {said}");
        }
    }
    balancer.wait_for_sessions(0);
    // A flow ends with the answer to the last question that was asked until then.
    let ended = balancer.service().ended;
    assert!(ended[&EndReason::Complete] > 100 && !ended.contains_key(&EndReason::IdleTimeout), "{ended:?}");
    assert_nothing_dropped(&balancer);
    assert!(balancer.list().servers.iter().all(|server| server.total > 0));
    balancer.assert_quiet();
}

#[test]
fn iperf3_moves_datagrams_and_bytes_through_one_port_both_ways() {
    let Some([iperf3]) = installed(["iperf3"]) else { return };
    let start = || {
        Program::start(5201, |address, _| {
            let mut command = Command::new(&iperf3);
            command.args(["--server", "--bind", &address.ip().to_string(), "--port", "5201"]);
            command
        })
    };
    for (host, words) in [
        ("127.0.0.1", &["--udp", "--length", "1200"][..]),
        ("127.0.0.1", &["--udp", "--length", "1200", "--reverse"]),
        ("::1", &["--udp", "--length", "60000", "--parallel", "2"]),
        ("::1", &["--udp", "--length", "60000", "--reverse"]),
        ("127.0.0.1", &[]),
        ("::1", &["--reverse"]),
    ] {
        // Each with servers of its own: between two tests one is busy for a while.
        let servers = [start(), start()];
        let balancer = balancer_of(&servers, "protocol = \"tcp+udp\"", "");
        let mut command = Command::new(&iperf3);
        command.args(["--client", host, "--port", &balancer.address().port().to_string(), "--time", "1"]);
        let output = run(command.args(["--bitrate", "20M", "--json"]).args(words));
        let report: Value = serde_json::from_str(text(&output)).expect("JSON");
        assert!(report.get("error").is_none(), "{report}");
        let used: Vec<_> = balancer.list().servers.into_iter().filter(|server| server.total > 0).collect();
        assert_eq!(used.len(), 1, "its connection and its datagrams come to one server: {used:?}");
        if words.contains(&"--udp") {
            let sum = &report["end"]["sum"];
            let (packets, lost) = (sum["packets"].as_u64().expect("some"), sum["lost_packets"].as_i64().expect("some"));
            // A receiver that gets no processor time loses some; the balancer does not.
            assert!(packets > 20 && lost * 20 <= packets.cast_signed(), "{host} {words:?}: {sum}");
            let passed = &balancer.service().datagrams;
            assert!(passed.datagrams_in + passed.datagrams_out + lost.cast_unsigned() >= packets, "{passed:?}");
        }
        assert_nothing_dropped(&balancer);
    }
}

#[test]
fn lines_of_logger_come_to_one_receiver_each_without_flows() {
    let Some([logger, socat]) = installed(["logger", "socat"]) else { return };
    let receiver = || {
        Program::start_datagrams(5140, |address, directory| {
            let mut command = Command::new(&socat);
            let listen = format!("UDP-RECV:{},bind={}", address.port(), address.ip());
            command.arg("-u").arg(listen).arg(format!("OPEN:{},creat,append", directory.join("log").display()));
            command
        })
    };
    let servers = [receiver(), receiver()];
    let balancer = balancer_of(&servers, "protocol = \"udp\"", "one_way = true\npolicy = \"round-robin\"");
    let port = balancer.address().port().to_string();
    let log = |host: &str, words: &str| {
        run(Command::new(&logger).args(["--server", host, "--port", &port, "--udp", "--tag", "test", words]));
    };
    let lines = |program: &Program| {
        let text = fs::read_to_string(program.directory().join("log")).unwrap_or_default();
        text.split("line ").skip(1).filter_map(|rest| rest.split('.').next()?.parse().ok()).collect::<BTreeSet<usize>>()
    };
    for number in 0..20 {
        log(if number % 4 < 2 { "127.0.0.1" } else { "::1" }, &format!("line {number}."));
    }
    wait::until("all lines are there", || servers.iter().map(|server| lines(server).len()).sum::<usize>() == 20);
    let [first, second] = &servers;
    assert_eq!(lines(first).union(&lines(second)).copied().collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
    assert_eq!((lines(first).len(), lines(second).len()), (10, 10), "in turn");
    assert_eq!((sockets_towards(first.address()), sockets_towards(second.address())), (1, 1));
    assert!(balancer.sessions(None).is_empty());

    balancer.remove(first.address());
    (20..30).for_each(|number| log("127.0.0.1", &format!("line {number}.")));
    wait::until("all come to the other", || lines(second).len() == 20);
    assert_eq!(lines(first).len(), 10);
    assert_nothing_dropped(&balancer);
}

#[test]
fn calls_of_sipp_are_all_answered() {
    let Some([sipp]) = installed(["sipp"]) else { return };
    let common = |command: &mut Command| {
        command.args(["-nostdin", "-max_socket", "500"]).env("TERM", "dumb");
    };
    let server = || {
        Program::start_datagrams(5060, |address, _| {
            let mut command = Command::new(&sipp);
            command.args(["-sn", "uas", "-i", &address.ip().to_string(), "-p", "5060"]);
            common(&mut command);
            command
        })
    };
    let servers = [server(), server(), server()];
    // A socket for each call, and a server for each socket.
    let balancer = balancer_of(&servers, "protocol = \"udp\"", "key = \"client-ip-port\"");
    let port = balancer.address().port();
    for (host, from) in [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1")] {
        let mut command = Command::new(&sipp);
        command.args(["-sn", "uac", &format!("{host}:{port}"), "-i", from, "-m", "40", "-r", "40", "-d", "50"]);
        command.args(["-t", "un", "-timeout", "50s", "-timeout_error"]).current_dir(balancer.directory());
        common(&mut command);
        // It fails if one call does.
        run(&mut command);
    }
    assert_eq!(balancer.service().total, 80);
    assert_nothing_dropped(&balancer);
    assert!(balancer.list().servers.iter().all(|server| server.total > 0), "the calls spread");
}

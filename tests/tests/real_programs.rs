//! Programs that everybody knows, through the balancer.

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tests::noise::Noise;
use tests::program::{Program, run, text};
use tests::programs::installed;
use tests::{Balancer, Setup, loopback, proxies};

fn nginx(program: &Path) -> Program {
    Program::start(8080, |address, directory| {
        let path = directory.display();
        let text = format!(
            "http {{
                 access_log {path}/access.log; sendfile on; keepalive_requests 1000000;
                 client_body_temp_path {path}/a; proxy_temp_path {path}/b; fastcgi_temp_path {path}/c;
                 uwsgi_temp_path {path}/d; scgi_temp_path {path}/e;
                 server {{
                     listen {address}; root {path}/www;
                     location = /name {{ return 200 \"{address}\"; }}
                 }}
             }}"
        );
        fs::create_dir(directory.join("www")).expect("made");
        proxies::nginx(program, directory, "", &text)
    })
}

fn balancer_of(programs: &[Program]) -> Balancer {
    // For IPv4 and IPv6 clients; each of the servers is IPv4.
    let balancer = Setup::new().listen(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0)).start();
    for program in programs {
        balancer.add(program.address());
    }
    balancer
}

#[test]
fn wrk_has_no_error_at_nginx_and_stays_at_one_server() {
    let Some([program, wrk, curl]) = installed(["nginx", "wrk", "curl"]) else { return };
    let servers = [nginx(&program), nginx(&program), nginx(&program)];
    let balancer = balancer_of(&servers);
    let port = balancer.address().port();
    let url = format!("http://127.0.0.1:{port}/name");
    let name = run(Command::new(&curl).args(["--silent", "--show-error", "--fail", &url]));
    let its = balancer.explain("127.0.0.1".parse().expect("an address")).server.expect("a server");
    assert_eq!(text(&name), its.to_string());

    let said = run(Command::new(wrk).args(["--threads", "2", "--connections", "50", "--duration", "2s", &url]));
    let said = text(&said);
    assert!(said.contains("requests in"), "{said}");
    assert!(!said.contains("Non-2xx") && !said.contains("Socket errors"), "{said}");
    balancer.wait_for_sessions(0);
    for server in &servers {
        let asked = fs::metadata(server.directory().join("access.log")).expect("a log").len() > 0;
        assert_eq!(asked, server.address() == its, "only {its} is asked, not {}", server.address());
    }

    // Each client at its own, by its address.
    for number in 0..30 {
        let from = loopback::client(number);
        let name = run(Command::new(&curl)
            .args(["--silent", "--show-error", "--fail", "--interface"])
            .arg(from.to_string())
            .arg(&url));
        assert_eq!(Some(text(&name).parse().expect("a name")), balancer.explain(from).server);
    }
}

#[test]
fn curl_has_a_large_file_whole_over_ipv4_and_ipv6() {
    let Some([program, curl]) = installed(["nginx", "curl"]) else { return };
    let server = nginx(&program);
    let bytes = Noise::new().bytes(50_000_000);
    fs::write(server.directory().join("www/file"), &bytes).expect("written");
    let servers = [server];
    let balancer = balancer_of(&servers);
    let port = balancer.address().port();
    for host in ["127.0.0.1", "[::1]"] {
        let to = balancer.file("file");
        let url = format!("http://{host}:{port}/file");
        run(Command::new(&curl).args(["--silent", "--show-error", "--fail", "--globoff", &url, "--output"]).arg(&to));
        assert!(fs::read(to).expect("a file") == bytes, "{host}");
    }
}

#[test]
fn redis_keeps_what_it_is_told_and_its_benchmark_has_no_error() {
    let Some([server, cli, benchmark]) = installed(["redis-server", "redis-cli", "redis-benchmark"]) else { return };
    let start = || {
        Program::start(6379, |address, directory| {
            let mut command = Command::new(&server);
            command.args(["--bind", &address.ip().to_string(), "--port", "6379", "--save", "", "--appendonly", "no"]);
            command.args(["--protected-mode", "no", "--dir"]).arg(directory);
            command
        })
    };
    let servers = [start(), start()];
    let balancer = balancer_of(&servers);
    let port = balancer.address().port().to_string();
    let its = balancer.explain("127.0.0.1".parse().expect("an address")).server.expect("a server");
    let ask = |host: &str, port: &str, words: &[&str]| {
        text(&run(Command::new(&cli).args(["-h", host, "-p", port]).args(words))).trim().to_owned()
    };
    assert_eq!(ask("127.0.0.1", &port, &["set", "key", "value"]), "OK");
    assert_eq!(ask("127.0.0.1", &port, &["get", "key"]), "value");
    for server in &servers {
        let kept = ask(&server.address().ip().to_string(), "6379", &["get", "key"]);
        assert_eq!(kept, if server.address() == its { "value" } else { "" }, "only {its} was told");
    }
    let mut command = Command::new(benchmark);
    command.args([
        "-h",
        "127.0.0.1",
        "-p",
        &port,
        "-n",
        "20000",
        "-c",
        "50",
        "-P",
        "4",
        "-t",
        "set,get,lrange_100",
        "--csv",
    ]);
    let output = run(&mut command);
    let said = text(&output);
    assert!(said.contains("\"SET\"") && said.contains("\"GET\"") && !said.to_lowercase().contains("error"), "{said}");
    balancer.wait_for_sessions(0);
}

#[test]
fn iperf3_moves_its_bytes_both_ways_over_many_connections_to_one_server() {
    let Some([iperf3]) = installed(["iperf3"]) else { return };
    let start = || {
        Program::start(5201, |address, _| {
            let mut command = Command::new(&iperf3);
            command.args(["--server", "--bind", &address.ip().to_string(), "--port", "5201"]);
            command
        })
    };
    // One test each: between two of them an iperf3 server is busy for a while, or does not listen.
    for direction in [&[][..], &["--reverse"]] {
        // Its control and its data connections have to come to the same one: with two, chance does not do it.
        let servers = [start(), start()];
        let balancer = balancer_of(&servers);
        let mut command = Command::new(&iperf3);
        command.args(["--client", "127.0.0.1", "--port", &balancer.address().port().to_string()]);
        let output = run(command.args(["--bytes", "64M", "--parallel", "4", "--json"]).args(direction));
        let report: Value = serde_json::from_str(text(&output)).expect("JSON");
        assert!(report.get("error").is_none(), "{report}");
        // What was on its way when the sender had sent everything is not counted by the receiver.
        let bytes = |sum: &str| report["end"][sum]["bytes"].as_u64().expect("a sum");
        assert!(bytes("sum_sent") >= 64 << 20 && bytes("sum_received") > 0, "{report}");
        balancer.wait_for_sessions(0);
        let used: Vec<_> = balancer.list().servers.into_iter().filter(|server| server.total > 0).collect();
        assert_eq!(used.len(), 1, "{used:?}");
    }
}

#[test]
fn socat_sends_everything_and_then_reads_the_answer() {
    let Some([socat, sha256sum]) = installed(["socat", "sha256sum"]) else { return };
    let server = Program::start(7000, |address, _| {
        let mut command = Command::new(&socat);
        let listen = format!("TCP-LISTEN:{},bind={},reuseaddr,fork", address.port(), address.ip());
        command.args(["-t", "60", &listen, "EXEC:sha256sum"]);
        command
    });
    let servers = [server];
    let balancer = balancer_of(&servers);
    let file = balancer.file("file");
    for size in [0, 1, 3_000_000] {
        fs::write(&file, Noise::new().bytes(size)).expect("written");
        let input = || fs::File::open(&file).expect("there");
        let expected = Command::new(&sha256sum).stdin(input()).output().expect("sha256sum runs");
        let to = format!("TCP:127.0.0.1:{}", balancer.address().port());
        let answer = Command::new(&socat).args(["-t", "60", "-", &to]).stdin(input()).output().expect("socat runs");
        assert_eq!(text(&answer), text(&expected), "{size} bytes");
    }
    balancer.wait_for_sessions(0);
}

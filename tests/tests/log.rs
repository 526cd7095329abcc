//! Lines of the log: programs can read them, and they say what was changed, and who asked for it.

use std::collections::BTreeMap;

use nix::sys::signal::Signal;
use tests::{Balancer, Client, Server, Setup, config, loopback, wait};

/// What a line says: the words, and the values by their keys.
#[derive(Debug)]
struct Line {
    level: String,
    words: String,
    values: BTreeMap<String, String>,
}

impl Line {
    /// Time, level, words, and then `key=value`, in quotes as JSON has them where it does not stand alone.
    fn parse(line: &str) -> Self {
        let (time, rest) = line.split_once(' ').expect("a time");
        assert!(time.ends_with('Z') && time.len() == 27, "{line}");
        let (level, mut rest) = rest.trim_start().split_once(' ').expect("a level");
        let (mut words, mut values) = (Vec::new(), BTreeMap::new());
        while !rest.is_empty() {
            let end = rest.find([' ', '=']).unwrap_or(rest.len());
            if !rest[end..].starts_with('=') {
                assert!(values.is_empty(), "words behind a value: {line}");
                words.push(rest[..end].to_owned());
                rest = rest[end..].trim_start();
                continue;
            }
            let (key, behind) = (&rest[..end], &rest[end + 1..]);
            let (value, length) = if behind.starts_with('"') {
                let mut texts = serde_json::Deserializer::from_str(behind).into_iter::<String>();
                let value = texts.next().expect("one").expect("a text in quotes");
                (value, texts.byte_offset())
            } else {
                let length = behind.find(' ').unwrap_or(behind.len());
                assert!(!behind[..length].contains(['"', '=']), "{line}");
                (behind[..length].to_owned(), length)
            };
            assert!(values.insert(key.to_owned(), value).is_none(), "{key} is there once: {line}");
            rest = &behind[length..];
            assert!(rest.is_empty() || rest.starts_with(' '), "{line}");
            rest = rest.trim_start();
        }
        Self { level: level.to_owned(), words: words.join(" "), values }
    }

    fn value(&self, key: &str) -> &str {
        self.values.get(key).unwrap_or_else(|| panic!("{key} is there: {self:?}"))
    }
}

/// The lines with these words.
fn lines(balancer: &Balancer, words: &str) -> Vec<Line> {
    balancer.log().lines().map(Line::parse).filter(|line| line.words == words).collect()
}

fn last(balancer: &Balancer, words: &str, count: usize) -> Line {
    wait::until(&format!("{count} times {words}"), || lines(balancer, words).len() >= count);
    lines(balancer, words).pop().expect("one")
}

#[test]
fn every_line_is_logfmt_whatever_is_in_its_values() {
    let odd = "a \"b\" = c\\\u{1b}[31m.sock";
    let server = Server::start();
    let balancer = Setup::new().socket(odd).options("--log-level debug").start();
    balancer.add_all([&server]);
    let client: Client = balancer.client();
    assert_eq!(client.server(), server.address());
    balancer.signal(Signal::SIGHUP);
    balancer.signal(Signal::SIGALRM);
    let started = last(&balancer, "balancer started", 1);
    assert_eq!((started.level.as_str(), started.value("socket")), ("INFO", balancer.socket().to_str().expect("text")));
    client.reset();
    let ended = last(&balancer, "session ended", 1);
    assert_eq!((ended.level.as_str(), ended.value("session")), ("DEBUG", "1"));
    assert_eq!(ended.value("server"), server.address().to_string());
    let odd = balancer.directory().join("c d.toml");
    assert!(!balancer.ctl(&format!("diff {}", odd.display())).status.success(), "it is not there");
    assert!(balancer.log().lines().all(|line| !line.contains(char::is_control)));
}

#[test]
fn a_change_is_logged_with_what_it_was_what_it_is_and_who_asked() {
    let server = Server::start();
    let listen = loopback::free();
    let file =
        |weight| config::service("web", listen, "web") + &config::weighted("web", "", [(server.address(), weight)]);
    let mut balancer = Setup::new().config(&file(1)).start();
    let place = server.address();
    let own = nix::unistd::geteuid().to_string();
    for (number, (command, changed)) in [
        (
            "set SERVER --weight 5 --state drain --pool web",
            "server SERVER of pool web: weight 1 -> 5; server SERVER of pool web: state ready -> drain",
        ),
        ("pool set web --policy round-robin", "pool web: policy consistent-hash -> round-robin"),
        ("pool add api", "pool api: new"),
        ("add 10.0.0.1 80 --pool api", "server 10.0.0.1:80 of pool api: new"),
        ("remove 10.0.0.1 80 --pool api", "server 10.0.0.1:80 of pool api: gone"),
        ("pool remove api", "pool api: gone"),
    ]
    .into_iter()
    .enumerate()
    {
        let command = command.replace("SERVER", &format!("{} {}", place.ip(), place.port()));
        let output = balancer.ctl(&command);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let line = last(&balancer, "carried out", number + 1);
        assert_eq!(line.value("changed"), changed.replace("SERVER", &place.to_string()));
        assert_eq!((line.value("uid"), line.value("program")), (own.as_str(), "balancerctl"));
        assert_ne!(line.value("pid").parse::<u32>().expect("a number"), balancer.pid());
    }
    // A file is a change, too.
    balancer.configure(&file(7));
    assert!(balancer.ctl("reload").status.success());
    let read = last(&balancer, "configuration file read", 1);
    assert_eq!((read.value("changes"), read.value("by"), read.value("program")), ("1", "command", "balancerctl"));
    assert_eq!(read.value("changed"), format!("server {place} of pool web: weight 5 -> 7"));
    balancer.signal(Signal::SIGHUP);
    assert_eq!(last(&balancer, "configuration file read", 2).value("by"), "signal");
    let told = last(&balancer, "SIGHUP: the configuration file is read again", 1);
    assert_eq!((told.value("uid"), told.value("pid")), (own.as_str(), std::process::id().to_string().as_str()));
    assert!(balancer.ctl("stop").status.success());
    assert_eq!(last(&balancer, "told to stop", 1).value("program"), "balancerctl");
    assert_eq!(balancer.wait_for_end().code(), Some(0));
}

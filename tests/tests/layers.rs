//! The layers: reads the sources of the workspace, and fails on an import that breaks the architecture.
//!
//! Who may use whom stands in ARCHITECTURE.md. What is only for tests (`mod tests`) may use anything.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const MEMBERS: [&str; 6] = ["ring", "wire", "balancerd", "balancerctl", "tests", "bench"];

/// A source file.
#[derive(Debug)]
struct Source {
    /// Its path below the workspace.
    path: String,
    /// The module that it is: `["net", "tcp", "pipe"]`, and nothing for `main.rs` and `lib.rs`.
    module: Vec<String>,
    /// What is neither a comment, nor a text, nor for tests only.
    code: String,
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_path_buf()
}

fn read(path: &str) -> String {
    fs::read_to_string(workspace().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The sources below `MEMBER/src`.
fn sources(member: &str) -> Vec<Source> {
    let root = workspace().join(member).join("src");
    let (mut directories, mut found) = (vec![root.clone()], Vec::new());
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
                found.push(Source::read(&root, &path));
            }
        }
    }
    assert!(!found.is_empty(), "{member} has sources");
    found
}

impl Source {
    fn read(root: &Path, path: &Path) -> Self {
        let below = path.strip_prefix(root).expect("below the root").with_extension("");
        let mut module: Vec<String> = below.iter().map(|part| part.to_str().expect("a name").to_owned()).collect();
        if matches!(module.last().map(String::as_str), Some("mod" | "main" | "lib")) {
            module.pop();
        }
        let code = bare(&fs::read_to_string(path).expect("a source"));
        let code = code.split("#[cfg(test)]\nmod tests {").next().expect("the first part").to_owned();
        let path = path.strip_prefix(workspace()).expect("below the workspace").display().to_string();
        Self { path, module, code }
    }

    /// Whether a path begins with `name`, as in `name::x` and `use name;`.
    fn uses(&self, name: &str) -> bool {
        words(&self.code).any(|(word, before, behind)| {
            word == name && !before.ends_with("::") && (behind.starts_with("::") || before.trim_end().ends_with("use"))
        })
    }

    fn has_word(&self, name: &str) -> bool {
        words(&self.code).any(|(word, ..)| word == name)
    }

    /// What of its own crate it names, from the root: `crate::net::conn::Conn` is `["net", "conn", "Conn"]`.
    fn references(&self) -> BTreeSet<Vec<String>> {
        let mut all = BTreeSet::new();
        for (word, before, behind) in words(&self.code) {
            let begins = !before.ends_with("::") && behind.starts_with("::");
            let from = match word {
                "crate" if begins => Vec::new(),
                "self" if begins => self.module.clone(),
                "super" if begins => self.module[..self.module.len() - 1].to_vec(),
                _ => continue,
            };
            tree(&behind[2..], &from, &mut all);
        }
        all
    }
}

/// The identifiers of a source, with what stands before and behind each.
fn words(code: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + code[at..].find(is_part)?;
        let end = code[start..].find(|c| !is_part(c)).map_or(code.len(), |length| start + length);
        at = end;
        Some((&code[start..end], &code[..start], &code[end..]))
    })
}

/// Adds the paths of a use tree, or of a plain path, that goes on from `from`. Gives what stands behind it.
fn tree<'a>(text: &'a str, from: &[String], all: &mut BTreeSet<Vec<String>>) -> &'a str {
    let mut text = text.trim_start();
    if let Some(mut inner) = text.strip_prefix('{') {
        loop {
            inner = inner.trim_start().trim_start_matches(',').trim_start();
            match inner.strip_prefix('}') {
                Some(behind) => return behind,
                None => inner = tree(inner, from, all),
            }
        }
    }
    let length = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '*')).unwrap_or(text.len());
    assert!(length > 0, "a path goes on: {text:.40}");
    let (name, mut path) = (&text[..length], from.to_vec());
    text = &text[length..];
    match name {
        "self" => {}
        "super" => drop(path.pop()),
        name => path.push(name.to_owned()),
    }
    match text.strip_prefix("::") {
        // The turbofish ends a path.
        Some(behind) if !behind.starts_with('<') => tree(behind, &path, all),
        _ => {
            all.insert(path);
            let renamed = text.trim_start().strip_prefix("as ");
            renamed.map_or(text, |behind| behind.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'))
        }
    }
}

/// The code without comments and without what stands in quotes.
fn bare(text: &str) -> String {
    let (mut bare, mut rest) = (String::new(), text);
    while let Some(c) = rest.chars().next() {
        let raw = rest.strip_prefix('r').map(|behind| behind.trim_start_matches('#'));
        let is_raw =
            raw.is_some_and(|behind| behind.starts_with('"')) && !bare.ends_with(|c: char| c.is_alphanumeric());
        if rest.starts_with("//") {
            rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
        } else if rest.starts_with("/*") {
            rest = rest.split_once("*/").map_or("", |(_, behind)| behind);
        } else if is_raw {
            let hashes = "#".repeat(rest.len() - 1 - raw.map_or(0, str::len));
            let inner = &rest[2 + hashes.len()..];
            rest = inner.split_once(&format!("\"{hashes}")).map_or("", |(_, behind)| behind);
            bare.push_str("\"\"");
        } else if c == '"' {
            rest = &rest[1..];
            while let Some(inner) = rest.chars().next() {
                rest = &rest[inner.len_utf8()..];
                match inner {
                    '\\' => rest = &rest[rest.chars().next().map_or(0, char::len_utf8)..],
                    '"' => break,
                    _ => {}
                }
            }
            bare.push_str("\"\"");
        } else if let Some(behind) = ["'\"'", "'\\\"'", "'\\''"].iter().find_map(|quote| rest.strip_prefix(quote)) {
            rest = behind;
        } else {
            bare.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    bare
}

#[test]
fn paths_are_found_in_every_form() {
    let code = r##"
        use crate::a::B; // crate::comment
        use super::{c, d::{E as F, self}, G};
        use self::inner::*;
        const X: &str = "crate::text \" //"; const Y: char = '"';
        const R: &str = r#"crate::raw ""#;
        fn f() -> crate::h::I<'static> { super::super::j::k::<u8>(self.field, crate::l()) }
    "##;
    let source = Source { path: "x".into(), module: vec!["one".into(), "two".into()], code: bare(code) };
    let found: Vec<String> = source.references().iter().map(|path| path.join("::")).collect();
    assert_eq!(found, ["a::B", "h::I", "j::k", "l", "one::G", "one::c", "one::d", "one::d::E", "one::two::inner::*"]);
    let mio = |code: &str| Source { path: "x".into(), module: Vec::new(), code: bare(code) }.uses("mio");
    assert!(mio("use mio::Poll;") && mio("use mio;") && mio("fn f(x: mio::Token)"));
    assert!(!mio("/* mio::Poll */") && !mio("\"mio::Poll\"") && !mio("x.mio") && !mio("other::mio::X"));
}

#[test]
fn members_depend_on_each_other_as_they_may() {
    for (member, allowed) in [
        ("ring", &[][..]),
        ("wire", &[]),
        ("balancerd", &["ring", "wire"]),
        ("balancerctl", &["ring", "wire"]),
        ("tests", &["wire"]),
    ] {
        let manifest = read(&format!("{member}/Cargo.toml"));
        let entries = manifest.lines().skip_while(|line| !line.contains("dependencies")).filter_map(|line| {
            let name: &str = line.split(['.', ' ', '=']).next()?;
            MEMBERS.into_iter().find(|other| *other == name)
        });
        for entry in entries {
            assert!(allowed.contains(&entry), "{member} depends on {entry}");
        }
        for source in sources(member) {
            for other in MEMBERS.into_iter().filter(|other| *other != member && !allowed.contains(other)) {
                // A module may have the name of a member: `ring::ring`, `tests`.
                let own = source.module.len() <= 1 && source.code.contains(&format!("mod {other};"));
                assert!(own || !source.uses(other), "{} uses {other}", source.path);
            }
        }
    }
}

#[test]
fn one_file_knows_each_crate_that_is_to_be_replaceable() {
    for (name, home) in [("bincode", "wire/src/encoding.rs"), ("daemonize", "balancerd/src/background.rs")] {
        for source in MEMBERS.into_iter().flat_map(sources) {
            assert_eq!(source.uses(name), source.path == home, "{} and {name}", source.path);
        }
    }
    // The load of the benchmarks has a loop of its own.
    for source in MEMBERS.into_iter().filter(|member| *member != "bench").flat_map(sources) {
        let may = source.path.starts_with("balancerd/src/event/");
        assert!(may || !source.uses("mio"), "{} uses mio", source.path);
    }
}

#[test]
fn the_parts_of_the_daemon_use_only_those_below_them() {
    for (part, allowed) in [("event", &["event"][..]), ("model", &["model"]), ("net", &["net", "event", "model"])] {
        for source in
            sources("balancerd").iter().filter(|source| source.module.first().is_some_and(|first| first == part))
        {
            for path in source.references() {
                let top = path.first().map_or("the root", String::as_str);
                assert!(allowed.contains(&top), "{} uses {}", source.path, path.join("::"));
            }
        }
    }
}

#[test]
fn the_files_of_net_share_only_what_is_for_all_of_them() {
    let sources = sources("balancerd");
    let net: Vec<_> =
        sources.iter().filter(|source| source.module.first().is_some_and(|first| first == "net")).collect();
    let parts: BTreeSet<&String> = net.iter().filter_map(|source| source.module.get(1)).collect();
    assert!(parts.len() >= 4, "{parts:?}");
    for source in net {
        for path in source.references().iter().filter(|path| path.first().is_some_and(|first| first == "net")) {
            let Some(other) = path.get(1).filter(|name| parts.contains(name)) else { continue };
            let shared =
                ["asker", "conn", "connect", "listen", "numbers", "options", "proxy"].contains(&other.as_str());
            let may = shared || source.module.get(1) == Some(other);
            assert!(may, "{} uses {}", source.path, path.join("::"));
        }
    }
}

#[test]
fn only_the_options_of_sockets_are_unsafe() {
    for source in MEMBERS.iter().flat_map(|member| sources(member)) {
        let may = source.path == "balancerd/src/net/options.rs";
        assert!(may || !source.has_word("unsafe"), "{} is unsafe", source.path);
    }
}

#[test]
fn only_main_uses_the_daemon() {
    for source in sources("balancerd").iter().filter(|source| !source.module.is_empty() && source.module[0] != "daemon")
    {
        let uses = source.references().iter().any(|path| path.first().is_some_and(|first| first == "daemon"));
        assert!(!uses, "{} uses the daemon", source.path);
    }
}

#[test]
fn the_model_has_no_sockets_no_clock_no_randomness_and_no_log() {
    let forbidden = [
        "TcpListener",
        "TcpStream",
        "UdpSocket",
        "UnixStream",
        "UnixListener",
        "fs",
        "io",
        "thread",
        "now",
        "SystemTime",
        "RandomState",
        "println",
        "eprintln",
    ];
    for source in
        sources("balancerd").iter().filter(|source| source.module.first().is_some_and(|first| first == "model"))
    {
        for name in ["mio", "nix", "tracing", "rand", "anyhow"] {
            assert!(!source.uses(name), "{} uses {name}", source.path);
        }
        for name in forbidden {
            // The time is an argument, and it is called `now`: what is not there is a call of that name.
            let there = if name == "now" { source.code.contains("::now(") } else { source.has_word(name) };
            assert!(!there, "{} has {name}", source.path);
        }
    }
}

/// Level-triggered are only those that are registered there; mio registers edge-triggered.
#[test]
fn rule_1_only_the_poller_registers_anything_with_epoll() {
    let (poller, waker) = ("balancerd/src/event/poller.rs", "balancerd/src/event/waker.rs");
    // The load of the benchmarks has a loop of its own.
    for source in MEMBERS.into_iter().filter(|member| *member != "bench").flat_map(sources) {
        for name in ["epoll", "Epoll", "EpollEvent", "EpollFlags", "Registry"] {
            assert_eq!(source.has_word(name), source.path == poller, "{} and {name}", source.path);
        }
        for name in ["epoll_ctl", "SourceFd", "EPOLLET"] {
            assert!(!source.has_word(name), "{} has {name}", source.path);
        }
        for call in [".register(", ".reregister("] {
            assert!(!source.code.contains(call), "{} has {call}", source.path);
        }
        // mio's waker registers itself, with a registry that the poller lends to it alone.
        let may = source.path == poller || source.path == waker;
        assert_eq!(source.has_word("registry"), may, "{} and the registry", source.path);
        assert_eq!(source.code.contains("mio::Waker::new("), source.path == waker, "{} and mio's waker", source.path);
    }
}

#[test]
fn the_clock_is_read_in_one_place() {
    for source in ["ring", "wire", "balancerd", "balancerctl"].into_iter().flat_map(sources) {
        let reads = source.code.contains("Instant::now") || source.code.contains("SystemTime::now");
        assert_eq!(reads, source.path == "balancerd/src/event/clock.rs", "{}", source.path);
    }
}

/// The time of day jumps when somebody sets it; deadlines, ages and intervals are of the clock that never does. The log
/// alone writes it down, as text with which nobody can count.
#[test]
fn the_time_of_day_is_never_asked_for() {
    for source in ["ring", "wire", "balancerd"].into_iter().flat_map(sources) {
        for name in ["SystemTime", "UNIX_EPOCH", "clock_gettime", "ClockId", "gettimeofday", "TimerFd"] {
            assert!(!source.has_word(name), "{} has {name}", source.path);
        }
        assert_eq!(source.has_word("format_time"), source.path == "balancerd/src/log.rs", "{}", source.path);
    }
}

#[test]
fn ownership_is_one_tree() {
    for source in ["ring", "wire", "balancerd"].into_iter().flat_map(sources) {
        for name in ["Rc", "RefCell", "thread_local"] {
            assert!(!source.has_word(name), "{} has {name}", source.path);
        }
        assert!(!source.code.contains("static mut"), "{} has state in a static", source.path);
    }
}

/// A limit that gets another name, or goes, takes its line of the list along.
#[test]
fn limits_are_called_in_the_documents_as_in_the_sources() {
    let is_constant =
        |name: &&str| name.len() > 1 && name.chars().all(|c| c.is_ascii_uppercase() || "_0123456789".contains(c));
    let document = read("docs/threat-model.md");
    let named: BTreeSet<&str> = document
        .lines()
        .filter(|line| line.starts_with("| "))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .filter(is_constant)
        .collect();
    assert!(named.len() > 50, "{named:?}");
    let sources: Vec<Source> = ["ring", "wire", "balancerd"].into_iter().flat_map(sources).collect();
    for name in named {
        let is_there = sources.iter().any(|source| source.code.contains(&format!("const {name}:")));
        assert!(is_there, "docs/threat-model.md has {name}, the sources do not");
    }
}

#[test]
fn the_architecture_names_every_file_of_tests() {
    let document = read("ARCHITECTURE.md");
    for entry in fs::read_dir(workspace().join("tests/tests")).expect("a directory") {
        let name = entry.expect("an entry").file_name().into_string().expect("a name");
        assert!(document.contains(&format!("\n| `{name}` | ")), "{name} is in no line of ARCHITECTURE.md");
    }
}

#[test]
fn every_file_says_what_it_is() {
    for source in MEMBERS.into_iter().flat_map(sources) {
        assert!(read(&source.path).starts_with("//! "), "{} opens with what it is", source.path);
    }
}

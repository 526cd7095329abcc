//! Edited texts say what they should, and what nothing was changed on is as it was.

use proptest::prelude::*;
use wire::dns::{DnsCheck, RecordType};
use wire::health::{CheckKind, CheckSettings, CheckText, HttpCheck};
use wire::settings::{AdminState, LoadFactor, Policy, PoolSettings, ServerSettings};

use super::*;
use any::any_settings;
use read::read;
use render::{Owner, Style, any_style, render};

mod any;
mod read;
mod render;

fn is_untouched(owner: &Owner, changes: &[Difference]) -> bool {
    let touches = |subject: &Subject| match owner {
        Owner::Nobody => false,
        Owner::Of(owner @ Subject::Server { pool, .. }) => {
            let pool_is_gone =
                changes.iter().any(|one| one.key.is_none() && one.subject == Subject::Pool { pool: pool.clone() });
            subject == owner || pool_is_gone
        }
        Owner::Of(owner) => subject == owner,
        Owner::AllOf(name) => {
            matches!(subject, Subject::Pool { pool } | Subject::Server { pool, .. } if pool == name)
        }
    };
    !changes.iter().any(|one| touches(&one.subject))
}

fn check(said: &Settings, now: &Settings, styles: &[Style], newline: &str) {
    let rendered = render(said, styles);
    let text = rendered.whole(newline);
    assert_eq!(&read(&text), said, "the test renders what it should:\n{text}");
    let edited = edit(&text, said, now).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(&read(&edited), now, "from:\n{text}\nto:\n{edited}");
    let changes = differences(said, now);
    let mut lines = edited.split_inclusive(newline);
    for (line, owner) in &rendered.0 {
        if owner.as_ref().is_some_and(|owner| is_untouched(owner, &changes)) {
            let line = format!("{line}{newline}");
            assert!(lines.any(|other| other == line), "{line:?} is gone from:\n{text}\nto:\n{edited}");
        }
    }
    if changes.is_empty() {
        assert_eq!(edited, text);
    }
}

proptest! {
    #[test]
    fn every_text_comes_to_say_what_holds(
        said in any_settings(),
        now in any_settings(),
        styles in prop::collection::vec(any_style(), 4),
        windows in any::<bool>(),
    ) {
        check(&said, &now, &styles, if windows { "\r\n" } else { "\n" });
    }

    #[test]
    fn a_few_changes_leave_the_rest(
        said in any_settings(),
        other in any_settings(),
        styles in prop::collection::vec(any_style(), 4),
        choice in 0..4,
    ) {
        let mut now = said.clone();
        match choice {
            0 => now.pools = other.pools,
            1 => now.services = other.services,
            2 => now.max_sessions = other.max_sessions,
            _ => {
                for (pool, other) in now.pools.values_mut().zip(other.pools.into_values()) {
                    pool.servers = other.servers;
                }
            }
        }
        check(&said, &now, &styles, "\n");
    }
}

const FILE: &str = "\
# The web, owned by Ada.

[service.web]
listen = \"0.0.0.0:80\"
pool = \"web\"          # see below

[pool.web]
# policy = \"round-robin\"
servers = [
    # rack 1
    { address = \"10.0.0.1:80\", weight = 2 },  # the big one
    # rack 2
    { address = \"10.0.0.2:80\" },
]
# That is all.
";

#[test]
fn a_person_recognises_the_file() {
    let said = read(FILE);
    let mut now = said.clone();
    let pool = now.pools.get_mut("web").expect("a pool");
    pool.max_load = LoadFactor::from_thousandths(1250);
    pool.servers.first_entry().expect("a server").get_mut().weight = 3;
    pool.servers.pop_last();
    let settings = ServerSettings { state: AdminState::Drain, ..ServerSettings::default() };
    pool.servers.insert("10.0.0.3:80".parse().expect("an address"), settings);
    let expected = "\
# The web, owned by Ada.

[service.web]
listen = \"0.0.0.0:80\"
pool = \"web\"          # see below

[pool.web]
# policy = \"round-robin\"
servers = [
    # rack 1
    { address = \"10.0.0.1:80\", weight = 3 },  # the big one
    { address = \"10.0.0.3:80\", state = \"drain\" },
]
max_load = 1.25
# That is all.
";
    assert_eq!(edit(FILE, &said, &now).expect("it can be edited"), expected);
}

#[test]
fn another_kind_of_check_takes_the_keys_of_the_old_one_along() {
    let text = "\
[pool.web]
check = \"send\"
check_send_hex = \"50 49 4e 47\"  # PING
check_interval = \"5s\"
servers = []
";
    let said = read(text);
    let with = |kind: CheckKind| {
        let mut now = said.clone();
        let check = &mut now.pools.get_mut("web").expect("a pool").health.check;
        // What goes without checks is what nobody asks for.
        *check =
            if kind == CheckKind::None { CheckSettings::default() } else { CheckSettings { kind, ..check.clone() } };
        edit(text, &said, &now).expect("it can be edited")
    };
    assert_eq!(with(CheckKind::None), "[pool.web]\ncheck = \"none\"\nservers = []\n");
    let http = HttpCheck { path: "/health".to_owned(), ..HttpCheck::default() };
    assert_eq!(
        with(CheckKind::Http(http)),
        "[pool.web]\ncheck = \"http\"\ncheck_interval = \"5s\"\nservers = []\ncheck_path = \"/health\"\n"
    );
    let text = |text: &[u8]| CheckText::new(text).expect("short");
    let send = |send: &[u8], expect: &[u8]| CheckKind::Send { send: text(send), expect: text(expect) };
    assert_eq!(
        with(send(b"PONG\r\n", b"\0")),
        "[pool.web]\ncheck = \"send\"\ncheck_interval = \"5s\"\nservers = []\ncheck_send = \"PONG\\r\\n\"\n\
         check_expect_hex = \"00\"\n",
        "text takes the place of digits"
    );
    let tcp = "[pool.web]\ncheck = \"tcp\"\nservers = []\n";
    let mut now = read(tcp);
    now.pools.get_mut("web").expect("a pool").health.check.kind =
        CheckKind::Udp { send: CheckText::default(), expect: CheckText::default() };
    assert_eq!(
        edit(tcp, &read(tcp), &now).expect("it can be edited"),
        "[pool.web]\ncheck = \"udp\"\nservers = []\ncheck_send = \"\"\n"
    );
    assert_eq!(
        with(CheckKind::Udp { send: CheckText::default(), expect: CheckText::default() }),
        "[pool.web]\ncheck = \"udp\"\ncheck_interval = \"5s\"\nservers = []\ncheck_send = \"\"\n",
        "what would be missing is said"
    );
    assert_eq!(
        with(CheckKind::Dns(DnsCheck { records: RecordType::A, ..DnsCheck::default() })),
        "[pool.web]\ncheck = \"dns\"\ncheck_interval = \"5s\"\nservers = []\ncheck_dns_type = \"A\"\n"
    );
}

#[test]
fn a_file_can_be_made_from_nothing() {
    let now = read(FILE);
    let expected = "\
[pool.web]
policy = \"consistent-hash\"
servers = [
    { address = \"10.0.0.1:80\", weight = 2 },
    { address = \"10.0.0.2:80\" },
]

[service.web]
listen = \"0.0.0.0:80\"
protocol = \"tcp\"
pool = \"web\"
";
    assert_eq!(edit("", &Settings::default(), &now).expect("it can be edited"), expected);
}

#[test]
fn tables_between_braces_stay_between_braces() {
    let text = "pool = { a = { servers = [] } }\nservice = {}";
    let said = read(text);
    let mut now =
        read("[pool.b]\nservers = [{ address = \"10.0.0.1:80\" }]\n[service.x]\nlisten = \"[::]:80\"\npool = \"b\"");
    now.pools.insert("a".to_owned(), PoolSettings { slow_start_ms: 1000, ..PoolSettings::default() });
    let edited = edit(text, &said, &now).expect("it can be edited");
    assert_eq!(read(&edited), now);
    assert_eq!(
        edited,
        "pool = { a = { servers = [], slow_start = \"1s\" }, b = { policy = \"consistent-hash\", servers = \
         [{ address = \"10.0.0.1:80\" }] } }\n\
         service = { x = { listen = \"[::]:80\", protocol = \"tcp\", pool = \"b\" } }"
    );
}

#[test]
fn several_keys_come_between_empty_braces() {
    let mut now = read("pool = { a = {} }");
    let pool = now.pools.get_mut("a").expect("a pool");
    pool.slow_start_ms = 1000;
    pool.policy = Policy::RoundRobin;
    pool.servers.insert("10.0.0.1:80".parse().expect("an address"), ServerSettings::default());
    let edited = edit("pool = { a = {} }", &read("pool = { a = {} }"), &now).expect("it can be edited");
    let servers = "servers = [{ address = \"10.0.0.1:80\" }]";
    assert_eq!(edited, format!("pool = {{ a = {{ policy = \"round-robin\", slow_start = \"1s\", {servers} }} }}"));
}

#[test]
fn a_pool_outlives_the_last_line_of_its_own() {
    let text = "[[pool.a.servers]]\naddress = \"10.0.0.1:80\"\n";
    let said = read(text);
    let mut now = said.clone();
    let pool = now.pools.get_mut("a").expect("a pool");
    pool.servers.clear();
    assert_eq!(edit(text, &said, &now).expect("it can be edited"), "[pool.a]\n");
    let pool = now.pools.get_mut("a").expect("a pool");
    pool.slow_start_ms = 1000;
    pool.servers.insert("10.0.0.2:80".parse().expect("an address"), ServerSettings::default());
    assert_eq!(
        edit(text, &said, &now).expect("it can be edited"),
        "[pool.a]\nslow_start = \"1s\"\nservers = [\n    { address = \"10.0.0.2:80\" },\n]\n"
    );
}

#[test]
fn what_is_not_there_is_named() {
    let (said, now) = (read(FILE), Settings::default());
    let error = edit("[pool]\n", &said, &now).expect_err("it is not there");
    assert_eq!(error.to_string(), "pool web is not found in it");
    assert!(matches!(edit("a = = b", &said, &now), Err(EditError::NoToml(_))));
}

//! The options of `pool add` and `pool set` about the health of servers.

use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValuesParser, RangedU64ValueParser};
use wire::control::PoolValues;
use wire::dns::{DnsCheck, RecordType};
use wire::health::{
    CheckKind, CheckText, HttpCheck, InitialHealth, MAX_CHECK_TEXT, MAX_EJECT_FAILURES, MAX_IN_A_ROW, OnDown,
    StatusRange, WhenAllDown,
};

use super::{OrNone, milliseconds, one_of};

/// How it is found out which servers are up, and what follows.
#[derive(Debug, Args)]
#[command(next_help_heading = "Health")]
pub(crate) struct HealthArgs {
    /// How servers are checked: not at all, by a connect, by sending and expecting something, by HTTP, by a datagram, or
    /// by DNS
    #[arg(long, value_name = "KIND", group = "values", value_parser = PossibleValuesParser::new(CheckKind::NAMES))]
    check: Option<String>,

    /// What is sent, with --check send or udp, where it may be empty
    #[arg(long, value_name = "TEXT", requires = "check", value_parser = datagram)]
    check_send: Option<CheckText>,

    /// The same in hexadecimal digits, with or without blanks
    #[arg(long, value_name = "DIGITS", requires = "check", conflicts_with = "check_send", value_parser = digits)]
    check_send_hex: Option<CheckText>,

    /// What must be in what comes, with --check send or udp
    #[arg(long, value_name = "TEXT", requires = "check", value_parser = text)]
    check_expect: Option<CheckText>,

    /// The same in hexadecimal digits, with or without blanks
    #[arg(long, value_name = "DIGITS", requires = "check", conflicts_with = "check_expect", value_parser = digits)]
    check_expect_hex: Option<CheckText>,

    /// The method, with --check http; GET without this
    #[arg(long, value_name = "METHOD", requires = "check", value_parser = method)]
    check_method: Option<String>,

    /// The path, with --check http; / without this
    #[arg(long, value_name = "PATH", requires = "check", value_parser = path)]
    check_path: Option<String>,

    /// The host that is asked for, with --check http; the server's address without this
    #[arg(long, value_name = "HOST", requires = "check", value_parser = host)]
    check_host: Option<String>,

    /// The statuses that pass, with --check http, such as 200, 2xx or 200,204-206; 200-399 without this
    #[arg(long, value_name = "STATUS", requires = "check", value_delimiter = ',')]
    check_status: Vec<StatusRange>,

    /// The name that is asked for, with --check dns; . without this
    #[arg(long, value_name = "NAME", requires = "check", value_parser = domain)]
    check_dns_name: Option<String>,

    /// The type of records that is asked for, with --check dns; NS without this
    #[arg(long, value_name = "TYPE", requires = "check", value_parser = one_of(&RecordType::ALL, RecordType::name))]
    check_dns_type: Option<RecordType>,

    /// The time from one check to the next, from 10ms to 1d
    #[arg(long, value_name = "TIME", group = "values", value_parser = humantime::parse_duration)]
    check_interval: Option<Duration>,

    /// The same while results say something else than what holds, or none for the same
    #[arg(long, value_name = "TIME|none", group = "values", value_parser = time_or_none)]
    check_undecided_interval: Option<OrNone<Duration>>,

    /// The same while a server is down, or none for the same
    #[arg(long, value_name = "TIME|none", group = "values", value_parser = time_or_none)]
    check_down_interval: Option<OrNone<Duration>>,

    /// How long a check may take, from 10ms to 1h
    #[arg(long, value_name = "TIME", group = "values", value_parser = humantime::parse_duration)]
    check_timeout: Option<Duration>,

    /// Passes in a row that bring a server up
    #[arg(long, value_name = "N", group = "values", value_parser = in_a_row)]
    check_rise: Option<NonZeroU32>,

    /// Failures in a row that take a server down
    #[arg(long, value_name = "N", group = "values", value_parser = in_a_row)]
    check_fall: Option<NonZeroU32>,

    /// The port that is checked, or none for that of the server
    #[arg(long, value_name = "PORT|none", group = "values")]
    check_port: Option<OrNone<NonZeroU16>>,

    /// Whether a new server serves at once, or after its first pass
    #[arg(long, group = "values", value_parser = one_of(&InitialHealth::ALL, InitialHealth::name))]
    check_initial: Option<InitialHealth>,

    /// Failed connects, and resets before the first byte, in a row that leave a server out for a while; 0 is never
    #[arg(
        long,
        value_name = "N",
        group = "values",
        value_parser = RangedU64ValueParser::<u32>::new().range(0..=u64::from(MAX_EJECT_FAILURES))
    )]
    eject_failures: Option<u32>,

    /// For how long at first; twice as long each time that it fails again at once
    #[arg(long, value_name = "TIME", group = "values", value_parser = humantime::parse_duration)]
    eject_time: Option<Duration>,

    /// For how long at most
    #[arg(long, value_name = "TIME", group = "values", value_parser = humantime::parse_duration)]
    eject_max_time: Option<Duration>,

    /// The part of the servers that may be out at most, 0 to 100
    #[arg(long, value_name = "PERCENT", group = "values", value_parser = clap::value_parser!(u8).range(0..=100))]
    eject_max_percent: Option<u8>,

    /// What clients get when no server is up: nothing, or any server that is ready
    #[arg(long, group = "values", value_parser = one_of(&WhenAllDown::ALL, WhenAllDown::name))]
    when_all_down: Option<WhenAllDown>,

    /// What becomes of the sessions of a server that checks take down
    #[arg(long, group = "values", value_parser = one_of(&OnDown::ALL, OnDown::name))]
    on_down: Option<OnDown>,
}

/// Options of health that do not go together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoHealth {
    /// What is sent or expected has no meaning.
    #[error("--check-send and --check-expect go with --check send and --check udp alone")]
    NotSend,
    /// What is asked for by HTTP has no meaning.
    #[error("--check-method, --check-path, --check-host and --check-status go with --check http alone")]
    NotHttp,
    /// What is asked for by DNS has no meaning.
    #[error("--check-dns-name and --check-dns-type go with --check dns alone")]
    NotDns,
    /// A check that would do nothing.
    #[error("--check send needs --check-send, --check-expect or both, and neither is empty")]
    Nothing,
    /// A check that is not said what to send.
    #[error("--check udp needs --check-send, which may be empty")]
    NoDatagram,
}

impl HealthArgs {
    /// The values that are said, all others as they are.
    ///
    /// # Errors
    /// When options do not go together.
    pub(super) fn values(&self) -> Result<PoolValues, NoHealth> {
        Ok(PoolValues {
            check: self.kind()?,
            check_interval_ms: self.check_interval.map(milliseconds),
            check_undecided_interval_ms: self.check_undecided_interval.map(or_none),
            check_down_interval_ms: self.check_down_interval.map(or_none),
            check_timeout_ms: self.check_timeout.map(milliseconds),
            check_rise: self.check_rise,
            check_fall: self.check_fall,
            check_port: self.check_port.map(|OrNone(port)| port),
            check_initial: self.check_initial,
            eject_failures: self.eject_failures,
            eject_time_ms: self.eject_time.map(milliseconds),
            eject_max_time_ms: self.eject_max_time.map(milliseconds),
            eject_max_percent: self.eject_max_percent,
            when_all_down: self.when_all_down,
            on_down: self.on_down,
            ..PoolValues::default()
        })
    }

    fn kind(&self) -> Result<Option<CheckKind>, NoHealth> {
        let send = self.check_send.as_ref().or(self.check_send_hex.as_ref());
        let expect = self.check_expect.as_ref().or(self.check_expect_hex.as_ref());
        let has_texts = send.is_some() || expect.is_some();
        let has_http = self.check_method.is_some()
            || self.check_path.is_some()
            || self.check_host.is_some()
            || !self.check_status.is_empty();
        let has_dns = self.check_dns_name.is_some() || self.check_dns_type.is_some();
        let texts = || (send.cloned().unwrap_or_default(), expect.cloned().unwrap_or_default());
        let kind = match self.check.as_deref() {
            Some("send") if !has_texts || send.is_some_and(CheckText::is_empty) => return Err(NoHealth::Nothing),
            Some("udp") if send.is_none() => return Err(NoHealth::NoDatagram),
            Some(kind @ ("send" | "udp")) => {
                let (send, expect) = texts();
                if kind == "udp" { CheckKind::Udp { send, expect } } else { CheckKind::Send { send, expect } }
            }
            _ if has_texts => return Err(NoHealth::NotSend),
            Some("http") => CheckKind::Http(self.http()),
            Some("dns") => CheckKind::Dns(self.dns()),
            Some("tcp") => CheckKind::Tcp,
            Some(_) => CheckKind::None,
            // Options of a kind need one.
            None => return Ok(None),
        };
        if has_http && !matches!(kind, CheckKind::Http(_)) {
            return Err(NoHealth::NotHttp);
        }
        if has_dns && !matches!(kind, CheckKind::Dns(_)) { Err(NoHealth::NotDns) } else { Ok(Some(kind)) }
    }

    fn dns(&self) -> DnsCheck {
        let usual = DnsCheck::default();
        DnsCheck {
            name: self.check_dns_name.clone().unwrap_or(usual.name),
            records: self.check_dns_type.unwrap_or(usual.records),
        }
    }

    fn http(&self) -> HttpCheck {
        let usual = HttpCheck::default();
        HttpCheck {
            method: self.check_method.clone().unwrap_or(usual.method),
            path: self.check_path.clone().unwrap_or(usual.path),
            host: self.check_host.clone(),
            status: if self.check_status.is_empty() { usual.status } else { self.check_status.clone() },
        }
    }
}

fn or_none(OrNone(time): OrNone<Duration>) -> Option<u64> {
    time.map(milliseconds)
}

fn time_or_none(text: &str) -> Result<OrNone<Duration>, humantime::DurationError> {
    OrNone::of(text, humantime::parse_duration)
}

fn in_a_row(text: &str) -> Result<NonZeroU32, String> {
    let number = text.parse().ok().filter(|number: &NonZeroU32| number.get() <= MAX_IN_A_ROW);
    number.ok_or_else(|| format!("a number from 1 to {MAX_IN_A_ROW}"))
}

fn text(text: &str) -> Result<CheckText, String> {
    let bytes = CheckText::new(text).filter(|bytes| !bytes.is_empty());
    bytes.ok_or_else(|| format!("it has 1 to {MAX_CHECK_TEXT} bytes"))
}

fn datagram(text: &str) -> Result<CheckText, String> {
    CheckText::new(text).ok_or_else(|| format!("it has at most {MAX_CHECK_TEXT} bytes"))
}

fn digits(text: &str) -> Result<CheckText, String> {
    let bytes = CheckText::from_hex(text).filter(|bytes| !bytes.is_empty());
    bytes.ok_or_else(|| format!("write 1 to {MAX_CHECK_TEXT} pairs of hexadecimal digits, such as \"0d 0a\""))
}

fn method(text: &str) -> Result<String, String> {
    checked(text, HttpCheck::is_method, "it has capital letters only, such as GET")
}

fn path(text: &str) -> Result<String, String> {
    checked(text, HttpCheck::is_path, "it begins with / and has no blanks")
}

fn host(text: &str) -> Result<String, String> {
    checked(text, HttpCheck::is_host, "it is no name of a host")
}

fn domain(text: &str) -> Result<String, String> {
    checked(text, DnsCheck::is_name, "it is no name of a domain, such as www.example.com")
}

fn checked(text: &str, is_right: fn(&str) -> bool, rule: &str) -> Result<String, String> {
    if is_right(text) { Ok(text.to_owned()) } else { Err(rule.to_owned()) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    #[command(group = clap::ArgGroup::new("values").multiple(true))]
    struct Line {
        #[command(flatten)]
        health: HealthArgs,
    }

    fn values(words: &[&str]) -> Result<PoolValues, NoHealth> {
        let line = Line::try_parse_from([&["x"], words].concat()).unwrap_or_else(|error| panic!("{error}"));
        line.health.values()
    }

    #[test]
    fn what_belongs_to_a_kind_goes_with_it() {
        for (words, error) in [
            (&["--check", "send"][..], NoHealth::Nothing),
            (&["--check", "tcp", "--check-send", "x"], NoHealth::NotSend),
            (&["--check", "http", "--check-expect-hex", "00"], NoHealth::NotSend),
            (&["--check", "none", "--check-path", "/"], NoHealth::NotHttp),
            (&["--check", "send", "--check-send", "x", "--check-status", "200"], NoHealth::NotHttp),
            (&["--check", "send", "--check-send", ""], NoHealth::Nothing),
            (&["--check", "send", "--check-send", "", "--check-expect", "x"], NoHealth::Nothing),
            (&["--check", "udp"], NoHealth::NoDatagram),
            (&["--check", "udp", "--check-expect", "x"], NoHealth::NoDatagram),
            (&["--check", "udp", "--check-send", "x", "--check-path", "/"], NoHealth::NotHttp),
            (&["--check", "dns", "--check-send", "x"], NoHealth::NotSend),
            (&["--check", "http", "--check-dns-name", "."], NoHealth::NotDns),
            (&["--check", "udp", "--check-send", "", "--check-dns-type", "A"], NoHealth::NotDns),
        ] {
            assert_eq!(values(words), Err(error), "{words:?}");
        }
    }

    #[test]
    fn every_option_is_its_value() {
        let none = PoolValues::default();
        let text = |text: &str| CheckText::new(text).expect("short");
        let seven = NonZeroU32::new(7);
        let status = ["200-299", "304"].map(|text| text.parse().expect("statuses")).to_vec();
        let http = HttpCheck { method: "HEAD".into(), path: "/up".into(), host: Some("a.example".into()), status };
        let of_kind = |kind| PoolValues { check: Some(kind), ..none.clone() };
        for (line, expected) in [
            ("", none.clone()),
            ("--check none", of_kind(CheckKind::None)),
            ("--check tcp", of_kind(CheckKind::Tcp)),
            (
                "--check send --check-send-hex 5049 --check-expect OK",
                of_kind(CheckKind::Send { send: text("PI"), expect: text("OK") }),
            ),
            (
                "--check send --check-send PI --check-expect-hex 4f4b",
                of_kind(CheckKind::Send { send: text("PI"), expect: text("OK") }),
            ),
            ("--check http", of_kind(CheckKind::Http(HttpCheck::default()))),
            (
                "--check http --check-method HEAD --check-path /up --check-host a.example --check-status 2xx,304",
                of_kind(CheckKind::Http(http)),
            ),
            ("--check udp --check-send= ", of_kind(CheckKind::Udp { send: text(""), expect: text("") })),
            (
                "--check udp --check-send-hex 5049 --check-expect OK",
                of_kind(CheckKind::Udp { send: text("PI"), expect: text("OK") }),
            ),
            ("--check dns", of_kind(CheckKind::Dns(DnsCheck::default()))),
            (
                "--check dns --check-dns-name a.example --check-dns-type AAAA",
                of_kind(CheckKind::Dns(DnsCheck { name: "a.example".into(), records: RecordType::Aaaa })),
            ),
            ("--check-interval 5s", PoolValues { check_interval_ms: Some(5000), ..none.clone() }),
            (
                "--check-undecided-interval 500ms",
                PoolValues { check_undecided_interval_ms: Some(Some(500)), ..none.clone() },
            ),
            ("--check-undecided-interval none", PoolValues { check_undecided_interval_ms: Some(None), ..none.clone() }),
            ("--check-down-interval 1m", PoolValues { check_down_interval_ms: Some(Some(60_000)), ..none.clone() }),
            ("--check-down-interval none", PoolValues { check_down_interval_ms: Some(None), ..none.clone() }),
            ("--check-timeout 2s", PoolValues { check_timeout_ms: Some(2000), ..none.clone() }),
            ("--check-rise 7", PoolValues { check_rise: seven, ..none.clone() }),
            ("--check-fall 7", PoolValues { check_fall: seven, ..none.clone() }),
            ("--check-port 81", PoolValues { check_port: Some(NonZeroU16::new(81)), ..none.clone() }),
            ("--check-port none", PoolValues { check_port: Some(None), ..none.clone() }),
            ("--check-initial down", PoolValues { check_initial: Some(InitialHealth::Down), ..none.clone() }),
            ("--eject-failures 0", PoolValues { eject_failures: Some(0), ..none.clone() }),
            ("--eject-time 20s", PoolValues { eject_time_ms: Some(20_000), ..none.clone() }),
            ("--eject-max-time 1h", PoolValues { eject_max_time_ms: Some(3_600_000), ..none.clone() }),
            ("--eject-max-percent 25", PoolValues { eject_max_percent: Some(25), ..none.clone() }),
            ("--when-all-down use-all", PoolValues { when_all_down: Some(WhenAllDown::UseAll), ..none.clone() }),
            ("--on-down close", PoolValues { on_down: Some(OnDown::Close), ..none.clone() }),
        ] {
            assert_eq!(values(&line.split_whitespace().collect::<Vec<_>>()), Ok(expected), "{line}");
        }
    }
}

//! The options of `pool add`, `pool set` and `service add` about connections. What is about sockets alone stands in files.

use std::net::IpAddr;
use std::num::{NonZeroU8, NonZeroU64};
use std::ops::RangeInclusive;

use clap::Args;
use wire::connection::{
    CONNECT_TIMEOUT_MS, ClientSide, KEEPALIVE_MS, MAX_REPLAY, MAX_TRIES, SESSION_TIME_MS, SocketSettings, is_source,
};
use wire::control::PoolValues;
use wire::quantity::{parse_size, size, time};

use super::{OrNone, milliseconds};

/// The connections to the servers of a pool.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connections to servers")]
pub(crate) struct ServerSideArgs {
    /// How long a server may take to answer a connect, from 10ms to 1h, or none for what balancerd was started with
    #[arg(long, value_name = "TIME|none", group = "values", value_parser = connect_timeout)]
    connect_timeout: Option<OrNone<NonZeroU64>>,

    /// Servers that a client's connect goes to, 1 to 16; 3 if nothing else is said
    #[arg(long, value_name = "N", group = "values", value_parser = tries)]
    tries: Option<NonZeroU8>,

    /// So many bytes of a client are kept until its server has said something, such as 64KiB: if that resets before, they
    /// go to another one; 0 is never
    #[arg(long, value_name = "SIZE", group = "values", value_parser = replay)]
    replay: Option<u32>,

    /// An address that connections come from, or none to leave it to the kernel; may be given several times
    #[arg(long, value_name = "IP|none", group = "values", value_parser = source)]
    source: Vec<OrNone<IpAddr>>,
}

/// No addresses, and some.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("--source none goes with no other --source")]
pub(crate) struct NoneAndSome;

impl ServerSideArgs {
    /// These values with those that are said.
    ///
    /// # Errors
    /// When options do not go together.
    pub(super) fn values(&self, others: PoolValues) -> Result<PoolValues, NoneAndSome> {
        let source: Vec<IpAddr> = self.source.iter().filter_map(|OrNone(address)| *address).collect();
        if !source.is_empty() && source.len() < self.source.len() {
            return Err(NoneAndSome);
        }
        Ok(PoolValues {
            connect_timeout_ms: self.connect_timeout.map(|OrNone(limit)| limit),
            tries: self.tries,
            replay: self.replay,
            source: (!self.source.is_empty()).then_some(source),
            ..others
        })
    }
}

/// The connections of the clients of a service.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connections of clients")]
pub(crate) struct ClientSideArgs {
    /// With nothing moving either way a session ends after this, from 100ms to 365days; without it after what balancerd
    /// was started with
    #[arg(long, value_name = "TIME", value_parser = session_time)]
    idle_timeout: Option<NonZeroU64>,

    /// The same when one side has ended already; 1m without this
    #[arg(long, value_name = "TIME", value_parser = session_time)]
    half_closed_timeout: Option<NonZeroU64>,

    /// However busy it is, a session ends after this, give or take a tenth; never without this
    #[arg(long, value_name = "TIME", value_parser = session_time)]
    max_age: Option<NonZeroU64>,

    /// A client that is silent for this time is asked whether it is still there, from 1s to 1day; 0s is never, 1m without
    /// this
    #[arg(long, value_name = "TIME", value_parser = keepalive)]
    keepalive: Option<u64>,
}

impl ClientSideArgs {
    /// How they are to be.
    pub(super) fn settings(&self) -> ClientSide {
        let usual = ClientSide::default();
        ClientSide {
            idle_timeout_ms: self.idle_timeout,
            half_closed_timeout_ms: self.half_closed_timeout.unwrap_or(usual.half_closed_timeout_ms),
            max_age_ms: self.max_age,
            socket: SocketSettings {
                keepalive_ms: self.keepalive.unwrap_or(usual.socket.keepalive_ms),
                ..SocketSettings::default()
            },
            ..usual
        }
    }

    /// The keys of a file that are said.
    pub(super) fn said(&self) -> [(&'static str, bool); 4] {
        [
            ("idle_timeout", self.idle_timeout.is_some()),
            ("half_closed_timeout", self.half_closed_timeout.is_some()),
            ("max_age", self.max_age.is_some()),
            ("keepalive", self.keepalive.is_some()),
        ]
    }
}

fn connect_timeout(text: &str) -> Result<OrNone<NonZeroU64>, String> {
    OrNone::of(text, |text| within(text, CONNECT_TIMEOUT_MS))
}

fn session_time(text: &str) -> Result<NonZeroU64, String> {
    within(text, SESSION_TIME_MS)
}

fn keepalive(text: &str) -> Result<u64, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time.is_zero() => Ok(0),
        _ => within(text, KEEPALIVE_MS).map(NonZeroU64::get),
    }
}

/// A time in milliseconds.
pub(super) fn within(text: &str, range: RangeInclusive<u64>) -> Result<NonZeroU64, String> {
    let read = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let in_range = NonZeroU64::new(milliseconds(read)).filter(|time| range.contains(&time.get()));
    in_range.ok_or_else(|| format!("it is from {} to {}", time(*range.start()), time(*range.end())))
}

fn tries(text: &str) -> Result<NonZeroU8, String> {
    let number = text.parse().ok().filter(|number: &NonZeroU8| number.get() <= MAX_TRIES);
    number.ok_or_else(|| format!("a number from 1 to {MAX_TRIES}"))
}

fn replay(text: &str) -> Result<u32, String> {
    let bytes = parse_size(text).and_then(|bytes| u32::try_from(bytes).ok()).filter(|bytes| *bytes <= MAX_REPLAY);
    bytes.ok_or_else(|| format!("a size such as 64KiB, at most {}", size(u64::from(MAX_REPLAY))))
}

fn source(text: &str) -> Result<OrNone<IpAddr>, String> {
    OrNone::of(text, |text| {
        let address = text.parse::<IpAddr>().map_err(|_| "write an IP address, or none".to_owned())?;
        is_source(address).then(|| address.to_canonical()).ok_or_else(|| "no connection can come from it".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    #[command(group = clap::ArgGroup::new("values").multiple(true))]
    struct OfPool {
        #[command(flatten)]
        connections: ServerSideArgs,
    }

    #[derive(Debug, Parser)]
    struct OfService {
        #[command(flatten)]
        connections: ClientSideArgs,
    }

    fn words(line: &str) -> impl Iterator<Item = &str> {
        std::iter::once("x").chain(line.split_whitespace())
    }

    #[test]
    fn every_option_of_a_pool_is_its_value() {
        let none = PoolValues::default();
        let values = |line: &str| {
            let pool = OfPool::try_parse_from(words(line)).unwrap_or_else(|error| panic!("{error}"));
            pool.connections.values(PoolValues::default())
        };
        let source = |texts: &[&str]| Some(texts.iter().map(|text| text.parse().expect("an address")).collect());
        for (line, expected) in [
            ("", none.clone()),
            ("--connect-timeout 500ms", PoolValues { connect_timeout_ms: Some(NonZeroU64::new(500)), ..none.clone() }),
            ("--connect-timeout none", PoolValues { connect_timeout_ms: Some(None), ..none.clone() }),
            ("--tries 16", PoolValues { tries: NonZeroU8::new(16), ..none.clone() }),
            ("--replay 64KiB", PoolValues { replay: Some(65_536), ..none.clone() }),
            ("--replay 0", PoolValues { replay: Some(0), ..none.clone() }),
            (
                "--source 10.0.0.8 --source ::ffff:10.0.0.9",
                PoolValues { source: source(&["10.0.0.8", "10.0.0.9"]), ..none.clone() },
            ),
            ("--source none", PoolValues { source: Some(Vec::new()), ..none.clone() }),
        ] {
            assert_eq!(values(line), Ok(expected), "{line}");
        }
        assert_eq!(values("--source 10.0.0.8 --source none"), Err(NoneAndSome));
        for wrong in [
            "--connect-timeout 9ms",
            "--connect-timeout 61m",
            "--connect-timeout 500us",
            "--tries 0",
            "--tries 17",
            "--replay 1025KiB",
            "--replay 1GiB",
            "--source 0.0.0.0",
            "--source web.example",
        ] {
            assert!(OfPool::try_parse_from(words(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_option_of_a_service_is_its_value() {
        let settings = |line: &str| {
            let service = OfService::try_parse_from(words(line)).unwrap_or_else(|error| panic!("{error}"));
            service.connections.settings()
        };
        let usual = ClientSide::default();
        assert_eq!(settings(""), usual);
        let socket = |keepalive_ms| SocketSettings { keepalive_ms, ..SocketSettings::default() };
        let some = |time| NonZeroU64::new(time).expect("not 0");
        for (line, expected) in [
            ("--idle-timeout 10m", ClientSide { idle_timeout_ms: Some(some(600_000)), ..usual.clone() }),
            ("--half-closed-timeout 100ms", ClientSide { half_closed_timeout_ms: some(100), ..usual.clone() }),
            ("--max-age 365days", ClientSide { max_age_ms: Some(some(365 * 86_400_000)), ..usual.clone() }),
            ("--keepalive 0s", ClientSide { socket: socket(0), ..usual.clone() }),
            ("--keepalive 1s", ClientSide { socket: socket(1000), ..usual.clone() }),
            ("--keepalive 9h", ClientSide { socket: socket(32_400_000), ..usual.clone() }),
        ] {
            assert_eq!(settings(line), expected, "{line}");
        }
        for wrong in [
            "--idle-timeout 0s",
            "--idle-timeout none",
            "--max-age 366days",
            "--half-closed-timeout 99ms",
            "--keepalive 10ms",
            "--keepalive 10h",
        ] {
            assert!(OfService::try_parse_from(words(wrong)).is_err(), "{wrong}");
        }
    }
}

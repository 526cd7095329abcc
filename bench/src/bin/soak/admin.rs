//! The administrator, who changes everything that can be changed, at random, and asks for everything that can be asked.

use std::fs;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bench::clock;
use bench::servers::free_port;
use fastrand::Rng;
use wire::Client;
use wire::control::{Change, FileText, PoolValues, Refusal, Removal, Request, Response, ServerValues};
use wire::health::{CheckKind, OnDown, WhenAllDown};
use wire::settings::{AdminState, HashKey, LoadFactor, Policy, PoolSettings, ServerSettings, ServiceSettings};

use crate::client::STRANGER;
use crate::findings::Findings;
use crate::layout::{self, FRONT, Pool};

/// The longest pause between two requests, in milliseconds.
const MOST_PAUSE: u64 = 60;

/// Sessions that are listed to kill one of them.
const LISTED: u32 = 200;

/// Services, and pools, that are added beside those of the file, at most.
const EXTRAS: usize = 4;

/// Points of a weight of 1 in every pool, and at most in one that is drawn. With the usual 1024 the rings that the drawn
/// weights happen to need would be most of the memory, and hide what grows; a weight of 256 is still a large change.
const POINTS: NonZeroU32 = NonZeroU32::new(64).expect("64 is not 0");
const MOST_POINTS: u32 = 128;

/// The administrator.
pub(crate) struct Admin<'a> {
    pub(crate) client: Client,
    pub(crate) pools: &'a [Pool],
    pub(crate) file: PathBuf,
    /// Where the rough clients go.
    pub(crate) places: &'a Mutex<Vec<SocketAddr>>,
    pub(crate) findings: &'a Findings,
    pub(crate) rng: Rng,
}

impl Admin<'_> {
    /// Works until it is over.
    pub(crate) fn work(&mut self) -> Result<()> {
        for pool in self.pools {
            let values = PoolValues { points_per_weight: Some(POINTS), ..PoolValues::default() };
            let change = Change::SetPool { pool: pool.name.to_owned(), values };
            self.ask(&Request::Change { change, dry_run: false })?;
        }
        while !self.findings.is_over() {
            let request = self.draw()?;
            self.ask(&request)?;
            clock::pause(Duration::from_millis(self.rng.u64(0..=MOST_PAUSE)));
        }
        Ok(())
    }

    /// Asks, counts, and tells of an answer that must not be.
    fn ask(&mut self, request: &Request) -> Result<Response> {
        let response = self.client.call(request).with_context(|| format!("ask for {request}"))?;
        let name = request.to_string();
        let name = name.split(' ').next().unwrap_or_default();
        let dry = if matches!(request, Request::Change { dry_run: true, .. } | Request::Reload { dry_run: true, .. }) {
            " dry"
        } else {
            ""
        };
        match &response {
            Response::Refused(refusal) => {
                self.findings.count(&format!("refused {name}{dry}"));
                if matches!(refusal, Refusal::Stopping | Refusal::NotPermitted { .. } | Refusal::NotMade { .. }) {
                    self.findings.fault(format!("{request} is refused: {refusal}"));
                }
            }
            _ => self.findings.count(&format!("done {name}{dry}")),
        }
        Ok(response)
    }

    fn draw(&mut self) -> Result<Request> {
        let pool = &self.pools[self.rng.usize(0..self.pools.len())];
        let name = pool.name.to_owned();
        let rng = &mut self.rng;
        let spare = pool.spares[rng.usize(0..pool.spares.len())];
        let any = if rng.u32(0..4) == 0 { pool.anchor } else { spare };
        let change = match rng.u32(0..100) {
            0..14 => Change::Add { pool: name, server: spare, settings: server(rng) },
            14..30 => Change::Remove { pool: name, server: spare, how: removal(rng) },
            30..46 => {
                let values = if any == pool.anchor {
                    ServerValues { weight: Some(weight(rng).max(1)), ..ServerValues::default() }
                } else {
                    values(rng)
                };
                Change::Set { pool: name, server: any, values }
            }
            46..56 => Change::SetPool { pool: name, values: pool_values(rng) },
            56..62 => return self.service(),
            62..66 => {
                let pool = format!("extra-{}", rng.usize(0..EXTRAS));
                if rng.bool() {
                    let servers = [(spare, server(rng)), (any, ServerSettings::default())].into();
                    Change::AddPool {
                        pool,
                        settings: PoolSettings { servers, points_per_weight: POINTS, ..PoolSettings::default() },
                    }
                } else {
                    Change::RemovePool { pool }
                }
            }
            66..72 => return self.reload(),
            72..78 => return self.kill(),
            78..79 => Change::KillAll { pool: name, server: any },
            79..84 => return Ok(Request::List { pool: name }),
            84..88 => {
                let service = rng.bool().then_some(name);
                return Ok(Request::Explain { client: STRANGER.into(), port: rng.u16(1..), service });
            }
            88..90 => return Ok(Request::Digest { pool: name }),
            90..93 => return Ok(Request::Status),
            93..95 => return Ok(Request::Pools),
            95..97 => return Ok(Request::Settings),
            _ => return Ok(Request::Sessions { service: None, pool: None, server: None, limit: 10_000 }),
        };
        let is_harmless = !matches!(change, Change::KillAll { .. });
        Ok(Request::Change { change, dry_run: is_harmless && self.rng.u32(0..5) == 0 })
    }

    /// A further service comes, or one of them goes.
    fn service(&mut self) -> Result<Request> {
        let service = format!("extra-{}", self.rng.usize(0..EXTRAS));
        let change = if self.rng.bool() {
            let listen = SocketAddr::from((FRONT, free_port(FRONT)?));
            let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            places.push(listen);
            // The first is that of the file. Old ones that are gone refuse, and that is looked at, too.
            if places.len() > 2 * EXTRAS {
                places.remove(1);
            }
            let pool = &self.pools[self.rng.usize(0..self.pools.len())];
            let splice = self.rng.bool();
            Change::AddService {
                service,
                settings: ServiceSettings { splice, ..ServiceSettings::new(vec![listen], pool.name) },
            }
        } else {
            Change::RemoveService { service }
        };
        Ok(Request::Change { change, dry_run: false })
    }

    /// Another file, or one with a mistake; it is read, or it is looked what would come of it.
    fn reload(&mut self) -> Result<Request> {
        let mut text = layout::file(self.pools, Some(&mut self.rng));
        match self.rng.u32(0..10) {
            0 => text.push_str("mistake = 1\n"),
            1 => text.truncate(text.len() / 2),
            _ => {}
        }
        if self.rng.u32(0..4) == 0 {
            let instead = Some(FileText { name: "other.toml".to_owned(), text });
            return Ok(Request::Reload { instead, dry_run: true });
        }
        self.write(&text)?;
        Ok(Request::Reload { instead: None, dry_run: self.rng.u32(0..4) == 0 })
    }

    fn write(&self, text: &str) -> Result<()> {
        let new = self.file.with_extension("new");
        fs::write(&new, text).and_then(|()| fs::rename(&new, &self.file)).context("write the configuration file")
    }

    /// One of the sessions that are there, if there is one.
    fn kill(&mut self) -> Result<Request> {
        let list = Request::Sessions { service: None, pool: None, server: None, limit: LISTED };
        let Response::Sessions(sessions) = self.ask(&list)? else { return Ok(Request::Status) };
        let session = self.rng.choice(&sessions).map_or(0, |session| session.session);
        Ok(Request::Change { change: Change::Kill { session }, dry_run: false })
    }

    /// Takes away what was added, and reads the first file again.
    pub(crate) fn tidy(&mut self) -> Result<()> {
        for number in 0..EXTRAS {
            let change = Change::RemoveService { service: format!("extra-{number}") };
            self.ask(&Request::Change { change, dry_run: false })?;
        }
        for number in 0..EXTRAS {
            let change = Change::RemovePool { pool: format!("extra-{number}") };
            self.ask(&Request::Change { change, dry_run: false })?;
        }
        self.write(&layout::file(self.pools, None))?;
        if let Response::Refused(refusal) = self.ask(&Request::Reload { instead: None, dry_run: false })? {
            self.findings.fault(format!("the first file is refused at the end: {refusal}"));
        }
        Ok(())
    }
}

/// Small ones mostly: a ring of large ones takes a while.
fn weight(rng: &mut Rng) -> u32 {
    match rng.u32(0..10) {
        0 => 0,
        1..8 => rng.u32(1..4),
        8 => rng.u32(4..64),
        _ => rng.u32(64..=256),
    }
}

fn server(rng: &mut Rng) -> ServerSettings {
    let state = *rng.choice(&AdminState::ALL).unwrap_or(&AdminState::Ready);
    let max_sessions = if rng.u32(0..5) == 0 { NonZeroU64::new(rng.u64(1..10)) } else { None };
    let state = if rng.u32(0..4) == 0 { state } else { AdminState::Ready };
    ServerSettings { weight: weight(rng), state, max_sessions, backup: rng.u32(0..8) == 0, check_address: None }
}

fn values(rng: &mut Rng) -> ServerValues {
    let server = server(rng);
    match rng.u32(0..4) {
        0 | 1 => ServerValues { weight: Some(server.weight), ..ServerValues::default() },
        2 => ServerValues { state: Some(server.state), ..ServerValues::default() },
        _ => ServerValues {
            max_sessions: Some(server.max_sessions),
            backup: Some(server.backup),
            ..ServerValues::default()
        },
    }
}

fn removal(rng: &mut Rng) -> Removal {
    match rng.u32(0..4) {
        0 => Removal::Wait { limit_ms: None },
        1 => Removal::Wait { limit_ms: Some(rng.u64(100..2_000)) },
        2 => Removal::Now,
        _ => Removal::Over { time_ms: rng.u64(100..2_000) },
    }
}

fn pool_values(rng: &mut Rng) -> PoolValues {
    let none = PoolValues::default();
    match rng.u32(0..9) {
        0 | 1 => PoolValues { policy: rng.choice(Policy::ALL), ..none },
        2 => {
            let subnet = HashKey::ClientSubnet { ipv4: 24, ipv6: 56 };
            PoolValues { key: rng.choice([HashKey::ClientIp, HashKey::ClientIpPort, subnet]), ..none }
        }
        3 => {
            let factor = LoadFactor::from_thousandths(rng.u32(1_000..3_000));
            PoolValues { max_load: Some(if rng.bool() { factor } else { None }), ..none }
        }
        4 => PoolValues { points_per_weight: NonZeroU32::new(rng.u32(16..=MOST_POINTS)), ..none },
        5 => PoolValues { slow_start_ms: Some(rng.u64(0..3_000)), ..none },
        6 => PoolValues {
            check: Some(if rng.u32(0..4) == 0 { CheckKind::None } else { CheckKind::Tcp }),
            check_interval_ms: Some(rng.u64(50..1_000)),
            check_undecided_interval_ms: Some(rng.bool().then_some(50)),
            ..none
        },
        7 => PoolValues {
            eject_failures: Some(rng.u32(0..6)),
            eject_time_ms: Some(rng.u64(50..1_000)),
            eject_max_percent: Some(rng.u8(0..=100)),
            ..none
        },
        _ => PoolValues {
            when_all_down: rng.choice([WhenAllDown::Refuse, WhenAllDown::UseAll]),
            on_down: rng.choice([OnDown::Keep, OnDown::Close]),
            ..none
        },
    }
}

//! A server: one member of a pool.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wire::connection::ServerSide;
use wire::control::Removal;
use wire::health::{CheckKind, CheckSettings};
use wire::report::{RemovalReport, ServerReport, ServerState};
use wire::settings::{AdminState, SendProxy, ServerSettings};

use super::checks::{Order, TargetId};
use super::health::Health;
use super::timing::Timing;
use super::traffic::Traffic;
use super::{PoolId, milliseconds};

/// Parts of its weight that a server which starts slowly grows by.
pub(super) const RAMP_PARTS: u32 = 64;

/// A server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) pool: PoolId,
    pub(super) address: SocketAddr,
    pub(super) settings: ServerSettings,
    /// It was removed, and is gone when its last session has ended.
    pub(super) leaving: Option<Leave>,
    /// It came up then and its weight still grows.
    pub(super) ramp: Option<Ramp>,
    /// It came up then, and waits for the ring in which it has the first part of its weight.
    pub(super) waits: Option<Instant>,
    pub(super) health: Health,
    /// What checks it, if something does.
    pub(super) target: Option<TargetId>,
    pub(super) traffic: Traffic,
    pub(super) timing: Timing,
    pub(super) connect_failures: u64,
    pub(super) connect_timeouts: u64,
    pub(super) overflows: u64,
    pub(super) replays: u64,
    /// Flows that went on with another server.
    pub(super) flows_moved: u64,
}

/// How a removed server goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leave {
    pub(super) how: Removal,
    since: Instant,
    /// Sessions that it had then.
    sessions: u64,
}

/// How the weight of a server grows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ramp {
    pub(super) since: Instant,
    /// The part that it has: 1 to [`RAMP_PARTS`].
    pub(super) part: u32,
}

impl Server {
    /// `check` is how its pool checks.
    pub(super) fn new(
        pool: PoolId,
        address: SocketAddr,
        settings: ServerSettings,
        check: &CheckSettings,
        now: Instant,
    ) -> Self {
        Self {
            pool,
            address,
            settings,
            leaving: None,
            ramp: None,
            waits: None,
            health: Health::new(check, now),
            target: None,
            traffic: Traffic::default(),
            timing: Timing::default(),
            connect_failures: 0,
            connect_timeouts: 0,
            overflows: 0,
            replays: 0,
            flows_moved: 0,
        }
    }

    /// Whether people want it to serve: a ring has exactly the points of these servers. It is eligible when it is up, too.
    pub(super) fn takes_part(&self) -> bool {
        self.state() == ServerState::Ready
    }

    /// Whether checks and clients have nothing against it, and its place is ready.
    pub(super) fn is_up(&self) -> bool {
        self.health.is_up() && self.waits.is_none()
    }

    /// The part of its weight that it is to have now, if it takes `time` to get all of it.
    pub(super) fn part_at(&self, time: Option<Duration>, now: Instant) -> u32 {
        let since = self.waits.or(self.ramp.map(|ramp| ramp.since));
        since.zip(time).map_or(RAMP_PARTS, |(since, time)| Ramp { since, part: 1 }.part_at(time, now))
    }

    /// How and where it is to be checked, in a pool that checks so, by this way, and gives its servers this header; nothing
    /// for one that is left alone. Who answers elsewhere is not who takes the clients, and gets no header.
    pub(super) fn check_order(
        &self,
        check: &Arc<CheckSettings>,
        side: &Arc<ServerSide>,
        send_proxy: Option<SendProxy>,
    ) -> Option<Order> {
        let is_left_alone = self.leaving.is_some() || self.settings.state == AdminState::Maintenance;
        if is_left_alone || check.kind == CheckKind::None {
            return None;
        }
        let mut address = self.address;
        if let Some(port) = check.port {
            address.set_port(port.get());
        }
        let address = self.settings.check_address.unwrap_or(address);
        let send_proxy = send_proxy.filter(|_| address == self.address);
        Some(Order { address, settings: Arc::clone(check), side: Arc::clone(side), send_proxy })
    }

    /// Whether it has as many sessions as it may have.
    pub(super) fn is_full(&self) -> bool {
        self.settings.max_sessions.is_some_and(|limit| self.traffic.active >= limit.get())
    }

    pub(super) fn state(&self) -> ServerState {
        match (self.leaving, self.settings.state, self.settings.weight) {
            (Some(_), ..) => ServerState::Leaving,
            (None, AdminState::Maintenance, _) => ServerState::Maintenance,
            (None, AdminState::Drain, _) | (None, AdminState::Ready, 0) => ServerState::Drain,
            (None, AdminState::Ready, _) => ServerState::Ready,
        }
    }

    /// Weight times the part of it that it has: [`RAMP_PARTS`] for each weight when it is not starting slowly.
    pub(super) fn scaled_weight(&self) -> u32 {
        self.settings.weight * self.ramp.map_or(RAMP_PARTS, |ramp| ramp.part)
    }

    pub(super) fn leave(&mut self, how: Removal, now: Instant) {
        self.leaving = Some(Leave { how, since: now, sessions: self.traffic.active });
        (self.ramp, self.waits) = (None, None);
    }

    pub(super) fn report(&self, share: f64, now: Instant) -> ServerReport {
        ServerReport {
            server: self.address,
            weight: self.settings.weight,
            max_sessions: self.settings.max_sessions.map(Into::into),
            ramp: self.ramp.map_or(1.0, |ramp| f64::from(ramp.part) / f64::from(RAMP_PARTS)),
            state: self.state(),
            backup: self.settings.backup,
            health: self.health.report(now),
            share,
            active: self.traffic.active,
            total: self.traffic.total,
            bytes_in: self.traffic.bytes_in,
            bytes_out: self.traffic.bytes_out,
            connect_failures: self.connect_failures,
            connect_timeouts: self.connect_timeouts,
            timing: self.timing.report(now),
            overflows: self.overflows,
            replays: self.replays,
            removal: self.leaving.map(|leave| leave.report(now)),
            ended: self.traffic.ended_by_reason(),
            datagrams: self.traffic.datagrams(),
            flows_moved: self.flows_moved,
        }
    }
}

impl Leave {
    /// The time that it may take, if there is a limit.
    fn time(&self) -> Option<Duration> {
        match self.how {
            Removal::Wait { limit_ms } => limit_ms.map(Duration::from_millis),
            Removal::Now => Some(Duration::ZERO),
            Removal::Over { time_ms } => Some(Duration::from_millis(time_ms)),
        }
    }

    /// How many of `active` sessions are to be closed by `now`, and when there may be another.
    pub(super) fn due(&self, active: u64, now: Instant) -> (u64, Option<Instant>) {
        let Some(time) = self.time() else { return (0, None) };
        let passed = now.saturating_duration_since(self.since);
        if passed >= time {
            return (active, None);
        }
        let end = self.since.checked_add(time);
        match self.how {
            Removal::Over { .. } => {
                // Of the sessions that it had, this many may be left by now; the time of the next close is when one less.
                let left = |passed: Duration| {
                    let rest = (time - passed).as_nanos();
                    (u128::from(self.sessions) * rest).div_ceil(time.as_nanos()) as u64
                };
                let kept = active.min(left(passed));
                let fraction = 1.0 - (kept.saturating_sub(1)) as f64 / self.sessions.max(1) as f64;
                let next = self.since + time.mul_f64(fraction).min(time);
                (active - kept, Some(next.max(now + Duration::from_millis(1))))
            }
            _ => (0, end),
        }
    }

    fn report(&self, now: Instant) -> RemovalReport {
        let left = self.time().map(|time| time.saturating_sub(now.saturating_duration_since(self.since)));
        RemovalReport { how: self.how, sessions: self.sessions, left_ms: left.map(milliseconds) }
    }
}

impl Ramp {
    /// The part at a time, when all of it takes `time`.
    pub(super) fn part_at(self, time: Duration, now: Instant) -> u32 {
        let passed = now.saturating_duration_since(self.since).as_nanos();
        let parts = u128::from(RAMP_PARTS) * passed / time.as_nanos().max(1);
        u32::try_from(parts).unwrap_or(RAMP_PARTS).clamp(1, RAMP_PARTS)
    }

    /// When it has the next part.
    pub(super) fn next(self, time: Duration) -> Instant {
        self.since + time * (self.part + 1) / RAMP_PARTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event;

    #[test]
    fn sessions_are_closed_evenly_over_the_time() {
        let now = event::now();
        let how = Removal::Over { time_ms: 10_000 };
        let leave = Leave { how, since: now, sessions: 10 };
        let (mut active, mut at, mut closed) = (10, now, Vec::new());
        loop {
            let (due, next) = leave.due(active, at);
            if due > 0 {
                closed.push(((at - now).as_millis(), due));
            }
            active -= due;
            match next {
                Some(next) => at = next,
                None => break,
            }
        }
        assert_eq!(active, 0);
        let times: Vec<u128> = closed.iter().map(|(at, _)| (at + 50) / 1000).collect();
        assert_eq!(times, (1..=10).collect::<Vec<_>>(), "{closed:?}");
        assert!(closed.iter().all(|(_, count)| *count == 1), "{closed:?}");
    }

    #[test]
    fn sessions_that_end_by_themselves_count_as_closed() {
        let now = event::now();
        let leave = Leave { how: Removal::Over { time_ms: 10_000 }, since: now, sessions: 10 };
        assert_eq!(leave.due(4, now + Duration::from_secs(5)).0, 0);
        assert_eq!(leave.due(7, now + Duration::from_secs(5)).0, 2);
    }

    #[test]
    fn a_limit_closes_all_at_once_and_without_one_nothing_is_closed() {
        let now = event::now();
        let later = now + Duration::from_secs(5);
        let leave = |limit_ms| Leave { how: Removal::Wait { limit_ms }, since: now, sessions: 3 };
        assert_eq!(leave(Some(5000)).due(3, now), (0, Some(later)));
        assert_eq!(leave(Some(5000)).due(3, later), (3, None));
        assert_eq!(leave(None).due(3, later), (0, None));
        assert_eq!(leave(Some(u64::MAX)).due(3, later).0, 0, "no overflow");
    }

    #[test]
    fn a_ramp_grows_part_by_part() {
        let now = event::now();
        let time = Duration::from_secs(64);
        let mut ramp = Ramp { since: now, part: 1 };
        for part in 1..RAMP_PARTS {
            assert_eq!(ramp.part_at(time, ramp.next(time)), part + 1);
            ramp.part = part + 1;
        }
        assert_eq!(ramp.part_at(time, now), 1);
        assert_eq!(ramp.part_at(Duration::ZERO, now), 1);
    }
}

//! What the model makes of news of the servers' health: from checks, from clients, and from the clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wire::health::{CheckKind, OnDown};
use wire::report::{EndReason, HealthState};

use super::checks::{Order, TargetId, side_of_checks};
use super::health::{CheckResult, Trouble};
use super::{Effect, HealthNews, Model, PoolId, ServerId};

/// A server that serves after its first pass is checked for the first time within this time, however long its interval is.
const FIRST_CHECK: Duration = Duration::from_secs(2);

/// The times between checks differ by so much, one way and the other, lest many meet.
const JITTER: f64 = 0.1;

impl Model {
    /// The next check that is to begin now, if there is one. [`Model::check_done`] is told what came of it.
    pub(crate) fn next_check(&mut self, now: Instant) -> Option<(TargetId, Order)> {
        self.checks.begin(now)
    }

    /// When there is another check to begin.
    pub(crate) fn next_check_due(&self) -> Option<Instant> {
        self.checks.next_due()
    }

    /// A check has ended; nothing when it could not be made, and says nothing about the server.
    pub(crate) fn check_done(&mut self, target: TargetId, result: Option<&CheckResult>, now: Instant) {
        let Some((order, servers)) = self.checks.servers(target) else { return };
        let (settings, servers) = (Arc::clone(&order.settings), servers.collect::<Vec<_>>());
        let mut interval = None;
        for id in servers {
            if let Some(result) = result {
                self.turn(id, now, |server| server.health.on_check(result, &settings, now));
            }
            // Whoever is in more of a hurry decides for all.
            let its = self.servers[id].health.interval(&settings);
            interval = Some(interval.map_or(its, |shortest: Duration| shortest.min(its)));
        }
        let interval = interval.unwrap_or(Duration::from_millis(settings.interval_ms));
        let pause = interval.mul_f64(1.0 + JITTER * (2.0 * self.rng.f64() - 1.0));
        // From the beginning of one to that of the next.
        let rest = pause.saturating_sub(result.map_or(Duration::ZERO, |result| result.duration));
        self.checks.done(target, now + rest);
    }

    /// Checks a server as it is to be checked, or not any more.
    pub(super) fn watch(&mut self, id: ServerId, now: Instant) {
        let Some(server) = self.servers.get_mut(id) else { return };
        let pool = &self.pools[server.pool];
        let check = &pool.check;
        let interval = Duration::from_millis(check.interval_ms);
        let within = if server.health.waits_for_a_check() { interval.min(FIRST_CHECK) } else { interval };
        let (order, rng) = (server.check_order(check, &pool.check_side, pool.settings.send_proxy), &mut self.rng);
        server.target = self.checks.assign(id, server.target, order, || within.mul_f64(rng.f64()), now);
        if check.kind == CheckKind::None {
            self.turn(id, now, |server| server.health.unwatch(now));
        }
    }

    /// The health of a pool is to be known in another way, or its checks are to begin with another header or to leave by
    /// another way: does so for all of its servers.
    pub(super) fn watch_all(&mut self, id: PoolId, now: Instant) {
        let pool = &mut self.pools[id];
        pool.check = Arc::new(pool.settings.health.check.clone());
        pool.check_side = side_of_checks(&pool.settings.server_side);
        pool.open_or_close();
        for server in pool.members.values().copied().collect::<Vec<_>>() {
            self.watch(server, now);
        }
    }

    /// A client met trouble at a server.
    pub(super) fn on_trouble(&mut self, id: ServerId, trouble: Trouble, now: Instant) {
        let Some(server) = self.servers.get_mut(id) else { return };
        let pool = &self.pools[server.pool];
        let settings = pool.settings.health.ejection;
        let is_enough = server.health.on_trouble(&settings);
        if !is_enough || !server.takes_part() || !server.is_up() {
            return;
        }
        // Never more than a part of the pool is out, whoever says so; and not the last that is up, which would be let in again
        // at once, as often as its clients fail.
        let most = pool.len() * usize::from(settings.max_percent) / 100;
        if pool.len() - pool.up() < most && pool.up() > 1 {
            let mut until = now;
            self.turn(id, now, |server| until = server.health.eject(trouble, &settings, now));
            self.readmissions.insert((until, id));
        }
    }

    /// The time of an ejected server may be over.
    pub(super) fn readmit(&mut self, id: ServerId, now: Instant) {
        let Some(server) = self.servers.get(id) else { return };
        let settings = self.pools[server.pool].settings.health.ejection;
        self.turn(id, now, |server| {
            server.health.readmit(&settings, now);
        });
    }

    /// With nobody else up, those that are ejected are let in: to leave them out was a guess, and it serves nobody now. So
    /// are those that wait for their ring.
    pub(super) fn rescue(&mut self, id: PoolId, now: Instant) {
        let pool = &self.pools[id];
        if pool.up() > 0 {
            return;
        }
        let is_out = |id: &ServerId| {
            let server = &self.servers[*id];
            server.waits.is_some() || server.health.state() == HealthState::Ejected
        };
        for id in pool.members.values().copied().filter(is_out).collect::<Vec<_>>() {
            if self.servers[id].waits.take().is_some() {
                self.place(id);
            }
            self.turn(id, now, |server| server.health.release(now));
        }
    }

    /// Lets something happen to the health of a server, and does what follows if it is another one then.
    fn turn(&mut self, id: ServerId, now: Instant, happens: impl FnOnce(&mut super::Server)) {
        let server = &mut self.servers[id];
        let before = server.health.state();
        happens(server);
        let (state, pool_id) = (server.health.state(), server.pool);
        if state == before {
            return;
        }
        let others = self.pools[pool_id].up() > usize::from(before == HealthState::Up);
        if state == HealthState::Up
            && others
            && self.servers[id].takes_part()
            && let Some(time) = self.pools[pool_id].slow_start()
        {
            if self.grows_beside(id) {
                self.servers[id].waits = Some(now);
            } else {
                self.start_slowly(id, time, now);
            }
        }
        if state != HealthState::Up {
            self.servers[id].waits = None;
        }
        self.place(id);
        let (server, pool) = (&self.servers[id], &self.pools[pool_id]);
        let report = server.health.report(now);
        self.news.push(Effect::Tell(HealthNews {
            pool: pool.name.clone(),
            server: server.address,
            state,
            reason: server.health.reason().to_owned(),
            back_off: report.ejected_ms.map(Duration::from_millis),
            up: (pool.up() + usize::from(server.waits.is_some()), pool.len()),
        }));
        if state == HealthState::Down && pool.settings.health.on_down == OnDown::Close {
            self.news.push(Effect::EndSessions(id, EndReason::ServerDown));
        }
        if state != HealthState::Up {
            self.rescue(pool_id, now);
        }
    }
}

#[cfg(test)]
mod tests;

//! How servers that come up get their weight little by little. Where a ring has few points, or the policy has none, each
//! part is one change in the loop. A ring of many is made beside it, once for all whose next part has come by then; until
//! it is there everybody keeps the part that the ring of now gives, and who came up meanwhile waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::remake::{Remade, Remake, Step};
use super::server::{RAMP_PARTS, Ramp};
use super::{Model, PoolId, RAMP_PAUSE, ServerId, Starting};

/// The thread that makes rings has so many times as long for other things, or for nothing.
const PAUSE_FACTOR: u32 = 4;

/// How long after a ring could not be made it is tried again.
const AGAIN: Duration = Duration::from_secs(2);

impl Model {
    /// The servers that start slowly, and the part of their weight that they have.
    pub(crate) fn starting(&self) -> Starting {
        let mut starting = Starting::new();
        for server in self.servers.values() {
            if let Some(ramp) = server.ramp {
                let pool = self.pools[server.pool].name.clone();
                starting.entry(pool).or_default().insert(server.address, ramp.part);
            }
        }
        starting
    }

    /// The same of one pool.
    pub(super) fn starting_in(&self, pool: PoolId) -> BTreeMap<SocketAddr, u32> {
        let its = self.pools[pool].members.values().map(|id| &self.servers[*id]);
        its.filter_map(|server| Some((server.address, server.ramp?.part))).collect()
    }

    /// The next part of the weight of a server that starts slowly. The points of the ring that was changed.
    pub(super) fn grow(&mut self, id: ServerId, now: Instant) -> usize {
        let Some(server) = self.servers.get_mut(id).filter(|server| server.ramp.is_some()) else { return 0 };
        let pool = &mut self.pools[server.pool];
        let time = pool.slow_start();
        server.ramp = server.ramp.zip(time).and_then(|(mut ramp, time)| {
            ramp.part = ramp.part_at(time, now);
            (ramp.part < RAMP_PARTS).then_some(ramp)
        });
        // A ring that had room for all of its points, as was checked, has room for a part of them.
        let synced = pool.sync(id, server);
        debug_assert_eq!(synced, Ok(()));
        self.picks_changed |= server.ramp.is_none();
        if let Some((ramp, time)) = server.ramp.zip(time) {
            self.ramps.insert((ramp.next(time), id));
        }
        pool.picker.ring().map_or(0, |ring| ring.points().len())
    }

    /// Whether a server gets its parts with rings that are made beside the loop. The next of them is noted then.
    pub(super) fn grows_beside(&mut self, id: ServerId) -> bool {
        let Some(server) = self.servers.get(id) else { return false };
        let ring = self.pools[server.pool].picker.ring();
        let beside = !server.settings.backup && ring.is_some_and(|ring| self.is_large(ring));
        if beside {
            self.growing.insert(server.pool);
        }
        beside
    }

    /// When there is a ring to be made for those who start slowly.
    pub(crate) fn next_growth_due(&self) -> Option<Instant> {
        (!self.growing.is_empty()).then(|| self.next_ramp.unwrap_or(self.vitals.started))
    }

    /// What the next of these rings is made from, and its pool. Until [`grown`](Self::grown) or
    /// [`growth_failed`](Self::growth_failed) is told what came of it, nothing else is to change the pool.
    pub(crate) fn next_growth(&mut self, now: Instant) -> Option<(PoolId, Box<Remake>)> {
        if self.next_ramp.is_some_and(|next| next > now) {
            return None;
        }
        while let Some(id) = self.growing.pop_first() {
            if let Some(remake) = self.growth_of(id, now) {
                return Some((id, Box::new(remake)));
            }
        }
        None
    }

    fn growth_of(&mut self, id: PoolId, now: Instant) -> Option<Remake> {
        let pool = self.pools.get(id)?;
        let (time, ring) = (pool.slow_start(), pool.picker.ring().filter(|ring| self.is_large(ring)).map(Arc::clone));
        let mut starting = self.starting_in(id);
        let mut parts = BTreeMap::new();
        for server in self.who_starts(id) {
            let entry = &self.servers[server];
            let part = entry.part_at(time, now);
            let is_in_ring = ring.is_some() && !entry.settings.backup;
            if is_in_ring && part != entry.ramp.map_or(RAMP_PARTS, |ramp| ramp.part) {
                parts.insert(entry.address, part);
                starting.insert(entry.address, part);
            } else if entry.waits.is_some() {
                self.start_now(server, now);
            } else if let (None, Some(_)) = (&ring, entry.ramp) {
                self.ramps.insert((now, server));
            }
        }
        starting.retain(|_, part| *part < RAMP_PARTS);
        if parts.is_empty() {
            self.await_next_parts(id);
            return None;
        }
        Some(Remake { before: ring, step: Step::Parts(parts), passed: BTreeSet::new(), starting, dry_run: false })
    }

    /// A ring was made in which servers have other parts, of what was `asked` for then.
    pub(crate) fn grown(&mut self, id: PoolId, remade: Remade, asked: Instant, now: Instant) {
        let Some(pool) = self.pools.get(id) else { return };
        let mut came_up = Vec::new();
        for server in pool.members.values().copied() {
            let entry = &mut self.servers[server];
            // Who came up later is not in this one as it is to be.
            if let Some(since) = entry.waits.take_if(|since| *since <= asked) {
                entry.ramp = Some(Ramp { since, part: RAMP_PARTS });
                came_up.push(server);
            }
        }
        self.swap_ring(id, remade, now);
        came_up.into_iter().for_each(|server| self.place(server));
        self.await_next_parts(id);
        self.next_ramp = Some(now + RAMP_PAUSE.max(PAUSE_FACTOR * now.saturating_duration_since(asked)));
    }

    /// The ring could not be made: who waits for it waits no longer.
    pub(crate) fn growth_failed(&mut self, id: PoolId, now: Instant) {
        let Some(pool) = self.pools.get(id) else { return };
        for server in pool.members.values().copied().collect::<Vec<_>>() {
            if self.servers[server].waits.take().is_some() {
                self.place(server);
            }
        }
        self.growing.insert(id);
        self.next_ramp = Some(now + AGAIN);
    }

    /// One that waits begins without another ring.
    fn start_now(&mut self, id: ServerId, now: Instant) {
        self.servers[id].waits = None;
        if let Some(time) = self.pools[self.servers[id].pool].slow_start() {
            self.start_slowly(id, time, now);
        }
        self.place(id);
    }

    /// Sets when those who start slowly in a pool get their next parts.
    fn await_next_parts(&mut self, id: PoolId) {
        let Some(time) = self.pools[id].slow_start() else { return };
        let ramps = self.who_starts(id).into_iter().filter_map(|server| Some((self.servers[server].ramp?, server)));
        let ramps: Vec<_> = ramps.map(|(ramp, server)| (ramp.next(time), server)).collect();
        self.ramps.extend(ramps);
    }

    /// Those of a pool that start slowly, or wait for that; also one that has become a backup since.
    fn who_starts(&self, id: PoolId) -> Vec<ServerId> {
        let starts = |id: &ServerId| {
            let server = &self.servers[*id];
            server.ramp.is_some() || server.waits.is_some()
        };
        self.pools[id].members.values().copied().filter(starts).collect()
    }
}

#[cfg(test)]
mod tests;

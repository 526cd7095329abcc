//! Least connections: the server with the fewest live sessions for its weight.
//!
//! It picks the least of (sessions + 1) / weight: what the load would be with this session, so that among idle servers
//! the heavier come first. Of equal ones it is the turn of the one that was picked least recently; one that is put in
//! counts as picked at that moment. Fractions are compared crosswise as integers, so equal is equal.
//!
//! It does not know which sessions there are: whoever counts them says so with [`LeastConnections::sessions`]. A server
//! that is put in without sessions gets every one until it has as many as the others; whoever wants it filled little by
//! little puts it in with a small weight and lets that grow.
//!
//! Those that have as many sessions as they may have stand apart, for they have the least load whenever the others have
//! more: they would be asked in vain by every pick, one after the other.

use std::collections::HashMap;
use std::hash::Hash;
use std::num::NonZeroU64;

use super::loads::{Entry, Loads};

/// The servers of a pool, by their load.
#[derive(Debug, Clone)]
pub(crate) struct LeastConnections<T> {
    /// Those that have room.
    open: Loads<T>,
    /// Those that have as many sessions as they may have.
    full: Loads<T>,
    /// The number of each server.
    slots: HashMap<T, u32>,
    /// Numbers that nobody has any more.
    free: Vec<u32>,
    /// How many sessions the one of each number may have.
    limits: Vec<Option<NonZeroU64>>,
    /// How many picks and additions there were.
    clock: u64,
}

impl<T: Copy + Eq + Hash> LeastConnections<T> {
    /// Without servers.
    pub(crate) fn new() -> Self {
        let (slots, free, limits) = (HashMap::new(), Vec::new(), Vec::new());
        Self { open: Loads::new(), full: Loads::new(), slots, free, limits, clock: 0 }
    }

    /// Puts a server in that has so many live sessions and may have so many, or changes that and its weight; the weight 0
    /// takes it out.
    pub(crate) fn set(&mut self, id: T, weight: u32, limit: Option<NonZeroU64>, sessions: u64) {
        if weight == 0 {
            self.remove(id);
            return;
        }
        let known = self.slots.get(&id).copied();
        let slot = known.unwrap_or_else(|| self.new_slot(id));
        let picked = match self.take(slot) {
            Some(entry) => entry.picked,
            None => {
                self.clock += 1;
                self.clock
            }
        };
        self.limits[slot as usize] = limit;
        let entry = Entry { id, load: sessions.saturating_add(1), weight, slot, picked };
        if self.is_full(slot, sessions) { self.full.insert(entry) } else { self.open.insert(entry) }
    }

    /// Takes a server out, if it is there.
    pub(crate) fn remove(&mut self, id: T) {
        let Some(slot) = self.slots.remove(&id) else { return };
        self.take(slot);
        self.free.push(slot);
    }

    /// The number of live sessions of a server is now this. Of one that is not there it is not kept.
    pub(crate) fn sessions(&mut self, id: T, sessions: u64) {
        let Some(slot) = self.slots.get(&id).copied() else { return };
        let load = sessions.saturating_add(1);
        let (its, other) = match self.is_full(slot, sessions) {
            true => (&mut self.full, &mut self.open),
            false => (&mut self.open, &mut self.full),
        };
        match other.remove(slot) {
            Some(entry) => its.insert(Entry { load, ..entry }),
            None => its.change(slot, |entry| entry.load = load),
        }
    }

    /// The one with the least load of those that have room and `may`; they are asked in their order until one may. Nothing
    /// is counted: who begins a session tells it with [`sessions`](Self::sessions).
    pub(crate) fn pick(&mut self, mut may: impl FnMut(T) -> bool) -> Option<T> {
        let first = *self.open.first()?;
        let Entry { id, slot, .. } = if may(first.id) { first } else { *self.open.search(may)? };
        self.clock += 1;
        let clock = self.clock;
        self.open.change(slot, |entry| entry.picked = clock);
        Some(id)
    }

    /// The one that would be picked now had it room, if that is one that has not.
    pub(crate) fn passed_over(&mut self) -> Option<T> {
        let full = self.full.first()?;
        self.open.first().is_none_or(|open| full.before(open)).then_some(full.id)
    }

    /// So many different servers, in the order in which they would be picked for a client that none of those before can
    /// take, without a change; also those that have no room, where they would come if they had.
    pub(crate) fn upcoming(&self, count: usize) -> Vec<T> {
        let mut order: Vec<_> = self.open.entries().iter().chain(self.full.entries()).collect();
        order.sort_unstable_by(|one, two| one.order(two));
        order.into_iter().take(count).map(|entry| entry.id).collect()
    }

    fn new_slot(&mut self, id: T) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.limits.push(None);
            self.limits.len() as u32 - 1
        });
        self.slots.insert(id, slot);
        slot
    }

    fn take(&mut self, slot: u32) -> Option<Entry<T>> {
        self.open.remove(slot).or_else(|| self.full.remove(slot))
    }

    fn is_full(&self, slot: u32, sessions: u64) -> bool {
        self.limits[slot as usize].is_some_and(|limit| sessions >= limit.get())
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Looks at everyone.
    #[derive(Debug, Clone, Default)]
    struct Naive {
        servers: Vec<Server>,
        clock: u64,
    }

    #[derive(Debug, Clone, Copy)]
    struct Server {
        id: u16,
        weight: u32,
        limit: Option<NonZeroU64>,
        sessions: u64,
        picked: u64,
    }

    impl Server {
        fn is_full(&self) -> bool {
            self.limit.is_some_and(|limit| self.sessions >= limit.get())
        }
    }

    impl Naive {
        fn set(&mut self, id: u16, weight: u32, limit: Option<NonZeroU64>, sessions: u64) {
            match self.servers.iter_mut().find(|server| server.id == id) {
                Some(server) => *server = Server { weight, limit, sessions, ..*server },
                None if weight > 0 => {
                    self.clock += 1;
                    self.servers.push(Server { id, weight, limit, sessions, picked: self.clock });
                }
                None => {}
            }
            self.servers.retain(|server| server.weight > 0);
        }

        fn first(&self, may: impl Fn(&Server) -> bool) -> Option<usize> {
            let able = (0..self.servers.len()).filter(|at| may(&self.servers[*at]));
            able.min_by(|one, two| {
                let (one, two) = (self.servers[*one], self.servers[*two]);
                let load = |server: Server| u128::from(server.sessions.saturating_add(1));
                let crosswise = (load(one) * u128::from(two.weight)).cmp(&(load(two) * u128::from(one.weight)));
                crosswise.then(one.picked.cmp(&two.picked))
            })
        }

        fn pick(&mut self, may: impl Fn(u16) -> bool) -> Option<u16> {
            let best = self.first(|server| !server.is_full() && may(server.id))?;
            self.clock += 1;
            self.servers[best].picked = self.clock;
            Some(self.servers[best].id)
        }

        fn passed_over(&self) -> Option<u16> {
            let first = self.servers[self.first(|_| true)?];
            first.is_full().then_some(first.id)
        }

        fn sessions(&mut self, id: u16, sessions: u64) {
            if let Some(server) = self.servers.iter_mut().find(|server| server.id == id) {
                server.sessions = sessions;
            }
        }
    }

    fn policy(weights: &[u32]) -> LeastConnections<u16> {
        let mut policy = LeastConnections::new();
        for (n, weight) in weights.iter().enumerate() {
            policy.set(n as u16, *weight, None, 0);
        }
        policy
    }

    #[test]
    fn nobody_picks_nobody() {
        let mut policy = policy(&[]);
        assert_eq!(policy.pick(|_| true), None);
        assert!(policy.upcoming(3).is_empty());
        policy.set(1, 0, None, 0);
        policy.remove(1);
        policy.sessions(1, 5);
        assert_eq!(policy.pick(|_| true), None);
        policy.set(1, 1, None, 0);
        assert_eq!(policy.pick(|_| false), None);
        assert_eq!(policy.pick(|_| true), Some(1));
    }

    #[test]
    fn equal_ones_go_in_turn() {
        let mut policy = policy(&[2; 4]);
        let picks: Vec<_> = (0..9).map_while(|_| policy.pick(|_| true)).collect();
        assert_eq!(picks, [0, 1, 2, 3, 0, 1, 2, 3, 0]);
    }

    #[test]
    fn sessions_fill_up_by_weight() {
        let mut policy = policy(&[4, 1, 1]);
        let mut live = [0; 3];
        let mut picks = Vec::new();
        for _ in 0..60 {
            let id = policy.pick(|_| true).expect("everyone may");
            live[usize::from(id)] += 1;
            policy.sessions(id, live[usize::from(id)]);
            picks.push(id);
        }
        assert_eq!(picks[..6], [0, 0, 0, 1, 2, 0]);
        assert_eq!(live, [40, 10, 10]);
    }

    #[test]
    fn full_ones_are_passed_over_until_they_have_room() {
        let mut policy = policy(&[1; 3]);
        for id in 0..2 {
            policy.set(id, 1, NonZeroU64::new(2), 2);
        }
        policy.sessions(2, 9);
        assert_eq!((policy.passed_over(), policy.pick(|_| true)), (Some(0), Some(2)));
        assert_eq!(policy.upcoming(3), [0, 1, 2]);
        policy.sessions(1, 1);
        assert_eq!((policy.passed_over(), policy.pick(|_| true)), (None, Some(1)));
        policy.sessions(1, 2);
        policy.set(0, 1, NonZeroU64::new(3), 2);
        assert_eq!((policy.passed_over(), policy.pick(|_| true)), (None, Some(0)));
        policy.set(0, 1, NonZeroU64::new(2), 2);
        policy.remove(2);
        assert_eq!((policy.passed_over(), policy.pick(|_| true)), (Some(1), None));
    }

    #[test]
    fn the_largest_numbers_are_compared_exactly() {
        let mut policy = policy(&[u32::MAX, u32::MAX - 1]);
        policy.sessions(0, u64::MAX);
        policy.sessions(1, u64::MAX);
        assert_eq!(policy.pick(|_| true), Some(0));
        policy.sessions(1, 0);
        assert_eq!(policy.pick(|_| true), Some(1));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Set(u16, u32, Option<NonZeroU64>, u64),
        Remove(u16),
        Sessions(u16, u64),
        Pick(u64),
        Begin(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let weight = || prop_oneof![0..4u32, 1..=65_536u32];
        let sessions = || prop_oneof![0..4u64, 0..100_000u64, any::<u64>()];
        let limit = prop_oneof![Just(0u64), 1..4u64, any::<u64>()];
        let step = prop_oneof![
            3 => (0..64u16, weight(), limit, sessions())
                .prop_map(|(id, weight, limit, sessions)| Step::Set(id, weight, NonZeroU64::new(limit), sessions)),
            1 => (0..64u16).prop_map(Step::Remove),
            4 => (0..64u16, sessions()).prop_map(|(id, sessions)| Step::Sessions(id, sessions)),
            3 => any::<u64>().prop_map(Step::Pick),
            3 => Just(Step::Pick(u64::MAX)),
            3 => any::<u64>().prop_map(Step::Begin),
        ];
        vec(step, 1..400)
    }

    proptest! {
        #[test]
        fn picks_are_those_of_a_naive_scan(steps in steps()) {
            let (mut policy, mut naive) = (LeastConnections::new(), Naive::default());
            for step in steps {
                match step {
                    Step::Set(id, weight, limit, sessions) => {
                        policy.set(id, weight, limit, sessions);
                        naive.set(id, weight, limit, sessions);
                    }
                    Step::Remove(id) => {
                        policy.remove(id);
                        naive.set(id, 0, None, 0);
                    }
                    Step::Sessions(id, sessions) => {
                        policy.sessions(id, sessions);
                        naive.sessions(id, sessions);
                    }
                    Step::Pick(mask) => {
                        let may = |id| mask >> id & 1 == 1;
                        let upcoming = policy.upcoming(64);
                        prop_assert_eq!(upcoming.len(), naive.servers.len());
                        prop_assert!(policy.upcoming(2).iter().eq(upcoming.iter().take(2)));
                        let is_full = |id: &u16| naive.servers.iter().any(|server| server.id == *id && server.is_full());
                        let expected = upcoming.iter().copied().find(|id| may(*id) && !is_full(id));
                        prop_assert_eq!(policy.passed_over(), upcoming.first().copied().filter(is_full));
                        prop_assert_eq!(policy.passed_over(), naive.passed_over());
                        let picked = policy.pick(may);
                        prop_assert_eq!(picked, expected);
                        prop_assert_eq!(picked, naive.pick(may));
                    }
                    Step::Begin(mask) => {
                        let may = |id| mask >> id & 1 == 1;
                        let picked = policy.pick(may);
                        prop_assert_eq!(picked, naive.pick(may));
                        if let Some(server) = naive.servers.iter().find(|server| Some(server.id) == picked).copied() {
                            policy.sessions(server.id, server.sessions.saturating_add(1));
                            naive.sessions(server.id, server.sessions.saturating_add(1));
                        }
                    }
                }
                let found = policy.open.entries().len() + policy.full.entries().len();
                prop_assert_eq!((found, policy.slots.len()), (naive.servers.len(), naive.servers.len()));
                prop_assert_eq!(policy.slots.len() + policy.free.len(), policy.limits.len());
            }
        }
    }
}

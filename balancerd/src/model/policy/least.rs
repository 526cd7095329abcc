//! Least connections: the server with the fewest live sessions for its weight.
//!
//! It picks the least of (sessions + 1) / weight: what the load would be with this session, so that among idle servers
//! the heavier come first. Of equal ones it is the turn of the one that was picked least recently; one that is put in
//! counts as picked at that moment. Fractions are compared crosswise as integers, so equal is equal.
//!
//! It does not know which sessions there are: whoever counts them says so with [`LeastConnections::sessions`]. A server
//! that is put in without sessions gets every one until it has as many as the others; whoever wants it filled little by
//! little puts it in with a small weight and lets that grow.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hash;

/// The servers of a pool, by their load.
#[derive(Debug, Clone)]
pub(crate) struct LeastConnections<T> {
    /// A heap: none comes before its [parent], but the first one if it is `late`.
    heap: Vec<Entry<T>>,
    /// The first one has changed and is to go down to its place. That waits until somebody needs the order: a pick is
    /// mostly followed by a session of the picked one, and so it goes down once for both.
    late: bool,
    /// The place of each server in `places`.
    slots: HashMap<T, u32>,
    /// Where in the heap it is: a server that moves tells it here, which costs no look-up by its id.
    places: Vec<u32>,
    /// How many picks and additions there were.
    clock: u64,
}

/// A server.
#[derive(Debug, Clone, Copy)]
struct Entry<T> {
    id: T,
    /// Its live sessions and one more.
    load: u64,
    weight: u32,
    slot: u32,
    /// When it was picked last, by the clock of the policy; different for each server.
    picked: u64,
}

/// A server that comes next in the search for one who may.
struct Candidate<'a, T> {
    entry: &'a Entry<T>,
    place: usize,
}

impl<T: Copy + Eq + Hash> LeastConnections<T> {
    /// Without servers.
    pub(crate) fn new() -> Self {
        Self { heap: Vec::new(), late: false, slots: HashMap::new(), places: Vec::new(), clock: 0 }
    }

    /// Puts a server in that has so many live sessions, or changes its weight and their number; the weight 0 takes it
    /// out.
    pub(crate) fn set(&mut self, id: T, weight: u32, sessions: u64) {
        if weight == 0 {
            self.remove(id);
            return;
        }
        self.catch_up();
        let place = match self.slots.get(&id) {
            Some(slot) => self.places[*slot as usize] as usize,
            None => {
                let (place, slot) = (self.heap.len(), self.heap.len() as u32);
                self.slots.insert(id, slot);
                self.places.push(slot);
                self.clock += 1;
                self.heap.push(Entry { id, load: 0, weight, slot, picked: self.clock });
                place
            }
        };
        let entry = &mut self.heap[place];
        (entry.weight, entry.load) = (weight, sessions.saturating_add(1));
        self.restore(place);
    }

    /// Takes a server out, if it is there.
    pub(crate) fn remove(&mut self, id: T) {
        let Some(slot) = self.slots.remove(&id) else { return };
        self.catch_up();
        let place = self.places.swap_remove(slot as usize) as usize;
        // The slot of the last one is now that of the removed one; so is the place in the heap.
        if let Some(moved) = self.places.get(slot as usize) {
            let moved = &mut self.heap[*moved as usize];
            moved.slot = slot;
            self.slots.insert(moved.id, slot);
        }
        self.heap.swap_remove(place);
        if let Some(moved) = self.heap.get(place) {
            self.places[moved.slot as usize] = place as u32;
            self.restore(place);
        }
    }

    /// The number of live sessions of a server is now this. Of one that is not there it is not kept.
    pub(crate) fn sessions(&mut self, id: T, sessions: u64) {
        let Some(slot) = self.slots.get(&id).copied() else { return };
        let place = self.places[slot as usize] as usize;
        if place == 0 {
            self.heap[0].load = sessions.saturating_add(1);
            self.late = true;
            return;
        }
        self.catch_up();
        let place = self.places[slot as usize] as usize;
        self.heap[place].load = sessions.saturating_add(1);
        self.restore(place);
    }

    /// The one with the least load of those who `may`; they are asked in their order until one may. Nothing is counted:
    /// who begins a session tells it with [`sessions`](Self::sessions).
    pub(crate) fn pick(&mut self, mut may: impl FnMut(T) -> bool) -> Option<T> {
        self.catch_up();
        let first = self.heap.first()?.id;
        let place = if may(first) { 0 } else { self.search(may)? };
        let entry = &mut self.heap[place];
        let id = entry.id;
        self.clock += 1;
        entry.picked = self.clock;
        if place == 0 {
            self.late = true;
        } else {
            self.sift_down(place);
        }
        Some(id)
    }

    /// So many different servers, in the order in which they would be picked for a client that none of those before can
    /// take, without a change.
    pub(crate) fn upcoming(&self, count: usize) -> Vec<T> {
        let mut order: Vec<_> = self.heap.iter().collect();
        order.sort_unstable_by(|one, two| one.order(two));
        order.into_iter().take(count).map(|entry| entry.id).collect()
    }

    /// The place of the first one who may. A server comes after its parent, so only the children of those who were asked
    /// can be next.
    fn search(&self, mut may: impl FnMut(T) -> bool) -> Option<usize> {
        let candidate = |place: usize| self.heap.get(place).map(|entry| Candidate { entry, place });
        let mut candidates: BinaryHeap<_> = children(0).filter_map(candidate).collect();
        while let Some(Candidate { entry, place }) = candidates.pop() {
            if may(entry.id) {
                return Some(place);
            }
            candidates.extend(children(place).filter_map(candidate));
        }
        None
    }

    /// Lets the first one go down to its place, if it has to.
    fn catch_up(&mut self) {
        if self.late {
            self.late = false;
            self.sift_down(0);
        }
    }

    /// Brings a server whose load has changed to its place.
    fn restore(&mut self, place: usize) {
        let entry = self.heap[place];
        if place > 0 && entry.before(&self.heap[parent(place)]) {
            self.sift_up(place);
        } else {
            self.sift_down(place);
        }
    }

    fn sift_up(&mut self, mut place: usize) {
        let entry = self.heap[place];
        while place > 0 && entry.before(&self.heap[parent(place)]) {
            self.put(self.heap[parent(place)], place);
            place = parent(place);
        }
        self.put(entry, place);
    }

    fn sift_down(&mut self, mut place: usize) {
        let entry = self.heap[place];
        loop {
            let mut next = 2 * place + 1;
            let Some(mut child) = self.heap.get(next) else { break };
            if let Some(second) = self.heap.get(next + 1) {
                // No branch: which one is nobody's guess.
                next += usize::from(second.before(child));
                child = &self.heap[next];
            }
            if !child.before(&entry) {
                break;
            }
            self.put(*child, place);
            place = next;
        }
        self.put(entry, place);
    }

    fn put(&mut self, entry: Entry<T>, place: usize) {
        self.heap[place] = entry;
        self.places[entry.slot as usize] = place as u32;
    }
}

fn parent(place: usize) -> usize {
    (place - 1) / 2
}

fn children(place: usize) -> std::ops::RangeInclusive<usize> {
    2 * place + 1..=2 * place + 2
}

impl<T> Entry<T> {
    fn before(&self, other: &Self) -> bool {
        self.order(other).is_lt()
    }

    fn order(&self, other: &Self) -> Ordering {
        let crosswise = |one: &Self, two: &Self| u128::from(one.load) * u128::from(two.weight);
        (crosswise(self, other), self.picked).cmp(&(crosswise(other, self), other.picked))
    }
}

/// The greatest is the one with the least load, as the heap of the standard library wants it.
impl<T> Ord for Candidate<'_, T> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.entry.order(self.entry)
    }
}

impl<T> PartialOrd for Candidate<'_, T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Candidate<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T> Eq for Candidate<'_, T> {}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Looks at everyone: (id, weight, sessions, when it was picked).
    #[derive(Debug, Clone, Default)]
    struct Naive {
        servers: Vec<(u16, u32, u64, u64)>,
        clock: u64,
    }

    impl Naive {
        fn set(&mut self, id: u16, weight: u32, sessions: u64) {
            match self.servers.iter_mut().find(|server| server.0 == id) {
                Some(server) => (server.1, server.2) = (weight, sessions),
                None if weight > 0 => {
                    self.clock += 1;
                    self.servers.push((id, weight, sessions, self.clock));
                }
                None => {}
            }
            self.servers.retain(|server| server.1 > 0);
        }

        fn pick(&mut self, may: impl Fn(u16) -> bool) -> Option<u16> {
            let best = self.servers.iter_mut().filter(|server| may(server.0)).min_by(|one, two| {
                let (first, second) = (u128::from(one.2.saturating_add(1)), u128::from(two.2.saturating_add(1)));
                (first * u128::from(two.1)).cmp(&(second * u128::from(one.1))).then(one.3.cmp(&two.3))
            })?;
            self.clock += 1;
            best.3 = self.clock;
            Some(best.0)
        }

        fn sessions(&mut self, id: u16, sessions: u64) {
            if let Some(server) = self.servers.iter_mut().find(|server| server.0 == id) {
                server.2 = sessions;
            }
        }
    }

    fn policy(weights: &[u32]) -> LeastConnections<u16> {
        let mut policy = LeastConnections::new();
        for (n, weight) in weights.iter().enumerate() {
            policy.set(n as u16, *weight, 0);
        }
        policy
    }

    #[test]
    fn nobody_picks_nobody() {
        let mut policy = policy(&[]);
        assert_eq!(policy.pick(|_| true), None);
        assert!(policy.upcoming(3).is_empty());
        policy.set(1, 0, 0);
        policy.remove(1);
        policy.sessions(1, 5);
        assert_eq!(policy.pick(|_| true), None);
        policy.set(1, 1, 0);
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
        Set(u16, u32, u64),
        Remove(u16),
        Sessions(u16, u64),
        Pick(u64),
        Begin(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let weight = || prop_oneof![0..4u32, 1..=65_536u32];
        let sessions = || prop_oneof![0..4u64, 0..100_000u64, any::<u64>()];
        let step = prop_oneof![
            3 => (0..64u16, weight(), sessions()).prop_map(|(id, weight, sessions)| Step::Set(id, weight, sessions)),
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
                    Step::Set(id, weight, sessions) => {
                        policy.set(id, weight, sessions);
                        naive.set(id, weight, sessions);
                    }
                    Step::Remove(id) => {
                        policy.remove(id);
                        naive.set(id, 0, 0);
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
                        let picked = policy.pick(may);
                        prop_assert_eq!(picked, naive.pick(may));
                        prop_assert_eq!(picked, upcoming.into_iter().find(|id| may(*id)));
                    }
                    Step::Begin(mask) => {
                        let may = |id| mask >> id & 1 == 1;
                        let picked = policy.pick(may);
                        prop_assert_eq!(picked, naive.pick(may));
                        if let Some(server) = naive.servers.iter().find(|server| Some(server.0) == picked).copied() {
                            policy.sessions(server.0, server.2.saturating_add(1));
                            naive.sessions(server.0, server.2.saturating_add(1));
                        }
                    }
                }
                prop_assert_eq!(policy.heap.len(), naive.servers.len());
                for (place, entry) in policy.heap.iter().enumerate() {
                    prop_assert_eq!(policy.places[policy.slots[&entry.id] as usize] as usize, place);
                }
            }
        }
    }
}

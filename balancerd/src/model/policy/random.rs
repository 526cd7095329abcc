//! The policies of chance: one draw by weight, and the better of two.
//!
//! Two choices is the "power of two choices" (Mitzenmacher, 1996): of two servers drawn at random the one with less load
//! keeps the fullest far below what one draw gives, without an order of all of them, and balancers that do not know of
//! each other do not all run to the same server. Both draw by weight.
//!
//! The generator is handed in: the same seed gives the same picks.

use std::collections::HashMap;
use std::hash::Hash;

use fastrand::Rng;

/// So many draws before everybody is asked, where there are more servers than that. Where nine tenths of the weight may not,
/// one pick in 800 comes to that.
const DRAWS: usize = 64;

/// One draw by weight.
#[derive(Debug, Clone)]
pub(crate) struct WeightedRandom<T> {
    servers: Vec<Entry<T>>,
    /// The place of each server in `servers`.
    places: HashMap<T, usize>,
    /// The sum of the weights.
    total: u64,
    /// An alias table (Walker, 1974): as many columns as servers, each as high as `total`, shared by at most two. Empty
    /// after a change, and made anew by the next pick, so that many changes at once cost one pass.
    columns: Vec<Column>,
}

/// A server.
#[derive(Debug, Clone, Copy)]
struct Entry<T> {
    id: T,
    weight: u32,
}

/// The server of the same place has the lower part of a column, up to `height`, another one the rest.
#[derive(Debug, Clone, Copy)]
struct Column {
    height: u64,
    other: usize,
}

impl<T: Copy + Eq + Hash> WeightedRandom<T> {
    /// Without servers.
    pub(crate) fn new() -> Self {
        Self { servers: Vec::new(), places: HashMap::new(), total: 0, columns: Vec::new() }
    }

    /// Puts a server in, or changes its weight; the weight 0 takes it out.
    pub(crate) fn set(&mut self, id: T, weight: u32) {
        if weight == 0 {
            self.remove(id);
            return;
        }
        let place = *self.places.entry(id).or_insert(self.servers.len());
        if place == self.servers.len() {
            self.servers.push(Entry { id, weight: 0 });
        }
        let entry = &mut self.servers[place];
        self.total = self.total - u64::from(entry.weight) + u64::from(weight);
        entry.weight = weight;
        self.columns.clear();
    }

    /// Takes a server out, if it is there.
    pub(crate) fn remove(&mut self, id: T) {
        let Some(place) = self.places.remove(&id) else { return };
        self.total -= u64::from(self.servers.swap_remove(place).weight);
        if let Some(moved) = self.servers.get(place) {
            self.places.insert(moved.id, place);
        }
        self.columns.clear();
    }

    /// Draws one of those who `may`, by weight.
    pub(crate) fn pick(&mut self, rng: &mut Rng, may: impl FnMut(T) -> bool) -> Option<T> {
        self.draw(rng, may).map(|entry| entry.id)
    }

    /// To draw again until one may gives each of them its share, but need not end. What draws among those who may gives
    /// the same shares: so the two can follow each other.
    fn draw(&mut self, rng: &mut Rng, mut may: impl FnMut(T) -> bool) -> Option<Entry<T>> {
        if self.servers.is_empty() {
            return None;
        }
        if self.columns.is_empty() {
            self.columns = columns(&self.servers, self.total);
        }
        for _ in 0..DRAWS.min(self.servers.len()) {
            let place = rng.usize(..self.columns.len());
            let column = self.columns[place];
            let entry = self.servers[if rng.u64(..self.total) < column.height { place } else { column.other }];
            if may(entry.id) {
                return Some(entry);
            }
        }
        self.draw_among(rng, may)
    }

    /// One pass: each who may takes the place of the one before it with the chance of its weight among those so far.
    fn draw_among(&self, rng: &mut Rng, mut may: impl FnMut(T) -> bool) -> Option<Entry<T>> {
        let mut total = 0;
        let mut drawn = None;
        for entry in self.servers.iter().filter(|entry| may(entry.id)) {
            total += u64::from(entry.weight);
            if rng.u64(..total) < u64::from(entry.weight) {
                drawn = Some(*entry);
            }
        }
        drawn
    }
}

/// Vose's way (1991) to fill the table, in integers: a server has `weight` times as many parts as there are servers, and
/// what one lacks to a full column comes from one that has too many.
fn columns<T>(servers: &[Entry<T>], total: u64) -> Vec<Column> {
    let parts = servers.iter().map(|entry| u64::from(entry.weight) * servers.len() as u64);
    let mut columns: Vec<_> = parts.enumerate().map(|(other, height)| Column { height, other }).collect();
    let (mut low, mut high): (Vec<_>, Vec<_>) = (0..servers.len()).partition(|place| columns[*place].height < total);
    while let (Some(poor), Some(rich)) = (low.pop(), high.last().copied()) {
        columns[poor].other = rich;
        columns[rich].height -= total - columns[poor].height;
        if columns[rich].height < total {
            high.pop();
            low.push(rich);
        }
    }
    columns
}

/// Two draws by weight, and of these the server with less load.
#[derive(Debug, Clone)]
pub(crate) struct TwoChoices<T> {
    servers: WeightedRandom<T>,
}

impl<T: Copy + Eq + Hash> TwoChoices<T> {
    /// Without servers.
    pub(crate) fn new() -> Self {
        Self { servers: WeightedRandom::new() }
    }

    /// Puts a server in, or changes its weight; the weight 0 takes it out.
    pub(crate) fn set(&mut self, id: T, weight: u32) {
        self.servers.set(id, weight);
    }

    /// Takes a server out, if it is there.
    pub(crate) fn remove(&mut self, id: T) {
        self.servers.remove(id);
    }

    /// Draws two different ones of those who `may`, by weight, and gives the one that has less of `load` (its live
    /// sessions) for its weight; of equal ones the first that was drawn, so that idle servers are picked by weight. If
    /// one alone may, that one.
    pub(crate) fn pick(&mut self, rng: &mut Rng, load: impl Fn(T) -> u64, mut may: impl FnMut(T) -> bool) -> Option<T> {
        let first = self.servers.draw(rng, &mut may)?;
        let Some(second) = self.servers.draw(rng, |id| id != first.id && may(id)) else { return Some(first.id) };
        let crosswise = |one: Entry<T>, two: Entry<T>| u128::from(load(one.id)) * u128::from(two.weight);
        Some(if crosswise(second, first) < crosswise(first, second) { second.id } else { first.id })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use fastrand::Rng;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn one(weights: &[u32]) -> WeightedRandom<usize> {
        let mut policy = WeightedRandom::new();
        weights.iter().enumerate().for_each(|(id, weight)| policy.set(id, *weight));
        policy
    }

    fn two(weights: &[u32]) -> TwoChoices<usize> {
        TwoChoices { servers: one(weights) }
    }

    /// How far the counts are from the weights: chi-square, less its mean, in its standard deviations.
    fn distance(counts: &[u32], weights: &[u32]) -> f64 {
        let (picks, total) = (f64::from(counts.iter().sum::<u32>()), f64::from(weights.iter().sum::<u32>()));
        let mut freedom = -1.0;
        let mut chi_square = 0.0;
        for (count, weight) in counts.iter().zip(weights) {
            if *weight == 0 {
                assert_eq!(*count, 0);
                continue;
            }
            let due = picks * f64::from(*weight) / total;
            chi_square += (f64::from(*count) - due).powi(2) / due;
            freedom += 1.0;
        }
        if freedom == 0.0 { 0.0 } else { (chi_square - freedom) / (2.0 * freedom).sqrt() }
    }

    fn counts(servers: usize, picks: u32, mut pick: impl FnMut() -> Option<usize>) -> Vec<u32> {
        let mut counts = vec![0; servers];
        for _ in 0..picks {
            counts[pick().expect("someone may")] += 1;
        }
        counts
    }

    #[test]
    fn nobody_picks_nobody() {
        let mut rng = Rng::with_seed(1);
        let (mut one, mut two) = (one(&[0]), two(&[0]));
        assert_eq!(one.pick(&mut rng, |_| true), None);
        assert_eq!(two.pick(&mut rng, |_| 0, |_| true), None);
        one.set(0, 1);
        two.set(0, 1);
        assert_eq!(one.pick(&mut rng, |_| false), None);
        assert_eq!(two.pick(&mut rng, |_| 0, |_| false), None);
        assert_eq!(one.pick(&mut rng, |_| true), Some(0));
        assert_eq!(two.pick(&mut rng, |_| 9, |_| true), Some(0));
        one.remove(0);
        two.remove(0);
        assert_eq!(one.pick(&mut rng, |_| true), None);
        assert_eq!(two.pick(&mut rng, |_| 0, |_| true), None);
    }

    #[test]
    fn of_two_the_one_with_less_load_for_its_weight_is_picked() {
        let mut rng = Rng::with_seed(2);
        let mut policy = two(&[3, 1]);
        for _ in 0..100 {
            assert_eq!(policy.pick(&mut rng, |id| [5, 2][id], |_| true), Some(0));
            assert_eq!(policy.pick(&mut rng, |id| [7, 2][id], |_| true), Some(1));
            assert_eq!(policy.pick(&mut rng, |id| [7, 2][id], |id| id == 0), Some(0));
            assert_eq!(policy.pick(&mut rng, |id| [u64::MAX, 2][id], |_| true), Some(1));
        }
    }

    #[test]
    fn equal_loads_are_picked_by_weight() {
        let weights = [1, 2, 3, 10];
        let (mut policy, mut rng) = (two(&weights), Rng::with_seed(3));
        let counts = counts(4, 100_000, || policy.pick(&mut rng, |_| 0, |_| true));
        assert!(distance(&counts, &weights) < 4.0, "{counts:?}");
    }

    #[test]
    fn two_choices_keep_the_fullest_lower_than_one() {
        for seed in 0..20 {
            let mut rng = Rng::with_seed(seed);
            let weights: Vec<u32> = (0..200).map(|_| rng.u32(1..=4)).collect();
            let total: u32 = weights.iter().sum();
            let (mut one, mut two) = (one(&weights), two(&weights));
            let (mut with_one, mut with_two) = (vec![0u64; 200], vec![0u64; 200]);
            for _ in 0..total * 10 {
                with_one[one.pick(&mut rng, |_| true).expect("everyone may")] += 1;
                let id = two.pick(&mut rng, |id| with_two[id], |_| true).expect("everyone may");
                with_two[id] += 1;
            }
            let fullest = |counts: &[u64]| {
                let loads = counts.iter().zip(&weights).map(|(count, weight)| *count as f64 / f64::from(*weight));
                loads.fold(0.0, f64::max)
            };
            // 10 for each weight would be even.
            assert!(fullest(&with_two) <= 13.0, "{}", fullest(&with_two));
            assert!(fullest(&with_one) >= 15.0, "{}", fullest(&with_one));
        }
    }

    #[test]
    fn the_draw_among_those_who_may_is_by_weight() {
        let weights = [5, 1, 0, 7, 2, 2, 0, 40];
        let (policy, mut rng) = (one(&weights), Rng::with_seed(4));
        let counts = counts(8, 100_000, || policy.draw_among(&mut rng, |id| id != 7).map(|entry| entry.id));
        assert!(distance(&counts[..7], &weights[..7]) < 4.0 && counts[7] == 0, "{counts:?}");
    }

    #[test]
    fn a_rare_one_who_alone_may_is_found() {
        let (mut policy, mut rng) = (one(&[65_536, 1, 65_536]), Rng::with_seed(5));
        for _ in 0..100 {
            assert_eq!(policy.pick(&mut rng, |id| id == 1), Some(1));
        }
    }

    #[test]
    fn equal_seeds_give_equal_picks() {
        let picks = |seed| {
            let (mut policy, mut rng) = (one(&[1, 2, 3]), Rng::with_seed(seed));
            (0..50).map(|_| policy.pick(&mut rng, |_| true)).collect::<Vec<_>>()
        };
        assert_eq!(picks(6), picks(6));
        assert_ne!(picks(6), picks(7));
    }

    fn weights() -> impl Strategy<Value = Vec<u32>> {
        prop_oneof![vec(1..=10u32, 1..50), vec(1..=65_536u32, 1..50), vec(1..=u32::MAX, 1..10)]
    }

    proptest! {
        #[test]
        fn the_table_has_exactly_the_weights(weights in weights()) {
            let policy = one(&weights);
            let mut parts = vec![0u128; weights.len()];
            for (place, column) in columns(&policy.servers, policy.total).iter().enumerate() {
                let height = column.height.min(policy.total);
                parts[place] += u128::from(height);
                parts[column.other] += u128::from(policy.total - height);
            }
            let expected: Vec<_> = weights.iter().map(|weight| u128::from(*weight) * weights.len() as u128).collect();
            prop_assert_eq!(parts, expected);
        }

        #[test]
        fn changes_leave_what_a_new_policy_would_have(changes in vec((0..12usize, 0..5u32), 0..60)) {
            let mut policy = WeightedRandom::new();
            let mut expected = BTreeMap::new();
            let mut rng = Rng::with_seed(8);
            for (id, weight) in changes {
                policy.set(id, weight);
                expected.insert(id, weight);
                expected.retain(|_, weight| *weight > 0);
                let pick = policy.pick(&mut rng, |_| true);
                prop_assert_eq!(pick.is_some(), !expected.is_empty());
                prop_assert!(pick.is_none_or(|id| expected.contains_key(&id)));
            }
            let found: BTreeMap<_, _> = policy.servers.iter().map(|entry| (entry.id, entry.weight)).collect();
            prop_assert_eq!(policy.total, found.values().copied().map(u64::from).sum::<u64>());
            prop_assert!(policy.places.iter().all(|(id, place)| policy.servers[*place].id == *id));
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn picks_follow_the_weights_of_those_who_may() {
        for seed in 0..40 {
            let mut rng = Rng::with_seed(seed);
            let servers = rng.usize(2..40);
            let mut weights: Vec<u32> = (0..servers).map(|_| rng.u32(1..=20)).collect();
            let (mut one, mut two) = (one(&weights), two(&weights));
            let limit = rng.usize(1..=servers);
            let singles = counts(servers, 40_000, || one.pick(&mut rng, |id| id < limit));
            let pairs = counts(servers, 40_000, || two.pick(&mut rng, |_| 0, |id| id < limit));
            weights[limit..].fill(0);
            for counts in [singles, pairs] {
                assert!(distance(&counts, &weights) < 4.5, "seed {seed}: {counts:?} for {weights:?}");
            }
        }
    }
}

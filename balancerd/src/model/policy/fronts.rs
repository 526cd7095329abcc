//! Which of many numbers is the highest while each grows by its own step every turn: the fronts of [`RoundRobin`]'s queues.
//!
//! A number that grows is a line over the turns. Lines of much the same growth stand together in blocks, and of each block
//! there is a line that none of them is above, its bound: the highest that was found when they were looked at last, with the
//! greatest growth among them. The bounds stand together in blocks in turn, and so on. A turn goes from the last few bounds
//! down to the line where they are the highest, and again where others are higher than what it has found. With bounds as
//! tight as the growths are alike, that is seldom.
//!
//! [`RoundRobin`]: super::RoundRobin

/// Lines in a block. Of 4, 8 and 16 this is the fastest with 10 lines and with 256; with 1000 they are alike.
const BLOCK: usize = 16;

/// Lines, each at its place.
#[derive(Debug, Clone, Default)]
pub(super) struct Fronts {
    /// How many there are.
    count: usize,
    /// The lines, the bounds of their blocks, the bounds of the blocks of those, and so on. The last are one block.
    levels: Vec<Vec<Block>>,
    /// How many turns there were.
    turns: i64,
    /// The place that the last turn gave.
    best: usize,
    /// For each level how high the others are of the block on the way to it.
    rests: Vec<i64>,
}

/// Lines of much the same growth. Always as many, so that they are compared without a loop.
type Block = [Line; BLOCK];

/// A number that grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Line {
    /// What it was at turn 0, or would have been.
    start: i64,
    growth: i64,
}

impl Fronts {
    /// Lines with these numbers now, and by how much each grows in a turn, sorted by that. Whoever makes it sees to it that
    /// no number leaves an `i64` in the turns that follow: it is made anew from time to time.
    pub(super) fn new(lines: impl Iterator<Item = (i64, i64)>) -> Self {
        let lines: Vec<Line> = lines.map(|(now, growth)| Line { start: now, growth }).collect();
        debug_assert!(lines.is_sorted_by_key(|line| line.growth), "of the last of a block it is the greatest");
        let mut levels = vec![blocks(&lines)];
        while let Some(below) = levels.last().filter(|level| level.len() > 1) {
            let bounds: Vec<Line> = below.iter().map(bound).collect();
            levels.push(blocks(&bounds));
        }
        let rests = vec![i64::MIN; levels.len()];
        Self { count: lines.len(), levels, turns: 0, best: 0, rests }
    }

    /// Lets all grow by a turn, and gives the place of the one that is the highest then; of equal ones the one that comes
    /// `before` the others. Nothing if there is none.
    pub(super) fn turn(&mut self, before: impl Fn(usize, usize) -> bool) -> Option<usize> {
        match self.count {
            0 => return None,
            1 => return Some(0),
            _ => self.turns += 1,
        }
        loop {
            let (highest, others) = self.descend();
            if others < highest {
                break;
            }
            if others == highest {
                let top = self.levels.len() - 1;
                let first = self.first_of_equals(top, 0, highest, &before);
                self.go_to(first.unwrap_or(self.best));
                break;
            }
            // The bound that led here was too high, and is lower from now on.
            self.lower(highest);
        }
        Some(self.best)
    }

    /// Sets the number of the one that the last turn gave, to a lower one or the same.
    pub(super) fn lower(&mut self, now: i64) {
        if self.count == 1 {
            return;
        }
        let (turns, mut place, mut highest) = (self.turns, self.best, now);
        debug_assert!(
            now <= self.levels[0][place / BLOCK][place % BLOCK].at(turns),
            "a bound holds only if none rises above its line"
        );
        for (level, rest) in self.levels.iter_mut().zip(&self.rests) {
            let line = &mut level[place / BLOCK][place % BLOCK];
            line.start = highest - turns * line.growth;
            highest = highest.max(*rest);
            place /= BLOCK;
        }
    }

    /// Goes to the highest of each block, from the last bounds down to a line. How high that is, and how high the others
    /// may be at most.
    fn descend(&mut self) -> (i64, i64) {
        let (mut place, mut highest, mut others) = (0, i64::MIN, i64::MIN);
        for (level, rest) in self.levels.iter().zip(&mut self.rests).rev() {
            let top = Top::of(&level[place], self.turns);
            (place, highest, *rest) = (place * BLOCK + top.place, top.first, top.second);
            others = others.max(top.second);
        }
        self.best = place;
        (highest, others)
    }

    /// Goes to the line at a place.
    fn go_to(&mut self, mut place: usize) {
        self.best = place;
        for (level, rest) in self.levels.iter().zip(&mut self.rests) {
            let others = level[place / BLOCK].iter().enumerate().filter(|(at, _)| *at != place % BLOCK);
            *rest = others.map(|(_, line)| line.at(self.turns)).max().unwrap_or(i64::MIN);
            place /= BLOCK;
        }
    }

    /// Of the lines below a block of a level that are as high as this, which is the highest, the first.
    fn first_of_equals(
        &self,
        level: usize,
        number: usize,
        highest: i64,
        before: &impl Fn(usize, usize) -> bool,
    ) -> Option<usize> {
        let lines = self.levels[level][number].iter().enumerate();
        let near = lines.filter(|(_, line)| line.at(self.turns) >= highest).map(|(at, _)| number * BLOCK + at);
        let equal = near.filter_map(|place| match level {
            0 => Some(place),
            _ => self.first_of_equals(level - 1, place, highest, before),
        });
        equal.reduce(|one, other| if before(other, one) { other } else { one })
    }
}

impl Line {
    /// One that is never the highest.
    const LEAST: Self = Self { start: i64::MIN, growth: 0 };

    fn at(self, turns: i64) -> i64 {
        self.start + turns * self.growth
    }
}

/// Lines in blocks, the last one filled up with such as are never the highest.
fn blocks(lines: &[Line]) -> Vec<Block> {
    let block = |lines: &[Line]| std::array::from_fn(|at| lines.get(at).copied().unwrap_or(Line::LEAST));
    lines.chunks(BLOCK).map(block).collect()
}

/// The line that none of a block is above from now on, at turn 0.
fn bound(block: &Block) -> Line {
    let growth = block.iter().map(|line| line.growth).max().unwrap_or(0);
    Line { start: Top::of(block, 0).first, growth }
}

/// The highest of a block.
#[derive(Debug, Clone, Copy)]
struct Top {
    place: usize,
    first: i64,
    /// How high the highest of the others is: as high where several are the highest.
    second: i64,
}

impl Top {
    fn of(block: &Block, turns: i64) -> Self {
        let mut top = Self { place: 0, first: i64::MIN, second: i64::MIN };
        let mut place = 0;
        // Two at a time, and no branches: which one is the highest is nobody's guess.
        for pair in block.as_chunks::<2>().0 {
            let (one, other) = (pair[0].at(turns), pair[1].at(turns));
            let (high, low) = (one.max(other), one.min(other));
            let higher = place + usize::from(other > one);
            top.place = if high > top.first { higher } else { top.place };
            top.second = top.second.max(low).max(high.min(top.first));
            top.first = top.first.max(high);
            place += 2;
        }
        top
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn of_none_none_is_the_highest() {
        assert_eq!(Fronts::default().turn(|_, _| true), None);
        assert_eq!(Fronts::new(std::iter::empty()).turn(|_, _| true), None);
    }

    #[test]
    fn of_equal_ones_in_different_blocks_the_one_before_the_others_is_given() {
        let lines = || (0..4 * BLOCK).map(|_| (7, 1));
        for first in 0..4 * BLOCK {
            assert_eq!(Fronts::new(lines()).turn(|one, _| one == first), Some(first));
        }
    }

    /// By how much all grow, few different values or many, and how much the highest pays each time.
    fn lines() -> impl Strategy<Value = (Vec<(i64, i64)>, i64)> {
        let growth = prop_oneof![1..=4i64, 1..=256i64, 1..=1i64 << 40];
        let start = prop_oneof![Just(0i64), -8..8i64, -1i64 << 40..1i64 << 40];
        let line = (start, growth);
        let lines =
            prop_oneof![4 => vec(line.clone(), 1..=80), 1 => vec(line, 1..=2 * BLOCK * BLOCK)].prop_map(|mut lines| {
                lines.sort_by_key(|(_, growth)| *growth);
                lines
            });
        (lines, prop_oneof![Just(0i64), 1..100i64, 1..=1i64 << 48])
    }

    proptest! {
        #[test]
        fn the_highest_is_that_of_a_plain_scan((lines, price) in lines(), order: u64, seed: u64) {
            let mut rng = fastrand::Rng::with_seed(seed);
            // Who comes first among equals: any order that stays.
            let rank = |place: usize| (place as u64).wrapping_mul(order | 1);
            let mut naive = lines.clone();
            let mut fronts = Fronts::new(lines.into_iter());
            for turn in 0..300 {
                naive.iter_mut().for_each(|(now, growth)| *now += *growth);
                let expected = (0..naive.len()).max_by_key(|place| (naive[*place].0, Reverse(rank(*place))));
                let given = fronts.turn(|one, other| rank(one) < rank(other));
                prop_assert_eq!(given, expected, "turn {}", turn);
                let now = &mut naive[expected.expect("there are some")].0;
                // As behind it in its queue there may be one that is as high, or further below.
                *now -= match rng.u8(..3) {
                    0 => 0,
                    1 => price,
                    _ => rng.i64(0..=price),
                };
                fronts.lower(*now);
                if rng.u8(..50) == 0 {
                    fronts = Fronts::new(naive.iter().copied());
                }
            }
        }
    }
}

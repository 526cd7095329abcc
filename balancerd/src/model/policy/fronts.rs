//! Which of many numbers is the highest while each grows by its own step every turn: the fronts of [`RoundRobin`]'s queues.
//!
//! A number that grows is a line over the turns. Who was the highest has paid and is far below the others, so the highest
//! is one of a few, and when another one will be among them is known beforehand. There is a mark: only the lines that have
//! reached it are compared. The others stand in a calendar, each at the turn in which it reaches the mark. When too many
//! have, the mark is raised, which costs a look at those. When none has, it is set anew, which costs a look at all, once in
//! some 1000 turns. Bounds of blocks of lines instead, and bounds of those, took up to twice as long.
//!
//! [`RoundRobin`]: super::RoundRobin

/// So many have reached the mark when it is set. With fewer there are sooner none, more of them take longer to compare.
const NEAR: usize = 10;

/// More than so many are too many, if it was not set where half as many had reached it, who are equal.
const MANY: usize = 24;

/// Turns in the calendar for each line. Who reaches the mark later stands at the last one, and is put further then.
const TURNS_PER_LINE: usize = 4;

/// No line.
const NONE: u32 = u32::MAX;

/// Lines, each at its place.
#[derive(Debug, Clone, Default)]
pub(super) struct Fronts {
    /// All of them. Those that are near may have been lowered since.
    lines: Vec<Line>,
    /// How many turns there were.
    turns: i64,
    mark: i64,
    /// Those that have reached the mark, or do so in a moment, in no order.
    near: Vec<Near>,
    /// More of them are too many.
    many: usize,
    /// Where among them the one is that the last turn gave.
    best: usize,
    /// For each turn the place of the first one that reaches the mark in it; a turn stands at its number without the
    /// multiples of the length. Nobody is in it while all are near.
    calendar: Vec<u32>,
}

/// A number that grows.
#[derive(Debug, Clone, Copy)]
struct Line {
    /// What it was at turn 0, or would have been.
    start: i64,
    growth: i64,
    /// 1 / growth.
    inverse: f64,
    /// The place of another one that reaches the mark in the same turn.
    next: u32,
}

/// A line that is near, and its place.
#[derive(Debug, Clone, Copy)]
struct Near {
    start: i64,
    growth: i64,
    place: u32,
}

impl Fronts {
    /// Lines with these numbers now, and by how much each grows in a turn: 1 or more. Whoever makes it sees to it that no
    /// number leaves an `i64`, nor is as far from another, in the turns that follow: it is made anew from time to time.
    pub(super) fn new(lines: impl Iterator<Item = (i64, i64)>) -> Self {
        let line = |(start, growth)| Line { start, growth, inverse: 1.0 / growth as f64, next: NONE };
        let lines: Vec<Line> = lines.map(line).collect();
        let calendar = vec![NONE; (TURNS_PER_LINE * lines.len()).next_power_of_two()];
        let mut fronts = Self { lines, calendar, ..Self::default() };
        fronts.take_all_near();
        fronts
    }

    /// Lets all grow by a turn, and gives the place of the one that is the highest then; of equal ones the one that comes
    /// `before` the others. Nothing if there is none.
    pub(super) fn turn(&mut self, before: impl Fn(usize, usize) -> bool) -> Option<usize> {
        match self.lines.len() {
            0 => return None,
            1 => return Some(0),
            _ => self.turns += 1,
        }
        self.arrive();
        if self.near.len() > self.many {
            self.raise_mark();
        }
        let mut highest = self.find_highest(&before);
        if highest < self.mark {
            self.take_all_near();
            self.raise_mark();
            highest = self.find_highest(&before);
        }
        debug_assert!(highest >= self.mark, "of all one is above those that are not near");
        Some(self.near[self.best].place as usize)
    }

    /// Sets the number of the one that the last turn gave, to a lower one or the same.
    pub(super) fn lower(&mut self, now: i64) {
        if self.lines.len() == 1 {
            return;
        }
        let near = &mut self.near[self.best];
        near.start = now - self.turns * near.growth;
        if now < self.mark {
            self.send_away(self.best);
        }
    }

    /// Takes those near that reach the mark in this turn, or the next.
    fn arrive(&mut self) {
        let day = self.turns as usize & (self.calendar.len() - 1);
        let mut place = std::mem::replace(&mut self.calendar[day], NONE);
        while place != NONE {
            let line = self.lines[place as usize];
            if line.at(self.turns + 1) >= self.mark {
                self.near.push(Near { start: line.start, growth: line.growth, place });
            } else {
                self.await_mark(place);
            }
            place = line.next;
        }
    }

    /// Goes to the highest of those that are near, and gives its number.
    fn find_highest(&mut self, before: &impl Fn(usize, usize) -> bool) -> i64 {
        let (mut highest, mut best) = (i64::MIN, 0);
        for (at, near) in self.near.iter().enumerate() {
            let now = near.at(self.turns);
            let is_before = || before(near.place as usize, self.near[best].place as usize);
            // A branch for equal ones only: which one is the highest is nobody's guess.
            let is_better = (now > highest) | (now == highest && is_before());
            best = if is_better { at } else { best };
            highest = highest.max(now);
        }
        self.best = best;
        highest
    }

    /// Takes all lines near.
    fn take_all_near(&mut self) {
        for near in &self.near {
            self.lines[near.place as usize].start = near.start;
        }
        let near = |(line, place): (&Line, u32)| Near { start: line.start, growth: line.growth, place };
        self.near.clear();
        self.near.extend(self.lines.iter().zip(0..).map(near));
        self.calendar.fill(NONE);
        (self.mark, self.many) = (i64::MIN, MANY);
    }

    /// Sets the mark where only a few are above it, and has the others wait.
    fn raise_mark(&mut self) {
        let mut numbers: Vec<i64> = self.near.iter().map(|near| near.at(self.turns)).collect();
        let at = numbers.len() - NEAR;
        self.mark = *numbers.select_nth_unstable(at).1;
        let mut at = 0;
        while at < self.near.len() {
            if self.near[at].at(self.turns) >= self.mark { at += 1 } else { self.send_away(at) }
        }
        // Of many that are equal all stay.
        self.many = MANY.max(2 * self.near.len());
    }

    /// Has one of those that are near wait for the mark.
    fn send_away(&mut self, at: usize) {
        let near = self.near.swap_remove(at);
        self.lines[near.place as usize].start = near.start;
        self.await_mark(near.place);
    }

    /// Puts one that is below the mark into the calendar.
    fn await_mark(&mut self, place: u32) {
        let line = &mut self.lines[place as usize];
        // May be a turn too early, as it is rounded down, but never too late.
        let wait = (self.mark - line.at(self.turns)) as f64 * line.inverse;
        let wait = (wait as i64).clamp(1, self.calendar.len() as i64 - 1);
        let day = (self.turns + wait) as usize & (self.calendar.len() - 1);
        line.next = std::mem::replace(&mut self.calendar[day], place);
    }
}

impl Line {
    fn at(self, turns: i64) -> i64 {
        self.start + turns * self.growth
    }
}

impl Near {
    fn at(self, turns: i64) -> i64 {
        self.start + turns * self.growth
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
    fn of_many_equal_ones_the_one_before_the_others_is_given() {
        let lines = || (0..4 * MANY).map(|_| (7, 1));
        for first in 0..4 * MANY {
            assert_eq!(Fronts::new(lines()).turn(|one, _| one == first), Some(first));
        }
    }

    /// By how much all grow, few different values or many, and how much the highest pays each time.
    fn lines() -> impl Strategy<Value = (Vec<(i64, i64)>, i64)> {
        let growth = prop_oneof![1..=4i64, 1..=256i64, 1..=1i64 << 40];
        let start = prop_oneof![Just(0i64), -8..8i64, -1i64 << 40..1i64 << 40];
        let line = (start, growth);
        let lines = prop_oneof![4 => vec(line.clone(), 1..=4 * MANY), 1 => vec(line, 1..=512)];
        lines.prop_flat_map(|lines| {
            let sum = lines.iter().map(|(_, growth)| *growth).sum();
            (Just(lines), prop_oneof![2 => Just(sum), 1 => Just(0), 1 => 1..100i64, 1 => 1..=1i64 << 48])
        })
    }

    proptest! {
        #[test]
        fn the_highest_is_that_of_a_plain_scan((lines, price) in lines(), order: u64, seed: u64) {
            let mut rng = fastrand::Rng::with_seed(seed);
            // Who comes first among equals: any order that stays.
            let rank = |place: usize| (place as u64).wrapping_mul(order | 1);
            let mut naive = lines.clone();
            // The calendar begins anew with its first turn.
            let turns = if lines.len() > 4 * MANY { 300 } else { 1200 };
            let mut fronts = Fronts::new(lines.into_iter());
            for turn in 0..turns {
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
                if rng.u16(..1000) == 0 {
                    fronts = Fronts::new(naive.iter().copied());
                }
            }
        }
    }
}

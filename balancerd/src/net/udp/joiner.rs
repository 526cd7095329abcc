//! Joins datagrams that come one behind the other to trains, as the kernel would: what a client sends in a burst goes on in
//! one call, and comes out of it as the datagrams that it was. The way through the kernel is what a datagram costs, and a
//! train goes it once.

use super::datagram::{LONGEST, Received, Train};

/// Datagrams of a train at most: what every kernel with UDP_SEGMENT takes.
const MOST_DATAGRAMS: usize = 64;

/// Bytes of a train at most: those of the longest datagram over IPv4.
const MOST_BYTES: usize = 65_507;

/// A buffer into which datagrams are received one behind the other.
#[derive(Debug, Default)]
pub(super) struct Joiner {
    /// Empty until it is needed.
    buffer: Box<[u8]>,
    /// Where the next one goes.
    end: usize,
    /// What may still be joined with it.
    open: Option<Joined>,
    /// What was before that.
    whole: Option<Joined>,
}

/// What has been joined so far.
#[derive(Debug, Clone, Copy)]
struct Joined {
    received: Received,
    start: usize,
}

impl Joiner {
    /// Where the next datagram is to be received: there is room for every one.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.buffer.is_empty() {
            self.buffer = vec![0; 2 * LONGEST].into();
        }
        &mut self.buffer[self.end..]
    }

    /// What was received there. All that [`Joiner::next_whole`] has is to be taken before the next one is.
    pub(super) fn add(&mut self, received: Received) {
        let start = self.end;
        self.end += received.length;
        match &mut self.open {
            Some(open) if open.received.may_be_joined_with(&received) => open.received.join(&received),
            open => self.whole = open.replace(Joined { received, start }),
        }
    }

    /// What nothing more is joined with.
    pub(super) fn next_whole(&mut self) -> Option<(Received, Train<'_>)> {
        let is_full = self.buffer.len() - self.end < LONGEST;
        let joined = self.whole.take().or_else(|| if is_full { self.open.take() } else { None });
        self.give(joined)
    }

    /// What is left when nothing more comes.
    pub(super) fn rest(&mut self) -> Option<(Received, Train<'_>)> {
        let joined = self.open.take();
        self.give(joined)
    }

    fn give(&mut self, joined: Option<Joined>) -> Option<(Received, Train<'_>)> {
        if self.open.is_none() {
            self.end = 0;
        }
        let Joined { received, start } = joined?;
        let bytes = &self.buffer[start..start + received.length];
        Some((received, Train::new(bytes, received.segment)))
    }
}

impl Received {
    /// Whether it is the beginning of a train that the other one, which came right behind it, belongs to.
    fn may_be_joined_with(&self, next: &Self) -> bool {
        let size = self.segment.unwrap_or(self.length);
        let is_one = next.segment.is_none() && (1..=size).contains(&next.length);
        // One that is shorter is the last.
        let is_open = size > 0 && self.length.is_multiple_of(size) && self.length / size < MOST_DATAGRAMS;
        let is_of_one = (self.from, self.to) == (next.from, next.to);
        let is_whole = !self.is_truncated && !next.is_truncated && self.in_fragments == next.in_fragments;
        is_one && is_open && is_of_one && is_whole && self.length + next.length <= MOST_BYTES
    }

    fn join(&mut self, next: &Self) {
        self.segment = Some(self.segment.unwrap_or(self.length));
        self.length += next.length;
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use proptest::prelude::*;

    use super::*;

    fn from(port: u16, length: usize, segment: Option<usize>) -> Received {
        let from = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Received { length, segment, from, to: None, overflows: None, in_fragments: false, is_truncated: false }
    }

    /// Gives all of them to a joiner. The trains that come out: who sent them, and their datagrams.
    fn through(all: &[(Received, Vec<u8>)]) -> Vec<(SocketAddr, Vec<Vec<u8>>)> {
        let mut trains = Vec::new();
        let mut take = |(received, train): (Received, Train<'_>)| {
            assert_eq!(train.bytes(), received.length);
            trains.push((received.from, train.datagrams().map(<[u8]>::to_vec).collect()));
        };
        let mut joiner = Joiner::default();
        for (received, bytes) in all {
            joiner.room()[..LONGEST][..bytes.len()].copy_from_slice(bytes);
            joiner.add(*received);
            while let Some(whole) = joiner.next_whole() {
                take(whole);
            }
        }
        joiner.rest().into_iter().for_each(take);
        assert!(joiner.rest().is_none() && joiner.next_whole().is_none());
        trains
    }

    #[test]
    fn what_one_sends_in_a_row_is_one_train_whose_last_may_be_shorter() {
        let all = [(1, "aa"), (1, "bb"), (1, "c"), (1, "dd"), (2, "ee"), (1, "ff"), (1, "ggg"), (1, ""), (1, "h")];
        let all = all.map(|(port, bytes)| (from(port, bytes.len(), None), bytes.as_bytes().to_vec()));
        let trains: Vec<Vec<String>> = (through(&all).into_iter())
            .map(|(_, train)| train.into_iter().map(|bytes| String::from_utf8(bytes).expect("ASCII")).collect())
            .collect();
        let expected: [&[&str]; 7] = [&["aa", "bb", "c"], &["dd"], &["ee"], &["ff"], &["ggg"], &[""], &["h"]];
        assert_eq!(trains, expected);
    }

    #[test]
    fn what_was_asked_elsewhere_or_came_in_part_goes_alone() {
        let there = Received { to: Some(Ipv4Addr::new(127, 0, 0, 2).into()), ..from(1, 2, None) };
        let part = Received { is_truncated: true, ..from(1, 2, None) };
        let parts = Received { in_fragments: true, ..from(1, 2, None) };
        let all = [from(1, 2, None), there, part, from(1, 2, None), parts].map(|received| (received, vec![7; 2]));
        assert_eq!(through(&all).len(), 5);
    }

    proptest! {
        /// Nothing is lost, doubled or changed, all of one client comes in its order, and the kernel takes each train.
        #[test]
        fn the_datagrams_stay_what_they_are(
            all in prop::collection::vec(
                (1u16..3, prop_oneof![Just(64usize), 0usize..70, 900usize..1400, Just(65_507)], 1usize..60),
                0..200,
            )
        ) {
            let all: Vec<(Received, Vec<u8>)> = all.into_iter().enumerate().map(|(at, (port, size, count))| {
                // Some have been joined by the kernel already.
                let length = if size > 0 && at % 5 == 0 { (size * count).min(65_507) } else { size };
                let bytes = (0..length).map(|byte| (at * 31 + byte * 7) as u8).collect();
                (from(port, length, Some(size).filter(|size| (1..length).contains(size))), bytes)
            }).collect();
            let sent = all.iter().flat_map(|(received, bytes)| {
                let datagrams = Train::new(bytes, received.segment).datagrams().map(<[u8]>::to_vec);
                datagrams.map(|datagram| (received.from, datagram)).collect::<Vec<_>>()
            });
            let trains = through(&all);
            for (_, train) in trains.iter().filter(|(_, train)| train.len() > 1) {
                let (last, others) = train.split_last().expect("several");
                prop_assert!(others.iter().all(|datagram| datagram.len() == train[0].len()));
                prop_assert!((1..=train[0].len()).contains(&last.len()));
                prop_assert!(train.concat().len() <= MOST_BYTES);
            }
            let received = trains.into_iter().flat_map(|(from, train)| train.into_iter().map(move |one| (from, one)));
            prop_assert_eq!(received.collect::<Vec<_>>(), sent.collect::<Vec<_>>());
        }
    }
}

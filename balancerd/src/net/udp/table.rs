//! The flows that there are: found by their key, looked at when they may be idle. No sockets, no servers' choice.
//!
//! A datagram costs one look into the table and one store of the time. When a flow may be idle is a guess that is made
//! once in its timeout.

use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

use hashbrown::HashTable;
use slotmap::SlotMap;
use wire::flow::FlowSettings;

use super::flow::{Flow, FlowKey};
use crate::event::Deadlines;
use crate::net::numbers::Numbers;

slotmap::new_key_type! {
    /// A flow, as long as it lives. A later one in the same slot has another generation.
    pub(crate) struct FlowId;
}

/// The flows.
#[derive(Debug)]
pub(super) struct Table<S> {
    slots: SlotMap<FlowId, Flow<S>>,
    numbers: Numbers<FlowId>,
    /// The keys stand in the slots: here they would be the larger part of an idle flow.
    by_key: HashTable<FlowId>,
    /// With a secret of its own: who knew it could choose ports that all fall into one place.
    hasher: RandomState,
    deadlines: Deadlines<FlowId>,
}

impl<S> Table<S> {
    pub(super) fn new() -> Self {
        Self {
            slots: SlotMap::with_key(),
            numbers: Numbers::new(),
            by_key: HashTable::new(),
            hasher: RandomState::new(),
            deadlines: Deadlines::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The flow that takes datagrams of this key.
    pub(super) fn find(&self, key: &FlowKey) -> Option<FlowId> {
        let hash = self.hasher.hash_one(key);
        self.by_key.find(hash, |id| self.slots[*id].key == *key).copied()
    }

    pub(super) fn get(&self, id: FlowId) -> Option<&Flow<S>> {
        self.slots.get(id)
    }

    pub(super) fn get_mut(&mut self, id: FlowId) -> Option<&mut Flow<S>> {
        self.slots.get_mut(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (FlowId, &Flow<S>)> {
        self.slots.iter()
    }

    pub(super) fn ids(&self) -> Vec<FlowId> {
        self.slots.keys().collect()
    }

    /// A flow begins. No other one takes datagrams of its key.
    pub(super) fn insert(&mut self, mut flow: Flow<S>, settings: &FlowSettings) -> FlowId {
        debug_assert!(self.find(&flow.key).is_none(), "the key is free");
        flow.guess = flow.deadline(settings);
        let (hash, guess, number) = (self.hasher.hash_one(flow.key), flow.guess, flow.number);
        let id = self.slots.insert(flow);
        self.numbers.insert(number, id);
        let (slots, hasher) = (&self.slots, &self.hasher);
        self.by_key.insert_unique(hash, id, |id| hasher.hash_one(slots[*id].key));
        self.look(id, guess);
        id
    }

    /// A flow takes no more datagrams of its client: the next one begins another.
    pub(super) fn close(&mut self, id: FlowId) {
        let Some(flow) = self.slots.get_mut(id) else { return };
        flow.is_closed = true;
        let hash = self.hasher.hash_one(flow.key);
        if let Ok(entry) = self.by_key.find_entry(hash, |other| *other == id) {
            entry.remove();
        }
    }

    /// A flow ends.
    pub(super) fn remove(&mut self, id: FlowId) -> Option<Flow<S>> {
        self.close(id);
        let flow = self.slots.remove(id)?;
        self.numbers.remove(flow.number);
        Some(flow)
    }

    /// The flow with this number.
    pub(super) fn of_number(&self, number: u64) -> Option<FlowId> {
        self.numbers.find(number)
    }

    /// The earliest time at which [`Table::due`] may have something.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.next()
    }

    /// A flow that is idle. `settings` is what holds for a flow now.
    pub(super) fn due(&mut self, now: Instant, settings: impl Fn(&Flow<S>) -> FlowSettings) -> Option<FlowId> {
        while let Some((at, id)) = self.deadlines.pop_due(now) {
            let Some(flow) = self.slots.get_mut(id).filter(|flow| flow.guess == at) else { continue };
            let deadline = flow.deadline(&settings(flow));
            if deadline <= now {
                return Some(id);
            }
            flow.guess = deadline;
            self.look(id, deadline);
        }
        None
    }

    /// What holds for a flow may have become shorter: looks at it by then.
    pub(super) fn hurry(&mut self, id: FlowId, settings: &FlowSettings) {
        let Some(flow) = self.slots.get_mut(id) else { return };
        let deadline = flow.deadline(settings);
        if deadline < flow.guess {
            flow.guess = deadline;
            self.look(id, deadline);
        }
    }

    fn look(&mut self, id: FlowId, at: Instant) {
        self.deadlines.push(at, id);
        let slots = &self.slots;
        self.deadlines.tidy(slots.len(), |at, id| slots.get(id).is_some_and(|flow| flow.guess == at));
    }
}

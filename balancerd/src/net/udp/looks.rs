//! Which flows are still to be looked at: whether they go on with another server. Looks take several turns, and what they
//! are for may change again meanwhile. No flows, no servers.

use super::table::FlowId;

/// The looks that are left.
#[derive(Debug, Default)]
pub(super) struct Looks {
    left: Vec<FlowId>,
    /// Something changed since they began: some were looked at before that.
    again: bool,
    /// Changes so far.
    changes: u32,
}

impl Looks {
    /// Every flow is to be looked at. Those that are left are first: who begins anew at each change looks at some flows
    /// all the time, and never at the others.
    pub(super) fn at_all(&mut self, flows: impl FnOnce() -> Vec<FlowId>) {
        self.changes = self.changes.wrapping_add(1);
        if self.left.is_empty() {
            self.left = flows();
        } else {
            self.again = true;
        }
    }

    /// The number of the last change: who was looked at after it need not be looked at again.
    pub(super) fn change(&self) -> u32 {
        self.changes
    }

    /// Some of those that are left, at most so many. `flows` is who is there, for when all are to be looked at again.
    pub(super) fn take(&mut self, most: usize, flows: impl FnOnce() -> Vec<FlowId>) -> Vec<FlowId> {
        let taken = self.left.split_off(self.left.len().saturating_sub(most));
        if self.left.is_empty() && std::mem::take(&mut self.again) {
            self.left = flows();
        }
        taken
    }

    /// Whether none is left.
    pub(super) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use slotmap::SlotMap;

    use super::*;

    #[test]
    fn each_is_looked_at_after_a_change_however_often_there_are_others() {
        let mut slots = SlotMap::<FlowId, ()>::with_key();
        for _ in 0..10 {
            slots.insert(());
        }
        let all = || slots.keys().collect::<Vec<_>>();
        let (mut looks, mut seen) = (Looks::default(), HashMap::<FlowId, usize>::new());
        for _ in 0..20 {
            looks.at_all(all);
            looks.take(3, all).into_iter().for_each(|id| *seen.entry(id).or_default() += 1);
        }
        assert!(seen.len() == 10 && seen.values().all(|count| (5..=6).contains(count)), "{seen:?}");
        // The last change was in the middle: those before it come again, and then there is an end.
        let mut after = Vec::new();
        while !looks.is_empty() {
            after.extend(looks.take(3, all));
        }
        assert!(all().iter().all(|id| after.contains(id)), "{after:?}");
        assert_eq!(looks.take(3, all), []);
    }
}

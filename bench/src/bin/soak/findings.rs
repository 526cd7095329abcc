//! What servers, clients and the administrator have found: faults, which fail the soak, and counts.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Faults that are kept; further ones are counted.
const MOST_FAULTS: usize = 20;

/// What was found so far.
#[derive(Default)]
pub(crate) struct Findings {
    faults: Mutex<Vec<String>>,
    further: AtomicU64,
    /// Clients and the administrator begin nothing new.
    pub(crate) over: AtomicBool,
    /// Bytes that were found right, of both directions.
    pub(crate) bytes: AtomicU64,
    /// Sessions of strict orders that ended early in the eyes of the server.
    pub(crate) cut_at_servers: AtomicU64,
    /// What happened how often, by what.
    counts: Mutex<BTreeMap<String, u64>>,
}

impl Findings {
    /// Something that must not be.
    pub(crate) fn fault(&self, what: String) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        if faults.len() < MOST_FAULTS {
            eprintln!("FAULT: {what}");
            faults.push(what);
        } else {
            self.further.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One more of these.
    pub(crate) fn count(&self, what: &str) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.get_mut(what) {
            Some(count) => *count += 1,
            None => drop(counts.insert(what.to_owned(), 1)),
        }
    }

    /// How many of these there were.
    pub(crate) fn counted(&self, what: &str) -> u64 {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).get(what).copied().unwrap_or_default()
    }

    /// All counts whose names begin so, without that beginning.
    pub(crate) fn counts(&self, begin: &str) -> Vec<(String, u64)> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().filter_map(|(name, count)| Some((name.strip_prefix(begin)?.to_owned(), *count))).collect()
    }

    /// Whether it is to end.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// The faults, and how many more there were.
    pub(crate) fn faults(&self) -> (Vec<String>, u64) {
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (faults, self.further.load(Ordering::Relaxed))
    }
}

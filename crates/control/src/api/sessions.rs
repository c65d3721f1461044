//! Counts of what lasts, by client.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// How many there are of something, together and for each client; neither ever beyond its limit.
#[derive(Debug)]
pub struct Counts<K> {
    counts: Mutex<(usize, HashMap<K, usize>)>,
    most: usize,
    most_each: usize,
}

/// One that is counted, until it is dropped.
#[derive(Debug)]
pub struct Counted<K: Eq + Hash> {
    counts: Arc<Counts<K>>,
    key: K,
}

impl<K: Eq + Hash + Clone> Counts<K> {
    pub fn new(most: usize, most_each: usize) -> Arc<Counts<K>> {
        Arc::new(Counts { counts: Mutex::default(), most, most_each })
    }

    /// One more for this client, if there is room.
    pub fn enter(self: &Arc<Self>, key: K) -> Option<Counted<K>> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, each) = &mut *counts;
        let own = each.get(&key).copied().unwrap_or(0);
        if *all >= self.most || own >= self.most_each {
            return None;
        }
        *all += 1;
        each.insert(key.clone(), own + 1);
        drop(counts);
        Some(Counted { counts: self.clone(), key })
    }
}

impl<K: Eq + Hash> Drop for Counted<K> {
    fn drop(&mut self) {
        let mut counts = self.counts.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, each) = &mut *counts;
        *all = all.saturating_sub(1);
        if let Some(own) = each.get_mut(&self.key) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                each.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_limit_is_passed_and_places_come_back() {
        let counts = Counts::new(3, 2);
        let first = counts.enter("a").unwrap();
        let _second = counts.enter("a").unwrap();
        assert!(counts.enter("a").is_none(), "two for each");
        let _third = counts.enter("b").unwrap();
        assert!(counts.enter("c").is_none(), "three together");

        drop(first);

        assert!(counts.enter("c").is_some());
        assert_eq!(counts.counts.lock().unwrap().1.len(), 2, "who has none is forgotten");
    }
}

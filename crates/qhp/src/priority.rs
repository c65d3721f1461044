//! A lock that is handed to the most urgent of those who wait.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::Priority;

/// Guards the transport's sending half: held for one frame at a time, so that an urgent frame waits for one bulk frame at
/// the most.
pub(crate) struct PriorityLock<T> {
    waiting: Mutex<Waiting>,
    /// One for each priority.
    turn: [Condvar; Priority::COUNT],
    value: Mutex<T>,
}

#[derive(Default)]
struct Waiting {
    held: bool,
    counts: [u32; Priority::COUNT],
}

pub(crate) struct Guard<'a, T> {
    lock: &'a PriorityLock<T>,
    /// `None` only while it is dropped.
    value: Option<MutexGuard<'a, T>>,
}

impl<T> PriorityLock<T> {
    pub fn new(value: T) -> PriorityLock<T> {
        PriorityLock { waiting: Mutex::default(), turn: Default::default(), value: Mutex::new(value) }
    }

    /// The lock if nobody holds it.
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.held {
            return None;
        }
        waiting.held = true;
        drop(waiting);
        Some(Guard { lock: self, value: Some(self.value.lock().unwrap_or_else(PoisonError::into_inner)) })
    }

    pub fn lock(&self, priority: Priority) -> Guard<'_, T> {
        let own = priority as usize;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.held {
            waiting.counts[own] += 1;
            let stay = |waiting: &mut Waiting| waiting.held || waiting.counts[..own].iter().any(|count| *count > 0);
            waiting = self.turn[own].wait_while(waiting, stay).unwrap_or_else(PoisonError::into_inner);
            waiting.counts[own] -= 1;
        }
        waiting.held = true;
        drop(waiting);
        Guard { lock: self, value: Some(self.value.lock().unwrap_or_else(PoisonError::into_inner)) }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        self.value = None;
        let mut waiting = self.lock.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.held = false;
        if let Some(next) = waiting.counts.iter().position(|count| *count > 0) {
            self.lock.turn[next].notify_one();
        }
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // Only `drop` takes the value away.
        self.value.as_deref().unwrap_or_else(|| unreachable!())
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_deref_mut().unwrap_or_else(|| unreachable!())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_most_urgent_goes_first() {
        let lock = Arc::new(PriorityLock::new(Vec::new()));
        let first = lock.lock(Priority::Normal);
        let enter = |priority: Priority| {
            let own = lock.clone();
            let thread = std::thread::spawn(move || own.lock(priority).push(priority));
            while lock.waiting.lock().unwrap().counts[priority as usize] == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            thread
        };
        let threads = [Priority::Bulk, Priority::Urgent, Priority::High].map(enter);
        drop(first);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(*lock.lock(Priority::Normal), [Priority::Urgent, Priority::High, Priority::Bulk]);
    }
}

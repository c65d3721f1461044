//! Events for readers who may be slow.
//!
//! A reader has a place in the sequence and reads on from the store; it is told that there is more by a number alone. So
//! a slow reader costs nothing, and one that is slower than the store forgets is told what it has missed.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use queztl_api::{Event, EventKind, Timestamp};
use tokio::sync::watch;

use crate::manager::Core;
use crate::service::EventStream;

pub(crate) struct Reader {
    core: Arc<Core>,
    last: watch::Receiver<u64>,
    /// The next event to be given.
    next: u64,
    read: VecDeque<Event>,
}

impl Reader {
    /// Reads from after number `after` on, or what is to come.
    pub(crate) fn new(core: &Arc<Core>, after: Option<u64>) -> Reader {
        let last = core.store.watch_events();
        // A number that is yet to come would wait for it in silence.
        let after = after.unwrap_or(u64::MAX).min(*last.borrow());
        Reader { core: core.clone(), last, next: after + 1, read: VecDeque::new() }
    }

    /// Puts in order what was read, and the gap before it.
    fn take(&mut self, events: Vec<Event>) {
        let Some(first) = events.first().map(|event| event.sequence) else { return };
        if first > self.next {
            let kind = EventKind::Lost { up_to: first - 1 };
            let message = format!("events {} to {} are no longer kept", self.next, first - 1);
            self.read.push_back(Event { sequence: first - 1, at: Timestamp::now(), kind, message });
        }
        self.next = events.last().map_or(self.next, |event| event.sequence + 1);
        self.read.extend(events);
    }
}

#[async_trait]
impl EventStream for Reader {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.read.pop_front() {
                return Some(event);
            }
            if self.core.is_closed() {
                return None;
            }
            if *self.last.borrow_and_update() >= self.next {
                let (core, next) = (self.core.clone(), self.next);
                let events = tokio::task::spawn_blocking(move || core.store.events_from(next)).await.ok()?;
                match events {
                    Ok(events) => self.take(events),
                    Err(error) => {
                        tracing::error!(%error, "events cannot be read");
                        return None;
                    }
                }
                continue;
            }
            let closed = self.core.closed();
            tokio::select! {
                changed = self.last.changed() => changed.ok()?,
                () = closed => {}
            }
        }
    }
}

//! The meeting point of the thread that has the guest's output and the thread that has the viewers. Nobody waits here.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;

use super::history::History;
use super::{MAX_WAITING_BYTES, Message};

/// Output that may wait for a disk before some of it is left out of the file.
const MAX_UNRECORDED_BYTES: usize = 1 << 20;

/// Takes a console's output and keeps it for those who want it.
#[derive(Debug)]
pub struct Hub {
    state: Mutex<State>,
    wake: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    history: History,
    /// Frames for each viewer; `None` for one that did not read and is to be let go.
    queues: BTreeMap<u64, Option<Vec<u8>>>,
    unrecorded: Vec<u8>,
    /// The console's thread has been told.
    told: bool,
    ended: bool,
}

impl Hub {
    /// A hub that nobody looks at yet.
    pub fn new() -> io::Result<Arc<Hub>> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Hub { state: Mutex::default(), wake }))
    }

    /// Takes output of the guest. Never waits for anybody.
    pub fn push(&self, bytes: &[u8]) {
        let mut state = self.lock();
        state.history.push(bytes);
        let room = MAX_UNRECORDED_BYTES.saturating_sub(state.unrecorded.len());
        state.unrecorded.extend(&bytes[..bytes.len().min(room)]);
        for queue in state.queues.values_mut() {
            if let Some(frames) = queue {
                Message::encode_output(bytes, frames);
                if frames.len() > MAX_WAITING_BYTES {
                    *queue = None;
                }
            }
        }
        self.tell(&mut state);
    }

    /// A writer whose bytes are the guest's output.
    pub fn writer(self: &Arc<Hub>) -> Box<dyn Write + Send> {
        Box::new(Writer(self.clone()))
    }

    /// Nothing more will be said.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        self.tell(&mut state);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// Has the console's thread look after the process's log as well.
    pub fn wake(&self) {
        self.tell(&mut self.lock());
    }

    /// Readable when there is something to fetch.
    pub(super) fn event(&self) -> &OwnedFd {
        &self.wake
    }

    /// What is to be recorded; takes the event back.
    pub(super) fn fetch(&self) -> Vec<u8> {
        let mut state = self.lock();
        if std::mem::take(&mut state.told) {
            let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
        }
        std::mem::take(&mut state.unrecorded)
    }

    /// From now on keeps frames for viewer `id`, the first of which is `first`, followed by the past if it is wanted.
    pub(super) fn join(&self, id: u64, first: &Message, scrollback: bool) {
        let mut state = self.lock();
        let mut frames = Vec::new();
        first.encode(&mut frames);
        if scrollback {
            Message::Scrollback(state.history.lines()).encode(&mut frames);
        }
        state.queues.insert(id, Some(frames));
    }

    pub(super) fn leave(&self, id: u64) {
        self.lock().queues.remove(&id);
    }

    /// The frames that wait for viewer `id`; `None` if it is to be let go.
    pub(super) fn frames(&self, id: u64) -> Option<Vec<u8>> {
        self.lock().queues.get_mut(&id)?.as_mut().map(std::mem::take)
    }

    /// Whether viewer `id` is to be let go.
    pub(super) fn is_lost(&self, id: u64) -> bool {
        self.lock().queues.get(&id).is_none_or(Option::is_none)
    }

    fn tell(&self, state: &mut State) {
        if !std::mem::replace(&mut state.told, true) {
            // The counter of an eventfd has room.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Writer(Arc<Hub>);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

//! The thread for requests that take long.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;

use super::{Answer, Request, Target};
use crate::confine;

/// Carries requests out one after the other; ends when dropped, after the request that it is at.
pub(super) struct Errands {
    jobs: Option<Sender<(u64, Request)>>,
    done: Arc<Done>,
    thread: Option<JoinHandle<()>>,
}

/// What has been carried out, by the client that asked.
struct Done {
    answers: Mutex<Vec<(u64, Answer)>>,
    event: OwnedFd,
}

impl Errands {
    pub fn start(target: Arc<dyn Target>) -> io::Result<Errands> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let done = Arc::new(Done { answers: Mutex::default(), event });
        let (jobs, queue) = channel();
        let body = {
            let done = done.clone();
            move || {
                confine::enter(confine::Kind::Snapshot);
                done.work(&queue, &*target);
            }
        };
        let thread = std::thread::Builder::new().name("snapshots".into()).spawn(body)?;
        Ok(Errands { jobs: Some(jobs), done, thread: Some(thread) })
    }

    /// Hands over a request of the client numbered `client`.
    pub fn give(&self, client: u64, request: Request) {
        if let Some(jobs) = &self.jobs {
            // The thread ends by a panic only, which ends this program.
            let _ = jobs.send((client, request));
        }
    }

    /// Readable when [`Errands::take`] has something.
    pub fn event(&self) -> &OwnedFd {
        &self.done.event
    }

    /// The answers that have come since.
    pub fn take(&self) -> Vec<(u64, Answer)> {
        let _ = rustix::io::read(&self.done.event, &mut [0u8; 8]);
        std::mem::take(&mut *self.done.answers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Done {
    fn work(&self, queue: &Receiver<(u64, Request)>, target: &dyn Target) {
        for (client, request) in queue {
            let answer = target.carry_out(request);
            self.answers.lock().unwrap_or_else(PoisonError::into_inner).push((client, answer));
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }
}

impl Drop for Errands {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

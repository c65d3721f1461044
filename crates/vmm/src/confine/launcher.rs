//! The launcher: a thread that starts and stops devices for vCPUs, whose own lists do not allow it.

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel, sync_channel};

use super::{KIND, Kind, enter};

type Job = Box<dyn FnOnce() + Send>;

static JOBS: OnceLock<Sender<Job>> = OnceLock::new();

/// Starts the thread; it lives as long as the process.
pub(super) fn start() -> io::Result<()> {
    let (jobs, queue) = channel::<Job>();
    std::thread::Builder::new().name("launcher".into()).spawn(move || {
        enter(Kind::Launcher);
        queue.into_iter().for_each(|job| job());
    })?;
    // `super::start` comes here once.
    let _ = JOBS.set(jobs);
    Ok(())
}

/// Carries out `work` and gives its result: on the launcher if this is a confined thread that may not start devices, such
/// as a vCPU's, else here.
///
/// # Panics
/// When `work` panics.
pub fn on_launcher<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let is_bound = KIND.get().is_some_and(|kind| !matches!(kind, Kind::Machine | Kind::Launcher));
    let Some(jobs) = JOBS.get().filter(|_| is_bound) else { return work() };
    let (done, result) = sync_channel(1);
    let job = move || {
        let _ = done.send(work());
    };
    // The thread ends only by a panic of some work, which ends this program.
    jobs.send(Box::new(job)).expect("the launcher thread runs");
    result.recv().expect("the launcher thread runs")
}

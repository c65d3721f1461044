//! The thread of a device: waits for its descriptors, hands events to the device's handler, and stops when told to.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::epoll::{self, EventData};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::gate::Pass;
use super::{Interrupt, Lockstep, QueueError};
use crate::confine;

pub use rustix::event::epoll::EventFlags as Ready;

/// The tokens of the stop event, of [`Lockstep::settle`] and of the machine's [`super::Gate`]; handlers use smaller ones.
const STOP: u64 = u64::MAX;
const SETTLE: u64 = u64::MAX - 1;
const GATE: u64 = u64::MAX - 2;
/// Events taken from the kernel at once.
const BATCH: usize = 32;

/// Why a device stops until it is reset.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("the device's thread cannot wait for events: {0}")]
    Poll(#[from] io::Error),
}

/// The descriptors that a device thread waits for.
pub struct Poller(OwnedFd);

impl Poller {
    fn new() -> io::Result<Poller> {
        Ok(Poller(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Waits for `fd` too; events carry `token`.
    pub fn add(&self, fd: impl AsFd, token: u64, ready: Ready) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, EventData::new_u64(token), ready)?)
    }

    /// Waits for events, for ever without a `limit`.
    fn wait(&self, events: &mut Vec<epoll::Event>, limit: Option<&Timespec>) -> io::Result<()> {
        events.clear();
        match epoll::wait(&self.0, rustix::buffer::spare_capacity(events), limit) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What a device does in its thread.
pub trait Handler: Send + 'static {
    /// Which system calls the thread may make.
    const THREAD: confine::Kind = confine::Kind::Device;

    /// Called first: adds descriptors, and looks at the queues once, since buffers may already wait there.
    fn start(&mut self, poller: &Poller) -> Result<(), Fault>;

    /// Called when a descriptor added under `token` is ready.
    fn handle(&mut self, token: u64, ready: Ready, poller: &Poller) -> Result<(), Fault>;

    /// Whether nothing is in flight: everything that was asked for up to now is done.
    fn is_idle(&self) -> bool {
        true
    }

    /// Called before a pause: waits for what is in flight to or from guest memory, and answers it.
    fn quiesce(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    /// Called after a pause.
    fn resume(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    /// Called last, or right after a fault: waits for what is still in flight to or from guest memory.
    fn finish(&mut self) {}
}

/// A running device thread.
pub struct Worker<H> {
    thread: JoinHandle<H>,
    stop: Arc<OwnedFd>,
}

impl<H: Handler> Worker<H> {
    /// Starts a thread called `name` (the kernel shows 15 bytes of it).
    pub fn spawn(name: &str, handler: H, interrupt: Arc<dyn Interrupt>) -> io::Result<Worker<H>> {
        let poller = Poller::new()?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        poller.add(&stop, STOP, Ready::IN)?;
        let serving = interrupt.lockstep().map(Serving::begin);
        if let Some(serving) = &serving {
            poller.add(serving.0.wake(), SETTLE, Ready::IN)?;
        }
        let pass = interrupt.gate().map(|gate| gate.enter()).transpose()?;
        if let Some(pass) = &pass {
            poller.add(pass.wake(), GATE, Ready::IN)?;
        }
        let body = {
            let ties = Ties { stop: stop.clone(), serving, pass };
            let name = name.to_string();
            move || run(&name, handler, &poller, interrupt.as_ref(), ties)
        };
        let thread = std::thread::Builder::new().name(name.to_string()).spawn(body)?;
        Ok(Worker { thread, stop })
    }

    /// Stops the thread and returns its handler; `None` if the thread has died.
    pub fn stop(self) -> Option<H> {
        // The counter of a fresh eventfd has room for one.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        self.thread.join().ok()
    }
}

/// A thread that serves in lockstep; ends, whatever happens to the thread, when dropped.
struct Serving(Arc<Lockstep>);

impl Serving {
    fn begin(lockstep: Arc<Lockstep>) -> Serving {
        lockstep.set_running(true);
        Serving(lockstep)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.set_running(false);
    }
}

/// What ties a device thread to the rest of its machine.
struct Ties {
    stop: Arc<OwnedFd>,
    serving: Option<Serving>,
    pass: Option<Pass>,
}

fn run<H: Handler>(name: &str, mut handler: H, poller: &Poller, interrupt: &dyn Interrupt, ties: Ties) -> H {
    confine::enter(H::THREAD);
    if let Err(fault) = serve(&mut handler, poller, &ties) {
        tracing::warn!(device = name, %fault, "the device stops until its driver resets it");
        interrupt.needs_reset();
        let Ties { stop, serving, pass } = ties;
        handler.finish();
        drop((serving, pass));
        let mut waiting = [PollFd::new(&stop, PollFlags::IN)];
        while poll(&mut waiting, None) == Err(rustix::io::Errno::INTR) {}
        return handler;
    }
    handler.finish();
    handler
}

fn serve<H: Handler>(handler: &mut H, poller: &Poller, ties: &Ties) -> Result<(), Fault> {
    // A device that is restored waits for the rest of its machine.
    if let Some(pass) = &ties.pass
        && !pass.wait(ties.stop.as_fd())
    {
        return Ok(());
    }
    handler.start(poller)?;
    let mut events = Vec::with_capacity(BATCH);
    loop {
        match &ties.serving {
            Some(serving) => settle(handler, poller, &serving.0, &mut events)?,
            None => poller.wait(&mut events, None)?,
        }
        for event in &events {
            let (flags, data) = (event.flags, event.data);
            match (data.u64(), &ties.pass) {
                (STOP, _) => return Ok(()),
                (SETTLE, _) => {}
                (GATE, Some(pass)) => {
                    handler.quiesce()?;
                    if pass.wait(ties.stop.as_fd()) {
                        handler.resume()?;
                    }
                }
                (token, _) => handler.handle(token, flags, poller)?,
            }
        }
    }
}

/// Waits for events like [`Poller::wait`]; says before it sleeps that nothing is left to do, if that is so.
fn settle<H: Handler>(
    handler: &H,
    poller: &Poller,
    lockstep: &Lockstep,
    events: &mut Vec<epoll::Event>,
) -> io::Result<()> {
    let seen = lockstep.asked();
    lockstep.wake().clear();
    poller.wait(events, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    if !events.is_empty() {
        return Ok(());
    }
    if handler.is_idle() {
        lockstep.served(seen);
    }
    poller.wait(events, None)
}

/// An eventfd through which other threads wake a device thread.
#[derive(Debug, Clone)]
pub struct Wake(Arc<OwnedFd>);

impl Wake {
    pub fn new() -> io::Result<Wake> {
        Ok(Wake(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    pub fn wake(&self) {
        // A full counter means that the thread is about to be woken anyway.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Forgets wake-ups that have arrived.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

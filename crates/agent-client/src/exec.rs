//! A command in the guest, its streams here.
//!
//! ```text
//!  caller's thread   messages of the agent ──> stdout and stderr's queues (a window each, at most), exit status
//!  stdout, stderr    queue ──> writer; then credit, so that a writer that blocks stops its stream only
//!  stdin             reader ──> data, as far as the agent gave credit
//! ```

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender as Queue, channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::Instant;

use queztl_agent_protocol::{Allowance, Exec, Exit, MAX_DATA_BYTES, Message, Overrun, Size, Window, features, stream};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::link::{Link, Sender};
use crate::{Agent, Error};

/// Where a command's streams lead.
#[derive(Default)]
pub struct Io<'a> {
    /// Read until its end; without it the command's input is empty. A terminal, pipe, socket or file.
    pub stdin: Option<BorrowedFd<'a>>,
    /// What is not given is dropped.
    pub stdout: Option<&'a mut (dyn Write + Send)>,
    pub stderr: Option<&'a mut (dyn Write + Send)>,
    /// Called once the command runs, with what other threads need to signal it.
    pub started: Option<&'a mut dyn FnMut(Controller)>,
}

impl<'a> Io<'a> {
    /// Standard output alone.
    pub fn output(stdout: &'a mut (dyn Write + Send)) -> Io<'a> {
        Io { stdout: Some(stdout), ..Io::default() }
    }
}

/// Reaches a running command from other threads.
#[derive(Debug, Clone)]
pub struct Controller(Sender);

impl Controller {
    /// Sends a signal (1 to 64) to the command's process group.
    ///
    /// # Errors
    /// What ends a connection. A command that has ended already is no error.
    pub fn signal(&self, number: u8) -> Result<(), Error> {
        self.0.send(&Message::Signal { number })
    }

    /// Ends the session, and with it the command: its group gets SIGHUP and, two seconds later, SIGKILL. The call that
    /// runs it ends with an error.
    pub fn hang_up(&self) {
        self.0.close();
    }

    /// Tells the command's terminal its size.
    ///
    /// # Errors
    /// As [`Controller::signal`].
    pub fn resize(&self, size: Size) -> Result<(), Error> {
        self.0.send(&Message::Resize(size))
    }
}

impl Agent {
    /// Runs a command to its end.
    ///
    /// `exec.stdin` is set from `io`. Returns when the command has ended and its output is written.
    ///
    /// # Errors
    /// [`Error::Guest`] when it cannot be started; [`Error::Output`] when a writer fails, after which the command is
    /// ended; [`Error::Silent`] when the agent shows no sign of life.
    pub fn exec(&mut self, exec: &Exec, io: Io<'_>) -> Result<Exit, Error> {
        self.need(if exec.terminal.is_some() { features::EXEC | features::TERMINAL } else { features::EXEC })?;
        let exec = Exec { stdin: io.stdin.is_some(), ..exec.clone() };
        self.link.sender.send(&Message::Exec(exec))?;
        match self.link.receive()? {
            Message::Started { .. } => {}
            Message::Error(fault) => return Err(Error::Guest(fault)),
            _ => return Err(Error::unexpected("no answer to a command")),
        }
        let sender = self.link.sender.clone();
        if let Some(started) = io.started {
            started(Controller(sender.clone()));
        }
        let shared = Shared::new(sender)?;
        let link = &mut self.link;
        let result = std::thread::scope(|scope| {
            let result = shared.run(scope, link, io.stdin, io.stdout, io.stderr);
            if result.is_err() {
                // Whoever waits for the socket learns of it.
                shared.sender.close();
            }
            // The threads end by themselves: their queues have, and input is woken.
            shared.stop();
            result
        });
        let first = shared.lock().failure.take();
        first.map_or(result, Err)
    }
}

fn spawn<'scope>(scope: &'scope Scope<'scope, '_>, body: impl FnOnce() + Send + 'scope) -> Result<(), Error> {
    let thread = std::thread::Builder::new().name("agent-io".into());
    thread.spawn_scoped(scope, body).map(drop).map_err(Error::Thread)
}

/// What the threads of a command share.
struct Shared {
    sender: Sender,
    state: Mutex<State>,
    credit: Condvar,
    /// Readable once the command has ended: wakes the thread that waits for input.
    stopped: OwnedFd,
}

#[derive(Default)]
struct State {
    input: Window,
    outputs: [Allowance; 2],
    stopped: bool,
    /// Why a thread of ours ended everything.
    failure: Option<Error>,
}

impl Shared {
    fn new(sender: Sender) -> Result<Shared, Error> {
        let stopped = eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| Error::Connection(error.into()))?;
        Ok(Shared { sender, state: Mutex::default(), credit: Condvar::new(), stopped })
    }

    /// Starts the threads and follows the command to its end.
    fn run<'scope, 'io: 'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        link: &mut Link,
        stdin: Option<BorrowedFd<'io>>,
        stdout: Option<&'io mut (dyn Write + Send)>,
        stderr: Option<&'io mut (dyn Write + Send)>,
    ) -> Result<Exit, Error> {
        let (to_stdout, out) = channel();
        let (to_stderr, err) = channel();
        spawn(scope, move || self.write_output(stream::STDOUT, out, stdout))?;
        spawn(scope, move || self.write_output(stream::STDERR, err, stderr))?;
        if let Some(stdin) = stdin {
            spawn(scope, move || self.send_input(stdin))?;
        }
        self.follow(link, to_stdout, to_stderr)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.lock().stopped = true;
        self.credit.notify_all();
        // An eventfd takes one more than it has unless it holds 2⁶⁴ - 2.
        let _ = rustix::io::write(&self.stopped, &1u64.to_ne_bytes());
    }

    /// Ends the session because a stream of this side failed.
    fn fail(&self, error: Error) {
        self.lock().failure.get_or_insert(error);
        self.sender.close();
    }

    /// Reads the agent's messages until the command has ended.
    fn follow(&self, link: &mut Link, stdout: Queue<Vec<u8>>, stderr: Queue<Vec<u8>>) -> Result<Exit, Error> {
        let mut queues = [Some(stdout), Some(stderr)];
        let mut asked: Option<u64> = None;
        let mut cookie = 0;
        let pause = link.limit() / 2;
        loop {
            let Some(message) = link.receive_until(Instant::now() + pause)? else {
                if asked.is_some() {
                    return Err(Error::Silent(link.limit()));
                }
                cookie += 1;
                asked = Some(cookie);
                self.sender.send(&Message::Ping { cookie })?;
                continue;
            };
            match message {
                Message::Data { stream: stream @ (stream::STDOUT | stream::STDERR), bytes } => {
                    self.queue(&queues, usize::from(stream) - 1, bytes)?;
                }
                Message::End { stream: stream @ (stream::STDOUT | stream::STDERR) } => {
                    let ended = queues.get_mut(usize::from(stream) - 1).and_then(Option::take);
                    ended.ok_or_else(|| Error::unexpected("the end of a stream twice"))?;
                }
                Message::Credit { stream: stream::STDIN, bytes } => {
                    self.lock().input.credit(bytes).map_err(overrun)?;
                    self.credit.notify_all();
                }
                Message::Pong { cookie } if asked == Some(cookie) => asked = None,
                Message::Exited(exit) => return Ok(exit),
                Message::Error(fault) => return Err(Error::Guest(fault)),
                _ => return Err(Error::unexpected("what is no part of a command")),
            }
        }
    }

    fn queue(&self, queues: &[Option<Queue<Vec<u8>>>; 2], index: usize, bytes: Vec<u8>) -> Result<(), Error> {
        let queue = queues.get(index).and_then(Option::as_ref);
        let queue = queue.ok_or_else(|| Error::unexpected("data after the end of a stream"))?;
        if let Some(allowance) = self.lock().outputs.get_mut(index) {
            allowance.receive(bytes.len()).map_err(overrun)?;
        }
        // The thread is gone only if its writer failed, which closes the connection.
        queue.send(bytes).map_err(|_| Error::Closed)
    }

    /// Writes a stream to its writer, and lets the agent send as much again.
    fn write_output(&self, stream: u8, queue: Receiver<Vec<u8>>, mut writer: Option<&mut (dyn Write + Send)>) {
        for bytes in queue {
            let written = match &mut writer {
                Some(writer) => writer.write_all(&bytes).and_then(|()| writer.flush()),
                None => Ok(()),
            };
            if let Err(error) = written {
                return self.fail(Error::Output(error));
            }
            let mut state = self.lock();
            if let Some(allowance) = state.outputs.get_mut(usize::from(stream).wrapping_sub(1)) {
                allowance.give(bytes.len());
            }
            let over = state.stopped;
            drop(state);
            let credit = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            // A connection that failed is noticed where messages are read.
            if !over && self.sender.send(&Message::Credit { stream, bytes: credit }).is_err() {
                self.sender.close();
            }
        }
    }

    /// Sends what there is to read, as far as the agent has room.
    fn send_input(&self, stdin: BorrowedFd<'_>) {
        let mut buffer = vec![0; MAX_DATA_BYTES];
        while let Some(room) = self.room_for_input() {
            let buffer = buffer.get_mut(..room.min(MAX_DATA_BYTES)).unwrap_or_default();
            let count = match self.read_input(stdin, buffer) {
                Ok(Some(count)) => count,
                Ok(None) => return,
                Err(error) => return self.fail(Error::Input(error)),
            };
            let message = match buffer.get(..count).filter(|bytes| !bytes.is_empty()) {
                Some(bytes) => Message::Data { stream: stream::STDIN, bytes: bytes.to_vec() },
                None => Message::End { stream: stream::STDIN },
            };
            self.lock().input.spend(count);
            // As above.
            if self.sender.send(&message).is_err() || count == 0 {
                return;
            }
        }
    }

    /// Waits for credit; `None` once the command has ended.
    fn room_for_input(&self) -> Option<usize> {
        let waiting = |state: &mut State| !state.stopped && state.input.available() == 0;
        let state = self.credit.wait_while(self.lock(), waiting).unwrap_or_else(PoisonError::into_inner);
        (!state.stopped).then(|| state.input.available())
    }

    /// Reads once; `None` if the command ends first.
    fn read_input(&self, stdin: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            let mut polled =
                [PollFd::from_borrowed_fd(stdin, PollFlags::IN), PollFd::new(&self.stopped, PollFlags::IN)];
            match poll(&mut polled, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let [input, stopped] = polled.map(|fd| !fd.revents().is_empty());
            if stopped {
                return Ok(None);
            }
            if input {
                match rustix::io::read(stdin.as_fd(), &mut *buffer) {
                    Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                    result => return Ok(Some(result?)),
                }
            }
        }
    }
}

fn overrun(error: Overrun) -> Error {
    Error::Protocol(error.to_string())
}

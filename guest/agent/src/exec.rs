//! A command's session: bytes between its descriptors and the connection, in one thread.
//!
//! Promises: what a command writes is read only as far as the host has room for it, so a host that stops reading stops
//! the command; input waits here, at most a window of it; `Exited` comes after everything that the command had written.
//! Programs that it left in the background keep running, but their output after that goes nowhere.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use queztl_agent_protocol::{Allowance, Exec, Exit, MAX_DATA_BYTES, Message, Window, stream};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::channel::{Broken, Channel};
use crate::command::{self, Running, winsize};

/// How long a command may take to end after its hang-up, before it is killed.
const HANG_UP_GRACE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };
/// What a terminal takes as the end of input, at the beginning of a line (`VEOF`).
const END_OF_INPUT: u8 = 4;

/// Runs the command to its end.
pub fn run(channel: &mut Channel, request: &Exec) -> Result<(), Broken> {
    let running = match command::start(request) {
        Ok(running) => running,
        Err(fault) => return channel.send(&Message::Error(fault)),
    };
    let mut session = Session::new(running);
    channel.queue(&Message::Started { pid: session.child.id() })?;
    let result = session.serve(channel);
    if result.is_err() {
        session.hang_up();
    }
    result
}

struct Output {
    stream: u8,
    from: Option<OwnedFd>,
    window: Window,
}

struct Session {
    child: std::process::Child,
    pidfd: OwnedFd,
    terminal: Option<OwnedFd>,
    stdin: Option<OwnedFd>,
    input: VecDeque<u8>,
    input_ended: bool,
    allowance: Allowance,
    outputs: [Output; 2],
    status: Option<ExitStatus>,
    buffer: Vec<u8>,
}

/// What a poll told: who is ready.
#[derive(Default)]
struct Ready {
    socket: bool,
    stdin: bool,
    outputs: [bool; 2],
    ended: bool,
}

impl Session {
    fn new(running: Running) -> Session {
        let output = |stream, from| Output { stream, from, window: Window::default() };
        Session {
            child: running.child,
            pidfd: running.pidfd,
            terminal: running.terminal,
            stdin: running.stdin,
            input: VecDeque::new(),
            input_ended: false,
            allowance: Allowance::default(),
            outputs: [output(stream::STDOUT, running.stdout), output(stream::STDERR, running.stderr)],
            status: None,
            buffer: vec![0; MAX_DATA_BYTES],
        }
    }

    fn serve(&mut self, channel: &mut Channel) -> Result<(), Broken> {
        loop {
            channel.flush_some()?;
            let ready = self.wait(channel)?;
            if ready.socket {
                while let Some(message) = channel.try_receive()? {
                    self.handle(message, channel)?;
                }
            }
            if ready.stdin {
                self.write_input(channel)?;
            }
            // Looked at before the output is read: what the command wrote is then in the pipes already.
            if ready.ended && self.status.is_none() {
                self.status = Some(self.child.wait().map_err(|_| Broken::Gone)?);
            }
            for index in 0..self.outputs.len() {
                if ready.outputs.get(index) == Some(&true) || self.status.is_some() {
                    self.read_output(index, channel)?;
                }
            }
            if let Some(status) = self.status
                && self.outputs.iter().all(|output| output.from.is_none())
            {
                return channel.send(&Message::Exited(exit_of(status)));
            }
        }
    }

    /// Waits until there is something to do. Descriptors that nothing can be done with are left out: a pipe whose other
    /// end is closed would otherwise wake this thread for ever.
    fn wait(&self, channel: &Channel) -> Result<Ready, Broken> {
        let mut events = PollFlags::IN;
        if channel.wants_to_send() {
            events |= PollFlags::OUT;
        }
        let mut polled = vec![PollFd::from_borrowed_fd(channel.socket(), events)];
        let mut sources = vec![Source::Socket];
        let mut add = |fd, events, source| {
            polled.push(PollFd::from_borrowed_fd(fd, events));
            sources.push(source);
        };
        if self.status.is_none() {
            add(self.pidfd.as_fd(), PollFlags::IN, Source::Ended);
        }
        if let Some(stdin) = self.stdin.as_ref().filter(|_| !self.input.is_empty()) {
            add(stdin.as_fd(), PollFlags::OUT, Source::Stdin);
        }
        for (index, output) in self.outputs.iter().enumerate() {
            let may_read = output.window.available() > 0 && channel.has_room();
            if let Some(from) = output.from.as_ref().filter(|_| may_read) {
                add(from.as_fd(), PollFlags::IN, Source::Output(index));
            }
        }
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = Ready::default();
        let woken = polled.iter().zip(&sources).filter(|(fd, _)| !fd.revents().is_empty());
        for (fd, source) in woken {
            match *source {
                Source::Socket => ready.socket = fd.revents() != PollFlags::OUT,
                Source::Ended => ready.ended = true,
                Source::Stdin => ready.stdin = true,
                Source::Output(index) => ready.outputs[index % 2] = true,
            }
        }
        Ok(ready)
    }

    fn handle(&mut self, message: Message, channel: &mut Channel) -> Result<(), Broken> {
        match message {
            Message::Data { stream: stream::STDIN, bytes } if !self.input_ended => {
                self.allowance.receive(bytes.len()).map_err(|error| Broken::Protocol(error.to_string()))?;
                self.input.extend(bytes);
                self.write_input(channel)
            }
            Message::End { stream: stream::STDIN } if !self.input_ended => {
                self.input_ended = true;
                if self.terminal.is_some() {
                    self.input.push_back(END_OF_INPUT);
                }
                self.write_input(channel)
            }
            Message::Credit { stream, bytes } => {
                let output = self.outputs.iter_mut().find(|output| output.stream == stream);
                let output = output.ok_or_else(|| Broken::Protocol("a credit for no stream".into()))?;
                output.window.credit(bytes).map_err(|error| Broken::Protocol(error.to_string()))
            }
            Message::Signal { number } => {
                self.signal(number.into());
                Ok(())
            }
            Message::Resize(size) => {
                // A terminal that is gone needs no size; the kernel signals the change to the command.
                if let Some(terminal) = &self.terminal {
                    let _ = rustix::termios::tcsetwinsize(terminal, winsize(size));
                }
                Ok(())
            }
            Message::Ping { cookie } => channel.queue(&Message::Pong { cookie }),
            _ => Err(Broken::Protocol("a message that a running command has no use for".into())),
        }
    }

    /// Gives the command what input it takes now, and the host as much credit.
    fn write_input(&mut self, channel: &mut Channel) -> Result<(), Broken> {
        let mut passed_on = 0;
        while let Some(stdin) = &self.stdin {
            let (front, _) = self.input.as_slices();
            if front.is_empty() {
                break;
            }
            match rustix::io::write(stdin, front) {
                Ok(count) => {
                    self.input.drain(..count);
                    passed_on += count;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // The command reads no more.
                Err(_) => self.stdin = None,
            }
        }
        if self.stdin.is_none() {
            passed_on += self.input.len();
            self.input.clear();
        }
        if self.input_ended && self.input.is_empty() && self.terminal.is_none() {
            self.stdin = None;
        }
        if passed_on == 0 || self.input_ended {
            return Ok(());
        }
        self.allowance.give(passed_on);
        let bytes = u32::try_from(passed_on).unwrap_or(u32::MAX);
        channel.queue(&Message::Credit { stream: stream::STDIN, bytes })
    }

    /// Sends what the command wrote, as far as there is room; the end when it has ended.
    fn read_output(&mut self, index: usize, channel: &mut Channel) -> Result<(), Broken> {
        let Some(output) = self.outputs.get_mut(index) else { return Ok(()) };
        while let Some(from) = &output.from {
            let room = output.window.available().min(self.buffer.len());
            if room == 0 || !channel.has_room() {
                return Ok(());
            }
            let buffer = self.buffer.get_mut(..room).unwrap_or_default();
            match rustix::io::read(from, buffer) {
                Ok(count) if count > 0 => {
                    output.window.spend(count);
                    let bytes = self.buffer.get(..count).unwrap_or_default().to_vec();
                    channel.queue(&Message::Data { stream: output.stream, bytes })?;
                }
                Err(Errno::INTR) => {}
                // Once the command has ended, what is not there by now is not its own.
                Err(Errno::AGAIN) if self.status.is_none() => return Ok(()),
                // The end; a terminal tells it as an error (EIO).
                _ => {
                    output.from = None;
                    channel.queue(&Message::End { stream: output.stream })?;
                }
            }
        }
        Ok(())
    }

    /// Signals the command's process group. Before the command is waited for, its number cannot be anybody else's.
    fn signal(&self, number: libc::c_int) {
        let Some(group) = i32::try_from(self.child.id()).ok().filter(|group| *group > 1) else { return };
        if self.status.is_none() {
            // SAFETY: the call takes no pointers.
            unsafe { libc::kill(-group, number) };
        }
    }

    /// The host is gone: hangs up, and kills what is still there after a while.
    fn hang_up(&mut self) {
        self.terminal = None;
        self.stdin = None;
        self.outputs.iter_mut().for_each(|output| output.from = None);
        self.signal(libc::SIGHUP);
        self.signal(libc::SIGCONT);
        if self.status.is_none() {
            let _ = poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&HANG_UP_GRACE));
            self.signal(libc::SIGKILL);
            self.status = self.child.wait().ok();
        }
    }
}

/// What a descriptor in a poll stands for.
#[derive(Clone, Copy)]
enum Source {
    Socket,
    Ended,
    Stdin,
    Output(usize),
}

fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Status((code & 0xff) as u8),
        (None, signal) => Exit::Signal(signal.and_then(|signal| u8::try_from(signal).ok()).unwrap_or(9)),
    }
}

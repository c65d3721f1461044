//! A command in a guest.

use std::collections::BTreeMap;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use queztl_agent_client::{Controller, Error, Exec, Exit, Io, Size};
use queztl_api::{Code, EXEC_STDERR, EXEC_STDOUT, MAX_EXEC_OUTPUT, Problem, TerminalSize};
use tokio::sync::{mpsc, oneshot};

use super::pipe::{Beginning, Chunk, ToTask};
use super::{connect, on_thread, problem};
use crate::api::answer::{Answer, Failure};
use crate::api::app::App;

/// SIGKILL.
const KILL: u8 = 9;
/// How long a killed command may take to end.
const KILL_TIME: Duration = Duration::from_secs(5);
/// Pieces of output under way to a client, 64 KiB each at most.
const OUTPUT_CHUNKS: usize = 8;

/// What is to be run.
#[derive(Debug, Clone, Default)]
pub struct Command {
    pub command: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub cwd: Option<String>,
    pub user: Option<String>,
    pub tty: Option<TerminalSize>,
}

impl Command {
    /// As the agent takes it; its limits are the protocol's to check.
    fn exec(self) -> Answer<Exec> {
        if self.command.first().is_none_or(String::is_empty) {
            return Err(Problem::invalid("command", "it is empty: give a program and its arguments").into());
        }
        if let Some(name) = self.env.keys().find(|name| name.is_empty() || name.contains('=')) {
            let message = format!("{:?} is no name of a variable", crate::api::answer::shown(name));
            return Err(Problem::invalid("env", message).into());
        }
        let env = self.env.into_iter().map(|(name, value)| format!("{name}={value}").into_bytes()).collect();
        Ok(Exec {
            argv: self.command.into_iter().map(String::into_bytes).collect(),
            env,
            cwd: self.cwd.unwrap_or_default().into_bytes(),
            user: self.user.unwrap_or_default().into_bytes(),
            stdin: false,
            terminal: self.tty.map(|size| Size { rows: size.rows, columns: size.columns }),
        })
    }
}

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    pub exit: Exit,
    pub timed_out: bool,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub truncated: bool,
}

/// Ends the command when its caller goes away.
#[derive(Debug)]
struct Leash(Option<Controller>);

impl Drop for Leash {
    fn drop(&mut self) {
        if let Some(controller) = self.0.take() {
            controller.hang_up();
        }
    }
}

/// Runs a command to its end, or kills it when `limit` is over.
///
/// # Errors
/// The problem why it could not be run or reached.
pub async fn run(
    app: &App,
    vsock: PathBuf,
    command: Command,
    stdin: Option<Vec<u8>>,
    limit: Duration,
) -> Answer<Finished> {
    let exec = command.exec()?;
    let stdin = stdin.map(in_memory).transpose()?;
    let (tell, mut started) = oneshot::channel();
    let (place, own) = (app.guest_task()?, app.clone());
    let mut ended = on_thread(place, move || {
        let (mut out, mut err) = (Beginning::new(MAX_EXEC_OUTPUT), Beginning::new(MAX_EXEC_OUTPUT));
        let mut tell = Some(tell);
        let mut started = |controller| {
            if let Some(tell) = tell.take() {
                // Nobody there: the connection's end tells.
                let _ = tell.send(controller);
            }
        };
        let io = Io {
            stdin: stdin.as_ref().map(AsFd::as_fd),
            stdout: Some(&mut out),
            stderr: Some(&mut err),
            started: Some(&mut started),
        };
        let exit = connect(&own, &vsock)?.exec(&exec, io)?;
        let truncated = out.truncated || err.truncated;
        Ok::<_, Error>(Finished { exit, timed_out: false, stdout: out.bytes, stderr: err.bytes, truncated })
    })?;
    let deadline = tokio::time::Instant::now() + limit + app.limits().agent_time;
    let mut leash = Leash(None);
    let mut timed_out = false;
    loop {
        let until = if timed_out { tokio::time::Instant::now() + KILL_TIME } else { deadline };
        tokio::select! {
            controller = &mut started, if leash.0.is_none() && !started.is_terminated() => leash.0 = controller.ok(),
            result = &mut ended => {
                leash.0 = None;
                let finished = result.map_err(|_| Failure::new(Code::Internal, "a task for a guest vanished"))?;
                let finished = finished.map_err(|error| Failure(problem(&error)))?;
                return Ok(Finished { timed_out, ..finished });
            }
            () = tokio::time::sleep_until(until) => {
                if timed_out || leash.0.is_none() {
                    return Err(Failure::new(Code::Timeout, "the command did not end in time, and could not be killed"));
                }
                timed_out = true;
                kill(leash.0.clone());
            }
            () = app.stopping() => return Err(Failure::new(Code::Cancelled, "the daemon ends, and the command with it")),
        }
    }
}

/// Sending waits, if only for a moment.
fn kill(controller: Option<Controller>) {
    if let Some(controller) = controller {
        // What fails here is told where the command ends.
        tokio::task::spawn_blocking(move || controller.signal(KILL));
    }
}

/// A command that runs, with what reaches it.
#[derive(Debug)]
pub struct Running {
    /// Once it runs; nothing if it never did.
    pub started: oneshot::Receiver<Controller>,
    pub output: mpsc::Receiver<Chunk>,
    /// How it ended, or why it could not be run.
    pub ended: oneshot::Receiver<Result<Exit, Problem>>,
}

/// Starts a command; its output comes as it is written, and it waits where nobody takes it.
///
/// # Errors
/// The problem why it cannot be tried.
pub fn start(app: &App, vsock: PathBuf, command: Command, stdin: Option<OwnedFd>) -> Answer<Running> {
    let exec = command.exec()?;
    let (tell, started) = oneshot::channel();
    let (channel, output) = mpsc::channel(OUTPUT_CHUNKS);
    let (place, app) = (app.guest_task()?, app.clone());
    let ended = on_thread(place, move || {
        let mut tell = Some(tell);
        let mut started = |controller| {
            if let Some(tell) = tell.take() {
                // As above.
                let _ = tell.send(controller);
            }
        };
        let mut out = ToTask { stream: EXEC_STDOUT, channel: channel.clone() };
        let mut err = ToTask { stream: EXEC_STDERR, channel };
        let io = Io {
            stdin: stdin.as_ref().map(AsFd::as_fd),
            stdout: Some(&mut out),
            stderr: Some(&mut err),
            started: Some(&mut started),
        };
        connect(&app, &vsock).and_then(|mut agent| agent.exec(&exec, io)).map_err(|error| problem(&error))
    })?;
    Ok(Running { started, output, ended })
}

/// Input that is there already.
fn in_memory(bytes: Vec<u8>) -> Answer<OwnedFd> {
    let make = || {
        let file = rustix::fs::memfd_create("stdin", rustix::fs::MemfdFlags::CLOEXEC)?;
        let mut file = std::fs::File::from(file);
        file.write_all(&bytes)?;
        file.rewind()?;
        Ok(OwnedFd::from(file))
    };
    make().map_err(|error: std::io::Error| Failure::new(Code::Host, format!("the input cannot be kept: {error}")))
}

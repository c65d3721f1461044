//! `exec`: by the machine's own socket where this user can reach it, else through the daemon.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::Write;

use queztl_api::{EXEC_STDERR, EXEC_STDOUT, ExecControl, ExecNotice, ExecStart, TerminalSize};
use queztl_client::{Message, Session as Stream};
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc::Receiver;

use super::console::listen;
use super::keyboard;
use super::session::{Session, failure, of_problem, runtime};
use crate::guest::{self, CANNOT_EXECUTE, ExecArgs, FAILED, NOT_FOUND, Unbuffered};
use crate::report::Failure;
use crate::run::terminal::{self, RawMode};
use crate::status::Status;

/// Runs a command in a guest.
///
/// # Errors
/// A mistake of the command line that the parser cannot see.
pub fn exec(args: &ExecArgs) -> Result<Status, Failure> {
    if args.cwd.as_ref().is_some_and(|path| !path.is_absolute()) {
        return Err(Failure::usage("--cwd must begin with a slash: it is a directory of the guest"));
    }
    match (&args.target.vsock, &args.vm) {
        (Some(vsock), _) => guest::exec(args, vsock),
        (None, vm) => match by_name(args, vm.as_deref().unwrap_or_default()) {
            Ok(status) => Ok(status),
            Err(failed) => {
                failed.report();
                Ok(Status::Command(FAILED))
            }
        },
    }
}

fn by_name(args: &ExecArgs, vm: &str) -> Result<Status, Failure> {
    let session = Session::new(&args.target.daemon)?;
    let runtime = runtime()?;
    let vm = runtime.block_on(session.running(vm))?;
    if let Some(vsock) = session.vsock(&vm.id) {
        // The command may stay for long: nothing of the daemon's is held meanwhile.
        drop(session);
        runtime.shutdown_background();
        return guest::exec(args, &vsock);
    }
    let status = runtime.block_on(through_daemon(&session, args, &vm.id));
    runtime.shutdown_background();
    status
}

async fn through_daemon(session: &Session, args: &ExecArgs, id: &str) -> Result<Status, Failure> {
    let start = start(args)?;
    let mut stream = session.client.exec(id).await.map_err(failure)?;
    stream.send_json(&start).await.map_err(failure)?;
    let raw = if args.tty { RawMode::enter() } else { None };
    if raw.is_some() {
        terminal::restore_on_panic();
    }
    let keys = if args.no_stdin { None } else { Some(keyboard::read()?) };
    let status = converse(&mut stream, keys).await;
    drop(raw);
    status
}

fn start(args: &ExecArgs) -> Result<ExecStart, Failure> {
    let text = |word: &OsStr| {
        let refused = || Failure::usage(format!("{} is no text: the daemon takes UTF-8", word.display()));
        word.to_str().map(str::to_owned).ok_or_else(refused)
    };
    let variable = |word: &OsString| {
        let word = text(word)?;
        let (name, value) = word.split_once('=').unwrap_or((&word, ""));
        Ok((name.to_owned(), value.to_owned()))
    };
    let mut env = args.env.iter().map(variable).collect::<Result<BTreeMap<_, _>, Failure>>()?;
    if args.tty
        && let Ok(name) = std::env::var("TERM")
    {
        env.entry("TERM".to_owned()).or_insert(name);
    }
    let size = || terminal::size().map_or(TerminalSize { rows: 24, columns: 80 }, size_of);
    Ok(ExecStart {
        command: args.command.iter().map(|word| text(word)).collect::<Result<_, _>>()?,
        env,
        cwd: args.cwd.as_ref().map(|path| text(path.as_os_str())).transpose()?,
        user: args.user.clone(),
        tty: args.tty.then(size),
        stdin: !args.no_stdin,
        keep: None,
    })
}

fn size_of((columns, rows): (u16, u16)) -> TerminalSize {
    TerminalSize { rows, columns }
}

async fn converse(stream: &mut Stream, mut keys: Option<Receiver<Vec<u8>>>) -> Result<Status, Failure> {
    let mut resized = listen(SignalKind::window_change())?;
    let mut interrupted = listen(SignalKind::interrupt())?;
    let mut terminated = listen(SignalKind::terminate())?;
    let mut hung_up = listen(SignalKind::hangup())?;
    loop {
        let signal = tokio::select! {
            message = stream.next() => match message.map_err(failure)? {
                Some(Message::Bytes(bytes)) => { show(&bytes)?; continue }
                Some(Message::Text(text)) => match notice(&text)? {
                    Some(status) => return Ok(status),
                    None => continue,
                },
                None => return Err(Failure::host("the daemon broke off; the command may go on")),
            },
            read = next(&mut keys) => {
                match read {
                    Some(bytes) => stream.send(bytes).await.map_err(failure)?,
                    None => {
                        keys = None;
                        stream.send_json(&ExecControl::EndOfInput).await.map_err(failure)?;
                    }
                }
                continue;
            },
            _ = resized.recv() => {
                if let Some((columns, rows)) = terminal::size() {
                    stream.send_json(&ExecControl::Resize { rows, columns }).await.map_err(failure)?;
                }
                continue;
            },
            _ = interrupted.recv() => libc::SIGINT,
            _ = terminated.recv() => libc::SIGTERM,
            _ = hung_up.recv() => libc::SIGHUP,
        };
        stream.send_json(&ExecControl::Signal { number: signal as u8 }).await.map_err(failure)?;
    }
}

async fn next(keys: &mut Option<Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match keys {
        Some(keys) => keys.recv().await,
        None => std::future::pending().await,
    }
}

/// Output goes where its first byte says.
fn show(bytes: &[u8]) -> Result<(), Failure> {
    let written = match bytes.split_first() {
        Some((&EXEC_STDERR, bytes)) => Unbuffered(std::io::stderr()).write_all(bytes),
        Some((&EXEC_STDOUT, bytes)) => Unbuffered(std::io::stdout()).write_all(bytes),
        _ => Ok(()),
    };
    written.map_err(|error| Failure::host(format!("cannot write the command's output: {error}")))
}

/// The command's status, once it has one.
fn notice(text: &str) -> Result<Option<Status>, Failure> {
    match serde_json::from_str(text) {
        Ok(ExecNotice::Started) => Ok(None),
        Ok(ExecNotice::Exited { status: Some(status), .. }) => Ok(Some(Status::Command(status))),
        Ok(ExecNotice::Exited { signal, .. }) => Ok(Some(Status::Command(128 | signal.unwrap_or(0)))),
        Ok(ExecNotice::Problem { problem }) => {
            let status = match problem.code {
                queztl_api::Code::NotFound => NOT_FOUND,
                queztl_api::Code::Forbidden => CANNOT_EXECUTE,
                _ => FAILED,
            };
            of_problem(&problem).report();
            Ok(Some(Status::Command(status)))
        }
        Err(error) => Err(Failure::host(format!("the daemon's message cannot be understood: {error}"))),
    }
}

//! `console` and `logs`.
//!
//! ```text
//! terminal (raw) ──keys──> escape filter ──> daemon ──> console of the machine <── other viewers
//!                <─────────────────────────── what it printed lately, then what it prints
//! ```

use std::io::{IsTerminal, Write};

use queztl_api::ConsoleControl;
use queztl_client::{Message, Session as Console};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::keyboard;
use super::session::{Session, failure};
use crate::cli::{ConsoleArgs, LogsArgs};
use crate::output::controls::Controls;
use crate::report::Failure;
use crate::run::escape::{EscapeFilter, Request};
use crate::run::terminal::{self, RawMode};
use crate::status::Status;

/// The key that detaches, after Ctrl-A.
const DETACH: u8 = b'd';

const KEYS: &str = "\n\
    Ctrl-A d       detach; the machine goes on\n\
    Ctrl-A Ctrl-A  send one Ctrl-A to the guest (Ctrl-A a as well)\n\
    Ctrl-A h       list these keys";

/// Why the terminal has no console any more.
enum End {
    /// The user left.
    Detached,
    /// The machine or the daemon did.
    Closed,
}

/// Attaches the terminal until the user detaches or the machine ends.
pub async fn attach(session: &Session, args: &ConsoleArgs) -> Result<Status, Failure> {
    let vm = session.client.vm(&args.vm.vm).await.map_err(failure)?;
    if vm.runtime.is_none() {
        let name = vm.name;
        return Err(Failure::usage(format!(
            "{name} does not run: queztl-hv start {name} starts it, queztl-hv logs {name} shows what its console has printed"
        )));
    }
    let mut console = session.client.console(&args.vm.vm, args.read_only).await.map_err(failure)?;
    let raw = if args.read_only { None } else { RawMode::enter() };
    if raw.is_some() {
        terminal::restore_on_panic();
        eprintln!("queztl-hv: attached to {}; Ctrl-A d detaches, Ctrl-A h helps", args.vm.vm);
    }
    let ended = watch(&mut console, args.read_only, raw.is_some()).await;
    drop(raw);
    match ended? {
        End::Detached => eprintln!("\nqueztl-hv: detached; the machine goes on"),
        End::Closed => eprintln!("\nqueztl-hv: the console is closed: see queztl-hv info {}", args.vm.vm),
    }
    Ok(Status::Success)
}

async fn watch(console: &mut Console, read_only: bool, raw: bool) -> Result<End, Failure> {
    let mut keys = if read_only { None } else { Some(keyboard::read()?) };
    let mut filter = EscapeFilter::ending_with(DETACH);
    let mut resized = listen(SignalKind::window_change())?;
    let mut ends = [listen(SignalKind::terminate())?, listen(SignalKind::hangup())?];
    let [terminated, hung_up] = &mut ends;
    if raw {
        send_size(console).await?;
    }
    loop {
        tokio::select! {
            message = console.next() => match message.map_err(failure)? {
                Some(Message::Bytes(bytes)) if show(&bytes)? => {}
                Some(Message::Text(_)) => {}
                Some(Message::Bytes(_)) => return Ok(End::Detached),
                None => return Ok(End::Closed),
            },
            read = next(&mut keys) => match read {
                Some(bytes) => {
                    if type_keys(console, &mut filter, bytes, raw).await? {
                        return Ok(End::Detached);
                    }
                }
                // The end of input is not the end of what there is to see.
                None => keys = None,
            },
            _ = resized.recv() => if raw { send_size(console).await? },
            _ = terminated.recv() => return Ok(End::Detached),
            _ = hung_up.recv() => return Ok(End::Detached),
        }
    }
}

/// The next keys; never, if there are none to come.
async fn next(keys: &mut Option<tokio::sync::mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match keys {
        Some(keys) => keys.recv().await,
        None => std::future::pending().await,
    }
}

/// Sends what is for the guest; true if the user wants to leave.
async fn type_keys(
    console: &mut Console,
    filter: &mut EscapeFilter,
    bytes: Vec<u8>,
    raw: bool,
) -> Result<bool, Failure> {
    if !raw {
        console.send(bytes).await.map_err(failure)?;
        return Ok(false);
    }
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let mut guest = Vec::with_capacity(rest.len());
        let (used, request) = filter.filter(rest, &mut guest);
        rest = &rest[used..];
        if !guest.is_empty() {
            console.send(guest).await.map_err(failure)?;
        }
        match request {
            Some(Request::End) => return Ok(true),
            Some(Request::Help) => eprintln!("{KEYS}"),
            None => {}
        }
    }
    Ok(false)
}

async fn send_size(console: &mut Console) -> Result<(), Failure> {
    let Some((columns, rows)) = terminal::size() else { return Ok(()) };
    console.send_json(&ConsoleControl::Resize { rows, columns }).await.map_err(failure)
}

/// A signal as a stream.
pub fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::host(format!("cannot listen for signals: {error}")))
}

/// Prints a console's output as it is; false if the reader went away.
fn show(bytes: &[u8]) -> Result<bool, Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::host(format!("cannot write to standard output: {error}"))),
    }
}

/// Prints what a console has printed, and goes on if that is wished.
pub async fn logs(session: &Session, args: &LogsArgs) -> Result<Status, Failure> {
    let mut log = session.client.log(&args.vm.vm, args.lines, args.follow).await.map_err(failure)?;
    // A terminal would answer what a guest asks it, as if somebody typed.
    let mut filter = std::io::stdout().is_terminal().then(Controls::default);
    while let Some(bytes) = log.next().await.map_err(failure)? {
        let bytes = match &mut filter {
            Some(filter) => filter.keep_colours(&bytes),
            None => bytes.to_vec(),
        };
        if !show(&bytes)? {
            break;
        }
    }
    Ok(Status::Success)
}

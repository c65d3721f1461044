//! Commands in guests.

use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, close_code};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use queztl_agent_client::{Controller, Size};
use queztl_api::{
    Code, Content, Encoding, ExecControl, ExecNotice, ExecRequest, ExecResult, ExecStart, MAX_EXEC_SECONDS, Problem,
};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::{Mutex, mpsc, watch};

use crate::Endpoints;
use crate::api::answer::{Answer, Failure, Json};
use crate::api::app::App;
use crate::api::extract::{self, Segments, parse};
use crate::api::gate::Caller;
use crate::api::guest::kept::{Key, Session};
use crate::api::guest::{self, Chunk, Command};
use crate::api::socket::{self, Inbox, Upgrade};

/// How long a command may run whose caller does not say.
const USUAL_SECONDS: u32 = 60;
/// The longest word for a kept command, bytes.
const MAX_WORD: usize = 64;
/// Messages under way to a client.
const MESSAGES_UNDER_WAY: usize = 8;

/// Runs a command in a guest to its end, through its agent.
#[utoipa::path(post, path = "/v1/vms/{vm}/exec", tag = "guests", security(("token" = ["operate"])),
    params(("vm" = String, Path, description = "Its identifier or name.")),
    request_body = ExecRequest, responses((status = 200, description = "How it ended.", body = ExecResult)))]
pub async fn exec(
    State(app): State<App>,
    Segments(vm): Segments<extract::Key>,
    Json(request): Json<ExecRequest>,
) -> Answer<Json<ExecResult>> {
    let seconds = request.timeout_seconds.unwrap_or(USUAL_SECONDS);
    if !(1..=MAX_EXEC_SECONDS).contains(&seconds) {
        let message = format!("{seconds} is not from 1 to {MAX_EXEC_SECONDS}");
        return Err(Problem::invalid("timeout_seconds", message).into());
    }
    let stdin = request.stdin.map(bytes).transpose()?;
    let ExecRequest { command, env, cwd, user, .. } = request;
    let command = Command { command, env, cwd, user, tty: None };
    let endpoints = app.service().endpoints(&vm).await?;
    let limit = Duration::from_secs(seconds.into());
    let ended = guest::run(&app, endpoints.vsock, command, stdin, limit).await?;
    let (status, signal) = guest::parts(ended.exit);
    Ok(Json(ExecResult {
        status,
        signal,
        timed_out: ended.timed_out,
        stdout: content(ended.stdout),
        stderr: content(ended.stderr),
        truncated: ended.truncated,
    }))
}

fn bytes(content: Content) -> Answer<Vec<u8>> {
    match content.encoding {
        Encoding::Utf8 => Ok(content.data.into_bytes()),
        Encoding::Base64 => STANDARD
            .decode(content.data)
            .map_err(|error| Problem::invalid("stdin.data", format!("it is no base64: {error}")).into()),
    }
}

fn content(bytes: Vec<u8>) -> Content {
    match String::from_utf8(bytes) {
        Ok(data) => Content { encoding: Encoding::Utf8, data },
        Err(error) => Content { encoding: Encoding::Base64, data: STANDARD.encode(error.into_bytes()) },
    }
}

/// Runs a command with its streams: a WebSocket. The client sends `ExecStart`, then input as binary frames and
/// `ExecControl`; it gets output as binary frames (first byte: 1 output, 2 errors) and `ExecNotice`.
#[utoipa::path(get, path = "/v1/vms/{vm}/exec/stream", tag = "guests", security(("token" = ["operate"])),
    params(("vm" = String, Path, description = "Its identifier or name.")),
    responses((status = 101, description = "A WebSocket.")))]
pub async fn exec_stream(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Segments(vm): Segments<extract::Key>,
    upgrade: Upgrade,
) -> Answer<Response> {
    let place = app.session(&caller)?;
    let endpoints = app.service().endpoints(&vm).await?;
    Ok(upgrade.0.on_upgrade(async move |socket| {
        session(&app, &caller, &vm, endpoints, socket).await;
        drop(place);
    }))
}

async fn session(app: &App, caller: &Caller, vm: &str, endpoints: Endpoints, mut socket: WebSocket) {
    let first = tokio::time::timeout(app.limits().body_time, socket.recv()).await;
    let Ok(Some(Ok(Message::Text(first)))) = first else {
        // Whoever says nothing is told nothing; its reason is plain.
        let _ = socket.send(socket::close(close_code::POLICY, "the first message must be an ExecStart")).await;
        return;
    };
    let start = parse::<ExecStart>(first.as_bytes());
    let begun = start.and_then(|start| match start.keep.clone() {
        Some(word) => keep(app, caller, vm, endpoints, word, start).map(Begun::Kept),
        None => begin(app, endpoints, start).map(|(running, input)| Begun::Bound(running, input)),
    });
    match begun {
        Ok(Begun::Bound(running, input)) => attend(app, socket, running, input).await,
        Ok(Begun::Kept(session)) => look_at(app, socket, &session).await,
        Err(Failure(problem)) => {
            let _ = socket.send(socket::text(&ExecNotice::Problem { problem })).await;
            let _ = socket.send(socket::close(close_code::NORMAL, "")).await;
        }
    }
}

/// A command with its connection, or one that goes on without.
enum Begun {
    Bound(guest::Running, Option<UnixStream>),
    Kept(Arc<Session>),
}

/// The command that this client has called so, or a new one.
fn keep(
    app: &App,
    caller: &Caller,
    vm: &str,
    endpoints: Endpoints,
    word: String,
    start: ExecStart,
) -> Answer<Arc<Session>> {
    let Some(size) = start.tty else {
        return Err(Problem::invalid("keep", "is for commands with a terminal: give `tty`").into());
    };
    if !(1..=MAX_WORD).contains(&word.len()) {
        return Err(Problem::invalid("keep", format!("has 1 to {MAX_WORD} bytes")).into());
    }
    let key = Key { client: caller.client(), vm: vm.to_owned(), word };
    if let Some(session) = app.kept().find(&key) {
        let controller = session.controller.borrow().clone();
        if let Some(controller) = controller {
            // The window may have another size than before; what fails is told by the command's end.
            tokio::task::spawn_blocking(move || controller.resize(Size { rows: size.rows, columns: size.columns }));
        }
        return Ok(session);
    }
    let (running, input) = begin(app, endpoints, start)?;
    app.kept().keep(key, running, input)
}

/// Shows a kept command to its client, for as long as that is there.
async fn look_at(app: &App, socket: WebSocket, session: &Session) {
    let client = Client { input: session.input.clone(), controller: session.controller.clone() };
    socket::run(app, socket, session.attach(), client).await;
}

fn begin(app: &App, endpoints: Endpoints, start: ExecStart) -> Answer<(guest::Running, Option<UnixStream>)> {
    let ExecStart { command, env, cwd, user, tty, stdin, keep: _ } = start;
    let (ours, theirs) = if stdin {
        let pair = UnixStream::pair().and_then(|(ours, theirs)| Ok((ours, OwnedFd::from(theirs.into_std()?))));
        let (ours, theirs) = pair.map_err(|error| Failure::new(Code::Host, format!("no socket: {error}")))?;
        (Some(ours), Some(theirs))
    } else {
        (None, None)
    };
    let command = Command { command, env, cwd, user, tty };
    Ok((guest::start(app, endpoints.vsock, command, theirs)?, ours))
}

async fn attend(app: &App, socket: WebSocket, running: guest::Running, input: Option<UnixStream>) {
    let (send, receive) = mpsc::channel(MESSAGES_UNDER_WAY);
    let (set, controller) = watch::channel(None::<Controller>);
    let client = Client { input: Arc::new(Mutex::new(input)), controller: controller.clone() };
    let run = socket::run(app, socket, receive, client);
    tokio::select! {
        () = run => {}
        () = forward(running, send, set) => {}
    }
    // The client has gone, or the command has ended, and then this changes nothing.
    if let Some(controller) = controller.borrow().as_ref() {
        controller.hang_up();
    }
}

/// Sends what the command says; never ends, since what it sent last must still be written.
async fn forward(running: guest::Running, send: mpsc::Sender<Message>, set: watch::Sender<Option<Controller>>) {
    let guest::Running { started, mut output, ended } = running;
    if let Ok(controller) = started.await {
        set.send_replace(Some(controller));
        // A client that has gone ends this task.
        let _ = send.send(socket::text(&ExecNotice::Started)).await;
    }
    while let Some(Chunk { stream, bytes }) = output.recv().await {
        let mut frame = Vec::with_capacity(bytes.len() + 1);
        frame.push(stream);
        frame.extend_from_slice(&bytes);
        if send.send(Message::Binary(frame.into())).await.is_err() {
            break;
        }
    }
    let notice = match ended.await {
        Ok(Ok(exit)) => guest::exited(exit),
        Ok(Err(problem)) => ExecNotice::Problem { problem },
        Err(_) => ExecNotice::Problem { problem: Problem::new(Code::Internal, "a task for a guest vanished") },
    };
    let _ = send.send(socket::text(&notice)).await;
    drop(send);
    std::future::pending().await
}

/// What a client's messages do.
struct Client {
    input: Arc<Mutex<Option<UnixStream>>>,
    controller: watch::Receiver<Option<Controller>>,
}

impl Inbox for Client {
    async fn message(&mut self, message: Message) -> ControlFlow<Message> {
        match message {
            Message::Binary(bytes) => {
                let mut held = self.input.lock().await;
                if let Some(input) = held.as_mut()
                    && input.write_all(&bytes).await.is_err()
                {
                    // The command reads no more, which is its right.
                    *held = None;
                }
                ControlFlow::Continue(())
            }
            Message::Text(text) => match parse::<ExecControl>(text.as_bytes()) {
                Ok(control) => self.control(control).await,
                Err(Failure(problem)) => ControlFlow::Break(socket::close(close_code::POLICY, &problem.detail)),
            },
            _ => ControlFlow::Continue(()),
        }
    }
}

impl Client {
    async fn control(&mut self, control: ExecControl) -> ControlFlow<Message> {
        if control == ExecControl::EndOfInput {
            *self.input.lock().await = None;
            return ControlFlow::Continue(());
        }
        if let ExecControl::Signal { number } = control
            && !(1..=64).contains(&number)
        {
            let reason = format!("{number} is no signal: they are from 1 to 64");
            return ControlFlow::Break(socket::close(close_code::POLICY, &reason));
        }
        // What comes early waits for the command.
        let Ok(controller) = self.controller.wait_for(Option::is_some).await.map(|one| one.clone()) else {
            return ControlFlow::Continue(());
        };
        let Some(controller) = controller else { return ControlFlow::Continue(()) };
        let tell = move || match control {
            ExecControl::Resize { rows, columns } => controller.resize(Size { rows, columns }),
            ExecControl::Signal { number } => controller.signal(number),
            ExecControl::EndOfInput => Ok(()),
        };
        // Sending waits, if only for a moment; what fails is told by the command's end.
        match tokio::task::spawn_blocking(tell).await {
            Ok(Err(queztl_agent_client::Error::Request(error))) => {
                ControlFlow::Break(socket::close(close_code::POLICY, &error.to_string()))
            }
            _ => ControlFlow::Continue(()),
        }
    }
}

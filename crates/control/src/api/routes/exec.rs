//! Commands in guests.

use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, close_code};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use queztl_agent_client::{Controller, Exit, Size};
use queztl_api::{
    Code, Content, Encoding, ExecControl, ExecNotice, ExecRequest, ExecResult, ExecStart, MAX_EXEC_SECONDS, Problem,
};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

use crate::Endpoints;
use crate::api::answer::{Answer, Failure, Json};
use crate::api::app::App;
use crate::api::extract::{Key, Segments, parse};
use crate::api::gate::Caller;
use crate::api::guest::{self, Chunk, Command};
use crate::api::socket::{self, Inbox, Upgrade};

/// How long a command may run whose caller does not say.
const USUAL_SECONDS: u32 = 60;
/// Messages under way to a client.
const MESSAGES_UNDER_WAY: usize = 8;

/// Runs a command in a guest to its end, through its agent.
#[utoipa::path(post, path = "/v1/vms/{vm}/exec", tag = "guests", security(("token" = ["operate"])),
    params(("vm" = String, Path, description = "Its identifier or name.")),
    request_body = ExecRequest, responses((status = 200, description = "How it ended.", body = ExecResult)))]
pub async fn exec(
    State(app): State<App>,
    Segments(vm): Segments<Key>,
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
    let (status, signal) = parts(ended.exit);
    Ok(Json(ExecResult {
        status,
        signal,
        timed_out: ended.timed_out,
        stdout: content(ended.stdout),
        stderr: content(ended.stderr),
        truncated: ended.truncated,
    }))
}

fn parts(exit: Exit) -> (Option<u8>, Option<u8>) {
    match exit {
        Exit::Status(status) => (Some(status), None),
        Exit::Signal(signal) => (None, Some(signal)),
    }
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
    Segments(vm): Segments<Key>,
    upgrade: Upgrade,
) -> Answer<Response> {
    let place = app.session(&caller)?;
    let endpoints = app.service().endpoints(&vm).await?;
    Ok(upgrade.0.on_upgrade(async move |socket| {
        session(&app, endpoints, socket).await;
        drop(place);
    }))
}

async fn session(app: &App, endpoints: Endpoints, mut socket: WebSocket) {
    let first = tokio::time::timeout(app.limits().body_time, socket.recv()).await;
    let Ok(Some(Ok(Message::Text(first)))) = first else {
        // Whoever says nothing is told nothing; its reason is plain.
        let _ = socket.send(socket::close(close_code::POLICY, "the first message must be an ExecStart")).await;
        return;
    };
    let begun = parse::<ExecStart>(first.as_bytes()).and_then(|start| begin(app, endpoints, start));
    match begun {
        Ok((running, input)) => attend(app, socket, running, input).await,
        Err(Failure(problem)) => {
            let _ = socket.send(socket::text(&ExecNotice::Problem { problem })).await;
            let _ = socket.send(socket::close(close_code::NORMAL, "")).await;
        }
    }
}

fn begin(app: &App, endpoints: Endpoints, start: ExecStart) -> Answer<(guest::Running, Option<UnixStream>)> {
    let ExecStart { command, env, cwd, user, tty, stdin } = start;
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
    let client = Client { input, controller: controller.clone() };
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
        Ok(Ok(exit)) => {
            let (status, signal) = parts(exit);
            ExecNotice::Exited { status, signal }
        }
        Ok(Err(problem)) => ExecNotice::Problem { problem },
        Err(_) => ExecNotice::Problem { problem: Problem::new(Code::Internal, "a task for a guest vanished") },
    };
    let _ = send.send(socket::text(&notice)).await;
    drop(send);
    std::future::pending().await
}

/// What a client's messages do.
struct Client {
    input: Option<UnixStream>,
    controller: watch::Receiver<Option<Controller>>,
}

impl Inbox for Client {
    async fn message(&mut self, message: Message) -> ControlFlow<Message> {
        match message {
            Message::Binary(bytes) => {
                if let Some(input) = &mut self.input
                    && input.write_all(&bytes).await.is_err()
                {
                    // The command reads no more, which is its right.
                    self.input = None;
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
            self.input = None;
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

//! Consoles.

use std::ops::ControlFlow;
use std::path::Path;

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::{Message, close_code};
use axum::response::Response;
use queztl_api::{Code, ConsoleControl};
use queztl_vmm::process::console::{self, Decoder, Mode, Request};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use utoipa::IntoParams;

use crate::api::answer::{Answer, Failure};
use crate::api::app::App;
use crate::api::extract::{Key, Query, Segments, parse};
use crate::api::gate::Caller;
use crate::api::socket::{self, Inbox, Upgrade};

/// Messages under way to a viewer; the console's hub bounds what waits before them.
const MESSAGES_UNDER_WAY: usize = 8;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields, default)]
pub struct ConsoleQuery {
    /// Only look.
    #[param(required = false)]
    read_only: bool,
}

/// A machine's console: a WebSocket. Binary frames are output and input; the client's text frames are `ConsoleControl`.
/// What was printed last comes first.
#[utoipa::path(get, path = "/v1/vms/{vm}/console", tag = "guests", security(("token" = ["operate"])),
    params(("vm" = String, Path, description = "Its identifier or name."), ConsoleQuery),
    responses((status = 101, description = "A WebSocket.")))]
pub async fn console(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Segments(vm): Segments<Key>,
    Query(query): Query<ConsoleQuery>,
    upgrade: Upgrade,
) -> Answer<Response> {
    let place = app.session(&caller)?;
    let endpoints = app.service().endpoints(&vm).await?;
    let mode = if query.read_only { Mode::Look } else { Mode::Type };
    let attached = tokio::time::timeout(app.limits().agent_time, Viewer::attach(&endpoints.console, mode)).await;
    let viewer = attached.map_err(|_| Failure::new(Code::Timeout, "the console does not answer"))??;
    Ok(upgrade.0.on_upgrade(async move |socket| {
        let (send, receive) = mpsc::channel(MESSAGES_UNDER_WAY);
        let Viewer { decoder, from, to } = viewer;
        tokio::select! {
            () = socket::run(&app, socket, receive, Keys { to, mode }) => {}
            () = forward(decoder, from, send) => {}
        }
        drop(place);
    }))
}

/// A connection to a console's hub.
struct Viewer {
    decoder: Decoder,
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
}

impl Viewer {
    async fn attach(path: &Path, mode: Mode) -> Answer<Viewer> {
        let gone = |error: std::io::Error| {
            Failure::new(Code::State, format!("the machine's console cannot be reached: {error}; does it run?"))
        };
        let (mut from, mut to) = UnixStream::connect(path).await.map_err(gone)?.into_split();
        let mut hello = Vec::new();
        Request::hello(mode, true).encode(&mut hello);
        // A hub that is full says so and hangs up before it has read: its word counts.
        let sent = to.write_all(&hello).await;
        let mut decoder = Decoder::default();
        match next(&mut decoder, &mut from).await {
            Some(console::Message::Welcome { version: console::VERSION }) => Ok(Viewer { decoder, from, to }),
            Some(console::Message::End(why)) => Err(Failure::new(Code::Busy, why)),
            Some(_) => {
                Err(Failure::new(Code::State, "the machine's console is of another version: restart the machine"))
            }
            None => Err(gone(sent.err().unwrap_or_else(|| std::io::ErrorKind::ConnectionReset.into()))),
        }
    }
}

/// The hub's next message; nothing at its end.
async fn next(decoder: &mut Decoder, from: &mut OwnedReadHalf) -> Option<console::Message> {
    let mut piece = vec![0; 16 << 10];
    loop {
        match decoder.message() {
            Ok(Some(message)) => return Some(message),
            Ok(None) => {}
            Err(error) => return Some(console::Message::End(error.to_string())),
        }
        match from.read(&mut piece).await {
            Ok(count) if count > 0 => decoder.push(piece.get(..count).unwrap_or_default()),
            _ => return None,
        }
    }
}

/// Sends what the console says; never ends, since what it sent last must still be written.
async fn forward(mut decoder: Decoder, mut from: OwnedReadHalf, send: mpsc::Sender<Message>) {
    loop {
        let message = match next(&mut decoder, &mut from).await {
            Some(console::Message::Scrollback(bytes) | console::Message::Output(bytes)) => {
                Message::Binary(bytes.into())
            }
            Some(console::Message::Welcome { .. }) => continue,
            Some(console::Message::End(why)) => socket::close(close_code::NORMAL, &why),
            None => socket::close(close_code::AWAY, "the machine let this viewer go: it was too slow, or has ended"),
        };
        let last = matches!(message, Message::Close(_));
        if send.send(message).await.is_err() || last {
            break;
        }
    }
    drop(send);
    std::future::pending().await
}

/// What a viewer types.
struct Keys {
    to: OwnedWriteHalf,
    mode: Mode,
}

impl Inbox for Keys {
    async fn message(&mut self, message: Message) -> ControlFlow<Message> {
        if self.mode == Mode::Look {
            return ControlFlow::Break(socket::close(close_code::POLICY, "this viewer came only to look"));
        }
        let request = match message {
            Message::Binary(bytes) => Request::Input(bytes.into()),
            Message::Text(text) => match parse::<ConsoleControl>(text.as_bytes()) {
                Ok(ConsoleControl::Resize { rows, columns }) => Request::Resize { columns, rows },
                Err(Failure(problem)) => {
                    return ControlFlow::Break(socket::close(close_code::POLICY, &problem.detail));
                }
            },
            _ => return ControlFlow::Continue(()),
        };
        let mut frames = Vec::new();
        request.encode(&mut frames);
        // A hub that has gone is noticed where its messages are read.
        let _ = self.to.write_all(&frames).await;
        ControlFlow::Continue(())
    }
}

//! WebSockets: one task for each, with bounds on what is under way in both directions.

use std::future::Future;
use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use axum::extract::FromRequestParts;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::IntoResponse;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use http::request::Parts;
use queztl_api::Code;
use serde::Serialize;
use tokio::sync::mpsc;

use super::answer::Failure;
use super::app::App;

/// The longest message a client may send, in bytes.
const MAX_MESSAGE_BYTES: usize = 256 << 10;
/// What may wait in a WebSocket to be written, in bytes.
const MAX_WAITING_BYTES: usize = 1 << 20;
/// How many messages are written together.
const BATCH: usize = 64;

/// A request to become a WebSocket.
#[derive(Debug)]
pub struct Upgrade(pub WebSocketUpgrade);

impl FromRequestParts<App> for Upgrade {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Upgrade, Failure> {
        match WebSocketUpgrade::from_request_parts(parts, app).await {
            Ok(upgrade) => Ok(Upgrade(
                upgrade
                    .max_message_size(MAX_MESSAGE_BYTES)
                    .max_frame_size(MAX_MESSAGE_BYTES)
                    .max_write_buffer_size(MAX_WAITING_BYTES),
            )),
            Err(rejection) => {
                let status = rejection.into_response().status();
                let detail = format!("this path is a WebSocket (RFC 6455): connect to it as one ({status})");
                Err(Failure::new(Code::Malformed, detail))
            }
        }
    }
}

/// A value as a text frame.
pub fn text(value: &impl Serialize) -> Message {
    // The API's types can all be written.
    Message::Text(serde_json::to_string(value).unwrap_or_default().into())
}

/// The last message, with its reason.
pub fn close(code: u16, reason: &str) -> Message {
    // A control frame has 125 bytes at most, two of them the code (RFC 6455 §5.5).
    let reason: String = reason
        .chars()
        .scan(0, |length, c| {
            *length += c.len_utf8();
            (*length <= 123).then_some(c)
        })
        .collect();
    Message::Close(Some(CloseFrame { code, reason: reason.into() }))
}

/// What becomes of a client's messages: text and binary ones, each after the one before.
pub trait Inbox: Send {
    /// Breaks with the message that ends the WebSocket.
    fn message(&mut self, message: Message) -> impl Future<Output = ControlFlow<Message>> + Send;

    /// The client has closed the WebSocket, or it broke, which is without a goodbye. Not called if this side ends it.
    fn ended(&mut self, _with_goodbye: bool) {}
}

/// For clients that have nothing to say.
#[derive(Debug)]
pub struct Nobody;

impl Inbox for Nobody {
    async fn message(&mut self, _: Message) -> ControlFlow<Message> {
        ControlFlow::Break(close(close_code::POLICY, "nothing is expected here"))
    }
}

/// What is known of the other side's life.
#[derive(Debug)]
struct Life {
    seen: Instant,
    /// What it sent is being worked on, so nothing new of it can be seen.
    busy: bool,
}

/// Runs a WebSocket to its end: writes what comes out of `outgoing`, and closes after the last; gives data messages to
/// the inbox, the next when it is done with the one before. Ends also when the client is silent or reads too slowly, and
/// when the daemon ends.
pub async fn run(app: &App, socket: WebSocket, outgoing: mpsc::Receiver<Message>, mut inbox: impl Inbox) {
    let (sink, stream) = socket.split();
    let life = Mutex::new(Life { seen: Instant::now(), busy: false });
    let (say_last, last) = tokio::sync::oneshot::channel();
    let write = write(app, sink, outgoing, last, &life);
    let read = async {
        if let ControlFlow::Break(message) = read(stream, &mut inbox, &life).await {
            // The writer may have ended already.
            let _ = say_last.send(message);
            std::future::pending::<()>().await;
        }
    };
    let broke = tokio::select! {
        broke = write => broke,
        () = read => false,
    };
    if broke {
        inbox.ended(false);
    }
}

async fn read(mut stream: SplitStream<WebSocket>, inbox: &mut impl Inbox, life: &Mutex<Life>) -> ControlFlow<Message> {
    let lived = |busy| {
        *life.lock().unwrap_or_else(PoisonError::into_inner) = Life { seen: Instant::now(), busy };
    };
    while let Some(message) = stream.next().await {
        lived(true);
        match message {
            Ok(message @ (Message::Text(_) | Message::Binary(_))) => inbox.message(message).await?,
            Ok(Message::Ping(_) | Message::Pong(_)) => {}
            Ok(Message::Close(_)) => {
                inbox.ended(true);
                return ControlFlow::Continue(());
            }
            Err(error) => {
                inbox.ended(false);
                return ControlFlow::Break(close(close_code::PROTOCOL, &error.to_string()));
            }
        }
        lived(false);
    }
    inbox.ended(false);
    ControlFlow::Continue(())
}

/// Says whether the connection broke.
async fn write(
    app: &App,
    mut sink: SplitSink<WebSocket, Message>,
    mut outgoing: mpsc::Receiver<Message>,
    mut last: tokio::sync::oneshot::Receiver<Message>,
    life: &Mutex<Life>,
) -> bool {
    let interval = app.limits().ping_interval;
    let mut ping = tokio::time::interval(interval);
    ping.reset();
    let mut batch = Vec::new();
    let end = loop {
        tokio::select! {
            count = outgoing.recv_many(&mut batch, BATCH) => {
                if count == 0 {
                    break close(close_code::NORMAL, "");
                }
                let last = matches!(batch.last(), Some(Message::Close(_)));
                for message in batch.drain(..) {
                    if sink.feed(message).await.is_err() {
                        return true;
                    }
                }
                if last {
                    let _ = sink.close().await;
                    return false;
                }
                if sink.flush().await.is_err() {
                    return true;
                }
            }
            _ = ping.tick() => {
                let quiet = {
                    let life = life.lock().unwrap_or_else(PoisonError::into_inner);
                    !life.busy && life.seen.elapsed() >= interval * 3
                };
                if quiet {
                    break close(close_code::POLICY, "there was no sign of life");
                }
                if sink.send(Message::Ping(Default::default())).await.is_err() {
                    return true;
                }
            }
            Ok(message) = &mut last => break message,
            () = app.stopping() => break close(close_code::AWAY, "the daemon ends"),
        }
    };
    // Whoever does not take it is gone.
    let _ = sink.send(end).await;
    let _ = sink.close().await;
    false
}

//! WebSockets (RFC 6455): events, consoles, commands.

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, Stream, StreamExt};
use queztl_api::Event;
use serde::Serialize;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message as Frame};

use crate::client::problem;
use crate::connection::Io;
use crate::path::Path;
use crate::{Client, Error};

/// The most that one message may have.
const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// A message of a console or a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// What was printed, or typed.
    Bytes(Vec<u8>),
    /// Anything else, as JSON.
    Text(String),
}

impl Client {
    /// Events after number `after`, or from now on.
    ///
    /// # Errors
    /// Those of the connection, and the daemon's refusal.
    pub async fn events(&self, after: Option<u64>) -> Result<Events, Error> {
        let path = Path::new(&["events", "stream"]).with_some("after", after);
        Ok(Events(self.session(&path).await?))
    }

    /// A console: what it printed lately, then what it prints.
    ///
    /// # Errors
    /// As for [`Client::events`].
    pub async fn console(&self, vm: &str, read_only: bool) -> Result<Session, Error> {
        let path = Path::new(&["vms", vm, "console"]);
        self.session(&if read_only { path.with("read_only", true) } else { path }).await
    }

    /// A command in a guest; its [`queztl_api::ExecStart`] must be the first message.
    ///
    /// # Errors
    /// As for [`Client::events`].
    pub async fn exec(&self, vm: &str) -> Result<Session, Error> {
        self.session(&Path::new(&["vms", vm, "exec", "stream"])).await
    }

    /// A connection to the process that waits for a machine.
    ///
    /// # Errors
    /// As for [`Client::events`].
    pub async fn incoming(&self, id: &str) -> Result<Session, Error> {
        self.session(&Path::new(&["incoming", id, "stream"])).await
    }

    async fn session(&self, path: &Path) -> Result<Session, Error> {
        let io = self.connect().await?;
        // The scheme is only a form here: the connection is already made.
        let request = format!("ws://{}{}", self.address().host(), path.as_str()).into_client_request();
        let request = self.headers(request.map_err(|error| Error::answer(path.as_str(), error))?)?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE_BYTES))
            .max_frame_size(Some(MAX_MESSAGE_BYTES));
        let handshake = tokio_tungstenite::client_async_with_config(request, io, Some(config));
        let (socket, _) = handshake.await.map_err(|error| refused(error, path.as_str()))?;
        Ok(Session { socket: Box::new(socket) })
    }
}

/// A refused handshake carries the reason as any other refusal does.
fn refused(error: tungstenite::Error, what: &str) -> Error {
    match error {
        tungstenite::Error::Http(response) => {
            problem(response.status(), response.body().as_deref().unwrap_or_default(), what)
        }
        error => Error::broken(error),
    }
}

/// A WebSocket of a daemon.
pub struct Session {
    socket: Box<WebSocketStream<Box<dyn Io>>>,
}

impl Session {
    /// The next message; `None` when the daemon has closed the connection without a fault.
    ///
    /// # Errors
    /// The connection broke, or the daemon closed it with a reason.
    pub async fn next(&mut self) -> Result<Option<Message>, Error> {
        next(&mut self.socket).await
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn send(&mut self, bytes: Vec<u8>) -> Result<(), Error> {
        self.socket.send(Frame::binary(bytes)).await.map_err(Error::broken)
    }

    /// Sends a value as a JSON text.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn send_json(&mut self, value: &impl Serialize) -> Result<(), Error> {
        let text = serde_json::to_string(value).map_err(|error| Error::answer("a message", error))?;
        self.socket.send(Frame::text(text)).await.map_err(Error::broken)
    }

    /// Says goodbye.
    pub async fn close(mut self) {
        // A connection that is gone needs no goodbye.
        let _ = self.socket.close().await;
    }
}

impl Session {
    /// Its two directions, for two tasks.
    pub fn split(self) -> (SessionSink, SessionSource) {
        let (sink, source) = self.socket.split();
        (SessionSink(sink), SessionSource(source))
    }
}

/// The direction to the daemon.
pub struct SessionSink(SplitSink<Box<WebSocketStream<Box<dyn Io>>>, Frame>);

impl SessionSink {
    /// Says goodbye.
    pub async fn close(mut self) {
        // A connection that is gone needs no goodbye.
        let _ = self.0.close().await;
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn send(&mut self, bytes: Vec<u8>) -> Result<(), Error> {
        self.0.send(Frame::binary(bytes)).await.map_err(Error::broken)
    }
}

/// The direction from the daemon.
pub struct SessionSource(SplitStream<Box<WebSocketStream<Box<dyn Io>>>>);

impl SessionSource {
    /// As [`Session::next`].
    ///
    /// # Errors
    /// As [`Session::next`].
    pub async fn next(&mut self) -> Result<Option<Message>, Error> {
        next(&mut self.0).await
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Session").finish_non_exhaustive()
    }
}

async fn next(
    frames: &mut (impl Stream<Item = Result<Frame, tungstenite::Error>> + Unpin),
) -> Result<Option<Message>, Error> {
    loop {
        return match frames.next().await {
            None => Ok(None),
            Some(Ok(Frame::Binary(bytes))) => Ok(Some(Message::Bytes(bytes.into()))),
            Some(Ok(Frame::Text(text))) => Ok(Some(Message::Text(text.as_str().to_owned()))),
            Some(Ok(Frame::Close(close))) => closed(close),
            Some(Ok(_)) => continue,
            Some(Err(tungstenite::Error::ConnectionClosed)) => Ok(None),
            Some(Err(error)) => Err(Error::broken(error)),
        };
    }
}

fn closed(close: Option<tungstenite::protocol::CloseFrame>) -> Result<Option<Message>, Error> {
    use tungstenite::protocol::frame::coding::CloseCode;
    match close {
        Some(frame) if frame.code != CloseCode::Normal && frame.code != CloseCode::Away => {
            let reason = if frame.reason.is_empty() { "it gave no reason" } else { frame.reason.as_str() };
            Err(Error::broken(reason.to_owned()))
        }
        _ => Ok(None),
    }
}

/// Events as they happen.
#[derive(Debug)]
pub struct Events(Session);

impl Events {
    /// The next event; `None` when the daemon ends.
    ///
    /// # Errors
    /// The connection broke, or what came is no event.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            match self.0.next().await? {
                None => return Ok(None),
                Some(Message::Bytes(_)) => {}
                Some(Message::Text(text)) => {
                    return serde_json::from_str(&text).map(Some).map_err(|error| Error::answer("events", error));
                }
            }
        }
    }
}

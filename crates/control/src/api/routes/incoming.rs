//! Machines that come from another daemon, and those that go to one.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::{Message, close_code};
use axum::response::Response;
use http::StatusCode;
use queztl_api::{BackupPromise, Code, MigrateRequest, Operation, Problem, PromiseRequest, ReceiveRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use crate::Signs;
use crate::api::answer::{Accepted, Answer, Json};
use crate::api::app::App;
use crate::api::extract::{Key, Segments};
use crate::api::gate::{Caller, Peer};
use crate::api::socket::{self, Inbox, Upgrade};

/// Pieces under way to the source.
const PIECES_UNDER_WAY: usize = 8;
/// How often it is looked whether a node still is one.
const MEMBERSHIP: Duration = Duration::from_secs(1);
/// What is read at once.
const PIECE_BYTES: usize = 64 << 10;

/// Brings a running machine to another daemon. Its result is a `MigrationReport`; afterwards the machine is not here any more.
#[utoipa::path(post, path = "/v1/vms/{vm}/migrate", tag = "machines", security(("token" = ["admin"])),
    params(("vm" = String, Path, description = "Its identifier or name.")),
    request_body = MigrateRequest,
    responses((status = 202, description = "It is on its way.", body = Operation)))]
pub async fn migrate_vm(
    State(app): State<App>,
    Segments(vm): Segments<Key>,
    Json(request): Json<MigrateRequest>,
) -> Answer<Accepted> {
    Ok(Accepted(app.service().migrate(&vm, request).await?))
}

/// Makes ready for a machine that another daemon brings. The operation is over when it runs here, or will not.
#[utoipa::path(post, path = "/v1/incoming", tag = "machines", security(("token" = ["admin"])),
    request_body = ReceiveRequest,
    responses((status = 202, description = "It is expected.", body = Operation)))]
pub async fn receive_vm(State(app): State<App>, Json(request): Json<ReceiveRequest>) -> Answer<Accepted> {
    Ok(Accepted(app.service().receive(request).await?))
}

/// No longer expects a machine. One that has arrived stays.
#[utoipa::path(delete, path = "/v1/incoming/{vm}", tag = "machines", security(("token" = ["admin"])),
    params(("vm" = String, Path, description = "Its identifier.")),
    responses((status = 204, description = "It is not expected any more.")))]
pub async fn forget_incoming(State(app): State<App>, Segments(vm): Segments<Key>) -> Answer<StatusCode> {
    app.service().forget_incoming(&vm).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Has a copy that is kept here serve no owner of a lower term from now on.
#[utoipa::path(post, path = "/v1/incoming/{vm}/promise", tag = "machines", security(("token" = ["admin"])),
    params(("vm" = String, Path, description = "Its identifier.")),
    request_body = PromiseRequest,
    responses((status = 200, description = "What the copy is.", body = BackupPromise)))]
pub async fn promise_copy(
    State(app): State<App>,
    Segments(vm): Segments<Key>,
    Json(request): Json<PromiseRequest>,
) -> Answer<Json<BackupPromise>> {
    Ok(Json(app.service().promise(&vm, request).await?))
}

/// A connection to the process that waits for a machine: a WebSocket of binary frames.
#[utoipa::path(get, path = "/v1/incoming/{vm}/stream", tag = "machines", security(("token" = ["admin"])),
    params(("vm" = String, Path, description = "Its identifier.")),
    responses((status = 101, description = "A WebSocket.")))]
pub async fn incoming_stream(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Segments(vm): Segments<Key>,
    upgrade: Upgrade,
) -> Answer<Response> {
    let place = app.session(&caller)?;
    let (path, signs) = app.service().incoming(&vm).await?;
    let stream = UnixStream::connect(&path).await;
    let stream =
        stream.map_err(|error| Problem::new(Code::State, format!("nobody waits for the machine any more: {error}")))?;
    Ok(upgrade.0.on_upgrade(async move |socket| {
        let (send, receive) = mpsc::channel(PIECES_UNDER_WAY);
        let (from, to) = stream.into_split();
        tokio::select! {
            () = socket::run(&app, socket, receive, Bytes::new(to, signs)) => {}
            () = forward(from, send) => {}
            () = removed(&app, &caller) => {}
        }
        drop(place);
    }))
}

/// Is over when the node at the other end is no member any more.
async fn removed(app: &App, caller: &Caller) {
    let Peer::Node { certificate, .. } = caller.peer else { return std::future::pending().await };
    while app.service().node_with(certificate).await.is_some() {
        tokio::time::sleep(MEMBERSHIP).await;
    }
}

/// What the source sends.
struct Bytes {
    to: OwnedWriteHalf,
    /// Until the connection has ended.
    signs: Option<Arc<Signs>>,
    writing: bool,
}

impl Bytes {
    fn new(to: OwnedWriteHalf, signs: Option<Arc<Signs>>) -> Bytes {
        signs.iter().for_each(|signs| signs.opened());
        Bytes { to, signs, writing: false }
    }
}

impl Drop for Bytes {
    /// If it has not ended by itself, it was this side that ended it.
    fn drop(&mut self) {
        if self.writing {
            self.signs.iter().for_each(|signs| signs.end_message());
        }
        Inbox::ended(self, true);
    }
}

impl Inbox for Bytes {
    async fn message(&mut self, message: Message) -> ControlFlow<Message> {
        let Message::Binary(bytes) = message else {
            return ControlFlow::Break(socket::close(close_code::UNSUPPORTED, "only bytes are expected here"));
        };
        self.signs.iter().for_each(|signs| signs.begin_message());
        self.writing = true;
        let written = self.to.write_all(&bytes).await;
        self.writing = false;
        self.signs.iter().for_each(|signs| signs.end_message());
        match written {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(socket::close(close_code::NORMAL, "nobody waits for the machine any more")),
        }
    }

    fn ended(&mut self, with_goodbye: bool) {
        if let Some(signs) = self.signs.take() {
            signs.ended(with_goodbye);
        }
    }
}

/// What the process answers. Its end closes the WebSocket.
async fn forward(mut from: OwnedReadHalf, send: mpsc::Sender<Message>) {
    let mut piece = vec![0; PIECE_BYTES];
    while let Ok(count @ 1..) = from.read(&mut piece).await {
        if send.send(Message::Binary(piece[..count].to_vec().into())).await.is_err() {
            break;
        }
    }
    drop(send);
    // What was sent last must still be written; the end of the channel ends the WebSocket.
    std::future::pending().await
}

//! Connections of a leaving machine's process, carried to the other daemon.

use std::path::Path;
use std::sync::Arc;

use queztl_api::{Code, Problem};
use queztl_client::{Client, Message, Session};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

/// What is read at once.
const PIECE_BYTES: usize = 128 << 10;

/// A socket whose connections are carried to where a machine arrives. Ended, with all connections, when dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    task: tokio::task::JoinHandle<()>,
}

impl Relay {
    /// Listens at `socket`; must be called in a runtime.
    pub fn start(socket: &Path, client: Arc<Client>, id: String) -> Result<Relay, Problem> {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket)
            .map_err(|error| Problem::new(Code::Host, format!("{socket:?} cannot be made: {error}")))?;
        Ok(Relay { task: tokio::spawn(serve(listener, client, id)) })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: UnixListener, client: Arc<Client>, id: String) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (client, id) = (client.clone(), id.clone());
        connections.spawn(async move {
            // The process sees that its connection ends, and tells why it gives up.
            match client.incoming(&id).await {
                Ok(session) => carry(stream, session).await,
                Err(error) => tracing::warn!(%error, "the other daemon does not take a connection"),
            }
        });
    }
}

/// Carries bytes in both directions until one of them ends.
async fn carry(stream: UnixStream, session: Session) {
    let (mut from, mut to) = stream.into_split();
    let (mut sink, mut source) = session.split();
    let out = async {
        let mut piece = vec![0; PIECE_BYTES];
        while let Ok(count @ 1..) = from.read(&mut piece).await {
            if sink.send(piece[..count].to_vec()).await.is_err() {
                break;
            }
        }
    };
    let back = async {
        while let Ok(Some(Message::Bytes(bytes))) = source.next().await {
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = out => {}
        () = back => {}
    }
}

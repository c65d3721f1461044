//! Connections of a leaving machine's process, carried to the other daemon.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use queztl_api::{Code, Problem};
use queztl_client::{Client, Message, Session, SessionSink};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// What is read at once.
const PIECE_BYTES: usize = 128 << 10;
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_millis(200);
/// Where no signs of life are wanted.
const NEVER: Duration = Duration::from_secs(86_400);

/// A socket whose connections are carried to where a machine arrives. Ended, with all connections, when dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    task: Option<JoinHandle<()>>,
    end: watch::Sender<bool>,
}

impl Relay {
    /// Listens at `socket`; must be called in a runtime. With `beat`, nothing is sent on no connection for that long: an empty
    /// message says that this daemon lives.
    pub fn start(socket: &Path, client: Arc<Client>, id: String, beat: Option<Duration>) -> Result<Relay, Problem> {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket)
            .map_err(|error| Problem::new(Code::Host, format!("{socket:?} cannot be made: {error}")))?;
        let (end, ended) = watch::channel(false);
        let carrier = Carrier { client, id, beat, ended };
        Ok(Relay { task: Some(tokio::spawn(serve(listener, carrier))), end })
    }

    /// Ends all connections with a goodbye, within `limit`.
    pub async fn close(mut self, limit: Duration) {
        self.end.send_replace(true);
        if let Some(task) = &mut self.task {
            // Those that cannot be told are dropped.
            let _ = tokio::time::timeout(limit, task).await;
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// Carries connections.
#[derive(Clone)]
struct Carrier {
    client: Arc<Client>,
    id: String,
    beat: Option<Duration>,
    ended: watch::Receiver<bool>,
}

async fn serve(listener: UnixListener, carrier: Carrier) {
    let mut connections = JoinSet::new();
    let mut ended = carrier.ended.clone();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => break,
            },
            _ = ended.wait_for(|ended| *ended) => break,
        };
        let carrier = carrier.clone();
        connections.spawn(async move {
            // The process sees that its connection ends, and tells why it gives up.
            match carrier.client.incoming(&carrier.id).await {
                Ok(session) => carrier.carry(stream, session).await,
                Err(error) => tracing::warn!(%error, "the other daemon does not take a connection"),
            }
        });
    }
    while connections.join_next().await.is_some() {}
}

impl Carrier {
    /// Carries bytes in both directions until one of them ends. Says goodbye if it is this one.
    async fn carry(mut self, stream: UnixStream, session: Session) {
        let (mut from, mut to) = stream.into_split();
        let (mut sink, mut source) = session.split();
        let back = async {
            while let Ok(Some(Message::Bytes(bytes))) = source.next().await {
                if to.write_all(&bytes).await.is_err() {
                    break;
                }
            }
        };
        let ours = tokio::select! {
            ours = self.send(&mut from, &mut sink) => ours,
            () = back => false,
        };
        if ours {
            let _ = tokio::time::timeout(GOODBYE, sink.close()).await;
        }
    }

    /// Whether it is this side that ends it.
    async fn send(&mut self, from: &mut OwnedReadHalf, sink: &mut SessionSink) -> bool {
        let mut piece = vec![0; PIECE_BYTES];
        let beat = self.beat.unwrap_or(NEVER);
        loop {
            let count = tokio::select! {
                read = from.read(&mut piece) => match read {
                    Ok(count @ 1..) => count,
                    _ => return true,
                },
                () = tokio::time::sleep(beat) => 0,
                _ = self.ended.wait_for(|ended| *ended) => return true,
            };
            if sink.send(piece[..count].to_vec()).await.is_err() {
                return false;
            }
        }
    }
}

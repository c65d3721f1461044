//! A queue with a bound, whose batches are sent until they are taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::http::{Endpoint, Reply};

/// The first pause after a failure; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// How long one batch is tried.
pub const GIVE_UP: Duration = Duration::from_secs(600);

/// What became of the things that were handed over for one target.
#[derive(Debug, Default)]
pub struct Counts {
    sent: AtomicU64,
    dropped: AtomicU64,
    retries: AtomicU64,
}

/// [`Counts`] at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryFigures {
    /// What kind of target: `alertmanager`, `webhook`, `otlp`, `elasticsearch`.
    pub kind: &'static str,
    /// Its address.
    pub url: String,
    /// Taken by it.
    pub sent: u64,
    /// Refused by it, or lost because it was away for too long.
    pub dropped: u64,
    /// How often a batch had to be sent again.
    pub retries: u64,
}

/// How things are put into a request.
pub trait Protocol<T>: Send + Sync + 'static {
    const CONTENT_TYPE: &'static str;

    fn body(&self, batch: &[T]) -> Vec<u8>;

    /// What of a batch was not taken although the answer is good: those to be sent again, and how many were refused.
    fn left(&self, batch: Vec<T>, reply: &Reply) -> (Vec<T>, usize) {
        let _ = (batch, reply);
        (Vec::new(), 0)
    }
}

/// Bounds of a queue.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Things that wait.
    pub waiting: usize,
    /// Things in one request.
    pub batch: usize,
    /// How long the first of a batch waits for others.
    pub linger: Duration,
}

/// The end of a queue where things are handed over.
#[derive(Debug)]
pub struct Queue<T> {
    sender: mpsc::Sender<T>,
    counts: Arc<Counts>,
    kind: &'static str,
    url: String,
}

impl<T: Send + 'static> Queue<T> {
    /// A queue and the task that empties it, which ends with the queue. To be called in a runtime.
    pub fn start(
        kind: &'static str,
        url: &str,
        endpoint: Endpoint,
        protocol: impl Protocol<T>,
        bounds: Bounds,
    ) -> Queue<T> {
        let (sender, receiver) = mpsc::channel(bounds.waiting);
        let counts = Arc::new(Counts::default());
        let worker = Worker { kind, endpoint, protocol, counts: counts.clone(), bounds };
        tokio::spawn(worker.run(receiver));
        Queue { sender, counts, kind, url: url.to_owned() }
    }

    /// Hands something over, or drops it where there is no place.
    pub fn push(&self, thing: T) {
        if self.sender.try_send(thing).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn figures(&self) -> DeliveryFigures {
        DeliveryFigures {
            kind: self.kind,
            url: self.url.clone(),
            sent: self.counts.sent.load(Ordering::Relaxed),
            dropped: self.counts.dropped.load(Ordering::Relaxed),
            retries: self.counts.retries.load(Ordering::Relaxed),
        }
    }
}

struct Worker<P> {
    kind: &'static str,
    endpoint: Endpoint,
    protocol: P,
    counts: Arc<Counts>,
    bounds: Bounds,
}

impl<P> Worker<P> {
    async fn run<T: Send>(self, mut receiver: mpsc::Receiver<T>)
    where
        P: Protocol<T>,
    {
        while let Some(first) = receiver.recv().await {
            let mut batch = vec![first];
            let until = Instant::now() + self.bounds.linger;
            while batch.len() < self.bounds.batch {
                match tokio::time::timeout_at(until, receiver.recv()).await {
                    Ok(Some(next)) => batch.push(next),
                    Ok(None) | Err(_) => break,
                }
            }
            self.deliver(batch).await;
        }
    }

    /// Sends a batch until it is taken, refused, or given up.
    async fn deliver<T: Send>(&self, mut batch: Vec<T>)
    where
        P: Protocol<T>,
    {
        let (start, mut pause) = (Instant::now(), FIRST_PAUSE);
        loop {
            let answer = self.endpoint.post(P::CONTENT_TYPE, self.protocol.body(&batch)).await;
            let (why, wanted) = match answer {
                Ok(reply) if reply.status.is_success() => {
                    let all = batch.len();
                    let (left, refused) = self.protocol.left(batch, &reply);
                    let sent = all.saturating_sub(left.len() + refused);
                    self.counts.sent.fetch_add(sent as u64, Ordering::Relaxed);
                    self.drop_some(refused, "the server refused some of them");
                    if left.is_empty() {
                        return;
                    }
                    batch = left;
                    ("the server has no place for some of them".to_owned(), reply.retry_after)
                }
                Ok(reply) if is_passing(reply.status) => {
                    (format!("the server answered {}", reply.status), reply.retry_after)
                }
                Ok(reply) => return self.drop_some(batch.len(), &format!("the server answered {}", reply.status)),
                Err(error) => (error.to_string(), None),
            };
            let pause_now = wanted.unwrap_or(pause);
            if start.elapsed() + pause_now > GIVE_UP {
                return self.drop_some(batch.len(), &why);
            }
            self.counts.retries.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(kind = self.kind, why, ?pause_now, "a batch is sent again");
            tokio::time::sleep(pause_now).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    fn drop_some(&self, count: usize, why: &str) {
        if count > 0 {
            self.counts.dropped.fetch_add(count as u64, Ordering::Relaxed);
            tracing::warn!(kind = self.kind, count, why, "not delivered");
        }
    }
}

/// Whether the same request may be taken later.
fn is_passing(status: http::StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429)
}

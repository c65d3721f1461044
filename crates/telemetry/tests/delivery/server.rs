//! A server that collects what it is sent, and answers as a test wishes.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use serde_json::Value;
use tokio::sync::mpsc;

/// More than anything here takes, on a busy host too.
const PATIENCE: Duration = Duration::from_secs(60);

/// One request.
#[derive(Debug)]
pub struct Taken {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Taken {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

type Answers = Arc<Mutex<VecDeque<(StatusCode, String)>>>;

pub struct Server {
    pub address: SocketAddr,
    taken: mpsc::UnboundedReceiver<Taken>,
}

impl Server {
    /// Gives these answers, then good ones.
    pub async fn start(answers: &[(u16, &str)]) -> Server {
        let answers = answers.iter().map(|(status, body)| (StatusCode::from_u16(*status).unwrap(), (*body).to_owned()));
        let answers: Answers = Arc::new(Mutex::new(answers.collect()));
        let (sender, taken) = mpsc::unbounded_channel();
        let router = Router::new().fallback(take).with_state((sender, answers));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Server { address, taken }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next request.
    pub async fn next(&mut self) -> Taken {
        tokio::time::timeout(PATIENCE, self.taken.recv()).await.expect("no request comes").unwrap()
    }
}

async fn take(
    State((sender, answers)): State<(mpsc::UnboundedSender<Taken>, Answers)>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, String) {
    sender.send(Taken { path: uri.path().to_owned(), headers, body }).unwrap();
    answers.lock().unwrap().pop_front().unwrap_or((StatusCode::OK, "{}".to_owned()))
}

/// Waits until something is so.
pub async fn eventually(what: &str, check: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !check() {
        assert!(start.elapsed() < PATIENCE, "{what} does not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

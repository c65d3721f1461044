//! The client against a daemon of a few lines, which says what a test has it say.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::{SinkExt, StreamExt};
use queztl_api::{Code, Operation, OperationState, Problem, StopRequest};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio_tungstenite::tungstenite::Message as Frame;

use crate::{Address, Client, Error, Message, Options};

/// A daemon that gives one answer after the other, and remembers what it was asked.
struct Daemon {
    folder: TempDir,
    asked: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
}

/// One answer.
enum Answer {
    Json(u16, Value),
    /// The same, and the connection ends without being announced.
    Last(Value),
    /// Bytes as they are, and the end.
    Raw(Vec<u8>),
}

impl Daemon {
    fn start(answers: impl IntoIterator<Item = Answer>) -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        let daemon = Daemon { folder, asked: Arc::default(), connections: Arc::default() };
        let answers = Arc::new(Mutex::new(answers.into_iter().collect::<VecDeque<_>>()));
        let (asked, connections) = (daemon.asked.clone(), daemon.connections.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream, answers.clone(), asked.clone()));
            }
        });
        daemon
    }

    fn client(&self) -> Client {
        Client::new(Address::Unix(self.folder.path().join("s")), Options::default()).unwrap()
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

async fn serve(mut stream: UnixStream, answers: Arc<Mutex<VecDeque<Answer>>>, asked: Arc<Mutex<Vec<String>>>) {
    while let Some(request) = read(&mut stream).await {
        asked.lock().unwrap().push(request);
        let Some(answer) = answers.lock().unwrap().pop_front() else { return };
        let (bytes, is_last) = match answer {
            Answer::Json(status, value) => (http(status, &value), false),
            Answer::Last(value) => (http(200, &value), true),
            Answer::Raw(bytes) => (bytes, true),
        };
        if stream.write_all(&bytes).await.is_err() || is_last {
            return;
        }
    }
}

fn http(status: u16, value: &Value) -> Vec<u8> {
    let body = value.to_string();
    format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Head and body of a request; none at the connection's end.
async fn read(stream: &mut UnixStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some(head) = text.find("\r\n\r\n") {
            let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
            if bytes.len() >= head + 4 + length.map_or(0, |length| length.parse().unwrap()) {
                return Some(text);
            }
        }
        let mut part = [0; 4096];
        match stream.read(&mut part).await {
            Ok(count) if count > 0 => bytes.extend(&part[..count]),
            _ => return None,
        }
    }
}

fn operation(state: &str) -> Value {
    json!({
        "id": "op", "kind": "start", "state": state, "target": "a", "created_at": "2026-01-01T00:00:00Z",
        "ended_at": null, "progress": null, "cancellable": false, "result": null, "problem": null,
    })
}

fn empty_list() -> Value {
    json!({ "items": [], "next": null })
}

#[tokio::test]
async fn one_connection_serves_request_after_request() {
    let daemon = Daemon::start([Answer::Json(200, empty_list()), Answer::Json(200, empty_list())]);
    let client = daemon.client();

    client.vms().await.unwrap();
    client.images().await.unwrap();

    assert_eq!(daemon.connections(), 1);
    let first: Vec<String> = daemon.asked().iter().map(|asked| asked.lines().next().unwrap().to_owned()).collect();
    assert_eq!(first, ["GET /v1/vms HTTP/1.1", "GET /v1/images HTTP/1.1"]);
}

#[tokio::test]
async fn a_connection_that_the_daemon_has_closed_is_made_anew() {
    let daemon = Daemon::start([Answer::Last(empty_list()), Answer::Json(200, empty_list())]);
    let client = daemon.client();

    client.vms().await.unwrap();
    client.vms().await.unwrap();

    assert_eq!(daemon.connections(), 2);
}

#[tokio::test]
async fn lists_are_read_to_their_end_and_no_further() {
    let token =
        |name: &str| json!({ "name": name, "scope": "read", "created_at": "2026-01-01T00:00:00Z", "expires_at": null });
    let first = json!({ "items": [token("a")], "next": "a b" });
    let second = json!({ "items": [token("b")], "next": null });
    let daemon = Daemon::start([Answer::Json(200, first), Answer::Json(200, second)]);

    let tokens = daemon.client().tokens().await.unwrap();

    assert_eq!(tokens.len(), 2);
    assert!(daemon.asked()[1].starts_with("GET /v1/tokens?after=a%20b "));
}

#[tokio::test]
async fn a_list_without_an_end_is_refused() {
    let again = || Answer::Json(200, json!({ "items": [], "next": "a" }));
    let daemon = Daemon::start([again(), again()]);

    assert!(matches!(daemon.client().vms().await, Err(Error::Answer { .. })));
}

#[tokio::test]
async fn a_refusal_is_the_daemons_problem() {
    let problem = Problem::not_found("machine", "a/b");
    let daemon = Daemon::start([Answer::Json(404, serde_json::to_value(&problem).unwrap())]);

    let error = daemon.client().vm("a/b").await.unwrap_err();

    assert_eq!(error.problem().map(|problem| problem.code), Some(Code::NotFound));
    assert_eq!(error.to_string(), problem.detail);
    assert!(daemon.asked()[0].starts_with("GET /v1/vms/a%2Fb "));
}

#[tokio::test]
async fn a_tokens_secret_is_asked_for_without_a_key() {
    let token =
        json!({"name": "ci", "scope": "read", "created_at": "2026-01-01T00:00:00Z", "expires_at": null, "secret": "s"});
    let daemon = Daemon::start([Answer::Json(201, token)]);
    let request = serde_json::from_value(json!({"name": "ci", "scope": "read"})).unwrap();

    assert_eq!(daemon.client().create_token(&request).await.unwrap().secret, "s");

    let asked = daemon.asked();
    assert!(asked[0].starts_with("POST /v1/tokens ") && !asked[0].contains("idempotency-key"), "{}", asked[0]);
}

#[tokio::test]
async fn what_changes_something_has_a_key_of_its_own() {
    let daemon = Daemon::start([Answer::Json(202, operation("running")), Answer::Json(202, operation("running"))]);
    let client = daemon.client();

    client.stop("a", &StopRequest { grace_seconds: Some(5) }).await.unwrap();
    client.start("a").await.unwrap();

    let asked = daemon.asked();
    let key =
        |asked: &String| asked.lines().find_map(|line| line.strip_prefix("idempotency-key: ")).unwrap().to_owned();
    assert_ne!(key(&asked[0]), key(&asked[1]));
    assert!(asked[0].ends_with("\r\n\r\n{\"grace_seconds\":5}"), "{}", asked[0]);
    assert!(asked[1].ends_with("\r\n\r\n"), "{}", asked[1]);
}

#[tokio::test]
async fn an_operation_is_followed_to_its_end() {
    let answers = ["running", "running", "succeeded"].map(|state| Answer::Json(200, operation(state)));
    let daemon = Daemon::start(answers);
    let client = daemon.client();
    let begun: Operation = client.start("a").await.unwrap();
    let mut seen = Vec::new();

    let ended = client.finish(begun, |now| seen.push(now.state)).await.unwrap();

    assert_eq!(ended.state, OperationState::Succeeded);
    assert_eq!(seen, [OperationState::Running, OperationState::Running, OperationState::Succeeded]);
    assert!(daemon.asked()[1].starts_with("GET /v1/operations/op/wait?timeout_seconds=1 "));
}

#[tokio::test]
async fn a_cancelled_operation_is_an_error() {
    let daemon = Daemon::start([Answer::Json(200, operation("cancelled"))]);
    let client = daemon.client();
    let begun = client.operation("op").await.unwrap();

    let error = client.finish(begun, |_| ()).await.unwrap_err();

    assert_eq!(error.problem().map(|problem| problem.code), Some(Code::Cancelled));
}

#[tokio::test]
async fn other_answers_are_errors_that_say_so() {
    let broken = b"HTTP/1.1 200 X\r\ncontent-length: 100\r\n\r\n{".to_vec();
    for (answer, said) in [
        (Answer::Raw(b"SSH-2.0-x\r\n".to_vec()), "broke off"),
        (Answer::Raw(broken), "broke off"),
        (Answer::Json(200, json!({ "items": 3 })), "cannot be understood"),
        (Answer::Json(500, json!("no")), "status 500"),
    ] {
        let daemon = Daemon::start([answer]);
        let error = daemon.client().vms().await.unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[tokio::test]
async fn nobody_there_is_told_from_all_else() {
    let folder = tempfile::tempdir().unwrap();
    let client = Client::new(Address::Unix(folder.path().join("none")), Options::default()).unwrap();

    assert!(client.vms().await.unwrap_err().is_absent());
}

#[test]
fn a_token_with_a_line_break_is_refused() {
    let options = Options { token: Some("a\nb".into()), ..Options::default() };
    assert!(matches!(Client::new(Address::Unix("/s".into()), options), Err(Error::Token)));
}

#[tokio::test]
async fn a_console_carries_bytes_and_words_both_ways() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    let daemon = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        socket.send(Frame::binary(b"login: ".to_vec())).await.unwrap();
        let typed = socket.next().await.unwrap().unwrap();
        let told = socket.next().await.unwrap().unwrap();
        socket.close(None).await.unwrap();
        (typed, told)
    });
    let client = Client::new(Address::Unix(folder.path().join("s")), Options::default()).unwrap();

    let mut console = client.console("a", false).await.unwrap();
    assert_eq!(console.next().await.unwrap(), Some(Message::Bytes(b"login: ".to_vec())));
    console.send(b"root\r".to_vec()).await.unwrap();
    console.send_json(&json!({ "type": "resize" })).await.unwrap();

    assert_eq!(console.next().await.unwrap(), None);
    let (typed, told) = daemon.await.unwrap();
    assert_eq!((typed, told), (Frame::binary(b"root\r".to_vec()), Frame::text("{\"type\":\"resize\"}")));
}

#[tokio::test]
async fn a_refused_console_is_the_daemons_problem() {
    let problem = serde_json::to_value(Problem::new(Code::State, "it does not run")).unwrap();
    let daemon = Daemon::start([Answer::Json(409, problem)]);

    let error = daemon.client().console("a", true).await.unwrap_err();

    assert_eq!(error.to_string(), "it does not run");
    assert!(daemon.asked()[0].starts_with("GET /v1/vms/a/console?read_only=true "));
}

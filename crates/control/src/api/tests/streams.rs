//! WebSockets: events, consoles and commands, as their clients see them.

use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use futures_util::{SinkExt, StreamExt};
use queztl_api::EventKind;
use queztl_vmm::process::Folder;
use queztl_vmm::process::console::{Guest, Hub, Server as ConsoleServer};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::agents;
use super::*;

type Socket = WebSocketStream<tokio::net::UnixStream>;

/// The next message that is no ping.
async fn next(socket: &mut Socket) -> Message {
    loop {
        let message = soon(socket.next()).await.expect("it ended without a reason").unwrap();
        if !message.is_ping() {
            return message;
        }
    }
}

async fn json_of(socket: &mut Socket) -> Value {
    let message = next(socket).await;
    serde_json::from_str(message.to_text().unwrap()).unwrap()
}

async fn tell(socket: &mut Socket, value: Value) {
    socket.send(Message::text(value.to_string())).await.unwrap();
}

fn code(message: &Message) -> CloseCode {
    match message {
        Message::Close(Some(frame)) => frame.code,
        other => panic!("no end: {other:?}"),
    }
}

fn happen(daemon: &Daemon, name: &str) {
    daemon.service.happen(EventKind::VmCreated { vm: "vm-1".into(), name: name.into() });
}

#[tokio::test]
async fn events_go_on_behind_the_last_one_that_is_known() {
    let daemon = Daemon::start(Limits::default()).await;
    let mut first = daemon.socket("/v1/events/stream").await.unwrap();
    for name in ["a", "b", "c"] {
        happen(&daemon, name);
    }
    let mut known = 0;
    for name in ["a", "b"] {
        let event = json_of(&mut first).await;
        assert_eq!((&event["name"], &event["event"]), (&json!(name), &json!("vm-created")));
        known = event["sequence"].as_u64().unwrap();
    }

    // The client is gone in the middle, and something happens meanwhile.
    drop(first);
    happen(&daemon, "d");
    let mut again = daemon.socket(&format!("/v1/events/stream?after={known}")).await.unwrap();
    happen(&daemon, "e");

    for name in ["c", "d", "e"] {
        let event = json_of(&mut again).await;
        known += 1;
        assert_eq!((&event["name"], &event["sequence"]), (&json!(name), &json!(known)));
    }
}

#[tokio::test]
async fn a_reader_of_events_that_fell_behind_is_told() {
    let daemon = Daemon::start(Limits::default()).await;
    let mut reader = daemon.socket("/v1/events/stream").await.unwrap();

    // All at once: more than wait for anybody.
    for _ in 0..5000 {
        happen(&daemon, "x");
    }

    let mut seen = 0;
    let lost = loop {
        let event = json_of(&mut reader).await;
        let sequence = event["sequence"].as_u64().unwrap();
        assert!(sequence > seen, "{event} came after {seen}");
        seen = sequence;
        if event["event"] == "lost" {
            break event;
        }
    };
    assert_eq!(lost["up_to"], lost["sequence"]);
    happen(&daemon, "last");
    loop {
        let event = json_of(&mut reader).await;
        if event["name"] == "last" {
            assert_eq!(event["sequence"], 5001);
            break;
        }
    }
}

#[tokio::test]
async fn who_only_listens_has_nothing_to_say() {
    let daemon = Daemon::start(Limits::default()).await;
    let mut reader = daemon.socket("/v1/events/stream").await.unwrap();
    tell(&mut reader, json!({})).await;
    assert_eq!(code(&next(&mut reader).await), CloseCode::Policy);
}

/// Notes what reaches a guest's console.
#[derive(Default)]
struct Notes {
    input: Mutex<Vec<u8>>,
    /// Columns and rows.
    size: Mutex<Option<(u16, u16)>>,
}

impl Guest for Notes {
    fn input(&self, bytes: &[u8]) -> usize {
        self.input.lock().unwrap().extend_from_slice(bytes);
        bytes.len()
    }

    fn resize(&self, columns: u16, rows: u16) {
        *self.size.lock().unwrap() = Some((columns, rows));
    }
}

/// A daemon with a machine `web` whose console is there.
async fn with_console() -> (Daemon, Arc<Hub>, Arc<Notes>, ConsoleServer) {
    let daemon = Daemon::start(Limits::default()).await;
    daemon.running("web").await;
    let (hub, notes) = (Hub::new().unwrap(), Arc::new(Notes::default()));
    let console =
        ConsoleServer::start(&Folder::new(daemon.directory.path()), hub.clone(), notes.clone(), None).unwrap();
    (daemon, hub, notes, console)
}

/// Reads output until it ends so.
async fn output(socket: &mut Socket, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        match next(socket).await {
            Message::Binary(bytes) => text.push_str(std::str::from_utf8(&bytes).unwrap()),
            other => panic!("{other:?} after {text:?}"),
        }
    }
    text
}

#[tokio::test]
async fn a_console_that_is_opened_again_shows_what_was_missed_once() {
    let (daemon, hub, _notes, _console) = with_console().await;
    let mut first = daemon.socket("/v1/vms/web/console").await.unwrap();
    hub.push(b"one\n");
    assert_eq!(output(&mut first, "one\n").await, "one\n");

    drop(first);
    hub.push(b"two\n");
    let mut again = daemon.socket("/v1/vms/web/console").await.unwrap();
    hub.push(b"three\n");

    assert_eq!(output(&mut again, "three\n").await, "one\ntwo\nthree\n");
}

#[tokio::test]
async fn a_viewer_types_and_tells_its_size() {
    let (daemon, _hub, notes, _console) = with_console().await;
    let mut viewer = daemon.socket("/v1/vms/web/console").await.unwrap();

    tell(&mut viewer, json!({"type": "resize", "rows": 50, "columns": 132})).await;
    viewer.send(Message::binary(&b"ls\n"[..])).await.unwrap();

    soon(async {
        while *notes.input.lock().unwrap() != b"ls\n" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(*notes.size.lock().unwrap(), Some((132, 50)));
}

#[tokio::test]
async fn who_came_to_look_or_says_nonsense_is_let_go() {
    let (daemon, _hub, notes, _console) = with_console().await;
    let mut looks = daemon.socket("/v1/vms/web/console?read_only=true").await.unwrap();
    looks.send(Message::binary(&b"rm\n"[..])).await.unwrap();
    assert_eq!(code(&next(&mut looks).await), CloseCode::Policy);

    for nonsense in [json!([]), json!({"type": "resize"}), json!({"type": "resize", "rows": 70000, "columns": 1})] {
        let mut types = daemon.socket("/v1/vms/web/console").await.unwrap();
        tell(&mut types, nonsense).await;
        assert_eq!(code(&next(&mut types).await), CloseCode::Policy);
    }
    assert!(notes.input.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_machine_that_ends_ends_its_console() {
    let (daemon, hub, _notes, console) = with_console().await;
    let mut viewer = daemon.socket("/v1/vms/web/console").await.unwrap();

    hub.push(b"the last words\n");
    soon(tokio::task::spawn_blocking(move || drop(console))).await.unwrap();

    assert_eq!(output(&mut viewer, "words\n").await, "the last words\n");
    assert!(next(&mut viewer).await.is_close());
    let refusal = daemon.socket("/v1/vms/web/console").await.unwrap_err();
    assert_eq!(refused(refusal), StatusCode::CONFLICT);
}

#[tokio::test]
async fn a_console_that_says_nothing_is_given_up() {
    let limits = Limits { agent_time: Duration::from_millis(200), ..Limits::default() };
    let daemon = Daemon::start(limits).await;
    daemon.running("web").await;
    let _mute = std::os::unix::net::UnixListener::bind(daemon.directory.path().join("console.sock")).unwrap();

    let refusal = daemon.socket("/v1/vms/web/console").await.unwrap_err();

    assert_eq!(refused(refusal), StatusCode::GATEWAY_TIMEOUT);
}

/// A daemon with a machine `web` whose agent is there.
async fn with_agent() -> Daemon {
    let daemon = Daemon::start(Limits::default()).await;
    daemon.running("web").await;
    agents::honest(daemon.directory.path());
    daemon
}

async fn exec(daemon: &Daemon, start: Value) -> Socket {
    let mut socket = daemon.socket("/v1/vms/web/exec/stream").await.unwrap();
    tell(&mut socket, start).await;
    socket
}

/// What a command says until it ends: its output, its errors, and the notice of its end.
async fn follow(socket: &mut Socket) -> (String, String, Value) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match next(socket).await {
            Message::Binary(bytes) => match bytes.split_first() {
                Some((1, rest)) => out.extend_from_slice(rest),
                Some((2, rest)) => err.extend_from_slice(rest),
                other => panic!("{other:?}"),
            },
            Message::Text(notice) => {
                let [out, err] = [out, err].map(|bytes| String::from_utf8(bytes).unwrap());
                return (out, err, serde_json::from_str(&notice).unwrap());
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_command_has_its_streams() {
    let daemon = with_agent().await;
    let script = "cat; echo wrong >&2; exit 3";
    let mut socket = exec(&daemon, json!({"command": ["sh", "-c", script], "cwd": "/", "stdin": true})).await;
    assert_eq!(json_of(&mut socket).await, json!({"type": "started"}));

    for line in ["a\n", "b\n"] {
        socket.send(Message::binary(line.as_bytes())).await.unwrap();
    }
    tell(&mut socket, json!({"type": "end-of-input"})).await;

    let (out, err, end) = follow(&mut socket).await;
    assert_eq!((out.as_str(), err.as_str()), ("a\nb\n", "wrong\n"));
    assert_eq!(end, json!({"type": "exited", "status": 3, "signal": null}));
    assert_eq!(code(&next(&mut socket).await), CloseCode::Normal);
}

#[tokio::test]
async fn a_terminal_follows_its_size() {
    let daemon = with_agent().await;
    let script = "until [ \"$(stty size)\" = '33 44' ]; do sleep 0.01; done; read x; echo got $x";
    let size = json!({"rows": 11, "columns": 22});
    let start = json!({"command": ["sh", "-c", script], "cwd": "/", "stdin": true, "tty": size});
    let mut socket = exec(&daemon, start).await;

    // Sent before the command is known to run.
    tell(&mut socket, json!({"type": "resize", "rows": 33, "columns": 44})).await;
    socket.send(Message::binary(&b"go\n"[..])).await.unwrap();

    assert_eq!(json_of(&mut socket).await["type"], "started");
    let (out, _, end) = follow(&mut socket).await;
    assert!(out.ends_with("got go\r\n"), "{out:?}");
    assert_eq!(end["status"], 0);
}

#[tokio::test]
async fn a_signal_reaches_the_command() {
    let daemon = with_agent().await;
    let mut socket = exec(&daemon, json!({"command": ["sleep", "1000"], "cwd": "/"})).await;
    assert_eq!(json_of(&mut socket).await["type"], "started");
    tell(&mut socket, json!({"type": "signal", "number": 15})).await;
    assert_eq!(follow(&mut socket).await.2["signal"], 15);
}

#[tokio::test]
async fn who_leaves_takes_the_command_along() {
    let daemon = with_agent().await;
    let mut socket = exec(&daemon, json!({"command": ["sh", "-c", "echo $$; exec sleep 1000"], "cwd": "/"})).await;
    assert_eq!(json_of(&mut socket).await["type"], "started");
    let Message::Binary(pid) = next(&mut socket).await else { panic!("no output") };
    let pid: u32 = std::str::from_utf8(&pid[1..]).unwrap().trim().parse().unwrap();
    let process = std::path::PathBuf::from(format!("/proc/{pid}"));
    assert!(process.exists());

    drop(socket);

    soon(async {
        while process.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn more_output_than_is_read_waits_in_the_guest() {
    let daemon = with_agent().await;
    let mark = daemon.directory.path().join("written");
    let script = format!("head -c 30000000 /dev/zero; touch {}", mark.display());
    let mut socket = exec(&daemon, json!({"command": ["sh", "-c", script], "cwd": "/"})).await;
    assert_eq!(json_of(&mut socket).await["type"], "started");
    // It cannot have got far: nobody has read.
    assert!(!mark.exists());

    let (out, _, end) = follow(&mut socket).await;

    assert_eq!((out.len(), &end["status"]), (30_000_000, &json!(0)));
}

#[tokio::test]
async fn what_is_no_command_is_told_and_the_stream_ends() {
    let daemon = with_agent().await;
    for (start, says) in [
        (json!({"command": ["/no/such"], "cwd": "/"}), "invalid"),
        (json!({"command": []}), "invalid"),
        (json!({"command": ["true"], "shell": true}), "invalid"),
        (json!([]), "invalid"),
    ] {
        let mut socket = exec(&daemon, start.clone()).await;
        let notice = json_of(&mut socket).await;
        assert_eq!((&notice["type"], &notice["problem"]["code"]), (&json!("problem"), &json!(says)), "{start}");
        assert!(next(&mut socket).await.is_close());
    }
    let mut socket = daemon.socket("/v1/vms/web/exec/stream").await.unwrap();
    socket.send(Message::binary(&b"ls"[..])).await.unwrap();
    assert_eq!(code(&next(&mut socket).await), CloseCode::Policy);
}

#[tokio::test]
async fn nonsense_in_the_middle_ends_the_command() {
    let daemon = with_agent().await;
    for nonsense in
        [json!({"type": "signal", "number": 0}), json!({"type": "signal"}), json!({"type": "dance"}), json!(7)]
    {
        let mut socket = exec(&daemon, json!({"command": ["sleep", "1000"], "cwd": "/"})).await;
        assert_eq!(json_of(&mut socket).await["type"], "started");
        tell(&mut socket, nonsense.clone()).await;
        assert_eq!(code(&next(&mut socket).await), CloseCode::Policy, "{nonsense}");
    }
}

#[tokio::test]
async fn a_stream_to_a_machine_without_an_agent_says_so() {
    let limits = Limits { agent_time: Duration::from_millis(200), ..Limits::default() };
    let daemon = Daemon::start(limits).await;
    daemon.running("web").await;
    agents::listen(daemon.directory.path(), |stream: UnixStream| drop(stream));
    let mut socket = exec(&daemon, json!({"command": ["true"]})).await;
    assert_eq!(json_of(&mut socket).await["problem"]["code"], "timeout");
}

/// Output until it holds a text.
async fn until(socket: &mut Socket, text: &str) -> String {
    let mut out = String::new();
    while !out.contains(text) {
        match next(socket).await {
            Message::Binary(bytes) => out.push_str(std::str::from_utf8(&bytes[1..]).unwrap()),
            Message::Text(notice) => assert!(notice.contains("started"), "{notice}"),
            other => panic!("{other:?} before {text:?}: {out:?}"),
        }
    }
    out
}

#[tokio::test]
async fn a_kept_shell_is_found_again_with_what_it_showed() {
    let daemon = with_agent().await;
    let start = json!({"command": ["sh", "-c", "echo pid $$ end; while read line; do echo got $line; done"], "cwd": "/",
        "stdin": true, "tty": {"rows": 11, "columns": 22}, "keep": "tab-1"});
    let mut first = exec(&daemon, start.clone()).await;
    let shown = until(&mut first, "end").await;
    first.send(Message::binary(&b"one\n"[..])).await.unwrap();
    until(&mut first, "got one").await;

    drop(first);
    let mut again = exec(&daemon, start.clone()).await;
    let seen = until(&mut again, "got one").await;
    again.send(Message::binary(&b"two\n"[..])).await.unwrap();
    until(&mut again, "got two").await;

    assert!(seen.starts_with(&shown), "the same process: {seen:?} {shown:?}");
    // Another word is another shell, and the end of a shell is told.
    let mut other = exec(
        &daemon,
        json!({"command": ["sh", "-c", "exit 3"], "cwd": "/", "tty": {"rows": 1, "columns": 1}, "keep": "tab-2"}),
    )
    .await;
    let ended = loop {
        if let Message::Text(notice) = next(&mut other).await
            && notice.contains("exited")
        {
            break serde_json::from_str::<Value>(&notice).unwrap();
        }
    };
    assert_eq!(ended["status"], 3);
}

#[tokio::test]
async fn a_command_without_a_terminal_is_not_kept() {
    let daemon = with_agent().await;
    let mut socket = exec(&daemon, json!({"command": ["true"], "keep": "word"})).await;
    assert_eq!(json_of(&mut socket).await["problem"]["fields"][0]["field"], "keep");
}

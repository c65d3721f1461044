use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;
use crate::config::{Rate, RateLimit};

/// Writes down what it is asked, and refuses pauses.
#[derive(Default)]
struct Machine(Mutex<Vec<Request>>);

impl Target for Machine {
    fn execute(&self, request: Request) -> Response {
        let refused = request == Request::Pause {};
        self.0.lock().unwrap().push(request);
        if refused { Response::Error(Refusal::new(Reason::Timeout, "not now")) } else { Response::Done {} }
    }
}

/// Takes as long for a snapshot as the test holds the lock; gives a pipe for a fork.
#[derive(Default)]
struct Slow {
    busy: Mutex<()>,
    done: Mutex<Vec<PathBuf>>,
}

impl Target for Slow {
    fn execute(&self, _: Request) -> Response {
        Response::Done {}
    }

    fn carry_out(&self, request: Request) -> Answer {
        let _busy = self.busy.lock().unwrap();
        let report = SnapshotReport { pause_ns: 1, total_ns: 2, memory_bytes: 3 };
        match request {
            Request::Snapshot { directory, .. } => {
                self.done.lock().unwrap().push(directory);
                Response::Snapshot(report).into()
            }
            _ => {
                let (reader, writer) = std::io::pipe().unwrap();
                (&writer).write_all(b"memory").unwrap();
                Answer { response: Response::Fork(report), files: vec![reader.into(), writer.into()] }
            }
        }
    }
}

fn snapshot(directory: &str) -> Request {
    Request::Snapshot { directory: directory.into(), base: None, disks: Vec::new(), stay_paused: false }
}

#[test]
fn nobody_waits_for_a_snapshot_but_who_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let machine = Arc::new(Slow::default());
    let _server = Server::start(&path, machine.clone()).unwrap();
    let busy = machine.busy.lock().unwrap();
    let mut asking = UnixStream::connect(&path).unwrap();
    asking.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    for request in [snapshot("one"), Request::Pause {}, snapshot("two"), Request::Resume {}] {
        asking.write_all(&serde_json::to_vec(&request).unwrap()).unwrap();
        asking.write_all(b"\n").unwrap();
    }
    // One that asks and goes gets nothing, and harms nobody.
    let mut gone = UnixStream::connect(&path).unwrap();
    gone.write_all(b"{\"command\":\"snapshot\",\"directory\":\"three\"}\n").unwrap();

    let mut other = Client::connect(&path).unwrap();
    other.command(&Request::Pause {}).unwrap();
    drop(gone);
    other.command(&Request::Resume {}).unwrap();
    drop(busy);

    let mut lines = BufReader::new(asking).lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap());
    let kinds: Vec<bool> = lines.by_ref().take(4).map(|answer| matches!(answer, Response::Snapshot(_))).collect();
    assert_eq!(kinds, [true, false, true, false], "answers come in the order of the requests");
    assert_eq!(other.snapshot(&snapshot("four")).unwrap().memory_bytes, 3);
    let mut done = machine.done.lock().unwrap().clone();
    done.sort();
    assert_eq!(done, ["four", "one", "three", "two"].map(PathBuf::from));
}

#[test]
fn files_come_beside_the_answer_that_they_belong_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let _server = Server::start(&path, Arc::new(Slow::default())).unwrap();
    let mut client = Client::connect(&path).unwrap();
    for _ in 0..3 {
        client.command(&Request::Resume {}).unwrap();
        let (_, files) = client.fork(&Request::Fork { directory: "x".into(), disks: Vec::new() }).unwrap();
        let [reader, writer] = <[_; 2]>::try_from(files).unwrap();
        drop(writer);
        assert_eq!(std::io::read_to_string(std::fs::File::from(reader)).unwrap(), "memory");
    }
}

struct Setup {
    _folder: tempfile::TempDir,
    path: PathBuf,
    machine: Arc<Machine>,
    server: Server,
}

fn setup() -> Setup {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let machine = Arc::new(Machine::default());
    let server = Server::start(&path, machine.clone()).unwrap();
    Setup { _folder: folder, path, machine, server }
}

fn raw(s: &Setup) -> UnixStream {
    let stream = UnixStream::connect(&s.path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn line(stream: &UnixStream) -> Response {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

#[test]
fn requests_reach_the_machine_and_answers_the_client() {
    let s = setup();
    let mut client = Client::connect(&s.path).unwrap();
    let limit = RateLimit { bytes: Some(Rate { per_second: 5, burst: 7 }), requests: None };
    let requests = [
        Request::Resume {},
        Request::Balloon { target_bytes: 4096 },
        Request::Memory { requested_bytes: 0 },
        Request::Limit { device: "disk0".into(), limit },
    ];
    for request in &requests {
        client.command(request).unwrap();
    }
    assert_eq!(*s.machine.0.lock().unwrap(), requests);
    let refused = client.command(&Request::Pause {}).unwrap_err();
    assert!(matches!(refused, ClientError::Refused(Refusal { reason: Reason::Timeout, .. })));
    assert!(matches!(client.status(), Err(ClientError::Unexpected)));
}

#[test]
fn the_words_on_the_wire_are_these() {
    let words = |request: &Request| serde_json::to_string(request).unwrap();
    assert_eq!(words(&Request::Pause {}), r#"{"command":"pause"}"#);
    assert_eq!(words(&Request::Balloon { target_bytes: 1 }), r#"{"command":"balloon","target_bytes":1}"#);
    let limit = serde_json::from_str::<Request>(
        r#"{"command":"limit","device":"rng","limit":{"bytes":{"per_second":1,"burst":2}}}"#,
    );
    let bytes = Some(Rate { per_second: 1, burst: 2 });
    assert_eq!(limit.unwrap(), Request::Limit { device: "rng".into(), limit: RateLimit { bytes, requests: None } });
    assert_eq!(serde_json::to_string(&Response::Done {}).unwrap(), r#"{"result":"done"}"#);
    let error = Response::Error(Refusal::new(Reason::Missing, "no"));
    assert_eq!(serde_json::to_string(&error).unwrap(), r#"{"result":"error","reason":"missing","message":"no"}"#);
}

#[test]
fn what_is_no_request_is_answered_and_the_next_one_works() {
    let s = setup();
    let mut stream = raw(&s);
    let wrong: [&[u8]; 8] = [
        b"hello",
        b"{}",
        b"[]",
        b"{\"command\":\"destroy\"}",
        b"{\"command\":\"pause\",\"now\":true}",
        b"{\"command\":\"balloon\",\"target_bytes\":-1}",
        b"{\"command\":\"balloon\",\"target_bytes\":1e30}",
        b"\xff\xfe\0",
    ];
    for wrong in wrong {
        stream.write_all(&[wrong, b"\n"].concat()).unwrap();
        let answer = line(&stream);
        let malformed = matches!(&answer, Response::Error(Refusal { reason: Reason::Malformed, .. }));
        assert!(malformed, "{answer:?} to {}", String::from_utf8_lossy(wrong));
    }
    stream.write_all(b"\n \n{\"command\":\"stop\"}\n").unwrap();
    assert_eq!(line(&stream), Response::Done {});
    assert_eq!(*s.machine.0.lock().unwrap(), [Request::Stop {}]);
}

#[test]
fn requests_may_come_in_pieces_and_together() {
    let s = setup();
    let mut stream = raw(&s);
    for piece in ["{\"comm", "and\":\"stop\"", "}\n{\"command\":\"resume\"}\n{\"comm"] {
        stream.write_all(piece.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut answers = BufReader::new(&stream).lines();
    for _ in 0..2 {
        assert_eq!(answers.next().unwrap().unwrap(), r#"{"result":"done"}"#);
    }
}

#[test]
fn a_line_without_end_is_refused_and_the_client_sent_away() {
    let s = setup();
    let mut stream = raw(&s);
    stream.write_all(&vec![b'x'; MAX_REQUEST_BYTES]).unwrap();
    let mut answer = String::new();
    // A reset after the answer is as good as an end.
    let _ = BufReader::new(&stream).read_line(&mut answer);
    assert!(answer.contains("malformed") && answer.contains(&MAX_REQUEST_BYTES.to_string()), "{answer}");
    assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
}

#[test]
fn clients_that_do_nothing_or_never_read_hold_nobody_up() {
    let s = setup();
    let _silent = raw(&s);
    let mut half = raw(&s);
    half.write_all(b"{\"command\":").unwrap();
    let mut deaf = raw(&s);
    deaf.set_nonblocking(true).unwrap();
    // Until the server reads no more of them.
    let request = b"{\"command\":\"resume\"}\n".repeat(1000);
    let mut refused = 0;
    while refused < 20 {
        if deaf.write_all(&request).is_err() {
            refused += 1;
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Client::connect(&s.path).unwrap().command(&Request::Stop {}).unwrap();
}

#[test]
fn too_many_clients_are_told_so_and_later_ones_get_in() {
    let s = setup();
    let mut clients: Vec<Client> = (0..MAX_CLIENTS).map(|_| Client::connect(&s.path).unwrap()).collect();
    clients.iter_mut().for_each(|client| client.command(&Request::Resume {}).unwrap());
    let refused = Client::connect(&s.path).unwrap().command(&Request::Resume {}).unwrap_err();
    assert!(matches!(refused, ClientError::Refused(Refusal { reason: Reason::Busy, .. })), "{refused:?}");

    drop(clients.split_off(MAX_CLIENTS / 2));
    let later = || Client::connect(&s.path).unwrap().command(&Request::Resume {}).is_ok();
    assert!((0..2000).any(|_| later() || {
        std::thread::sleep(Duration::from_millis(10));
        false
    }));
}

#[test]
fn the_socket_is_its_owners_alone_and_goes_with_the_server() {
    let s = setup();
    assert_eq!(std::fs::metadata(&s.path).unwrap().permissions().mode() & 0o777, 0o600);
    drop(s.server);
    assert!(!s.path.exists());
    assert_eq!(std::fs::read_dir(s.path.parent().unwrap()).unwrap().count(), 0);
}

#[test]
fn a_socket_in_use_and_other_files_are_left_alone_and_a_stale_one_is_replaced() {
    let s = setup();
    let again = |path: &std::path::Path| Server::start(path, Arc::new(Machine::default()));
    assert!(matches!(again(&s.path), Err(ServerError::InUse(_))));
    let file = s.path.with_file_name("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(again(&file), Err(ServerError::NotASocket(_))));
    let nowhere = s.path.with_file_name("no").join("control");
    assert!(matches!(again(&nowhere), Err(ServerError::Bind { .. })));

    let stale = s.path.with_file_name("stale");
    drop(UnixListener::bind(&stale).unwrap());
    let server = again(&stale).unwrap();
    Client::connect(&stale).unwrap().command(&Request::Stop {}).unwrap();
    drop(server);
}

#[test]
fn a_server_does_not_remove_its_successors_socket() {
    let s = setup();
    std::fs::remove_file(&s.path).unwrap();
    let successor = Server::start(&s.path, Arc::new(Machine::default())).unwrap();
    drop(s.server);
    assert!(s.path.exists());
    drop(successor);
}

#[test]
fn nobody_at_the_other_end_is_said_so() {
    let folder = tempfile::tempdir().unwrap();
    let error = Client::connect(&folder.path().join("none")).unwrap_err();
    assert!(error.to_string().contains("--control"), "{error}");
}

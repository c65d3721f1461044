//! What this implementation sends, as an independent one reads it that was written from the specification.

use std::io::{self, IoSlice};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use queztl_qhp::{Connection, Error, IntoWire, Key, Options, Priority, Wire, pair};

const LIMIT: Option<Duration> = Some(Duration::from_secs(30));
const KEY: [u8; 32] = [0x5a; 32];

/// A transport that remembers what was written.
struct Recorder {
    wire: Box<dyn Wire>,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Wire for Recorder {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.wire.read(buffer)
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let count = self.wire.write(parts)?;
        let all: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        self.written.lock().unwrap().extend(&all[..count]);
        Ok(count)
    }

    fn wait(&self, read: bool, write: bool, limit: Option<Duration>) -> io::Result<(bool, bool)> {
        self.wire.wait(read, write, limit)
    }

    fn close(&self) {
        self.wire.close();
    }
}

fn recorded(wire: impl IntoWire) -> (Box<dyn Wire>, Arc<Mutex<Vec<u8>>>) {
    let written = Arc::default();
    (Box::new(Recorder { wire: wire.into_wire().unwrap(), written: Arc::clone(&written) }), written)
}

/// A session with everything in it; what the client and the server sent.
fn session() -> (Vec<u8>, Vec<u8>) {
    let (a, b) = pair().unwrap();
    let ((a, from_client), (b, from_server)) = (recorded(a), recorded(b));
    let options =
        || Options { key: Some(Key::new(KEY)), max_payload: 16384, stream_window: 20_000, ..Options::default() };
    let server = std::thread::spawn(move || {
        let server = Connection::server(b, options()).unwrap();
        let mut call = server.accept(LIMIT).unwrap();
        let request = call.stream.message(LIMIT).unwrap();
        call.stream.finish(&request[..100]).unwrap();
        let mut told = server.accept(LIMIT).unwrap();
        assert!(told.one_way);
        assert_eq!(told.stream.message(LIMIT).unwrap(), b"told");
        server.accept(LIMIT).unwrap().stream.reset(21, "no");
        assert!(matches!(server.accept(LIMIT), Err(Error::Closed)));
    });
    let client = Connection::client(a, options()).unwrap();
    client.call(7, Priority::High, &[&[1; 30_000]], LIMIT).unwrap();
    client.tell(8, Priority::Bulk, &[b"told"]).unwrap();
    assert!(client.call(9, Priority::Urgent, &[b"please"], LIMIT).is_err());
    client.ping(LIMIT).unwrap();
    client.go_away();
    client.close();
    server.join().unwrap();
    let taken = |bytes: &Mutex<Vec<u8>>| std::mem::take(&mut *bytes.lock().unwrap());
    (taken(&from_client), taken(&from_server))
}

/// The decoder's lines, without their spaces.
fn decode(own: &Path, peer: &Path, role: &str) -> Vec<String> {
    let decoder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/decoder.py");
    let key: String = KEY.iter().map(|byte| format!("{byte:02x}")).collect();
    let output = Command::new("python3").arg(decoder).args([own, peer]).args([role, &key]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(|line| line.replace(' ', "")).collect()
}

fn frame(kind: &str, stream: u32, priority: u8, flags: &str, rest: &str) -> String {
    format!(r#"{{"kind":"{kind}","stream":{stream},"priority":{priority},"flags":[{flags}],{rest}}}"#)
}

#[test]
fn an_independent_decoder_reads_what_is_sent() {
    if Command::new("python3").arg("--version").output().is_err() {
        return println!("skipped: no python3");
    }
    let folder = tempfile::tempdir().unwrap();
    let (client, server) = (folder.path().join("client"), folder.path().join("server"));
    let (from_client, from_server) = session();
    std::fs::write(&client, from_client).unwrap();
    std::fs::write(&server, from_server).unwrap();

    let sent = decode(&client, &server, "client");
    let answered = decode(&server, &client, "server");

    let hello = r#"{"features":1,"max_payload":16384,"stream_window":20000,"connection_window":16777216,"max_streams":1024,"keyed":1}"#;
    let wanted = [
        hello.to_owned(),
        frame("DATA", 1, 1, r#""OPEN","CHECKSUM""#, r#""service":7,"bytes":16380,"sum":16380"#),
        // 20,000 less the first frame's 16,384.
        frame("DATA", 1, 1, "", r#""bytes":3616,"sum":3616"#),
        frame("DATA", 1, 1, r#""END","CHECKSUM""#, r#""bytes":10004,"sum":10004"#),
        frame("DATA", 3, 3, r#""OPEN","END","ONE_WAY""#, r#""service":8,"bytes":4,"sum":435"#),
        frame("DATA", 5, 0, r#""OPEN","END""#, r#""service":9,"bytes":6,"sum":634"#),
        frame("PING", 0, 0, "", r#""bytes":8,"sum":1"#),
        frame("GOAWAY", 0, 0, "", r#""bytes":0,"sum":0"#),
    ];
    assert_eq!(sent, wanted);
    let wanted = [
        hello.to_owned(),
        frame("WINDOW", 1, 0, "", r#""bytes":4,"sum":64"#),
        frame("DATA", 1, 1, r#""END""#, r#""bytes":100,"sum":100"#),
        frame("RESET", 5, 0, "", r#""code":21,"bytes":2,"sum":221"#),
        frame("PONG", 0, 0, "", r#""bytes":8,"sum":1"#),
    ];
    assert_eq!(answered, wanted);
}

//! Commands and files of guests: with an agent as it should be, and with agents that lie.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use base64::Engine;
use queztl_agent_protocol::{Entry, EntryKind, MAX_DATA_BYTES, Message, RelativePath, Summary, Time, stream};
use queztl_api::{Code, MAX_EXEC_OUTPUT};

use super::agents::{self, Liar};
use super::*;

/// The routes over a machine `web`, whose agent is in the directory.
async fn guest(limits: Limits, agent: impl FnOnce(&Path)) -> (Api, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    agent(directory.path());
    let api = Api::with(MemoryService::new(directory.path().to_owned()), limits);
    api.running("web").await;
    (api, directory)
}

async fn shell(api: &Api, script: &str) -> Reply {
    exec(api, json!({"command": ["sh", "-c", script], "cwd": "/"})).await
}

async fn exec(api: &Api, request: Value) -> Reply {
    soon(api.post("/v1/vms/web/exec", request)).await
}

fn impatient() -> Limits {
    Limits { agent_time: Duration::from_millis(200), guest_tasks: 1, ..Limits::default() }
}

#[tokio::test]
async fn a_command_gets_what_it_is_given_and_gives_what_it_says() {
    let (api, _directory) = guest(Limits::default(), agents::honest).await;

    let reply = exec(
        &api,
        json!({
            "command": ["sh", "-c", "cat; pwd; echo $GREETING; echo wrong >&2; exit 3"],
            "cwd": "/usr",
            "env": {"GREETING": "a=b"},
            "stdin": {"encoding": "base64", "data": "aGVsbG8K"},
        }),
    )
    .await;

    let result = json!({
        "status": 3, "signal": null, "timed_out": false, "truncated": false,
        "stdout": {"encoding": "utf-8", "data": "hello\n/usr\na=b\n"},
        "stderr": {"encoding": "utf-8", "data": "wrong\n"},
    });
    assert_eq!((reply.status, reply.json()), (StatusCode::OK, result));
}

#[tokio::test]
async fn output_that_is_no_text_is_base64_and_too_much_of_it_is_cut() {
    let (api, _directory) = guest(Limits::default(), agents::honest).await;

    let noise = shell(&api, r"printf '\377\000'").await.json();
    assert_eq!(noise["stdout"], json!({"encoding": "base64", "data": "/wA="}));

    let much = shell(&api, "head -c 3000000 /dev/zero; echo end >&2").await.json();
    let data = much["stdout"]["data"].as_str().unwrap();
    assert_eq!((data.len(), &much["truncated"]), (MAX_EXEC_OUTPUT, &json!(true)));
    assert_eq!(much["stderr"]["data"], "end\n");
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_killed() {
    let (api, _directory) =
        guest(Limits { agent_time: Duration::from_millis(500), ..Limits::default() }, agents::honest).await;

    let request = json!({"command": ["sh", "-c", "echo before; exec sleep 1000"], "cwd": "/", "timeout_seconds": 1});
    let result = exec(&api, request).await.json();

    assert_eq!((&result["timed_out"], &result["signal"]), (&json!(true), &json!(9)));
    assert_eq!(result["stdout"]["data"], "before\n");
}

#[tokio::test]
async fn commands_that_cannot_be_are_refused() {
    let (api, _directory) = guest(Limits::default(), agents::honest).await;
    let encoded = base64::engine::general_purpose::STANDARD.encode([b'x'; 100]);
    for (request, code) in [
        (json!({"command": []}), Code::Invalid),
        (json!({"command": [""]}), Code::Invalid),
        (json!({"command": ["/no/such"], "cwd": "/"}), Code::Invalid),
        (json!({"command": ["true"], "cwd": "/no/such"}), Code::Invalid),
        (json!({"command": ["true"], "user": "nobody-at-all"}), Code::Invalid),
        (json!({"command": ["a\0b"]}), Code::Invalid),
        (json!({"command": ["true"], "env": {"A=B": "c"}}), Code::Invalid),
        (json!({"command": vec!["x"; 5000]}), Code::Invalid),
        (json!({"command": ["true"], "timeout_seconds": 0}), Code::Invalid),
        (json!({"command": ["true"], "stdin": {"encoding": "base64", "data": &encoded[..21]}}), Code::Invalid),
    ] {
        let problem = exec(&api, request.clone()).await.problem();
        assert_eq!(problem.code, code, "{request}: {problem:?}");
    }
}

#[tokio::test]
async fn a_file_goes_in_and_comes_out() {
    let (api, directory) = guest(Limits::default(), agents::honest).await;
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let path = directory.path().join("file");
    let uri = format!("/v1/vms/web/files?path={}", path.display());
    // Once with its length told, once without.
    for told in [true, false] {
        let mut request = Request::builder().method(Method::PUT).uri(format!("{uri}&mode=750"));
        if told {
            request = request.header("content-length", bytes.len());
        }
        let pieces: Vec<Result<_, std::io::Error>> = bytes.chunks(7001).map(|piece| Ok(piece.to_vec())).collect();
        let body = Body::from_stream(futures_util::stream::iter(pieces));

        let put = soon(api.send(LOCAL, request.body(body).unwrap())).await;
        let got = soon(api.get(&uri)).await;

        assert_eq!(put.status, StatusCode::NO_CONTENT, "{put:?}");
        assert!(got.body == bytes, "{} bytes came", got.body.len());
        assert_eq!(
            (&got.headers["queztl-file-mode"], &got.headers["content-length"]),
            (&"750".parse().unwrap(), &"3000000".parse().unwrap())
        );
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o750);
        fs::remove_file(&path).unwrap();
    }
}

#[tokio::test]
async fn files_that_cannot_be_are_refused_and_leave_nothing() {
    let limits = Limits { file_bytes: 1000, ..Limits::default() };
    let (api, directory) = guest(limits, agents::honest).await;
    let large = directory.path().join("large");
    fs::write(&large, [0; 1001]).unwrap();
    let target = directory.path().join("new");
    let uri = |path: &Path| format!("/v1/vms/web/files?path={}", path.display());

    for (path, code) in [
        (directory.path(), Code::Invalid),
        (Path::new("/no/such"), Code::Invalid),
        (Path::new("/dev/null"), Code::Invalid),
        (&large, Code::TooLarge),
    ] {
        let problem = soon(api.get(&uri(path))).await.problem();
        assert_eq!(problem.code, code, "{path:?}: {problem:?}");
    }
    let put = |length: Option<u64>, size: usize| {
        let mut request = Request::builder().method(Method::PUT).uri(uri(&target));
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        let pieces = vec![Ok::<_, std::io::Error>(vec![0_u8; size])];
        request.body(Body::from_stream(futures_util::stream::iter(pieces))).unwrap()
    };
    for (request, code) in [
        (put(Some(1001), 1001), Code::TooLarge),
        (put(None, 1001), Code::TooLarge),
        // Less than was said.
        (put(Some(900), 10), Code::Malformed),
    ] {
        let problem = soon(api.send(LOCAL, request)).await.problem();
        assert_eq!(problem.code, code, "{problem:?}");
    }
    // What has come of a file whose sender broke off is removed by the guest, soon after.
    let others = || {
        let names = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name != "large" && name != "vsock.sock").count()
    };
    soon(async {
        while others() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

type Deed = Box<dyn Fn(&mut Liar) + Send + Sync>;

fn data(stream: u8, length: usize) -> Message {
    Message::Data { stream, bytes: vec![b'x'; length] }
}

fn file(size: u64) -> Message {
    let path = RelativePath::new(b"").unwrap();
    Message::Entry(Entry { path, mode: 0o7777, modified: Time::default(), kind: EntryKind::File { size } })
}

#[tokio::test]
async fn a_command_of_an_agent_that_lies_ends_with_a_problem() {
    let started = || Message::Started { pid: 1 };
    let deeds: Vec<(&str, Deed)> = vec![
        ("noise", Box::new(|liar| drop(std::io::Write::write_all(&mut liar.stream, &[0xff; 64])))),
        (
            "a frame of 4 GiB",
            Box::new(|liar| drop(std::io::Write::write_all(&mut liar.stream, &[0xff, 0xff, 0xff, 0xff, 1]))),
        ),
        ("another answer", Box::new(|liar| liar.say(&Message::Pong { cookie: 1 }))),
        ("the end", Box::new(|liar| drop(liar.stream.shutdown(std::net::Shutdown::Both)))),
        (
            "data of no stream",
            Box::new(move |liar| {
                liar.say(&started());
                liar.say(&data(stream::STDIN, 1));
            }),
        ),
        (
            "more than there is room for",
            Box::new(move |liar| {
                liar.say(&started());
                liar.say(&Message::Credit { stream: stream::STDIN, bytes: u32::MAX });
            }),
        ),
        (
            "an end twice",
            Box::new(move |liar| {
                liar.say(&started());
                (0..2).for_each(|_| liar.say(&Message::End { stream: stream::STDERR }));
            }),
        ),
        (
            "the end of the connection in the middle",
            Box::new(move |liar| {
                liar.say(&started());
                liar.say(&data(stream::STDOUT, MAX_DATA_BYTES));
                drop(liar.stream.shutdown(std::net::Shutdown::Both));
            }),
        ),
    ];
    for (name, deed) in deeds {
        let (api, _directory) = guest(impatient(), |directory| agents::liar(directory, deed)).await;
        // The second time shows that the first has given its place back.
        for _ in 0..2 {
            let problem = exec(&api, json!({"command": ["true"], "timeout_seconds": 5})).await.problem();
            assert_eq!(problem.code, Code::State, "{name}: {problem:?}");
        }
    }
}

#[tokio::test]
async fn an_agent_that_never_answers_is_given_up() {
    for silent in [0, 1] {
        let (api, _directory) = guest(impatient(), |directory| match silent {
            0 => agents::listen(directory, |stream| {
                let _ = std::io::copy(&mut &stream, &mut std::io::sink());
            }),
            _ => agents::liar(directory, |_| ()),
        })
        .await;

        let reply = exec(&api, json!({"command": ["true"], "timeout_seconds": 1})).await;

        assert_eq!(reply.problem().code, Code::Timeout, "{reply:?}");
    }
}

#[tokio::test]
async fn an_agent_that_never_stops_is_given_up_and_fills_nothing() {
    let (api, _directory) = guest(impatient(), |directory| {
        agents::liar(directory, |liar| {
            liar.say(&Message::Started { pid: 1 });
            (0..4).for_each(|_| liar.say(&data(stream::STDOUT, MAX_DATA_BYTES)));
            // As fast as it is allowed, and deaf to signals.
            while let Some(heard) = liar.hear() {
                if let Message::Credit { stream, bytes } = heard {
                    liar.say(&data(stream, bytes as usize));
                }
            }
        });
    })
    .await;

    let reply = exec(&api, json!({"command": ["yes"], "timeout_seconds": 1})).await;

    assert_eq!(reply.problem().code, Code::Timeout, "{reply:?}");
    // It has lost its connection with that.
    soon(async { while exec(&api, json!({"command": [""]})).await.problem().code == Code::Busy {} }).await;
}

#[tokio::test]
async fn too_many_commands_at_once_are_refused() {
    let limits = Limits { guest_tasks: 1, ..Limits::default() };
    let (api, directory) = guest(limits, agents::honest).await;
    let mark = directory.path().join("mark");
    let go_on = directory.path().join("go-on");
    let script = format!("touch {}; until [ -e {} ]; do sleep 0.01; done", mark.display(), go_on.display());
    let first = shell(&api, &script);
    let others = async {
        soon(async {
            while !mark.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        let second = shell(&api, "true").await;
        fs::write(&go_on, "").unwrap();
        second
    };

    let (first, second) = tokio::join!(first, others);

    assert_eq!(second.problem().code, Code::Busy);
    assert!(second.headers.contains_key("retry-after"));
    assert_eq!(first.json()["status"], 0);
    assert_eq!(shell(&api, "true").await.json()["status"], 0);
}

#[tokio::test]
async fn a_file_of_an_agent_that_lies_is_refused_before_it_is_answered() {
    let folder = || {
        let path = RelativePath::new(b"").unwrap();
        Message::Entry(Entry { path, mode: 0, modified: Time::default(), kind: EntryKind::Directory })
    };
    let deeds: Vec<(&str, Code, Deed)> = vec![
        ("a size beyond all", Code::TooLarge, Box::new(|liar| liar.say(&file(u64::MAX)))),
        ("a directory", Code::Invalid, Box::new(move |liar| liar.say(&folder()))),
        (
            "something else",
            Code::State,
            Box::new(|liar| liar.say(&Message::Exited(queztl_agent_protocol::Exit::Status(0)))),
        ),
        ("noise", Code::State, Box::new(|liar| drop(std::io::Write::write_all(&mut liar.stream, &[0xff; 64])))),
    ];
    for (name, code, deed) in deeds {
        let (api, _directory) = guest(impatient(), |directory| agents::liar(directory, deed)).await;
        let problem = soon(api.get("/v1/vms/web/files?path=/x")).await.problem();
        assert_eq!(problem.code, code, "{name}: {problem:?}");
    }
}

#[tokio::test]
async fn a_file_that_is_not_what_was_said_is_cut_off() {
    let end = || Message::End { stream: stream::FILE };
    let deeds: Vec<(&str, Deed)> = vec![
        (
            "more than it has",
            Box::new(|liar| {
                liar.say(&file(1));
                liar.say(&data(stream::FILE, 2));
            }),
        ),
        (
            "less than it has",
            Box::new(move |liar| {
                liar.say(&file(2));
                liar.say(&data(stream::FILE, 1));
                liar.say(&end());
                liar.say(&Message::Done(Summary::default()));
            }),
        ),
        (
            "an end in the middle",
            Box::new(|liar| {
                liar.say(&file(2));
                liar.say(&data(stream::FILE, 1));
                drop(liar.stream.shutdown(std::net::Shutdown::Both));
            }),
        ),
    ];
    for (name, deed) in deeds {
        let (api, _directory) = guest(impatient(), |directory| agents::liar(directory, deed)).await;
        let mut request = request(Method::GET, "/v1/vms/web/files?path=/x", None);
        request.extensions_mut().insert(LOCAL);
        let response = soon(api.router.clone().oneshot(request)).await.unwrap();

        let body = soon(response.into_body().collect()).await;

        assert!(body.is_err(), "{name}: it looks like a whole file");
    }
}

//! What clients cannot take: room, time and places beyond the limits.

use std::time::Duration;

use futures_util::StreamExt;
use http::StatusCode;
use queztl_api::EventKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::*;
use crate::api::Certificate;

const SHORT: Duration = Duration::from_millis(200);

/// What the server says until it hangs up.
async fn rest(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut bytes = Vec::new();
    // A connection that is reset has ended as well.
    let _ = soon(stream.read_to_end(&mut bytes)).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A request's whole answer, on a connection of its own; nothing if it was hung up on.
async fn ask(daemon: &Daemon, request: &str) -> Option<String> {
    let mut stream = daemon.connect().await;
    stream.write_all(request.as_bytes()).await.ok()?;
    Some(rest(&mut stream).await).filter(|answer| !answer.is_empty())
}

const INFO: &str = "GET /v1/info HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

async fn is_answered(daemon: &Daemon) -> bool {
    ask(daemon, INFO).await.is_some_and(|answer| answer.starts_with("HTTP/1.1 200 "))
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused_before_it_has_come() {
    let daemon = Daemon::start(Limits { body_bytes: 1000, ..Limits::default() }).await;
    let mut stream = daemon.connect().await;
    let head =
        "POST /v1/vms HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000000000\r\n\r\n";

    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&[b' '; 1001]).await.unwrap();

    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("too-large"), "{answer}");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_refused() {
    let daemon = Daemon::start(Limits { body_time: SHORT, ..Limits::default() }).await;
    let mut stream = daemon.connect().await;
    let head = "POST /v1/vms HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n{";

    stream.write_all(head.as_bytes()).await.unwrap();

    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
}

#[tokio::test]
async fn headers_that_do_not_come_end_the_connection() {
    let daemon = Daemon::start(Limits { header_time: SHORT, ..Limits::default() }).await;
    for beginning in ["", "GET /v1/info HT", "GET /v1/info HTTP/1.1\r\nhost: x\r\nx: "] {
        let mut stream = daemon.connect().await;
        stream.write_all(beginning.as_bytes()).await.unwrap();

        let answer = rest(&mut stream).await;

        assert!(!answer.contains("200 OK"), "{beginning}: {answer}");
    }
}

#[tokio::test]
async fn a_trickle_of_headers_is_no_sign_of_life() {
    let daemon = Daemon::start(Limits { header_time: SHORT, ..Limits::default() }).await;
    let (mut read, mut write) = daemon.connect().await.into_split();
    let trickle = tokio::spawn(async move {
        write.write_all(b"GET /v1/info HTTP/1.1\r\n").await?;
        loop {
            write.write_all(b"x: y\r\n").await?;
            tokio::time::sleep(SHORT / 10).await;
        }
        #[expect(unreachable_code, reason = "gives the block its type")]
        Ok::<(), std::io::Error>(())
    });

    rest(&mut read).await;

    assert!(soon(trickle).await.unwrap().is_err(), "the connection is still open");
}

#[tokio::test]
async fn headers_beyond_the_limits_are_refused() {
    let daemon = Daemon::start(Limits { header_bytes: 16 << 10, headers: 10, ..Limits::default() }).await;
    let many: String = (0..11).map(|number| format!("x{number}: y\r\n")).collect();
    let large = format!("x: {}\r\n", "y".repeat(20 << 10));
    let path = "a".repeat(20 << 10);
    for request in [
        format!("GET /v1/info HTTP/1.1\r\nhost: x\r\n{many}\r\n"),
        format!("GET /v1/info HTTP/1.1\r\nhost: x\r\n{large}\r\n"),
        format!("GET /v1/info?{path} HTTP/1.1\r\nhost: x\r\n\r\n"),
    ] {
        let answer = ask(&daemon, &request).await.unwrap_or_default();
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert!(is_answered(&daemon).await);
}

#[tokio::test]
async fn what_is_no_http_is_hung_up_on() {
    let daemon = Daemon::start(Limits::default()).await;
    for noise in ["\0\0\0\0\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "{\"a\":1}\r\n\r\n"]
    {
        let answer = ask(&daemon, noise).await.unwrap_or_default();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    // Two lengths, and a length beside chunks, are what smuggled requests are made of.
    for framing in ["content-length: 1\r\ncontent-length: 2\r\n", "content-length: x\r\n", "transfer-encoding: cow\r\n"]
    {
        let answer = ask(&daemon, &format!("POST /v1/vms HTTP/1.1\r\nhost: x\r\n{framing}\r\n{{}}")).await;
        assert!(answer.as_ref().is_none_or(|answer| answer.starts_with("HTTP/1.1 4")), "{framing} {answer:?}");
    }
    assert!(is_answered(&daemon).await);
}

#[tokio::test]
async fn who_has_too_many_connections_is_hung_up_on() {
    let daemon = Daemon::start(Limits { connections_per_peer: 2, ..Limits::default() }).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut stream = daemon.connect().await;
        stream.write_all(INFO.replace("close", "keep-alive").as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        soon(stream.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        open.push(stream);
    }

    assert!(!is_answered(&daemon).await, "a third one");

    drop(open.pop());
    soon(async { while !is_answered(&daemon).await {} }).await;
}

#[tokio::test]
async fn who_has_too_many_streams_is_refused() {
    let daemon = Daemon::start(Limits { sessions_per_client: 2, ..Limits::default() }).await;
    daemon.running("web").await;
    let first = daemon.socket("/v1/events/stream").await.unwrap();
    let _second = daemon.socket("/v1/events/stream").await.unwrap();

    let third = daemon.socket("/v1/events/stream").await.unwrap_err();
    assert_eq!(refused(third), StatusCode::TOO_MANY_REQUESTS);
    let log = ask(&daemon, "GET /v1/vms/web/log?follow=true HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(log.is_some_and(|answer| answer.starts_with("HTTP/1.1 429 ")), "a followed log is one as well");

    drop(first);
    soon(async { while daemon.socket("/v1/events/stream").await.is_err() {} }).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answer_is_let_go() {
    let daemon = Daemon::start(Limits { write_time: SHORT, connections_per_peer: 1, ..Limits::default() }).await;
    daemon.running("web").await;
    let size = 8 << 20;
    std::fs::write(daemon.directory.path().join("console.log"), vec![b'x'; size]).unwrap();
    let mut stalled = daemon.connect().await;
    stalled.write_all(b"GET /v1/vms/web/log HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();

    // Its place is free again although it is still there.
    soon(async { while !is_answered(&daemon).await {} }).await;

    let answer = rest(&mut stalled).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.len() < size, "{} bytes came", answer.len());
}

#[tokio::test]
async fn a_client_that_floods_and_does_not_read_harms_nobody_else() {
    let daemon = Daemon::start(Limits { write_time: SHORT, ..Limits::default() }).await;
    let mut flood = daemon.connect().await;
    let requests = INFO.replace("close", "keep-alive").repeat(1000);
    let flooding = tokio::spawn(async move { while flood.write_all(requests.as_bytes()).await.is_ok() {} });

    assert!(is_answered(&daemon).await);

    // It is not read from for ever: what it does not take back bounds what it can send.
    soon(flooding).await.unwrap();
    assert!(is_answered(&daemon).await);
}

#[tokio::test]
async fn a_stream_that_is_not_read_is_let_go() {
    let limits = Limits { write_time: SHORT, sessions_per_client: 1, ..Limits::default() };
    let daemon = Daemon::start(limits).await;
    let stalled = daemon.socket("/v1/events/stream").await.unwrap();

    soon(async {
        loop {
            for _ in 0..200 {
                let name = "n".repeat(1000);
                daemon.service.happen(EventKind::VmCreated { vm: "vm-1".into(), name });
            }
            if daemon.socket("/v1/events/stream").await.is_ok() {
                break;
            }
            tokio::time::sleep(SHORT / 20).await;
        }
    })
    .await;

    drop(stalled);
}

#[tokio::test]
async fn a_stream_without_a_sign_of_life_is_closed() {
    let daemon = Daemon::start(Limits { ping_interval: SHORT / 4, ..Limits::default() }).await;
    let stream = daemon.socket("/v1/events/stream").await.unwrap();

    // Bare, nobody answers the pings.
    let said = rest(&mut stream.into_inner()).await;

    assert!(said.contains("no sign of life"), "{said}");
}

#[tokio::test]
async fn a_stream_whose_client_answers_pings_is_kept() {
    let daemon = Daemon::start(Limits { ping_interval: SHORT / 10, ..Limits::default() }).await;
    let mut stream = daemon.socket("/v1/events/stream").await.unwrap();

    for _ in 0..20 {
        let message = soon(stream.next()).await.unwrap().unwrap();
        assert!(message.is_ping(), "{message:?}");
    }
}

#[tokio::test]
async fn a_message_beyond_the_limit_ends_the_stream() {
    let daemon = Daemon::start(Limits::default()).await;
    daemon.running("web").await;
    let mut raw = daemon.socket("/v1/vms/web/exec/stream").await.unwrap().into_inner();

    // A masked text frame that says it has 2^40 bytes.
    raw.write_all(&[0x81, 0xff, 0, 0, 1, 0, 0, 0, 0, 0, 1, 2, 3, 4]).await.unwrap();

    rest(&mut raw).await;
    assert!(is_answered(&daemon).await);
}

#[tokio::test]
async fn a_handshake_that_does_not_come_ends_the_connection() {
    let limits = Limits { handshake_time: SHORT, ..Limits::default() };
    let daemon = Daemon::on(limits, |directory| {
        let certificate = Certificate::SelfSigned { directory: directory.to_owned() };
        vec![Listen::Tls { address: "127.0.0.1:0".parse().unwrap(), certificate }]
    })
    .await;
    for beginning in [&b""[..], b"\x16\x03\x01\x02", INFO.as_bytes()] {
        let mut stream = TcpStream::connect(daemon.tcp[0]).await.unwrap();
        stream.write_all(beginning).await.unwrap();

        let answer = rest(&mut stream).await;

        assert!(!answer.contains("HTTP"), "{answer}");
    }
}

#[tokio::test]
async fn the_end_of_the_daemon_ends_what_lasts() {
    let mut daemon = Daemon::start(Limits::default()).await;
    daemon.running("web").await;
    let mut events = daemon.socket("/v1/events/stream").await.unwrap();
    let mut log: UnixStream = daemon.connect().await;
    log.write_all(b"GET /v1/vms/web/log?follow=true HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    soon(log.read_exact(&mut answer)).await.unwrap();

    soon(daemon.stop()).await;

    let end = soon(events.next()).await.unwrap().unwrap();
    assert!(end.is_close() && end.to_string().contains("the daemon ends"), "{end:?}");
    rest(&mut log).await;
    assert!(!daemon.directory.path().join("daemon.sock").exists());
}

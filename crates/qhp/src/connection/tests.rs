use std::os::unix::net::UnixStream;
use std::thread;

use super::*;
use crate::{ProtocolError, pair};

const LONG: Option<Duration> = Some(Duration::from_secs(30));
const ECHO: u32 = 1;
const COUNT: u32 = 2;
const REFUSE: u32 = 3;

fn connect(options: Options) -> (Connection, Connection) {
    let (a, b) = pair().unwrap();
    let own = options.clone();
    let server = thread::spawn(move || Connection::server(b, own).unwrap());
    (Connection::client(a, options).unwrap(), server.join().unwrap())
}

/// Serves until the peer goes.
fn serve(connection: Connection) -> thread::JoinHandle<u64> {
    thread::spawn(move || {
        let mut told = 0;
        while let Ok(mut incoming) = connection.accept(None) {
            let Ok(message) = incoming.stream.message(LONG) else { continue };
            match incoming.service {
                ECHO => drop(incoming.stream.finish(&message)),
                COUNT => told += message.len() as u64,
                _ => incoming.stream.reset(17, "no such service"),
            }
        }
        told
    })
}

#[test]
fn calls_are_answered() {
    let (client, server) = connect(Options::default());
    let server = serve(server);
    for length in [0, 1, 4095, 4096, 70_000, 9_000_000] {
        let request: Vec<u8> = (0..length).map(|i| (i * 7) as u8).collect();
        let answer =
            client.call(ECHO, Priority::High, &[&request[..length / 2], &request[length / 2..]], LONG).unwrap();
        assert!(answer == request, "{length}");
    }
    client.tell(COUNT, Priority::Normal, &[&[0; 100_000]]).unwrap();
    let refused = client.call(REFUSE, Priority::Normal, &[b"please"], LONG).unwrap_err();
    assert!(matches!(refused, Error::Reset { code: 17, message } if message == "no such service"));
    client.close();
    assert_eq!(server.join().unwrap(), 100_000);
}

#[test]
fn many_threads_share_a_connection() {
    let (client, server) = connect(Options { max_streams: 5, ..Options::default() });
    let servers = [serve(server.clone()), serve(server)];
    let caller = |number: u8| {
        let client = client.clone();
        thread::spawn(move || {
            for round in 0..200_usize {
                let request = vec![number; round * 37];
                assert!(client.call(ECHO, Priority::Normal, &[&request], LONG).unwrap() == request);
            }
        })
    };
    (0..8).map(caller).collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap());
    client.close();
    servers.into_iter().for_each(|server| assert_eq!(server.join().unwrap(), 0));
}

#[test]
fn two_sides_that_both_send_a_lot_do_not_wait_for_each_other() {
    let (client, server) = connect(Options::default());
    let send = |connection: Connection| {
        thread::spawn(move || {
            let mut stream = connection.open(COUNT, Priority::Bulk);
            // Far more than the socket's buffers hold, and within the windows: nobody has to wait for grants.
            stream.send(&vec![1; 3 << 20]).unwrap();
            let mut incoming = connection.accept(LONG).unwrap();
            let mut received = 0;
            while received < 3 << 20 {
                received += incoming.stream.receive(LONG).unwrap().unwrap().len();
            }
            (stream, incoming)
        })
    };
    let threads = [send(client), send(server)];
    let ends: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    drop(ends);
}

#[test]
fn a_stream_carries_bytes_both_ways_until_both_have_ended() {
    let (client, server) = connect(Options::default());
    let server = thread::spawn(move || {
        let mut incoming = server.accept(LONG).unwrap();
        while let Some(bytes) = incoming.stream.receive(LONG).unwrap() {
            incoming.stream.send(&bytes).unwrap();
        }
        incoming.stream.finish(b"bye").unwrap();
        // The answer to a ping comes from whoever waits.
        assert!(matches!(server.accept(LONG), Err(Error::Closed)));
    });
    let mut stream = client.open(9, Priority::Normal);
    for word in ["one", "two"] {
        stream.send(word.as_bytes()).unwrap();
        assert_eq!(stream.receive(LONG).unwrap().unwrap(), word.as_bytes());
    }
    stream.finish(&[]).unwrap();
    assert_eq!(stream.receive(LONG).unwrap().unwrap(), b"bye");
    assert!(stream.receive(LONG).unwrap().is_none());
    assert!(client.ping(LONG).unwrap() < Duration::from_secs(30));
    client.close();
    server.join().unwrap();
}

#[test]
fn keys_must_be_the_same() {
    let keyed = |byte| Options { key: Some(Key::new([byte; 32])), ..Options::default() };
    let (client, _server) = connect(keyed(1));
    client.close();
    for (left, right) in [(keyed(1), keyed(2)), (keyed(1), Options::default())] {
        let (a, b) = pair().unwrap();
        let server = thread::spawn(move || Connection::server(b, right).err());
        assert!(matches!(Connection::client(a, left), Err(Error::Protocol(_) | Error::Closed)));
        assert!(matches!(server.join().unwrap(), Some(Error::Protocol(_) | Error::Closed)));
    }
}

#[test]
fn a_peer_that_stands_still_or_talks_nonsense_is_left() {
    let hasty = || Options { stall: Duration::from_millis(50), ..Options::default() };
    let (silent, own) = pair().unwrap();
    assert!(matches!(Connection::client(own, hasty()), Err(Error::Timeout)));
    drop(silent);
    let (mut odd, own) = pair().unwrap();
    std::io::Write::write_all(&mut odd, &[b'x'; 64]).unwrap();
    assert!(matches!(Connection::client(own, hasty()), Err(Error::Protocol(ProtocolError::Magic))));

    let (a, b) = pair().unwrap();
    let raw: UnixStream = b.try_clone().unwrap();
    let server = thread::spawn(move || Connection::server(b, Options::default()).unwrap());
    let client = Connection::client(a, hasty()).unwrap();
    let server = server.join().unwrap();
    // Half a header.
    rustix::net::send(&raw, &[0; 7], rustix::net::SendFlags::empty()).unwrap();
    let error = client.accept(LONG).unwrap_err();
    assert!(matches!(&error, Error::Io(error) if error.kind() == io::ErrorKind::TimedOut), "{error}");
    drop(server);
}

#[test]
fn a_wait_ends_at_its_limit_and_the_connection_goes_on() {
    let (client, server) = connect(Options::default());
    let short = Some(Duration::from_millis(20));
    assert!(matches!(client.call(ECHO, Priority::Normal, &[b"?"], short), Err(Error::Timeout)));
    let server = serve(server);
    assert_eq!(client.call(ECHO, Priority::Normal, &[b"!"], LONG).unwrap(), b"!");
    client.close();
    server.join().unwrap();
}

#[test]
fn a_message_longer_than_accepted_is_refused() {
    let (client, server) = connect(Options { max_message: 1000, ..Options::default() });
    let server = serve(server);
    let error = client.call(ECHO, Priority::Normal, &[&[0; 2000]], LONG).unwrap_err();
    assert!(matches!(error, Error::Reset { .. }), "{error}");
    client.close();
    server.join().unwrap();
}

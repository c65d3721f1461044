//! The stream format against the other end of a socket pair, and the real passt where it is installed.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use super::*;
use crate::{HEADER_BYTES, MAX_FRAME_BYTES};

fn pair() -> (FrameStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (FrameStream::new(ours), theirs)
}

#[test]
fn frames_come_whole_however_the_stream_is_cut() {
    let (mut stream, mut peer) = pair();
    let mut frame = vec![0xee; MAX_FRAME_BYTES];
    let bytes = [[0, 0, 0, 3].as_slice(), b"abc", &[0, 0, 0, 2], b"de"].concat();
    for byte in &bytes[..6] {
        peer.write_all(&[*byte]).unwrap();
        assert_eq!(stream.receive(&mut frame).unwrap(), Received::Nothing);
    }
    peer.write_all(&bytes[6..]).unwrap();
    assert_eq!(stream.receive(&mut frame).unwrap(), Received::Frame(HEADER_BYTES + 3));
    assert_eq!(frame[..HEADER_BYTES + 3], *[[0; HEADER_BYTES].as_slice(), b"abc"].concat());
    assert_eq!(stream.receive(&mut frame).unwrap(), Received::Frame(HEADER_BYTES + 2));
    drop(peer);
    assert_eq!(stream.receive(&mut frame).unwrap(), Received::Closed);
}

#[test]
fn a_length_that_no_frame_has_is_an_error() {
    let (mut stream, mut peer) = pair();
    peer.write_all(&[0xff; 8]).unwrap();
    assert!(stream.receive(&mut vec![0; MAX_FRAME_BYTES]).is_err());
}

#[test]
fn a_full_socket_loses_and_cuts_no_frame() {
    let (mut stream, mut peer) = pair();
    let frame = vec![7; HEADER_BYTES + 60000];
    let mut sent = 0;
    while stream.send(&frame).is_ok() {
        sent += 1;
    }
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        peer.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let start = Instant::now();
    while stream.send(&frame).is_err() || stream.flush().is_err() {
        assert!(start.elapsed() < Duration::from_secs(10));
        std::thread::yield_now();
    }
    drop(stream);
    let bytes = reader.join().unwrap();
    assert_eq!(bytes.len() % 60004, 0);
    assert!(bytes.len() / 60004 > sent);
    assert!(bytes.chunks(60004).all(|frame| frame[..4] == 60000u32.to_be_bytes() && frame[4..] == [7; 60000]));
}

#[test]
fn a_missing_program_is_named() {
    let config = UserNetworkConfig { program: "no-such-passt".into(), ..Default::default() };
    let error = UserNetwork::start(&config).unwrap_err();
    assert!(matches!(&error, Error::Missing(name) if name == "no-such-passt"), "{error}");
}

#[test]
fn a_program_that_ends_takes_the_link_down_and_no_more() {
    let config = UserNetworkConfig { program: "false".into(), ..Default::default() };
    let mut network = UserNetwork::start(&config).unwrap();
    let start = Instant::now();
    let mut frame = vec![0; MAX_FRAME_BYTES];
    while network.receive(&mut frame).unwrap() != Received::Closed {
        assert!(start.elapsed() < Duration::from_secs(10));
        std::thread::yield_now();
    }
    assert!(network.send(&frame[..64]).is_err());
}

#[test]
fn passt_answers_an_address_request() {
    let mut network = match UserNetwork::start(&UserNetworkConfig::default()) {
        Err(error @ Error::Missing(_)) => return println!("skipped: {error}"),
        other => other.unwrap(),
    };
    let mut request = vec![0; HEADER_BYTES];
    request.extend([0xff; 6]);
    request.extend([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 2, 15]);
    request.extend([0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
    network.send(&request).unwrap();
    let mut frame = vec![0; MAX_FRAME_BYTES];
    let start = Instant::now();
    loop {
        match network.receive(&mut frame).unwrap() {
            Received::Frame(_) if frame[HEADER_BYTES..][12..14] == [8, 6] => break,
            Received::Closed => return println!("skipped: passt finds no network on this host"),
            _ => std::thread::sleep(Duration::from_millis(2)),
        }
        assert!(start.elapsed() < Duration::from_secs(10), "passt does not answer");
    }
    assert_eq!(frame[HEADER_BYTES..][..6], [2, 0, 0, 0, 0, 1]);
    let start = Instant::now();
    drop(network);
    assert!(start.elapsed() < Duration::from_secs(2));
}

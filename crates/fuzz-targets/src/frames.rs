//! The stream of frames between a virtual network card and passt.

use std::io::Write;
use std::os::unix::net::UnixStream;

use queztl_network::{FrameStream, HEADER_BYTES, MAX_FRAME_BYTES, Received};

/// Bytes sent at once; a socket has room for as many.
const CHUNK_BYTES: usize = 16 << 10;

/// Takes what `data` has for frames, and sends one back.
pub fn receive(data: &[u8]) {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    ours.set_nonblocking(true).expect("a socket that does not block");
    let mut stream = FrameStream::new(ours);
    let mut frame = vec![0; MAX_FRAME_BYTES];
    for chunk in data.chunks(CHUNK_BYTES) {
        theirs.write_all(chunk).expect("room in the socket");
        loop {
            match stream.receive(&mut frame) {
                Ok(Received::Frame(bytes)) => assert!((HEADER_BYTES..=MAX_FRAME_BYTES).contains(&bytes)),
                Ok(Received::Nothing) => break,
                Ok(Received::Closed) | Err(_) => return,
            }
        }
    }
    let _ = stream.send(&frame[..data.len().min(1500)]);
    drop(theirs);
    while matches!(stream.receive(&mut frame), Ok(Received::Frame(_))) {}
}

//! Reaches the agent's port through a virtual machine's vsock socket.
//!
//! The convention is Firecracker's: a line `CONNECT PORT`, an answer `OK NUMBER`; where nobody listens, the connection is
//! closed.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::Error;

/// Between attempts while the guest boots.
const RETRY: Duration = Duration::from_millis(20);
/// How long the socket itself may be missing: a machine that is just being started makes it in milliseconds, and a path
/// that is wrong is to be told soon.
const SOCKET_GRACE: Duration = Duration::from_secs(1);
/// `OK 4294967295` and the line feed are shorter.
const MAX_ANSWER_BYTES: usize = 32;

/// Connects to a port of the guest, trying again until `deadline`. `None` when nobody answered.
pub fn connect(path: &Path, port: u32, deadline: Instant) -> Result<Option<UnixStream>, Error> {
    let failed = |source| Error::Socket { path: path.to_owned(), source };
    let grace = deadline.min(Instant::now() + SOCKET_GRACE);
    loop {
        let mut stream = match UnixStream::connect(path) {
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
                    && Instant::now() < grace =>
            {
                std::thread::sleep(RETRY);
                continue;
            }
            result => result.map_err(failed)?,
        };
        if ask(&mut stream, port, deadline).is_some() {
            return Ok(Some(stream));
        }
        if Instant::now() + RETRY >= deadline {
            return Ok(None);
        }
        std::thread::sleep(RETRY);
    }
}

/// Whether the other side says that the port is reached.
fn ask(stream: &mut UnixStream, port: u32, deadline: Instant) -> Option<()> {
    stream.set_write_timeout(Some(left(deadline)?)).ok()?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).ok()?;
    let mut answer = Vec::new();
    // Byte by byte: what follows the line belongs to the agent.
    while answer.last() != Some(&b'\n') {
        stream.set_read_timeout(Some(left(deadline)?)).ok()?;
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(1) if answer.len() < MAX_ANSWER_BYTES => answer.extend(byte),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            _ => return None,
        }
    }
    answer.starts_with(b"OK ").then_some(())
}

/// What is left until then, if anything.
fn left(deadline: Instant) -> Option<Duration> {
    Some(deadline.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
}

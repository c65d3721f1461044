//! Agents of guests: a true one in this process, and others that do what a test wants.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use queztl_agent_protocol::{Decoder, Message, Shutdown, Time, encode};

/// A guest that lets nothing be changed.
struct Fixed;

impl queztl_guest_agent::Machine for Fixed {
    fn set_host_name(&self, _: &[u8]) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn set_clock(&self, _: Time) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn add_entropy(&self, _: &[u8]) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn shut_down(&self, _: Shutdown, _: Duration) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

/// Puts an agent behind the vsock socket of a directory: each connection is `deed`'s once the port is reached.
pub fn listen(directory: &Path, deed: impl Fn(UnixStream) + Send + Sync + 'static) {
    let listener = UnixListener::bind(directory.join("vsock.sock")).unwrap();
    let deed = std::sync::Arc::new(deed);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, deed) = (stream.unwrap(), deed.clone());
            std::thread::spawn(move || {
                let mut line = [0; 14];
                if stream.read_exact(&mut line).is_ok() && stream.write_all(b"OK 1\n").is_ok() {
                    assert_eq!(&line, b"CONNECT 20826\n");
                    deed(stream);
                }
            });
        }
    });
}

/// The agent that guests have.
pub fn honest(directory: &Path) {
    listen(directory, |stream| queztl_guest_agent::serve(OwnedFd::from(stream), &Fixed));
}

/// An agent that greets as it should, takes a request, and then does as it likes.
pub fn liar(directory: &Path, deed: impl Fn(&mut Liar) + Send + Sync + 'static) {
    listen(directory, move |stream| {
        let mut liar = Liar { stream, decoder: Decoder::default() };
        if liar.hear().is_some() {
            liar.say(&Message::Welcome { version: 1, features: u64::MAX, agent: b"evil".to_vec() });
            if liar.hear().is_some() {
                deed(&mut liar);
                // Stays until the other side has had enough.
                while liar.hear().is_some() {}
            }
        }
    });
}

/// One side of a connection whose other side may have had enough at any time.
pub struct Liar {
    pub stream: UnixStream,
    decoder: Decoder,
}

impl Liar {
    pub fn say(&mut self, message: &Message) {
        let mut frame = Vec::new();
        encode(message, &mut frame).unwrap();
        let _ = self.stream.write_all(&frame);
    }

    /// The next message; nothing at the end.
    pub fn hear(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.decoder.next_message().ok()? {
                return Some(message);
            }
            if self.decoder.read_from(&mut self.stream).ok()? == 0 {
                return None;
            }
        }
    }
}

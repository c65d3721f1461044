//! QHP: a peer's greeting and proof, then its frames, as they come and between what this side does itself.

use std::collections::HashMap;

use queztl_qhp::frame::{END, HEADER_BYTES, Header, Kind, ONE_WAY, OPEN};
use queztl_qhp::hello::{Features, HELLO_BYTES, Hello, PROOF_BYTES, VERSION};
use queztl_qhp::{Event, Key, Priority, Session, Side};

use crate::bytes::Bytes;

/// The longest payload, and small windows: what exceeds them is near.
const MAX_PAYLOAD: u32 = 1 << 14;
const STREAM_WINDOW: u32 = 1000;
const CONNECTION_WINDOW: u32 = 4000;
const MAX_STREAMS: u32 = 4;

/// Greets the peer that `data` is, and takes its frames until it breaks the protocol.
pub fn talk(data: &[u8]) {
    let mut bytes = Bytes(data);
    let side = if bytes.u8() & 1 == 0 { Side::Client } else { Side::Server };
    let mut greeting = [0; HELLO_BYTES];
    let taken = bytes.take(HELLO_BYTES);
    greeting[..taken.len()].copy_from_slice(taken);
    let peer = match Hello::decode(&greeting) {
        Ok(peer) => peer,
        Err(_) => own(),
    };
    prove(&mut bytes, &greeting);
    let mut talk = Talk { session: Session::new(side, own(), peer), open: HashMap::new() };
    while !bytes.is_empty() && talk.step(&mut bytes).is_some() {}
}

fn own() -> Hello {
    Hello {
        min: VERSION,
        max: VERSION,
        features: Features::ALL,
        max_payload: MAX_PAYLOAD,
        stream_window: STREAM_WINDOW,
        connection_window: CONNECTION_WINDOW,
        max_streams: MAX_STREAMS,
        nonce: [7; 31],
        keyed: true,
    }
}

/// Nobody proves a key by chance.
fn prove(bytes: &mut Bytes, greeting: &[u8; HELLO_BYTES]) {
    let (mut proof, taken) = ([0; PROOF_BYTES], bytes.take(PROOF_BYTES));
    proof[..taken.len()].copy_from_slice(taken);
    assert!(!Key::new([1; 32]).verify(proof, true, greeting, &own().encode()));
}

struct Talk {
    session: Session,
    /// What the peer's streams have sent and this side has not taken, by the number of the stream.
    open: HashMap<u32, u32>,
}

impl Talk {
    /// Something the peer sends, or this side does; `None` where the connection is over.
    fn step(&mut self, bytes: &mut Bytes) -> Option<()> {
        match bytes.u8() % 8 {
            0 => self.raw(bytes),
            1..=4 => self.frame(bytes),
            5 => self.send(bytes),
            6 => {
                let (stream, code) = (u32::from(bytes.u8()), bytes.u32());
                let message = String::from_utf8_lossy(bytes.take(700)).into_owned();
                self.session.reset(stream, code, &message);
                Some(())
            }
            _ => {
                let stream = u32::from(bytes.u8());
                let waiting = self.open.remove(&stream).unwrap_or_default();
                self.session.taken(stream, waiting);
                Some(())
            }
        }
    }

    /// Any header.
    fn raw(&mut self, bytes: &mut Bytes) -> Option<()> {
        let header = bytes.take(HEADER_BYTES).try_into().ok()?;
        let header = Header::decode(header, self.session.max_payload()).ok()?;
        let payload = bytes.take(header.length as usize);
        (payload.len() == header.length as usize).then(|| self.receive(&header, payload))?
    }

    /// A header that can be one, of a stream with a small number.
    fn frame(&mut self, bytes: &mut Bytes) -> Option<()> {
        let kind = Kind::try_from(bytes.u8() % 6 + 1).ok()?;
        let flags = if kind == Kind::Data { bytes.u8() & (OPEN | END | ONE_WAY) } else { 0 };
        let (stream, length) = (u32::from(bytes.u8() % 16), usize::from(bytes.u16() % 2048));
        let payload = bytes.take(length);
        let length = payload.len() as u32;
        let header = Header { length, kind, flags, priority: Priority::Normal, stream, checksum: 0 };
        let header = Header::decode(&header.encode(), self.session.max_payload()).ok()?;
        self.receive(&header, payload)
    }

    fn receive(&mut self, header: &Header, payload: &[u8]) -> Option<()> {
        header.check(payload).ok()?;
        match self.session.receive(header, payload).ok()? {
            Event::Opened { stream, skip, .. } => {
                assert!(skip <= payload.len());
                self.open.insert(stream, header.length);
            }
            Event::Data { stream, .. } => *self.open.entry(stream).or_default() += header.length,
            Event::Dropped { bytes } => drop(self.session.taken_from_connection(bytes)),
            _ => {}
        }
        // What nobody has taken never exceeds what the peer was granted.
        assert!(self.open.values().all(|waiting| *waiting <= STREAM_WINDOW));
        assert!(self.open.values().sum::<u32>() <= CONNECTION_WINDOW);
        Some(())
    }

    /// Opens a stream or sends on one, as much as the peer allows.
    fn send(&mut self, bytes: &mut Bytes) -> Option<()> {
        let stream = match bytes.u8() {
            number if number & 0x80 != 0 => self.session.open().unwrap_or_default(),
            number => u32::from(number),
        };
        let flags = bytes.u8() & (OPEN | END | ONE_WAY);
        let length = usize::from(bytes.u8());
        let payload = bytes.take(length);
        let room = self.session.room(stream);
        let header = self.session.data(stream, &[payload], flags, Priority::High);
        assert_eq!(header.is_some(), room.is_some_and(|room| payload.len() as u32 <= room));
        Some(())
    }
}

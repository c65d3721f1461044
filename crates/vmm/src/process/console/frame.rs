//! Frames: what goes over the socket, without the socket.

use super::VERSION;

/// The longest rest of a frame.
pub const MAX_PAYLOAD_BYTES: usize = 64 << 10;
/// Kind and length.
const HEADER_BYTES: usize = 5;

const HELLO: u8 = 1;
const INPUT: u8 = 2;
const RESIZE: u8 = 3;
const WELCOME: u8 = 129;
const SCROLLBACK: u8 = 130;
const OUTPUT: u8 = 131;
const END: u8 = 132;

/// What a viewer came for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// To look.
    Look,
    /// To look and to type.
    Type,
}

/// What a viewer sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Hello { version: u8, mode: Mode, scrollback: bool },
    Input(Vec<u8>),
    Resize { columns: u16, rows: u16 },
}

/// What a viewer gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Welcome {
        version: u8,
    },
    /// What was said before the viewer came; may come in pieces.
    Scrollback(Vec<u8>),
    /// What is said now.
    Output(Vec<u8>),
    /// Why nothing follows.
    End(String),
}

/// Bytes that are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes is too long: at most {MAX_PAYLOAD_BYTES} follow its header")]
    Length(u32),
    #[error("there is no frame of kind {0}")]
    Kind(u8),
    #[error("a frame of kind {0} does not have {1} bytes like these")]
    Content(u8, usize),
}

impl Request {
    /// The hello of this version.
    pub fn hello(mode: Mode, scrollback: bool) -> Request {
        Request::Hello { version: VERSION, mode, scrollback }
    }

    /// Appends the frame, or frames: long input is split.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Request::Hello { version, mode, scrollback } => {
                append(out, HELLO, &[*version, u8::from(*mode == Mode::Type), u8::from(*scrollback)]);
            }
            Request::Input(bytes) => append_split(out, INPUT, bytes),
            Request::Resize { columns, rows } => {
                let ([a, b], [c, d]) = (columns.to_le_bytes(), rows.to_le_bytes());
                append(out, RESIZE, &[a, b, c, d]);
            }
        }
    }

    fn decode(kind: u8, rest: &[u8]) -> Result<Request, FrameError> {
        match (kind, rest) {
            (HELLO, [version, mode @ 0..=1, scrollback @ 0..=1]) => {
                let mode = if *mode == 1 { Mode::Type } else { Mode::Look };
                Ok(Request::Hello { version: *version, mode, scrollback: *scrollback == 1 })
            }
            (INPUT, bytes) => Ok(Request::Input(bytes.to_vec())),
            (RESIZE, &[a, b, c, d]) => {
                Ok(Request::Resize { columns: u16::from_le_bytes([a, b]), rows: u16::from_le_bytes([c, d]) })
            }
            (HELLO | RESIZE, _) => Err(FrameError::Content(kind, rest.len())),
            _ => Err(FrameError::Kind(kind)),
        }
    }
}

impl Message {
    /// Appends the frame, or frames: long output is split, a long reason cut.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Message::Welcome { version } => append(out, WELCOME, &[*version]),
            Message::Scrollback(bytes) => append_split(out, SCROLLBACK, bytes),
            Message::Output(bytes) => Message::encode_output(bytes, out),
            Message::End(why) => append(out, END, &why.as_bytes()[..why.floor_char_boundary(1024)]),
        }
    }

    pub(super) fn encode_output(bytes: &[u8], out: &mut Vec<u8>) {
        append_split(out, OUTPUT, bytes);
    }

    fn decode(kind: u8, rest: &[u8]) -> Result<Message, FrameError> {
        match (kind, rest) {
            (WELCOME, [version]) => Ok(Message::Welcome { version: *version }),
            (SCROLLBACK, bytes) => Ok(Message::Scrollback(bytes.to_vec())),
            (OUTPUT, bytes) => Ok(Message::Output(bytes.to_vec())),
            (END, why) => Ok(Message::End(String::from_utf8_lossy(why).into_owned())),
            (WELCOME, _) => Err(FrameError::Content(kind, rest.len())),
            _ => Err(FrameError::Kind(kind)),
        }
    }
}

fn append(out: &mut Vec<u8>, kind: u8, rest: &[u8]) {
    out.push(kind);
    out.extend((rest.len() as u32).to_le_bytes());
    out.extend(rest);
}

fn append_split(out: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    bytes.chunks(MAX_PAYLOAD_BYTES).for_each(|piece| append(out, kind, piece));
}

/// Makes frames of bytes as they come. Holds one frame and what was pushed behind it.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    used: usize,
}

impl Decoder {
    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.used));
        self.bytes.extend(bytes);
    }

    /// The next request of a viewer; `None` until more bytes come. After an error there is no next one.
    pub fn request(&mut self) -> Result<Option<Request>, FrameError> {
        self.frame(Request::decode)
    }

    /// The next message of a hub.
    pub fn message(&mut self) -> Result<Option<Message>, FrameError> {
        self.frame(Message::decode)
    }

    fn frame<T>(&mut self, decode: fn(u8, &[u8]) -> Result<T, FrameError>) -> Result<Option<T>, FrameError> {
        let Some((&[kind, a, b, c, d], rest)) = self.bytes[self.used..].split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes([a, b, c, d]);
        if length as usize > MAX_PAYLOAD_BYTES {
            return Err(FrameError::Length(length));
        }
        let Some(rest) = rest.get(..length as usize) else { return Ok(None) };
        let value = decode(kind, rest)?;
        self.used += HEADER_BYTES + length as usize;
        Ok(Some(value))
    }
}

//! The messages and their layouts.

use crate::path::RelativePath;
use crate::wire::{Reader, Writer};
use crate::{
    Error, MAX_DATA_BYTES, MAX_ENTROPY_BYTES, MAX_HOST_NAME_BYTES, MAX_PATH_BYTES, MAX_TEXT_BYTES, MAX_WORDS, frame,
};

/// `QZAG` as a little-endian number: the first field of a [`Message::Hello`].
const MAGIC: u32 = 0x4741_5a51;

/// What an agent can do; bits of [`Message::Hello`] and [`Message::Welcome`].
pub mod features {
    pub const EXEC: u64 = 1;
    pub const TERMINAL: u64 = 2;
    pub const FILES: u64 = 4;
    pub const IDENTITY: u64 = 8;
    pub const SHUTDOWN: u64 = 16;
    /// All that this version knows.
    pub const ALL: u64 = EXEC | TERMINAL | FILES | IDENTITY | SHUTDOWN;
}

/// The streams of a command; a copied file travels on [`stream::FILE`].
pub mod stream {
    pub const STDIN: u8 = 0;
    pub const STDOUT: u8 = 1;
    pub const STDERR: u8 = 2;
    pub const FILE: u8 = 3;
}

/// A message, of either direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Host: the first message; versions it speaks, and features it knows.
    Hello {
        min: u16,
        max: u16,
        features: u64,
    },
    /// Agent: the version chosen, the features both know, the agent's own version as text.
    Welcome {
        version: u16,
        features: u64,
        agent: Vec<u8>,
    },
    /// Host: asks for a [`Message::Pong`] with the same cookie; allowed at any time after the welcome.
    Ping {
        cookie: u64,
    },
    Pong {
        cookie: u64,
    },

    /// Host: run a command.
    Exec(Exec),
    /// Agent: the command runs, with this process number in the guest.
    Started {
        pid: u32,
    },
    /// Host: send a signal to the command's process group.
    Signal {
        number: u8,
    },
    /// Host: the terminal has another size.
    Resize(Size),
    /// Agent: the command ended; all its output has been sent.
    Exited(Exit),

    /// Bytes of a stream, 1 to [`MAX_DATA_BYTES`].
    Data {
        stream: u8,
        bytes: Vec<u8>,
    },
    /// The stream ends here.
    End {
        stream: u8,
    },
    /// The receiver has passed on so many bytes of the stream; at least one.
    Credit {
        stream: u8,
        bytes: u32,
    },

    /// Host: a tree follows; `path` is where to, `name` what to call it if `path` is a directory.
    Put {
        path: Vec<u8>,
        name: Vec<u8>,
    },
    /// Host: send the tree at this path.
    Get {
        path: Vec<u8>,
    },
    /// An entry of a tree, its directory before it.
    Entry(Entry),

    /// Host: be somebody else; see [`Identity`].
    Identity(Identity),
    /// Host: end the guest.
    Shutdown {
        how: Shutdown,
        grace_ms: u32,
    },

    /// Agent: the request succeeded.
    Done(Summary),
    /// Agent: the request failed. The connection stays usable unless the code is [`FaultCode::Protocol`].
    Error(Fault),
}

/// A command to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exec {
    /// Program and arguments, at least one; a program without a slash is looked up in the command's `PATH`.
    pub argv: Vec<Vec<u8>>,
    /// `NAME=value`, over the environment that the agent gives every command.
    pub env: Vec<Vec<u8>>,
    /// Absolute; empty for the user's home.
    pub cwd: Vec<u8>,
    /// A name of `/etc/passwd` or a number, either with `:GROUP`; empty for root.
    pub user: Vec<u8>,
    /// Whether [`stream::STDIN`] will follow; otherwise the command reads nothing.
    pub stdin: bool,
    /// A terminal of this size for all three streams; output then comes on [`stream::STDOUT`] alone.
    pub terminal: Option<Size>,
}

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    pub rows: u16,
    pub columns: u16,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Status(u8),
    Signal(u8),
}

/// Nanoseconds and seconds since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Time {
    pub seconds: i64,
    /// Below 10⁹.
    pub nanoseconds: u32,
}

/// A file, directory or symbolic link of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub path: RelativePath,
    /// Permission bits, at most 0o7777.
    pub mode: u16,
    pub modified: Time,
    pub kind: EntryKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    Directory,
    /// Its content follows as [`Message::Data`] of exactly so many bytes.
    File {
        size: u64,
    },
    Link {
        target: Vec<u8>,
    },
}

/// What makes a clone another machine; absent parts stay as they are. Applied in the order entropy, clock, host name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    pub host_name: Option<Vec<u8>>,
    pub clock: Option<Time>,
    /// Credited in full; the kernel's generator is seeded anew from it.
    pub entropy: Option<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    PowerOff,
    Reboot,
}

/// What a request did: zeroes for those that copy nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// Entries left out: devices, sockets, pipes, and links that would lead out of a tree.
    pub skipped: u64,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub code: FaultCode,
    pub text: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum FaultCode {
    /// The host did not keep to the protocol; the connection ends.
    Protocol = 1,
    /// No version in common; the connection ends.
    Version = 2,
    /// Too many sessions; the connection ends.
    Busy = 3,
    /// There is no such program.
    NoProgram = 4,
    /// The program is there and cannot be run.
    CannotExecute = 5,
    /// No such user or group.
    NoUser = 6,
    /// The working directory cannot be entered.
    NoDirectory = 7,
    /// A file cannot be read, written or created.
    File = 8,
    /// The guest's kernel refused something else.
    System = 9,
}

const FAULT_CODES: [FaultCode; 9] = [
    FaultCode::Protocol,
    FaultCode::Version,
    FaultCode::Busy,
    FaultCode::NoProgram,
    FaultCode::CannotExecute,
    FaultCode::NoUser,
    FaultCode::NoDirectory,
    FaultCode::File,
    FaultCode::System,
];

impl Fault {
    /// A fault whose text is cut to what a message may hold.
    pub fn new(code: FaultCode, text: impl std::fmt::Display) -> Fault {
        let mut text = text.to_string().into_bytes();
        text.retain(|byte| *byte != 0);
        text.truncate(MAX_TEXT_BYTES);
        Fault { code, text }
    }
}

impl Size {
    fn read(reader: &mut Reader<'_>) -> Result<Size, Error> {
        Ok(Size { rows: reader.u16("rows")?, columns: reader.u16("columns")? })
    }

    fn write(self, writer: &mut Writer<'_>) {
        writer.u16(self.rows);
        writer.u16(self.columns);
    }
}

impl Time {
    fn read(reader: &mut Reader<'_>) -> Result<Time, Error> {
        let time = Time { seconds: reader.i64("seconds")?, nanoseconds: reader.u32("nanoseconds")? };
        if time.nanoseconds < 1_000_000_000 { Ok(time) } else { Err(Error::Invalid("nanoseconds")) }
    }

    fn write(self, writer: &mut Writer<'_>) {
        writer.i64(self.seconds);
        writer.u32(self.nanoseconds);
    }
}

impl Exec {
    fn read(reader: &mut Reader<'_>) -> Result<Exec, Error> {
        let argv = reader.texts(MAX_WORDS, "argv")?;
        if argv.first().is_none_or(Vec::is_empty) {
            return Err(Error::Invalid("argv"));
        }
        let env = reader.texts(MAX_WORDS, "env")?;
        if !env.iter().all(|variable| variable.iter().position(|byte| *byte == b'=').is_some_and(|at| at > 0)) {
            return Err(Error::Invalid("env"));
        }
        let cwd = reader.text(MAX_PATH_BYTES, "cwd")?;
        let user = reader.text(256, "user")?;
        let stdin = reader.flag("stdin")?;
        let terminal = if reader.flag("terminal")? { Some(Size::read(reader)?) } else { None };
        Ok(Exec { argv, env, cwd, user, stdin, terminal })
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.texts(&self.argv);
        writer.texts(&self.env);
        writer.bytes(&self.cwd);
        writer.bytes(&self.user);
        writer.u8(self.stdin.into());
        writer.u8(self.terminal.is_some().into());
        if let Some(size) = self.terminal {
            size.write(writer);
        }
    }
}

impl Entry {
    fn read(reader: &mut Reader<'_>) -> Result<Entry, Error> {
        let path = RelativePath::new(reader.bytes(MAX_PATH_BYTES, "path")?)?;
        let mode = reader.u16("mode")?;
        if mode > 0o7777 {
            return Err(Error::Invalid("mode"));
        }
        let modified = Time::read(reader)?;
        let kind = match reader.u8("entry kind")? {
            0 => EntryKind::Directory,
            1 => EntryKind::File { size: reader.u64("size")? },
            2 => EntryKind::Link { target: link_target(reader)? },
            _ => return Err(Error::Invalid("entry kind")),
        };
        Ok(Entry { path, mode, modified, kind })
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.bytes(self.path.as_bytes());
        writer.u16(self.mode);
        self.modified.write(writer);
        match &self.kind {
            EntryKind::Directory => writer.u8(0),
            EntryKind::File { size } => {
                writer.u8(1);
                writer.u64(*size);
            }
            EntryKind::Link { target } => {
                writer.u8(2);
                writer.bytes(target);
            }
        }
    }
}

fn link_target(reader: &mut Reader<'_>) -> Result<Vec<u8>, Error> {
    let target = reader.text(MAX_PATH_BYTES, "target")?;
    if target.is_empty() { Err(Error::Invalid("target")) } else { Ok(target) }
}

impl Identity {
    fn read(reader: &mut Reader<'_>) -> Result<Identity, Error> {
        let mut identity = Identity::default();
        if reader.flag("host name")? {
            let name = reader.text(MAX_HOST_NAME_BYTES, "host name")?;
            if name.is_empty() || name.iter().any(|byte| !byte.is_ascii_graphic() || *byte == b'/') {
                return Err(Error::Invalid("host name"));
            }
            identity.host_name = Some(name);
        }
        if reader.flag("clock")? {
            identity.clock = Some(Time::read(reader)?);
        }
        if reader.flag("entropy")? {
            identity.entropy = Some(reader.bytes(MAX_ENTROPY_BYTES, "entropy")?.to_vec());
        }
        Ok(identity)
    }

    fn write(&self, writer: &mut Writer<'_>) {
        writer.u8(self.host_name.is_some().into());
        self.host_name.iter().for_each(|name| writer.bytes(name));
        writer.u8(self.clock.is_some().into());
        self.clock.iter().for_each(|time| time.write(writer));
        writer.u8(self.entropy.is_some().into());
        self.entropy.iter().for_each(|entropy| writer.bytes(entropy));
    }
}

impl Exit {
    fn read(reader: &mut Reader<'_>) -> Result<Exit, Error> {
        match (reader.u8("exit kind")?, reader.u8("exit")?) {
            (0, status) => Ok(Exit::Status(status)),
            (1, signal @ 1..=64) => Ok(Exit::Signal(signal)),
            _ => Err(Error::Invalid("exit")),
        }
    }
}

fn stream_of(reader: &mut Reader<'_>) -> Result<u8, Error> {
    match reader.u8("stream")? {
        stream @ stream::STDIN..=stream::FILE => Ok(stream),
        _ => Err(Error::Invalid("stream")),
    }
}

fn path_of(reader: &mut Reader<'_>) -> Result<Vec<u8>, Error> {
    let path = reader.text(MAX_PATH_BYTES, "path")?;
    if path.is_empty() { Err(Error::Invalid("path")) } else { Ok(path) }
}

impl Message {
    /// Writes the payload and gives the kind of the frame.
    pub(crate) fn write(&self, out: &mut Vec<u8>) -> u8 {
        let mut writer = Writer { out };
        let w = &mut writer;
        match self {
            Message::Hello { min, max, features } => {
                w.u32(MAGIC);
                w.u16(*min);
                w.u16(*max);
                w.u64(*features);
            }
            Message::Welcome { version, features, agent } => {
                w.u16(*version);
                w.u64(*features);
                w.bytes(agent);
            }
            Message::Ping { cookie } | Message::Pong { cookie } => w.u64(*cookie),
            Message::Exec(exec) => exec.write(w),
            Message::Started { pid } => w.u32(*pid),
            Message::Signal { number } => w.u8(*number),
            Message::Resize(size) => size.write(w),
            Message::Exited(Exit::Status(status)) => w.out.extend([0, *status]),
            Message::Exited(Exit::Signal(signal)) => w.out.extend([1, *signal]),
            Message::Data { stream, bytes } => {
                w.u8(*stream);
                w.out.extend(bytes);
            }
            Message::End { stream } => w.u8(*stream),
            Message::Credit { stream, bytes } => {
                w.u8(*stream);
                w.u32(*bytes);
            }
            Message::Put { path, name } => {
                w.bytes(path);
                w.bytes(name);
            }
            Message::Get { path } => w.bytes(path),
            Message::Entry(entry) => entry.write(w),
            Message::Identity(identity) => identity.write(w),
            Message::Shutdown { how, grace_ms } => {
                w.u8(u8::from(*how == Shutdown::Reboot));
                w.u32(*grace_ms);
            }
            Message::Done(summary) => {
                w.u64(summary.entries);
                w.u64(summary.bytes);
                w.u64(summary.skipped);
            }
            Message::Error(fault) => {
                w.u16(fault.code as u16);
                w.bytes(&fault.text);
            }
        }
        self.kind()
    }

    const fn kind(&self) -> u8 {
        match self {
            Message::Hello { .. } => 0x01,
            Message::Welcome { .. } => 0x02,
            Message::Ping { .. } => 0x03,
            Message::Pong { .. } => 0x04,
            Message::Exec(_) => 0x10,
            Message::Started { .. } => 0x11,
            Message::Signal { .. } => 0x12,
            Message::Resize(_) => 0x13,
            Message::Exited(_) => 0x14,
            Message::Data { .. } => 0x20,
            Message::End { .. } => 0x21,
            Message::Credit { .. } => 0x22,
            Message::Put { .. } => 0x30,
            Message::Get { .. } => 0x31,
            Message::Entry(_) => 0x32,
            Message::Identity(_) => 0x40,
            Message::Shutdown { .. } => 0x41,
            Message::Done(_) => 0x50,
            Message::Error(_) => 0x51,
        }
    }

    pub(crate) fn read(kind: u8, payload: &[u8]) -> Result<Message, Error> {
        debug_assert!(payload.len() <= frame::MAX_PAYLOAD_BYTES);
        let mut reader = Reader::new(payload);
        let r = &mut reader;
        let message = match kind {
            0x01..=0x04 => Message::read_session(kind, r)?,
            0x10..=0x14 => Message::read_command(kind, r)?,
            0x20 => return Message::read_data(payload),
            0x21 => Message::End { stream: stream_of(r)? },
            // A credit over nothing, like empty data, could be repeated without end.
            0x22 => match (stream_of(r)?, r.u32("credit")?) {
                (_, 0) => return Err(Error::Invalid("credit")),
                (stream, bytes) => Message::Credit { stream, bytes },
            },
            0x30 => Message::Put { path: path_of(r)?, name: r.text(255, "name")? },
            0x31 => Message::Get { path: path_of(r)? },
            0x32 => Message::Entry(Entry::read(r)?),
            0x40 => Message::Identity(Identity::read(r)?),
            0x41 => {
                let how = if r.flag("shutdown")? { Shutdown::Reboot } else { Shutdown::PowerOff };
                Message::Shutdown { how, grace_ms: r.u32("grace")? }
            }
            0x50 => Message::Done(Summary {
                entries: r.u64("entries")?,
                bytes: r.u64("bytes")?,
                skipped: r.u64("skipped")?,
            }),
            0x51 => {
                let number = r.u16("code")?;
                let code = FAULT_CODES.into_iter().find(|code| *code as u16 == number);
                let code = code.ok_or(Error::Invalid("code"))?;
                Message::Error(Fault { code, text: r.text(MAX_TEXT_BYTES, "text")? })
            }
            _ => return Err(Error::UnknownKind(kind)),
        };
        reader.end()?;
        Ok(message)
    }

    fn read_session(kind: u8, r: &mut Reader<'_>) -> Result<Message, Error> {
        Ok(match kind {
            0x01 => {
                if r.u32("magic")? != MAGIC {
                    return Err(Error::Invalid("magic"));
                }
                Message::Hello { min: r.u16("min")?, max: r.u16("max")?, features: r.u64("features")? }
            }
            0x02 => Message::Welcome {
                version: r.u16("version")?,
                features: r.u64("features")?,
                agent: r.text(MAX_TEXT_BYTES, "agent")?,
            },
            0x03 => Message::Ping { cookie: r.u64("cookie")? },
            _ => Message::Pong { cookie: r.u64("cookie")? },
        })
    }

    fn read_command(kind: u8, r: &mut Reader<'_>) -> Result<Message, Error> {
        Ok(match kind {
            0x10 => Message::Exec(Exec::read(r)?),
            0x11 => Message::Started { pid: r.u32("pid")? },
            0x12 => match r.u8("signal")? {
                number @ 1..=64 => Message::Signal { number },
                _ => return Err(Error::Invalid("signal")),
            },
            0x13 => Message::Resize(Size::read(r)?),
            _ => Message::Exited(Exit::read(r)?),
        })
    }

    fn read_data(payload: &[u8]) -> Result<Message, Error> {
        let mut reader = Reader::new(payload);
        let stream = stream_of(&mut reader)?;
        let bytes = payload.get(1..).unwrap_or_default();
        // Empty data would be a way to send messages without end that no window counts.
        if bytes.is_empty() || bytes.len() > MAX_DATA_BYTES {
            return Err(Error::Invalid("data"));
        }
        Ok(Message::Data { stream, bytes: bytes.to_vec() })
    }
}

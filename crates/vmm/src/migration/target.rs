//! The target's end.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use queztl_guest_memory::{MemoryImage, Shape};
use queztl_parallel_transfer as transfer;
use queztl_qhp::{Connection, Incoming, Options, Stream};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};

use super::Error;
use super::late::{self, Runs, Switch};
use super::pager::{Owner, Waiting};
use super::wire::{
    BEGIN, Begin, DISK, MAX_STRIPES, PATIENCE, ROUND, RUN, Ready, Round, STRIPE, SWITCH, SYNC, Stripe, VERSION, YES,
    decode,
};
use crate::mirror::{self, DiskFiles};
use crate::snapshot::Snapshot;

/// How long the source may be silent between two rounds: it sends all that time, but over the stripes.
const SILENCE: Duration = Duration::from_secs(300);
/// The code of a refusal.
pub(super) const REFUSED: u32 = 2;

/// A machine that has arrived; it goes on here when the source says so.
pub struct Arrival {
    pub snapshot: Snapshot,
    pub arrived: Arrived,
    /// Who brings the memory that comes later. It must serve before anybody touches RAM.
    pub pager: Option<Waiting>,
}

/// The source, which waits for word.
pub struct Arrived {
    call: Stream,
    calls: Connection,
    /// When all had come.
    at: Instant,
    /// Who brings the memory that comes later must know whose the machine is.
    owner: Option<Owner>,
}

impl Arrived {
    /// The machine is ready. Waits until the source hands it over: after that, it must run here.
    ///
    /// # Errors
    /// The source does not; then the machine must not run here.
    pub fn take_over(mut self) -> Result<(), Error> {
        let ready = Ready { made_ns: u64::try_from(self.at.elapsed().as_nanos()).unwrap_or(u64::MAX) };
        let ready = serde_json::to_vec(&ready).map_err(|_| Error::Protocol("an answer cannot be written"))?;
        self.call.finish(&ready)?;
        let Incoming { service, mut stream, .. } = self.calls.accept(Some(PATIENCE))?;
        if service != RUN {
            return Err(Error::Protocol("it asks for something that is not to run"));
        }
        stream.message(Some(PATIENCE))?;
        if !self.owner.is_none_or(|owner| owner.take()) {
            return Err(Error::Protocol("the source has gone before the machine ran here"));
        }
        // From here on, the source does not go on by itself.
        if let Err(error) = stream.finish(YES) {
            tracing::warn!(%error, "the source may not know that the machine runs here");
        }
        Ok(())
    }

    /// The machine cannot run here: the source goes on.
    pub fn refuse(self, reason: &str) {
        self.call.reset(REFUSED, reason);
    }
}

/// Listens at `socket` and waits, for `limit`, until a source brings a machine with `ram_bytes` of RAM, and the disks that are to
/// be at `disks`. Their files are there only if the machine has arrived.
///
/// # Errors
/// Nobody comes, or what comes is no such machine; the source goes on then.
pub fn receive(socket: &Path, ram_bytes: u64, disks: &[PathBuf], limit: Duration) -> Result<Arrival, Error> {
    let listener = crate::control::listen(socket).map_err(|error| Error::Connect(io::Error::other(error)))?;
    let arrival = take(listener, socket, ram_bytes, disks, limit);
    // The path is the process's own; a file that is left over is replaced.
    if !arrival.as_ref().is_ok_and(|arrival| arrival.pager.is_some()) {
        let _ = std::fs::remove_file(socket);
    }
    arrival
}

fn take(
    listener: UnixListener,
    socket: &Path,
    ram_bytes: u64,
    homes: &[PathBuf],
    limit: Duration,
) -> Result<Arrival, Error> {
    let calls = connection(&listener, limit)?;
    let mut stream = stream_for(&calls, BEGIN)?;
    let begin = stream.message(Some(PATIENCE)).map_err(Error::from).and_then(|text| checked(&text, ram_bytes));
    let prepared = begin.and_then(|(begin, shape)| {
        let disks = Disks::new(homes, &begin.disks)?;
        Ok((begin, Memory::new(shape.bytes())?, shape, disks))
    });
    let (begin, memory, shape, mut disks) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            stream.reset(REFUSED, &error.to_string());
            return Err(error);
        }
    };
    stream.finish(YES)?;
    // All are made before the first of them has anything to say.
    let stripes = (0..begin.stripes).map(|_| connection(&listener, PATIENCE)).collect::<Result<Vec<_>, _>>()?;
    let Last { call, state, late } = rounds(&calls, &stripes, shape.bytes(), &memory, &disks)?;
    let mut arrived = Arrived { call, calls: calls.clone(), at: Instant::now(), owner: None };
    let made = disks.settle().and_then(|()| match late {
        None => {
            let memory = MemoryImage::of_file(memory.0, shape)?;
            Ok((Snapshot::from_parts(&state, memory)?, None))
        }
        Some((switch, missing)) => {
            let (memory, arriving) = MemoryImage::arriving(memory.0, shape, &missing)?;
            let snapshot = Snapshot::from_parts(&state, memory)?;
            let place = (listener, socket.to_path_buf());
            let pager = Waiting::new(arriving, ram_bytes, switch, place, (calls, stripes))?;
            Ok((snapshot, Some(pager)))
        }
    });
    match made {
        Ok((snapshot, pager)) => {
            arrived.owner = pager.as_ref().map(Waiting::owner);
            Ok(Arrival { snapshot, arrived, pager })
        }
        Err(error) => {
            arrived.refuse(&error.to_string());
            Err(error)
        }
    }
}

/// The last of the rounds.
struct Last {
    /// To be answered.
    call: Stream,
    /// The machine's.
    state: Vec<u8>,
    /// What of memory comes later.
    late: Option<(Switch, Runs)>,
}

/// Takes rounds up to the last, or to the switch.
fn rounds(
    calls: &Connection,
    stripes: &[Connection],
    ram_bytes: u64,
    memory: &Memory,
    disks: &Disks,
) -> Result<Last, Error> {
    let mut receiver = None;
    loop {
        let Incoming { service, mut stream, .. } = calls.accept(Some(SILENCE))?;
        match service {
            ROUND => {}
            SWITCH => {
                let message = stream.message(Some(PATIENCE))?;
                let (switch, missing, state) = late::decode_switch(&message, ram_bytes)?;
                let state = state.to_vec();
                return Ok(Last { call: stream, state, late: Some((switch, missing)) });
            }
            DISK | SYNC => {
                let done = match service {
                    DISK => stream.message(Some(PATIENCE)).map_err(Error::from).and_then(|part| disks.take(&part)),
                    _ => disks.sync(),
                };
                if let Err(error) = done {
                    stream.reset(REFUSED, &error.to_string());
                    return Err(error);
                }
                stream.finish(YES)?;
                continue;
            }
            _ => return Err(Error::Protocol("it asks for something that is no round")),
        }
        let message = stream.message(Some(PATIENCE))?;
        let end = message.iter().position(|byte| *byte == b'\n').ok_or(Error::Protocol("a round has no head"))?;
        let Round { round, last } = decode(&message[..end])?;
        let receiver = match &mut receiver {
            Some(receiver) => receiver,
            none => {
                let streams = stripes.iter().map(|stripe| Ok(Stripe::new(stream_for(stripe, STRIPE)?)));
                none.insert(transfer::Receiver::new(streams.collect::<Result<_, Error>>()?, ram_bytes))
            }
        };
        let received = receiver.round(round, memory)?;
        tracing::debug!(round, bytes = received.data_bytes, last, "memory has come");
        if last {
            return Ok(Last { call: stream, state: message[end + 1..].to_vec(), late: None });
        }
        stream.finish(YES)?;
    }
}

fn checked(text: &[u8], ram_bytes: u64) -> Result<(Begin, Shape), Error> {
    let begin: Begin = decode(text)?;
    if begin.version != VERSION {
        return Err(Error::Version { theirs: begin.version, ours: VERSION });
    }
    if !(1..=MAX_STRIPES).contains(&begin.stripes) {
        return Err(Error::Protocol("it wants more stripes than there can be"));
    }
    let shape = Shape::from_runs(begin.ram.clone())?;
    match shape.bytes() == ram_bytes {
        true => Ok((begin, shape)),
        false => Err(Error::Ram { theirs: shape.bytes(), ours: ram_bytes }),
    }
}

/// The next connection, greeted.
fn connection(listener: &UnixListener, limit: Duration) -> Result<Connection, Error> {
    Ok(Connection::server(wire(listener, limit)?, Options::default())?)
}

/// The next to connect.
pub(crate) fn wire(listener: &UnixListener, limit: Duration) -> Result<UnixStream, Error> {
    let deadline = Instant::now() + limit;
    listener.set_nonblocking(true).map_err(Error::Connect)?;
    loop {
        match listener.accept() {
            Ok((wire, _)) => return Ok(wire),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(Error::Connect(error)),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Nobody(limit.as_secs()));
        }
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::Connect(error.into())),
        }
    }
}

/// The stream that the peer opens, which must be for `service`.
pub(super) fn stream_for(connection: &Connection, service: u32) -> Result<Stream, Error> {
    let incoming = connection.accept(Some(PATIENCE))?;
    match incoming.service == service {
        true => Ok(incoming.stream),
        false => Err(Error::Protocol("a connection is for something else")),
    }
}

/// The disks that come, beside the places that they are for.
struct Disks {
    sizes: Vec<u64>,
    files: DiskFiles,
}

impl Disks {
    fn new(homes: &[PathBuf], sizes: &[u64]) -> Result<Disks, Error> {
        if homes.len() != sizes.len() {
            return Err(Error::Disks { theirs: sizes.len(), ours: homes.len() });
        }
        Ok(Disks { sizes: sizes.to_vec(), files: DiskFiles::new(homes, sizes)? })
    }

    fn take(&self, part: &[u8]) -> Result<(), Error> {
        mirror::check(&self.sizes, part)?;
        Ok(self.files.apply(part)?)
    }

    fn sync(&self) -> Result<(), Error> {
        Ok(self.files.sync()?)
    }

    /// All has come: what the guest has flushed is durable, and where it belongs.
    fn settle(&mut self) -> Result<(), Error> {
        self.sync()?;
        Ok(self.files.settle()?)
    }
}

/// The RAM that comes: a file in memory.
pub(crate) struct Memory(pub(crate) File);

impl Memory {
    pub(crate) fn new(bytes: u64) -> Result<Memory, Error> {
        let file = memfd_create("guest-ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
        let file = File::from(file.map_err(|error| Error::Memory(error.into()))?);
        file.set_len(bytes).map_err(Error::Memory)?;
        Ok(Memory(file))
    }
}

impl transfer::Target for Memory {
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn zero(&self, offset: u64, bytes: u64) -> io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(self.0.as_fd(), flags, offset, bytes)?)
    }
}

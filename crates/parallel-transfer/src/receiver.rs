//! The side that gets the data.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::chunk::{HEADER_BYTES, Header, Kind, MAX_CHUNK_BYTES};
use crate::{Error, Target};

/// What a round has brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Received {
    pub data_bytes: u64,
    pub chunks: u64,
}

/// Receives rounds over its connections.
#[derive(Debug)]
pub struct Receiver<R> {
    endpoints: Vec<R>,
    bytes: u64,
}

impl<R: Read + Send> Receiver<R> {
    /// A transfer of data of `bytes` over these connections, as many as the sender has.
    pub fn new(endpoints: Vec<R>, bytes: u64) -> Receiver<R> {
        Receiver { endpoints, bytes }
    }

    /// Receives a round, whole. After an error, some of it may have been written.
    ///
    /// # Errors
    /// The first connection's that failed or brought what is no chunk, or what the target gave.
    pub fn round(&mut self, round: u64, target: &impl Target) -> Result<Received, Error> {
        let (data, chunks) = (AtomicU64::new(0), AtomicU64::new(0));
        let all = self.bytes;
        std::thread::scope(|scope| {
            let (data, chunks) = (&data, &chunks);
            let takers = self.endpoints.iter_mut().enumerate().map(|(connection, endpoint)| {
                scope.spawn(move || {
                    let mut taker = Taker { connection, endpoint, round, all };
                    let (bytes, count) = taker.take(target)?;
                    data.fetch_add(bytes, Ordering::Relaxed);
                    chunks.fetch_add(count, Ordering::Relaxed);
                    Ok(())
                })
            });
            let takers: Vec<_> = takers.collect();
            let taken = takers.into_iter().map(|taker| taker.join().unwrap_or(Err(Error::Abandoned)));
            taken.collect::<Vec<_>>().into_iter().collect::<Result<(), Error>>()
        })?;
        Ok(Received { data_bytes: data.into_inner(), chunks: chunks.into_inner() })
    }

    /// The connections, in the state that the last round has left them in.
    pub fn into_endpoints(self) -> Vec<R> {
        self.endpoints
    }
}

/// Buffers for one connection's chunks.
pub(crate) struct Unpacker {
    payload: Vec<u8>,
    expanded: Vec<u8>,
}

/// Why there is no next chunk.
pub(crate) enum Fault {
    Connection(io::Error),
    Malformed(&'static str),
}

impl Unpacker {
    pub fn new() -> Unpacker {
        Unpacker { payload: vec![0; MAX_CHUNK_BYTES], expanded: vec![0; MAX_CHUNK_BYTES] }
    }

    /// The next chunk of the round, checked, with its data; one that is not the end lies within `all` bytes.
    pub fn next(&mut self, from: &mut impl Read, round: u64, all: u64) -> Result<(Header, &[u8]), Fault> {
        let mut header = [0; HEADER_BYTES];
        from.read_exact(&mut header).map_err(Fault::Connection)?;
        let header = Header::decode(&header).map_err(Fault::Malformed)?;
        // Never longer than a chunk: the header was checked.
        let payload = &mut self.payload[..header.payload_bytes as usize];
        from.read_exact(payload).map_err(Fault::Connection)?;
        header.verify(payload).map_err(Fault::Malformed)?;
        if header.round != round {
            return Err(Fault::Malformed("a chunk is of another round"));
        }
        let outside = header.offset.checked_add(header.bytes).is_none_or(|end| end > all);
        if header.kind != Kind::End && outside {
            return Err(Fault::Malformed("a chunk lies outside of the data"));
        }
        if header.kind != Kind::Lz4 {
            return Ok((header, payload));
        }
        let expanded = &mut self.expanded[..header.bytes as usize];
        match lz4_flex::block::decompress_into(payload, expanded) {
            Ok(length) if length == expanded.len() => Ok((header, expanded)),
            _ => Err(Fault::Malformed("a chunk cannot be expanded")),
        }
    }
}

struct Taker<'a, R> {
    connection: usize,
    endpoint: &'a mut R,
    round: u64,
    all: u64,
}

impl<R: Read> Taker<'_, R> {
    /// Takes chunks up to the end of the round; gives the bytes of data and the chunks.
    fn take(&mut self, target: &impl Target) -> Result<(u64, u64), Error> {
        let connection = self.connection;
        let malformed = |reason| Error::Malformed { connection, reason };
        let mut unpacker = Unpacker::new();
        let (mut bytes, mut chunks) = (0, 0);
        loop {
            let next = unpacker.next(&mut self.endpoint, self.round, self.all);
            let (header, data) = next.map_err(|fault| match fault {
                Fault::Connection(source) => Error::Connection { connection, source },
                Fault::Malformed(reason) => malformed(reason),
            })?;
            if header.kind == Kind::End {
                let complete = header.offset == chunks;
                return complete.then_some((bytes, chunks)).ok_or_else(|| malformed("chunks are missing"));
            }
            chunks += 1;
            let written = match header.kind {
                Kind::Zero => target.zero(header.offset, header.bytes),
                _ => target.write(header.offset, data),
            };
            written.map_err(Error::Target)?;
            if header.kind != Kind::Zero {
                bytes += header.bytes;
            }
        }
    }
}

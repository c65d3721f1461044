//! The side that gets the data.

use std::io::Read;
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

struct Taker<'a, R> {
    connection: usize,
    endpoint: &'a mut R,
    round: u64,
    all: u64,
}

impl<R: Read> Taker<'_, R> {
    /// Takes chunks up to the end of the round; gives the bytes of data and the chunks.
    fn take(&mut self, target: &impl Target) -> Result<(u64, u64), Error> {
        let (mut payload, mut expanded) = (vec![0; MAX_CHUNK_BYTES], vec![0; MAX_CHUNK_BYTES]);
        let (mut bytes, mut chunks) = (0, 0);
        loop {
            let mut header = [0; HEADER_BYTES];
            self.read(&mut header)?;
            let header = Header::decode(&header).map_err(|reason| self.malformed(reason))?;
            // Never longer than a chunk: the header was checked.
            let payload = &mut payload[..header.payload_bytes as usize];
            self.read(payload)?;
            header.verify(payload).map_err(|reason| self.malformed(reason))?;
            if header.round != self.round {
                return Err(self.malformed("a chunk is of another round"));
            }
            if header.kind == Kind::End {
                let complete = header.offset == chunks;
                return complete.then_some((bytes, chunks)).ok_or_else(|| self.malformed("chunks are missing"));
            }
            if header.offset.checked_add(header.bytes).is_none_or(|end| end > self.all) {
                return Err(self.malformed("a chunk lies outside of the data"));
            }
            chunks += 1;
            let written = match header.kind {
                Kind::Zero => target.zero(header.offset, header.bytes),
                Kind::Lz4 => {
                    let expanded = &mut expanded[..header.bytes as usize];
                    let length = lz4_flex::block::decompress_into(payload, expanded);
                    if length.ok() != Some(expanded.len()) {
                        return Err(self.malformed("a chunk cannot be expanded"));
                    }
                    target.write(header.offset, expanded)
                }
                Kind::Raw | Kind::End => target.write(header.offset, payload),
            };
            written.map_err(Error::Target)?;
            if header.kind != Kind::Zero {
                bytes += header.bytes;
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        let connection = self.connection;
        self.endpoint.read_exact(buffer).map_err(|source| Error::Connection { connection, source })
    }

    fn malformed(&self, reason: &'static str) -> Error {
        Error::Malformed { connection: self.connection, reason }
    }
}

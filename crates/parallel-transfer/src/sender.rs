//! The side that has the data.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use crate::Error;
use crate::chunk::{Header, Kind, MAX_CHUNK_BYTES};

/// Chunks that wait for a connection, for each connection.
const QUEUED: usize = 2;
/// Data is sent as it is when compression does not take off an eighth of it.
const WORTH: usize = 8;

/// A part of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    Data(&'a [u8]),
    /// So many zeroes.
    Zero(u64),
}

/// What a round has taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    pub data_bytes: u64,
    /// On the connections, headers included.
    pub wire_bytes: u64,
    pub chunks: u64,
}

/// Sends rounds over its connections.
#[derive(Debug)]
pub struct Sender<W> {
    endpoints: Vec<W>,
}

/// Takes the pieces of a round.
#[derive(Debug)]
pub struct Sink<'a> {
    queue: &'a SyncSender<Job>,
}

#[derive(Debug)]
struct Job {
    offset: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    Data(Vec<u8>),
    Zero(u64),
}

impl Sink<'_> {
    /// Takes a piece for `offset`; waits while the connections are busy.
    ///
    /// # Errors
    /// [`Error::Abandoned`] when all connections have failed; [`Sender::round`] tells why.
    pub fn put(&mut self, offset: u64, piece: Piece<'_>) -> Result<(), Error> {
        let give = |offset, what| self.queue.send(Job { offset, what }).map_err(|_| Error::Abandoned);
        match piece {
            Piece::Zero(bytes) => give(offset, What::Zero(bytes)),
            Piece::Data(data) => {
                let places = (offset..).step_by(MAX_CHUNK_BYTES);
                places.zip(data.chunks(MAX_CHUNK_BYTES)).try_for_each(|(at, part)| give(at, What::Data(part.to_vec())))
            }
        }
    }
}

impl<W: Write + Send> Sender<W> {
    /// A transfer over these connections, one at least.
    pub fn new(endpoints: Vec<W>) -> Sender<W> {
        Sender { endpoints }
    }

    /// Sends what `produce` puts into the sink, and the end of the round.
    ///
    /// # Errors
    /// The first connection's that failed, or what `produce` gave.
    pub fn round(
        &mut self,
        round: u64,
        produce: impl FnOnce(&mut Sink<'_>) -> Result<(), Error>,
    ) -> Result<Sent, Error> {
        let (queue, jobs) = sync_channel(QUEUED * self.endpoints.len());
        let jobs = Mutex::new(Some(jobs));
        let total = Total::default();
        std::thread::scope(|scope| {
            let (jobs, total) = (&jobs, &total);
            let carriers = self.endpoints.iter_mut().enumerate().map(|(connection, endpoint)| {
                let carry = move || {
                    let carried = carry(endpoint, round, jobs, total);
                    carried.map_err(|source| {
                        // Nobody takes anything any more: whoever produces is told so.
                        jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
                        Error::Connection { connection, source }
                    })
                };
                scope.spawn(carry)
            });
            let carriers: Vec<_> = carriers.collect();
            let produced = produce(&mut Sink { queue: &queue });
            // Without it the carriers come to an end.
            drop(queue);
            let carried = carriers.into_iter().map(|carrier| carrier.join().unwrap_or(Err(Error::Abandoned)));
            let failed = carried.filter_map(Result::err).collect::<Vec<_>>().into_iter().next();
            // Where a connection has failed, that is why nothing more could be produced.
            failed.map_or(produced, Err)
        })?;
        Ok(total.sum())
    }

    /// The connections, in the state that the last round has left them in.
    pub fn into_endpoints(self) -> Vec<W> {
        self.endpoints
    }
}

#[derive(Debug, Default)]
struct Total {
    data: AtomicU64,
    wire: AtomicU64,
    chunks: AtomicU64,
}

impl Total {
    fn sum(&self) -> Sent {
        let [data_bytes, wire_bytes, chunks] =
            [&self.data, &self.wire, &self.chunks].map(|figure| figure.load(Ordering::Relaxed));
        Sent { data_bytes, wire_bytes, chunks }
    }
}

/// Sends chunks while there are any, then the end of the round, unless it was given up.
fn carry(endpoint: &mut impl Write, round: u64, jobs: &Mutex<Option<Receiver<Job>>>, total: &Total) -> io::Result<()> {
    let mut compressed = vec![0; lz4_flex::block::get_maximum_output_size(MAX_CHUNK_BYTES)];
    let mut chunks = 0;
    loop {
        // The lock is held while waiting: whoever has it takes the next job.
        let next = match &*jobs.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(jobs) => jobs.recv(),
            None => return Ok(()),
        };
        let Ok(job) = next else { break };
        let (kind, bytes, payload) = match &job.what {
            What::Zero(bytes) => (Kind::Zero, *bytes, &[][..]),
            What::Data(data) => {
                let (kind, payload) = pack(data, &mut compressed);
                (kind, data.len() as u64, payload)
            }
        };
        let header = Header::new(kind, round, job.offset, bytes, payload);
        endpoint.write_all(&header.encode())?;
        endpoint.write_all(payload)?;
        chunks += 1;
        if kind != Kind::Zero {
            total.data.fetch_add(bytes, Ordering::Relaxed);
        }
        total.wire.fetch_add((crate::chunk::HEADER_BYTES + payload.len()) as u64, Ordering::Relaxed);
    }
    total.chunks.fetch_add(chunks, Ordering::Relaxed);
    endpoint.write_all(&Header::new(Kind::End, round, chunks, 0, &[]).encode())?;
    endpoint.flush()
}

/// The data as it is sent.
pub(crate) fn pack<'a>(data: &'a [u8], compressed: &'a mut [u8]) -> (Kind, &'a [u8]) {
    match lz4_flex::block::compress_into(data, compressed) {
        Ok(length) if length < data.len() - data.len() / WORTH => (Kind::Lz4, &compressed[..length]),
        _ => (Kind::Raw, data),
    }
}

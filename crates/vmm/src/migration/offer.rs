//! The source's end while memory comes after the machine: what was not sent yet, asked for or not.
//!
//! ```text
//!  calls    FAULTS  <── pages that are waited for, and the word that all has come
//!           PAGES   ──> those pages, before anything else
//!  stripes  PAGES   ──> all others, from where the last one was asked for
//! ```
//! Promise: RAM is a frozen image that nobody writes to, so whatever is sent, and however often, is what the machine had when it
//! left. After a broken connection the target says what is missing, and only that is sent.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use queztl_guest_memory::MemoryImage;
use queztl_parallel_transfer::{ParcelWriter, Piece};
use queztl_qhp::{Connection, Priority, Stream};

use super::Error;
use super::late::{Faults, PAGE, RECORD_BYTES, Record, SERIES};
use super::wire::{FAULTS, PAGES, Stripe};

/// Pages that go at once when nobody asks for them.
const PIECE_PAGES: u64 = 32;
/// How often a peer is asked for a sign of life, and how long it may take.
const PING_EVERY: Duration = Duration::from_secs(2);
const PING_LIMIT: Duration = Duration::from_secs(10);

/// RAM of which parts are still to be sent.
pub(crate) struct Offer {
    image: MemoryImage,
    queue: Mutex<Queue>,
    changed: Condvar,
    data_bytes: AtomicU64,
    wire_bytes: AtomicU64,
}

/// Which pages are to be sent, and which next.
struct Queue {
    /// A bit for each page.
    waiting: Vec<u64>,
    /// The page to look at next.
    next: u64,
    pages: u64,
    /// Pages may go that nobody asks for.
    pushing: bool,
}

impl Queue {
    fn is_waiting(&self, page: u64) -> bool {
        self.waiting[(page / 64) as usize] & 1 << (page % 64) != 0
    }

    fn set(&mut self, page: u64, waits: bool) {
        let bit = 1 << (page % 64);
        let word = &mut self.waiting[(page / 64) as usize];
        *word = if waits { *word | bit } else { *word & !bit };
    }

    /// The next run of pages, which wait no longer.
    fn take(&mut self) -> Option<(u64, u64)> {
        let first = self.find(self.next).or_else(|| self.find(0))?;
        let end = (first + PIECE_PAGES).min(self.pages);
        let count = (first..end).take_while(|page| self.is_waiting(*page)).count() as u64;
        (first..first + count).for_each(|page| self.set(page, false));
        self.next = (first + count) % self.pages;
        Some((first, count))
    }

    fn find(&self, from: u64) -> Option<u64> {
        let mut page = from;
        while page < self.pages {
            let rest = self.waiting[(page / 64) as usize] >> (page % 64);
            if rest != 0 {
                return Some(page + u64::from(rest.trailing_zeros()));
            }
            page = (page / 64 + 1) * 64;
        }
        None
    }
}

impl Offer {
    pub fn new(image: MemoryImage, missing: &[(u64, u64)]) -> Arc<Offer> {
        let pages = image.shape().bytes() / PAGE;
        let queue = Queue { waiting: vec![0; pages.div_ceil(64) as usize], next: 0, pages, pushing: false };
        let offer = Offer {
            image,
            queue: Mutex::new(queue),
            changed: Condvar::new(),
            data_bytes: AtomicU64::new(0),
            wire_bytes: AtomicU64::new(0),
        };
        offer.renew(missing);
        Arc::new(offer)
    }

    /// What the target does not have; nothing else is sent by itself.
    pub fn renew(&self, missing: &[(u64, u64)]) {
        let mut queue = self.lock();
        queue.waiting.fill(0);
        for (offset, bytes) in missing {
            (offset / PAGE..(offset + bytes) / PAGE).for_each(|page| queue.set(page, true));
        }
        self.changed.notify_all();
    }

    pub fn ram_bytes(&self) -> u64 {
        self.image.shape().bytes()
    }

    /// From now on pages go that nobody asks for.
    pub fn push(&self) {
        self.lock().pushing = true;
        self.changed.notify_all();
    }

    /// Memory that was sent, and what that took.
    pub fn sent(&self) -> (u64, u64) {
        (self.data_bytes.load(Ordering::Relaxed), self.wire_bytes.load(Ordering::Relaxed))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next pages to go; waits while there are none. `None` when the session is over.
    fn next(&self, over: &AtomicBool) -> Option<(u64, u64)> {
        let mut queue = self.lock();
        loop {
            if over.load(Ordering::Acquire) {
                return None;
            }
            if let Some(pages) = Some(&mut *queue).filter(|queue| queue.pushing).and_then(Queue::take) {
                return Some(pages);
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn send(&self, to: &mut ParcelWriter<Stripe>, page: u64, count: u64, buffer: &mut Vec<u8>) -> Result<(), Error> {
        buffer.resize((count * PAGE) as usize, 0);
        self.image.read(page * PAGE, buffer)?;
        let is_zero = buffer.iter().all(|byte| *byte == 0);
        let piece = if is_zero { Piece::Zero(count * PAGE) } else { Piece::Data(buffer) };
        let wire = to.put(page * PAGE, piece)?;
        self.data_bytes.fetch_add(count * PAGE, Ordering::Relaxed);
        self.wire_bytes.fetch_add(wire, Ordering::Relaxed);
        Ok(())
    }
}

/// Connections over which an offer goes; ended when dropped.
pub(crate) struct Session {
    calls: Connection,
    stripes: Vec<Connection>,
    offer: Arc<Offer>,
    said: Receiver<Result<Faults, Error>>,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Session {
    /// Opens the streams and answers what the target asks for.
    pub fn start(calls: &Connection, stripes: &[Connection], offer: &Arc<Offer>) -> Result<Session, Error> {
        let open = |connection: &Connection, service, priority| {
            let mut stream = connection.open(service, priority);
            // The peer learns of a stream with the first frame.
            stream.send(&[]).map(|()| stream)
        };
        let faults = open(calls, FAULTS, Priority::High)?;
        let answers = open(calls, PAGES, Priority::High)?;
        let pages = stripes.iter().map(|stripe| open(stripe, PAGES, Priority::Bulk)).collect::<Result<Vec<_>, _>>()?;
        let (say, said) = channel();
        let (calls, stripes) = (calls.clone(), stripes.to_vec());
        let over = Arc::new(AtomicBool::new(false));
        let mut session = Session { calls, stripes, offer: offer.clone(), said, over, threads: Vec::new() };
        session.spawn("page-faults", &say, move |offer, _| serve(offer, faults, answers).map(Some))?;
        for stream in pages {
            session.spawn("pages", &say, move |offer, over| push(offer, stream, over).map(|()| None))?;
        }
        Ok(session)
    }

    fn spawn(
        &mut self,
        name: &str,
        say: &Sender<Result<Faults, Error>>,
        work: impl FnOnce(&Offer, &AtomicBool) -> Result<Option<Faults>, Error> + Send + 'static,
    ) -> Result<(), Error> {
        let (offer, over, say) = (self.offer.clone(), self.over.clone(), say.clone());
        let body = move || {
            if let Some(word) = work(&offer, &over).transpose() {
                // Nobody listens any more when the session is dropped.
                let _ = say.send(word);
            }
        };
        let thread = std::thread::Builder::new().name(name.into()).spawn(body).map_err(Error::Memory)?;
        self.threads.push(thread);
        Ok(())
    }

    /// Waits until the target needs no more pages; `look` is called now and then.
    ///
    /// # Errors
    /// The session is over before.
    pub fn wait(&self, mut look: impl FnMut()) -> Result<Faults, Error> {
        const LOOK: Duration = Duration::from_millis(20);
        let mut looks = 0;
        loop {
            match self.said.recv_timeout(LOOK) {
                Ok(word) => return word,
                Err(RecvTimeoutError::Disconnected) => return Err(Error::Protocol("the target ends without a word")),
                Err(RecvTimeoutError::Timeout) => {}
            }
            look();
            looks += 1;
            if looks * LOOK.as_millis() >= PING_EVERY.as_millis() {
                looks = 0;
                self.calls.ping(Some(PING_LIMIT))?;
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        self.calls.close();
        self.stripes.iter().for_each(Connection::close);
        {
            // Whoever is about to wait has looked already, or will see that it is over.
            let _queue = self.offer.lock();
            self.offer.changed.notify_all();
        }
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// Answers until the target needs no more pages.
fn serve(offer: &Offer, mut faults: Stream, answers: Stream) -> Result<Faults, Error> {
    let mut answers = ParcelWriter::new(Stripe::new(answers), SERIES);
    let (mut waiting, mut buffer) = (Vec::new(), Vec::new());
    loop {
        let bytes = faults.receive(None)?.ok_or(Error::Protocol("the target ends without a word"))?;
        waiting.extend(bytes);
        let mut taken = 0;
        for record in waiting.as_chunks::<RECORD_BYTES>().0 {
            taken += RECORD_BYTES;
            match Record::decode(record, offer.ram_bytes())? {
                Record::Whole(figures) => {
                    // The target sees that it was heard.
                    faults.finish(&[])?;
                    return Ok(figures);
                }
                Record::Fault(offset) => {
                    let page = offset / PAGE;
                    {
                        let mut queue = offer.lock();
                        queue.set(page, false);
                        queue.next = (page + 1) % queue.pages;
                    }
                    // It may be on its way already, behind much else.
                    offer.send(&mut answers, page, 1, &mut buffer)?;
                }
            }
        }
        waiting.drain(..taken);
    }
}

/// Sends what nobody asks for.
fn push(offer: &Offer, stream: Stream, over: &AtomicBool) -> Result<(), Error> {
    let mut to = ParcelWriter::new(Stripe::new(stream), SERIES);
    let mut buffer = Vec::new();
    while let Some((page, count)) = offer.next(over) {
        offer.send(&mut to, page, count, &mut buffer)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(pages: u64, waiting: &[u64]) -> Queue {
        let mut queue = Queue { waiting: vec![0; pages.div_ceil(64) as usize], next: 0, pages, pushing: true };
        waiting.iter().for_each(|page| queue.set(*page, true));
        queue
    }

    #[test]
    fn pages_go_once_each_in_runs_from_where_the_last_was_asked_for() {
        let mut queue = queue(200, &[0, 1, 70, 71, 72, 199]);
        queue.next = 71;
        let taken: Vec<_> = std::iter::from_fn(|| queue.take()).collect();
        assert_eq!(taken, [(71, 2), (199, 1), (0, 2), (70, 1)]);
    }

    #[test]
    fn a_long_run_goes_in_pieces() {
        let mut queue = queue(100, &(0..100).collect::<Vec<_>>());
        let taken: Vec<_> = std::iter::from_fn(|| queue.take()).collect();
        assert_eq!(taken, [(0, 32), (32, 32), (64, 32), (96, 4)]);
    }
}

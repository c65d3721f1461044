//! The way of a console's output out of the machine: a bounded buffer, and a thread that writes it to a sink.
//!
//! Promises:
//! - whoever sends never waits for the sink: [`Output::push`] says when the buffer is full, and [`Room::room`] tells
//!   when it is worth trying again;
//! - several senders may share one output, as the serial line and the virtio console share a terminal: what they send
//!   comes out in the order in which they sent it;
//! - a sink that blocks for ever holds up nothing but this thread, not even the end of the machine.
//!
//! ```text
//!  serial line ──┐
//!                ├─ push ──> buffer ──> writer thread ──> sink
//!  console ──────┘ <── room, after each batch ──┘
//! ```

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::confine;

/// Bytes that wait for the sink before senders are asked to wait.
pub const LIMIT_BYTES: usize = 64 << 10;
/// What senders that do not wait may add before their output is dropped.
const HARD_LIMIT_BYTES: usize = 1 << 20;
/// How long closing waits for the sink to take the rest of the output.
pub const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// How long the writer collects output before it writes: one wake-up for a line of text rather than for a byte.
const LINGER: Duration = Duration::from_micros(300);

/// A sender that wants to know when the buffer has room again.
pub trait Room: Send + Sync {
    /// The buffer was emptied. Called by the writer's thread, which holds no lock.
    fn room(&self);
}

/// A sink behind a buffer.
pub struct Output {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    senders: Mutex<Vec<Weak<dyn Room>>>,
}

#[derive(Default)]
struct State {
    buffer: Vec<u8>,
    /// The writer sleeps until it is told.
    writer_waits: bool,
    /// Bytes are on their way to the sink.
    writing: bool,
    closed: bool,
    /// There is no writer, or it has ended: what is sent is dropped.
    finished: bool,
}

impl Output {
    /// Starts the thread that writes to `sink`.
    pub fn start(mut sink: Box<dyn Write + Send>) -> io::Result<Arc<Output>> {
        let shared = Arc::new(Shared::new(State::default()));
        let body = {
            let shared = shared.clone();
            move || {
                confine::enter(confine::Kind::Output);
                shared.write_out(&mut *sink);
            }
        };
        let writer = std::thread::Builder::new().name("output".into()).spawn(body)?;
        Ok(Arc::new(Output { shared, writer: Mutex::new(Some(writer)) }))
    }

    /// An output that leads nowhere; it needs no thread.
    pub fn nowhere() -> Arc<Output> {
        let state = State { closed: true, finished: true, ..State::default() };
        Arc::new(Output { shared: Arc::new(Shared::new(state)), writer: Mutex::new(None) })
    }

    /// Tells `sender`, as long as it lives, whenever the buffer was emptied.
    pub fn tell(&self, sender: Weak<dyn Room>) {
        let mut senders = lock(&self.shared.senders);
        senders.retain(|sender| sender.strong_count() > 0);
        senders.push(sender);
    }

    /// Queues bytes for the sink; gives whether the buffer is full now. A sender that goes on nevertheless loses what
    /// exceeds 1 MiB.
    pub fn push(&self, bytes: &[u8]) -> bool {
        let mut state = lock(&self.shared.state);
        if state.finished {
            return false;
        }
        let room = HARD_LIMIT_BYTES.saturating_sub(state.buffer.len());
        state.buffer.extend_from_slice(&bytes[..bytes.len().min(room)]);
        let full = state.is_full();
        let wake = std::mem::take(&mut state.writer_waits);
        drop(state);
        if wake {
            self.shared.changed.notify_all();
        }
        full
    }

    /// Whether senders should wait.
    pub fn is_full(&self) -> bool {
        lock(&self.shared.state).is_full()
    }

    /// Waits until the buffer is not full, for [`CLOSE_LIMIT`] at most, since the machine must be able to stop.
    pub fn await_room(&self) {
        let full = |state: &mut State| state.is_full();
        drop(self.shared.changed.wait_timeout_while(lock(&self.shared.state), CLOSE_LIMIT, full));
    }

    /// Waits until all output has reached the sink, for `limit` at most; gives whether it has.
    pub fn flush(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut state = lock(&self.shared.state);
        while !state.buffer.is_empty() || state.writing {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Writes what is buffered and ends the thread. A sink that blocks is left to itself after [`CLOSE_LIMIT`].
    pub fn close(&self) {
        let mut state = lock(&self.shared.state);
        state.closed = true;
        self.shared.changed.notify_all();
        let running = |state: &mut State| !state.finished;
        let waited = self.shared.changed.wait_timeout_while(state, CLOSE_LIMIT, running);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
        let finished = state.finished;
        drop(state);
        let writer = lock(&self.writer).take();
        if let Some(writer) = writer.filter(|_| finished) {
            let _ = writer.join();
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.close();
    }
}

impl State {
    fn is_full(&self) -> bool {
        self.buffer.len() >= LIMIT_BYTES && !self.finished
    }
}

impl Shared {
    fn new(state: State) -> Shared {
        Shared { state: Mutex::new(state), changed: Condvar::new(), senders: Mutex::default() }
    }

    /// The writer thread.
    fn write_out(&self, sink: &mut (dyn Write + Send)) {
        let mut broken = false;
        while let Some(batch) = self.next_batch() {
            if !broken {
                broken = sink.write_all(&batch).and_then(|()| sink.flush()).is_err_and(|error| {
                    tracing::warn!("console output is dropped from here on, its sink failed: {error}");
                    true
                });
            }
            lock(&self.state).writing = false;
            self.changed.notify_all();
            let senders: Vec<_> = lock(&self.senders).iter().filter_map(Weak::upgrade).collect();
            senders.iter().for_each(|sender| sender.room());
        }
        lock(&self.state).finished = true;
        self.changed.notify_all();
    }

    /// Waits for output; `None` when the output is closed and everything was written.
    fn next_batch(&self) -> Option<Vec<u8>> {
        let mut state = lock(&self.state);
        while state.buffer.is_empty() && !state.closed {
            state.writer_waits = true;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.writer_waits = false;
        }
        if !state.closed && state.buffer.len() < LIMIT_BYTES / 2 {
            drop(state);
            std::thread::sleep(LINGER);
            state = lock(&self.state);
        }
        state.writing = !state.buffer.is_empty();
        state.writing.then(|| std::mem::take(&mut state.buffer))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A sink whose bytes the test sees, and that blocks while the test holds its gate.
    #[derive(Clone, Default)]
    pub struct Screen {
        pub bytes: Arc<Mutex<Vec<u8>>>,
        pub gate: Arc<Mutex<()>>,
    }

    impl Screen {
        /// An output that leads to this screen.
        pub fn output(&self) -> Arc<Output> {
            Output::start(Box::new(self.clone())).unwrap()
        }
    }

    impl Output {
        /// Pushes a byte, and waits until the writer has taken it to a sink that blocks.
        pub fn block_writer(&self) {
            self.push(b"#");
            while !lock(&self.shared.state).writing {
                std::thread::yield_now();
            }
        }
    }

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _gate = lock(&self.gate);
            lock(&self.bytes).extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::testing::Screen;
    use super::*;

    #[derive(Default)]
    struct Counter(AtomicU32);

    impl Room for Counter {
        fn room(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn what_two_senders_push_comes_out_in_order() {
        let screen = Screen::default();
        let output = screen.output();
        let other = output.clone();
        for round in 0..1000_u32 {
            output.push(format!("{round} ").as_bytes());
            other.push(b"| ");
        }
        assert!(output.flush(CLOSE_LIMIT));
        let expected: String = (0..1000).map(|round| format!("{round} | ")).collect();
        assert_eq!(String::from_utf8(lock(&screen.bytes).clone()).unwrap(), expected);
    }

    #[test]
    fn a_sink_that_blocks_fills_the_buffer_and_room_is_told() {
        let screen = Screen::default();
        let output = screen.output();
        let sender = Arc::new(Counter::default());
        let told: Weak<dyn Room> = Arc::downgrade(&(sender.clone() as Arc<dyn Room>));
        output.tell(told);
        let gate = lock(&screen.gate);
        let mut sent = 0;
        while !output.push(&[b'x'; 4096]) {
            sent += 4096;
            assert!(sent < HARD_LIMIT_BYTES, "the buffer is never full");
        }
        assert!(output.is_full());
        drop(gate);
        assert!(output.flush(CLOSE_LIMIT));
        output.close();
        assert_eq!(lock(&screen.bytes).len(), sent + 4096);
        assert!(sender.0.load(Ordering::SeqCst) >= 1);
    }

    #[test]
    fn a_sender_that_does_not_wait_is_bounded() {
        let screen = Screen::default();
        let output = screen.output();
        let gate = lock(&screen.gate);
        for _ in 0..4 * HARD_LIMIT_BYTES / 65536 {
            output.push(&[b'x'; 65536]);
        }
        drop(gate);
        output.close();
        // The writer may have taken one full buffer before the sink blocked.
        assert!(lock(&screen.bytes).len() <= 2 * HARD_LIMIT_BYTES);
    }

    #[test]
    fn an_output_to_nowhere_is_never_full_and_closes_at_once() {
        let output = Output::nowhere();
        assert!(!output.push(&[0; 2 * LIMIT_BYTES]));
        assert!(output.flush(Duration::ZERO));
        output.close();
    }
}

//! Somebody outside who counts along with the guest, on one connection.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::LONG;
use super::hosts::{GUEST, Network, PORT};

/// What has been counted; each number was said by the guest, and is one more than the one before.
pub struct Oracle {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    count: AtomicU64,
    silence_us: AtomicU64,
    stop: AtomicBool,
    /// What went wrong.
    wrong: Mutex<Option<String>>,
}

/// What an oracle has seen.
#[derive(Debug)]
#[expect(dead_code, reason = "is printed")]
pub struct Seen {
    count: u64,
    longest_silence: Duration,
}

impl Oracle {
    pub fn start(network: &Network) -> Oracle {
        let shared = Arc::new(Shared::default());
        let namespace = File::open(format!("/run/netns/{}", network.switch())).unwrap();
        let body = {
            let shared = shared.clone();
            move || {
                // Of this thread alone.
                let kind = Some(rustix::thread::LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).unwrap();
                if let Err(error) = shared.count_along() {
                    *shared.wrong.lock().unwrap() = Some(error);
                }
            }
        };
        Oracle { shared, thread: Some(std::thread::spawn(body)) }
    }

    pub fn count(&self) -> u64 {
        self.shared.count.load(Ordering::Acquire)
    }

    pub fn longest_silence(&self) -> Duration {
        Duration::from_micros(self.shared.silence_us.load(Ordering::Acquire))
    }

    /// Nothing has gone wrong.
    #[track_caller]
    pub fn check(&self) {
        if let Some(wrong) = &*self.shared.wrong.lock().unwrap() {
            panic!("{wrong}");
        }
    }

    #[track_caller]
    pub fn wait_for(&self, count: u64) {
        let started = Instant::now();
        while self.count() < count {
            self.check();
            assert!(started.elapsed() < LONG, "at {}", self.count());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn stop(mut self) -> Seen {
        self.shared.stop.store(true, Ordering::Release);
        self.thread.take().unwrap().join().unwrap();
        self.check();
        Seen { count: self.count(), longest_silence: self.longest_silence() }
    }
}

impl Shared {
    fn count_along(&self) -> Result<(), String> {
        let failed = |what: &str, error: std::io::Error| format!("{what} after {:?}: {error}", self.count);
        let started = Instant::now();
        let mut stream = loop {
            match TcpStream::connect((GUEST, PORT)) {
                Ok(stream) => break stream,
                Err(error) if started.elapsed() > LONG => return Err(failed("no connection", error)),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        stream.set_read_timeout(Some(LONG)).map_err(|error| failed("no time limit", error))?;
        let mut lines = BufReader::new(stream.try_clone().map_err(|error| failed("no reader", error))?).lines();
        let mut last = Instant::now();
        while !self.stop.load(Ordering::Acquire) {
            stream.write_all(b"count\n").map_err(|error| failed("the connection ended", error))?;
            let line = lines.next().ok_or("the connection was closed")?.map_err(|error| failed("no answer", error))?;
            let number: u64 = line.trim().parse().map_err(|_| format!("{line:?} is no count"))?;
            let before = self.count.load(Ordering::Acquire);
            if number != before + 1 {
                return Err(format!("{number} follows {before}: counts were lost, or counted twice"));
            }
            self.count.store(number, Ordering::Release);
            self.silence_us.fetch_max(last.elapsed().as_micros() as u64, Ordering::AcqRel);
            last = Instant::now();
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

//! Tells whoever waits how far long work has come.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Receives the progress of one piece of work. Calls come from the thread that works, steps in order, counts within a
/// step never falling.
pub trait Progress {
    /// A new step begins; `text` is a short phrase such as `compile the minimal kernel`.
    fn step(&mut self, text: &str);
    /// `done` units of the step are finished, out of about `total` when that is known; `done` may pass an estimate.
    fn count(&mut self, done: u64, total: Option<u64>);
    /// The work has ended, well or badly; nothing follows.
    fn finish(&mut self);
}

/// Says nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn step(&mut self, _text: &str) {}
    fn count(&mut self, _done: u64, _total: Option<u64>) {}
    fn finish(&mut self) {}
}

/// One line on the standard error stream, rewritten in place; nothing at all when that stream is no terminal.
#[derive(Debug)]
pub struct Terminal {
    shown: bool,
    text: String,
    start: Instant,
    last_drawn: Option<Instant>,
}

impl Terminal {
    /// How often a count is drawn at most.
    const INTERVAL: Duration = Duration::from_millis(100);

    /// For the standard error stream of this process.
    pub fn new() -> Self {
        let shown = std::io::stderr().is_terminal();
        Terminal { shown, text: String::new(), start: Instant::now(), last_drawn: None }
    }

    fn draw(&mut self, count: &str) {
        if self.shown {
            let seconds = self.start.elapsed().as_secs();
            // A terminal that went away is no reason to stop the work.
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K{}{count} ({seconds} s)", self.text);
            self.last_drawn = Some(Instant::now());
        }
    }

    fn end_line(&mut self) {
        if self.shown && self.last_drawn.is_some() {
            self.draw("");
            let _ = writeln!(std::io::stderr().lock());
        }
        self.last_drawn = None;
    }
}

impl Default for Terminal {
    fn default() -> Self {
        Terminal::new()
    }
}

impl Progress for Terminal {
    fn step(&mut self, text: &str) {
        self.end_line();
        self.text = text.to_owned();
        self.start = Instant::now();
        self.draw("");
    }

    fn count(&mut self, done: u64, total: Option<u64>) {
        if self.last_drawn.is_some_and(|last| last.elapsed() < Self::INTERVAL) {
            return;
        }
        let count = match total {
            // An estimate that was too low must not show more than everything, nor the end before the end.
            Some(total) if total > 0 => format!(": {}%, {done} objects", (done * 100 / total).min(99)),
            _ => format!(": {done}"),
        };
        self.draw(&count);
    }

    fn finish(&mut self) {
        self.end_line();
    }
}

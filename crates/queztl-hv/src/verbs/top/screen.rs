//! The terminal as a screen: an alternate one, so that what was there before comes back, and only lines that changed are
//! written.

use std::io::Write;

use rustix::stdio::stdout;

use crate::run::terminal::{self, RawMode};

/// Alternate screen, no cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// The screen, until dropped.
#[derive(Debug)]
pub struct Screen {
    /// Given back after the screen.
    _raw: RawMode,
    shown: Vec<String>,
}

impl Screen {
    /// `None` where there is no terminal on both sides.
    pub fn enter() -> Option<Screen> {
        if !rustix::termios::isatty(stdout()) {
            return None;
        }
        let raw = RawMode::enter()?;
        terminal::restore_on_panic();
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            write(LEAVE);
            report(info);
        }));
        write(ENTER);
        Some(Screen { _raw: raw, shown: Vec::new() })
    }

    /// Makes the next frame write all lines: the terminal has lost what it showed.
    pub fn forget(&mut self) {
        self.shown.clear();
        write("\x1b[2J");
    }

    /// Shows these lines, cut to the terminal.
    pub fn show(&mut self, lines: &[String], columns: usize, rows: usize) {
        let lines: Vec<String> = lines.iter().take(rows).map(|line| line.chars().take(columns).collect()).collect();
        write(&changes(&self.shown, &lines));
        self.shown = lines;
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        write(LEAVE);
    }
}

/// What makes one frame out of another.
fn changes(before: &[String], now: &[String]) -> String {
    let mut text = String::new();
    for (row, line) in now.iter().enumerate() {
        if before.get(row) != Some(line) {
            text += &format!("\x1b[{};1H{line}\x1b[K", row + 1);
        }
    }
    if before.len() > now.len() {
        text += &format!("\x1b[{};1H\x1b[J", now.len() + 1);
    }
    text
}

fn write(text: &str) {
    let mut out = std::io::stdout().lock();
    // A terminal that is gone shows nothing; the signal that says so ends this process.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn only_lines_that_changed_are_written() {
        assert_eq!(changes(&lines("a\nb\nc"), &lines("a\nB\nc")), "\x1b[2;1HB\x1b[K");
        assert_eq!(changes(&lines("a\nb"), &lines("a\nb")), "");
    }

    #[test]
    fn lines_that_are_no_more_are_cleared() {
        assert_eq!(changes(&lines("a\nb\nc"), &lines("a")), "\x1b[2;1H\x1b[J");
    }
}

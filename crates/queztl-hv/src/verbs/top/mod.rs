//! `top`: all machines in a live table.
//!
//! ```text
//! every few seconds: machines + figures ──> rates since the last look ──> rows, sorted ──> lines ──> changed lines only
//! keys: sort, order, leave
//! ```
//! Without a terminal each look is printed as a table of its own, for `-n`.

mod figures;
mod screen;

use clap::ValueEnum;
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc::Receiver;

use super::console::listen;
use super::keyboard;
use super::session::{Session, failure};
use crate::cli::TopArgs;
use crate::report::Failure;
use crate::run::terminal;
use crate::status::Status;
use figures::{Figures, Look};
use screen::Screen;

/// What rows are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Sort {
    /// Processor time
    #[default]
    Cpu,
    /// Memory
    Memory,
    /// Bytes read from disks
    Reads,
    /// Bytes written to disks
    Writes,
    /// Name
    Name,
    /// State
    State,
}

/// How the table is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct View {
    sort: Sort,
    inverted: bool,
}

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Show(View),
    Leave,
    Nothing,
}

impl View {
    fn press(self, key: u8) -> Key {
        let sorted = |sort| Key::Show(View { sort, ..self });
        match key.to_ascii_lowercase() {
            b'c' => sorted(Sort::Cpu),
            b'm' => sorted(Sort::Memory),
            b'r' => sorted(Sort::Reads),
            b'w' => sorted(Sort::Writes),
            b'n' => sorted(Sort::Name),
            b's' => sorted(Sort::State),
            b'i' => Key::Show(View { inverted: !self.inverted, ..self }),
            // Ctrl-C and Ctrl-D arrive as keys in raw mode.
            b'q' | 0x03 | 0x04 => Key::Leave,
            _ => Key::Nothing,
        }
    }
}

/// Shows the table until the user leaves.
pub async fn top(session: &Session, args: &TopArgs) -> Result<Status, Failure> {
    let view = View { sort: args.sort, inverted: false };
    match Screen::enter() {
        Some(screen) => live(session, args, view, screen).await,
        None => printed(session, args, view).await,
    }
}

async fn look(session: &Session) -> Result<Look, Failure> {
    let (vms, metrics) = tokio::join!(session.client.vms(), session.client.metrics());
    Ok(Look::new(vms.map_err(failure)?, metrics.map_err(failure)?))
}

/// Without a terminal: one table after another, one only unless more are asked for.
async fn printed(session: &Session, args: &TopArgs, view: View) -> Result<Status, Failure> {
    let mut figures = Figures::default();
    // Rates need two looks.
    figures.take(look(session).await?);
    for _ in 0..args.iterations.unwrap_or(1) {
        tokio::time::sleep(args.delay).await;
        figures.take(look(session).await?);
        if !crate::try_print(&(figures.lines(view, None).join("\n") + "\n")) {
            break;
        }
    }
    Ok(Status::Success)
}

async fn live(session: &Session, args: &TopArgs, mut view: View, mut screen: Screen) -> Result<Status, Failure> {
    let mut keys = keyboard::read()?;
    let mut resized = listen(SignalKind::window_change())?;
    let mut terminated = listen(SignalKind::terminate())?;
    let mut figures = Figures::default();
    let mut looks = 0;
    let mut clock = tokio::time::interval(args.delay);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = clock.tick() => {
                figures.take(look(session).await?);
                looks += 1;
                // The first one has no rates yet.
                if args.iterations.is_some_and(|most| looks > most) {
                    return Ok(Status::Success);
                }
            }
            pressed = press(&mut keys, view) => match pressed {
                Key::Show(other) => view = other,
                Key::Leave => return Ok(Status::Success),
                Key::Nothing => continue,
            },
            _ = resized.recv() => screen.forget(),
            _ = terminated.recv() => return Ok(Status::Success),
        }
        let (columns, rows) = terminal::size().unwrap_or((80, 24));
        screen.show(&figures.lines(view, Some(rows.into())), columns.into(), rows.into());
    }
}

/// The effect of the keys that come next.
async fn press(keys: &mut Receiver<Vec<u8>>, view: View) -> Key {
    let Some(bytes) = keys.recv().await else {
        return Key::Leave;
    };
    // An arrow key and its like is a sequence that begins with ESC; its letters are no keys of their own.
    if bytes.first() == Some(&0x1b) {
        return Key::Nothing;
    }
    let mut now = view;
    for byte in bytes {
        match now.press(byte) {
            Key::Show(other) => now = other,
            Key::Leave => return Key::Leave,
            Key::Nothing => {}
        }
    }
    if now == view { Key::Nothing } else { Key::Show(now) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_turn_round_and_leave() {
        let view = View { sort: Sort::Cpu, inverted: false };
        assert_eq!(view.press(b'm'), Key::Show(View { sort: Sort::Memory, inverted: false }));
        assert_eq!(view.press(b'I'), Key::Show(View { sort: Sort::Cpu, inverted: true }));
        assert_eq!([b'q', 0x03].map(|key| view.press(key)), [Key::Leave; 2]);
        assert_eq!(view.press(b'z'), Key::Nothing);
    }
}

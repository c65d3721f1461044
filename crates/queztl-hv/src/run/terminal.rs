//! The terminal in raw mode, and its restoration whatever happens.

use std::sync::Mutex;

use rustix::process::getpgrp;
use rustix::stdio::{stdin, stdout};
use rustix::termios::{OptionalActions, OutputModes, Termios, isatty, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr};

use crate::status::Status;

/// The terminal's modes before raw mode; present while it is raw.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Whether standard input is a terminal.
pub fn stdin_is_terminal() -> bool {
    isatty(stdin())
}

/// Columns and rows of the terminal, if there is one that knows.
pub fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(stdout()).or_else(|_| tcgetwinsize(stdin())).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// Raw mode on standard input until dropped.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Enters raw mode; `None` when standard input is no terminal or belongs to another job (changing it would stop this
    /// one).
    pub fn enter() -> Option<RawMode> {
        if !stdin_is_terminal() || tcgetpgrp(stdin()).ok() != Some(getpgrp()) {
            return None;
        }
        let modes = tcgetattr(stdin()).ok()?;
        let mut saved = lock();
        set_raw(&modes)?;
        *saved = Some(modes);
        Some(RawMode(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal its own modes back, if it is raw. Can be called from anywhere, any number of times.
pub fn restore() {
    if let Some(modes) = lock().take() {
        // Nothing is left to do for a terminal that is gone. `Now`: waiting for output to drain could block for ever.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &modes);
    }
}

/// Enters raw mode again after somebody else has had the terminal (the shell, while this job was stopped).
pub fn renew() {
    if let Some(modes) = &*lock() {
        let _ = set_raw(modes);
    }
}

/// Makes a panic in any thread restore the terminal, say one line and end the process: a machine with a thread missing
/// must not run on.
pub fn restore_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        restore();
        let place = info.location().map_or_else(String::new, |at| format!(" at {}:{}", at.file(), at.line()));
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
        let reason = text.unwrap_or("unknown reason").replace('\n', " ");
        eprintln!("queztl-hv: internal error{place}: {reason}; please report it");
        std::process::exit(Status::Failure.code().into());
    }));
}

fn set_raw(modes: &Termios) -> Option<()> {
    let mut raw = modes.clone();
    raw.make_raw();
    // Output processing stays as it is, so that our own messages start their lines at the left.
    raw.output_modes |= modes.output_modes & (OutputModes::OPOST | OutputModes::ONLCR);
    tcsetattr(stdin(), OptionalActions::Now, &raw).ok()
}

fn lock() -> std::sync::MutexGuard<'static, Option<Termios>> {
    SAVED.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

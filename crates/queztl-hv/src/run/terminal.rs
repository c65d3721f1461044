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

/// The same from a signal handler, which may have interrupted anything: without waiting for a thread that is at it.
pub fn restore_from_handler() {
    if let Ok(saved) = SAVED.try_lock()
        && let Some(modes) = saved.as_ref()
    {
        let _ = tcsetattr(stdin(), OptionalActions::Now, modes);
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::LocalModes;

    use super::*;

    /// Set in the process that is to panic.
    const PANIC: &str = "QUEZTL_TEST_PANIC";

    /// Enters raw mode, says so, waits for a key and panics in a thread, as a device's thread might.
    fn enter_and_panic() {
        restore_on_panic();
        let raw = RawMode::enter();
        println!("raw: {}\r", raw.is_some());
        let _ = std::io::stdin().read(&mut [0]);
        let _ = std::thread::spawn(|| panic!("on purpose")).join();
    }

    #[test]
    fn a_panic_in_any_thread_restores_the_terminal() {
        if std::env::var_os(PANIC).is_some() {
            return enter_and_panic();
        }
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).and_then(|()| unlockpt(&master)).unwrap();
        let path = ptsname(&master, Vec::new()).unwrap();
        let slave = File::options().read(true).write(true).open(path.to_str().unwrap()).unwrap();
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        let mut command = Command::new(std::env::current_exe().unwrap());
        let name =
            format!("{}::a_panic_in_any_thread_restores_the_terminal", module_path!().split_once("::").unwrap().1);
        command.args(["--exact", &name, "--nocapture"]).env(PANIC, "1");
        command.stdin(stdio()).stdout(stdio()).stderr(stdio());
        // SAFETY: both calls are async-signal-safe; they make the terminal the child's own.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                Ok(rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?)
            })
        };
        let mut child = command.spawn().unwrap();
        let mut master = BufReader::new(File::from(master));
        let mut shown = Vec::new();
        while !shown.ends_with(b"raw: true\r\r\n") && !shown.ends_with(b"raw: true\r\n") {
            assert_ne!(master.read_until(b'\n', &mut shown).unwrap(), 0, "{}", String::from_utf8_lossy(&shown));
        }
        let is_raw = || !tcgetattr(&slave).unwrap().local_modes.contains(LocalModes::ICANON);
        assert!(is_raw());

        master.get_mut().write_all(b"k").unwrap();

        assert_eq!(child.wait().unwrap().code(), Some(Status::Failure.code().into()));
        assert!(!is_raw());
    }
}

//! Signals, taken one after another by a thread of their own: no code runs in signal handlers. While there are none, the
//! thread gives back, once, the memory that only the start needed.

use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, PoisonError};

use queztl_vmm::confine;

use super::engine::Handle;
use super::terminal;
use super::trim::StartUp;
use crate::status::Status;

const END: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];
/// How long after the start, or a signal soon after it, memory is given back.
const START_UP: libc::timespec = libc::timespec { tv_sec: 1, tv_nsec: 0 };
const WATCHED: [libc::c_int; 2] = [libc::SIGWINCH, libc::SIGCONT];

/// The signals of this process. From [`Signals::listen`] on, the first that asks for an end stops the machine, once there is
/// one, and a second one ends the process at once.
pub struct Signals {
    machine: Arc<Mutex<Option<Handle>>>,
}

impl Signals {
    /// Holds the signals back. Called before any other thread exists, since threads inherit which signals are blocked.
    ///
    /// A write beyond the user's limit on the size of files is an error of that write (setrlimit(2), RLIMIT_FSIZE), which the
    /// guest hears of as one of its disk; without this it would end the process by a signal.
    pub fn block() -> Signals {
        // SAFETY: no handler is set: the signal is ignored.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        let set = signal_set();
        // SAFETY: `set` is initialised, and no old set is asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
        Signals { machine: Arc::default() }
    }

    /// Starts the thread that takes the signals.
    pub fn listen(&self) {
        let machine = self.machine.clone();
        let thread = std::thread::Builder::new().name("signals".into());
        let start_up = StartUp::note();
        let body = move || {
            confine::enter(confine::Kind::Signals);
            wait(&signal_set(), &machine, start_up);
        };
        if let Err(error) = thread.spawn(body) {
            tracing::warn!(%error, "no thread for signals: only SIGKILL will stop this process");
        }
    }

    /// Names the machine that the signals are for.
    pub fn watch(&self, machine: Handle) {
        *self.machine.lock().unwrap_or_else(PoisonError::into_inner) = Some(machine);
    }
}

fn signal_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set, sigaddset adds valid signal numbers to it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in END.into_iter().chain(WATCHED) {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

/// The next signal; `None` if there is none within `limit`.
fn next(set: &libc::sigset_t, limit: Option<&libc::timespec>) -> Option<libc::c_int> {
    loop {
        let limit = limit.map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the pointers are valid, or null where that is allowed; the set's signals are blocked in every thread.
        let signal = unsafe { libc::sigtimedwait(set, std::ptr::null_mut(), limit) };
        if signal > 0 {
            return Some(signal);
        }
        if !limit.is_null() && std::io::Error::last_os_error().kind() == std::io::ErrorKind::WouldBlock {
            return None;
        }
    }
}

fn wait(set: &libc::sigset_t, machine: &Mutex<Option<Handle>>, start_up: StartUp) {
    let mut stopping = false;
    let mut start_up = Some(start_up);
    loop {
        let Some(signal) = next(set, start_up.as_ref().map(|_| &START_UP)) else {
            start_up.take().into_iter().for_each(StartUp::give_back);
            continue;
        };
        let machine = machine.lock().unwrap_or_else(PoisonError::into_inner);
        match (signal, machine.as_ref()) {
            (libc::SIGCONT, _) => terminal::renew(),
            (libc::SIGWINCH, Some(machine)) => {
                if let Some((columns, rows)) = terminal::size() {
                    machine.resize(columns, rows);
                }
            }
            (libc::SIGWINCH, None) => {}
            (_, Some(machine)) if !stopping => {
                stopping = true;
                machine.stop();
            }
            _ => {
                terminal::restore();
                std::process::exit(Status::Stopped.code().into());
            }
        }
    }
}

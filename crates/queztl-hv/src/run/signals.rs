//! Signals, taken one after another by a thread of their own: no code runs in signal handlers.

use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, PoisonError};

use super::engine::Handle;
use super::terminal;
use crate::status::Status;

const END: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];
const WATCHED: [libc::c_int; 2] = [libc::SIGWINCH, libc::SIGCONT];

/// The signals of this process. From [`Signals::block`] on, the first that asks for an end stops the machine, once there is
/// one, and a second one ends the process at once.
pub struct Signals {
    machine: Arc<Mutex<Option<Handle>>>,
}

impl Signals {
    /// Takes the signals over. Called before any other thread exists, since threads inherit which signals are blocked.
    pub fn block() -> Signals {
        let set = signal_set();
        // SAFETY: `set` is initialised, and no old set is asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
        let machine = Arc::new(Mutex::new(None));
        let watched = machine.clone();
        let thread = std::thread::Builder::new().name("signals".into());
        if let Err(error) = thread.spawn(move || wait(&set, &watched)) {
            tracing::warn!(%error, "no thread for signals: only SIGKILL will stop this process");
        }
        Signals { machine }
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

fn wait(set: &libc::sigset_t, machine: &Mutex<Option<Handle>>) {
    let mut stopping = false;
    loop {
        let mut signal = 0;
        // SAFETY: both pointers are valid; the set's signals are blocked in every thread.
        if unsafe { libc::sigwait(set, &mut signal) } != 0 {
            return;
        }
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

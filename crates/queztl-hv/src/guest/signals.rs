//! Signals to this process become signals to the command in the guest; a change of the terminal's size goes there too.

use std::mem::MaybeUninit;

use queztl_agent_client::{Controller, Size};

use crate::run::terminal;

const FORWARDED: [libc::c_int; 6] =
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];

/// The signals that go to the command once it runs; until then they do what they always do.
pub struct Signals {
    set: libc::sigset_t,
    before: libc::sigset_t,
}

impl Signals {
    pub fn new() -> Signals {
        let mut set = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the set, sigaddset adds valid numbers, pthread_sigmask fills `before`.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in FORWARDED.into_iter().chain([libc::SIGWINCH, libc::SIGCONT]) {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), before.as_mut_ptr());
            Signals { set: set.assume_init(), before: before.assume_init() }
        }
    }

    /// From now on they go to the command. Called from the thread that starts all others, before it does: they inherit
    /// which signals are blocked.
    pub fn forward(&self, controller: Controller) {
        let set = self.set;
        // SAFETY: the sets are initialised, and no old one is asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
        let thread = std::thread::Builder::new().name("signals".into());
        if let Err(error) = thread.spawn(move || pass_on(&set, &controller)) {
            tracing::warn!(%error, "no thread for signals: they do not reach the command");
            // SAFETY: as above.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
        }
    }
}

/// Runs until the process ends.
fn pass_on(set: &libc::sigset_t, controller: &Controller) {
    loop {
        let mut signal = 0;
        // SAFETY: both pointers are valid; the set's signals are blocked in every thread that is started after them.
        if unsafe { libc::sigwait(set, &mut signal) } != 0 {
            return;
        }
        // A connection that is gone ends the process where its messages are read.
        let _ = match (signal, u8::try_from(signal)) {
            (libc::SIGCONT, _) => {
                terminal::renew();
                Ok(())
            }
            (libc::SIGWINCH, _) => match terminal::size() {
                Some((columns, rows)) => controller.resize(Size { rows, columns }),
                None => Ok(()),
            },
            (_, Ok(number)) => controller.signal(number),
            (_, Err(_)) => Ok(()),
        };
    }
}

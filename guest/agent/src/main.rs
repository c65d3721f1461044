//! `queztl-agent`: listens on the agent's vsock port and serves the host. See the library.

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use queztl_agent_protocol::PORT;
use queztl_guest_agent::machine::{self, Linux};
use queztl_guest_agent::{refuse, serve, vsock};

/// Most sessions at once.
const MAX_SESSIONS: usize = 128;
/// A session keeps its buffers on the heap; copying a tree of 128 directories is what needs the most stack.
const STACK_BYTES: usize = 512 << 10;

fn main() -> ExitCode {
    let listener = match vsock::listen(PORT) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("queztl-agent: cannot listen on vsock port {PORT}: {error}");
            return ExitCode::FAILURE;
        }
    };
    // The agent is what mends a guest that ran out of memory.
    machine::protect_from_oom();
    let sessions = Arc::new(AtomicUsize::new(0));
    loop {
        match vsock::accept(&listener) {
            Ok(Some(stream)) => start(stream, &sessions),
            Ok(None) => {}
            Err(error) => {
                // Too many descriptors or too little memory: sessions that end give them back.
                eprintln!("queztl-agent: cannot accept a connection: {error}");
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
    }
}

fn start(stream: OwnedFd, sessions: &Arc<AtomicUsize>) {
    if sessions.fetch_add(1, Ordering::Relaxed) >= MAX_SESSIONS {
        refuse(stream);
        sessions.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let count = sessions.clone();
    let body = move || {
        serve(stream, &Linux);
        count.fetch_sub(1, Ordering::Relaxed);
    };
    if let Err(error) = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(body) {
        eprintln!("queztl-agent: cannot start a session: {error}");
        sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

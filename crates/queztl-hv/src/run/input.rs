//! Standard input, on its way to the guest's console.
//!
//! The guest takes input as fast as its serial port does; what it has not taken yet stays in the terminal or pipe, so
//! that nothing is lost and nothing piles up here. The end of input is not the end of the machine.

use std::io::{ErrorKind, Read};
use std::time::Duration;

use queztl_vmm::confine;

use super::engine::Handle;
use super::escape::{EscapeFilter, Request};

/// How long to wait for a guest that takes no input at the moment.
const RETRY: Duration = Duration::from_millis(5);

const KEYS: &str = "\n\
    Ctrl-A x       stop the virtual machine\n\
    Ctrl-A Ctrl-A  send one Ctrl-A to the guest (Ctrl-A a as well)\n\
    Ctrl-A h       list these keys";

/// Starts the thread that reads standard input. It is left behind in its read when the process ends.
pub fn start(handle: Handle, with_escapes: bool) {
    let thread = std::thread::Builder::new().name("input".into());
    let spawned = thread.spawn(move || {
        confine::enter(confine::Kind::Input);
        forward(std::io::stdin().lock(), &handle, with_escapes);
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "no thread for standard input: the guest gets none");
    }
}

fn forward(mut stdin: impl Read, handle: &Handle, with_escapes: bool) {
    let mut buffer = [0; 4096];
    let mut filter = EscapeFilter::ending_with(b'x');
    loop {
        let bytes = match stdin.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => &buffer[..count],
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => {
                tracing::debug!(%error, "standard input ended");
                return;
            }
        };
        if with_escapes {
            forward_filtered(bytes, &mut filter, handle);
        } else {
            deliver(bytes, handle);
        }
    }
}

fn forward_filtered(mut bytes: &[u8], filter: &mut EscapeFilter, handle: &Handle) {
    while !bytes.is_empty() {
        let mut guest = Vec::with_capacity(bytes.len());
        let (used, request) = filter.filter(bytes, &mut guest);
        // A stop must work although the guest takes no input any more.
        if request == Some(Request::End) {
            handle.stop();
            return;
        }
        deliver(&guest, handle);
        if request == Some(Request::Help) {
            eprintln!("{KEYS}");
        }
        bytes = &bytes[used..];
    }
}

fn deliver(mut bytes: &[u8], handle: &Handle) {
    while !bytes.is_empty() {
        match handle.input(bytes) {
            0 => std::thread::sleep(RETRY),
            taken => bytes = &bytes[taken.min(bytes.len())..],
        }
    }
}

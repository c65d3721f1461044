//! Standard input for a runtime: a thread that reads, since a read cannot be taken back.

use std::io::{ErrorKind, Read};

use tokio::sync::mpsc::{Receiver, channel};

use crate::report::Failure;

/// What is read, as it comes; ends with the input. At most a few reads are ahead of who takes them.
///
/// # Errors
/// The host has no thread left.
pub fn read() -> Result<Receiver<Vec<u8>>, Failure> {
    let (sender, receiver) = channel(4);
    let thread = std::thread::Builder::new().name("input".into());
    let spawned = thread.spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = [0; 16 << 10];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) if sender.blocking_send(buffer[..count].to_vec()).is_err() => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::debug!(%error, "standard input ended");
                    return;
                }
            }
        }
    });
    spawned.map_err(|error| Failure::host(format!("no thread for standard input: {error}")))?;
    Ok(receiver)
}

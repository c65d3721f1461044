//! Copying, on the guest's side.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use queztl_agent_files::{Error, Policy, Receiver, send};
use queztl_agent_protocol::{FaultCode, Message, stream};

use crate::channel::{Broken, Channel};

/// Why a tree could not be sent.
enum Failure {
    Here(Error),
    Connection(Broken),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Here(error)
    }
}

fn path_of(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// Relative paths begin at root's home, as those of commands do.
fn absolute(path: &Path) -> std::path::PathBuf {
    Path::new("/root").join(path)
}

/// Writes the tree that the host sends. After a failure the rest of it is read and dropped.
pub fn take(channel: &mut Channel, path: &[u8], name: &[u8]) -> Result<(), Broken> {
    let receiver = Receiver::new(&absolute(path_of(path)), OsStr::from_bytes(name), Policy::TRUSTING);
    let mut receiver = Some(receiver);
    loop {
        let result = match (channel.receive()?, receiver.as_mut()) {
            (Message::Entry(entry), Some(receiver)) => receiver.entry(&entry),
            (Message::Data { stream: stream::FILE, bytes }, Some(receiver)) => receiver.data(&bytes),
            (Message::End { stream: stream::FILE }, _) => break,
            (Message::Entry(_) | Message::Data { .. }, _) => Ok(()),
            _ => return Err(Broken::Protocol("a message that is no part of a tree".into())),
        };
        if let Err(error) = result {
            receiver = None;
            channel.fail(FaultCode::File, format_args!("in the guest: {error}"))?;
        }
    }
    match receiver.map(Receiver::finish) {
        Some(Ok(summary)) => channel.send(&Message::Done(summary)),
        Some(Err(error)) => channel.fail(FaultCode::File, format_args!("in the guest: {error}")),
        None => Ok(()),
    }
}

/// Sends the tree at `path`.
pub fn give(channel: &mut Channel, path: &[u8]) -> Result<(), Broken> {
    let sent = send(&absolute(path_of(path)), |message| channel.send(&message).map_err(Failure::Connection));
    match sent {
        Ok(summary) => {
            channel.send(&Message::End { stream: stream::FILE })?;
            channel.send(&Message::Done(summary))
        }
        Err(Failure::Here(error)) => channel.fail(FaultCode::File, format_args!("in the guest: {error}")),
        Err(Failure::Connection(broken)) => Err(broken),
    }
}

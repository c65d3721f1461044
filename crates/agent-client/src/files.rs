//! Copying, on the host's side.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use queztl_agent_files::{Policy, Receiver, send};
use queztl_agent_protocol::{Fault, Message, Summary, features, stream};

use crate::{Agent, Error};

/// The last component of a path in the guest: what a copy of it is called in a directory. Empty for `/` and `..`.
pub fn guest_file_name(path: &OsStr) -> &OsStr {
    Path::new(path).file_name().unwrap_or_default()
}

/// Why the sending of a tree stopped.
enum Stop {
    /// The guest refused, in the middle.
    Refused(Fault),
    Failed(Error),
}

impl From<queztl_agent_files::Error> for Stop {
    fn from(error: queztl_agent_files::Error) -> Stop {
        Stop::Failed(error.into())
    }
}

impl Agent {
    /// Copies the file or directory at `source` into the guest: to `destination`, or into it if it is a directory there.
    /// Relative paths begin at root's home.
    ///
    /// # Errors
    /// [`Error::Files`] for the host's side, [`Error::Guest`] for the other.
    pub fn put(&mut self, source: &Path, destination: &OsStr) -> Result<Summary, Error> {
        self.need(features::FILES)?;
        let name = source.canonicalize().ok().and_then(|path| path.file_name().map(|name| name.as_bytes().to_vec()));
        let request = Message::Put { path: destination.as_bytes().to_vec(), name: name.unwrap_or_default() };
        self.link.sender.send(&request)?;
        let link = &mut self.link;
        let sent = send(source, |message| match link.try_receive().map_err(Stop::Failed)? {
            None => link.sender.send(&message).map_err(Stop::Failed),
            Some(Message::Error(fault)) => Err(Stop::Refused(fault)),
            Some(_) => Err(Stop::Failed(Error::unexpected("an answer before the end of a copy"))),
        });
        // Also after a failure: the guest then knows that no more comes, and removes what is half there.
        let ended = self.link.sender.send(&Message::End { stream: stream::FILE });
        match sent {
            Err(Stop::Refused(fault)) => Err(Error::Guest(fault)),
            Err(Stop::Failed(error)) => {
                // The guest's word on the copy that ended early; what it is does not matter any more.
                if matches!(error, Error::Files(_)) && ended.is_ok() {
                    let _ = self.done();
                }
                Err(error)
            }
            Ok(sent) => {
                ended?;
                let taken = self.done()?;
                if (taken.entries, taken.bytes) != (sent.entries, sent.bytes) {
                    return Err(Error::unexpected("other numbers than it received"));
                }
                Ok(sent)
            }
        }
    }

    /// Copies the file or directory at `source` in the guest to `destination` here, or into it if it is a directory.
    /// `policy` says what is taken from the guest: [`Policy::WARY`] unless there is reason to trust it.
    ///
    /// # Errors
    /// As [`Agent::put`]. The session has ended after an error of this side.
    pub fn get(&mut self, source: &OsStr, destination: &Path, policy: Policy) -> Result<Summary, Error> {
        self.need(features::FILES)?;
        self.link.sender.send(&Message::Get { path: source.as_bytes().to_vec() })?;
        let received = self.take(Receiver::new(destination, guest_file_name(source), policy));
        if matches!(received, Err(Error::Files(_))) {
            // The guest goes on sending; there is no other way to tell it.
            self.link.sender.close();
        }
        received
    }

    fn take(&mut self, mut receiver: Receiver) -> Result<Summary, Error> {
        loop {
            match self.link.receive()? {
                Message::Entry(entry) => receiver.entry(&entry)?,
                Message::Data { stream: stream::FILE, bytes } => receiver.data(&bytes)?,
                Message::End { stream: stream::FILE } => break,
                Message::Error(fault) => return Err(Error::Guest(fault)),
                _ => return Err(Error::unexpected("what is no part of a tree")),
            }
        }
        let sent = self.done()?;
        let mut received = receiver.finish()?;
        received.skipped = received.skipped.saturating_add(sent.skipped);
        Ok(received)
    }
}

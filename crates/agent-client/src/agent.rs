//! A session with an agent.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use queztl_agent_protocol::{Identity, Message, PORT, Shutdown, Summary, VERSION, features};

use crate::connect::connect;
use crate::link::Link;
use crate::{Error, Limits};

/// How long the first connection waits for its greeting; the next one twice as long, and so on. A guest that has just been
/// restored or cloned may forget a connection without a word: its driver learns only then that those it had are gone.
const FIRST_GREETING: Duration = Duration::from_secs(1);

/// A connection to the agent of a guest; one request at a time.
#[derive(Debug)]
pub struct Agent {
    pub(crate) link: Link,
    features: u64,
    next_cookie: u64,
}

impl Agent {
    /// Connects to the agent of the virtual machine whose vsock socket is at `path`.
    ///
    /// # Errors
    /// [`Error::Socket`] within a second when there is no such socket; [`Error::NoAgent`] after [`Limits::connect`].
    pub fn connect(path: &Path, limits: &Limits) -> Result<Agent, Error> {
        let deadline = Instant::now() + limits.connect;
        let missing = || Error::NoAgent { path: path.to_owned(), limit: limits.connect };
        let mut patience = FIRST_GREETING;
        loop {
            let until = deadline.min(Instant::now() + patience);
            let greeted = match connect(path, PORT, until)? {
                Some(stream) => Agent::over(stream, limits.answer, until),
                None => Err(Error::Closed),
            };
            match greeted {
                // The monitor says OK before the guest has agreed; it is the greeting that counts.
                Err(Error::Closed | Error::Silent(_)) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                    patience = patience.saturating_mul(2);
                }
                Err(Error::Closed | Error::Silent(_)) => return Err(missing()),
                result => return result,
            }
        }
    }

    /// A session over a connection that leads to an agent's port already, the greeting within the limit.
    ///
    /// # Errors
    /// [`Error::Guest`] when the agent refuses; [`Error::Silent`], [`Error::Closed`], [`Error::Protocol`].
    pub fn new(stream: UnixStream, answer: Duration) -> Result<Agent, Error> {
        Agent::over(stream, answer, Instant::now() + answer)
    }

    fn over(stream: UnixStream, answer: Duration, deadline: Instant) -> Result<Agent, Error> {
        let mut link = Link::new(stream, answer)?;
        link.sender.send(&Message::Hello { min: VERSION, max: VERSION, features: features::ALL })?;
        match link.receive_until(deadline)?.ok_or(Error::Silent(answer))? {
            Message::Welcome { version: VERSION, features, .. } => Ok(Agent { link, features, next_cookie: 1 }),
            Message::Error(fault) => Err(Error::Guest(fault)),
            _ => Err(Error::unexpected("no welcome")),
        }
    }

    pub(crate) fn need(&self, feature: u64) -> Result<(), Error> {
        if self.features & feature == feature { Ok(()) } else { Err(Error::Unsupported) }
    }

    /// Asks for a sign of life; how long it took.
    ///
    /// # Errors
    /// [`Error::Silent`] and what else ends a connection.
    pub fn ping(&mut self) -> Result<Duration, Error> {
        let cookie = self.next_cookie;
        self.next_cookie = cookie.wrapping_add(1);
        let start = Instant::now();
        self.link.sender.send(&Message::Ping { cookie })?;
        match self.link.receive()? {
            Message::Pong { cookie: same } if same == cookie => Ok(start.elapsed()),
            _ => Err(Error::unexpected("something else than the answer to a ping")),
        }
    }

    /// Gives the guest a host name, clock and entropy, those that are there: what a clone needs, in one call.
    ///
    /// # Errors
    /// [`Error::Guest`] when the guest's kernel refuses.
    pub fn set_identity(&mut self, identity: &Identity) -> Result<(), Error> {
        self.need(features::IDENTITY)?;
        self.link.sender.send(&Message::Identity(identity.clone()))?;
        self.done().map(drop)
    }

    /// Ends the guest: its programs get `grace` between SIGTERM and SIGKILL. The answer means that it has begun.
    ///
    /// # Errors
    /// As [`Agent::ping`].
    pub fn shut_down(&mut self, how: Shutdown, grace: Duration) -> Result<(), Error> {
        self.need(features::SHUTDOWN)?;
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        self.link.sender.send(&Message::Shutdown { how, grace_ms })?;
        self.done().map(drop)
    }

    pub(crate) fn done(&mut self) -> Result<Summary, Error> {
        match self.link.receive()? {
            Message::Done(summary) => Ok(summary),
            Message::Error(fault) => Err(Error::Guest(fault)),
            _ => Err(Error::unexpected("no answer to a request")),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.link.sender.close();
    }
}

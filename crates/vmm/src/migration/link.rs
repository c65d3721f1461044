//! The source's end.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use queztl_guest_memory::{LayerId, MemoryImage};
use queztl_parallel_transfer as transfer;
use queztl_qhp::{Connection, Error as QhpError, Options, Priority, Stream};

use super::Error;
use super::late::{self, Resume, Runs, Switch, Token};
use super::memory::send_image;
use super::offer::{Offer, Session};
use super::wire::{
    self, BEGIN, Begin, DISK, PATIENCE, RESUME, ROUND, RUN, Ready, Round, STRIPE, SWITCH, SYNC, Stripe, decode, refusal,
};

/// How long a target may take to make disks durable.
const SYNC_PATIENCE: Duration = Duration::from_secs(120);

/// Connections to a target.
pub(crate) struct Link {
    calls: Connection,
    stripes: Vec<Connection>,
    sender: transfer::Sender<Stripe>,
}

/// What became of the last round.
#[derive(Debug)]
pub(crate) struct LastRound {
    pub sent: transfer::Sent,
    /// Up to the last byte of memory.
    pub sending: Duration,
    /// From then on to the answer, less what the target took to make the machine.
    pub waiting: Duration,
    pub making: Duration,
}

/// Where the machine is after RUN.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// At the target.
    There,
    /// Here: the target does not run it, and will not.
    Here(Error),
    /// At one of the two: the answer is lost.
    InDoubt(Error),
}

impl Link {
    /// Connects to whoever listens at `socket`, once for calls and once for each stripe. `connected` is given a handle of each
    /// connection before anybody waits on it: shutting that down ends whatever waits.
    pub fn open(socket: &Path, begin: &Begin, connected: impl Fn(UnixStream)) -> Result<Link, Error> {
        let connect = || connect(socket, &connected);
        let calls = connect()?;
        let text = serde_json::to_vec(begin).map_err(|_| Error::Protocol("the beginning cannot be written"))?;
        calls.call(BEGIN, Priority::High, &[&text], Some(PATIENCE)).map_err(refusal)?;
        let stripes = (0..begin.stripes).map(|_| connect()).collect::<Result<Vec<_>, _>>()?;
        let streams = stripes.iter().map(|stripe| Stripe::new(stripe.open(STRIPE, Priority::Bulk)));
        let sender = transfer::Sender::new(streams.collect());
        Ok(Link { calls, stripes, sender })
    }

    /// Brings over what of RAM is newer than `base`, or all that is not zero.
    pub fn round(&mut self, round: u64, image: &MemoryImage, base: Option<LayerId>) -> Result<transfer::Sent, Error> {
        let call = self.announce(Round { round, last: false }, &[])?;
        let sent = send_image(&mut self.sender, round, image, base, |_, _| {})?;
        answer(call).map(|()| sent)
    }

    /// Brings over the rest, and the state; the target is ready to go on from there, and waits.
    pub fn last_round(
        &mut self,
        round: u64,
        image: &MemoryImage,
        base: Option<LayerId>,
        state: &[u8],
    ) -> Result<LastRound, Error> {
        let began = Instant::now();
        let mut call = self.announce(Round { round, last: true }, state)?;
        let sent = send_image(&mut self.sender, round, image, base, |_, _| {})?;
        let sending = began.elapsed();
        let Ready { made_ns } = decode(&call.message(Some(PATIENCE)).map_err(refusal)?)?;
        let making = Duration::from_nanos(made_ns);
        let waiting = (began.elapsed() - sending).saturating_sub(making);
        Ok(LastRound { sent, sending, waiting, making })
    }

    /// Brings the state over, and says what of RAM comes later; from then on the target may ask for it. The target is ready to
    /// go on from there, and waits.
    pub fn switch(
        &self,
        switch: &Switch,
        missing: &[(u64, u64)],
        state: &[u8],
        offer: &Arc<Offer>,
    ) -> Result<(Session, LastRound), Error> {
        let began = Instant::now();
        let message = late::encode_switch(switch, missing, state)?;
        let mut call = self.calls.open(SWITCH, Priority::High);
        call.finish(&message)?;
        let session = Session::start(&self.calls, &self.stripes, offer)?;
        let sending = began.elapsed();
        let Ready { made_ns } = decode(&call.message(Some(PATIENCE)).map_err(refusal)?)?;
        let making = Duration::from_nanos(made_ns);
        let waiting = (began.elapsed() - sending).saturating_sub(making);
        let sent = transfer::Sent { wire_bytes: message.len() as u64, ..transfer::Sent::default() };
        Ok((session, LastRound { sent, sending, waiting, making }))
    }

    /// Connects anew to a target that runs the machine, and learns what it does not have yet.
    pub fn resume(
        socket: &Path,
        token: &Token,
        stripes: u32,
        offer: &Arc<Offer>,
        connected: impl Fn(UnixStream),
    ) -> Result<Session, Error> {
        let connect = || connect(socket, &connected);
        let calls = connect()?;
        let text = serde_json::to_vec(&Resume::new(token, stripes));
        let text = text.map_err(|_| Error::Protocol("a resumption cannot be written"))?;
        let answer = calls.call(RESUME, Priority::High, &[&text], Some(PATIENCE)).map_err(refusal)?;
        let missing: Runs = late::decode_missing(&answer, offer.ram_bytes())?;
        let stripes = (0..stripes).map(|_| connect()).collect::<Result<Vec<_>, _>>()?;
        offer.renew(&missing);
        Session::start(&calls, &stripes, offer)
    }

    /// Brings changes of disks over.
    pub fn disk(&self, part: &[u8]) -> Result<(), Error> {
        self.calls.call(DISK, Priority::Bulk, &[part], Some(SYNC_PATIENCE)).map_err(refusal)?;
        Ok(())
    }

    /// What has come of disks is durable at the target when this returns.
    pub fn sync(&self) -> Result<(), Error> {
        self.calls.call(SYNC, Priority::High, &[], Some(SYNC_PATIENCE)).map_err(refusal)?;
        Ok(())
    }

    /// Hands the machine over.
    pub fn run(&self) -> Verdict {
        match self.calls.call(RUN, Priority::High, &[], Some(PATIENCE)).map_err(refusal) {
            Ok(_) => Verdict::There,
            Err(error @ Error::Refused(_)) => Verdict::Here(error),
            Err(error) => Verdict::InDoubt(error),
        }
    }

    fn announce(&self, round: Round, state: &[u8]) -> Result<Stream, Error> {
        let mut text = serde_json::to_vec(&round).map_err(|_| Error::Protocol("a round cannot be written"))?;
        text.push(b'\n');
        text.extend(state);
        let mut call = self.calls.open(ROUND, Priority::High);
        call.finish(&text)?;
        Ok(call)
    }
}

fn connect(socket: &Path, connected: &impl Fn(UnixStream)) -> Result<Connection, Error> {
    let wire = UnixStream::connect(socket).map_err(Error::Connect)?;
    connected(wire.try_clone().map_err(Error::Connect)?);
    Ok(Connection::client(wire, Options::default())?)
}

fn answer(mut call: Stream) -> Result<(), Error> {
    let answer = call.message(Some(PATIENCE)).map_err(refusal)?;
    if answer == wire::YES { Ok(()) } else { Err(Error::Connection(QhpError::Closed)) }
}

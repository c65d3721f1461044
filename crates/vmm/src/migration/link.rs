//! The source's end.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use queztl_guest_memory::{LayerId, MemoryImage};
use queztl_parallel_transfer as transfer;
use queztl_qhp::{Connection, Error as QhpError, Options, Priority, Stream};

use super::Error;
use super::memory::send_image;
use super::wire::{
    self, BEGIN, Begin, DISK, PATIENCE, ROUND, RUN, Ready, Round, STRIPE, SYNC, Stripe, decode, refusal,
};

/// How long a target may take to make disks durable.
const SYNC_PATIENCE: Duration = Duration::from_secs(120);

/// Connections to a target.
pub(crate) struct Link {
    calls: Connection,
    /// They live as long as this.
    _stripes: Vec<Connection>,
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
        let connect = || {
            let wire = UnixStream::connect(socket).map_err(Error::Connect)?;
            connected(wire.try_clone().map_err(Error::Connect)?);
            Ok::<_, Error>(Connection::client(wire, Options::default())?)
        };
        let calls = connect()?;
        let text = serde_json::to_vec(begin).map_err(|_| Error::Protocol("the beginning cannot be written"))?;
        calls.call(BEGIN, Priority::High, &[&text], Some(PATIENCE)).map_err(refusal)?;
        let stripes = (0..begin.stripes).map(|_| connect()).collect::<Result<Vec<_>, _>>()?;
        let streams = stripes.iter().map(|stripe| Stripe::new(stripe.open(STRIPE, Priority::Bulk)));
        let sender = transfer::Sender::new(streams.collect());
        Ok(Link { calls, _stripes: stripes, sender })
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

fn answer(mut call: Stream) -> Result<(), Error> {
    let answer = call.message(Some(PATIENCE)).map_err(refusal)?;
    if answer == wire::YES { Ok(()) } else { Err(Error::Connection(QhpError::Closed)) }
}

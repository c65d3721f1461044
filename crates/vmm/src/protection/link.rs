//! The primary's end of a connection to a backup.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use queztl_distributed_ram::{Epoch as Number, Version};
use queztl_guest_memory::{LayerId, MemoryImage, Piece};
use queztl_parallel_transfer as transfer;
use queztl_qhp::{Connection, Options, Priority};

use super::Error;
use super::digest::Digest;
use super::wire::{BEGIN, Begin, COMMIT, Commit, DISK, DiskPart, EPOCH, Epoch, Reply, STRIPE};
use crate::migration::memory::send_image;
use crate::migration::wire::{PATIENCE, Stripe, decode, refusal};

/// How long a backup may take to acknowledge what it has received.
const COMMIT_PATIENCE: Duration = Duration::from_secs(60);

/// Connections to a backup.
pub(crate) struct Link {
    calls: Connection,
    /// They live as long as this.
    _stripes: Vec<Connection>,
    sender: transfer::Sender<Stripe>,
    round: u64,
    /// What was sent of disks for the next epoch.
    disk_bytes: u64,
}

/// What a backup has: an epoch, and the layer of memory that ends with it.
pub(crate) type Base = (Number, LayerId);

/// An epoch to be sent.
pub(crate) struct Offer<'a> {
    pub version: Version,
    pub image: &'a MemoryImage,
    pub state: &'a [u8],
}

impl Link {
    /// Connects to whoever listens at `socket`. `connected` is given a handle of each connection before anybody waits on it:
    /// shutting that down ends whatever waits.
    pub fn open(socket: &Path, begin: &Begin, connected: impl Fn(UnixStream)) -> Result<Link, Error> {
        let connect = || {
            let wire = UnixStream::connect(socket).map_err(crate::migration::Error::Connect)?;
            connected(wire.try_clone().map_err(crate::migration::Error::Connect)?);
            Ok::<_, Error>(Connection::client(wire, Options::default())?)
        };
        let calls = connect()?;
        let text = encode(begin)?;
        calls.call(BEGIN, Priority::High, &[&text], Some(PATIENCE)).map_err(refusal)?;
        let stripes = (0..begin.stripes).map(|_| connect()).collect::<Result<Vec<_>, _>>()?;
        let streams = stripes.iter().map(|stripe| Stripe::new(stripe.open(STRIPE, Priority::Bulk)));
        let sender = transfer::Sender::new(streams.collect());
        Ok(Link { calls, _stripes: stripes, sender, round: 0, disk_bytes: 0 })
    }

    /// Brings changes of disks over; those of an epoch come before it.
    pub fn disk(&mut self, part: DiskPart, bytes: &[u8]) -> Result<(), Error> {
        if part == DiskPart::Epoch {
            self.disk_bytes += bytes.len() as u64;
        }
        let head = encode(&part)?;
        let parts: [&[u8]; 3] = [&head, b"\n", bytes];
        self.calls.call(DISK, Priority::Bulk, &parts, Some(COMMIT_PATIENCE)).map_err(refusal)?;
        Ok(())
    }

    /// Brings an epoch over: what has changed since `base`, or all there is.
    pub fn send(&mut self, offer: &Offer<'_>, base: Option<Base>) -> Result<(Reply, transfer::Sent), Error> {
        self.round += 1;
        let disk_bytes = std::mem::take(&mut self.disk_bytes);
        let head = Epoch { version: offer.version, base: base.map(|(epoch, _)| epoch), round: self.round, disk_bytes };
        let head = encode(&head)?;
        self.calls.tell(EPOCH, Priority::High, &[&head, b"\n", offer.state])?;
        let digest = Digest::default();
        let base = base.map(|(_, layer)| layer);
        let sent = send_image(&mut self.sender, self.round, offer.image, base, |offset, piece| match piece {
            Piece::Data(data) => digest.data(offset, data),
            Piece::Zero(bytes) => digest.zero(offset, *bytes),
        })?;
        let commit = encode(&Commit { version: offer.version, digest: digest.value() })?;
        let reply = self.calls.call(COMMIT, Priority::High, &[&commit], Some(COMMIT_PATIENCE)).map_err(refusal)?;
        Ok((decode(&reply)?, sent))
    }
}

fn encode(value: &impl serde::Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|_| Error::Protocol("a message cannot be written"))
}

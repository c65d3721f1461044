//! The greeting: both sides speak at once, then prove their key if they have one.

use std::io::{self, IoSlice};
use std::time::{Duration, Instant};

use super::Options;
use crate::frame::{MAX_PAYLOAD, MIN_PAYLOAD};
use crate::hello::{HELLO_BYTES, Hello, PROOF_BYTES, VERSION};
use crate::wire::Wire;
use crate::{Error, Features, ProtocolError, Side};

/// Greets the peer within the time it may stand still; both greetings.
pub(super) fn greet(wire: &dyn Wire, side: Side, options: &Options) -> Result<(Hello, Hello), Error> {
    let deadline = Instant::now() + options.stall;
    let own = hello(options)?;
    let own_bytes = own.encode();
    write(wire, &own_bytes, deadline)?;
    let mut peer_bytes = [0; HELLO_BYTES];
    read(wire, &mut peer_bytes, deadline)?;
    let peer = Hello::decode(&peer_bytes)?;
    if own.keyed != peer.keyed {
        return Err(ProtocolError::AuthenticationKind.into());
    }
    if let Some(key) = &options.key {
        let is_client = side == Side::Client;
        write(wire, &key.proof(is_client, &own_bytes, &peer_bytes), deadline)?;
        let mut proof = [0; PROOF_BYTES];
        read(wire, &mut proof, deadline)?;
        if !key.verify(proof, !is_client, &peer_bytes, &own_bytes) {
            return Err(ProtocolError::Authentication.into());
        }
    }
    Ok((own, peer))
}

fn hello(options: &Options) -> Result<Hello, Error> {
    let mut nonce = [0; 31];
    rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty()).map_err(io::Error::from)?;
    let greatest = i32::MAX as u32;
    Ok(Hello {
        min: VERSION,
        max: VERSION,
        features: Features::ALL,
        max_payload: options.max_payload.clamp(MIN_PAYLOAD, MAX_PAYLOAD),
        stream_window: options.stream_window.min(greatest),
        connection_window: options.connection_window.min(greatest),
        max_streams: options.max_streams,
        nonce,
        keyed: options.key.is_some(),
    })
}

fn left(deadline: Instant) -> Result<Duration, Error> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(Error::Timeout) } else { Ok(left) }
}

fn write(wire: &dyn Wire, mut bytes: &[u8], deadline: Instant) -> Result<(), Error> {
    while !bytes.is_empty() {
        match wire.write(&[IoSlice::new(bytes)]) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wire.wait(false, true, Some(left(deadline)?))?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads exactly so much: what follows the greeting is not this function's.
fn read(wire: &dyn Wire, mut bytes: &mut [u8], deadline: Instant) -> Result<(), Error> {
    while !bytes.is_empty() {
        match wire.read(bytes) {
            Ok(0) => return Err(Error::Closed),
            Ok(count) => bytes = &mut bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wire.wait(true, false, Some(left(deadline)?))?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

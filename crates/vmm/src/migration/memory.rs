//! A frozen image of RAM on its way over stripes.

use queztl_guest_memory::{ImageError, LayerId, MemoryImage, Piece};
use queztl_parallel_transfer as transfer;

use super::Error;
use super::wire::Stripe;

/// Sends what has changed since `base`, or all, as one round; `look` sees every piece, with its offset, before it goes.
pub(crate) fn send_image(
    sender: &mut transfer::Sender<Stripe>,
    round: u64,
    image: &MemoryImage,
    base: Option<LayerId>,
    look: impl Fn(u64, &Piece<'_>),
) -> Result<transfer::Sent, Error> {
    let mut failed = None;
    let sent = sender.round(round, |sink| {
        let put = |offset, piece: Piece<'_>| {
            look(offset, &piece);
            let piece = match piece {
                Piece::Data(data) => transfer::Piece::Data(data),
                Piece::Zero(bytes) => transfer::Piece::Zero(bytes),
            };
            // Why is told by the round.
            sink.put(offset, piece).map_err(|_| ImageError::Chain)
        };
        image.for_each_piece(base, put).map_err(|error| {
            failed = Some(error);
            transfer::Error::Abandoned
        })
    });
    match (sent, failed) {
        (Err(transfer::Error::Abandoned), Some(error)) => Err(error.into()),
        (sent, _) => Ok(sent?),
    }
}

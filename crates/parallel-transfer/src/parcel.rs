//! Chunks without rounds: for whoever decides one by one what goes next, and over which connection.

use std::io::{Read, Write};

use crate::Error;
use crate::chunk::{HEADER_BYTES, Header, Kind, MAX_CHUNK_BYTES};
use crate::receiver::{Fault, Unpacker};
use crate::sender::{Piece, pack};

/// Puts pieces on a connection, each in one write. All are of the `series` that the reader expects.
#[derive(Debug)]
pub struct ParcelWriter<W> {
    to: W,
    series: u64,
    compressed: Vec<u8>,
    message: Vec<u8>,
}

impl<W: Write> ParcelWriter<W> {
    pub fn new(to: W, series: u64) -> ParcelWriter<W> {
        let compressed = vec![0; lz4_flex::block::get_maximum_output_size(MAX_CHUNK_BYTES)];
        ParcelWriter { to, series, compressed, message: Vec::new() }
    }

    /// Sends a piece, compressed where that pays; gives the bytes that this took.
    ///
    /// # Errors
    /// The connection's, and [`Error::Source`] for a piece of more than [`MAX_CHUNK_BYTES`] of data.
    pub fn put(&mut self, offset: u64, piece: Piece<'_>) -> Result<u64, Error> {
        let (kind, bytes, payload) = match piece {
            Piece::Zero(bytes) => (Kind::Zero, bytes, &[][..]),
            Piece::Data(data) if data.len() > MAX_CHUNK_BYTES => {
                return Err(Error::Source(std::io::ErrorKind::InvalidInput.into()));
            }
            Piece::Data(data) => {
                let (kind, payload) = pack(data, &mut self.compressed);
                (kind, data.len() as u64, payload)
            }
        };
        self.message.clear();
        self.message.extend(Header::new(kind, self.series, offset, bytes, payload).encode());
        self.message.extend(payload);
        let sent = self.to.write_all(&self.message).and_then(|()| self.to.flush());
        sent.map_err(|source| Error::Connection { connection: 0, source })?;
        Ok((HEADER_BYTES + payload.len()) as u64)
    }
}

/// Takes pieces from a connection.
pub struct ParcelReader<R> {
    from: R,
    series: u64,
    bytes: u64,
    unpacker: Unpacker,
}

impl<R: Read> ParcelReader<R> {
    /// For data of `bytes`: no piece that it gives lies outside.
    pub fn new(from: R, series: u64, bytes: u64) -> ParcelReader<R> {
        ParcelReader { from, series, bytes, unpacker: Unpacker::new() }
    }

    /// The next piece and its offset; waits for it.
    ///
    /// # Errors
    /// The connection ends or fails, or brings what is no piece of the series.
    pub fn take(&mut self) -> Result<(u64, Piece<'_>), Error> {
        let taken = self.unpacker.next(&mut self.from, self.series, self.bytes);
        match taken {
            Ok((Header { kind: Kind::End, .. }, _)) => {
                Err(Error::Malformed { connection: 0, reason: "a series has no end of its own" })
            }
            Ok((Header { kind: Kind::Zero, offset, bytes, .. }, _)) => Ok((offset, Piece::Zero(bytes))),
            Ok((header, data)) => Ok((header.offset, Piece::Data(data))),
            Err(Fault::Connection(source)) => Err(Error::Connection { connection: 0, source }),
            Err(Fault::Malformed(reason)) => Err(Error::Malformed { connection: 0, reason }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent() -> Vec<u8> {
        let mut wire = Vec::new();
        let mut writer = ParcelWriter::new(&mut wire, 7);
        writer.put(4096, Piece::Data(&[9; 8192])).unwrap();
        writer.put(65536, Piece::Zero(4096)).unwrap();
        wire
    }

    #[test]
    fn pieces_come_as_they_were_sent() {
        let wire = sent();
        let mut reader = ParcelReader::new(&wire[..], 7, 1 << 20);
        assert_eq!(reader.take().unwrap(), (4096, Piece::Data(&[9; 8192])));
        assert_eq!(reader.take().unwrap(), (65536, Piece::Zero(4096)));
        assert!(matches!(reader.take(), Err(Error::Connection { .. })));
    }

    #[test]
    fn pieces_of_another_series_or_outside_of_the_data_are_refused() {
        let wire = sent();
        assert!(matches!(ParcelReader::new(&wire[..], 8, 1 << 20).take(), Err(Error::Malformed { .. })));
        assert!(matches!(ParcelReader::new(&wire[..], 7, 8192).take(), Err(Error::Malformed { .. })));
    }
}

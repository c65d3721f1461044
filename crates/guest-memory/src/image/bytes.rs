//! Numbers to bytes and back, little-endian, every read checked.

use super::ImageError;

const CUT_OFF: ImageError = ImageError::Damaged("it was cut off");

/// Appends numbers.
#[derive(Debug, Default)]
pub(super) struct Writer(pub Vec<u8>);

impl Writer {
    pub fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }
}

/// Takes numbers from the front.
#[derive(Debug)]
pub(super) struct Reader<'a>(pub &'a [u8]);

impl Reader<'_> {
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], ImageError> {
        let (first, rest) = self.0.split_first_chunk().ok_or(CUT_OFF)?;
        self.0 = rest;
        Ok(*first)
    }

    pub fn u32(&mut self) -> Result<u32, ImageError> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, ImageError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A number of items of `item_bytes` each that follow: at most `most`, and no more than there are bytes for.
    pub fn count(&mut self, most: usize, item_bytes: usize) -> Result<usize, ImageError> {
        let count = self.u32()? as usize;
        if count > most {
            return Err(ImageError::Damaged("it counts more than there can be"));
        }
        if count * item_bytes > self.0.len() {
            return Err(CUT_OFF);
        }
        Ok(count)
    }
}

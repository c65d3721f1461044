//! Fields: little-endian numbers, byte strings with their length, lists with their count.

use crate::Error;

/// Takes fields off the front of a payload.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(payload: &'a [u8]) -> Reader<'a> {
        Reader { rest: payload }
    }

    fn take(&mut self, length: usize, field: &'static str) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Error::Truncated(field))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Error> {
        self.take(N, field)?.try_into().map_err(|_| Error::Truncated(field))
    }

    pub fn u8(&mut self, field: &'static str) -> Result<u8, Error> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    pub fn u16(&mut self, field: &'static str) -> Result<u16, Error> {
        self.array(field).map(u16::from_le_bytes)
    }

    pub fn u32(&mut self, field: &'static str) -> Result<u32, Error> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, field: &'static str) -> Result<u64, Error> {
        self.array(field).map(u64::from_le_bytes)
    }

    pub fn i64(&mut self, field: &'static str) -> Result<i64, Error> {
        self.array(field).map(i64::from_le_bytes)
    }

    /// A byte string of at most `most` bytes.
    pub fn bytes(&mut self, most: usize, field: &'static str) -> Result<&'a [u8], Error> {
        let length = self.u32(field)? as usize;
        if length > most {
            return Err(Error::Invalid(field));
        }
        self.take(length, field)
    }

    /// The same without zero bytes, as the kernel's calls want it.
    pub fn text(&mut self, most: usize, field: &'static str) -> Result<Vec<u8>, Error> {
        let bytes = self.bytes(most, field)?;
        if bytes.contains(&0) { Err(Error::Invalid(field)) } else { Ok(bytes.to_vec()) }
    }

    /// At most `most` texts.
    pub fn texts(&mut self, most: usize, field: &'static str) -> Result<Vec<Vec<u8>>, Error> {
        let count = self.u32(field)? as usize;
        // Each item takes four bytes at least: a count beyond what is there never becomes an allocation.
        if count > most || count > self.rest.len() / 4 {
            return Err(Error::Invalid(field));
        }
        (0..count).map(|_| self.text(usize::MAX, field)).collect()
    }

    /// 0 or 1.
    pub fn flag(&mut self, field: &'static str) -> Result<bool, Error> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Error::Invalid(field)),
        }
    }

    pub fn end(self) -> Result<(), Error> {
        if self.rest.is_empty() { Ok(()) } else { Err(Error::Trailing(self.rest.len())) }
    }
}

/// Appends fields to a payload.
pub struct Writer<'a> {
    pub out: &'a mut Vec<u8>,
}

impl Writer<'_> {
    pub fn u8(&mut self, value: u8) {
        self.out.push(value);
    }

    pub fn u16(&mut self, value: u16) {
        self.out.extend(value.to_le_bytes());
    }

    pub fn u32(&mut self, value: u32) {
        self.out.extend(value.to_le_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.out.extend(value.to_le_bytes());
    }

    pub fn i64(&mut self, value: i64) {
        self.out.extend(value.to_le_bytes());
    }

    /// A length beyond 32 bits makes the frame too large anyway, which [`crate::encode`] refuses.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.out.extend(bytes);
    }

    pub fn texts(&mut self, texts: &[Vec<u8>]) {
        self.u32(u32::try_from(texts.len()).unwrap_or(u32::MAX));
        texts.iter().for_each(|text| self.bytes(text));
    }
}

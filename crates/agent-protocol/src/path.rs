//! Paths below the root of a copied tree.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::{Error, MAX_PATH_BYTES};

/// Most components of a path: a tree deeper than this is not copied.
const MAX_DEPTH: usize = 128;

/// A path below the root of a tree; empty for the root itself.
///
/// It has no `.`, no `..`, no empty components and no zero bytes, so that lexically it stays below the root. Links in
/// the file system are the concern of whoever follows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct RelativePath(Vec<u8>);

impl RelativePath {
    /// # Errors
    /// [`Error::Invalid`] for every other path.
    pub fn new(bytes: &[u8]) -> Result<RelativePath, Error> {
        let sane = |part: &[u8]| !part.is_empty() && part != b"." && part != b".." && part.len() <= 255;
        let mut parts = bytes.split(|byte| *byte == b'/');
        let fits = bytes.len() < MAX_PATH_BYTES && parts.clone().count() <= MAX_DEPTH && !bytes.contains(&0);
        if bytes.is_empty() || (fits && parts.all(sane)) {
            return Ok(RelativePath(bytes.to_vec()));
        }
        Err(Error::Invalid("path"))
    }

    /// The path of an entry called `name` in this directory.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the name is none, or the path would be too long or too deep.
    pub fn child(&self, name: &[u8]) -> Result<RelativePath, Error> {
        let separator: &[u8] = if self.0.is_empty() { b"" } else { b"/" };
        if name.is_empty() || name.contains(&b'/') {
            return Err(Error::Invalid("path"));
        }
        RelativePath::new(&[&self.0, separator, name].concat())
    }

    /// The directory above and the last component; `None` for the root.
    pub fn split(&self) -> Option<(RelativePath, &OsStr)> {
        let (parent, name) = match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (self.0.get(..at)?, self.0.get(at + 1..)?),
            None => (&[][..], self.0.as_slice()),
        };
        (!name.is_empty()).then(|| (RelativePath(parent.to_vec()), OsStr::from_bytes(name)))
    }

    /// Components from the root down.
    pub fn parts(&self) -> impl Iterator<Item = &OsStr> {
        self.0.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).map(OsStr::from_bytes)
    }

    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// For messages only: a path of the file system is made from [`RelativePath::parts`].
    pub fn display(&self) -> impl std::fmt::Display {
        Path::new(OsStr::from_bytes(&self.0)).display()
    }
}

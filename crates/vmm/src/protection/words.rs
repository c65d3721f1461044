//! What a daemon tells the process of a backup, at [`crate::process::Folder::backup`]: one JSON object a line in each
//! direction, one question a connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use queztl_distributed_ram::{Promise, Term, Version};
use serde::{Deserialize, Serialize};

use super::Error;

/// The longest line.
const MAX_BYTES: u64 = 4096;
/// How long either side may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Word {
    /// Which epoch is whole here?
    Copy {},
    /// Serve no owner of a lower term from now on.
    Promise { term: Term },
    /// Go on from the copy, as the owner of this term, which was promised.
    Promote { term: Term },
}

/// Its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WordAnswer {
    Copy {
        promised: Term,
        copy: Option<Version>,
    },
    /// None if a higher term was promised before.
    Promise {
        promise: Option<Told>,
    },
    /// The machine is being made.
    Promoted {
        version: Version,
    },
    Refused {
        message: String,
    },
}

/// A [`Promise`], as it is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    pub term: Term,
    pub copy: Option<Version>,
}

impl From<Promise> for Told {
    fn from(Promise { term, copy }: Promise) -> Told {
        Told { term, copy }
    }
}

impl From<Told> for Promise {
    fn from(Told { term, copy }: Told) -> Promise {
        Promise { term, copy }
    }
}

/// Asks the process whose socket is at `path`.
///
/// # Errors
/// Nobody answers there, or the answer is [`WordAnswer::Refused`].
pub fn say(path: &Path, word: Word) -> Result<WordAnswer, Error> {
    let failed = |source| Error::Socket { path: path.to_path_buf(), source };
    let mut stream = UnixStream::connect(path).map_err(failed)?;
    bound(&stream).map_err(failed)?;
    write_line(&mut stream, &word).map_err(failed)?;
    match read_line(&stream).map_err(failed)? {
        WordAnswer::Refused { message } => Err(Error::Refused(message)),
        answer => Ok(answer),
    }
}

pub(super) fn bound(stream: &UnixStream) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

pub(super) fn write_line(stream: &mut UnixStream, value: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line)
}

pub(super) fn read_line<T: serde::de::DeserializeOwned>(stream: &UnixStream) -> std::io::Result<T> {
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_BYTES)).read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice(&line)?)
}

//! What can go wrong between here and a daemon.

use std::io;
use std::time::Duration;

use queztl_api::Problem;

use crate::address::AddressError;

/// Why there is no answer, or not the one that was wished.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Nobody listens there.
    #[error("no daemon answers at {address}; see queztl-hv daemon status")]
    Connect {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("no encrypted connection with {address}")]
    Tls {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot use the certificates of {path}: give a file of PEM certificates")]
    Certificates {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("the token has characters that no token has; copy it again")]
    Token,
    /// The daemon refused, and says why.
    #[error(transparent)]
    Problem(Box<Problem>),
    /// The connection ended before the answer did.
    #[error("the daemon broke off the connection; see its log, or queztl-hv daemon status")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the daemon did not answer for {0:?}; see its log, or queztl-hv daemon status")]
    Silent(Duration),
    /// The other side is no daemon, or one of another age.
    #[error("the daemon's answer to {what} cannot be understood ({reason}); is it of another version?")]
    Answer { what: String, reason: String },
    /// Reading or writing here failed.
    #[error("{0}")]
    Local(#[source] io::Error),
}

impl Error {
    /// The daemon's problem, if that is what happened.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Error::Problem(problem) => Some(problem),
            _ => None,
        }
    }

    /// Is nobody there?
    pub fn is_absent(&self) -> bool {
        let absent = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused];
        matches!(self, Error::Connect { source, .. } if absent.contains(&source.kind()))
    }

    pub(crate) fn answer(what: impl Into<String>, reason: impl std::fmt::Display) -> Error {
        Error::Answer { what: what.into(), reason: reason.to_string() }
    }

    pub(crate) fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::Broken(error.into())
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Error {
        Error::Problem(Box::new(problem))
    }
}

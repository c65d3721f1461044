//! What can go wrong while an artefact is made or looked up.

use std::path::{Path, PathBuf};

/// A failure, in a sentence that says what to do about it where there is something to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory could not be used.
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    /// There is no place to keep artefacts.
    #[error("no place to keep kernels and images: set QUEZTL_HOME to a directory of yours, or HOME")]
    NoHome,
    /// Programs or files that the work needs are not installed, and may not be installed from here.
    #[error("{what} needs {}, which this host lacks: run `apt-get install {}` as root", missing.join(", "), packages.join(" "))]
    Missing { what: &'static str, missing: Vec<String>, packages: Vec<&'static str> },
    /// The package manager was asked and failed.
    #[error("apt-get could not install {packages}: {reason}; install them by hand, then try again")]
    Install { packages: String, reason: String },
    /// A program that the work needs ended badly.
    #[error("{program} failed: {reason}")]
    Program { program: String, reason: String },
    /// The kernel did not compile.
    #[error("the kernel did not compile: {reason}; the whole output is in {}", log.display())]
    Compile { reason: String, log: PathBuf },
    /// A configuration fragment has a line that is none.
    #[error("{name}, line {line}: `{text}` is not `CONFIG_NAME=value` nor `# CONFIG_NAME is not set`")]
    Fragment { name: String, line: usize, text: String },
    /// The kernel's own configuration step dropped what a fragment asks for.
    #[error(
        "this kernel source does not accept {}: the symbol is unknown to it or its dependencies are not met; \
         ask for those too, or leave it out",
        dropped.join(", ")
    )]
    Dropped { dropped: Vec<String> },
    /// The given kernel source is none.
    #[error("{} is no kernel source: {reason}", path.display())]
    Source { path: PathBuf, reason: String },
    /// A finished kernel is larger than the promise.
    #[error("the kernel is {bytes} bytes, more than the {limit} a guest kernel may have; switch some of it off")]
    TooLarge { bytes: u64, limit: u64 },
    /// A size or name that a file system image cannot have.
    #[error("{0}")]
    Image(String),
}

/// What this crate's functions return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// For `map_err` on an operation named by `action` (as in "cannot read") on `path`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    }
}

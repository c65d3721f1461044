//! Why guest RAM could not be frozen, written, or made from an image.

use std::io;

/// What went wrong with an image of guest RAM.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The table of runs is not one, was cut off, or was changed.
    #[error("the table of a memory image is damaged ({0}): take the snapshot anew")]
    Damaged(&'static str),
    #[error("a memory image of version {0} cannot be read by this program, which knows version {known}: use the program that made it", known = super::table::VERSION)]
    Version(u32),
    #[error(
        "the memory image is of a machine with other RAM ({image} MiB in {image_runs} runs) than this one ({ram} MiB in \
         {ram_runs} runs): give the machine the same RAM, NUMA nodes and room for hot-plug"
    )]
    OtherShape { image: u64, image_runs: usize, ram: u64, ram_runs: usize },
    #[error("the memory file has {bytes} bytes and needs {needed}: it was cut off; take the snapshot anew")]
    Short { bytes: u64, needed: u64 },
    #[error("anybody may write to the memory file, and thus to the guests made from it: chmod o-w")]
    Writable,
    #[error("the memory file already holds something: write to a new one")]
    NotEmpty,
    #[error("a memory image begins with a full one, and each further one must have been taken on the one before it")]
    Chain,
    #[error("this RAM does not descend from the base of the incremental image: take a full one")]
    NotDescended,
    #[error("the memory image is scattered over {0} pieces, more than can be mapped: take a full snapshot")]
    Scattered(usize),
    #[error("chunk {chunk} of the memory file (2 MiB each) is damaged: its checksum does not match")]
    Checksum { chunk: u64 },
    #[error("this host does not tell which pages of guest RAM are private ({0}): mount /proc")]
    Pagemap(io::Error),
    #[error("somebody has cancelled the writing of memory")]
    Cancelled,
    #[error("this RAM is not whole yet: its pages still come from where the machine was; try again when they have")]
    Arriving,
    #[error(
        "RAM of reserved huge pages cannot come while the machine runs: use other pages, or let all of it come first"
    )]
    ArrivingHuge,
    #[error("{doing}: {source}")]
    Io { doing: &'static str, source: io::Error },
}

impl ImageError {
    /// For `map_err`.
    pub(crate) fn io<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> ImageError {
        move |source| ImageError::Io { doing, source: source.into() }
    }
}

//! The manager with real processes: machines live through the death of their daemon, and its store through everything.

mod common;
mod images;
mod lifecycle;
mod recovery;
mod snapshots;

//! The manager with real processes: machines live through the death of their daemon, and its store through everything.

mod alerts;
mod benchmarks;
mod common;
mod full;
mod images;
mod kills;
mod lifecycle;
mod limits;
mod many;
mod protection;
mod recovery;
mod refusals;
mod snapshots;

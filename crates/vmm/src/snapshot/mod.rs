//! A machine's state as data: what a snapshot, a clone and a migration carry besides RAM.
//!
//! Every part that has a state implements [`Persist`] beside its code. States are plain values that serialise; times in
//! them are on the guest's clock, which goes on where it stopped. A state may come from a stranger: `restore` checks
//! whatever the part relies on and refuses the rest.

mod persist;
#[cfg(test)]
mod tests;

pub use persist::{Invalid, Persist};

//! The verbs as a user types them, with a daemon in a home of its own and real guests.

#[path = "../common/mod.rs"]
mod common;

mod clones;
mod cluster;
mod console;
mod daemon;
mod home;
mod images;
mod machines;
mod wishes;

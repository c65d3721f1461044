//! A client of the daemon's API.

//! The daemon's process.

use super::place::Place;
use crate::cli::ServeArgs;
use crate::report::Failure;
use crate::status::Status;

/// Serves until it is told to end.
pub fn run(place: &Place, args: ServeArgs) -> Result<Status, Failure> {
    let _ = (place, args);
    Err(Failure::host("this build has no daemon yet"))
}

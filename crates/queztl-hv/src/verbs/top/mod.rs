//! `top`.

use clap::ValueEnum;

use super::session::Session;
use crate::cli::TopArgs;
use crate::report::Failure;
use crate::status::Status;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Sort {
    /// Processor time
    #[default]
    Cpu,
    /// Memory
    Memory,
    /// Bytes read from disks
    Reads,
    /// Bytes written to disks
    Writes,
    /// Name
    Name,
    /// State
    State,
}

pub async fn top(_session: &Session, _args: &TopArgs) -> Result<Status, Failure> {
    Err(Failure::host("not yet"))
}

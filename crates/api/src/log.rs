//! What the daemon has to say, and who has changed what.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A message of the daemon's log, or a line of its audit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LogRecord {
    /// Grows with every record since the daemon has started.
    pub number: u64,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// How bad it is.
    pub level: LogLevel,
    /// Which part of the daemon says it.
    pub target: String,
    /// A sentence; empty in the audit.
    pub message: String,
    /// What it is about: in the audit `caller`, `method`, `target`, `status` and `took_us`.
    #[schema(value_type = Object)]
    pub fields: BTreeMap<String, serde_json::Value>,
}

/// How bad a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogLevel {
    /// What happens.
    Info,
    /// Not as it should be, and nothing fails for it.
    Warn,
    /// Something has failed.
    Error,
}

//! Commands in a guest, and terminals: the messages of their WebSockets.
//!
//! Binary frames carry bytes, text frames one JSON message each:
//! ```text
//! console   client: input (binary), ConsoleControl (text)        daemon: output (binary)
//! exec      client: ExecStart (text, first), then input (binary) and ExecControl (text)
//!           daemon: output (binary, its first byte 1 for standard output and 2 for errors), ExecNotice (text);
//!                   the last is `exited` or `problem`
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Problem;

/// How much of each of a command's outputs one answer has, in bytes; what is beyond it is dropped.
pub const MAX_EXEC_OUTPUT: usize = 1 << 20;
/// The longest time for a command that somebody waits for, in seconds.
pub const MAX_EXEC_SECONDS: u32 = 3600;
/// The first byte of a frame of standard output.
pub const EXEC_STDOUT: u8 = 1;
/// The first byte of a frame of standard errors.
pub const EXEC_STDERR: u8 = 2;

/// Bytes in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// What `data` is.
    #[serde(default)]
    pub encoding: Encoding,
    /// Text, or base64 with padding (RFC 4648 §4).
    pub data: String,
}

/// How bytes are written in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub enum Encoding {
    /// As they are.
    #[default]
    #[serde(rename = "utf-8")]
    Utf8,
    /// RFC 4648 §4.
    #[serde(rename = "base64")]
    Base64,
}

/// A command to be run to its end.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// The program and its arguments.
    #[schema(min_items = 1, max_items = 4096)]
    pub command: Vec<String>,
    /// What is added to the command's environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Its working directory; the user's home if it is not given.
    #[serde(default)]
    pub cwd: Option<String>,
    /// `NAME` or a number, either with `:GROUP`; root if it is not given.
    #[serde(default)]
    pub user: Option<String>,
    /// What it reads; nothing if it is not given.
    #[serde(default)]
    pub stdin: Option<Content>,
    /// It is killed after so long; 60 if not given.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 3600)]
    pub timeout_seconds: Option<u32>,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecResult {
    /// Its exit status; none if a signal ended it.
    pub status: Option<u8>,
    /// The signal that ended it.
    pub signal: Option<u8>,
    /// It was killed because its time was over.
    pub timed_out: bool,
    /// What it wrote to its standard output.
    pub stdout: Content,
    /// What it wrote to its standard errors.
    pub stderr: Content,
    /// It wrote more than is here: 1 MiB of each.
    pub truncated: bool,
}

/// A terminal's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

/// The first message of a client that runs a command over a WebSocket.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecStart {
    /// The program and its arguments.
    #[schema(min_items = 1, max_items = 4096)]
    pub command: Vec<String>,
    /// What is added to the command's environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Its working directory; the user's home if it is not given.
    #[serde(default)]
    pub cwd: Option<String>,
    /// `NAME` or a number, either with `:GROUP`; root if it is not given.
    #[serde(default)]
    pub user: Option<String>,
    /// It gets a terminal of this size; all its output is then standard output.
    #[serde(default)]
    pub tty: Option<TerminalSize>,
    /// Input follows; without it the command's input is empty.
    #[serde(default)]
    pub stdin: bool,
    /// A word of the client's own. The command goes on when the connection ends, for ten minutes, and who comes with the same
    /// word within them finds it again, with what it showed last. Only with `tty`.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 64)]
    pub keep: Option<String>,
}

/// What else a client tells a command's WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ExecControl {
    /// Its terminal has another size now.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters of a line.
        columns: u16,
    },
    /// Sends a signal to its process group.
    Signal {
        /// 1 to 64.
        #[schema(minimum = 1, maximum = 64)]
        number: u8,
    },
    /// There is no more input.
    EndOfInput,
}

/// What the daemon tells over a command's WebSocket, besides output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ExecNotice {
    /// The command runs.
    Started,
    /// It has ended, and all its output has been sent.
    Exited {
        /// Its exit status; none if a signal ended it.
        status: Option<u8>,
        /// The signal that ended it.
        signal: Option<u8>,
    },
    /// It could not be run, or went on out of reach.
    Problem {
        /// Why.
        problem: Problem,
    },
}

/// What a client tells a console's WebSocket, besides input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ConsoleControl {
    /// The viewer's terminal has this size.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters of a line.
        columns: u16,
    },
}

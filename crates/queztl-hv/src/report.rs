//! Failures as the user meets them: one line, `queztl-hv: what happened: why; what to do`, and an exit status.

use std::fmt;

use crate::status::Status;

/// A failure of a command.
#[derive(Debug)]
pub struct Failure {
    status: Status,
    message: String,
}

impl Failure {
    /// The user can mend it: wrong arguments, or a file that cannot be used.
    pub fn usage(message: impl fmt::Display) -> Failure {
        Failure { status: Status::Usage, message: message.to_string() }
    }

    /// The host or the VMM failed.
    pub fn host(message: impl fmt::Display) -> Failure {
        Failure { status: Status::Failure, message: message.to_string() }
    }

    /// The user left, or the work was cancelled.
    pub fn stopped(message: impl fmt::Display) -> Failure {
        Failure { status: Status::Stopped, message: message.to_string() }
    }

    /// The same, with a name in front unless it has it already.
    pub fn about(self, name: &str) -> Failure {
        let message = if self.message.contains(name) { self.message } else { format!("{name}: {}", self.message) };
        Failure { message, ..self }
    }

    /// The same, with more to say behind it.
    pub fn with(self, more: &str) -> Failure {
        Failure { message: format!("{}{more}", self.message), ..self }
    }

    /// What the parser says, made one line: what is wrong and the hints, without the synopsis.
    pub fn arguments(error: &clap::Error) -> Failure {
        if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            return Failure::usage("a command is missing; see queztl-hv --help");
        }
        let text = error.render().to_string();
        let help = help_for(&text);
        let wanted = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
        let wanted = wanted.filter(|line| !line.is_empty() && !line.starts_with("For more information"));
        let line = wanted.collect::<Vec<_>>().join(" ");
        let line = line.strip_prefix("error: ").unwrap_or(&line);
        Failure::usage(format!("{line}; see {help}"))
    }

    pub fn status(&self) -> Status {
        self.status
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    /// Prints the line and gives the status.
    pub fn report(self) -> Status {
        // Guests and file names may hold control characters; a message stays one line.
        let line: String = self.message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        eprintln!("queztl-hv: {line}");
        self.status
    }
}

/// The help of the command that the synopsis in `text` is about.
fn help_for(text: &str) -> String {
    let usage = text.lines().find_map(|line| line.trim().strip_prefix("Usage: ")).unwrap_or_default();
    let is_command = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-');
    let commands = usage.split(' ').skip(1).take_while(is_command);
    ["queztl-hv"].into_iter().chain(commands).chain(["--help"]).collect::<Vec<_>>().join(" ")
}

/// The error with all its causes, joined by colons, each said once.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

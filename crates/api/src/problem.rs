//! Errors (RFC 9457).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why something was not done, as `application/problem+json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{detail}")]
pub struct Problem {
    /// `about:blank#` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The code in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// For programs.
    pub code: Code,
    /// What happened, why, and what to do: one line for people.
    pub detail: String,
    /// The fields that were wrong, if that is why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldProblem>,
}

/// A field that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldProblem {
    /// Path to the field: `spec.disks[0].image`.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

/// The kinds of problems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The request cannot be read.
    Malformed,
    /// It can be read, but a value cannot be granted.
    Invalid,
    /// No credentials, or wrong ones.
    Unauthenticated,
    /// The credentials do not suffice.
    Forbidden,
    /// There is no such thing, or no such path.
    NotFound,
    /// The path knows other methods.
    Method,
    /// The body is of a kind that is not understood here.
    MediaType,
    /// There is one of this name already.
    Exists,
    /// The thing is in a state in which this cannot be done.
    State,
    /// Something else uses it.
    InUse,
    /// The same key came with another request.
    KeyReused,
    /// Too much was asked at once.
    Busy,
    TooLarge,
    /// The host lacks memory, disk space or a feature.
    Host,
    /// Something did not answer in time.
    Timeout,
    Cancelled,
    /// A fault of ours.
    Internal,
}

impl Code {
    /// The HTTP status and the title.
    fn meaning(self) -> (u16, &'static str) {
        match self {
            Code::Malformed => (400, "The request cannot be read"),
            Code::Invalid => (422, "A value cannot be granted"),
            Code::Unauthenticated => (401, "Credentials are missing or wrong"),
            Code::Forbidden => (403, "The credentials do not suffice"),
            Code::NotFound => (404, "There is no such thing"),
            Code::Method => (405, "The method is not known here"),
            Code::MediaType => (415, "The body is of another kind"),
            Code::Exists => (409, "The name is taken"),
            Code::State => (409, "Not in this state"),
            Code::InUse => (409, "It is in use"),
            Code::KeyReused => (422, "The idempotency key belongs to another request"),
            Code::Busy => (429, "Too much at once"),
            Code::TooLarge => (413, "The request is too large"),
            Code::Host => (507, "The host cannot grant this"),
            Code::Timeout => (504, "No answer in time"),
            Code::Cancelled => (409, "It was cancelled"),
            Code::Internal => (500, "A fault of the daemon"),
        }
    }
}

impl Problem {
    /// A problem with a sentence for people.
    pub fn new(code: Code, detail: impl Into<String>) -> Problem {
        let (status, title) = code.meaning();
        let word = serde_json::to_value(code).ok();
        let word = word.as_ref().and_then(|word| word.as_str()).unwrap_or("internal");
        let kind = format!("about:blank#{word}");
        Problem { kind, title: title.to_owned(), status, code, detail: detail.into(), fields: Vec::new() }
    }

    /// A value that cannot be granted.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Problem {
        let (field, message) = (field.into(), message.into());
        let mut problem = Problem::new(Code::Invalid, format!("{field}: {message}"));
        problem.fields.push(FieldProblem { field, message });
        problem
    }

    /// There is no `what` called `name`.
    pub fn not_found(what: &str, name: &str) -> Problem {
        Problem::new(Code::NotFound, format!("there is no {what} {name:?}"))
    }
}

//! Results as they are printed: tables for people, JSON and YAML for programs, names for the shell.
//!
//! ```text
//! $ queztl-hv list              $ queztl-hv list -o name
//! NAME   STATE    …             web-1
//! web-1  running  …
//! ```
//! What comes from a guest or another user is printed without control characters, so that no text of theirs speaks to the
//! terminal.

pub mod controls;
pub mod table;
pub mod text;
mod yaml;

use serde::Serialize;

use crate::cli::OutputFormat;
use crate::report::Failure;
use crate::status::Status;
use table::Table;

/// A result that can be shown in each format.
pub trait Show: Serialize {
    /// For people; `wide` has more columns.
    fn table(&self, wide: bool) -> String;

    /// One name a line.
    fn names(&self) -> Vec<String>;
}

/// The result as the user wants it.
///
/// # Errors
/// A value that has no JSON form, which is a fault of ours.
pub fn render(result: &impl Show, format: OutputFormat) -> Result<String, Failure> {
    Ok(match format {
        OutputFormat::Table => result.table(false),
        OutputFormat::Wide => result.table(true),
        OutputFormat::Json => serde_json::to_string_pretty(result).map_err(unprintable)? + "\n",
        OutputFormat::Yaml => yaml::render(&serde_json::to_value(result).map_err(unprintable)?),
        OutputFormat::Name => lines(&result.names()),
    })
}

/// Prints the result as the user wants it.
///
/// # Errors
/// As [`render`].
pub fn print(result: &impl Show, format: OutputFormat) -> Result<Status, Failure> {
    Ok(crate::print(&render(result, format)?))
}

/// One line of JSON, for results that come one after another.
///
/// # Errors
/// As [`render`].
pub fn json_line(result: &impl Serialize) -> Result<String, Failure> {
    Ok(serde_json::to_string(result).map_err(unprintable)? + "\n")
}

fn unprintable(error: serde_json::Error) -> Failure {
    Failure::host(format!("cannot print the result: {error}"))
}

fn lines(names: &[String]) -> String {
    names.iter().map(|name| format!("{}\n", text::plain(name))).collect()
}

/// A result whose table is already made.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Made<T> {
    pub value: T,
    #[serde(skip)]
    pub table: String,
    #[serde(skip)]
    pub names: Vec<String>,
}

impl<T: Serialize> Show for Made<T> {
    fn table(&self, _wide: bool) -> String {
        self.table.clone()
    }

    fn names(&self) -> Vec<String> {
        self.names.clone()
    }
}

/// A list of things that are rows of a table.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct List<'a, T>(pub &'a [T]);

/// A thing that is a row of a table.
pub trait Row: Serialize {
    /// What there is to say when there are none.
    const NONE: &'static str;
    const HEADS: &'static [&'static str];
    /// The columns of the wide table, behind the others.
    const MORE: &'static [&'static str];

    /// As many as there are heads, the wide ones too.
    fn cells(&self) -> Vec<String>;
    fn name(&self) -> String;
}

impl<T: Row> Show for List<'_, T> {
    fn table(&self, wide: bool) -> String {
        if self.0.is_empty() {
            return format!("{}\n", T::NONE);
        }
        let shown = T::HEADS.len() + if wide { T::MORE.len() } else { 0 };
        let mut table = Table::new(T::HEADS.iter().chain(T::MORE).take(shown).copied());
        self.0.iter().for_each(|row| table.row(row.cells().into_iter().take(shown)));
        table.to_string()
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(Row::name).collect()
    }
}

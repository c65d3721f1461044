//! `--output`.

use clap::{Args, ValueEnum};

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum OutputFormat {
    /// For people
    #[default]
    Table,
    /// For people, with all columns
    Wide,
    /// For programs
    Json,
    /// For programs and people
    Yaml,
    /// One name a line
    Name,
}

#[derive(Debug, Clone, Copy, Default, Args)]
pub struct OutputArg {
    /// How to print the result
    #[arg(short = 'o', long = "output", value_enum, default_value_t, value_name = "FORMAT", display_order = 890)]
    pub format: OutputFormat,
}

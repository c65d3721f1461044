//! `queztl-hv image`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};
use clap_complete::ArgValueCandidates;
use queztl_api::Name;
use queztl_vmm::config::Format;

use super::{DaemonArgs, OutputArg, OutputFormat};
use crate::values;
use crate::verbs::names;

pub const IMAGE_HELP: &str = "\
Files and the store: where a FILE is asked for, store:NAME is an image of the daemon's store. import, list and delete are
about the store alone.";

#[derive(Debug, Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    pub command: ImageCommand,

    #[command(flatten)]
    pub daemon: DaemonArgs,
}

/// What there is for the store alone.
#[derive(Debug, Subcommand)]
pub enum ImageStoreCommand {
    /// Take a copy of a file into the store
    Import {
        /// What to call it
        name: Name,

        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,

        /// raw or qcow2 [default: as the file tells]
        #[arg(short, long)]
        format: Option<Format>,
    },

    /// List the images of the store
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        output: OutputArg,
    },

    /// Delete images of the store that nothing uses
    Delete {
        #[arg(value_name = "NAME", required = true, add = ArgValueCandidates::new(names::images))]
        names: Vec<Name>,
    },
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    #[command(flatten)]
    Store(ImageStoreCommand),

    /// Make an image, empty or on top of another one
    Create {
        /// The file to make; one that exists is not touched
        file: PathBuf,

        /// Size of the disk, such as 8G [default: that of the image it builds on]
        #[arg(value_parser = values::size)]
        size: Option<u64>,

        /// raw or qcow2 [default: qcow2 if it is called *.qcow2 or builds on another, else raw]
        #[arg(short, long)]
        format: Option<Format>,

        /// The image to build on: the new one holds only what differs from it
        #[arg(short, long, value_name = "FILE")]
        backing: Option<PathBuf>,

        /// Format of the image to build on [default: by its name]
        #[arg(short = 'F', long, value_name = "FORMAT")]
        backing_format: Option<Format>,
    },

    /// Tell what an image is and what it builds on
    Info {
        file: PathBuf,

        /// raw or qcow2 [default: by its name]
        #[arg(short, long)]
        format: Option<Format>,

        /// How to print it
        #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
        output: OutputFormat,
    },

    /// Check whether the tables of a qcow2 image agree (exit status 2 if not)
    Check {
        file: PathBuf,

        /// How to print the findings
        #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
        output: OutputFormat,
    },

    /// Copy a disk to a new image that depends on no other
    Convert {
        from: PathBuf,

        /// The file to make; one that exists is not touched
        to: PathBuf,

        /// Format of FROM [default: by its name]
        #[arg(short, long)]
        format: Option<Format>,

        /// Format of TO [default: by its name]
        #[arg(short = 'O', long, value_name = "FORMAT")]
        output_format: Option<Format>,

        /// Let FROM build on files outside its own folder
        #[arg(long)]
        any_backing: bool,
    },

    /// Give the disk of an image another size
    Resize {
        file: PathBuf,

        #[arg(value_parser = values::size)]
        size: u64,

        /// raw or qcow2 [default: by its name]
        #[arg(short, long)]
        format: Option<Format>,

        /// Allow a smaller size; what lies behind it is lost
        #[arg(long)]
        shrink: bool,
    },
}

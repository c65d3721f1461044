//! `queztl-hv image`.

use std::path::PathBuf;

use clap::Subcommand;
use queztl_vmm::config::Format;

use super::OutputFormat;
use crate::values;

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
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

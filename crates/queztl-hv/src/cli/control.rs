//! `queztl-hv control`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use queztl_vmm::config::RateLimit;

use super::OutputFormat;
use crate::values;

pub const CONTROL_EXAMPLES: &str = "\
Examples:
  queztl-hv control /run/vm.sock status
  queztl-hv control /run/vm.sock balloon 128M
  queztl-hv control /run/vm.sock limit disk0 bps=50M,iops=1000
  queztl-hv control /run/vm.sock limit net0-tx none";

#[derive(Debug, Args)]
pub struct ControlArgs {
    /// The machine's socket
    #[arg(value_name = "PATH")]
    pub path: PathBuf,

    #[command(subcommand)]
    pub command: ControlCommand,
}

#[derive(Debug, Subcommand)]
pub enum ControlCommand {
    /// Show how the machine is
    Status {
        /// How to print it
        #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
        output: OutputFormat,
    },

    /// Stop all vCPUs and devices where they are
    Pause,

    /// Go on after a pause
    Resume,

    /// Take a snapshot of the running machine into a new directory; `queztl-hv run --restore` goes on from it
    Snapshot {
        /// The directory to make
        #[arg(value_name = "DIR")]
        directory: PathBuf,

        /// Snapshot that was taken or restored last: write only the memory that has changed since
        #[arg(long, value_name = "DIR")]
        base: Option<PathBuf>,

        /// Let the machine stand still afterwards
        #[arg(long)]
        stay_paused: bool,
    },

    /// End the machine at once, as Ctrl-A x does
    Stop,

    /// Press the power button: the guest is asked to switch itself off
    Power,

    /// Start the guest anew at once, without asking it
    Reset,

    /// Ask the guest to give so much memory back to the host (0 ends it)
    Balloon {
        #[arg(value_name = "SIZE", value_parser = values::size)]
        size: u64,
    },

    /// Ask the guest to use so much of its hot-pluggable memory (0 gives all of it back)
    Memory {
        #[arg(value_name = "SIZE", value_parser = values::size)]
        size: u64,
    },

    /// Limit the rate of a device
    Limit {
        /// disk0, net0-rx, net0-tx, rng, …: see status
        #[arg(value_name = "DEVICE")]
        device: String,

        /// What is not named has no limit
        #[arg(value_name = "none|bps=SIZE,iops=N[,bps-burst=SIZE][,iops-burst=N]", value_parser = values::rate_limit)]
        limit: RateLimit,
    },
}

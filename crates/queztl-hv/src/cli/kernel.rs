//! `queztl-hv kernel`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::OutputFormat;

#[derive(Debug, Subcommand)]
pub enum KernelCommand {
    /// Build a guest kernel, or find the one already built from the same parts
    Build(KernelBuildArgs),

    /// List the kernels built here
    List {
        /// How to print the list
        #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
        output: OutputFormat,
    },
}

#[derive(Debug, Args)]
pub struct KernelBuildArgs {
    /// Kernel source [default: Debian's linux-source-6.12, installed if that is allowed]
    #[arg(long, value_name = "DIR|TARBALL")]
    pub source: Option<PathBuf>,

    /// What the kernel is for
    #[arg(long, value_enum, default_value_t, value_name = "PROFILE")]
    pub profile: ProfileArg,

    /// Configuration fragment to add to the profile's (repeatable)
    #[arg(long = "config", value_name = "FRAGMENT")]
    pub configs: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ProfileArg {
    /// Boots fastest
    #[default]
    Minimal,
    /// PREEMPT_RT
    Rt,
    /// eBPF, containers, virtio-fs, NUMA
    Full,
}

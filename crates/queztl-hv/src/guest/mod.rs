//! `queztl-hv exec` and `queztl-hv copy`: commands and files in a running guest, through its agent.
//!
//! A guest is found by the path of its vsock socket, or by its machine's name: then the daemon tells where that socket is, or,
//! if it is out of reach, carries the command itself ([`crate::verbs`]).

mod copy;
mod exec;
mod signals;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueHint};
use clap_complete::ArgValueCandidates;
use queztl_agent_client::{Agent, Error, Limits};

pub use copy::{Way, copy, way};
pub use exec::{CANNOT_EXECUTE, FAILED, NOT_FOUND, Unbuffered, exec};

use crate::cli::DaemonArgs;
use crate::report::{Failure, chain};

/// Which guest, and how long to wait for it.
#[derive(Debug, Args)]
pub struct Target {
    /// The --vsock path of a virtual machine of `queztl-hv run`
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub vsock: Option<PathBuf>,

    /// How long to wait for an agent: a guest may still boot
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u32).range(..=86_400))]
    wait: u32,

    /// How long the agent may show no sign of life
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    answer: u32,

    #[command(flatten)]
    pub daemon: DaemonArgs,
}

impl Target {
    fn connect(&self, vsock: &Path) -> Result<Agent, Error> {
        let seconds = |number: u32| Duration::from_secs(number.into());
        Agent::connect(vsock, &Limits { connect: seconds(self.wait), answer: seconds(self.answer) })
    }
}

/// A failure that is ours, not the command's.
fn failure(error: &Error) -> Failure {
    Failure::host(chain(error))
}

#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Name or identifier of the machine
    #[arg(
        value_name = "VM",
        required_unless_present = "vsock",
        conflicts_with = "vsock",
        value_parser = crate::values::machine::vm,
        add = ArgValueCandidates::new(crate::verbs::names::vms)
    )]
    pub vm: Option<String>,

    #[command(flatten)]
    pub target: Target,

    /// A terminal for the command, of the size of this one
    #[arg(short, long)]
    pub tty: bool,

    /// An environment variable for the command (repeatable)
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = exec::variable)]
    pub env: Vec<std::ffi::OsString>,

    /// The command's working directory [default: the user's home]
    #[arg(short, long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,

    /// Who runs it: a name of the guest's /etc/passwd or a number, each with :GROUP if wanted [default: root]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,

    /// The command's input is empty, rather than this one's
    #[arg(short, long)]
    pub no_stdin: bool,

    /// Program and arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<std::ffi::OsString>,
}

#[derive(Debug, Args)]
pub struct CopyArgs {
    #[command(flatten)]
    pub target: Target,

    /// The most bytes to take from a guest
    #[arg(long, value_name = "SIZE", default_value = "64G", value_parser = crate::values::size)]
    pub max_size: u64,

    /// A file or directory, here or VM:PATH (with --vsock: guest:PATH)
    #[arg(value_name = "SRC")]
    pub source: std::ffi::OsString,

    /// Where to, here or VM:PATH; if it is a directory, into it
    #[arg(value_name = "DST")]
    pub destination: std::ffi::OsString,
}

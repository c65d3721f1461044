//! `queztl-hv exec` and `queztl-hv copy`: commands and files in a running guest, through its agent.
//!
//! [`Target`] is the one place that knows how a guest is found: so far by the path of its vsock socket.

mod copy;
mod exec;
mod signals;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueHint};
use queztl_agent_client::{Agent, Error, Limits};

pub use copy::copy;
pub use exec::exec;

use crate::report::{Failure, chain};

/// Which guest, and how long to wait for it.
#[derive(Debug, Args)]
pub struct Target {
    /// The virtual machine's --vsock path
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    vsock: PathBuf,

    /// How long to wait for an agent: a guest may still boot
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(..=86_400))]
    wait: u32,

    /// How long the agent may show no sign of life
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    answer: u32,
}

impl Target {
    fn connect(&self) -> Result<Agent, Error> {
        let seconds = |number: u32| Duration::from_secs(number.into());
        Agent::connect(&self.vsock, &Limits { connect: seconds(self.wait), answer: seconds(self.answer) })
    }
}

/// A failure that is ours, not the command's.
fn failure(error: &Error) -> Failure {
    Failure::host(chain(error))
}

#[derive(Debug, Args)]
pub struct ExecArgs {
    #[command(flatten)]
    target: Target,

    /// A terminal for the command, of the size of this one
    #[arg(short, long)]
    tty: bool,

    /// An environment variable for the command (repeatable)
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = exec::variable)]
    env: Vec<std::ffi::OsString>,

    /// The command's working directory [default: the user's home]
    #[arg(short, long, value_name = "DIR")]
    cwd: Option<PathBuf>,

    /// Who runs it: a name of the guest's /etc/passwd or a number, each with :GROUP if wanted [default: root]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,

    /// The command's input is empty, rather than this one's
    #[arg(short, long)]
    no_stdin: bool,

    /// Program and arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<std::ffi::OsString>,
}

#[derive(Debug, Args)]
pub struct CopyArgs {
    #[command(flatten)]
    target: Target,

    /// The most bytes to take from a guest
    #[arg(long, value_name = "SIZE", default_value = "64G", value_parser = crate::values::size)]
    max_size: u64,

    /// A file or directory, here or `guest:PATH`
    #[arg(value_name = "SRC")]
    source: std::ffi::OsString,

    /// Where to, here or `guest:PATH`; if it is a directory, into it
    #[arg(value_name = "DST")]
    destination: std::ffi::OsString,
}

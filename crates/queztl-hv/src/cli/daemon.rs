//! `queztl-hv daemon`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

use super::output::OutputArg;

#[derive(Debug, Args)]
pub struct DaemonRunArgs {
    #[command(subcommand)]
    pub command: Option<DaemonCommand>,

    #[command(flatten)]
    pub serve: ServeArgs,
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Also answer on TCP, with TLS and tokens (repeatable)
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Vec<SocketAddr>,

    /// Certificate chain for --listen, PEM [default: one of its own making, kept in the daemon's home]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// Private key for --tls-cert, PEM
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// What is looked for and who is told of it: alerts, logs [default: daemon.toml in the daemon's home, if it is there]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,

    /// Group whose members may use the Unix socket [default: only the daemon's user]
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum DaemonCommand {
    /// Show whether the daemon runs, and where (exit status 4 if not)
    Status {
        #[command(flatten)]
        output: OutputArg,
    },

    /// End the daemon; machines run on, and the next daemon finds them
    Stop,

    /// End the daemon and start it anew, after an update
    Restart,
}

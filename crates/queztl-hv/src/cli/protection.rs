//! Arguments of the verbs about machines that survive their host.

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};
use clap_complete::ArgValueCandidates;

use super::machines::OneVm;
use super::output::OutputArg;
use crate::values;
use crate::verbs::names;

#[derive(Debug, Args)]
pub struct ProtectArgs {
    #[command(flatten)]
    pub vm: OneVm,

    /// Daemons that keep copies: nodes' names, https://host:port, or unix:/path/of/socket on the same host [default: nodes of
    /// the cluster, as --backups says]
    #[arg(long, value_name = "NODE|ADDRESS[,…]", value_delimiter = ',', add = ArgValueCandidates::new(names::nodes))]
    pub to: Vec<String>,

    /// How many keep copies: the first of --to, where the others stand in for one that stays away, or else the ready nodes with the
    /// most free memory [default: all of --to, or 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8))]
    pub backups: Option<u32>,

    /// File with a token of those daemons, scope admin; needed over https
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub to_token_file: Option<PathBuf>,

    /// PEM file with those daemons' certificates, or their authority's [default: the host's authorities]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub to_ca: Option<PathBuf>,

    /// Where all daemons agree on whose machine it is: file:/directory, which all of them see, or etcd://host:port,host:port
    /// [default: the cluster's coordinator]
    #[arg(long, value_name = "ADDRESS")]
    pub register: Option<String>,

    /// Copies that must have what the guest says before it is let out [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8))]
    pub acks: Option<u32>,

    /// When copies are out of reach: pause stands still, best-effort goes on without protection
    #[arg(long, value_name = "MODE", value_enum, default_value_t)]
    pub mode: ProtectMode,

    /// Milliseconds from one copy to the next, or auto
    #[arg(long, value_name = "MS|auto", default_value = "auto", value_parser = interval)]
    pub interval: Interval,

    /// Output that may wait for each network device
    #[arg(long, value_name = "SIZE", default_value = "64MB", value_parser = values::size)]
    pub buffer: u64,

    /// Fill of the buffer, from 0 to 1, from which on the guest is slowed down
    #[arg(long, value_name = "FILL", default_value = "0.6", value_parser = percent)]
    pub throttle_threshold: u32,

    /// The most that is taken of its vCPUs' time, from 0 to 0.99
    #[arg(long, value_name = "PART", default_value = "0.9", value_parser = percent)]
    pub max_throttle: u32,

    /// How the throttle rises from the threshold on
    #[arg(long, value_name = "linear|exponential:N|custom:FILE", default_value = "linear")]
    pub curve: String,

    /// Connections for memory to each daemon
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub stripes: u32,

    /// It runs without protection after a failover: whoever goes on does not protect it again, and no backup is replaced
    #[arg(long)]
    pub once: bool,

    /// How those daemons reach this one, to let it keep a copy when it is back after a failover; not needed where all are nodes
    /// of a cluster, or all on this host
    #[arg(long, value_name = "ADDRESS")]
    pub own: Option<String>,

    /// Milliseconds that this daemon may be silent before another one takes the machine
    #[arg(long, value_name = "MS", default_value_t = 200, value_parser = clap::value_parser!(u32).range(20..=60000))]
    pub silence: u32,

    /// Milliseconds that the register may stay as it is before another daemon takes the machine
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(100..=60000))]
    pub lease: u32,

    #[command(flatten)]
    pub output: OutputArg,
}

/// What becomes of a guest whose copies are out of reach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ProtectMode {
    #[default]
    Pause,
    BestEffort,
}

/// From one copy to the next, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interval {
    Auto,
    Fixed(u32),
}

/// A part, in percent.
fn percent(text: &str) -> Result<u32, String> {
    match text.parse::<f64>() {
        Ok(part) if (0.0..1.0).contains(&part) => Ok((part * 100.0).round().min(99.0) as u32),
        _ => Err("give a number from 0 to 0.99".into()),
    }
}

fn interval(text: &str) -> Result<Interval, String> {
    match (text, text.parse()) {
        ("auto", _) => Ok(Interval::Auto),
        (_, Ok(ms @ 1..=10_000)) => Ok(Interval::Fixed(ms)),
        _ => Err("give milliseconds from 1 to 10000, or auto".into()),
    }
}

#[derive(Debug, Args)]
pub struct ProtectionArgs {
    #[command(flatten)]
    pub vm: OneVm,

    /// Show it again each second, until interrupted
    #[arg(long)]
    pub watch: bool,

    #[command(flatten)]
    pub output: OutputArg,
}

#[derive(Debug, Args)]
pub struct UnprotectArgs {
    #[command(flatten)]
    pub vm: OneVm,
}

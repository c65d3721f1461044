//! `queztl-bench`: compares processors side by side, in one run, on one host.
//!
//! The same static program (`guest/programs/cpubench`) runs on the host, in guests of QEMU's software CPU and in guests
//! of our own, all guests with the same kernel and initramfs. Each line of the table is one benchmark; a checksum proves
//! that every machine did the same work, and a difference ends the run with status 1. `docs/benchmarks.md` tells how to
//! read the table.

mod image;
mod machine;
mod results;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;

use crate::machine::Machine;

/// Compares the software CPU with the host and with QEMU's, in one run.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// Benchmarks to run [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,

    /// Runs of each benchmark; the shortest counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeats: u32,

    /// Boots of each machine; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    boots: u32,

    /// Machines to compare
    #[arg(long, value_delimiter = ',', default_value = "host,tcg,tcg-2,soft,soft-2")]
    machines: Vec<Machine>,

    /// The queztl-hv program [default: the one built beside this program]
    #[arg(long, value_name = "FILE")]
    queztl: Option<PathBuf>,

    /// Seconds that one machine may take
    #[arg(long, default_value_t = 900)]
    limit: u64,

    /// Compare instruction results (cpucheck) as well
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("queztl-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// True when all machines agreed.
fn run(arguments: &Arguments) -> Result<bool> {
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let queztl = match &arguments.queztl {
        Some(path) => path.clone(),
        None => beside_this_program().context("cannot find queztl-hv; name it with --queztl")?,
    };
    let image = image::prepare(directory.path())?;
    let limit = Duration::from_secs(arguments.limit);
    let mut columns = Vec::new();
    for machine in &arguments.machines {
        eprintln!("running on {machine} …");
        match machine::measure(*machine, &queztl, &image, arguments, limit) {
            Ok(column) => columns.push(column),
            Err(error) => eprintln!("  {machine}: {error:#}"),
        }
    }
    anyhow::ensure!(!columns.is_empty(), "no machine could be measured");
    print!("{}", table::render(&columns));
    let differences = results::differences(&columns);
    for difference in &differences {
        println!("DIFFERENT: {difference}");
    }
    Ok(differences.is_empty() && columns.len() == arguments.machines.len())
}

fn beside_this_program() -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.with_file_name("queztl-hv");
    path.exists().then_some(path)
}
